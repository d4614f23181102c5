//! Loads, stores, atomics, address conversions: decoding and executing.

mod atomic;
mod convert;
mod load;
mod modifiers;
mod place;
mod rmw;
mod store;

pub use modifiers::MemSpace;
pub use place::{Note, Place, Shape, by_place, global, note_access, place_of, read_generic, shared};

use crate::ast::Instruction;
use crate::cx::{Cx, Step};
use crate::decode::{Decoder, Result};
use crate::fault::Exec;

/// A decoded instruction of this family.
#[derive(Debug)]
pub enum MemOp {
    /// `ld`, `ldu`
    Load(load::Load),
    /// `st`
    Store(store::Store),
    /// `atom`, `red`
    Atomic(atomic::Atomic),
    /// About addresses.
    Convert(convert::Convert),
}

/// Decodes one.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<MemOp> {
    Ok(match instruction.opcode.first().map(String::as_str) {
        Some("ld" | "ldu") => MemOp::Load(load::decode(decoder, instruction)?),
        Some("st") => MemOp::Store(store::decode(decoder, instruction)?),
        Some("atom" | "red") => MemOp::Atomic(atomic::decode(decoder, instruction)?),
        _ => MemOp::Convert(convert::decode(decoder, instruction)?),
    })
}

/// Executes one.
pub fn exec(op: &MemOp, cx: &mut Cx<'_>) -> Exec<Step> {
    match op {
        MemOp::Load(op) => load::exec(op, cx),
        MemOp::Store(op) => store::exec(op, cx),
        MemOp::Atomic(op) => atomic::exec(op, cx),
        MemOp::Convert(op) => convert::exec(op, cx),
    }
}
