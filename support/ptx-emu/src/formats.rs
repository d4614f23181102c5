//! The small floating-point formats of PTX and their conversions, as `cvt` does them (PTX ISA 9.0, sections 5.2.3 and 9.7.9.21).
//!
//! | format | sign, exponent, fraction bits | bias | largest finite | infinity | NaN made by a conversion |
//! |---|---|---|---|---|---|
//! | [`Format::F32`] | 1, 8, 23 | 127 | 3.40e38 | yes | `0x7fff_ffff` |
//! | [`Format::Tf32`] | 1, 8, 10 in the upper 19 bits of 32 | 127 | 3.40e38 | yes | `0x7fff_ffff` |
//! | [`Format::F16`] | 1, 5, 10 | 15 | 65504 | yes | `0x7fff` |
//! | [`Format::Bf16`] | 1, 8, 7 | 127 | 3.39e38 | yes | `0x7fff` |
//! | [`Format::E4m3`] | 1, 4, 3 | 7 | 448 | no | `0x7f` |
//! | [`Format::E5m2`] | 1, 5, 2 | 15 | 57344 | yes | `0x7f` |
//!
//! Every conversion rounds once, from the exact value: [`encode`] takes an `f64`, which holds every `f32`, `f16`, `bf16` and FP8 value
//! exactly. Subnormal results are kept. A NaN becomes the destination's canonical NaN, whose sign is positive.

/// How a value between two representable ones is rounded: `.rn`, `.rna`, `.rz`, `.rm`, `.rp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// `.rn`: to the nearest, ties to the even one.
    NearestEven,
    /// `.rna`: to the nearest, ties away from zero.
    NearestAway,
    /// `.rz`: toward zero.
    TowardZero,
    /// `.rm`: toward minus infinity.
    Down,
    /// `.rp`: toward plus infinity.
    Up,
}

/// A destination format of [`encode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// `.f32`
    F32,
    /// `.tf32`: an `f32` whose lower 13 bits are zero.
    Tf32,
    /// `.f16`
    F16,
    /// `.bf16`
    Bf16,
    /// `.e4m3`
    E4m3,
    /// `.e5m2`
    E5m2,
}

/// What a format is made of; `precision` counts the hidden bit.
struct Parts {
    precision: u32,
    min_exponent: i32,
    sign_shift: u32,
    /// Pattern of the largest finite value.
    max_finite: u32,
    /// Pattern of plus infinity, or of NaN where there is none.
    infinity: u32,
    nan: u32,
    /// The pattern is shifted left by this much in its register.
    left: u32,
}

impl Format {
    const fn parts(self) -> Parts {
        match self {
            Format::F32 => Parts {
                precision: 24,
                min_exponent: -126,
                sign_shift: 31,
                max_finite: 0x7f7f_ffff,
                infinity: 0x7f80_0000,
                nan: 0x7fff_ffff,
                left: 0,
            },
            // As a 19-bit format in place: the shift puts it where an f32 has these bits.
            Format::Tf32 => Parts {
                precision: 11,
                min_exponent: -126,
                sign_shift: 31,
                max_finite: 0x3fbff,
                infinity: 0x3fc00,
                nan: 0x7fff_ffff,
                left: 13,
            },
            Format::F16 => Parts {
                precision: 11,
                min_exponent: -14,
                sign_shift: 15,
                max_finite: 0x7bff,
                infinity: 0x7c00,
                nan: 0x7fff,
                left: 0,
            },
            Format::Bf16 => Parts {
                precision: 8,
                min_exponent: -126,
                sign_shift: 15,
                max_finite: 0x7f7f,
                infinity: 0x7f80,
                nan: 0x7fff,
                left: 0,
            },
            Format::E4m3 => {
                Parts { precision: 4, min_exponent: -6, sign_shift: 7, max_finite: 0x7e, infinity: 0x7f, nan: 0x7f, left: 0 }
            }
            Format::E5m2 => {
                Parts { precision: 3, min_exponent: -14, sign_shift: 7, max_finite: 0x7b, infinity: 0x7c, nan: 0x7f, left: 0 }
            }
        }
    }

    /// The pattern that a conversion of NaN gives.
    #[must_use]
    pub const fn canonical_nan(self) -> u32 {
        self.parts().nan
    }
}

/// Modifiers of a conversion to a small format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Modifiers {
    /// `.satfinite`: what is beyond the largest finite value becomes it, infinities included. (Mandatory in PTX for FP8 destinations; E4M3
    /// without it would give NaN.)
    pub satfinite: bool,
    /// `.relu`: negative results, minus zero included, become plus zero.
    pub relu: bool,
}

/// The pattern of `value` rounded to `format` (PTX ISA 9.0, section 9.7.9.21).
///
/// Without `.satfinite` an overflow gives what IEEE 754 says for the rounding: infinity for the nearest ones, the largest finite value where
/// the rounding leads toward zero; a source infinity stays one (NaN in E4M3, which has none).
#[must_use]
pub fn encode(value: f64, format: Format, rounding: Rounding, modifiers: Modifiers) -> u32 {
    let parts = format.parts();
    if value.is_nan() {
        return parts.nan;
    }
    let bits = value.to_bits();
    let negative = bits >> 63 != 0;
    if negative && modifiers.relu {
        return 0;
    }
    let sign = u32::from(negative) << parts.sign_shift;
    let magnitude = if value.is_infinite() {
        if modifiers.satfinite { parts.max_finite } else { parts.infinity }
    } else {
        let field = ((bits >> 52) & 0x7ff) as i32;
        let fraction = bits & ((1 << 52) - 1);
        let (exponent, mantissa) = if field == 0 { (-1022, fraction) } else { (field - 1023, fraction | 1 << 52) };
        let exponent_kept = exponent.max(parts.min_exponent);
        // `mantissa` counts units of 2^(exponent - 52); the result counts units of 2^(exponent_kept - precision + 1).
        let shift = (exponent_kept - exponent) as u32 + 53 - parts.precision;
        let (whole, rest, half) = if shift < 64 {
            (mantissa >> shift, mantissa & ((1 << shift) - 1), 1u64 << (shift - 1))
        } else {
            // Less than half a unit whatever it is, and only "more than nothing" matters.
            (0, mantissa.min(1), 2)
        };
        let up = match rounding {
            Rounding::NearestEven => rest > half || (rest == half && whole & 1 == 1),
            Rounding::NearestAway => rest >= half,
            Rounding::TowardZero => false,
            Rounding::Down => negative && rest != 0,
            Rounding::Up => !negative && rest != 0,
        };
        // The hidden bit of `whole` adds one to the exponent field, so subnormals and carries need no case of their own. The exponent is at
        // most 1023, so the sum stays below 2^34.
        let exponent_field = (exponent_kept - parts.min_exponent) as u64;
        let pattern = (exponent_field << (parts.precision - 1)) + whole + u64::from(up);
        if pattern <= u64::from(parts.max_finite) {
            pattern as u32
        } else {
            let toward_zero = match rounding {
                Rounding::NearestEven | Rounding::NearestAway => false,
                Rounding::TowardZero => true,
                Rounding::Down => !negative,
                Rounding::Up => negative,
            };
            if modifiers.satfinite || toward_zero { parts.max_finite } else { parts.infinity }
        }
    };
    magnitude << parts.left | sign
}

/// `cvt.rn.bf16.f32` without modifiers; NaN gives 0x7fff.
#[must_use]
pub fn f32_to_bf16(value: f32) -> u16 {
    if value.is_nan() {
        return 0x7fff;
    }
    let bits = value.to_bits();
    // Adding just under half a unit, or half of it when the kept part is odd, carries exactly when rounding goes up; the largest values carry
    // into infinity.
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// `cvt.rn.f16.f32` without modifiers; NaN gives 0x7fff.
#[must_use]
pub fn f32_to_f16(value: f32) -> u16 {
    if value.is_nan() { 0x7fff } else { half::f16::from_f32(value).to_bits() }
}

/// `cvt.rn.satfinite.e4m3x2.f32` of one value.
#[must_use]
pub fn f32_to_e4m3(value: f32) -> u8 {
    encode(f64::from(value), Format::E4m3, Rounding::NearestEven, Modifiers { satfinite: true, relu: false }) as u8
}

/// `cvt.rn.satfinite.e5m2x2.f32` of one value.
#[must_use]
pub fn f32_to_e5m2(value: f32) -> u8 {
    encode(f64::from(value), Format::E5m2, Rounding::NearestEven, Modifiers { satfinite: true, relu: false }) as u8
}

/// The value of a bf16 pattern: exact, NaN payloads kept.
#[must_use]
pub const fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// The value of an f16 pattern: exact, NaN payloads kept.
#[must_use]
pub const fn f16_to_f32(bits: u16) -> f32 {
    let sign = (bits as u32 & 0x8000) << 16;
    let magnitude = (bits as u32 & 0x7fff) << 13;
    let value = if magnitude >= 0x0f80_0000 {
        f32::from_bits(magnitude | 0x7f80_0000)
    } else {
        // The exponent field is 112 too small, for subnormals as well.
        f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)
    };
    f32::from_bits(value.to_bits() | sign)
}

/// The value of a tf32 operand of a matrix instruction: the lower 13 bits of the register are dropped (PTX ISA 9.0, section 9.7.15.5.2).
///
/// A NaN whose payload lies in the dropped bits alone stays a NaN.
#[must_use]
pub const fn tf32_to_f32(bits: u32) -> f32 {
    let kept = bits & !0x1fff;
    let nan = bits & 0x7fff_ffff > 0x7f80_0000;
    f32::from_bits(if nan { kept | 0x0040_0000 } else { kept })
}

/// The value of an E4M3 pattern.
#[must_use]
pub const fn e4m3_to_f32(bits: u8) -> f32 {
    E4M3_VALUES[bits as usize]
}

/// The value of an E5M2 pattern.
#[must_use]
pub const fn e5m2_to_f32(bits: u8) -> f32 {
    E5M2_VALUES[bits as usize]
}

/// The value of each E4M3 pattern; 0x7f and 0xff are NaN.
pub static E4M3_VALUES: [f32; 256] = fp8_values(3, 7, false);

/// The value of each E5M2 pattern; 0x7c and 0xfc are infinite, above them NaN.
pub static E5M2_VALUES: [f32; 256] = fp8_values(2, 15, true);

const fn fp8_values(fraction_bits: u32, bias: i32, has_infinity: bool) -> [f32; 256] {
    let mut values = [0.0f32; 256];
    let mut pattern = 0u32;
    while pattern < 256 {
        let magnitude = pattern & 0x7f;
        let field = magnitude >> fraction_bits;
        let fraction = magnitude & ((1 << fraction_bits) - 1);
        let last_field = (0x7f >> fraction_bits) as u32;
        let sign = (pattern & 0x80) << 24;
        let bits = if has_infinity && field == last_field {
            if fraction == 0 { 0x7f80_0000 } else { 0x7fc0_0000 }
        } else if !has_infinity && magnitude == 0x7f {
            0x7fc0_0000
        } else if field == 0 {
            // fraction * 2^(1 - bias - fraction_bits): an integer times a power of two, exact in f32.
            let unit = f32::from_bits(((1 - bias - fraction_bits as i32 + 127) as u32) << 23);
            (fraction as f32 * unit).to_bits()
        } else {
            ((field as i32 - bias + 127) as u32) << 23 | fraction << (23 - fraction_bits)
        };
        values[pattern as usize] = f32::from_bits(bits | sign);
        pattern += 1;
    }
    values
}

/// Two 16-bit results in one register: the first source goes to the upper half.
#[must_use]
pub const fn pack_16x2(first: u16, second: u16) -> u32 {
    (first as u32) << 16 | second as u32
}

/// The two halves of a register, the upper one first.
#[must_use]
pub const fn unpack_16x2(register: u32) -> (u16, u16) {
    ((register >> 16) as u16, register as u16)
}

/// `cvt.frnd2{.relu}{.satfinite}.{f16x2|bf16x2}.f32 d, first, second`.
///
/// `format` is [`Format::F16`] or [`Format::Bf16`].
#[must_use]
pub fn f32x2_to_16x2(first: f32, second: f32, format: Format, rounding: Rounding, modifiers: Modifiers) -> u32 {
    let one = |value: f32| encode(f64::from(value), format, rounding, modifiers) as u16;
    pack_16x2(one(first), one(second))
}

/// `cvt.rn.satfinite{.relu}.{e4m3x2|e5m2x2}.f32 d, first, second`: the first source goes to the upper byte.
///
/// `format` is [`Format::E4m3`] or [`Format::E5m2`].
#[must_use]
pub fn f32x2_to_fp8x2(first: f32, second: f32, format: Format, relu: bool) -> u16 {
    let one = |value: f32| encode(f64::from(value), format, Rounding::NearestEven, Modifiers { satfinite: true, relu }) as u16;
    one(first) << 8 | one(second)
}

/// `cvt.rn.satfinite{.relu}.{e4m3x2|e5m2x2}.f16x2 d, a`: the upper half gives the upper byte.
#[must_use]
pub fn f16x2_to_fp8x2(source: u32, format: Format, relu: bool) -> u16 {
    let (upper, lower) = unpack_16x2(source);
    f32x2_to_fp8x2(f16_to_f32(upper), f16_to_f32(lower), format, relu)
}

/// `cvt.rn{.relu}.f16x2.{e4m3x2|e5m2x2} d, a`: the upper byte gives the upper half. Every FP8 value is an f16 value.
#[must_use]
pub fn fp8x2_to_f16x2(source: u16, format: Format, relu: bool) -> u32 {
    let values = if format == Format::E5m2 { &E5M2_VALUES } else { &E4M3_VALUES };
    let modifiers = Modifiers { satfinite: false, relu };
    let one = |bits: u16| {
        let value = values[usize::from(bits & 0xff)];
        encode(f64::from(value), Format::F16, Rounding::NearestEven, modifiers) as u16
    };
    pack_16x2(one(source >> 8), one(source))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The neighbours of `value` among all finite patterns of a format, by search through their values: independent of [`encode`].
    fn nearest(value: f64, patterns: &[(u32, f64)]) -> u32 {
        let mut best = patterns[0];
        for &(pattern, v) in patterns {
            let (d, b) = ((v - value).abs(), (best.1 - value).abs());
            if d < b || (d == b && pattern & 1 == 0) {
                best = (pattern, v);
            }
        }
        best.0
    }

    /// The `half` crate's conversions serve as oracle.
    #[test]
    fn sixteen_bit_values() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#x}");
            let (ours, theirs) = (bf16_to_f32(bits), half::bf16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#x}");
        }
    }

    const PLAIN: Modifiers = Modifiers { satfinite: false, relu: false };
    const SAT: Modifiers = Modifiers { satfinite: true, relu: false };
    const ALL: [Rounding; 5] = [Rounding::NearestEven, Rounding::NearestAway, Rounding::TowardZero, Rounding::Down, Rounding::Up];

    fn decode(format: Format, bits: u32) -> f64 {
        f64::from(match format {
            Format::F32 => f32::from_bits(bits),
            Format::Tf32 => tf32_to_f32(bits),
            Format::F16 => f16_to_f32(bits as u16),
            Format::Bf16 => bf16_to_f32(bits as u16),
            Format::E4m3 => e4m3_to_f32(bits as u8),
            Format::E5m2 => e5m2_to_f32(bits as u8),
        })
    }

    /// Every finite pattern comes back from its own value, in every rounding.
    #[test]
    fn representable_values_are_kept() {
        for format in [Format::F16, Format::Bf16, Format::E4m3, Format::E5m2] {
            let count = if matches!(format, Format::F16 | Format::Bf16) { 1 << 16 } else { 256 };
            for bits in 0..count {
                let value = decode(format, bits);
                for rounding in ALL {
                    let got = encode(value, format, rounding, PLAIN);
                    if value.is_nan() {
                        assert_eq!(got, format.canonical_nan());
                    } else {
                        assert_eq!(got, bits, "{format:?} {value} {rounding:?}");
                    }
                }
            }
        }
    }

    /// Between two neighbours every rounding picks the one that its definition says.
    #[test]
    fn between_neighbours() {
        for (format, max) in [(Format::F16, 0x7bffu32), (Format::Bf16, 0x7f7f), (Format::E4m3, 0x7e), (Format::E5m2, 0x7b)] {
            let sign = if max > 0xff { 0x8000 } else { 0x80 };
            for low in 0..max {
                let (a, b) = (decode(format, low), decode(format, low + 1));
                let even = if low & 1 == 0 { low } else { low + 1 };
                for (value, nearest_even, nearest_away) in
                    [(a + (b - a) * 0.25, low, low), ((a + b) * 0.5, even, low + 1), (a + (b - a) * 0.75, low + 1, low + 1)]
                {
                    assert_eq!(encode(value, format, Rounding::NearestEven, PLAIN), nearest_even);
                    assert_eq!(encode(value, format, Rounding::NearestAway, PLAIN), nearest_away);
                    assert_eq!(encode(value, format, Rounding::TowardZero, PLAIN), low);
                    assert_eq!(encode(value, format, Rounding::Down, PLAIN), low);
                    assert_eq!(encode(value, format, Rounding::Up, PLAIN), low + 1);
                    assert_eq!(encode(-value, format, Rounding::NearestEven, PLAIN), nearest_even | sign);
                    assert_eq!(encode(-value, format, Rounding::TowardZero, PLAIN), low | sign);
                    assert_eq!(encode(-value, format, Rounding::Down, PLAIN), (low + 1) | sign);
                    assert_eq!(encode(-value, format, Rounding::Up, PLAIN), low | sign);
                }
            }
        }
    }

    /// Section 9.7.9.21: NaN stays NaN, what exceeds the largest finite value becomes it, with its sign; relu clamps to zero.
    #[test]
    fn modifiers() {
        assert_eq!(f32_to_e4m3(448.0), 0x7e);
        assert_eq!(f32_to_e4m3(1e9), 0x7e);
        assert_eq!(f32_to_e4m3(f32::NEG_INFINITY), 0xfe);
        assert_eq!(f32_to_e4m3(-f32::NAN), 0x7f);
        assert_eq!(f32_to_e4m3(2f32.powi(-10)), 0x00); // half the smallest subnormal: a tie, to the even zero
        assert_eq!(f32_to_e4m3(1.5 * 2f32.powi(-10)), 0x01);
        assert_eq!(f32_to_e5m2(f32::INFINITY), 0x7b);
        assert_eq!(f32_to_e5m2(61440.0), 0x7b); // halfway to 65536, which does not exist
        assert_eq!(f32_to_e5m2(f32::NAN), 0x7f);
        assert_eq!(encode(65520.0, Format::F16, Rounding::NearestEven, PLAIN), 0x7c00);
        assert_eq!(encode(65519.0, Format::F16, Rounding::NearestEven, PLAIN), 0x7bff);
        assert_eq!(encode(65520.0, Format::F16, Rounding::NearestEven, SAT), 0x7bff);
        assert_eq!(encode(1e6, Format::F16, Rounding::TowardZero, PLAIN), 0x7bff);
        assert_eq!(encode(f64::INFINITY, Format::F16, Rounding::TowardZero, PLAIN), 0x7c00);
        assert_eq!(encode(f64::NEG_INFINITY, Format::Bf16, Rounding::NearestEven, SAT), 0xff7f);
        let relu = Modifiers { satfinite: true, relu: true };
        for format in [Format::F16, Format::Bf16, Format::E4m3, Format::E5m2, Format::Tf32] {
            assert_eq!(encode(-3.0, format, Rounding::NearestEven, relu), 0);
            assert_eq!(encode(-0.0, format, Rounding::NearestEven, relu), 0);
            assert_eq!(encode(f64::NAN, format, Rounding::NearestEven, relu), format.canonical_nan());
        }
        assert_eq!(encode(1e300, Format::F32, Rounding::NearestEven, PLAIN), f32::INFINITY.to_bits());
        assert_eq!(encode(1e300, Format::F32, Rounding::Down, PLAIN), f32::MAX.to_bits());
        assert_eq!(encode(-1e300, Format::F32, Rounding::Down, PLAIN), f32::NEG_INFINITY.to_bits());
        assert_eq!(encode(1e-300, Format::F32, Rounding::Up, PLAIN), 1);
        assert_eq!(encode(5e-324, Format::E4m3, Rounding::Up, PLAIN), 1);
        assert_eq!(encode(0.0, Format::E4m3, Rounding::Up, PLAIN), 0);
    }

    /// `.tf32`: 10 fraction bits, the lower 13 bits zero.
    #[test]
    fn tf32() {
        let one = 1.0f32.to_bits();
        let at = |bits: u32, rounding| encode(f64::from(f32::from_bits(bits)), Format::Tf32, rounding, PLAIN);
        assert_eq!(at(one | 0x1000, Rounding::NearestAway), one + 0x2000);
        assert_eq!(at(one | 0x1000, Rounding::NearestEven), one);
        assert_eq!(at(one | 0x1001, Rounding::NearestEven), one + 0x2000);
        assert_eq!(at(one | 0x1fff, Rounding::TowardZero), one);
        assert_eq!(at((-1.0f32).to_bits() | 0x1000, Rounding::NearestAway), (-1.0f32).to_bits() + 0x2000);
        assert_eq!(at(f32::MAX.to_bits(), Rounding::NearestAway), f32::INFINITY.to_bits());
        assert_eq!(encode(f64::from(f32::MAX), Format::Tf32, Rounding::NearestAway, SAT), 0x7f7f_e000);
        assert_eq!(tf32_to_f32(one | 0x1fff), 1.0);
        assert!(tf32_to_f32(0x7f80_0001).is_nan());
    }

    /// The quick forms agree with the general one on every kind of value, and FP8 rounding agrees with a search through all values.
    #[test]
    fn quick_forms_agree() {
        let tables: Vec<(Format, Vec<(u32, f64)>)> = [(Format::E4m3, 0x7eu32), (Format::E5m2, 0x7b)]
            .into_iter()
            .map(|(format, max)| (format, (0..=max).map(|p| (p, decode(format, p))).collect()))
            .collect();
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for i in 0..200_000u32 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Random patterns, and random values near the FP8 range.
            let value = if i % 2 == 0 {
                f32::from_bits(state as u32)
            } else {
                f32::from_bits((state as u32 & 0x807f_ffff) | ((100 + (state >> 40) as u32 % 45) << 23))
            };
            let wide = f64::from(value);
            assert_eq!(u32::from(f32_to_bf16(value)), encode(wide, Format::Bf16, Rounding::NearestEven, PLAIN), "{value}");
            assert_eq!(u32::from(f32_to_f16(value)), encode(wide, Format::F16, Rounding::NearestEven, PLAIN), "{value}");
            assert_eq!(encode(wide, Format::F32, Rounding::NearestEven, PLAIN), {
                if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
            });
            if i % 50 == 1 {
                for (format, table) in &tables {
                    let expected = nearest(wide.abs(), table) | if value.is_sign_negative() { 0x80 } else { 0 };
                    assert_eq!(encode(wide, *format, Rounding::NearestEven, SAT), expected, "{format:?} {value}");
                }
            }
        }
    }

    /// First source in the upper half (section 9.7.9.21, semantics).
    #[test]
    fn packed_forms() {
        assert_eq!(f32x2_to_16x2(1.0, 2.0, Format::Bf16, Rounding::NearestEven, PLAIN), 0x3f80_4000);
        assert_eq!(f32x2_to_16x2(1.0, 2.0, Format::F16, Rounding::NearestEven, PLAIN), 0x3c00_4000);
        assert_eq!(f32x2_to_fp8x2(1.0, 2.0, Format::E4m3, false), 0x3840);
        assert_eq!(f32x2_to_fp8x2(1.0, -2.0, Format::E5m2, true), 0x3c00);
        assert_eq!(f16x2_to_fp8x2(0x3c00_4000, Format::E4m3, false), 0x3840);
        assert_eq!(fp8x2_to_f16x2(0x3840, Format::E4m3, false), 0x3c00_4000);
        assert_eq!(fp8x2_to_f16x2(0x3cc0, Format::E5m2, true), 0x3c00_0000);
        assert_eq!(fp8x2_to_f16x2(0x7fff, Format::E4m3, false), 0x7fff_7fff);
        assert_eq!(e4m3_to_f32(0x01), 2f32.powi(-9));
        assert_eq!(e5m2_to_f32(0x01), 2f32.powi(-16));
        assert!(e5m2_to_f32(0x7c).is_infinite() && e5m2_to_f32(0xff).is_nan() && e4m3_to_f32(0x7f).is_nan());
    }
}
