//! Decoding floating-point arithmetic (PTX ISA 9.0, sections 9.7.3 and 9.7.4).

use super::Alu;
use super::approx::{Approx, Function, Operand};
use super::decode_int::{bin32, bin64, tri32, tri64};
use super::float::{Arith, Extremum, Mode};
use super::half::{Half, HalfMode};
use super::opcode::{Opcode, Ty, destination, source};
use super::ops::{Bin32, Bin64, Tri32, Tri64, Un32, Un64};
use crate::ast::Instruction;
use crate::decode::{Decoder, Result};
use crate::formats::Rounding;

/// The 16-bit format of a type, and whether there are two in a register.
pub(super) fn half_of(ty: Ty) -> Option<(Half, bool)> {
    match ty {
        Ty::F16 => Some((Half::F16, false)),
        Ty::F16x2 => Some((Half::F16, true)),
        Ty::Bf16 => Some((Half::Bf16, false)),
        Ty::Bf16x2 => Some((Half::Bf16, true)),
        _ => None,
    }
}

/// `add`, `sub`, `mul`, `mad`, `fma`, `div`, `abs`, `neg`, `min`, `max`.
pub(super) fn arithmetic(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, base: &str) -> Result<Alu> {
    let ty = op.single(d)?;
    match base {
        "abs" | "neg" => signs(d, op, instruction, ty, base == "abs"),
        "min" | "max" => extremum(d, op, instruction, ty, base == "max"),
        "div" => div(d, op, instruction, ty),
        "add" => sums(d, op, instruction, ty, Arith::Add),
        "sub" => sums(d, op, instruction, ty, Arith::Sub),
        "mul" => sums(d, op, instruction, ty, Arith::Mul),
        // `mad` of floats is `fma` (section 9.7.3.7), of 32 and 64 bits only.
        "mad" if half_of(ty).is_some() => Err(op.no_type(d)),
        _ => sums(d, op, instruction, ty, Arith::Fma),
    }
}

/// `add`, `sub`, `mul`, `fma`.
fn sums(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, ty: Ty, kind: Arith) -> Result<Alu> {
    let rounding = op.rounding();
    if kind == Arith::Fma && rounding.is_none() {
        return Err(op.unknown(d, "it needs a rounding"));
    }
    let rounding = rounding.unwrap_or(Rounding::NearestEven);
    match ty {
        Ty::F32 => {
            let mode = Mode { rounding, ftz: op.flag("ftz"), sat: op.flag("sat") };
            let plain = rounding == Rounding::NearestEven && !mode.sat;
            match kind {
                Arith::Fma => {
                    let kind = match (plain, mode.ftz) {
                        (true, false) => Tri32::FmaF32,
                        (true, true) => Tri32::FmaF32Ftz,
                        (false, _) => Tri32::ArithF32(kind, mode),
                    };
                    tri32(d, op, instruction, ty, kind)
                }
                _ => {
                    let kind = match (kind, plain, mode.ftz) {
                        (Arith::Add, true, false) => Bin32::AddF32,
                        (Arith::Sub, true, false) => Bin32::SubF32,
                        (Arith::Mul, true, false) => Bin32::MulF32,
                        (Arith::Add, true, true) => Bin32::AddF32Ftz,
                        (Arith::Sub, true, true) => Bin32::SubF32Ftz,
                        (Arith::Mul, true, true) => Bin32::MulF32Ftz,
                        _ => Bin32::ArithF32(kind, mode),
                    };
                    bin32(d, op, instruction, ty, kind)
                }
            }
        }
        Ty::F64 => {
            let nearest = rounding == Rounding::NearestEven;
            match kind {
                Arith::Fma if nearest => tri64(d, op, instruction, ty, Tri64::FmaF64),
                Arith::Fma => tri64(d, op, instruction, ty, Tri64::ArithF64(kind, rounding)),
                Arith::Add if nearest => bin64(d, op, instruction, ty, Bin64::AddF64),
                Arith::Sub if nearest => bin64(d, op, instruction, ty, Bin64::SubF64),
                Arith::Mul if nearest => bin64(d, op, instruction, ty, Bin64::MulF64),
                _ => bin64(d, op, instruction, ty, Bin64::ArithF64(kind, rounding)),
            }
        }
        _ => halves(d, op, instruction, ty, kind, rounding),
    }
}

fn halves(
    d: &mut Decoder<'_>,
    op: &Opcode<'_>,
    instruction: &Instruction,
    ty: Ty,
    kind: Arith,
    rounding: Rounding,
) -> Result<Alu> {
    let Some((format, packed)) = half_of(ty) else { return Err(op.no_type(d)) };
    if rounding != Rounding::NearestEven {
        return Err(op.unknown(d, "16-bit floats round to the nearest"));
    }
    let mut op = op.clone();
    let mut mode = HalfMode::default();
    if format == Half::F16 {
        mode.ftz = op.flag("ftz");
        mode.sat = op.flag("sat");
    }
    mode.relu = kind == Arith::Fma && !mode.sat && op.flag("relu");
    let plain = mode == HalfMode::default();
    if kind == Arith::Fma {
        if plain && packed && format == Half::F16 {
            op.end(d)?;
            let [to, a, b, c] = op.operands(d, instruction)?;
            let (a, b, c) = (source(d, a, ty)?, source(d, b, ty)?, source(d, c, ty)?);
            return Ok(Alu::FmaF16x2 { d: destination(d, to, ty)?, a, b, c });
        }
        let kind = match (plain, packed, format) {
            (true, false, Half::F16) => Tri32::FmaF16,
            (true, false, Half::Bf16) => Tri32::FmaBf16,
            (true, true, _) => Tri32::FmaBf16x2,
            (false, false, _) => Tri32::HalfInMode(kind, format, mode),
            (false, true, _) => Tri32::Halfx2InMode(kind, format, mode),
        };
        return tri32(d, &op, instruction, ty, kind);
    }
    let kind = match (kind, format, packed) {
        _ if !plain && !packed => Bin32::HalfInMode(kind, format, mode),
        _ if !plain => Bin32::Halfx2InMode(kind, format, mode),
        (Arith::Add, Half::F16, false) => Bin32::AddF16,
        (Arith::Sub, Half::F16, false) => Bin32::SubF16,
        (_, Half::F16, false) => Bin32::MulF16,
        (Arith::Add, Half::F16, true) => Bin32::AddF16x2,
        (Arith::Sub, Half::F16, true) => Bin32::SubF16x2,
        (_, Half::F16, true) => Bin32::MulF16x2,
        (Arith::Add, Half::Bf16, false) => Bin32::AddBf16,
        (Arith::Sub, Half::Bf16, false) => Bin32::SubBf16,
        (_, Half::Bf16, false) => Bin32::MulBf16,
        (Arith::Add, Half::Bf16, true) => Bin32::AddBf16x2,
        (Arith::Sub, Half::Bf16, true) => Bin32::SubBf16x2,
        (_, Half::Bf16, true) => Bin32::MulBf16x2,
    };
    bin32(d, &op, instruction, ty, kind)
}

/// `abs` and `neg`: the sign bit alone, of NaN too.
fn signs(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, ty: Ty, abs: bool) -> Result<Alu> {
    let ftz = matches!(ty, Ty::F32 | Ty::F16 | Ty::F16x2) && op.flag("ftz");
    op.end(d)?;
    let [to, a] = op.operands(d, instruction)?;
    let (a, to) = (source(d, a, ty)?, destination(d, to, ty)?);
    if ty == Ty::F64 {
        let sign = 1 << 63;
        return Ok(Alu::Un64 { op: if abs { Un64::And(!sign) } else { Un64::Xor(sign) }, d: to, a });
    }
    let sign = match half_of(ty) {
        Some((_, false)) => 0x8000,
        Some((_, true)) => 0x8000_8000,
        None if ty == Ty::F32 => 1 << 31,
        None => return Err(op.no_type(d)),
    };
    let kind = match (half_of(ty), ftz, abs) {
        (Some((format, _)), true, _) => Un32::HalfSigns(format, if abs { 0x7fff } else { 0xffff }, if abs { 0 } else { 0x8000 }),
        (_, false, true) => Un32::And(!sign),
        (_, false, false) => Un32::Xor(sign),
        (None, true, true) => Un32::FlushThenAnd(!sign),
        (None, true, false) => Un32::FlushThenXor(sign),
    };
    Ok(Alu::Un32 { op: kind, d: to, a })
}

fn extremum(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, ty: Ty, max: bool) -> Result<Alu> {
    if ty == Ty::F64 {
        return bin64(d, op, instruction, ty, Bin64::ExtremumF64(max));
    }
    let half = half_of(ty);
    let ftz = !matches!(half, Some((Half::Bf16, _))) && op.flag("ftz");
    let nan = op.flag("NaN");
    let xorsign = op.flag("xorsign");
    // `.abs` alone belongs to three sources, which these architectures do not have.
    let how = Extremum { max, ftz, nan, xorsign, abs: xorsign && op.flag("abs") };
    if xorsign && !how.abs {
        return Err(op.unknown(d, ".xorsign goes with .abs"));
    }
    let kind = match half {
        Some((Half::F16, false)) => Bin32::ExtremumF16(how),
        Some((Half::F16, true)) => Bin32::ExtremumF16x2(how),
        Some((Half::Bf16, false)) => Bin32::ExtremumBf16(how),
        Some((Half::Bf16, true)) => Bin32::ExtremumBf16x2(how),
        None if ty == Ty::F32 => Bin32::ExtremumF32(how),
        None => return Err(op.no_type(d)),
    };
    bin32(d, op, instruction, ty, kind)
}

fn div(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, ty: Ty) -> Result<Alu> {
    if ty == Ty::F32
        && let Some(approx) = op.pick(&[("approx", true), ("full", false)])
    {
        let ftz = op.flag("ftz");
        op.end(d)?;
        let [to, a, b] = op.operands(d, instruction)?;
        let (a, b, to) = (source(d, a, ty)?, source(d, b, ty)?, destination(d, to, ty)?);
        let kind = match (approx, ftz) {
            (true, _) => Bin32::DivApprox(ftz),
            (false, false) => Bin32::DivF32,
            (false, true) => Bin32::ArithF32(Arith::Div, Mode { rounding: Rounding::NearestEven, ftz: true, sat: false }),
        };
        return Ok(Alu::DivApprox { op: kind, d: to, a, b });
    }
    let Some(rounding) = op.rounding() else { return Err(op.unknown(d, "it needs a rounding, .approx or .full")) };
    let nearest = rounding == Rounding::NearestEven;
    match ty {
        Ty::F32 => {
            let mode = Mode { rounding, ftz: op.flag("ftz"), sat: false };
            let kind = if nearest && !mode.ftz { Bin32::DivF32 } else { Bin32::ArithF32(Arith::Div, mode) };
            bin32(d, op, instruction, ty, kind)
        }
        Ty::F64 if nearest => bin64(d, op, instruction, ty, Bin64::DivF64),
        Ty::F64 => bin64(d, op, instruction, ty, Bin64::ArithF64(Arith::Div, rounding)),
        _ => Err(op.no_type(d)),
    }
}

/// `rcp`, `sqrt`, `rsqrt`, `sin`, `cos`, `lg2`, `ex2`, `tanh`.
pub(super) fn unary(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, base: &str) -> Result<Alu> {
    let ty = op.single(d)?;
    if !op.flag("approx") {
        let exact = match base {
            "rcp" => Arith::Rcp,
            "sqrt" => Arith::Sqrt,
            _ => return Err(op.unknown(d, "it needs .approx")),
        };
        return rounded(d, op, instruction, ty, exact);
    }
    let function = match base {
        "rcp" => Function::Rcp,
        "sqrt" => Function::Sqrt,
        "rsqrt" => Function::Rsqrt,
        "sin" => Function::Sin,
        "cos" => Function::Cos,
        "lg2" => Function::Lg2,
        "ex2" => Function::Ex2,
        "tanh" => Function::Tanh,
        _ => return Err(d.unknown(instruction)),
    };
    let ftz = op.flag("ftz");
    op.end(d)?;
    let operand = match (function, ty, ftz) {
        (Function::Tanh, Ty::F32, false) => Operand::F32(false),
        (Function::Tanh, Ty::F32, true) => return Err(op.unknown(d, "no modifier .ftz here")),
        (_, Ty::F32, _) => Operand::F32(ftz),
        (Function::Rcp, Ty::F64, true) | (Function::Rsqrt, Ty::F64, _) => Operand::F64(ftz),
        (Function::Ex2, Ty::F16 | Ty::F16x2, false) | (Function::Tanh, Ty::F16 | Ty::F16x2, false) => {
            Operand::Half(Half::F16, ty == Ty::F16x2)
        }
        (Function::Ex2, Ty::Bf16 | Ty::Bf16x2, true) | (Function::Tanh, Ty::Bf16 | Ty::Bf16x2, false) => {
            Operand::Half(Half::Bf16, ty == Ty::Bf16x2)
        }
        _ => return Err(op.no_type(d)),
    };
    let approx = Approx { function, operand };
    let [to, a] = op.operands(d, instruction)?;
    let (a, to) = (source(d, a, ty)?, destination(d, to, ty)?);
    Ok(match operand {
        Operand::F64(_) => Alu::Un64 { op: Un64::Approx(approx), d: to, a },
        _ => Alu::Approx { op: approx, d: to, a },
    })
}

/// `rcp` and `sqrt` with a rounding.
fn rounded(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, ty: Ty, kind: Arith) -> Result<Alu> {
    let Some(rounding) = op.rounding() else { return Err(op.unknown(d, "it needs a rounding or .approx")) };
    let ftz = ty == Ty::F32 && op.flag("ftz");
    op.end(d)?;
    let [to, a] = op.operands(d, instruction)?;
    let (a, to) = (source(d, a, ty)?, destination(d, to, ty)?);
    let nearest = rounding == Rounding::NearestEven;
    Ok(match (ty, kind) {
        (Ty::F32, Arith::Rcp) if nearest && !ftz => Alu::Un32 { op: Un32::RcpF32, d: to, a },
        (Ty::F32, Arith::Sqrt) if nearest && !ftz => Alu::Un32 { op: Un32::SqrtF32, d: to, a },
        (Ty::F32, _) => Alu::Un32 { op: Un32::ArithF32(kind, Mode { rounding, ftz, sat: false }), d: to, a },
        (Ty::F64, Arith::Sqrt) if nearest => Alu::Un64 { op: Un64::SqrtF64, d: to, a },
        (Ty::F64, _) => Alu::Un64 { op: Un64::ArithF64(kind, rounding), d: to, a },
        _ => return Err(op.no_type(d)),
    })
}

/// `copysign`
pub(super) fn copysign(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<Alu> {
    let ty = op.single(d)?;
    match ty {
        Ty::F32 => bin32(d, op, instruction, ty, Bin32::CopysignF32),
        Ty::F64 => bin64(d, op, instruction, ty, Bin64::CopysignF64),
        _ => Err(op.no_type(d)),
    }
}
