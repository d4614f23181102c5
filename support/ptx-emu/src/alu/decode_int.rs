//! Decoding integer arithmetic (PTX ISA 9.0, section 9.7.1).

use super::Alu;
use super::carry::{self, Carry};
use super::opcode::{Opcode, Ty, destination, source};
use super::ops::{Bin32, Bin64, Tri32, Tri64, Un32, Un64, Widen2, Widen3};
use crate::ast::Instruction;
use crate::decode::{Decoder, Result};

/// Which part of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Lo,
    Hi,
    Wide,
}

/// `add`, `sub`, `mul`, `mad`, `mul24`, `mad24`, `sad`, `div`, `rem`, `abs`, `neg`, `min`, `max`, `dp4a`, `dp2a`.
pub(super) fn arithmetic(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, base: &str) -> Result<Alu> {
    match base {
        "add" | "sub" => add(d, op, instruction, base == "sub"),
        "mul" => mul(d, op, instruction),
        "mad" => mad(d, op, instruction),
        "mul24" => mul24(d, op, instruction),
        "mad24" => mad24(d, op, instruction),
        "sad" => {
            let ty = op.single(d)?;
            match ty {
                Ty::U16 | Ty::U32 => tri32(d, op, instruction, ty, Tri32::SadU),
                Ty::S16 => tri32(d, op, instruction, ty, Tri32::SadS16),
                Ty::S32 => tri32(d, op, instruction, ty, Tri32::SadS),
                Ty::U64 => tri64(d, op, instruction, ty, Tri64::SadU),
                Ty::S64 => tri64(d, op, instruction, ty, Tri64::SadS),
                _ => Err(op.no_type(d)),
            }
        }
        "div" | "rem" => {
            let ty = op.single(d)?;
            let div = base == "div";
            let narrow = match ty {
                Ty::U16 | Ty::U32 => {
                    if div {
                        Bin32::DivU
                    } else {
                        Bin32::RemU
                    }
                }
                Ty::S16 => {
                    if div {
                        Bin32::DivS16
                    } else {
                        Bin32::RemS16
                    }
                }
                Ty::S32 => {
                    if div {
                        Bin32::DivS
                    } else {
                        Bin32::RemS
                    }
                }
                Ty::U64 => return bin64(d, op, instruction, ty, if div { Bin64::DivU } else { Bin64::RemU }),
                Ty::S64 => return bin64(d, op, instruction, ty, if div { Bin64::DivS } else { Bin64::RemS }),
                _ => return Err(op.no_type(d)),
            };
            bin32(d, op, instruction, ty, narrow)
        }
        "abs" | "neg" => {
            let ty = op.single(d)?;
            let abs = base == "abs";
            op.end(d)?;
            let [to, a] = op.operands(d, instruction)?;
            let (a, to) = (source(d, a, ty)?, destination(d, to, ty)?);
            Ok(match ty {
                Ty::S16 => Alu::Un32 { op: if abs { Un32::Abs16 } else { Un32::Neg }, d: to, a },
                Ty::S32 => Alu::Un32 { op: if abs { Un32::Abs } else { Un32::Neg }, d: to, a },
                Ty::S64 => Alu::Un64 { op: if abs { Un64::Abs } else { Un64::Neg }, d: to, a },
                _ => return Err(op.no_type(d)),
            })
        }
        "min" | "max" => extremum(d, op, instruction, base == "max"),
        "dp4a" | "dp2a" => dot(d, op, instruction, base == "dp2a"),
        _ => Err(d.unknown(instruction)),
    }
}

fn add(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, sub: bool) -> Result<Alu> {
    let ty = op.single(d)?;
    if op.flag("cc") {
        return Carry::add(d, op, instruction, ty, sub, false, true);
    }
    if ty == Ty::S32 && op.flag("sat") {
        return bin32(d, op, instruction, ty, if sub { Bin32::SubSatS } else { Bin32::AddSatS });
    }
    match ty {
        Ty::U16 | Ty::S16 | Ty::U32 | Ty::S32 => bin32(d, op, instruction, ty, if sub { Bin32::Sub } else { Bin32::Add }),
        Ty::U64 | Ty::S64 => bin64(d, op, instruction, ty, if sub { Bin64::Sub } else { Bin64::Add }),
        Ty::U16x2 | Ty::S16x2 if !sub => bin32(d, op, instruction, ty, Bin32::Add16x2),
        _ => Err(op.no_type(d)),
    }
}

/// `.lo`, `.hi` or `.wide`.
pub(super) fn part(d: &Decoder<'_>, op: &mut Opcode<'_>) -> Result<Part> {
    op.pick(&[("lo", Part::Lo), ("hi", Part::Hi), ("wide", Part::Wide)])
        .ok_or_else(|| op.unknown(d, "it needs .lo, .hi or .wide"))
}

/// The type of twice the width.
fn doubled(d: &Decoder<'_>, op: &Opcode<'_>, ty: Ty) -> Result<Ty> {
    match ty {
        Ty::U16 => Ok(Ty::U32),
        Ty::S16 => Ok(Ty::S32),
        Ty::U32 => Ok(Ty::U64),
        Ty::S32 => Ok(Ty::S64),
        _ => Err(op.no_type(d)),
    }
}

fn mul(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<Alu> {
    let ty = op.single(d)?;
    let part = part(d, op)?;
    if part == Part::Wide {
        let wide = doubled(d, op, ty)?;
        op.end(d)?;
        let [to, a, b] = op.operands(d, instruction)?;
        let (a, b, to) = (source(d, a, ty)?, source(d, b, ty)?, destination(d, to, wide)?);
        return Ok(match ty {
            Ty::U16 => Alu::Bin32 { op: Bin32::Mul, d: to, a, b },
            Ty::S16 => Alu::Bin32 { op: Bin32::MulWideS16, d: to, a, b },
            Ty::U32 => Alu::Widen2 { op: Widen2::MulU, d: to, a, b },
            _ => Alu::Widen2 { op: Widen2::MulS, d: to, a, b },
        });
    }
    match (part, ty) {
        (Part::Lo, Ty::U16 | Ty::S16 | Ty::U32 | Ty::S32) => bin32(d, op, instruction, ty, Bin32::Mul),
        (Part::Lo, Ty::U64 | Ty::S64) => bin64(d, op, instruction, ty, Bin64::Mul),
        (_, Ty::U16) => bin32(d, op, instruction, ty, Bin32::MulHiU16),
        (_, Ty::S16) => bin32(d, op, instruction, ty, Bin32::MulHiS16),
        (_, Ty::U32) => bin32(d, op, instruction, ty, Bin32::MulHiU),
        (_, Ty::S32) => bin32(d, op, instruction, ty, Bin32::MulHiS),
        (_, Ty::U64) => bin64(d, op, instruction, ty, Bin64::MulHiU),
        (_, Ty::S64) => bin64(d, op, instruction, ty, Bin64::MulHiS),
        _ => Err(op.no_type(d)),
    }
}

fn mad(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<Alu> {
    let ty = op.single(d)?;
    let part = part(d, op)?;
    if part != Part::Wide && op.flag("cc") {
        return carry::mad(d, op, instruction, ty, part == Part::Hi, false, true);
    }
    if part == Part::Wide {
        let wide = doubled(d, op, ty)?;
        op.end(d)?;
        let [to, a, b, c] = op.operands(d, instruction)?;
        let (a, b, c) = (source(d, a, ty)?, source(d, b, ty)?, source(d, c, wide)?);
        let to = destination(d, to, wide)?;
        return Ok(match ty {
            Ty::U16 => Alu::Tri32 { op: Tri32::Mad, d: to, a, b, c },
            Ty::S16 => Alu::Tri32 { op: Tri32::MadWideS16, d: to, a, b, c },
            Ty::U32 => Alu::Widen3 { op: Widen3::MadU, d: to, a, b, c },
            _ => Alu::Widen3 { op: Widen3::MadS, d: to, a, b, c },
        });
    }
    if part == Part::Hi && ty == Ty::S32 && op.flag("sat") {
        return tri32(d, op, instruction, ty, Tri32::MadHiSatS);
    }
    match (part, ty) {
        (Part::Lo, Ty::U16 | Ty::S16 | Ty::U32 | Ty::S32) => tri32(d, op, instruction, ty, Tri32::Mad),
        (Part::Lo, Ty::U64 | Ty::S64) => tri64(d, op, instruction, ty, Tri64::Mad),
        (_, Ty::U16) => tri32(d, op, instruction, ty, Tri32::MadHiU16),
        (_, Ty::S16) => tri32(d, op, instruction, ty, Tri32::MadHiS16),
        (_, Ty::U32) => tri32(d, op, instruction, ty, Tri32::MadHiU),
        (_, Ty::S32) => tri32(d, op, instruction, ty, Tri32::MadHiS),
        (_, Ty::U64) => tri64(d, op, instruction, ty, Tri64::MadHiU),
        (_, Ty::S64) => tri64(d, op, instruction, ty, Tri64::MadHiS),
        _ => Err(op.no_type(d)),
    }
}

fn mul24(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<Alu> {
    let ty = op.single(d)?;
    let kind = match (part(d, op)?, ty) {
        (Part::Lo, Ty::U32) => Bin32::Mul24LoU,
        (Part::Lo, Ty::S32) => Bin32::Mul24LoS,
        (Part::Hi, Ty::U32) => Bin32::Mul24HiU,
        (Part::Hi, Ty::S32) => Bin32::Mul24HiS,
        _ => return Err(op.no_type(d)),
    };
    bin32(d, op, instruction, ty, kind)
}

fn mad24(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<Alu> {
    let ty = op.single(d)?;
    let kind = match (part(d, op)?, ty) {
        (Part::Lo, Ty::U32) => Tri32::Mad24LoU,
        (Part::Lo, Ty::S32) => Tri32::Mad24LoS,
        (Part::Hi, Ty::U32) => Tri32::Mad24HiU,
        (Part::Hi, Ty::S32) if op.flag("sat") => Tri32::Mad24HiSatS,
        (Part::Hi, Ty::S32) => Tri32::Mad24HiS,
        _ => return Err(op.no_type(d)),
    };
    tri32(d, op, instruction, ty, kind)
}

fn extremum(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, max: bool) -> Result<Alu> {
    let ty = op.single(d)?;
    let relu = matches!(ty, Ty::S32 | Ty::S16x2) && op.flag("relu");
    let narrow = match ty {
        Ty::U16 | Ty::U32 => {
            if max {
                Bin32::MaxU
            } else {
                Bin32::MinU
            }
        }
        Ty::S16 => {
            if max {
                Bin32::MaxS16
            } else {
                Bin32::MinS16
            }
        }
        Ty::S32 => match (max, relu) {
            (false, false) => Bin32::MinS,
            (true, false) => Bin32::MaxS,
            (false, true) => Bin32::MinReluS,
            (true, true) => Bin32::MaxReluS,
        },
        Ty::U16x2 => {
            if max {
                Bin32::MaxU16x2
            } else {
                Bin32::MinU16x2
            }
        }
        Ty::S16x2 => {
            if max {
                Bin32::MaxS16x2(relu)
            } else {
                Bin32::MinS16x2(relu)
            }
        }
        Ty::U64 => return bin64(d, op, instruction, ty, if max { Bin64::MaxU } else { Bin64::MinU }),
        Ty::S64 => return bin64(d, op, instruction, ty, if max { Bin64::MaxS } else { Bin64::MinS }),
        _ => return Err(op.no_type(d)),
    };
    bin32(d, op, instruction, ty, narrow)
}

fn dot(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, two: bool) -> Result<Alu> {
    let (a_type, b_type) = op.pair(d)?;
    if ![a_type, b_type].iter().all(|ty| matches!(ty, Ty::U32 | Ty::S32)) {
        return Err(op.no_type(d));
    }
    let (a_signed, b_signed) = (a_type.is_signed(), b_type.is_signed());
    let kind = if two {
        let high = match part(d, op)? {
            Part::Lo => false,
            Part::Hi => true,
            Part::Wide => return Err(op.unknown(d, "it needs .lo or .hi")),
        };
        Tri32::Dp2a(a_signed, b_signed, high)
    } else {
        Tri32::Dp4a(a_signed, b_signed)
    };
    op.end(d)?;
    let [to, a, b, c] = op.operands(d, instruction)?;
    let (a, b, c) = (source(d, a, Ty::B32)?, source(d, b, Ty::B32)?, source(d, c, Ty::U32)?);
    Ok(Alu::Tri32 { op: kind, d: destination(d, to, Ty::U32)?, a, b, c })
}

/// Two sources and a destination of one type.
pub(super) fn bin32(d: &mut Decoder<'_>, op: &Opcode<'_>, instruction: &Instruction, ty: Ty, kind: Bin32) -> Result<Alu> {
    op.end(d)?;
    let [to, a, b] = op.operands(d, instruction)?;
    let (a, b) = (source(d, a, ty)?, source(d, b, ty)?);
    Ok(Alu::Bin32 { op: kind, d: destination(d, to, ty)?, a, b })
}

/// The same of 64 bits.
pub(super) fn bin64(d: &mut Decoder<'_>, op: &Opcode<'_>, instruction: &Instruction, ty: Ty, kind: Bin64) -> Result<Alu> {
    op.end(d)?;
    let [to, a, b] = op.operands(d, instruction)?;
    let (a, b) = (source(d, a, ty)?, source(d, b, ty)?);
    Ok(Alu::Bin64 { op: kind, d: destination(d, to, ty)?, a, b })
}

/// Three sources and a destination of one type.
pub(super) fn tri32(d: &mut Decoder<'_>, op: &Opcode<'_>, instruction: &Instruction, ty: Ty, kind: Tri32) -> Result<Alu> {
    op.end(d)?;
    let [to, a, b, c] = op.operands(d, instruction)?;
    let (a, b, c) = (source(d, a, ty)?, source(d, b, ty)?, source(d, c, ty)?);
    Ok(Alu::Tri32 { op: kind, d: destination(d, to, ty)?, a, b, c })
}

/// The same of 64 bits.
pub(super) fn tri64(d: &mut Decoder<'_>, op: &Opcode<'_>, instruction: &Instruction, ty: Ty, kind: Tri64) -> Result<Alu> {
    op.end(d)?;
    let [to, a, b, c] = op.operands(d, instruction)?;
    let (a, b, c) = (source(d, a, ty)?, source(d, b, ty)?, source(d, c, ty)?);
    Ok(Alu::Tri64 { op: kind, d: destination(d, to, ty)?, a, b, c })
}
