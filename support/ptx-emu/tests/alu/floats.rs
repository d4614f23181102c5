//! Single and double precision (section 9.7.3): the processor's own arithmetic in each of its rounding modes is the oracle on x86-64, exact
//! rational bounds everywhere.

use crate::harness::{Bits, Values, check, f32_bits, f32_of, run};

const ROUNDINGS: [&str; 4] = ["rn", "rz", "rm", "rp"];

fn flush(bits: Bits) -> Bits {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// `.sat`: [0, 1], NaN to +0.
fn saturate(bits: Bits) -> Bits {
    let value = f32_of(bits);
    if value.is_nan() || value <= 0.0 { 0 } else { value.min(1.0).to_bits().into() }
}

/// What the processor computes under a rounding mode of its own.
#[cfg(target_arch = "x86_64")]
mod processor {
    use std::arch::asm;

    /// MXCSR with all exceptions masked and this rounding.
    fn control(rounding: &str) -> u32 {
        let mode = match rounding {
            "rn" => 0,
            "rm" => 1,
            "rp" => 2,
            _ => 3,
        };
        0x1f80 | mode << 13
    }

    macro_rules! operation {
        ($name:ident, $ty:ty, $text:literal) => {
            /// One operation under the rounding mode.
            pub fn $name(rounding: &str, a: $ty, b: $ty, c: $ty) -> $ty {
                let (inside, mut saved) = (control(rounding), 0u32);
                let result: $ty;
                // SAFETY: the control register is put back before anything else computes; the block touches nothing but its operands.
                unsafe {
                    asm!(
                        "stmxcsr [{saved}]",
                        "ldmxcsr [{inside}]",
                        $text,
                        "ldmxcsr [{saved}]",
                        saved = in(reg) &raw mut saved,
                        inside = in(reg) &raw const inside,
                        a = inlateout(xmm_reg) a => result,
                        b = in(xmm_reg) b,
                        c = in(xmm_reg) c,
                        options(nostack),
                    );
                }
                result
            }
        };
    }
    operation!(add, f32, "addss {a}, {b} /* {c} */");
    operation!(sub, f32, "subss {a}, {b} /* {c} */");
    operation!(mul, f32, "mulss {a}, {b} /* {c} */");
    operation!(div, f32, "divss {a}, {b} /* {c} */");
    operation!(sqrt, f32, "sqrtss {a}, {a} /* {b} {c} */");
    operation!(fma, f32, "vfmadd213ss {a}, {b}, {c}");
    operation!(add64, f64, "addsd {a}, {b} /* {c} */");
    operation!(sub64, f64, "subsd {a}, {b} /* {c} */");
    operation!(mul64, f64, "mulsd {a}, {b} /* {c} */");
    operation!(div64, f64, "divsd {a}, {b} /* {c} */");
    operation!(sqrt64, f64, "sqrtsd {a}, {a} /* {b} {c} */");
    operation!(fma64, f64, "vfmadd213sd {a}, {b}, {c}");

    /// Whether `fma` may be called.
    pub fn has_fma() -> bool {
        std::arch::is_x86_feature_detected!("fma")
    }
}

/// Sections 9.7.3.3 to 9.7.3.8, 9.7.3.13 and 9.7.3.15: each rounding of each operation, with `.ftz` and `.sat`.
#[cfg(target_arch = "x86_64")]
#[test]
fn every_rounding() {
    type Oracle = fn(&str, f32, f32, f32) -> f32;
    let ops: [(&str, usize, Oracle); 7] = [
        ("add", 2, processor::add),
        ("sub", 2, processor::sub),
        ("mul", 2, processor::mul),
        ("div", 2, processor::div),
        ("sqrt", 1, processor::sqrt),
        ("rcp", 1, |r, a, b, c| processor::div(r, 1.0, a, b + c)),
        ("fma", 3, processor::fma),
    ];
    for (op, sources, oracle) in ops {
        if op == "fma" && !processor::has_fma() {
            continue;
        }
        let rows = Values::new(20).floats(sources, 32, 23, 3000);
        for rounding in ROUNDINGS {
            for (suffix, ftz, sat) in [("", false, false), (".ftz", true, false), (".sat", false, true), (".ftz.sat", true, true)]
            {
                if sat && matches!(op, "div" | "sqrt" | "rcp") {
                    continue;
                }
                let operands = ["%a", "%b", "%c"][..sources].join(", ");
                let expected = |v: &[Bits]| {
                    let take = |i: usize| v.get(i).map_or(0.0, |&x| f32_of(if ftz { flush(x) } else { x }));
                    let result = f32_bits(oracle(rounding, take(0), take(1), take(2)));
                    let result = if ftz { flush(result) } else { result };
                    if sat { saturate(result) } else { result }
                };
                check(&format!("{op}.{rounding}{suffix}.f32 %d, {operands};"), &["b32"; 3][..sources], "b32", &rows, expected);
                if op == "fma" {
                    check(&format!("mad.{rounding}{suffix}.f32 %d, {operands};"), &["b32"; 3], "b32", &rows, expected);
                } else if rounding == "rn" && !matches!(op, "div" | "sqrt" | "rcp") {
                    // Without a rounding it is to the nearest.
                    check(&format!("{op}{suffix}.f32 %d, {operands};"), &["b32"; 3][..sources], "b32", &rows, expected);
                }
            }
        }
    }
}

/// The same of doubles, which keep the payload of a NaN source.
#[cfg(target_arch = "x86_64")]
#[test]
fn every_rounding_of_doubles() {
    type Oracle = fn(&str, f64, f64, f64) -> f64;
    let ops: [(&str, usize, Oracle); 7] = [
        ("add", 2, processor::add64),
        ("sub", 2, processor::sub64),
        ("mul", 2, processor::mul64),
        ("div", 2, processor::div64),
        ("sqrt", 1, processor::sqrt64),
        ("rcp", 1, |r, a, b, c| processor::div64(r, 1.0, a, b + c)),
        ("fma", 3, processor::fma64),
    ];
    for (op, sources, oracle) in ops {
        if op == "fma" && !processor::has_fma() {
            continue;
        }
        let rows = Values::new(21).floats(sources, 64, 52, 3000);
        for rounding in ROUNDINGS {
            let operands = ["%a", "%b", "%c"][..sources].join(", ");
            let expected = |v: &[Bits]| {
                let take = |i: usize| f64::from_bits(v.get(i).copied().unwrap_or(0));
                let result = oracle(rounding, take(0), take(1), take(2));
                if !result.is_nan() {
                    return result.to_bits();
                }
                match v.iter().find(|&&x| f64::from_bits(x).is_nan()) {
                    Some(nan) => nan | 1 << 51,
                    None => 0xfff8_0000_0000_0000,
                }
            };
            check(&format!("{op}.{rounding}.f64 %d, {operands};"), &["b64"; 3][..sources], "b64", &rows, expected);
        }
    }
}

/// Without the processor's help: rounding down and up enclose the exact result, a step apart or equal; toward zero is the one nearer to zero;
/// to the nearest is one of them. Exact sums and products of floats are compared as integers.
#[test]
fn directed_roundings_enclose() {
    /// `m * 2^e`
    fn exact(bits: u32) -> (i128, i32) {
        let field = (bits >> 23 & 0xff) as i32;
        let fraction = i128::from(bits & 0x7f_ffff);
        let (m, e) = if field == 0 { (fraction, -149) } else { (fraction | 0x80_0000, field - 150) };
        (if bits >> 31 == 1 { -m } else { m }, e)
    }
    /// Compares `m * 2^e` with the value of a pattern; exponents differ little in this test.
    fn compare((m, e): (i128, i32), bits: u32) -> std::cmp::Ordering {
        let (n, f) = exact(bits);
        let low = e.min(f);
        (m << (e - low)).cmp(&(n << (f - low)))
    }
    let mut values = Values::new(22);
    // Exponents within 30 of each other keep everything inside 128 bits.
    let rows: Vec<Vec<Bits>> =
        (0..4000).map(|_| (0..2).map(|_| values.next() & 0x807f_ffff | (112 + values.next() % 30) << 23).collect()).collect();
    for op in ["add", "sub", "mul"] {
        let results: Vec<Vec<Bits>> =
            ROUNDINGS.iter().map(|r| run(&format!("{op}.{r}.f32 %d, %a, %b;"), &["b32"; 2], "b32", &rows)).collect();
        for (i, row) in rows.iter().enumerate() {
            let ((m, e), (n, f)) = (exact(row[0] as u32), exact(row[1] as u32));
            let low = e.min(f);
            let value = match op {
                "add" => ((m << (e - low)) + (n << (f - low)), low),
                "sub" => ((m << (e - low)) - (n << (f - low)), low),
                _ => (m * n, e + f),
            };
            let [nearest, zero, down, up] = [0, 1, 2, 3].map(|r| results[r][i] as u32);
            assert!(compare(value, down).is_ge() && compare(value, up).is_le(), "{op} {row:x?}");
            let exactly = compare(value, down).is_eq();
            assert_eq!(exactly, f32::from_bits(down) == f32::from_bits(up), "{op} {row:x?}");
            if !exactly {
                assert_eq!(f32::from_bits(down).next_up(), f32::from_bits(up), "{op} {row:x?}");
            }
            assert_eq!(zero, if value.0 < 0 { up } else { down }, "{op} {row:x?}");
            assert!(nearest == down || nearest == up, "{op} {row:x?}");
        }
    }
}

/// Sections 9.7.3.9 and 9.7.3.10: the sign bit alone changes, of NaN too; `.ftz` flushes.
#[test]
fn signs() {
    let rows = Values::new(23).floats(1, 32, 23, 300);
    check("abs.f32 %d, %a;", &["b32"], "b32", &rows, |v| v[0] & 0x7fff_ffff);
    check("neg.f32 %d, %a;", &["b32"], "b32", &rows, |v| v[0] ^ 0x8000_0000);
    check("abs.ftz.f32 %d, %a;", &["b32"], "b32", &rows, |v| flush(v[0]) & 0x7fff_ffff);
    check("neg.ftz.f32 %d, %a;", &["b32"], "b32", &rows, |v| flush(v[0]) ^ 0x8000_0000);
    let rows = Values::new(24).floats(1, 64, 52, 300);
    check("abs.f64 %d, %a;", &["b64"], "b64", &rows, |v| v[0] & !(1 << 63));
    check("neg.f64 %d, %a;", &["b64"], "b64", &rows, |v| v[0] ^ 1 << 63);
}

/// Section 9.7.3.2: the sign of the first source, the magnitude of the second.
#[test]
fn copysign() {
    let rows = Values::new(25).floats(2, 32, 23, 300);
    check("copysign.f32 %d, %a, %b;", &["b32"; 2], "b32", &rows, |v| f32_of(v[1]).copysign(f32_of(v[0])).to_bits().into());
    let rows = Values::new(26).floats(2, 64, 52, 300);
    check("copysign.f64 %d, %a, %b;", &["b64"; 2], "b64", &rows, |v| {
        f64::from_bits(v[1]).copysign(f64::from_bits(v[0])).to_bits()
    });
}

/// Sections 9.7.3.11 and 9.7.3.12.
#[test]
fn extrema() {
    let rows = Values::new(27).floats(2, 32, 23, 2000);
    for (op, max) in [("min", false), ("max", true)] {
        for ftz in [false, true] {
            for nan in [false, true] {
                for xorsign in [false, true] {
                    let body = format!(
                        "{op}{}{}{}.f32 %d, %a, %b;",
                        if ftz { ".ftz" } else { "" },
                        if nan { ".NaN" } else { "" },
                        if xorsign { ".xorsign.abs" } else { "" }
                    );
                    check(&body, &["b32"; 2], "b32", &rows, |v| {
                        let [a, b] = [v[0], v[1]].map(|x| if ftz { flush(x) } else { x });
                        let (x, y) = if xorsign { (f32_of(a).abs(), f32_of(b).abs()) } else { (f32_of(a), f32_of(b)) };
                        let result = match (x.is_nan(), y.is_nan()) {
                            (true, true) => return 0x7fff_ffff,
                            (true, _) | (_, true) if nan => return 0x7fff_ffff,
                            (true, _) => y,
                            (_, true) => x,
                            // Orders -0 below +0.
                            _ if x.total_cmp(&y).is_lt() != max => x,
                            _ => y,
                        };
                        let sign = if xorsign { (a ^ b) & 0x8000_0000 } else { 0 };
                        u64::from(result.to_bits()) | sign
                    });
                }
            }
        }
    }
    let rows = Values::new(28).floats(2, 64, 52, 2000);
    for (op, max) in [("min", false), ("max", true)] {
        check(&format!("{op}.f64 %d, %a, %b;"), &["b64"; 2], "b64", &rows, |v| {
            let (x, y) = (f64::from_bits(v[0]), f64::from_bits(v[1]));
            match (x.is_nan(), y.is_nan()) {
                (true, true) => 0x7fff_ffff_ffff_ffff,
                (true, _) => y.to_bits(),
                (_, true) => x.to_bits(),
                _ if x.total_cmp(&y).is_lt() != max => x.to_bits(),
                _ => y.to_bits(),
            }
        });
    }
}

/// Tables of special values, as the manual has them.
#[test]
fn special_values() {
    const INF: u64 = 0x7f80_0000;
    const NEG: u64 = 0x8000_0000;
    const NAN: u64 = 0x7fff_ffff;
    const ONE: u64 = 0x3f80_0000;
    const MAX: u64 = 0x7f7f_ffff;
    for (op, a, b, wanted) in [
        ("add.rn.f32", INF, INF | NEG, NAN),
        ("sub.rz.f32", INF, INF, NAN),
        ("mul.rm.f32", INF, 0, NAN),
        ("mul.rm.f32", NEG, INF, NAN),
        ("div.rn.f32", 0, NEG, NAN),
        ("div.rp.f32", ONE, NEG, INF | NEG),
        ("div.rz.f32", ONE, INF | NEG, NEG),
        // An exact zero sum is +0, but -0 when rounding down.
        ("add.rn.f32", ONE, ONE | NEG, 0),
        ("add.rz.f32", ONE, ONE | NEG, 0),
        ("add.rp.f32", ONE, ONE | NEG, 0),
        ("add.rm.f32", ONE, ONE | NEG, NEG),
        ("add.rm.f32", 0, NEG, NEG),
        ("add.rp.f32", NEG, NEG, NEG),
        // Overflow goes to infinity or stays at the largest, as the rounding leads.
        ("add.rn.f32", MAX, MAX, INF),
        ("add.rz.f32", MAX, MAX, MAX),
        ("add.rm.f32", MAX, MAX, MAX),
        ("add.rp.f32", MAX, MAX, INF),
        ("add.rm.f32", MAX | NEG, MAX | NEG, INF | NEG),
        // Below the smallest subnormal.
        ("mul.rn.f32", 1, 1, 0),
        ("mul.rp.f32", 1, 1, 1),
        ("mul.rm.f32", 1, 1 | NEG, 1 | NEG),
        ("mul.rz.f32", 1, 1 | NEG, NEG),
        ("add.sat.f32", NAN, ONE, 0),
        ("add.sat.f32", NEG, NEG, 0),
        ("add.sat.f32", ONE, 1, ONE),
        ("mul.ftz.f32", 0x0080_0000, 0x3f00_0000, 0),
        ("mul.ftz.f32", 0x8080_0000, 0x3f00_0000, NEG),
        ("add.ftz.f32", 0x007f_ffff, ONE, ONE),
    ] {
        let got = run(&format!("{op} %d, %a, %b;"), &["b32"; 2], "b32", &[vec![a, b]]);
        assert_eq!(got, [wanted], "{op} {a:#x} {b:#x}");
    }
}
