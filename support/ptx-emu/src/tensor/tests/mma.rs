use super::super::mma::{Mma, WideRegister, f64 as mma_f64};
use super::super::{Accumulation, Accumulator, Error, Multiplicand as M, Register};
use super::{Matrix, Random, expected, get, put, random_accumulators};

/// Row and column of element `i` of A in lane `lane`: sections 9.7.14.5.3 to 9.7.14.5.11.
fn a_place(shape: (usize, usize), ty: M, lane: usize, i: usize) -> (usize, usize) {
    let (g, t) = (lane >> 2, lane % 4);
    match (shape, ty.bits()) {
        ((8, 16), 8) => (g, t * 4 + i),
        ((8, 32), 4) => (g, t * 8 + i),
        ((16, 4), 32) => (if i == 0 { g } else { g + 8 }, t),
        ((16, 8), 16) => (if i < 2 { g } else { g + 8 }, t * 2 + (i & 1)),
        ((16, 8), 32) => (if i == 0 || i == 2 { g } else { g + 8 }, if i < 2 { t } else { t + 4 }),
        ((16, 16), 16) => (if i < 2 || (4..6).contains(&i) { g } else { g + 8 }, t * 2 + (i & 1) + if i < 4 { 0 } else { 8 }),
        ((16, 16), 8) => (if i < 4 { g } else { g + 8 }, t * 4 + (i & 3)),
        ((16, 32), 8) => (if i < 4 || (8..12).contains(&i) { g } else { g + 8 }, t * 4 + (i & 3) + if i < 8 { 0 } else { 16 }),
        ((16, 32), 4) => (if i < 8 { g } else { g + 8 }, t * 8 + (i & 7)),
        ((16, 64), 4) => (if i < 8 || (16..24).contains(&i) { g } else { g + 8 }, t * 8 + (i & 7) + if i < 16 { 0 } else { 32 }),
        other => panic!("no such fragment: {other:?}"),
    }
}

/// Row (`k`) and column of element `i` of B: the same sections.
fn b_place(shape: (usize, usize), ty: M, lane: usize, i: usize) -> (usize, usize) {
    let (g, t) = (lane >> 2, lane % 4);
    let row = match (shape, ty.bits()) {
        ((8 | 16, 16), 8) => t * 4 + i,
        ((8 | 16, 32), 4) => t * 8 + (i & 7),
        ((16, 4), 32) => t,
        ((16, 8), 16) => t * 2 + i,
        ((16, 8), 32) => {
            if i == 0 {
                t
            } else {
                t + 4
            }
        }
        ((16, 16), 16) => t * 2 + (i & 1) + if i < 2 { 0 } else { 8 },
        ((16, 32), 8) => t * 4 + (i & 3) + if i < 4 { 0 } else { 16 },
        ((16, 64), 4) => t * 8 + (i & 7) + if i < 8 { 0 } else { 32 },
        other => panic!("no such fragment: {other:?}"),
    };
    (row, g)
}

/// Row and column of element `i` of C and D: the same for every shape.
fn c_place(lane: usize, i: usize) -> (usize, usize) {
    let (g, t) = (lane >> 2, lane % 4);
    (if i < 2 { g } else { g + 8 }, t * 2 + (i & 1))
}

fn check(m: usize, k: usize, d: Accumulator, a: M, b: M, saturate: bool, seed: u64) {
    let mut random = Random::new(seed);
    let form = Mma::new((m, 8, k), d, a, b, saturate).unwrap();
    let (am, bm) = (Matrix::random(a, m, k, &mut random), Matrix::random(b, k, 8, &mut random));
    let (c_patterns, c_values) = random_accumulators(d, m * 8, &mut random);
    let d_bits = if d == Accumulator::F16 { 16 } else { 32 };
    let mut ar = vec![[0; 32]; m * k * a.bits() / 32 / 32];
    let mut br = vec![[0; 32]; k * 8 * b.bits() / 32 / 32];
    let mut cr = vec![[0; 32]; m * 8 * d_bits / 32 / 32];
    let mut dr: Vec<Register> = vec![[0xdead_beef; 32]; cr.len()];
    for lane in 0..32 {
        for i in 0..m * k / 32 {
            let (row, column) = a_place((m, k), a, lane, i);
            put(&mut ar, a.bits(), lane, i, am.pattern(row, column));
        }
        for i in 0..k * 8 / 32 {
            let (row, column) = b_place((m, k), b, lane, i);
            put(&mut br, b.bits(), lane, i, bm.pattern(row, column));
        }
        for i in 0..m * 8 / 32 {
            let (row, column) = c_place(lane, i);
            put(&mut cr, d_bits, lane, i, c_patterns[row * 8 + column]);
        }
    }
    form.run(&ar, &br, &cr, &mut dr, Accumulation::Exact).unwrap();
    for lane in 0..32 {
        for i in 0..m * 8 / 32 {
            let (row, column) = c_place(lane, i);
            let products = (0..k).map(|at| (am.value(row, at), bm.value(at, column)));
            let want = expected(d, saturate, c_values[row * 8 + column], products);
            assert_eq!(get(&dr, d_bits, lane, i), want, "m{m}k{k} {d:?} {a:?} {b:?} lane {lane} element {i}");
        }
    }
}

#[test]
fn every_form_against_a_naive_product() {
    use Accumulator::{F16, F32, S32};
    let mut forms = 0;
    for seed in 0..20 {
        let all = [M::F16, M::Bf16, M::Tf32, M::E4m3, M::E5m2, M::S8, M::U8, M::S4, M::U4];
        for (a, b) in all.iter().flat_map(|&a| all.iter().map(move |&b| (a, b))) {
            for d in [F16, F32, S32] {
                for m in [8, 16] {
                    for k in [4, 8, 16, 32, 64] {
                        for saturate in [false, true] {
                            if Mma::new((m, 8, k), d, a, b, saturate).is_ok() {
                                check(m, k, d, a, b, saturate, seed);
                                forms += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    // f16: 2 shapes, 2 types of D; bf16: 2 shapes; tf32: 2; fp8: 2 shapes, 4 pairs, 2 types of D; 8-bit and 4-bit integers: 3 shapes, 4 pairs,
    // with and without .satfinite.
    assert_eq!(forms, 20 * (4 + 2 + 2 + 16 + 24 + 24));
}

/// An accumulator near the limits: wraps, or saturates under `.satfinite` (section 9.7.14.5.14).
#[test]
fn integer_overflow() {
    for (saturate, want) in [(false, i32::MIN + 99), (true, i32::MAX)] {
        let form = Mma::new((16, 8, 32), Accumulator::S32, M::S8, M::S8, saturate).unwrap();
        let (mut a, mut b) = ([[0; 32]; 4], [[0; 32]; 2]);
        a[0][0] = 10; // row 0, k 0
        b[0][0] = 10; // k 0, column 0
        let mut d = [[0; 32]; 4];
        form.run(&a, &b, &[[i32::MAX as u32; 32]; 4], &mut d, Accumulation::Exact).unwrap();
        assert_eq!(d[0][0] as i32, want);
        assert_eq!(d[0][1] as i32, i32::MAX);
    }
}

/// NaN and infinity go through; a NaN result is canonical.
#[test]
fn special_values() {
    for accumulation in [Accumulation::Exact, Accumulation::Hopper] {
        let form = Mma::new((16, 8, 32), Accumulator::F32, M::E5m2, M::E4m3, false).unwrap();
        let (mut a, mut b) = ([[0; 32]; 4], [[0x3838_3838; 32]; 2]);
        a[0][0] = 0x7c; // row 0: infinity
        a[0][4] = 0xfe; // row 1: NaN
        a[0][8] = 0xfc; // row 2: minus infinity
        b[0][4] = 0xb838_3838 & 0xffff_ff00; // column 1, k 0: zero
        let mut d = [[0; 32]; 4];
        let mut c = [[1.0f32.to_bits(); 32]; 4];
        c[0][12] = 0xff80_0000; // row 3, column 0
        form.run(&a, &b, &c, &mut d, accumulation).unwrap();
        assert_eq!(d[0][0], 0x7f80_0000);
        assert_eq!(d[1][0], 0x7fff_ffff, "infinity times zero");
        assert_eq!(d[0][4], 0x7fff_ffff);
        assert_eq!(d[0][8], 0xff80_0000);
        assert_eq!(d[0][12], 0xff80_0000);
        assert_eq!(d[0][16], 1.0f32.to_bits());
    }
}

#[test]
fn what_does_not_exist_is_refused() {
    use Accumulator::{F16, F32, S32};
    for (shape, d, a, b, saturate) in [
        ((16, 8, 16), F16, M::Bf16, M::Bf16, false),
        ((16, 8, 16), F32, M::F16, M::Bf16, false),
        ((16, 8, 16), F32, M::F16, M::F16, true),
        ((8, 8, 4), F32, M::F16, M::F16, false),
        ((16, 16, 16), F32, M::F16, M::F16, false),
        ((16, 8, 32), F32, M::S8, M::S8, false),
        ((16, 8, 64), S32, M::S8, M::S8, false),
        ((16, 8, 16), F32, M::Tf32, M::Tf32, false),
    ] {
        assert!(matches!(Mma::new(shape, d, a, b, saturate), Err(Error::NoSuchForm { .. })), "{shape:?} {d:?} {a:?} {b:?}");
    }
    let form = Mma::new((16, 8, 16), F32, M::F16, M::F16, false).unwrap();
    let refused = form.run(&[[0; 32]; 4], &[[0; 32]; 1], &[[0; 32]; 4], &mut [[0; 32]; 4], Accumulation::Exact);
    assert_eq!(refused, Err(Error::Registers { instruction: "mma.sync", operand: "b", expected: 2, got: 1 }));
    let text = Mma::new((16, 8, 16), F16, M::Bf16, M::Bf16, true).unwrap_err().to_string();
    assert_eq!(text, "mma.sync has no form m16n8k16.row.col.satfinite.f16.bf16.bf16.f16");
}

/// Sections 9.7.14.5.2, 9.7.14.5.6 to 9.7.14.5.8, the `.f64` parts.
#[test]
fn double_precision() {
    let mut random = Random::new(5);
    for (m, k) in [(8, 4), (16, 4), (16, 8), (16, 16)] {
        let mut value = || f64::from(random.next() as i32) / 65536.0;
        let a: Vec<f64> = (0..m * k).map(|_| value()).collect();
        let b: Vec<f64> = (0..k * 8).map(|_| value()).collect();
        let c: Vec<f64> = (0..m * 8).map(|_| value()).collect();
        let mut ar: Vec<WideRegister> = vec![[0; 32]; m * k / 32];
        let mut br: Vec<WideRegister> = vec![[0; 32]; k * 8 / 32];
        let mut cr: Vec<WideRegister> = vec![[0; 32]; m * 8 / 32];
        for lane in 0..32 {
            let (g, t) = (lane >> 2, lane % 4);
            for (i, register) in ar.iter_mut().enumerate() {
                let (row, column) = match (m, k) {
                    (8, 4) => (g, t),
                    (16, 4) => (if i == 0 { g } else { g + 8 }, t),
                    (16, 8) => (if i == 0 || i == 2 { g } else { g + 8 }, if i < 2 { t } else { t + 4 }),
                    _ => (if i % 2 == 0 { g } else { g + 8 }, if i % 2 == 0 { i * 2 + t } else { i * 2 - 2 + t }),
                };
                register[lane] = a[row * k + column].to_bits();
            }
            for (i, register) in br.iter_mut().enumerate() {
                register[lane] = b[(t + i * 4) * 8 + g].to_bits();
            }
            for (i, register) in cr.iter_mut().enumerate() {
                let (row, column) = c_place(lane, i);
                register[lane] = c[row * 8 + column].to_bits();
            }
        }
        let mut dr = vec![[1; 32]; cr.len()];
        mma_f64((m, 8, k), &ar, &br, &cr, &mut dr).unwrap();
        for (i, register) in dr.iter().enumerate() {
            for (lane, got) in register.iter().enumerate() {
                let (row, column) = c_place(lane, i);
                let want = (0..k).fold(c[row * 8 + column], |s, at| a[row * k + at].mul_add(b[at * 8 + column], s));
                assert_eq!(*got, want.to_bits(), "m{m}k{k} lane {lane} element {i}");
            }
        }
    }
    assert!(mma_f64((8, 8, 8), &[], &[], &[], &mut []).is_err());
    assert!(mma_f64((8, 8, 4), &[], &[], &[], &mut []).is_err());
}
