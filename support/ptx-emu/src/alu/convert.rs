//! `cvt`, `cvt.pack`: conversions of one lane (PTX ISA 9.0, sections 9.7.9.21 and 9.7.9.22), on bit patterns. Integer results are sign- or
//! zero-extended to 64 bits, as a destination register wider than the type wants them.

use super::float::{NAN64, flush, saturate, saturate64};
use super::half::{Half, NAN16};
use super::opcode::Ty;
use super::soft;
use crate::formats::{self, Format, Modifiers, Rounding, encode};

/// `.rni`, `.rzi`, `.rmi`, `.rpi`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToIntegral {
    /// To the nearest, ties to even.
    Nearest,
    /// Toward zero.
    Zero,
    /// Toward minus infinity.
    Down,
    /// Toward plus infinity.
    Up,
}

impl ToIntegral {
    #[inline(always)]
    fn apply(self, value: f64) -> f64 {
        match self {
            ToIntegral::Nearest => value.round_ties_even(),
            ToIntegral::Zero => value.trunc(),
            ToIntegral::Down => value.floor(),
            ToIntegral::Up => value.ceil(),
        }
    }
}

/// The low bits of an integer type, extended to 64.
#[inline(always)]
fn extend(value: u64, ty: Ty) -> u64 {
    let unused = 64 - ty.bits();
    if ty.is_signed() { ((value << unused) as i64 >> unused) as u64 } else { value << unused >> unused }
}

/// The exact value of an extended integer.
#[inline(always)]
fn exact(extended: u64, ty: Ty) -> i128 {
    if ty.is_signed() { i128::from(extended as i64) } else { i128::from(extended) }
}

/// Smallest and largest value of an integer type.
#[inline(always)]
fn range(ty: Ty) -> (i128, i128) {
    if ty.is_signed() { (-(1 << (ty.bits() - 1)), (1 << (ty.bits() - 1)) - 1) } else { (0, (1 << ty.bits()) - 1) }
}

/// From integer to integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IntToInt {
    /// Source type.
    pub from: Ty,
    /// Destination type.
    pub to: Ty,
    /// `.sat`: clamps to the destination's range.
    pub sat: bool,
}

impl IntToInt {
    /// Converts one.
    #[inline(always)]
    pub fn apply(self, a: u64) -> u64 {
        let value = extend(a, self.from);
        if self.sat {
            let (least, most) = range(self.to);
            exact(value, self.from).clamp(least, most) as u64
        } else {
            extend(value, self.to)
        }
    }
}

/// From integer to floating point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IntToFloat {
    /// Source type.
    pub from: Ty,
    /// Destination type: `.f16`, `.bf16`, `.f32` or `.f64`.
    pub to: Ty,
    /// `.rn` and so on.
    pub rounding: Rounding,
    /// `.sat`
    pub sat: bool,
}

impl IntToFloat {
    /// Converts one.
    pub fn apply(self, a: u64) -> u64 {
        let value = exact(extend(a, self.from), self.from);
        let result = match self.to {
            Ty::F64 => soft::F64.integer(value, self.rounding),
            Ty::F32 => soft::F32.integer(value, self.rounding),
            Ty::F16 => soft::F16.integer(value, self.rounding),
            _ => soft::BF16.integer(value, self.rounding),
        };
        if self.sat { saturate_as(self.to, result) } else { result }
    }
}

/// The value of a pattern, exact; NaN stays NaN.
#[inline(always)]
fn value_of(pattern: u64, ty: Ty, ftz: bool) -> f64 {
    match ty {
        Ty::F64 => f64::from_bits(pattern),
        Ty::F16 => f64::from(Half::F16.widen(pattern as u32 & 0xffff)),
        Ty::Bf16 => f64::from(Half::Bf16.widen(pattern as u32 & 0xffff)),
        _ => f64::from(f32::from_bits(if ftz { flush(pattern as u32) } else { pattern as u32 })),
    }
}

/// `.sat` of a result: [0, 1], NaN becomes +0.
fn saturate_as(ty: Ty, pattern: u64) -> u64 {
    match ty {
        Ty::F64 => saturate64(pattern),
        Ty::F32 => saturate(pattern as u32).into(),
        _ => {
            let format = if ty == Ty::F16 { Half::F16 } else { Half::Bf16 };
            format.round(f32::from_bits(saturate(format.widen(pattern as u32).to_bits()))).into()
        }
    }
}

/// From floating point to integer; clamps to the destination's range whether `.sat` stands there or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FloatToInt {
    /// Source type.
    pub from: Ty,
    /// Destination type.
    pub to: Ty,
    /// `.rzi` and so on.
    pub rounding: ToIntegral,
    /// `.ftz` of an `.f32` source.
    pub ftz: bool,
}

impl FloatToInt {
    /// Converts one. NaN becomes 0, but for `.f64` sources and 64-bit destinations the pattern whose top bit alone is set.
    #[inline(always)]
    pub fn apply(self, a: u64) -> u64 {
        let value = value_of(a, self.from, self.ftz);
        if value.is_nan() {
            let wide = self.from == Ty::F64 || self.to.bits() == 64;
            return if wide { extend(1 << (self.to.bits() - 1), self.to) } else { 0 };
        }
        let whole = self.rounding.apply(value);
        let (least, most) = range(self.to);
        // Casts of floats saturate, and 128 bits hold every range.
        (whole as i128).clamp(least, most) as u64
    }
}

/// From floating point to floating point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FloatToFloat {
    /// Source type.
    pub from: Ty,
    /// Destination type; `.tf32` too.
    pub to: Ty,
    /// How the destination is rounded to.
    pub rounding: Rounding,
    /// `.rni` and so on, between equal types.
    pub integral: Option<ToIntegral>,
    /// `.ftz` of `.f32` sources and results.
    pub ftz: bool,
    /// `.sat`
    pub sat: bool,
    /// `.relu` and `.satfinite`.
    pub modifiers: Modifiers,
}

impl FloatToFloat {
    /// Converts one.
    #[inline(always)]
    pub fn apply(self, a: u64) -> u64 {
        let mut value = value_of(a, self.from, self.ftz);
        if let Some(integral) = self.integral {
            value = integral.apply(value);
        }
        let format = match self.to {
            Ty::F64 => {
                let result = if !value.is_nan() {
                    value.to_bits()
                } else if self.from == Ty::F64 {
                    a | 1 << 51
                } else {
                    NAN64
                };
                return if self.sat { saturate64(result) } else { result };
            }
            Ty::F32 => Format::F32,
            Ty::F16 => Format::F16,
            Ty::Bf16 => Format::Bf16,
            _ => Format::Tf32,
        };
        let result = encode(value, format, self.rounding, self.modifiers);
        let result = if self.ftz && self.to == Ty::F32 { flush(result) } else { result };
        if self.sat { saturate_as(self.to, result.into()) } else { result.into() }
    }
}

/// `cvt.f64.f32`
#[inline(always)]
pub(crate) fn f32_to_f64(a: u32) -> u64 {
    let value = f32::from_bits(a);
    if value.is_nan() { NAN64 } else { f64::from(value).to_bits() }
}

/// Two `.f32` to a packed type: the first source goes to the upper half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PairToPacked {
    /// Of each half.
    pub format: Format,
    /// `.rn`, `.rz`
    pub rounding: Rounding,
    /// `.relu` and `.satfinite`.
    pub modifiers: Modifiers,
}

impl PairToPacked {
    /// Converts one pair.
    #[inline(always)]
    pub fn apply(self, a: u32, b: u32) -> u32 {
        let one = |x: u32| encode(f64::from(f32::from_bits(x)), self.format, self.rounding, self.modifiers);
        let width = if matches!(self.format, Format::E4m3 | Format::E5m2) { 8 } else { 16 };
        one(a) << width | one(b)
    }
}

/// Between packed types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PackedToPacked {
    /// `.e4m3x2` or `.e5m2x2` from `.f16x2`; with `.relu`.
    FromF16x2(Format, bool),
    /// `.f16x2` from `.e4m3x2` or `.e5m2x2`; with `.relu`.
    ToF16x2(Format, bool),
}

impl PackedToPacked {
    /// Converts one.
    #[inline(always)]
    pub fn apply(self, a: u32) -> u32 {
        match self {
            PackedToPacked::FromF16x2(format, relu) => formats::f16x2_to_fp8x2(a, format, relu).into(),
            PackedToPacked::ToF16x2(format, relu) => formats::fp8x2_to_f16x2(a as u16, format, relu),
        }
    }
}

/// `cvt.rn.satfinite.e4m3x2.f32` of one value, without branches.
#[inline(always)]
pub(crate) fn to_e4m3(value: f32) -> u32 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // As `Half::round` does: normal numbers are rebased (by 120), subnormal ones rounded by a sum whose last bit is 2^-9.
    let normal = magnitude.wrapping_add(0x7_ffff).wrapping_add(magnitude >> 20 & 1).wrapping_sub(120 << 23) >> 20;
    let subnormal = (f32::from_bits(magnitude) + 16384.0).to_bits().wrapping_sub(16384f32.to_bits());
    let finite = if magnitude < 0x3c80_0000 { subnormal } else { normal.min(0x7e) };
    // Rebasing wraps for what is far beyond the largest value.
    let finite = if magnitude > 0x43e0_0000 { 0x7e } else { finite };
    if magnitude > 0x7f80_0000 { 0x7f } else { finite | bits >> 24 & 0x80 }
}

/// `cvt.rn.satfinite.e5m2x2.f32` of one value, without branches.
#[inline(always)]
pub(crate) fn to_e5m2(value: f32) -> u32 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let normal = magnitude.wrapping_add(0xf_ffff).wrapping_add(magnitude >> 21 & 1).wrapping_sub(112 << 23) >> 21;
    let subnormal = (f32::from_bits(magnitude) + 128.0).to_bits().wrapping_sub(128f32.to_bits());
    let finite = if magnitude < 0x3880_0000 { subnormal } else { normal.min(0x7b) };
    let finite = if magnitude > 0x4760_0000 { 0x7b } else { finite };
    if magnitude > 0x7f80_0000 { 0x7f } else { finite | bits >> 24 & 0x80 }
}

/// The `.f16` of an E4M3 pattern, exact.
#[inline(always)]
pub(crate) fn from_e4m3(a: u32) -> u32 {
    let magnitude = a & 0x7f;
    let normal = (magnitude << 7).wrapping_add(8 << 10);
    // Eight subnormals: integers times 2^-9, which f16 holds as normal numbers.
    let subnormal = Half::F16.round(magnitude as i32 as f32 * f32::from_bits((127 - 9) << 23));
    let finite = if magnitude < 8 { subnormal } else { normal };
    if magnitude == 0x7f { NAN16 } else { finite | (a & 0x80) << 8 }
}

/// The `.f16` of an E5M2 pattern: its upper byte.
#[inline(always)]
pub(crate) fn from_e5m2(a: u32) -> u32 {
    if a & 0x7f > 0x7c { NAN16 } else { a << 8 }
}

/// `cvt.pack.sat`: a and b clamped and packed, a above b, and for types narrower than 16 bits c above both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackSat {
    /// Bits of a packed value: 2, 4, 8 or 16.
    pub bits: u32,
    /// Whether it is signed.
    pub signed: bool,
}

impl PackSat {
    /// Packs one.
    #[inline(always)]
    pub fn apply(self, a: u32, b: u32, c: u32) -> u32 {
        let (least, most) = match self.signed {
            true => (-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1),
            false => (0, (1 << self.bits) - 1),
        };
        let clamp = |x: u32| (x as i32).clamp(least, most) as u32 & ((1 << self.bits) - 1);
        let pair = clamp(a) << self.bits | clamp(b);
        if self.bits < 16 { c << (2 * self.bits) | pair } else { pair }
    }
}
