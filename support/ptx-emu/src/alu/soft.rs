//! Floating-point arithmetic in integers, for the rounding modes that the processor is not in: exact results, rounded once.

use crate::formats::Rounding;

/// A binary interchange format of IEEE 754.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Binary {
    /// Bits of the significand, the hidden one included.
    precision: u32,
    /// Exponent of the smallest normal number.
    min_exponent: i32,
    /// Bits in all.
    bits: u32,
}

/// `.f32`
pub(crate) const F32: Binary = Binary { precision: 24, min_exponent: -126, bits: 32 };
/// `.f64`
pub(crate) const F64: Binary = Binary { precision: 53, min_exponent: -1022, bits: 64 };

/// `.f16`
pub(crate) const F16: Binary = Binary { precision: 11, min_exponent: -14, bits: 16 };
/// `.bf16`
pub(crate) const BF16: Binary = Binary { precision: 8, min_exponent: -126, bits: 16 };

/// What a pattern stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Value {
    Nan,
    Infinite(bool),
    /// Zero or a finite number.
    Finite(Exact),
}

/// `mantissa * 2^exponent`, negative or not. The lowest bit of the mantissa may stand for "and something below".
#[derive(Debug, Clone, Copy, PartialEq)]
struct Exact {
    negative: bool,
    exponent: i32,
    mantissa: u128,
}

impl Exact {
    /// With the highest bit at bit 126: one is left for a carry.
    fn normal(self) -> Exact {
        if self.mantissa == 0 {
            return self;
        }
        let shift = self.mantissa.leading_zeros() as i32 - 1;
        debug_assert!(shift >= 0);
        Exact { exponent: self.exponent - shift, mantissa: self.mantissa << shift, ..self }
    }
}

/// Shifts right; what falls off is kept as a one in the lowest bit.
fn shift_right_sticky(value: u128, by: u32) -> u128 {
    match by {
        0 => value,
        1..128 => (value >> by) | u128::from(value << (128 - by) != 0),
        _ => u128::from(value != 0),
    }
}

impl Binary {
    fn sign_bit(self) -> u64 {
        1 << (self.bits - 1)
    }

    fn infinity(self) -> u64 {
        let exponent_bits = self.bits - self.precision;
        ((1 << exponent_bits) - 1) << (self.precision - 1)
    }

    fn signed(self, negative: bool, magnitude: u64) -> u64 {
        if negative { self.sign_bit() | magnitude } else { magnitude }
    }

    fn unpack(self, pattern: u64) -> Value {
        let negative = pattern & self.sign_bit() != 0;
        let magnitude = pattern & (self.sign_bit() - 1);
        let fraction_bits = self.precision - 1;
        let field = (magnitude >> fraction_bits) as i32;
        let fraction = magnitude & ((1 << fraction_bits) - 1);
        if magnitude > self.infinity() {
            Value::Nan
        } else if magnitude == self.infinity() {
            Value::Infinite(negative)
        } else {
            let lowest = self.min_exponent - fraction_bits as i32;
            let (exponent, mantissa) =
                if field == 0 { (lowest, fraction) } else { (lowest + field - 1, fraction | 1 << fraction_bits) };
            Value::Finite(Exact { negative, exponent, mantissa: mantissa.into() })
        }
    }

    /// Rounds once. The mantissa needs two bits more than the format's, or must be exact.
    fn round(self, value: Exact, rounding: Rounding) -> u64 {
        let Exact { negative, exponent, mantissa } = value;
        if mantissa == 0 {
            return self.signed(negative, 0);
        }
        let top = exponent + 127 - mantissa.leading_zeros() as i32;
        let fraction_bits = self.precision as i32 - 1;
        // Exponent of the last bit that the result keeps.
        let last = top.max(self.min_exponent) - fraction_bits;
        let shift = last - exponent;
        let (whole, half, below) = if shift <= 0 {
            ((mantissa << -shift) as u64, false, false)
        } else if shift < 128 {
            let whole = (mantissa >> shift) as u64;
            (whole, mantissa >> (shift - 1) & 1 == 1, mantissa & ((1 << (shift - 1)) - 1) != 0)
        } else {
            (0, shift == 128 && mantissa >> 127 == 1, shift > 128 || mantissa << 1 != 0)
        };
        let up = match rounding {
            Rounding::NearestEven => half && (below || whole & 1 == 1),
            Rounding::NearestAway => half,
            Rounding::TowardZero => false,
            Rounding::Down => negative && (half || below),
            Rounding::Up => !negative && (half || below),
        };
        // The hidden bit adds one to the exponent field, so neither subnormals nor carries need a case of their own.
        let field = (last + fraction_bits - self.min_exponent) as u64;
        let magnitude = field.checked_mul(1 << fraction_bits).map_or(u64::MAX, |f| f.saturating_add(whole + u64::from(up)));
        if magnitude < self.infinity() {
            return self.signed(negative, magnitude);
        }
        let inward = match rounding {
            Rounding::NearestEven | Rounding::NearestAway => false,
            Rounding::TowardZero => true,
            Rounding::Down => !negative,
            Rounding::Up => negative,
        };
        self.signed(negative, self.infinity() - u64::from(inward))
    }

    /// The sum of two finite numbers.
    fn sum(self, a: Exact, b: Exact, rounding: Rounding) -> u64 {
        if a.mantissa == 0 && b.mantissa == 0 {
            // Zeros of one sign keep it; of two, they make +0, or -0 when rounding down.
            let negative = if a.negative == b.negative { a.negative } else { rounding == Rounding::Down };
            return self.signed(negative, 0);
        }
        if a.mantissa == 0 {
            return self.round(b, rounding);
        }
        if b.mantissa == 0 {
            return self.round(a, rounding);
        }
        let (a, b) = (a.normal(), b.normal());
        let (large, small) = if (a.exponent, a.mantissa) >= (b.exponent, b.mantissa) { (a, b) } else { (b, a) };
        let aligned = shift_right_sticky(small.mantissa, large.exponent.abs_diff(small.exponent));
        let (negative, mantissa) = if large.negative == small.negative {
            (large.negative, large.mantissa + aligned)
        } else if large.mantissa == aligned {
            (rounding == Rounding::Down, 0)
        } else {
            (large.negative, large.mantissa - aligned)
        };
        self.round(Exact { negative, exponent: large.exponent, mantissa }, rounding)
    }

    /// `a + b`; None for NaN.
    pub fn add(self, a: u64, b: u64, rounding: Rounding) -> Option<u64> {
        match (self.unpack(a), self.unpack(b)) {
            (Value::Nan, _) | (_, Value::Nan) => None,
            (Value::Infinite(x), Value::Infinite(y)) => (x == y).then_some(self.signed(x, self.infinity())),
            (Value::Infinite(x), _) | (_, Value::Infinite(x)) => Some(self.signed(x, self.infinity())),
            (Value::Finite(a), Value::Finite(b)) => Some(self.sum(a, b, rounding)),
        }
    }

    /// `a - b`; None for NaN.
    pub fn sub(self, a: u64, b: u64, rounding: Rounding) -> Option<u64> {
        self.add(a, b ^ self.sign_bit(), rounding)
    }

    /// `a * b`; None for NaN.
    pub fn mul(self, a: u64, b: u64, rounding: Rounding) -> Option<u64> {
        let negative = (a ^ b) & self.sign_bit() != 0;
        match (self.unpack(a), self.unpack(b)) {
            (Value::Nan, _) | (_, Value::Nan) => None,
            (Value::Infinite(_), Value::Finite(x)) | (Value::Finite(x), Value::Infinite(_)) if x.mantissa == 0 => None,
            (Value::Infinite(_), _) | (_, Value::Infinite(_)) => Some(self.signed(negative, self.infinity())),
            (Value::Finite(a), Value::Finite(b)) => Some(self.round(product(a, b), rounding)),
        }
    }

    /// `a * b + c`, rounded once; None for NaN.
    pub fn fma(self, a: u64, b: u64, c: u64, rounding: Rounding) -> Option<u64> {
        let negative = (a ^ b) & self.sign_bit() != 0;
        let factors = match (self.unpack(a), self.unpack(b)) {
            (Value::Nan, _) | (_, Value::Nan) => return None,
            (Value::Infinite(_), Value::Finite(x)) | (Value::Finite(x), Value::Infinite(_)) if x.mantissa == 0 => return None,
            (Value::Infinite(_), _) | (_, Value::Infinite(_)) => Value::Infinite(negative),
            (Value::Finite(a), Value::Finite(b)) => Value::Finite(product(a, b)),
        };
        match (factors, self.unpack(c)) {
            (Value::Nan, _) | (_, Value::Nan) => None,
            (Value::Infinite(x), Value::Infinite(y)) => (x == y).then_some(self.signed(x, self.infinity())),
            (Value::Infinite(x), _) | (_, Value::Infinite(x)) => Some(self.signed(x, self.infinity())),
            (Value::Finite(product), Value::Finite(c)) => Some(self.sum(product, c, rounding)),
        }
    }

    /// `a / b`; None for NaN.
    pub fn div(self, a: u64, b: u64, rounding: Rounding) -> Option<u64> {
        let negative = (a ^ b) & self.sign_bit() != 0;
        let (a, b) = match (self.unpack(a), self.unpack(b)) {
            (Value::Nan, _) | (_, Value::Nan) | (Value::Infinite(_), Value::Infinite(_)) => return None,
            (Value::Infinite(_), _) => return Some(self.signed(negative, self.infinity())),
            (_, Value::Infinite(_)) => return Some(self.signed(negative, 0)),
            (Value::Finite(a), Value::Finite(b)) => (a, b),
        };
        match (a.mantissa, b.mantissa) {
            (0, 0) => None,
            (_, 0) => Some(self.signed(negative, self.infinity())),
            (0, _) => Some(self.signed(negative, 0)),
            (_, divisor) => {
                let a = a.normal();
                // 127 bits over at most 53: at least 74 bits of quotient.
                let (quotient, rest) = (a.mantissa / divisor, a.mantissa % divisor);
                let mantissa = quotient << 1 | u128::from(rest != 0);
                Some(self.round(Exact { negative, exponent: a.exponent - b.exponent - 1, mantissa }, rounding))
            }
        }
    }

    /// The square root; None for NaN.
    pub fn sqrt(self, a: u64, rounding: Rounding) -> Option<u64> {
        let value = match self.unpack(a) {
            Value::Nan | Value::Infinite(true) => return None,
            Value::Infinite(false) => return Some(self.infinity()),
            Value::Finite(value) if value.mantissa == 0 => return Some(a),
            Value::Finite(value) if value.negative => return None,
            Value::Finite(value) => value.normal(),
        };
        // An even exponent halves; 126 or 127 bits have a root of 63 or 64.
        let odd = value.exponent & 1;
        let mantissa = value.mantissa << odd;
        let root = mantissa.isqrt();
        let mantissa_out = root << 1 | u128::from(root * root != mantissa);
        let exponent = (value.exponent - odd) / 2 - 1;
        Some(self.round(Exact { negative: false, exponent, mantissa: mantissa_out }, rounding))
    }

    /// An integer.
    pub fn integer(self, value: i128, rounding: Rounding) -> u64 {
        self.round(Exact { negative: value < 0, exponent: 0, mantissa: value.unsigned_abs() }, rounding)
    }
}

fn product(a: Exact, b: Exact) -> Exact {
    Exact { negative: a.negative != b.negative, exponent: a.exponent + b.exponent, mantissa: a.mantissa * b.mantissa }
}
