//! Exchanges inside a warp: shuffles, votes, matches, reductions, election: decoding and executing.

use crate::ast::Instruction;
use crate::cx::{Cx, Step};
use crate::decode::{Decoder, Result};
use crate::fault::Exec;

/// A decoded instruction of this family.
#[derive(Debug)]
pub enum WarpOp {}

/// Decodes one.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<WarpOp> {
    Err(decoder.unknown(instruction))
}

/// Executes one.
pub fn exec(op: &WarpOp, _cx: &mut Cx<'_>) -> Exec<Step> {
    match *op {}
}
