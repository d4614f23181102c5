//! CUDA's mathematical functions as the compiler makes them (`tests/kernels/math_functions.cu`): long chains of arithmetic whose results are only
//! right when every instruction is. The errors allowed are those that the CUDA programming guide states for the functions, in units
//! in the last place.

use crate::harness::Values;
use ptx_emu::{Arg, Config, Machine, Module, Shape};

const PTX: &str = include_str!("../ptx/math_functions.sm_90a.ptx");

/// Runs a kernel on arrays of elements of so many bytes, at most 1024 of them; `pair` elements make one thread's.
fn run(kernel: &str, inputs: &[Vec<u64>], bytes: usize, pair: usize) -> Vec<u64> {
    let machine = Machine::new(Config::default());
    let loaded = machine.load(&Module::parse(PTX).unwrap(), 0).unwrap();
    let memory = machine.memory();
    let count = inputs[0].len();
    let output = memory.alloc(0, (count * bytes) as u64).unwrap();
    let mut args = vec![Arg::from(output)];
    for input in inputs {
        let packed: Vec<u8> = input.iter().flat_map(|v| v.to_le_bytes()[..bytes].to_vec()).collect();
        let address = memory.alloc(0, packed.len() as u64).unwrap();
        memory.write(address, &packed).unwrap();
        args.push(Arg::from(address));
    }
    machine.launch(machine.stream(0).unwrap(), &loaded, kernel, Shape::new(1, (count / pair) as u32), &args).unwrap();
    machine.synchronize().unwrap_or_else(|report| panic!("{kernel}: {report}"));
    let mut read = vec![0; count * bytes];
    memory.read(output, &mut read).unwrap();
    let widen = |b: &[u8]| {
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(b);
        u64::from_le_bytes(word)
    };
    read.chunks_exact(bytes).map(widen).collect()
}

/// Values of many magnitudes within a range of exponents, and special ones.
fn floats(exponents: std::ops::Range<i32>, positive: bool, seed: u64) -> Vec<f64> {
    let mut values = Values::new(seed);
    let mut all = vec![0.0, 1.0, -1.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 0.5, -0.0];
    while all.len() < 1024 {
        let span = (exponents.end - exponents.start) as u64;
        let exponent = exponents.start + (values.next() % span) as i32;
        let fraction = 1.0 + (values.next() >> 12) as f64 / (1u64 << 52) as f64;
        let sign = if values.next() & 1 == 0 { 1.0 } else { -1.0 };
        all.push(sign * fraction * 2f64.powi(exponent));
    }
    if positive { all.into_iter().map(f64::abs).collect() } else { all }
}

/// A unit in the last place of a result, of so many bits of precision and this smallest exponent.
fn ulp(value: f64, precision: i32, lowest: i32) -> f64 {
    2f64.powi((value.abs().max(f64::MIN_POSITIVE).log2().floor() as i32).max(lowest) - precision + 1)
}

fn check_single(name: &str, inputs: &[Vec<f64>], allowed: f64, function: impl Fn(&[f64]) -> f64) {
    let rounded: Vec<Vec<f64>> = inputs.iter().map(|list| list.iter().map(|&x| f64::from(x as f32)).collect()).collect();
    let bits: Vec<Vec<u64>> =
        rounded.iter().map(|list| list.iter().map(|&x| u64::from((x as f32).to_bits())).collect()).collect();
    let got = run(&format!("m_{name}"), &bits, 4, 1);
    for (i, got) in got.into_iter().enumerate() {
        let row: Vec<f64> = rounded.iter().map(|list| list[i]).collect();
        let (value, exact) = (f64::from(f32::from_bits(got as u32)), function(&row));
        let good = match exact as f32 {
            nan if nan.is_nan() => value.is_nan(),
            inf if inf.is_infinite() => value == f64::from(inf) || value.abs() >= f64::from(f32::MAX),
            _ => (value - exact).abs() <= (allowed + 0.5) * ulp(exact, 24, -126),
        };
        assert!(good, "{name}{row:?} gives {value:e}, exactly {exact:e}");
    }
}

fn check_double(name: &str, inputs: &[Vec<f64>], allowed: f64, function: impl Fn(&[f64]) -> f64) {
    let bits: Vec<Vec<u64>> = inputs.iter().map(|list| list.iter().map(|x| x.to_bits()).collect()).collect();
    let got = run(&format!("m_{name}"), &bits, 8, 1);
    for (i, got) in got.into_iter().enumerate() {
        let row: Vec<f64> = inputs.iter().map(|list| list[i]).collect();
        let (value, reference) = (f64::from_bits(got), function(&row));
        // The reference itself may be off by one.
        let good = if reference.is_nan() {
            value.is_nan()
        } else {
            value == reference || (value - reference).abs() <= (allowed + 1.0) * ulp(reference, 53, -1022)
        };
        assert!(good, "{name}{row:?} gives {value:e}, not {reference:e}");
    }
}

#[test]
fn single_precision() {
    type One = (&'static str, std::ops::Range<i32>, f64, fn(f64) -> f64);
    let one: [One; 17] = [
        // Up to 2^127: range reduction with the first words of 2/pi.
        ("sinf", -30..127, 2.0, f64::sin),
        ("cosf", -30..127, 2.0, f64::cos),
        ("tanf", -30..40, 4.0, f64::tan),
        ("expf", -20..7, 2.0, f64::exp),
        ("exp10f", -20..6, 2.0, |x| 10f64.powf(x)),
        ("expm1f", -30..7, 1.0, f64::exp_m1),
        ("logf", -140..127, 1.0, f64::ln),
        ("log10f", -140..127, 2.0, f64::log10),
        ("log1pf", -30..127, 1.0, f64::ln_1p),
        ("cbrtf", -140..127, 1.0, f64::cbrt),
        ("atanf", -30..127, 2.0, f64::atan),
        ("asinf", -30..1, 2.0, f64::asin),
        ("sinhf", -30..6, 3.0, f64::sinh),
        ("tanhf", -30..6, 2.0, f64::tanh),
        ("rsqrtf", -140..127, 2.0, |x| 1.0 / x.sqrt()),
        ("rintf", -3..30, 0.0, f64::round_ties_even),
        ("roundf", -3..30, 0.0, f64::round),
    ];
    for (i, (name, exponents, allowed, function)) in one.into_iter().enumerate() {
        check_single(name, &[floats(exponents, false, 90 + i as u64)], allowed, |v| function(v[0]));
    }
    let wide = |seed| floats(-60..60, false, seed);
    check_single("powf", &[floats(-20..20, true, 120), floats(-6..3, false, 121)], 4.0, |v| v[0].powf(v[1]));
    check_single("atan2f", &[wide(122), wide(123)], 3.0, |v| v[0].atan2(v[1]));
    check_single("hypotf", &[wide(124), wide(125)], 3.0, |v| v[0].hypot(v[1]));
    check_single("fmodf", &[floats(-10..30, false, 126), floats(-10..10, false, 127)], 0.0, |v| v[0] % v[1]);
}

#[test]
fn double_precision() {
    type One = (&'static str, std::ops::Range<i32>, f64, fn(f64) -> f64);
    let one: [One; 9] = [
        ("sin", -60..900, 2.0, f64::sin),
        ("exp", -60..10, 1.0, f64::exp),
        ("log", -1000..1000, 1.0, f64::ln),
        ("sqrt", -1000..1000, 0.0, f64::sqrt),
        ("cbrt", -1000..1000, 1.0, f64::cbrt),
        ("atan", -60..1000, 2.0, f64::atan),
        ("tanh", -60..8, 1.0, f64::tanh),
        ("rsqrt", -1000..1000, 1.0, |x| 1.0 / x.sqrt()),
        ("round", -3..60, 0.0, f64::round),
    ];
    for (i, (name, exponents, allowed, function)) in one.into_iter().enumerate() {
        check_double(name, &[floats(exponents, false, 130 + i as u64)], allowed, |v| function(v[0]));
    }
    check_double("pow", &[floats(-100..100, true, 140), floats(-8..3, false, 141)], 2.0, |v| v[0].powf(v[1]));
    check_double("fmod", &[floats(-10..60, false, 142), floats(-10..20, false, 143)], 0.0, |v| v[0] % v[1]);
}

/// Checks an integer kernel of two sources of so many bits.
fn integers(name: &str, bits: u32, nonzero: bool, function: impl Fn(u64, u64) -> u64) {
    let mut values = Values::new(150);
    let a: Vec<u64> = (0..1024).map(|_| values.integer(bits)).collect();
    let b: Vec<u64> = (0..1024).map(|_| values.integer(bits).max(u64::from(nonzero))).collect();
    let mask = u64::MAX >> (64 - bits);
    let got = run(&format!("i_{name}"), &[a.clone(), b.clone()], bits as usize / 8, 1);
    for (i, got) in got.into_iter().enumerate() {
        assert_eq!(got, function(a[i], b[i]) & mask, "{name} of {:#x} and {:#x}", a[i], b[i]);
    }
}

#[test]
fn integer_intrinsics() {
    integers("divide_s64", 64, true, |a, b| (a as i64).wrapping_div(b as i64) as u64);
    integers("remainder_u64", 64, true, |a, b| a % b);
    integers("mulhi_s64", 64, false, |a, b| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64);
    integers("divide_s16", 16, true, |a, b| (i32::from(a as i16) / i32::from(b as i16)) as u64);
    integers("saturating_byte", 8, false, |a, b| (a + b).min(255));
    integers("rotate", 32, false, |a, b| (a as u32).rotate_left(b as u32 & 31).into());
    integers("bytes", 32, false, |a, b| {
        let all = [a.to_le_bytes(), b.to_le_bytes()].map(|word| <[u8; 4]>::try_from(&word[..4]).unwrap()).concat();
        u32::from_le_bytes([all[2], all[7], all[1], all[6]]).into()
    });
    let parts = |a: u64, b: u64, f: &dyn Fn(u64, u64) -> u64| {
        (0..4).map(|i| f(a >> (8 * i) & 0xff, b >> (8 * i) & 0xff)).collect::<Vec<_>>()
    };
    integers("average", 32, false, |a, b| {
        parts(a, b, &|x, y| (x + y).div_ceil(2)).iter().rev().fold(0, |word, part| word << 8 | part)
    });
    integers("differences", 32, false, |a, b| parts(a, b, &u64::abs_diff).iter().sum());
    let first_set = |x: u64| if x == 0 { 0 } else { u64::from(x.trailing_zeros() + 1) };
    integers("bit_mix", 32, false, |a, b| {
        u64::from((a as u32).reverse_bits())
            ^ u64::from(b.count_ones())
            ^ u64::from((a as u32).leading_zeros()) << 8
            ^ first_set(b) << 16
    });
    integers("wide_mix", 64, false, |a, b| {
        a.reverse_bits() ^ u64::from(b.count_ones()) ^ u64::from(a.leading_zeros()) << 8 ^ first_set(b) << 16
    });
}

#[test]
fn integers_of_128_bits() {
    let mut values = Values::new(151);
    let mut numbers = || -> Vec<u128> {
        (0..512)
            .map(|_| {
                let wide = u128::from(values.next()) << 64 | u128::from(values.next());
                (wide >> (values.next() % 128)).max(1)
            })
            .collect()
    };
    let (a, b) = (numbers(), numbers());
    let split = |list: &[u128]| list.iter().flat_map(|&v| [v as u64, (v >> 64) as u64]).collect::<Vec<_>>();
    let got = run("i_wide_division", &[split(&a), split(&b)], 8, 2);
    for i in 0..512 {
        let wanted = ((a[i] / b[i]) << 7).wrapping_add((a[i] % b[i]) >> 3);
        assert_eq!(u128::from(got[2 * i + 1]) << 64 | u128::from(got[2 * i]), wanted, "{:#x} / {:#x}", a[i], b[i]);
    }
}

/// The conversions of values that every type on the way holds.
#[test]
fn conversions() {
    let values: Vec<f64> = (0..1000).map(|i| f64::from(i) * 0.1235).collect();
    let bits: Vec<u64> = values.iter().map(|v| v.to_bits()).collect();
    let got = run("i_conversions", &[bits], 8, 1);
    for (&a, got) in values.iter().zip(got) {
        let f = a as f32;
        let wanted = f64::from(f as i32 as i8)
            + f64::from(a as u16)
            + (f as i64) as f64
            + f64::from((a as u64) as f32)
            + f64::from(f as u32)
            + f64::from((a as i32) as f32);
        assert_eq!(f64::from_bits(got), wanted, "{a}");
    }
}
