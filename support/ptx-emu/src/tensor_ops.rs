//! Matrix instructions in a warp's or warpgroup's context: decoding and executing. What they compute is in [`crate::tensor`].

use crate::ast::Instruction;
use crate::cx::{Cx, Step};
use crate::decode::{Decoder, Result};
use crate::fault::Exec;

/// A decoded instruction of this family.
#[derive(Debug)]
pub enum TensorOp {}

/// What a warp keeps: registers of asynchronous matrix instructions in flight.
#[derive(Debug, Default)]
pub struct WarpState {
    /// Absolute slots of registers that an instruction in flight reads or writes.
    pub in_flight: Vec<usize>,
}

/// What a block keeps: warpgroup instructions that wait for all four warps.
#[derive(Debug, Default)]
pub struct BlockState {}

/// Decodes one.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<TensorOp> {
    Err(decoder.unknown(instruction))
}

/// Executes one.
pub fn exec(op: &TensorOp, _cx: &mut Cx<'_>) -> Exec<Step> {
    match *op {}
}
