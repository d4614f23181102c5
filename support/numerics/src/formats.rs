//! One-byte floating-point formats.

use bytemuck::{Pod, Zeroable};

/// FP8 with 4 exponent bits (bias 7) and 3 mantissa bits, without infinities: largest value 448, smallest 2^-9.
/// The bit patterns `0x7f` and `0xff` are NaN ("E4M3FN").
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct E4M3(pub u8);

/// FP8 with 5 exponent bits (bias 15) and 2 mantissa bits, with infinities as in IEEE 754: largest value 57344, smallest 2^-16.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct E5M2(pub u8);

/// Rounds the magnitude bits of an f32 to `mantissa` bits below an exponent with the given bias, to nearest, ties to even,
/// subnormals included. The code may exceed the format's largest; the caller saturates.
#[inline(always)]
pub(crate) fn round_magnitude(magnitude: u32, mantissa: u32, bias: u32) -> u32 {
    let drop = 23 - mantissa;
    let smallest_normal = (127 + 1 - bias) << 23;
    if magnitude >= smallest_normal {
        let odd = (magnitude >> drop) & 1;
        let rounded = magnitude + (1 << (drop - 1)) - 1 + odd;
        (rounded >> drop) - ((127 - bias) << mantissa)
    } else {
        // Adding 2^(e) whose last place is the smallest subnormal lets the f32 adder round.
        let magic = (127 + 1 - bias + drop) << 23;
        (f32::from_bits(magnitude) + f32::from_bits(magic)).to_bits() - magic
    }
}

impl E4M3 {
    /// The largest value, 448.
    pub const MAX: E4M3 = E4M3(0x7e);
    /// Not a number.
    pub const NAN: E4M3 = E4M3(0x7f);

    /// The nearest value, ties to the even one. Saturates: what is larger than 448 becomes 448, infinities too; NaN stays NaN;
    /// the sign is kept, that of zero as well.
    #[inline]
    pub fn from_f32(x: f32) -> E4M3 {
        let bits = x.to_bits();
        let sign = ((bits >> 24) & 0x80) as u8;
        let magnitude = bits & 0x7fff_ffff;
        if magnitude > 0x7f80_0000 {
            return E4M3(sign | 0x7f);
        }
        // 448 is 0x43e00000; limiting first keeps the rounding inside the format.
        E4M3(sign | round_magnitude(magnitude.min(0x43e0_0000), 3, 7) as u8)
    }

    /// The value, exactly.
    #[inline]
    pub fn to_f32(self) -> f32 {
        E4M3_TABLE[self.0 as usize]
    }

    /// Whether this is one of the two NaN.
    pub fn is_nan(self) -> bool {
        self.0 & 0x7f == 0x7f
    }
}

impl E5M2 {
    /// The largest finite value, 57344.
    pub const MAX: E5M2 = E5M2(0x7b);
    /// Positive infinity.
    pub const INFINITY: E5M2 = E5M2(0x7c);
    /// A quiet NaN.
    pub const NAN: E5M2 = E5M2(0x7f);

    /// The nearest value, ties to the even one. What rounds above 57344 becomes infinite; NaN stays NaN; the sign is kept.
    #[inline]
    pub fn from_f32(x: f32) -> E5M2 {
        let bits = x.to_bits();
        let sign = ((bits >> 24) & 0x80) as u8;
        let magnitude = bits & 0x7fff_ffff;
        if magnitude > 0x7f80_0000 {
            return E5M2(sign | 0x7f);
        }
        // 65536 and more is infinite; below, rounding carries into the code of infinity by itself.
        E5M2(sign | round_magnitude(magnitude.min(0x4780_0000), 2, 15) as u8)
    }

    /// The value, exactly.
    #[inline]
    pub fn to_f32(self) -> f32 {
        // The format is the upper byte of IEEE half precision.
        half::f16::from_bits(u16::from(self.0) << 8).to_f32_const()
    }

    /// Whether this is a NaN.
    pub fn is_nan(self) -> bool {
        self.0 & 0x7f > 0x7c
    }
}

/// The value of each E4M3 code.
pub static E4M3_TABLE: [f32; 256] = {
    let mut table = [0.0f32; 256];
    let mut code = 0usize;
    while code < 256 {
        let exponent = ((code >> 3) & 15) as u32;
        let mantissa = (code & 7) as u32;
        let magnitude = if code & 0x7f == 0x7f {
            f32::NAN
        } else if exponent == 0 {
            mantissa as f32 * (1.0 / 512.0)
        } else {
            f32::from_bits(((exponent + 120) << 23) | (mantissa << 20))
        };
        table[code] = if code & 0x80 != 0 { -magnitude } else { magnitude };
        code += 1;
    }
    table
};

impl From<E4M3> for f32 {
    fn from(x: E4M3) -> f32 {
        x.to_f32()
    }
}
impl From<E5M2> for f32 {
    fn from(x: E5M2) -> f32 {
        x.to_f32()
    }
}
impl std::fmt::Debug for E4M3 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}e4m3", self.to_f32())
    }
}
impl std::fmt::Debug for E5M2 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}e5m2", self.to_f32())
    }
}
