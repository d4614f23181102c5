//! `mov` (PTX ISA 9.0, sections 9.7.9.3 and 9.7.9.4): registers, special registers, addresses, predicates; packing and unpacking vectors.

use super::bits::PredOp;
use super::opcode::{Opcode, Ty, destination, source};
use super::ops::{Bin32, Bin64, Narrow1, Un32, Un64};
use super::{Alu, Pred};
use crate::ast::{Instruction, Operand, Space};
use crate::cx::Cx;
use crate::decode::{Decoder, Result};
use crate::isa::{Reg, Special, Src};
use crate::regs::LANES;

/// `mov`
pub(super) fn decode(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<Alu> {
    let ty = op.single(d)?;
    op.end(d)?;
    d.moves();
    let [to, a] = op.operands(d, instruction)?;
    match (to, a, ty) {
        (_, Operand::Vector(parts), _) => pack(d, op, to, parts, ty),
        (Operand::Vector(parts), _, _) => unpack(d, op, parts, a, ty),
        (_, _, Ty::Pred) => {
            let a = Pred::decode(d, a)?;
            Ok(Alu::Predicates { op: PredOp::Mov, d: d.pred_dst(to)?, a, b: a })
        }
        (_, _, Ty::B128) => {
            let a = register(d, a, ty)?;
            Ok(Alu::Copy128 { d: destination(d, to, ty)?, a })
        }
        (_, _, Ty::B16 | Ty::U16 | Ty::S16 | Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32) => {
            let a = moved(d, a, ty)?;
            Ok(Alu::Un32 { op: Un32::Copy, d: destination(d, to, ty)?, a })
        }
        (_, _, Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64) => {
            let a = moved(d, a, ty)?;
            Ok(Alu::Un64 { op: Un64::Copy, d: destination(d, to, ty)?, a })
        }
        _ => Err(op.no_type(d)),
    }
}

/// What is moved: as other instructions' sources, and special registers and addresses.
fn moved(d: &mut Decoder<'_>, operand: &Operand, ty: Ty) -> Result<Src> {
    let src = source(d, operand, ty)?;
    match src {
        Src::Special(special) if ty.bits() == 64 && !is_wide(special) => {
            Err(d.error("a special register of 32 bits where mov takes one of 64"))
        }
        Src::Special(special) if ty.bits() < 64 && is_wide(special) && special != Special::GridId => {
            Err(d.error(format!("a special register of 64 bits where mov takes one of {}", ty.bits())))
        }
        Src::Special(Special::IsExplicitCluster) => Err(d.error("%is_explicit_cluster is a predicate: mov.pred reads it")),
        Src::Param(_) | Src::Symbol(..) | Src::Local(_) | Src::Function(_) if ty.bits() < 32 => {
            Err(d.error("an address does not fit 16 bits"))
        }
        Src::Function(_) if ty.bits() == 32 => Err(d.error("the handle of a function does not fit 32 bits")),
        Src::Symbol(..) if ty.bits() == 32 && d.space_of(&src) != Some(Space::Shared) => {
            Err(d.error("the address of a variable outside of shared memory does not fit 32 bits"))
        }
        _ => Ok(src),
    }
}

/// Special registers of 64 bits; `%gridid` may be read as 16, 32 or 64.
fn is_wide(special: Special) -> bool {
    use Special::*;
    matches!(special, Clock64 | GlobalTimer | GridId | CurrentGraphExec)
}

fn register(d: &mut Decoder<'_>, operand: &Operand, ty: Ty) -> Result<Reg> {
    match source(d, operand, ty)? {
        Src::Reg(reg) => Ok(reg),
        _ => Err(d.error("this operand must be a register")),
    }
}

/// The type of each of so many parts.
fn part_type(d: &Decoder<'_>, op: &Opcode<'_>, ty: Ty, parts: usize) -> Result<Ty> {
    match (ty, parts) {
        (Ty::B16, 2) | (Ty::B32, 4) => Ok(Ty::B8),
        (Ty::B32, 2) | (Ty::B64, 4) => Ok(Ty::B16),
        (Ty::B64, 2) => Ok(Ty::B32),
        (Ty::B128, 2) => Ok(Ty::B64),
        (Ty::B16 | Ty::B32 | Ty::B64 | Ty::B128, _) => {
            Err(d.error(format!("{} bits cannot be made of {parts} parts", ty.bits())))
        }
        _ => Err(op.unknown(d, "vectors are moved as .b16 to .b128")),
    }
}

/// The first element goes to the low bits.
fn pack(d: &mut Decoder<'_>, op: &Opcode<'_>, to: &Operand, parts: &[Operand], ty: Ty) -> Result<Alu> {
    let part = part_type(d, op, ty, parts.len())?;
    let sources = parts.iter().map(|p| source(d, p, part)).collect::<Result<Vec<_>>>()?;
    let to = destination(d, to, ty)?;
    Ok(match (sources.as_slice(), ty) {
        (&[low, high], Ty::B128) => Alu::Pack128 { d: to, low, high },
        (&[a, b], Ty::B64) => Alu::Bin64 { op: Bin64::Pack32, d: to, a, b },
        (&[a, b], Ty::B32) => Alu::Bin32 { op: Bin32::Pack16, d: to, a, b },
        _ => Alu::Pack { d: to, parts: sources.into(), bits: part.bits() },
    })
}

fn unpack(d: &mut Decoder<'_>, op: &Opcode<'_>, parts: &[Operand], a: &Operand, ty: Ty) -> Result<Alu> {
    let part = part_type(d, op, ty, parts.len())?;
    let a = source(d, a, ty)?;
    let mut regs = Vec::with_capacity(parts.len());
    for operand in parts {
        let discarded = matches!(operand, Operand::Name(name) if name == "_");
        regs.push(if discarded { None } else { Some(destination(d, operand, part)?) });
    }
    Ok(match (regs.as_slice(), ty, a) {
        (&[low, high], Ty::B128, Src::Reg(a)) => Alu::Unpack128 { low, high, a },
        (_, Ty::B128, _) => return Err(d.error("this operand must be a register")),
        // One half alone is the most frequent case: where a 64-bit value is taken apart in two instructions.
        (&[Some(to), None], Ty::B64, _) => Alu::Narrow1 { op: Narrow1::Low, d: to, a },
        (&[None, Some(to)], Ty::B64, _) => Alu::Narrow1 { op: Narrow1::High, d: to, a },
        _ => Alu::Unpack { parts: regs.into(), a, bits: part.bits() },
    })
}

/// Executes what is not lane by lane.
pub(super) fn exec(op: &Alu, cx: &mut Cx<'_>) {
    match op {
        Alu::Pack { d, parts, bits } => {
            let mask = (1u64 << bits) - 1;
            let mut out = [0u64; LANES];
            for (i, part) in parts.iter().enumerate() {
                let values = cx.get32(part);
                for lane in 0..LANES {
                    out[lane] |= (u64::from(values[lane]) & mask) << (i as u32 * bits);
                }
            }
            cx.set64(*d, &out);
        }
        Alu::Unpack { parts, a, bits } => {
            let a = cx.get64(a);
            for (i, part) in parts.iter().enumerate() {
                if let Some(part) = part {
                    cx.set32(*part, &a.map(|v| (v >> (i as u32 * bits)) as u32));
                }
            }
        }
        Alu::Copy128 { d, a } => {
            let (low, high) = cx.get128(*a);
            set128(cx, *d, low, high);
        }
        Alu::Pack128 { d, low, high } => {
            let (low, high) = (cx.get64(low), cx.get64(high));
            set128(cx, *d, low, high);
        }
        Alu::Unpack128 { low, high, a } => {
            let (a_low, a_high) = cx.get128(*a);
            if let Some(low) = low {
                cx.set64(*low, &a_low);
            }
            if let Some(high) = high {
                cx.set64(*high, &a_high);
            }
        }
        _ => {}
    }
}

fn set128(cx: &mut Cx<'_>, d: Reg, low: [u64; LANES], high: [u64; LANES]) {
    use crate::isa::Width::W64;
    cx.set64(Reg { slot: d.slot, width: W64 }, &low);
    cx.set64(Reg { slot: d.slot + 2, width: W64 }, &high);
}
