//! `cvt` and `cvt.pack` (sections 9.7.9.21 and 9.7.9.22). Expected results come from searching the values of the destination format in order.

use crate::harness::{Bits, Values, check, float_edges, integer_edges, run};
use ptx_emu::formats::{self, Format, Rounding, bf16_to_f32, f16_to_f32};
use std::cmp::Ordering;

#[derive(Clone, Copy, PartialEq, Debug)]
struct Type {
    name: &'static str,
    bits: u32,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Unsigned,
    Signed,
    /// With so many fraction bits.
    Float(u32),
}

const fn ty(name: &'static str, bits: u32, kind: Kind) -> Type {
    Type { name, bits, kind }
}

const INTEGERS: [Type; 8] = [
    ty("u8", 8, Kind::Unsigned),
    ty("s8", 8, Kind::Signed),
    ty("u16", 16, Kind::Unsigned),
    ty("s16", 16, Kind::Signed),
    ty("u32", 32, Kind::Unsigned),
    ty("s32", 32, Kind::Signed),
    ty("u64", 64, Kind::Unsigned),
    ty("s64", 64, Kind::Signed),
];

const F16: Type = ty("f16", 16, Kind::Float(10));
const BF16: Type = ty("bf16", 16, Kind::Float(7));
const F32: Type = ty("f32", 32, Kind::Float(23));
const F64: Type = ty("f64", 64, Kind::Float(52));
const FLOATS: [Type; 4] = [F16, BF16, F32, F64];

const ROUNDINGS: [(&str, Rounding); 4] =
    [("rn", Rounding::NearestEven), ("rz", Rounding::TowardZero), ("rm", Rounding::Down), ("rp", Rounding::Up)];

impl Type {
    /// The class of the narrowest register that holds it.
    fn class(self) -> &'static str {
        match self.bits {
            8 | 16 => "b16",
            32 => "b32",
            _ => "b64",
        }
    }

    fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    /// Of an integer's pattern.
    fn value(self, bits: Bits) -> i128 {
        let unsigned = i128::from(bits & self.mask());
        if self.kind == Kind::Signed && unsigned >> (self.bits - 1) != 0 { unsigned - (1 << self.bits) } else { unsigned }
    }

    fn range(self) -> (i128, i128) {
        match self.kind {
            Kind::Signed => (-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1),
            _ => (0, (1 << self.bits) - 1),
        }
    }

    /// Of a float's pattern.
    fn float(self, bits: Bits) -> f64 {
        match self.name {
            "f16" => f16_to_f32(bits as u16).into(),
            "bf16" => bf16_to_f32(bits as u16).into(),
            "f32" => f32::from_bits(bits as u32).into(),
            _ => f64::from_bits(bits),
        }
    }

    fn fraction(self) -> u32 {
        match self.kind {
            Kind::Float(fraction) => fraction,
            _ => 0,
        }
    }

    fn infinity(self) -> u64 {
        (self.mask() >> 1) >> self.fraction() << self.fraction()
    }

    fn nan(self) -> u64 {
        self.mask() >> 1
    }

    /// Values to convert from.
    fn samples(self) -> Vec<Vec<Bits>> {
        let mut values = Values::new(60);
        let edges =
            if let Kind::Float(fraction) = self.kind { float_edges(self.bits, fraction) } else { integer_edges(self.bits) };
        let mut all: Vec<Bits> = edges;
        for i in 0..1500 {
            all.push(match self.kind {
                // Half of them where integers of 8 to 64 bits and their halves lie.
                Kind::Float(fraction) if i % 2 == 0 => {
                    let bias = (1u64 << (self.bits - fraction - 2)) - 1;
                    let exponent = (bias + values.next() % 66).saturating_sub(2).min(2 * bias);
                    values.next() & ((1 << fraction) - 1) & (u64::MAX << (values.next() % 50))
                        | exponent << fraction
                        | (values.next() & 1) << (self.bits - 1)
                }
                Kind::Float(fraction) => values.float(self.bits, fraction),
                // Of every magnitude.
                _ => values.next() >> (values.next() % 64) & self.mask(),
            });
        }
        // Halfway points of 16-bit and 32-bit floats.
        if self.kind == Kind::Float(23) || self.kind == Kind::Float(52) {
            let shift = self.fraction() - if self.bits == 32 { 10 } else { 23 };
            for _ in 0..500 {
                let near = values.float(self.bits, self.fraction());
                let tie = near >> shift << shift | 1 << (shift - 1);
                all.extend([tie, tie + 1, tie - 1, near >> (shift + 3) << (shift + 3) | 1 << (shift + 2)]);
            }
        }
        all.into_iter().map(|v| vec![v & self.mask()]).collect()
    }
}

/// An exact number.
#[derive(Clone, Copy, Debug)]
enum Exact {
    Int(i128),
    Real(f64),
}

impl Exact {
    fn negative(self) -> bool {
        match self {
            Exact::Int(value) => value < 0,
            Exact::Real(value) => value.is_sign_negative(),
        }
    }

    /// Its magnitude against a value that is not negative.
    fn compare(self, value: f64) -> Ordering {
        match self {
            Exact::Real(real) => real.abs().partial_cmp(&value).expect("numbers"),
            Exact::Int(int) if value >= 2f64.powi(100) => int.abs().cmp(&i128::MAX),
            Exact::Int(int) => {
                int.abs().cmp(&(value.floor() as i128)).then(if value.fract() > 0.0 { Ordering::Less } else { Ordering::Equal })
            }
        }
    }
}

impl Exact {
    /// Its magnitude against the middle between two values.
    fn compare_halfway(self, low: f64, high: f64) -> Ordering {
        match self {
            // Both are integers then, whose middle a double may not hold.
            Exact::Int(int) if high > 2f64.powi(53) => (2 * int.abs()).cmp(&(low as i128 + high as i128)),
            _ => self.compare(low + (high - low) / 2.0),
        }
    }
}

/// The pattern of the format that a number rounds to, by search.
fn nearest(exact: Exact, to: Type, rounding: Rounding) -> Bits {
    let infinity = to.infinity();
    // Infinity counts as what its pattern would stand for if the exponents went on.
    let largest_power = to.float(infinity - (1 << to.fraction()));
    let value = |pattern: u64| if pattern == infinity { 2.0 * largest_power } else { to.float(pattern) };
    let sign = if exact.negative() { to.mask() ^ to.nan() } else { 0 };
    if let Exact::Real(real) = exact
        && real.is_infinite()
    {
        return sign | infinity;
    }
    // The largest pattern whose value is not above.
    let (mut low, mut high) = (0, infinity);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if exact.compare(value(middle)).is_lt() { high = middle } else { low = middle }
    }
    if exact.compare(value(high)).is_ge() {
        low = high;
    }
    let up = match rounding {
        _ if low < infinity && exact.compare(value(low)).is_eq() => false,
        Rounding::TowardZero => false,
        Rounding::Down => exact.negative(),
        Rounding::Up => !exact.negative(),
        _ if low == infinity => false,
        _ => match exact.compare_halfway(value(low), value(low + 1)) {
            Ordering::Less => false,
            Ordering::Greater => true,
            Ordering::Equal => low & 1 == 1,
        },
    };
    let overflows_inward = low == infinity
        && match rounding {
            Rounding::TowardZero => true,
            Rounding::Down => !exact.negative(),
            Rounding::Up => exact.negative(),
            _ => false,
        };
    sign | if overflows_inward {
        infinity - 1
    } else if low == infinity {
        infinity
    } else {
        low + u64::from(up)
    }
}

fn flush32(bits: Bits) -> Bits {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

fn saturate(to: Type, bits: Bits) -> Bits {
    let value = to.float(bits);
    if value.is_nan() || value <= 0.0 {
        0
    } else if value >= 1.0 {
        nearest(Exact::Int(1), to, Rounding::NearestEven)
    } else {
        bits
    }
}

/// Integers: cut or extended; `.sat` clamps; the result is extended into a wider register by its type.
#[test]
fn integers() {
    for from in INTEGERS {
        let rows = from.samples();
        for to in INTEGERS {
            let (least, most) = to.range();
            let extend = |v: i128, bits: u32| (v as u64) & (u64::MAX >> (64 - bits));
            for class in ["b16", "b32", "b64"] {
                let width: u32 = class[1..].parse().unwrap();
                if width < to.bits {
                    continue;
                }
                check(&format!("cvt.{}.{} %d, %a;", to.name, from.name), &[from.class()], class, &rows, |v| {
                    extend(to.value(from.value(v[0]) as u64), width)
                });
                let holds_all = from.range().0 >= least && from.range().1 <= most;
                if !holds_all {
                    check(&format!("cvt.sat.{}.{} %d, %a;", to.name, from.name), &[from.class()], class, &rows, |v| {
                        extend(from.value(v[0]).clamp(least, most), width)
                    });
                }
            }
            // A source register wider than the type is cut first.
            let wide: Vec<_> =
                rows.iter().map(|v| vec![v[0] | 0xdead_beef_dead_beef << (from.bits % 64) & !from.mask()]).collect();
            check(&format!("cvt.{}.{} %d, %a;", to.name, from.name), &["b64"], "b64", &wide, |v| {
                to.value(from.value(v[0]) as u64) as u64
            });
        }
    }
}

/// Integers to floats, in every rounding.
#[test]
fn integers_to_floats() {
    for from in INTEGERS {
        let rows = from.samples();
        for to in FLOATS {
            if from.bits == 8 && to == BF16 {
                continue;
            }
            for (name, rounding) in ROUNDINGS {
                let expected = |v: &[Bits]| nearest(Exact::Int(from.value(v[0])), to, rounding);
                check(&format!("cvt.{name}.{}.{} %d, %a;", to.name, from.name), &[from.class()], to.class(), &rows, expected);
                if to != BF16 {
                    let body = format!("cvt.{name}.sat.{}.{} %d, %a;", to.name, from.name);
                    check(&body, &[from.class()], to.class(), &rows, |v| saturate(to, expected(v)));
                }
            }
        }
    }
}

/// A float rounded to an integer, from its bits.
fn whole(value: f64, rounding: &str) -> i128 {
    if value.abs() >= 2f64.powi(100) {
        return if value < 0.0 { i128::MIN } else { i128::MAX };
    }
    let bits = value.to_bits();
    let field = (bits >> 52 & 0x7ff) as i32;
    let mantissa = i128::from(bits & ((1 << 52) - 1) | if field == 0 { 0 } else { 1 << 52 });
    let exponent = field.max(1) - 1075;
    let signed = if value.is_sign_negative() { -mantissa } else { mantissa };
    if exponent >= 0 {
        return signed << exponent;
    }
    let shift = (-exponent).min(120);
    let floor = signed >> shift;
    let rest = signed - (floor << shift);
    let half = 1i128 << (shift - 1);
    match rounding {
        "rmi" => floor,
        "rpi" => floor + i128::from(rest != 0),
        "rzi" => floor + i128::from(rest != 0 && signed < 0),
        _ => floor + i128::from(rest > half || (rest == half && floor & 1 == 1)),
    }
}

/// Floats to integers clamp, whether `.sat` stands there or not; NaN gives 0, or the top bit alone for `.f64` sources and 64-bit results.
#[test]
fn floats_to_integers() {
    for from in FLOATS {
        let rows = from.samples();
        for to in INTEGERS {
            for rounding in ["rni", "rzi", "rmi", "rpi"] {
                for (flags, ftz) in [("", false), (".ftz", true), (".sat", false)] {
                    if (ftz && from != F32) || (flags == ".sat" && from == BF16) {
                        continue;
                    }
                    let body = format!("cvt.{rounding}{flags}.{}.{} %d, %a;", to.name, from.name);
                    check(&body, &[from.class()], to.class(), &rows, |v| {
                        let value = from.float(if ftz { flush32(v[0]) } else { v[0] });
                        let result = if !value.is_nan() {
                            whole(value, rounding).clamp(to.range().0, to.range().1)
                        } else if from == F64 || to.bits == 64 {
                            to.value(1 << (to.bits - 1))
                        } else {
                            0
                        };
                        // Sign-extended into the 16 bits of the register where the type has 8.
                        (result as u64) & (u64::MAX >> (64 - to.bits.max(16)))
                    });
                }
            }
        }
    }
}

/// Between float formats.
#[test]
fn floats() {
    for from in FLOATS {
        let rows = from.samples();
        for to in FLOATS {
            if to == from {
                continue;
            }
            let narrows = to.bits < from.bits;
            let crosses = to == BF16 || from == BF16;
            let brain = crosses;
            let mut roundings: Vec<(String, Rounding)> = vec![];
            if narrows || crosses {
                roundings.extend(ROUNDINGS.map(|(name, rounding)| (format!(".{name}"), rounding)));
            }
            if !narrows {
                roundings.push((String::new(), Rounding::NearestEven));
            }
            for (name, rounding) in roundings {
                for (flags, ftz, sat) in
                    [("", false, false), (".ftz", true, false), (".sat", false, true), (".ftz.sat", true, true)]
                {
                    if (ftz && from != F32 && to != F32) || (sat && brain) {
                        continue;
                    }
                    check(
                        &format!("cvt{name}{flags}.{}.{} %d, %a;", to.name, from.name),
                        &[from.class()],
                        to.class(),
                        &rows,
                        |v| {
                            let value = from.float(if ftz && from == F32 { flush32(v[0]) } else { v[0] });
                            let result = if value.is_nan() { to.nan() } else { nearest(Exact::Real(value), to, rounding) };
                            let result = if ftz && to == F32 { flush32(result) } else { result };
                            if sat { saturate(to, result) } else { result }
                        },
                    );
                }
            }
        }
        // Between equal types: moved, or rounded to a whole number of the type; the sign of a zero result is the source's.
        for rounding in ["", "rni", "rzi", "rmi", "rpi"] {
            for (flags, ftz, sat) in [("", false, false), (".ftz", true, false), (".sat", false, true)] {
                if (ftz && from != F32) || (sat && from == BF16) {
                    continue;
                }
                let dot = if rounding.is_empty() { "" } else { "." };
                check(
                    &format!("cvt{dot}{rounding}{flags}.{0}.{0} %d, %a;", from.name),
                    &[from.class()],
                    from.class(),
                    &rows,
                    |v| {
                        let bits = if ftz { flush32(v[0]) } else { v[0] };
                        let value = from.float(bits);
                        let sign = bits & (from.mask() ^ from.nan());
                        let result = if value.is_nan() {
                            if from == F64 { bits | 1 << 51 } else { from.nan() }
                        } else if rounding.is_empty() || value.abs() >= 2f64.powi(60) {
                            bits
                        } else {
                            nearest(Exact::Int(whole(value, rounding)), from, Rounding::NearestEven) & from.nan() | sign
                        };
                        if sat { saturate(from, result) } else { result }
                    },
                );
            }
        }
    }
}

/// `.relu` and `.satfinite` of narrow destinations, and `.tf32`.
#[test]
fn modifiers_of_narrow_formats() {
    let rows = F32.samples();
    for to in [F16, BF16] {
        for (name, rounding) in &ROUNDINGS[..2] {
            for (flags, relu, satfinite) in [(".relu", true, false), (".satfinite", false, true), (".relu.satfinite", true, true)]
            {
                check(&format!("cvt.{name}{flags}.{}.f32 %d, %a;", to.name), &["b32"], "b16", &rows, |v| {
                    let value = F32.float(v[0]);
                    if value.is_nan() {
                        return to.nan();
                    }
                    let result = nearest(Exact::Real(value), to, *rounding);
                    let magnitude = result & to.nan();
                    let result = if satfinite && magnitude == to.infinity() { result - 1 } else { result };
                    if relu && value.is_sign_negative() { 0 } else { result }
                });
            }
        }
    }
    // tf32: an f32 with 10 fraction bits; `.rna` rounds ties away from zero.
    let tf32 = |value: Bits, rounding: &str| {
        if F32.float(value).is_nan() {
            return 0x7fff_ffff;
        }
        let (kept, rest) = (value & !0x1fff, value & 0x1fff);
        let up = match rounding {
            "rna" => rest >= 0x1000,
            "rn" => rest > 0x1000 || (rest == 0x1000 && kept & 0x2000 != 0),
            _ => false,
        };
        kept + if up { 0x2000 } else { 0 }
    };
    for rounding in ["rn", "rz", "rna"] {
        check(&format!("cvt.{rounding}.tf32.f32 %d, %a;"), &["b32"], "b32", &rows, |v| tf32(v[0], rounding));
        if rounding == "rna" {
            check("cvt.rna.satfinite.tf32.f32 %d, %a;", &["b32"], "b32", &rows, |v| {
                let result = tf32(v[0], rounding);
                if result & 0x7fff_ffff == 0x7f80_0000 { result - 0x2000 } else { result }
            });
        } else {
            check(&format!("cvt.{rounding}.relu.tf32.f32 %d, %a;"), &["b32"], "b32", &rows, |v| {
                if v[0] >> 31 == 1 && !F32.float(v[0]).is_nan() { 0 } else { tf32(v[0], rounding) }
            });
        }
    }
}

/// Packed destinations take the first source into the upper part; packed FP8 goes to and from `.f16x2`.
#[test]
fn packed() {
    let singles = F32.samples();
    let rows: Vec<Vec<Bits>> = singles.iter().zip(singles.iter().rev()).map(|(a, b)| vec![a[0], b[0]]).collect();
    let relu_of =
        |to: Type, source: Bits, result: Bits| if F32.float(source) < 0.0 || source == 1 << 31 { 0 } else { result & to.mask() };
    for to in [F16, BF16] {
        for (name, rounding) in &ROUNDINGS[..2] {
            let one = |x: Bits| if F32.float(x).is_nan() { to.nan() } else { nearest(Exact::Real(F32.float(x)), to, *rounding) };
            check(&format!("cvt.{name}.{}x2.f32 %d, %a, %b;", to.name), &["b32"; 2], "b32", &rows, |v| {
                one(v[0]) << 16 | one(v[1])
            });
            check(&format!("cvt.{name}.relu.{}x2.f32 %d, %a, %b;", to.name), &["b32"; 2], "b32", &rows, |v| {
                relu_of(to, v[0], one(v[0])) << 16 | relu_of(to, v[1], one(v[1]))
            });
            let finite = |x: Bits| if x & to.nan() == to.infinity() { x - 1 } else { x };
            check(&format!("cvt.{name}.satfinite.{}x2.f32 %d, %a, %b;", to.name), &["b32"; 2], "b32", &rows, |v| {
                finite(one(v[0])) << 16 | finite(one(v[1]))
            });
        }
    }
    let halves: Vec<Vec<Bits>> = rows.iter().map(|v| vec![(v[0] ^ v[1] << 3) & 0xffff_ffff]).collect();
    for (name, format) in [("e4m3", Format::E4m3), ("e5m2", Format::E5m2)] {
        for (flag, relu) in [("", false), (".relu", true)] {
            check(&format!("cvt.rn.satfinite{flag}.{name}x2.f32 %d, %a, %b;"), &["b32"; 2], "b16", &rows, |v| {
                formats::f32x2_to_fp8x2(f32::from_bits(v[0] as u32), f32::from_bits(v[1] as u32), format, relu).into()
            });
            check(&format!("cvt.rn.satfinite{flag}.{name}x2.f16x2 %d, %a;"), &["b32"], "b16", &halves, |v| {
                formats::f16x2_to_fp8x2(v[0] as u32, format, relu).into()
            });
            check(&format!("cvt.rn{flag}.f16x2.{name}x2 %d, %a;"), &["b16"], "b32", &halves, |v| {
                formats::fp8x2_to_f16x2(v[0] as u16, format, relu).into()
            });
        }
    }
    // Values by hand: 1 and -2, upper and lower.
    let one_and_minus_two = [vec![0x3f80_0000u64, 0xc000_0000]];
    assert_eq!(run("cvt.rn.bf16x2.f32 %d, %a, %b;", &["b32"; 2], "b32", &one_and_minus_two), [0x3f80_c000]);
    assert_eq!(run("cvt.rn.f16x2.f32 %d, %a, %b;", &["b32"; 2], "b32", &one_and_minus_two), [0x3c00_c000]);
    assert_eq!(run("cvt.rn.satfinite.e4m3x2.f32 %d, %a, %b;", &["b32"; 2], "b16", &one_and_minus_two), [0x38c0]);
    assert_eq!(run("cvt.rn.satfinite.relu.e5m2x2.f32 %d, %a, %b;", &["b32"; 2], "b16", &one_and_minus_two), [0x3c00]);
}

/// Section 9.7.9.22.
#[test]
fn pack() {
    let rows = Values::new(61).integers(&[32; 3], 600);
    for (bits, signed) in [(2u32, false), (2, true), (4, false), (4, true), (8, false), (8, true), (16, false), (16, true)] {
        let (least, most) = if signed { (-(1i64 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
        let clamp = |x: Bits| (i64::from(x as i32).clamp(least, most) as u64) & ((1 << bits) - 1);
        let name = format!("{}{bits}", if signed { "s" } else { "u" });
        if bits == 16 {
            check(&format!("cvt.pack.sat.{name}.s32 %d, %a, %b;"), &["b32"; 3], "b32", &rows, |v| {
                clamp(v[0]) << 16 | clamp(v[1])
            });
        } else {
            check(&format!("cvt.pack.sat.{name}.s32.b32 %d, %a, %b, %c;"), &["b32"; 3], "b32", &rows, |v| {
                (v[2] << (2 * bits) | clamp(v[0]) << bits | clamp(v[1])) & 0xffff_ffff
            });
        }
    }
}
