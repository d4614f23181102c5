//! Arithmetic on `.f32` and `.f64` (PTX ISA 9.0, section 9.7.3), one lane at a time, on bit patterns.
//!
//! NaN: single precision makes 0x7fff_ffff whatever the operands were (the manual leaves the pattern open); double precision keeps the payload of
//! the first operand that is one, made quiet, and makes 0xfff8_0000_0000_0000 of invalid operations. `.ftz` flushes subnormal sources and results
//! to zeros of their sign; `.sat` clamps to [0, 1], NaN to +0.

use super::soft;
use crate::formats::Rounding;

/// Single-precision NaN as results have it.
pub(crate) const NAN32: u32 = 0x7fff_ffff;
/// Double-precision NaN where no operand's payload is kept.
pub(crate) const NAN64: u64 = 0x7fff_ffff_ffff_ffff;
const SIGN32: u32 = 1 << 31;
const SIGN64: u64 = 1 << 63;

/// Rounding and modifiers of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode {
    /// `.rn` and so on.
    pub rounding: Rounding,
    /// `.ftz`
    pub ftz: bool,
    /// `.sat`
    pub sat: bool,
}

/// A subnormal number becomes a zero of its sign.
#[inline(always)]
pub(crate) fn flush(a: u32) -> u32 {
    if a & 0x7f80_0000 == 0 { a & SIGN32 } else { a }
}

#[inline(always)]
pub(crate) fn flush_if(ftz: bool, a: u32) -> u32 {
    if ftz { flush(a) } else { a }
}

/// The pattern of a result.
#[inline(always)]
pub(crate) fn bits(a: f32) -> u32 {
    if a.is_nan() { NAN32 } else { a.to_bits() }
}

#[inline(always)]
fn f(a: u32) -> f32 {
    f32::from_bits(a)
}

/// `.sat`
#[inline(always)]
pub(crate) fn saturate(a: u32) -> u32 {
    let value = f(a);
    // NaN and -0 fail the first comparison.
    if value > 0.0 { if value < 1.0 { a } else { 1.0f32.to_bits() } } else { 0 }
}

/// `.sat` of a double.
#[inline(always)]
pub(crate) fn saturate64(a: u64) -> u64 {
    let value = f64::from_bits(a);
    if value > 0.0 { if value < 1.0 { a } else { 1.0f64.to_bits() } } else { 0 }
}

#[inline(always)]
pub(crate) fn add(a: u32, b: u32) -> u32 {
    bits(f(a) + f(b))
}

#[inline(always)]
pub(crate) fn sub(a: u32, b: u32) -> u32 {
    bits(f(a) - f(b))
}

#[inline(always)]
pub(crate) fn mul(a: u32, b: u32) -> u32 {
    bits(f(a) * f(b))
}

#[inline(always)]
pub(crate) fn div(a: u32, b: u32) -> u32 {
    bits(f(a) / f(b))
}

#[inline(always)]
pub(crate) fn sqrt(a: u32) -> u32 {
    bits(f(a).sqrt())
}

#[inline(always)]
pub(crate) fn fma(a: u32, b: u32, c: u32) -> u32 {
    bits(f(a).mul_add(f(b), f(c)))
}

/// An operation of up to three sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // named after the instructions
pub(crate) enum Arith {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Rcp,
    Sqrt,
}

/// Single precision in any mode.
pub(crate) fn in_mode(op: Arith, mode: Mode, a: u32, b: u32, c: u32) -> u32 {
    let [a, b, c] = [a, b, c].map(|x| flush_if(mode.ftz, x));
    let one = 1.0f32.to_bits();
    let result = if mode.rounding == Rounding::NearestEven {
        match op {
            Arith::Add => add(a, b),
            Arith::Sub => sub(a, b),
            Arith::Mul => mul(a, b),
            Arith::Fma => fma(a, b, c),
            Arith::Div => div(a, b),
            Arith::Rcp => div(one, a),
            Arith::Sqrt => sqrt(a),
        }
    } else {
        let (x, y, z, to) = (a.into(), b.into(), c.into(), mode.rounding);
        let result = match op {
            Arith::Add => soft::F32.add(x, y, to),
            Arith::Sub => soft::F32.sub(x, y, to),
            Arith::Mul => soft::F32.mul(x, y, to),
            Arith::Fma => soft::F32.fma(x, y, z, to),
            Arith::Div => soft::F32.div(x, y, to),
            Arith::Rcp => soft::F32.div(one.into(), x, to),
            Arith::Sqrt => soft::F32.sqrt(x, to),
        };
        result.map_or(NAN32, |r| r as u32)
    };
    let result = flush_if(mode.ftz, result);
    if mode.sat { saturate(result) } else { result }
}

/// The result of a double-precision operation, or the NaN it passes on.
#[inline(always)]
fn bits64(result: f64, a: u64, b: u64, c: u64) -> u64 {
    if result.is_nan() { nan64(a, b, c) } else { result.to_bits() }
}

fn nan64(a: u64, b: u64, c: u64) -> u64 {
    let quiet = 1 << 51;
    match [a, b, c].into_iter().find(|&x| f64::from_bits(x).is_nan()) {
        Some(nan) => nan | quiet,
        None => 0xfff8_0000_0000_0000,
    }
}

#[inline(always)]
fn d(a: u64) -> f64 {
    f64::from_bits(a)
}

#[inline(always)]
pub(crate) fn add64(a: u64, b: u64) -> u64 {
    bits64(d(a) + d(b), a, b, 0)
}

#[inline(always)]
pub(crate) fn sub64(a: u64, b: u64) -> u64 {
    bits64(d(a) - d(b), a, b, 0)
}

#[inline(always)]
pub(crate) fn mul64(a: u64, b: u64) -> u64 {
    bits64(d(a) * d(b), a, b, 0)
}

#[inline(always)]
pub(crate) fn div64(a: u64, b: u64) -> u64 {
    bits64(d(a) / d(b), a, b, 0)
}

#[inline(always)]
pub(crate) fn sqrt64(a: u64) -> u64 {
    bits64(d(a).sqrt(), a, 0, 0)
}

#[inline(always)]
pub(crate) fn fma64(a: u64, b: u64, c: u64) -> u64 {
    bits64(d(a).mul_add(d(b), d(c)), a, b, c)
}

/// Double precision in any rounding.
pub(crate) fn in_mode64(op: Arith, rounding: Rounding, a: u64, b: u64, c: u64) -> u64 {
    let one = 1.0f64.to_bits();
    if rounding == Rounding::NearestEven {
        return match op {
            Arith::Add => add64(a, b),
            Arith::Sub => sub64(a, b),
            Arith::Mul => mul64(a, b),
            Arith::Fma => fma64(a, b, c),
            Arith::Div => div64(a, b),
            Arith::Rcp => div64(one, a),
            Arith::Sqrt => sqrt64(a),
        };
    }
    let result = match op {
        Arith::Add => soft::F64.add(a, b, rounding),
        Arith::Sub => soft::F64.sub(a, b, rounding),
        Arith::Mul => soft::F64.mul(a, b, rounding),
        Arith::Fma => soft::F64.fma(a, b, c, rounding),
        Arith::Div => soft::F64.div(a, b, rounding),
        Arith::Rcp => soft::F64.div(one, a, rounding),
        Arith::Sqrt => soft::F64.sqrt(a, rounding),
    };
    let (b, c) = match op {
        Arith::Rcp | Arith::Sqrt => (0, 0),
        Arith::Fma => (b, c),
        _ => (b, 0),
    };
    result.unwrap_or_else(|| nan64(a, b, c))
}

/// Modifiers of `min` and `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extremum {
    /// `max`
    pub max: bool,
    /// `.ftz`
    pub ftz: bool,
    /// `.NaN`: one NaN makes the result NaN.
    pub nan: bool,
    /// `.xorsign.abs`: of the magnitudes, with the exclusive or of the signs.
    pub xorsign: bool,
    /// `.abs`: of the magnitudes.
    pub abs: bool,
}

/// As an integer that orders the numbers, -0 below +0.
#[inline(always)]
pub(crate) fn order(a: u32) -> i32 {
    let a = a as i32;
    a ^ (((a >> 31) as u32) >> 1) as i32
}

/// `min` and `max` (sections 9.7.3.11 and 9.7.3.12): a number wins over NaN, -0 is less than +0.
#[inline(always)]
pub(crate) fn extremum(how: Extremum, a: u32, b: u32) -> u32 {
    let (a, b) = (flush_if(how.ftz, a), flush_if(how.ftz, b));
    let sign = if how.xorsign { (a ^ b) & SIGN32 } else { 0 };
    let (a, b) = if how.xorsign || how.abs { (a & !SIGN32, b & !SIGN32) } else { (a, b) };
    let (a_nan, b_nan) = (f(a).is_nan(), f(b).is_nan());
    let first = if how.max { order(a) >= order(b) } else { order(a) <= order(b) };
    let number = if b_nan || (first && !a_nan) { a } else { b };
    if (a_nan && b_nan) || (how.nan && (a_nan || b_nan)) { NAN32 } else { number | sign }
}

/// The same of doubles, which have no modifiers.
#[inline(always)]
pub(crate) fn extremum64(max: bool, a: u64, b: u64) -> u64 {
    let order = |a: u64| a as i64 ^ (((a as i64 >> 63) as u64) >> 1) as i64;
    let (a_nan, b_nan) = (d(a).is_nan(), d(b).is_nan());
    let first = if max { order(a) >= order(b) } else { order(a) <= order(b) };
    let number = if b_nan || (first && !a_nan) { a } else { b };
    if a_nan && b_nan { NAN64 } else { number }
}

/// `copysign d, a, b` (section 9.7.3.2): the sign of a, the rest of b.
#[inline(always)]
pub(crate) fn copysign(a: u32, b: u32) -> u32 {
    (a & SIGN32) | (b & !SIGN32)
}

/// The same of doubles.
#[inline(always)]
pub(crate) fn copysign64(a: u64, b: u64) -> u64 {
    (a & SIGN64) | (b & !SIGN64)
}
