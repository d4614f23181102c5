//! SIMD video instructions without masks and selectors (PTX ISA 9.0, section 9.7.18), which SIMD-in-a-word functions compile to.

use super::Alu;
use super::opcode::{Opcode, Ty, destination, source};
use super::ops::Tri32;
use crate::ast::Instruction;
use crate::decode::{Decoder, Result};

/// What is done to each pair of parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // named after the instructions
pub(crate) enum Kind {
    Add,
    Sub,
    Average,
    AbsoluteDifference,
    Min,
    Max,
}

/// An instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Video {
    kind: Kind,
    /// Of a part: 8 or 16.
    bits: u32,
    a_signed: bool,
    b_signed: bool,
    /// `.sat`: clamps to the range of a part, signed or not.
    saturate: Option<bool>,
    /// `.add`: the results are summed onto c.
    add: bool,
}

impl Video {
    /// One lane.
    pub fn apply(self, a: u32, b: u32, c: u32) -> u32 {
        let mask = (1u32 << self.bits) - 1;
        let unused = 32 - self.bits;
        let part = |x: u32, at: u32, signed: bool| {
            let low = (x >> at) << unused;
            if signed { low as i32 >> unused } else { (low >> unused) as i32 }
        };
        let mut result = if self.add { c } else { 0 };
        for at in (0..32).step_by(self.bits as usize) {
            let (x, y) = (part(a, at, self.a_signed), part(b, at, self.b_signed));
            let value = match self.kind {
                Kind::Add => x + y,
                Kind::Sub => x - y,
                // Rounds away from zero.
                Kind::Average if x + y >= 0 => (x + y + 1) >> 1,
                Kind::Average => (x + y) >> 1,
                Kind::AbsoluteDifference => (x - y).abs(),
                Kind::Min => x.min(y),
                Kind::Max => x.max(y),
            };
            let value = match self.saturate {
                Some(true) => value.clamp(-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1),
                Some(false) => value.clamp(0, mask as i32),
                None => value,
            } as u32;
            result = if self.add { result.wrapping_add(value) } else { result | (value & mask) << at };
        }
        result
    }
}

/// `vadd2` to `vmax4`.
pub(super) fn decode(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, base: &str) -> Result<Alu> {
    let &[to_type, a_type, b_type] = op.types.as_slice() else { return Err(op.unknown(d, "it takes three types")) };
    if ![to_type, a_type, b_type].iter().all(|ty| matches!(ty, Ty::U32 | Ty::S32)) {
        return Err(op.no_type(d));
    }
    let kind = match base.trim_end_matches(['2', '4']) {
        "vadd" => Kind::Add,
        "vsub" => Kind::Sub,
        "vavrg" => Kind::Average,
        "vabsdiff" => Kind::AbsoluteDifference,
        "vmin" => Kind::Min,
        "vmax" => Kind::Max,
        _ => return Err(d.unknown(instruction)),
    };
    let add = op.flag("add");
    let saturate = (!add && op.flag("sat")).then_some(to_type.is_signed());
    op.end(d)?;
    let video = Video {
        kind,
        bits: if base.ends_with('2') { 16 } else { 8 },
        a_signed: a_type.is_signed(),
        b_signed: b_type.is_signed(),
        saturate,
        add,
    };
    let [to, a, b, c] = op.operands(d, instruction)?;
    let (a, b, c) = (source(d, a, Ty::U32)?, source(d, b, Ty::U32)?, source(d, c, Ty::U32)?);
    Ok(Alu::Tri32 { op: Tri32::Video(video), d: destination(d, to, Ty::U32)?, a, b, c })
}
