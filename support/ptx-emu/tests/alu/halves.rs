//! 16-bit floats (section 9.7.4): every result is the exact one, rounded once.

use crate::harness::{Bits, Values, check};
use ptx_emu::formats::{Format, Modifiers, Rounding, bf16_to_f32, encode, f16_to_f32};

#[derive(Clone, Copy, PartialEq)]
struct Half {
    name: &'static str,
    format: Format,
    fraction: u32,
}

const FORMATS: [Half; 2] =
    [Half { name: "f16", format: Format::F16, fraction: 10 }, Half { name: "bf16", format: Format::Bf16, fraction: 7 }];

const SIGN: u64 = 0x8000;

impl Half {
    fn value(self, bits: Bits) -> f64 {
        f64::from(if self.format == Format::F16 { f16_to_f32(bits as u16) } else { bf16_to_f32(bits as u16) })
    }

    fn infinity(self) -> u64 {
        if self.format == Format::F16 { 0x7c00 } else { 0x7f80 }
    }

    fn flush(self, bits: Bits) -> Bits {
        if bits & self.infinity() == 0 { bits & SIGN } else { bits }
    }

    fn round(self, exact: f64) -> Bits {
        encode(exact, self.format, Rounding::NearestEven, Modifiers::default()).into()
    }

    /// `a * b + c` rounded once: found in integers, since doubles do not hold every such sum.
    fn fma(self, a: Bits, b: Bits, c: Bits) -> Bits {
        let (x, y, z) = (self.value(a), self.value(b), self.value(c));
        let direct = x * y + z;
        if !direct.is_finite() || x * y == 0.0 || z == 0.0 {
            return self.round(direct);
        }
        // Multiples of 2^-300: bf16 goes from 2^-133 to 2^127, its products from 2^-266 to 2^255. Beyond 128 bits of distance the smaller
        // one only says on which side of the larger the sum lies.
        let (large, small) = if (x * y).abs() >= z.abs() { (x * y, z) } else { (z, x * y) };
        let (m, e) = decompose(large);
        let (n, f) = decompose(small);
        let distance = e - f;
        if distance > 70 {
            let nudged = if (small > 0.0) == (large > 0.0) { large.abs().next_up() } else { large.abs().next_down() };
            return self.round(nudged.copysign(large));
        }
        let low = e.min(f);
        let sum = (m << (e - low)) + (n << (f - low));
        // The top 60 bits and a sticky one fit a double after all: 53 of them do, rounded to odd.
        let magnitude = sum.unsigned_abs();
        let drop = (128 - magnitude.leading_zeros()).saturating_sub(53);
        let kept = (magnitude >> drop) as u64;
        let lost = magnitude & ((1u128 << drop) - 1) != 0;
        let odd = (kept | u64::from(lost)) as f64 * 2f64.powi(low + drop as i32);
        let sign = if sum == 0 {
            direct
        } else if sum < 0 {
            -1.0
        } else {
            1.0
        };
        self.round(odd.copysign(sign))
    }
}

/// `m * 2^e` with an odd m, or zero.
fn decompose(value: f64) -> (i128, i32) {
    let bits = value.to_bits();
    let field = (bits >> 52 & 0x7ff) as i32;
    let m = (bits & ((1 << 52) - 1) | 1 << 52) as i128;
    assert!(field != 0 && field != 0x7ff);
    let zeros = m.trailing_zeros();
    let m = m >> zeros;
    (if value < 0.0 { -m } else { m }, field - 1075 + zeros as i32)
}

/// Runs `op.type` and `op.typex2` on the rows; the packed form has the rows in reverse in its upper halves.
fn both(op: &str, modifiers: &str, format: Half, sources: usize, rows: &[Vec<Bits>], oracle: &dyn Fn(&[Bits]) -> Bits) {
    let operands = ["%a", "%b", "%c"][..sources].join(", ");
    check(&format!("{op}{modifiers}.{} %d, {operands};", format.name), &["b16"; 3][..sources], "b16", rows, oracle);
    let packed: Vec<Vec<Bits>> =
        rows.iter().zip(rows.iter().rev()).map(|(low, high)| low.iter().zip(high).map(|(l, h)| l | h << 16).collect()).collect();
    check(&format!("{op}{modifiers}.{}x2 %d, {operands};", format.name), &["b32"; 3][..sources], "b32", &packed, |v| {
        let half = |shift: u32| oracle(&v.iter().map(|x| x >> shift & 0xffff).collect::<Vec<_>>());
        half(0) | half(16) << 16
    });
}

/// An operation and what it computes.
type Binary = (&'static str, fn(f64, f64) -> f64);

/// Sections 9.7.4.1 to 9.7.4.3.
#[test]
fn arithmetic() {
    for format in FORMATS {
        let rows = Values::new(30).floats(2, 16, format.fraction, 4000);
        let ops: [Binary; 3] = [("add", |a, b| a + b), ("sub", |a, b| a - b), ("mul", |a, b| a * b)];
        for (op, exact) in ops {
            // Sums of two f16 values, and products of both formats, are exact in f64; sums of bf16 values whose exponents lie too far apart are
            // the larger one, nudged.
            let result = |a: Bits, b: Bits| match op {
                "mul" => format.round(exact(format.value(a), format.value(b))),
                "sub" if format.value(b).is_nan() => 0x7fff,
                "sub" => sum(format, a, b ^ SIGN),
                _ => sum(format, a, b),
            };
            both(op, "", format, 2, &rows, &|v| result(v[0], v[1]));
            both(op, ".rn", format, 2, &rows, &|v| result(v[0], v[1]));
            if format.format == Format::F16 {
                both(op, ".ftz", format, 2, &rows, &|v| format.flush(result(format.flush(v[0]), format.flush(v[1]))));
                both(op, ".sat", format, 2, &rows, &|v| saturate(format, result(v[0], v[1])));
                both(op, ".rn.ftz.sat", format, 2, &rows, &|v| {
                    saturate(format, format.flush(result(format.flush(v[0]), format.flush(v[1]))))
                });
            }
        }
    }
}

fn sum(format: Half, a: Bits, b: Bits) -> Bits {
    let one = if format.format == Format::F16 { 0x3c00 } else { 0x3f80 };
    format.fma(a, one, b)
}

fn saturate(format: Half, bits: Bits) -> Bits {
    let value = format.value(bits);
    if value.is_nan() || value <= 0.0 { 0 } else { format.round(value.min(1.0)) }
}

/// Section 9.7.4.4: one rounding, to the nearest.
#[test]
fn fused_multiply_add() {
    for format in FORMATS {
        let mut rows = Values::new(31).floats(3, 16, format.fraction, 6000);
        // Products that nearly cancel, and that lie just beside a tie.
        let mut values = Values::new(32);
        for _ in 0..6000 {
            let (a, b) = (values.float(16, format.fraction), values.float(16, format.fraction));
            let product = format.round(format.value(a) * format.value(b));
            rows.push(vec![a, b, (product ^ SIGN).wrapping_add(values.next() % 3)]);
            rows.push(vec![a, b, product.wrapping_add((8 + values.next() % 8) << format.fraction) & 0xffff]);
        }
        both("fma", ".rn", format, 3, &rows, &|v| format.fma(v[0], v[1], v[2]));
        let relu = |bits: Bits| if bits & SIGN != 0 && bits & 0x7fff <= format.infinity() { 0 } else { bits };
        both("fma", ".rn.relu", format, 3, &rows, &|v| relu(format.fma(v[0], v[1], v[2])));
        if format.format == Format::F16 {
            let flushed = |v: &[Bits]| format.flush(format.fma(format.flush(v[0]), format.flush(v[1]), format.flush(v[2])));
            both("fma", ".rn.ftz", format, 3, &rows, &flushed);
            both("fma", ".rn.ftz.relu", format, 3, &rows, &|v| relu(flushed(v)));
            both("fma", ".rn.sat", format, 3, &rows, &|v| saturate(format, format.fma(v[0], v[1], v[2])));
        }
    }
}

/// Sums that two roundings would get wrong, by hand.
#[test]
fn one_rounding() {
    let bf16 = FORMATS[1];
    let cases = [
        // 1 + 2^-8 is halfway between 1 and 1 + 2^-7: to the even one.
        (bf16.round(2f64.powi(-4)), bf16.round(2f64.powi(-4)), bf16.round(1.0), 0x3f80),
        // (1 + 2^-7)^2 = 1 + 2^-6 + 2^-14, which is just above 1 + 2^-6; 2^-8 more is just above a tie, 2^-8 less just above another.
        (0x3f81, 0x3f81, bf16.round(2f64.powi(-8)), 0x3f83),
        (0x3f81, 0x3f81, bf16.round(-(2f64.powi(-8))), 0x3f82),
        // A tie that 2^-100, far below single precision, decides.
        (bf16.round(1.0 + 2f64.powi(-7)), bf16.round(1.5), bf16.round(2f64.powi(-100)), 0x3fc2),
        (bf16.round(1.0 + 2f64.powi(-7)), bf16.round(1.5), bf16.round(-(2f64.powi(-100))), 0x3fc1),
    ];
    for (a, b, c, wanted) in cases {
        check("fma.rn.bf16 %d, %a, %b, %c;", &["b16"; 3], "b16", &[vec![a, b, c]], |_| wanted);
    }
}

/// Sections 9.7.4.5 and 9.7.4.6.
#[test]
fn signs() {
    for format in FORMATS {
        let rows = Values::new(33).floats(1, 16, format.fraction, 300);
        both("abs", "", format, 1, &rows, &|v| v[0] & !SIGN);
        both("neg", "", format, 1, &rows, &|v| v[0] ^ SIGN);
        if format.format == Format::F16 {
            both("abs", ".ftz", format, 1, &rows, &|v| format.flush(v[0]) & !SIGN);
            both("neg", ".ftz", format, 1, &rows, &|v| format.flush(v[0]) ^ SIGN);
        }
    }
}

/// Sections 9.7.4.7 and 9.7.4.8.
#[test]
fn extrema() {
    for format in FORMATS {
        let rows = Values::new(34).floats(2, 16, format.fraction, 2000);
        for (op, max) in [("min", false), ("max", true)] {
            for nan in [false, true] {
                for xorsign in [false, true] {
                    for ftz in [false, true] {
                        if ftz && format.format == Format::Bf16 {
                            continue;
                        }
                        let modifiers = format!(
                            "{}{}{}",
                            if ftz { ".ftz" } else { "" },
                            if nan { ".NaN" } else { "" },
                            if xorsign { ".xorsign.abs" } else { "" }
                        );
                        both(op, &modifiers, format, 2, &rows, &|v| {
                            let [a, b] = [v[0], v[1]].map(|x| if ftz { format.flush(x) } else { x });
                            let cut = |x: Bits| if xorsign { x & !SIGN } else { x };
                            let (x, y) = (format.value(cut(a)), format.value(cut(b)));
                            let sign = if xorsign { (a ^ b) & SIGN } else { 0 };
                            let pick = match (x.is_nan(), y.is_nan()) {
                                (true, true) => return 0x7fff,
                                (true, _) | (_, true) if nan => return 0x7fff,
                                (true, _) => b,
                                (_, true) => a,
                                _ if x.total_cmp(&y).is_lt() != max => a,
                                _ => b,
                            };
                            cut(pick) | sign
                        });
                    }
                }
            }
        }
    }
}
