//! Arithmetic on `.f16` and `.bf16` (PTX ISA 9.0, section 9.7.4), one value at a time, on bit patterns in the low half of a word, without
//! branches, so that loops over lanes vectorise.
//!
//! Every operation rounds once. Sums and products of 16-bit floats may be rounded to `.f32` first: 24 bits are at least twice 11 plus 2, so the
//! second rounding gives what one would have. A fused multiply-add goes through a wider format rounded to odd. NaN results are 0x7fff.

use super::float::{Extremum, saturate};

/// Which of the two formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Half {
    F16,
    Bf16,
}

/// NaN as results have it, in both formats.
pub(crate) const NAN16: u32 = 0x7fff;

impl Half {
    /// As `.f32`, exact.
    #[inline(always)]
    pub fn widen(self, a: u32) -> f32 {
        match self {
            Half::Bf16 => f32::from_bits(a << 16),
            Half::F16 => {
                let magnitude = a & 0x7fff;
                // Exponent fields of equal values differ by 112; subnormals are integers times 2^-24. (No product of subnormals: the
                // processor takes its time over them.)
                let normal = (magnitude << 13).wrapping_add(112 << 23);
                let subnormal = (magnitude as i32 as f32 * f32::from_bits((127 - 24) << 23)).to_bits();
                let finite = if magnitude < 0x400 { subnormal } else { normal };
                let pattern = if magnitude >= 0x7c00 { magnitude << 13 | 0x7f80_0000 } else { finite };
                f32::from_bits(pattern | (a & 0x8000) << 16)
            }
        }
    }

    /// Rounds to the nearest, ties to even.
    #[inline(always)]
    pub fn round(self, value: f32) -> u32 {
        let bits = value.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        let sign = (bits >> 16) & 0x8000;
        let number = match self {
            Half::Bf16 => bits.wrapping_add(0x7fff).wrapping_add((bits >> 16) & 1) >> 16,
            Half::F16 => {
                // Normal: the exponent is rebased by 112, and what carries into it is right.
                let normal = magnitude.wrapping_add(0xc800_0fff).wrapping_add((magnitude >> 13) & 1) >> 13;
                // Subnormal: a sum whose last bit is 2^-24 rounds where the result's last bit is.
                let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
                let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
                // 65520 and above are nearer to what would be 65536.
                sign | if magnitude >= 0x477f_f000 { 0x7c00 } else { finite }
            }
        };
        if magnitude > 0x7f80_0000 { NAN16 } else { number }
    }

    /// Rounds a double that was rounded to odd, or is exact, to the nearest.
    #[inline(always)]
    fn round_wide(self, value: f64) -> u32 {
        // To odd once more: the neighbour towards zero, its last bit set where anything was lost. 24 bits leave two more than either format has,
        // and f32 reaches lower than both.
        let near = value as f32;
        let exact = f64::from(near) == value;
        let over = f64::from(near).abs() > value.abs();
        let odd = near.to_bits().wrapping_sub(u32::from(over)) | 1;
        let kept = if exact || value.is_nan() { near.to_bits() } else { odd };
        self.round(f32::from_bits(kept))
    }

    /// Infinity, as a pattern.
    #[inline(always)]
    fn infinity(self) -> u32 {
        match self {
            Half::F16 => 0x7c00,
            Half::Bf16 => 0x7f80,
        }
    }

    /// A subnormal number becomes a zero of its sign.
    #[inline(always)]
    pub fn flush(self, a: u32) -> u32 {
        let exponent = self.infinity();
        if a & exponent == 0 { a & 0x8000 } else { a }
    }

    #[inline(always)]
    pub fn add(self, a: u32, b: u32) -> u32 {
        self.round(self.widen(a) + self.widen(b))
    }

    #[inline(always)]
    pub fn sub(self, a: u32, b: u32) -> u32 {
        self.round(self.widen(a) - self.widen(b))
    }

    #[inline(always)]
    pub fn mul(self, a: u32, b: u32) -> u32 {
        self.round(self.widen(a) * self.widen(b))
    }

    /// The product is exact in `.f32` for f16, in `.f64` for bf16, whose exponents go further; so is the error of the sum, which makes the
    /// sum odd where there is one.
    #[inline(always)]
    pub fn fma(self, a: u32, b: u32, c: u32) -> u32 {
        match self {
            Half::F16 => self.round(sum_to_odd_f32(self.widen(a) * self.widen(b), self.widen(c))),
            Half::Bf16 => {
                let product = f64::from(self.widen(a)) * f64::from(self.widen(b));
                self.round_wide(sum_to_odd(product, f64::from(self.widen(c))))
            }
        }
    }

    /// `min` and `max` (sections 9.7.4.7 and 9.7.4.8).
    #[inline(always)]
    pub fn extremum(self, how: Extremum, a: u32, b: u32) -> u32 {
        let (a, b) = if how.ftz { (self.flush(a), self.flush(b)) } else { (a, b) };
        let sign = if how.xorsign { (a ^ b) & 0x8000 } else { 0 };
        let (a, b) = if how.xorsign || how.abs { (a & 0x7fff, b & 0x7fff) } else { (a, b) };
        let order = |x: u32| super::float::order(x << 16);
        let (a_nan, b_nan) = (a & 0x7fff > self.infinity(), b & 0x7fff > self.infinity());
        let first = if how.max { order(a) >= order(b) } else { order(a) <= order(b) };
        let number = if b_nan || (first && !a_nan) { a } else { b };
        if (a_nan && b_nan) || (how.nan && (a_nan || b_nan)) { NAN16 } else { number | sign }
    }

    /// What `.ftz`, `.sat` and `.relu` make of a result.
    #[inline(always)]
    pub fn finish(self, mode: HalfMode, result: u32) -> u32 {
        let result = if mode.ftz { self.flush(result) } else { result };
        let nan = result & 0x7fff > self.infinity();
        let result = if mode.sat { self.round(f32::from_bits(saturate(self.widen(result).to_bits()))) } else { result };
        if mode.relu && result & 0x8000 != 0 && !nan { 0 } else { result }
    }

    /// What `.ftz` makes of a source.
    #[inline(always)]
    pub fn start(self, mode: HalfMode, a: u32) -> u32 {
        if mode.ftz { self.flush(a) } else { a }
    }
}

/// Modifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct HalfMode {
    /// `.ftz`
    pub ftz: bool,
    /// `.sat`
    pub sat: bool,
    /// `.relu`
    pub relu: bool,
}

/// [`sum_to_odd`] in single precision.
#[inline(always)]
fn sum_to_odd_f32(a: f32, b: f32) -> f32 {
    let sum = a + b;
    let b_part = sum - a;
    let error = (a - (sum - b_part)) + (b - b_part);
    let bits = sum.to_bits();
    let moved = if (error > 0.0) == (sum > 0.0) { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    let inexact = error != 0.0 && !error.is_nan();
    f32::from_bits(if inexact && bits & 1 == 0 { moved } else { bits })
}

/// The sum of two doubles whose exponents are far from the limits, rounded to odd: of the two neighbours of the exact sum, the one whose last
/// bit is set.
#[inline(always)]
fn sum_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let b_part = sum - a;
    let error = (a - (sum - b_part)) + (b - b_part);
    // Nothing to do for exact sums (NaN and infinity included) and odd ones.
    let bits = sum.to_bits();
    let away = (error > 0.0) == (sum > 0.0);
    let moved = if away { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    let inexact = error != 0.0 && !error.is_nan();
    f64::from_bits(if inexact && bits & 1 == 0 { moved } else { bits })
}

/// Applies an operation to both halves.
#[inline(always)]
pub(crate) fn both(f: impl Fn(u32) -> u32, a: u32) -> u32 {
    f(a & 0xffff) | f(a >> 16) << 16
}

/// The same with two sources.
#[inline(always)]
pub(crate) fn both2(f: impl Fn(u32, u32) -> u32, a: u32, b: u32) -> u32 {
    f(a & 0xffff, b & 0xffff) | f(a >> 16, b >> 16) << 16
}

/// The same with three.
#[inline(always)]
pub(crate) fn both3(f: impl Fn(u32, u32, u32) -> u32, a: u32, b: u32, c: u32) -> u32 {
    f(a & 0xffff, b & 0xffff, c & 0xffff) | f(a >> 16, b >> 16, c >> 16) << 16
}
