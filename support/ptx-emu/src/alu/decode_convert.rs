//! Decoding `cvt` and `cvt.pack` (PTX ISA 9.0, sections 9.7.9.21 and 9.7.9.22). Which modifiers go with which types follows the manual's tables and what the
//! assembler takes.

use super::Alu;
use super::convert::{FloatToFloat, FloatToInt, IntToFloat, IntToInt, PackSat, PackedToPacked, PairToPacked, ToIntegral};
use super::opcode::{Opcode, Ty, destination, source};
use super::ops::{Bin32, Narrow1, Tri32, Un32, Un64, Widen1};
use crate::ast::{Instruction, Operand};
use crate::decode::{Decoder, Result};
use crate::formats::{Format, Modifiers, Rounding};
use crate::isa::{Reg, Src};

/// A scalar float of `cvt`.
fn is_scalar_float(ty: Ty) -> bool {
    matches!(ty, Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::F64)
}

fn is_fp8x2(ty: Ty) -> bool {
    matches!(ty, Ty::E4m3x2 | Ty::E5m2x2)
}

fn fp8(ty: Ty) -> Format {
    if ty == Ty::E5m2x2 { Format::E5m2 } else { Format::E4m3 }
}

fn integral(op: &mut Opcode<'_>) -> Option<ToIntegral> {
    op.pick(&[("rni", ToIntegral::Nearest), ("rzi", ToIntegral::Zero), ("rmi", ToIntegral::Down), ("rpi", ToIntegral::Up)])
}

/// `cvt` and `cvt.pack`.
pub(super) fn cvt(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<Alu> {
    if op.flag("pack") {
        return pack(d, op, instruction);
    }
    let (to, from) = op.pair(d)?;
    match (to, from) {
        _ if to.is_int() && from.is_int() => int_to_int(d, op, instruction, to, from),
        _ if is_scalar_float(to) && from.is_int() => int_to_float(d, op, instruction, to, from),
        _ if to.is_int() && is_scalar_float(from) => float_to_int(d, op, instruction, to, from),
        _ if is_scalar_float(to) && is_scalar_float(from) => float_to_float(d, op, instruction, to, from),
        (Ty::Tf32, Ty::F32) => to_tf32(d, op, instruction),
        (Ty::F16x2 | Ty::Bf16x2 | Ty::E4m3x2 | Ty::E5m2x2, Ty::F32) => pair(d, op, instruction, to),
        (Ty::E4m3x2 | Ty::E5m2x2, Ty::F16x2) | (Ty::F16x2, Ty::E4m3x2 | Ty::E5m2x2) => packed(d, op, instruction, to, from),
        _ => Err(op.no_type(d)),
    }
}

/// Source and destination of `cvt` may be wider than their types: the source is cut, the result extended (section 9.7.9.21, tables 27 and
/// 28).
fn operands(d: &mut Decoder<'_>, op: &Opcode<'_>, instruction: &Instruction, to: Ty, from: Ty) -> Result<(Reg, Src)> {
    op.end(d)?;
    let [to_operand, a] = op.operands(d, instruction)?;
    let a = loose_source(d, a, from)?;
    if matches!(to_operand, Operand::Name(name) if name == "_") {
        return Err(d.error("the result of this instruction cannot be discarded"));
    }
    Ok((d.dst_of(to_operand, to.storage())?, a))
}

fn loose_source(d: &mut Decoder<'_>, operand: &Operand, ty: Ty) -> Result<Src> {
    match operand {
        Operand::Int(_) if ty.is_float() => Err(d.error("an integer literal where cvt reads a float")),
        Operand::F32(_) | Operand::F64(_) if !matches!(ty, Ty::F32 | Ty::F64) => {
            Err(d.error("a literal of another type than cvt reads"))
        }
        _ => d.src(operand, ty.storage()),
    }
}

/// Chooses by the widths of source and result.
struct Shapes {
    narrow: Un32,
    widen: Widen1,
    cut: Narrow1,
    wide: Un64,
}

impl Shapes {
    /// The result of a destination wider than 32 bits is extended as 64 bits.
    fn build(self, d: Reg, a: Src, from: Ty) -> Alu {
        match (from.bits() == 64, d.width.bits() > 32) {
            (false, false) => Alu::Un32 { op: self.narrow, d, a },
            (false, true) => Alu::Widen1 { op: self.widen, d, a },
            (true, false) => Alu::Narrow1 { op: self.cut, d, a },
            (true, true) => Alu::Un64 { op: self.wide, d, a },
        }
    }
}

fn int_to_int(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, to: Ty, from: Ty) -> Result<Alu> {
    // `.sat` where the destination does not hold every value of the source.
    let fits = match (from.is_signed(), to.is_signed()) {
        (true, true) | (false, false) => to.bits() >= from.bits(),
        (false, true) => to.bits() > from.bits(),
        (true, false) => false,
    };
    let sat = !fits && op.flag("sat");
    if !sat {
        // Cutting and extending only moves bits.
        d.moves();
    }
    let (reg, a) = operands(d, op, instruction, to, from)?;
    let how = IntToInt { from, to, sat };
    let narrow = match (from, to) {
        _ if sat => Un32::IntToInt(how),
        (Ty::U32 | Ty::S32, Ty::U32 | Ty::S32) => Un32::Copy,
        (Ty::U16, Ty::U32 | Ty::S32) => Un32::ZextU16,
        (Ty::S16, Ty::U32 | Ty::S32) => Un32::SextS16,
        (Ty::U8, Ty::U32 | Ty::S32) => Un32::ZextU8,
        (Ty::S8, Ty::U32 | Ty::S32) => Un32::SextS8,
        (Ty::U32 | Ty::S32 | Ty::U16, Ty::U16) => Un32::ZextU16,
        _ => Un32::IntToInt(how),
    };
    let widen = match (from, to) {
        (Ty::U32, Ty::U64 | Ty::S64) if !sat => Widen1::Zext,
        (Ty::S32, Ty::U64 | Ty::S64) if !sat => Widen1::Sext,
        _ => Widen1::IntToInt(how),
    };
    let cut = match to {
        Ty::U32 | Ty::S32 if !sat => Narrow1::Low,
        _ => Narrow1::IntToInt(how),
    };
    Ok(Shapes { narrow, widen, cut, wide: Un64::IntToInt(how) }.build(reg, a, from))
}

fn int_to_float(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, to: Ty, from: Ty) -> Result<Alu> {
    let Some(rounding) = op.rounding() else { return Err(op.unknown(d, "it needs a rounding")) };
    // Flushing changes nothing: no integer is subnormal.
    if to == Ty::F32 {
        op.flag("ftz");
    }
    let sat = to != Ty::Bf16 && op.flag("sat");
    let (reg, a) = operands(d, op, instruction, to, from)?;
    let how = IntToFloat { from, to, rounding, sat };
    let nearest = rounding == Rounding::NearestEven && !sat;
    let narrow = match (from, to) {
        (Ty::S32, Ty::F32) if nearest => Un32::S32ToF32,
        (Ty::U32, Ty::F32) if nearest => Un32::U32ToF32,
        _ => Un32::IntToFloat(how),
    };
    let widen = match (from, to) {
        (Ty::S32, Ty::F64) if !sat => Widen1::S32ToF64,
        (Ty::U32, Ty::F64) if !sat => Widen1::U32ToF64,
        _ => Widen1::IntToFloat(how),
    };
    Ok(Shapes { narrow, widen, cut: Narrow1::IntToFloat(how), wide: Un64::IntToFloat(how) }.build(reg, a, from))
}

fn float_to_int(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, to: Ty, from: Ty) -> Result<Alu> {
    let Some(rounding) = integral(op) else { return Err(op.unknown(d, "it needs .rni, .rzi, .rmi or .rpi")) };
    let ftz = from == Ty::F32 && op.flag("ftz");
    // Such conversions clamp whether `.sat` stands there or not.
    if from != Ty::Bf16 {
        op.flag("sat");
    }
    let (reg, a) = operands(d, op, instruction, to, from)?;
    let how = FloatToInt { from, to, rounding, ftz };
    let narrow = match (from, to, rounding) {
        (Ty::F32, Ty::S32, ToIntegral::Zero) => Un32::F32ToS32Zero,
        (Ty::F32, Ty::U32, ToIntegral::Zero) => Un32::F32ToU32Zero,
        _ => Un32::FloatToInt(how),
    };
    let shapes = Shapes { narrow, widen: Widen1::FloatToInt(how), cut: Narrow1::FloatToInt(how), wide: Un64::FloatToInt(how) };
    Ok(shapes.build(reg, a, from))
}

fn float_to_float(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, to: Ty, from: Ty) -> Result<Alu> {
    let integral = if to == from { integral(op) } else { None };
    // Narrowing wants a rounding; between the 16-bit formats, and from bf16, it may stand there though it changes little.
    let narrows = to.bits() < from.bits();
    let crosses = to != from && (to == Ty::Bf16 || from == Ty::Bf16);
    let rounding = if narrows || crosses { op.rounding() } else { None };
    if narrows && rounding.is_none() {
        return Err(op.unknown(d, "it needs a rounding"));
    }
    let ftz = (from == Ty::F32 || to == Ty::F32) && op.flag("ftz");
    let brain = to == Ty::Bf16 || from == Ty::Bf16;
    let sat = !brain && op.flag("sat");
    let toward_small = from == Ty::F32
        && matches!(to, Ty::F16 | Ty::Bf16)
        && matches!(rounding, Some(Rounding::NearestEven | Rounding::TowardZero))
        && !ftz
        && !sat;
    let relu = toward_small && op.flag("relu");
    let satfinite = toward_small && op.flag("satfinite");
    if to == from && integral.is_none() && !sat && !ftz {
        d.moves();
    }
    let (reg, a) = operands(d, op, instruction, to, from)?;
    let rounding = rounding.unwrap_or(Rounding::NearestEven);
    let modifiers = Modifiers { satfinite, relu };
    let how = FloatToFloat { from, to, rounding, integral, ftz, sat, modifiers };
    let plain = rounding == Rounding::NearestEven && integral.is_none() && !ftz && !sat && modifiers == Modifiers::default();
    let narrow = match (from, to) {
        (Ty::F16, Ty::F32) if plain => Un32::F16ToF32,
        (Ty::Bf16, Ty::F32) if plain => Un32::Bf16ToF32,
        (Ty::F32, Ty::F16) if plain => Un32::F32ToF16,
        (Ty::F32, Ty::Bf16) if plain => Un32::F32ToBf16,
        _ => Un32::FloatToFloat(how),
    };
    let widen = match (from, to) {
        (Ty::F32, Ty::F64) if plain => Widen1::F32ToF64,
        _ => Widen1::FloatToFloat(how),
    };
    let cut = if to == Ty::F32 && plain { Narrow1::F64ToF32 } else { Narrow1::FloatToFloat(how) };
    Ok(Shapes { narrow, widen, cut, wide: Un64::FloatToFloat(how) }.build(reg, a, from))
}

fn to_tf32(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<Alu> {
    let rounding = if op.flag("rna") { Some(Rounding::NearestAway) } else { op.rounding() };
    let modifiers = match rounding {
        Some(Rounding::NearestAway) => Modifiers { satfinite: op.flag("satfinite"), relu: false },
        Some(Rounding::NearestEven | Rounding::TowardZero) => Modifiers { satfinite: false, relu: op.flag("relu") },
        _ => return Err(op.unknown(d, "it needs .rn, .rna or .rz")),
    };
    op.end(d)?;
    let [to, a] = op.operands(d, instruction)?;
    let (a, to) = (source(d, a, Ty::F32)?, destination(d, to, Ty::B32)?);
    let rounding = rounding.unwrap_or(Rounding::NearestEven);
    let how = FloatToFloat { from: Ty::F32, to: Ty::Tf32, rounding, integral: None, ftz: false, sat: false, modifiers };
    Ok(Alu::Un32 { op: Un32::FloatToFloat(how), d: to, a })
}

/// Two `.f32` to a packed type.
fn pair(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, to: Ty) -> Result<Alu> {
    let rounding = op.rounding();
    let relu = op.flag("relu");
    let satfinite = op.flag("satfinite");
    let format = match to {
        Ty::F16x2 => Format::F16,
        Ty::Bf16x2 => Format::Bf16,
        _ => fp8(to),
    };
    let rounding = match rounding {
        Some(Rounding::NearestEven) => Rounding::NearestEven,
        Some(Rounding::TowardZero) if !is_fp8x2(to) => Rounding::TowardZero,
        _ => return Err(op.unknown(d, "it needs another rounding")),
    };
    if is_fp8x2(to) && !satfinite {
        return Err(op.unknown(d, "it needs .satfinite"));
    }
    op.end(d)?;
    let [to_operand, a, b] = op.operands(d, instruction)?;
    let (a, b) = (source(d, a, Ty::F32)?, source(d, b, Ty::F32)?);
    // Packed 16-bit floats may go to a wider register, packed 8-bit ones not.
    let reg = match to {
        _ if is_fp8x2(to) => destination(d, to_operand, to)?,
        _ => d.dst_of(to_operand, to.storage())?,
    };
    let plain = rounding == Rounding::NearestEven && !relu && !satfinite;
    let kind = match to {
        Ty::F16x2 if plain => Bin32::F32x2ToF16x2,
        Ty::Bf16x2 if plain => Bin32::F32x2ToBf16x2,
        Ty::E4m3x2 if !relu => Bin32::F32x2ToE4m3x2,
        Ty::E5m2x2 if !relu => Bin32::F32x2ToE5m2x2,
        _ => Bin32::PairToPacked(PairToPacked { format, rounding, modifiers: Modifiers { satfinite, relu } }),
    };
    Ok(Alu::Bin32 { op: kind, d: reg, a, b })
}

/// Between packed types.
fn packed(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, to: Ty, from: Ty) -> Result<Alu> {
    if !op.flag("rn") {
        return Err(op.unknown(d, "it needs .rn"));
    }
    let relu = op.flag("relu");
    let kind = if is_fp8x2(to) {
        if !op.flag("satfinite") {
            return Err(op.unknown(d, "it needs .satfinite"));
        }
        Un32::Packed(PackedToPacked::FromF16x2(fp8(to), relu))
    } else {
        match (relu, from) {
            (false, Ty::E4m3x2) => Un32::E4m3x2ToF16x2,
            (false, _) => Un32::E5m2x2ToF16x2,
            (true, _) => Un32::Packed(PackedToPacked::ToF16x2(fp8(from), relu)),
        }
    };
    op.end(d)?;
    let [to_operand, a] = op.operands(d, instruction)?;
    let (a, reg) = (source(d, a, from)?, destination(d, to_operand, to)?);
    Ok(Alu::Un32 { op: kind, d: reg, a })
}

fn pack(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<Alu> {
    if !op.flag("sat") {
        return Err(op.unknown(d, "it needs .sat"));
    }
    // `.u2` to `.s4` are no types elsewhere.
    let tiny = op.pick(&[("u2", (2, false)), ("s2", (2, true)), ("u4", (4, false)), ("s4", (4, true))]);
    let (bits, signed) = match (tiny, op.types.as_slice()) {
        (Some(tiny), [Ty::S32, Ty::B32]) => tiny,
        (None, [to @ (Ty::U8 | Ty::S8), Ty::S32, Ty::B32]) => (8, to.is_signed()),
        (None, [to @ (Ty::U16 | Ty::S16), Ty::S32]) => (16, to.is_signed()),
        _ => return Err(op.no_type(d)),
    };
    let how = PackSat { bits, signed };
    op.end(d)?;
    if bits == 16 {
        let [to, a, b] = op.operands(d, instruction)?;
        let (a, b) = (source(d, a, Ty::S32)?, source(d, b, Ty::S32)?);
        return Ok(Alu::Bin32 { op: Bin32::PackSat(how), d: destination(d, to, Ty::B32)?, a, b });
    }
    let [to, a, b, c] = op.operands(d, instruction)?;
    let (a, b, c) = (source(d, a, Ty::S32)?, source(d, b, Ty::S32)?, source(d, c, Ty::B32)?);
    Ok(Alu::Tri32 { op: Tri32::PackSat(how), d: destination(d, to, Ty::B32)?, a, b, c })
}
