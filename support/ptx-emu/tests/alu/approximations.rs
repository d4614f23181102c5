//! `.approx` and `.full` (sections 9.7.3.8, 9.7.3.13 to 9.7.3.22, 9.7.4.9 and 9.7.4.10): the exact result rounded; or, with
//! `perturb_approx`, one within the documented error.

use crate::harness::{Bits, Values, check, f32_bits, f32_of, run, try_run};
use ptx_emu::Config;
use ptx_emu::formats::{Format, Modifiers, Rounding, bf16_to_f32, encode, f16_to_f32};

/// An operation and what it computes.
type Function = (&'static str, fn(f64) -> f64);

const FUNCTIONS: [Function; 8] = [
    ("rcp", |x| 1.0 / x),
    ("sqrt", f64::sqrt),
    ("rsqrt", |x| 1.0 / x.sqrt()),
    ("sin", f64::sin),
    ("cos", f64::cos),
    ("lg2", f64::log2),
    ("ex2", f64::exp2),
    ("tanh", f64::tanh),
];

fn flush(bits: Bits) -> Bits {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// Random patterns, edges, and values where the functions do something.
fn rows() -> Vec<Vec<Bits>> {
    let mut values = Values::new(70);
    let mut rows = values.floats(1, 32, 23, 1000);
    rows.extend((0..3000).map(|i| vec![f32_bits((i as f32 - 1500.0) * 0.1003)]));
    rows.extend((-160..140).map(|i| vec![f32_bits(i as f32)]));
    rows
}

/// Correctly rounded from double precision, but for results within 1e-15 of a tie, of which there are none here.
#[test]
fn exact_results_rounded() {
    let rows = rows();
    for (name, function) in FUNCTIONS {
        check(&format!("{name}.approx.f32 %d, %a;"), &["b32"], "b32", &rows, |v| {
            f32_bits(function(f64::from(f32_of(v[0]))) as f32)
        });
        if name != "tanh" {
            check(&format!("{name}.approx.ftz.f32 %d, %a;"), &["b32"], "b32", &rows, |v| {
                flush(f32_bits(function(f64::from(f32_of(flush(v[0])))) as f32))
            });
        }
    }
}

/// The manual's tables of special values.
#[test]
fn special_values() {
    const INF: u64 = 0x7f80_0000;
    const NEG: u64 = 0x8000_0000;
    const NAN: u64 = 0x7fff_ffff;
    const ONE: u64 = 0x3f80_0000;
    const SUBNORMAL: u64 = 0x0040_0000;
    for (op, a, wanted) in [
        ("rcp.approx.f32", 0, INF),
        ("rcp.approx.f32", NEG, INF | NEG),
        ("rcp.approx.f32", INF | NEG, NEG),
        ("rcp.approx.f32", NAN, NAN),
        ("rcp.approx.ftz.f32", SUBNORMAL | NEG, INF | NEG),
        ("sqrt.approx.f32", NEG, NEG),
        ("sqrt.approx.f32", NEG | ONE, NAN),
        ("sqrt.approx.f32", INF, INF),
        ("sqrt.approx.ftz.f32", SUBNORMAL | NEG, NEG),
        ("rsqrt.approx.f32", 0, INF),
        ("rsqrt.approx.f32", NEG, INF | NEG),
        ("rsqrt.approx.f32", INF, 0),
        ("rsqrt.approx.f32", INF | NEG, NAN),
        ("rsqrt.approx.ftz.f32", SUBNORMAL, INF),
        ("rsqrt.approx.ftz.f32", SUBNORMAL | NEG, INF | NEG),
        ("sin.approx.f32", INF, NAN),
        ("sin.approx.f32", NEG, NEG),
        ("cos.approx.f32", INF | NEG, NAN),
        ("cos.approx.f32", NEG, ONE),
        ("sin.approx.ftz.f32", SUBNORMAL | NEG, NEG),
        ("lg2.approx.f32", 0, INF | NEG),
        ("lg2.approx.f32", NEG, INF | NEG),
        ("lg2.approx.f32", NEG | ONE, NAN),
        ("lg2.approx.f32", INF, INF),
        ("lg2.approx.ftz.f32", SUBNORMAL, INF | NEG),
        ("ex2.approx.f32", INF | NEG, 0),
        ("ex2.approx.f32", INF, INF),
        ("ex2.approx.f32", NEG, ONE),
        ("ex2.approx.f32", SUBNORMAL, ONE),
        ("ex2.approx.f32", 0xc315_0000, 1), // -149
        ("ex2.approx.ftz.f32", 0xc315_0000, 0),
        ("ex2.approx.f32", 0x4300_0000, INF), // 128
        ("tanh.approx.f32", INF, ONE),
        ("tanh.approx.f32", INF | NEG, ONE | NEG),
        ("tanh.approx.f32", NEG, NEG),
        ("tanh.approx.f32", NAN | NEG, NAN),
    ] {
        assert_eq!(run(&format!("{op} %d, %a;"), &["b32"], "b32", &[vec![a]]), [wanted], "{op} {a:#x}");
    }
}

/// `div.approx` multiplies by a reciprocal that is flushed above 2^126; `div.full` scales.
#[test]
fn quotients() {
    let mut rows = Values::new(71).floats(2, 32, 23, 2000);
    // Divisors around 2^126 and up to infinity, where the reciprocal is flushed.
    for b in [0x7e7f_ffffu64, 0x7e80_0000, 0x7e80_0001, 0x7e85_0000, 0x7eff_ffff, 0x7f00_0000, 0x7f7f_ffff, 0x7f80_0000] {
        rows.extend(
            [0u64, 0x3f80_0000, 0x7f7f_ffff, 0xff7f_ffff, 0x7f80_0000, 0x7fc0_0000]
                .iter()
                .flat_map(|&a| [vec![a, b], vec![a, b | 1 << 31]]),
        );
    }
    for ftz in [false, true] {
        let flag = if ftz { ".ftz" } else { "" };
        let source = |x: Bits| if ftz { flush(x) } else { x };
        let result = |x: Bits| if ftz { flush(x) } else { x };
        check(&format!("div.full{flag}.f32 %d, %a, %b;"), &["b32"; 2], "b32", &rows, |v| {
            result(f32_bits(f32_of(source(v[0])) / f32_of(source(v[1]))))
        });
        check(&format!("div.approx{flag}.f32 %d, %a, %b;"), &["b32"; 2], "b32", &rows, |v| {
            let (a, b) = (f32_of(source(v[0])), f32_of(source(v[1])));
            if b.abs() > 2f32.powi(126) && b.is_finite() {
                return match a.is_infinite() || a.is_nan() {
                    true => 0x7fff_ffff,
                    false => (v[0] ^ v[1]) & 0x8000_0000,
                };
            }
            result(f32_bits(a / b))
        });
    }
}

/// 16-bit floats, one or two in a register; bf16 has `ex2` with `.ftz` only.
#[test]
fn halves() {
    for (name, format, ops) in
        [("f16", Format::F16, [("ex2", ""), ("tanh", "")]), ("bf16", Format::Bf16, [("ex2", ".ftz"), ("tanh", "")])]
    {
        let widen = |x: Bits| if format == Format::F16 { f16_to_f32(x as u16) } else { bf16_to_f32(x as u16) };
        let rows: Vec<Vec<Bits>> = (0..0x1_0000).step_by(7).map(|x| vec![x]).collect();
        for (op, flag) in ops {
            let function = FUNCTIONS.iter().find(|f| f.0 == op).unwrap().1;
            let one = |x: Bits| {
                let x = match (flag, x & 0x7f80) {
                    (".ftz", 0) => x & 0x8000,
                    _ => x,
                };
                // Rounded to f32 first: the exact results of these functions are never near a tie.
                let result = function(f64::from(widen(x))) as f32;
                let bits = u64::from(encode(f64::from(result), format, Rounding::NearestEven, Modifiers::default()));
                if flag == ".ftz" && bits & 0x7f80 == 0 { bits & 0x8000 } else { bits }
            };
            check(&format!("{op}.approx{flag}.{name} %d, %a;"), &["b16"], "b16", &rows, |v| one(v[0]));
            let packed: Vec<Vec<Bits>> = rows.iter().map(|v| vec![v[0] | (v[0].wrapping_mul(40_503) & 0xffff) << 16]).collect();
            check(&format!("{op}.approx{flag}.{name}x2 %d, %a;"), &["b32"], "b32", &packed, |v| {
                one(v[0] & 0xffff) | one(v[0] >> 16) << 16
            });
        }
    }
}

/// The gross double-precision forms read and write upper halves (sections 9.7.3.14 and 9.7.3.17).
#[test]
fn doubles() {
    let rows = Values::new(72).floats(1, 64, 52, 1000);
    let flush = |x: u64| if x & 0x7ff << 52 == 0 { x & 1 << 63 } else { x };
    for (name, function) in [("rcp", FUNCTIONS[0].1), ("rsqrt", FUNCTIONS[2].1)] {
        let got = run(&format!("{name}.approx.ftz.f64 %d, %a;"), &["b64"], "b64", &rows);
        for (row, got) in rows.iter().zip(got) {
            let exact = function(f64::from_bits(flush(row[0])));
            assert_eq!(got & 0xffff_ffff, 0, "{row:x?}");
            let value = f64::from_bits(got);
            if exact.is_nan() {
                assert_eq!(got, 0x7fff_ffff_0000_0000, "{row:x?}");
            } else if exact.is_infinite() || exact == 0.0 {
                assert_eq!(value, exact, "{row:x?}");
                assert_eq!(value.is_sign_negative(), exact.is_sign_negative());
            } else if exact.abs() < 2f64.powi(-1021) {
                assert!(value == 0.0 || (value / exact - 1.0).abs() < 2f64.powi(-19), "{row:x?}");
            } else {
                assert!((value / exact - 1.0).abs() < 2f64.powi(-19), "{name} {row:x?}: {value:e} {exact:e}");
            }
        }
    }
    check("rsqrt.approx.f64 %d, %a;", &["b64"], "b64", &rows, |v| {
        let exact = 1.0 / f64::from_bits(v[0]).sqrt();
        if exact.is_nan() { 0x7fff_ffff_ffff_ffff } else { exact.to_bits() }
    });
}

/// Perturbed results stay within the documented errors, differ from the exact ones somewhere, and depend on the seed alone.
#[test]
fn perturbed() {
    let mut values = Values::new(73);
    let rows: Vec<Vec<Bits>> =
        (0..2000).map(|_| vec![f32_bits((values.next() >> 40) as f32 / (1 << 20) as f32 + 0.01)]).collect();
    let config = |seed| Config { perturb_approx: true, seed, ..Config::default() };
    for (name, function) in FUNCTIONS {
        let body = format!("{name}.approx.f32 %d, %a;");
        let exact = run(&body, &["b32"], "b32", &rows);
        let got = try_run(&body, &["b32"], "b32", &rows, config(5)).unwrap();
        assert_eq!(got, try_run(&body, &["b32"], "b32", &rows, config(5)).unwrap(), "{name}");
        assert_ne!(got, try_run(&body, &["b32"], "b32", &rows, config(6)).unwrap(), "{name}");
        let different = got.iter().zip(&exact).filter(|(g, e)| g != e).count();
        assert!(different > rows.len() / 20, "{name}: {different}");
        for (row, &got) in rows.iter().zip(&got) {
            let x = f64::from(f32_of(row[0]));
            let (y, value) = (function(x), f64::from(f32_of(got)));
            let bound = match name {
                "rcp" | "sqrt" => y.abs() * 2f64.powi(-23),
                "rsqrt" => y.abs() * 2f64.powf(-22.9),
                "sin" | "cos" => {
                    if x <= std::f64::consts::TAU {
                        2f64.powf(-20.5)
                    } else {
                        2f64.powf(-14.7)
                    }
                }
                "lg2" => {
                    if x > 0.5 && x < 2.0 {
                        2f64.powi(-22)
                    } else {
                        y.abs() * 2f64.powi(-22)
                    }
                }
                "ex2" => y * 2f64.powi(-22),
                _ => y * 2f64.powi(-11),
            };
            // Plus the rounding of the exact result, for where nothing else fits in between.
            assert!((value - y).abs() <= bound.max(y.abs() * 2f64.powi(-24)), "{name}({x}) = {value}, exactly {y}");
        }
    }
    // Quotients: within two units in the last place.
    let rows: Vec<Vec<Bits>> = rows.iter().zip(rows.iter().rev()).map(|(a, b)| vec![a[0], b[0]]).collect();
    for kind in ["approx", "full"] {
        let body = format!("div.{kind}.f32 %d, %a, %b;");
        let exact = run(&body, &["b32"; 2], "b32", &rows);
        let got = try_run(&body, &["b32"; 2], "b32", &rows, config(5)).unwrap();
        assert!(got != exact && got.iter().zip(&exact).all(|(g, e)| g.abs_diff(*e) <= 1), "{kind}");
    }
    // Rounded operations are not touched.
    let body = "div.rn.f32 %d, %a, %b;";
    assert_eq!(run(body, &["b32"; 2], "b32", &rows), try_run(body, &["b32"; 2], "b32", &rows, config(5)).unwrap());
    // 16-bit floats.
    let rows: Vec<Vec<Bits>> = (0x3000..0x4400).map(|x| vec![x]).collect();
    for (body, format) in [("ex2.approx.f16 %d, %a;", Format::F16), ("tanh.approx.bf16 %d, %a;", Format::Bf16)] {
        let exact = run(body, &["b16"], "b16", &rows);
        let got = try_run(body, &["b16"], "b16", &rows, config(5)).unwrap();
        assert_ne!(got, exact);
        for ((row, &got), &exact) in rows.iter().zip(&got).zip(&exact) {
            let (x, y) = if format == Format::F16 {
                (f64::from(f16_to_f32(row[0] as u16)).exp2(), f64::from(f16_to_f32(got as u16)))
            } else {
                (f64::from(bf16_to_f32(row[0] as u16)).tanh(), f64::from(bf16_to_f32(got as u16)))
            };
            let bound = if format == Format::F16 { x * 2f64.powf(-9.9) } else { 2f64.powi(-8) };
            assert!(got == exact || (x - y).abs() <= bound, "{body} {row:x?}");
        }
    }
}
