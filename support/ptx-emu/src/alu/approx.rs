//! The `.approx` operations (PTX ISA 9.0, sections 9.7.3.13 to 9.7.3.22, 9.7.4.9 and 9.7.4.10): the exact result rounded, or, where the machine is
//! told so, some other value within the documented error.

use super::float::{bits, flush, flush_if};
use super::half::Half;
use super::ops::Un32;
use crate::formats::{Format, Modifiers, Rounding, encode};
use crate::rng::Rng;

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // named after the instructions
pub(crate) enum Function {
    Rcp,
    Sqrt,
    Rsqrt,
    Sin,
    Cos,
    Lg2,
    Ex2,
    Tanh,
}

/// On what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operand {
    /// `.f32`; with `.ftz`.
    F32(bool),
    /// `.f16` or `.bf16`; of two in a register.
    Half(Half, bool),
    /// `.f64`; with `.ftz`, which makes it a gross approximation from and to the upper 32 bits.
    F64(bool),
}

/// An approximate operation of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Approx {
    /// What.
    pub function: Function,
    /// On what.
    pub operand: Operand,
}

/// 2^x to about 1e-16, for |x| up to 1000; larger ones count as 1000. No branches: loops over it vectorise, which the library's function
/// does not.
#[inline(always)]
fn exp2(x: f64) -> f64 {
    let x = x.clamp(-1000.0, 1000.0);
    // Adding 1.5 * 2^52 leaves the nearest integer in the low bits.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    let shifted = x + SHIFT;
    let t = (x - (shifted - SHIFT)) * std::f64::consts::LN_2;
    // The series of e^t; |t| is at most 0.35, so that the first term left out is below 1e-17.
    const INVERSE_FACTORIALS: [f64; 13] = [
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let mut sum = 1.0 / 6_227_020_800.0;
    for coefficient in INVERSE_FACTORIALS {
        sum = sum * t + coefficient;
    }
    let scale = shifted.to_bits().wrapping_add(1023) << 52;
    sum * f64::from_bits(scale)
}

impl Function {
    /// In double precision; special values come out as the tables of the manual have them.
    #[inline(always)]
    fn value(self, x: f64) -> f64 {
        match self {
            Function::Rcp => 1.0 / x,
            Function::Sqrt => x.sqrt(),
            Function::Rsqrt => 1.0 / x.sqrt(),
            Function::Sin => x.sin(),
            Function::Cos => x.cos(),
            Function::Lg2 => x.log2(),
            Function::Ex2 => exp2(x),
            Function::Tanh => x.tanh(),
        }
    }

    /// Most that the result y of `x`, of up to 32 bits, may be off, in absolute terms.
    fn error(self, operand: Operand, x: f64, y: f64) -> f64 {
        let relative = |log2: f64| y.abs() * log2.exp2();
        match (self, operand) {
            (Function::Tanh, Operand::Half(Half::F16, _)) => (-10.987f64).exp2(),
            (Function::Tanh, Operand::Half(Half::Bf16, _)) => (-8f64).exp2(),
            (_, Operand::Half(Half::F16, _)) => relative(-9.9),
            (_, Operand::Half(Half::Bf16, _)) => relative(-7.0),
            (Function::Rcp | Function::Sqrt, _) => relative(-23.0),
            (Function::Rsqrt, _) => relative(-22.9),
            (Function::Sin | Function::Cos, _) if x.abs() <= 2.0 * std::f64::consts::PI => (-20.5f64).exp2(),
            (Function::Sin | Function::Cos, _) if x.abs() <= 100.0 * std::f64::consts::PI => (-14.7f64).exp2(),
            (Function::Sin | Function::Cos, _) => 0.0, // nothing is promised: exact
            (Function::Lg2, _) if x > 0.5 && x < 2.0 => (-22f64).exp2(),
            (Function::Lg2 | Function::Ex2, _) => relative(-22.0),
            (Function::Tanh, _) => relative(-11.0),
        }
    }

    /// In single precision. What one operation of the processor gives correctly rounded is left to it.
    #[inline(always)]
    fn single(self, x: u32) -> u32 {
        let value = f32::from_bits(x);
        match self {
            Function::Rcp => bits(1.0 / value),
            Function::Sqrt => bits(value.sqrt()),
            _ => bits(self.value(f64::from(value)) as f32),
        }
    }
}

/// `.f32` of one of the functions that kernels call often.
#[inline(always)]
pub(crate) fn single(function: Function, ftz: bool, a: u32) -> u32 {
    flush_if(ftz, function.single(flush_if(ftz, a)))
}

impl Approx {
    /// The loop over lanes that computes it.
    pub fn lanes(self) -> Un32 {
        match (self.function, self.operand) {
            (Function::Rcp, Operand::F32(ftz)) => Un32::RcpApprox(ftz),
            (Function::Sqrt, Operand::F32(ftz)) => Un32::SqrtApprox(ftz),
            (Function::Rsqrt, Operand::F32(ftz)) => Un32::RsqrtApprox(ftz),
            (Function::Ex2, Operand::F32(ftz)) => Un32::Ex2Approx(ftz),
            _ => Un32::Approx(self),
        }
    }

    /// The exact result rounded; sources of up to 32 bits.
    #[inline(always)]
    pub fn apply(self, a: u32) -> u32 {
        match self.operand {
            Operand::Half(format, packed) => {
                let one = |x: u32| {
                    let result = format.round(f32::from_bits(self.function.single(format.widen(x).to_bits())));
                    self.flush_half(format, result)
                };
                if packed { one(a & 0xffff) | one(a >> 16) << 16 } else { one(a & 0xffff) }
            }
            Operand::F32(true) => flush(self.function.single(flush(a))),
            _ => self.function.single(a),
        }
    }

    /// `ex2` of bf16 has `.ftz` always, the other operations on 16-bit floats never.
    #[inline(always)]
    fn flush_half(self, format: Half, result: u32) -> u32 {
        if format == Half::Bf16 && self.function == Function::Ex2 { format.flush(result) } else { result }
    }

    /// The exact result of a double, rounded.
    #[inline(always)]
    pub fn apply64(self, a: u64) -> u64 {
        if self.operand != Operand::F64(true) {
            let result = self.function.value(f64::from_bits(a));
            return if result.is_nan() { super::float::NAN64 } else { result.to_bits() };
        }
        // Sections 9.7.3.14 and 9.7.3.17: only the upper half of the source counts and only that of the result is made.
        const UPPER: u64 = !0xffff_ffff;
        let flush = |x: u64| if x & 0x7ff << 52 == 0 { x & 1 << 63 } else { x };
        let result = self.function.value(f64::from_bits(flush(a) & UPPER));
        if f64::from_bits(a).is_nan() || result.is_nan() { 0x7fff_ffff << 32 } else { flush(result.to_bits()) & UPPER }
    }

    /// Some value within the documented error of the exact result; doubles, for which none is documented, stay as they are.
    pub fn perturbed(self, a: u32, rng: &mut Rng) -> u32 {
        match self.operand {
            Operand::Half(format, packed) => {
                let mut one = |x: u32| {
                    let exact = self.apply_one(format, x);
                    let x = f64::from(format.widen(x));
                    let to = if format == Half::F16 { Format::F16 } else { Format::Bf16 };
                    let near = |y| self.flush_half(format, encode(y, to, Rounding::NearestEven, Modifiers::default()));
                    let value = |pattern| f64::from(format.widen(pattern));
                    self.displace(x, exact, near, value, rng)
                };
                if packed { one(a & 0xffff) | one(a >> 16) << 16 } else { one(a & 0xffff) }
            }
            Operand::F32(ftz) => {
                let exact = self.apply(a);
                let x = f64::from(f32::from_bits(flush_if(ftz, a)));
                let near = |y: f64| flush_if(ftz, bits(y as f32));
                self.displace(x, exact, near, |pattern| f64::from(f32::from_bits(pattern)), rng)
            }
            Operand::F64(_) => self.apply(a),
        }
    }

    fn apply_one(self, format: Half, x: u32) -> u32 {
        Approx { operand: Operand::Half(format, false), ..self }.apply(x)
    }

    fn displace(self, x: f64, exact: u32, near: impl Fn(f64) -> u32, value: impl Fn(u32) -> f64, rng: &mut Rng) -> u32 {
        let y = self.function.value(x);
        if !y.is_finite() || y == 0.0 || !value(exact).is_finite() {
            return exact;
        }
        let error = self.function.error(self.operand, x, y);
        let candidate = near(y + error * offset(rng));
        if (value(candidate) - y).abs() <= error { candidate } else { exact }
    }
}

/// Uniform in [-1, 1].
fn offset(rng: &mut Rng) -> f64 {
    (rng.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// `div.approx` (section 9.7.3.8): with |b| above 2^126 the reciprocal is flushed to zero, so that the quotient is zero, or NaN for
/// infinite a.
#[inline(always)]
pub(crate) fn div_approx(ftz: bool, a: u32, b: u32) -> u32 {
    let (a, b) = (flush_if(ftz, a), flush_if(ftz, b));
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    let magnitude = b & 0x7fff_ffff;
    let huge = magnitude > 0x7e80_0000 && magnitude < 0x7f80_0000;
    let quotient = if huge { x * f32::from_bits(b & 1 << 31) } else { x / y };
    flush_if(ftz, bits(quotient))
}

/// A quotient within two units in the last place, as `div.approx` and `div.full` promise.
pub(crate) fn div_perturbed(exact: u32, rng: &mut Rng) -> u32 {
    let magnitude = exact & 0x7fff_ffff;
    // Only where two steps stay among normal numbers.
    if !(0x0080_0002..0x7f7f_fffe).contains(&magnitude) {
        return exact;
    }
    // The exact result is itself up to half a unit off: one step more keeps within two.
    exact.wrapping_add(rng.below(3) as u32).wrapping_sub(1)
}
