//! Decoding logic, shifts and operations on bits (PTX ISA 9.0, sections 9.7.1.14 to 9.7.1.22, 9.7.8 and 9.7.9.7).

use super::decode_int::{bin32, bin64, tri32};
use super::ints::Permute;
use super::opcode::{Opcode, Ty, destination, source};
use super::ops::{Bin32, Bin64, Narrow1, Quad32, Quad64, Tri32, Tri64, Un32, Un64};
use super::{Alu, Pred};
use crate::ast::{Instruction, Operand};
use crate::decode::{Decoder, Result};
use crate::isa::{Reg, Width};
use crate::regs::Mask;

/// An operation on predicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // named after the instructions
pub(crate) enum PredOp {
    And,
    Or,
    Xor,
    Not,
    Mov,
}

impl PredOp {
    /// Of all lanes.
    #[inline(always)]
    pub fn apply(self, a: Mask, b: Mask) -> Mask {
        match self {
            PredOp::And => a & b,
            PredOp::Or => a | b,
            PredOp::Xor => a ^ b,
            PredOp::Not => !a,
            PredOp::Mov => a,
        }
    }
}

pub(super) fn decode(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, base: &str) -> Result<Alu> {
    let ty = op.single(d)?;
    match (base, ty) {
        ("and" | "or" | "xor" | "not", Ty::Pred) => predicates(d, op, instruction, base),
        ("and" | "or" | "xor", Ty::B16 | Ty::B32) => {
            let kind = match base {
                "and" => Bin32::And,
                "or" => Bin32::Or,
                _ => Bin32::Xor,
            };
            bin32(d, op, instruction, ty, kind)
        }
        ("and" | "or" | "xor", Ty::B64) => {
            let kind = match base {
                "and" => Bin64::And,
                "or" => Bin64::Or,
                _ => Bin64::Xor,
            };
            bin64(d, op, instruction, ty, kind)
        }
        ("not" | "cnot" | "brev" | "popc" | "clz" | "bfind", _) => unary(d, op, instruction, base, ty),
        ("shl" | "shr", _) => shift(d, op, instruction, base, ty),
        ("lop3", Ty::B32) => lop3(d, op, instruction),
        ("prmt", Ty::B32) => {
            let mode = op.pick(&[
                ("f4e", Permute::F4e),
                ("b4e", Permute::B4e),
                ("rc8", Permute::Rc8),
                ("ecl", Permute::Ecl),
                ("ecr", Permute::Ecr),
                ("rc16", Permute::Rc16),
            ]);
            // Used to move bytes together, some of which may be padding.
            d.moves();
            tri32(d, op, instruction, ty, mode.map_or(Tri32::Prmt, Tri32::PrmtMode))
        }
        ("shf", Ty::B32) => {
            let right = direction(d, op)?;
            let wrap = wraps(d, op)?;
            op.end(d)?;
            let [to, a, b, c] = op.operands(d, instruction)?;
            let (a, b, c) = (source(d, a, ty)?, source(d, b, ty)?, source(d, c, Ty::U32)?);
            let kind = if right { Tri32::FunnelR(wrap) } else { Tri32::FunnelL(wrap) };
            Ok(Alu::Tri32 { op: kind, d: destination(d, to, ty)?, a, b, c })
        }
        ("szext", Ty::U32 | Ty::S32) => {
            let wrap = wraps(d, op)?;
            bin32(d, op, instruction, ty, Bin32::Szext(wrap, ty.is_signed()))
        }
        ("bmsk", Ty::B32) => {
            let wrap = wraps(d, op)?;
            bin32(d, op, instruction, ty, Bin32::Bmsk(wrap))
        }
        ("fns", Ty::B32) => tri32(d, op, instruction, ty, Tri32::Fns),
        ("bfe", Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64) => {
            op.end(d)?;
            let [to, a, b, c] = op.operands(d, instruction)?;
            let (a, b, c) = (source(d, a, ty)?, source(d, b, Ty::U32)?, source(d, c, Ty::U32)?);
            let to = destination(d, to, ty)?;
            Ok(if ty.bits() == 32 {
                Alu::Tri32 { op: Tri32::Bfe(ty.is_signed()), d: to, a, b, c }
            } else {
                Alu::Tri64 { op: Tri64::Bfe(ty.is_signed()), d: to, a, b, c }
            })
        }
        ("bfi", Ty::B32 | Ty::B64) => {
            op.end(d)?;
            let [to, a, b, c, e] = op.operands(d, instruction)?;
            let sources = [source(d, a, ty)?, source(d, b, ty)?, source(d, c, Ty::U32)?, source(d, e, Ty::U32)?];
            let to = destination(d, to, ty)?;
            Ok(if ty == Ty::B32 {
                Alu::Quad32 { op: Quad32::Bfi, d: to, sources }
            } else {
                Alu::Quad64 { op: Quad64::Bfi, d: to, sources }
            })
        }
        _ => Err(op.no_type(d)),
    }
}

fn predicates(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, base: &str) -> Result<Alu> {
    op.end(d)?;
    let kind = match base {
        "and" => PredOp::And,
        "or" => PredOp::Or,
        "xor" => PredOp::Xor,
        _ => PredOp::Not,
    };
    if kind == PredOp::Not {
        let [to, a] = op.operands(d, instruction)?;
        let a = Pred::decode(d, a)?;
        return Ok(Alu::Predicates { op: kind, d: d.pred_dst(to)?, a, b: a });
    }
    let [to, a, b] = op.operands(d, instruction)?;
    let (a, b) = (Pred::decode(d, a)?, Pred::decode(d, b)?);
    Ok(Alu::Predicates { op: kind, d: d.pred_dst(to)?, a, b })
}

fn unary(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, base: &str, ty: Ty) -> Result<Alu> {
    let shift_amount = base == "bfind" && op.flag("shiftamt");
    op.end(d)?;
    let [to, a] = op.operands(d, instruction)?;
    let a = source(d, a, ty)?;
    let result = if matches!(base, "popc" | "clz" | "bfind") { Ty::U32 } else { ty };
    let to = destination(d, to, result)?;
    let narrow = |kind: Un32| Ok(Alu::Un32 { op: kind, d: to, a });
    let wide = |kind: Un64| Ok(Alu::Un64 { op: kind, d: to, a });
    let count = |kind: Narrow1| Ok(Alu::Narrow1 { op: kind, d: to, a });
    match (base, ty) {
        ("not", Ty::B16 | Ty::B32) => narrow(Un32::Not),
        ("not", Ty::B64) => wide(Un64::Not),
        ("cnot", Ty::B16 | Ty::B32) => narrow(Un32::IsZero),
        ("cnot", Ty::B64) => wide(Un64::IsZero),
        ("brev", Ty::B32) => narrow(Un32::Brev),
        ("brev", Ty::B64) => wide(Un64::Brev),
        ("popc", Ty::B32) => narrow(Un32::Popc),
        ("popc", Ty::B64) => count(Narrow1::Popc),
        ("clz", Ty::B32) => narrow(Un32::Clz),
        ("clz", Ty::B64) => count(Narrow1::Clz),
        ("bfind", Ty::U32) => narrow(Un32::BfindU(shift_amount)),
        ("bfind", Ty::S32) => narrow(Un32::BfindS(shift_amount)),
        ("bfind", Ty::U64) => count(Narrow1::BfindU(shift_amount)),
        ("bfind", Ty::S64) => count(Narrow1::BfindS(shift_amount)),
        _ => Err(op.no_type(d)),
    }
}

fn shift(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, base: &str, ty: Ty) -> Result<Alu> {
    op.end(d)?;
    let [to, a, b] = op.operands(d, instruction)?;
    let (a, b, to) = (source(d, a, ty)?, source(d, b, Ty::U32)?, destination(d, to, ty)?);
    let narrow = match (base, ty) {
        ("shl", Ty::B16 | Ty::B32) => Bin32::Shl,
        ("shr", Ty::B16 | Ty::U16 | Ty::B32 | Ty::U32) => Bin32::ShrU,
        ("shr", Ty::S16) => Bin32::ShrS16,
        ("shr", Ty::S32) => Bin32::ShrS,
        ("shl", Ty::B64) => return Ok(Alu::Bin64 { op: Bin64::Shl, d: to, a, b }),
        ("shr", Ty::B64 | Ty::U64) => return Ok(Alu::Bin64 { op: Bin64::ShrU, d: to, a, b }),
        ("shr", Ty::S64) => return Ok(Alu::Bin64 { op: Bin64::ShrS, d: to, a, b }),
        _ => return Err(op.no_type(d)),
    };
    Ok(Alu::Bin32 { op: narrow, d: to, a, b })
}

fn direction(d: &Decoder<'_>, op: &mut Opcode<'_>) -> Result<bool> {
    op.pick(&[("l", false), ("r", true)]).ok_or_else(|| op.unknown(d, "it needs .l or .r"))
}

fn wraps(d: &Decoder<'_>, op: &mut Opcode<'_>) -> Result<bool> {
    op.pick(&[("clamp", false), ("wrap", true)]).ok_or_else(|| op.unknown(d, "it needs .clamp or .wrap"))
}

fn lop3(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<Alu> {
    let combine = op.pick(&[("or", true), ("and", false)]);
    op.end(d)?;
    let Some(or) = combine else {
        let [to, a, b, c, table] = op.operands(d, instruction)?;
        let (a, b, c) = (source(d, a, Ty::B32)?, source(d, b, Ty::B32)?, source(d, c, Ty::B32)?);
        // The assembler takes any literal and uses its low 8 bits.
        let kind = Tri32::Lop3(d.literal(table)? as u8);
        return Ok(Alu::Tri32 { op: kind, d: destination(d, to, Ty::B32)?, a, b, c });
    };
    let [to, a, b, c, table, q] = op.operands(d, instruction)?;
    let Operand::Pair(to, p) = to else { return Err(d.error("lop3 with .and or .or writes a register and a predicate: d|p")) };
    let (a, b, c) = (source(d, a, Ty::B32)?, source(d, b, Ty::B32)?, source(d, c, Ty::B32)?);
    let table = d.literal(table)? as u8;
    let q = Pred::decode(d, q)?;
    let to = discardable(d, to, Ty::B32)?;
    Ok(Alu::Lop3Pred { d: to, p: d.pred_dst(p)?, a, b, c, table, or, q })
}

/// A destination that may be `_`.
pub(crate) fn discardable(d: &mut Decoder<'_>, operand: &Operand, ty: Ty) -> Result<Reg> {
    match operand {
        // The decoder's own: wide enough for anything, never read.
        Operand::Name(name) if name == "_" => d.dst(operand).map(|reg| Reg { width: Width::W32, ..reg }),
        _ => destination(d, operand, ty),
    }
}
