//! Loads, stores, atomics, address conversions: decoding and executing.

use crate::ast::Instruction;
use crate::cx::{Cx, Step};
use crate::decode::{Decoder, Result};
use crate::fault::Exec;

/// A decoded instruction of this family.
#[derive(Debug)]
pub enum MemOp {}

/// Decodes one.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<MemOp> {
    Err(decoder.unknown(instruction))
}

/// Executes one.
pub fn exec(op: &MemOp, _cx: &mut Cx<'_>) -> Exec<Step> {
    match *op {}
}
