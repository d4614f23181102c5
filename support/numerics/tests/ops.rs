//! The operations against f64, on every instruction set, with poisoned outputs; and the same bits on all of them.

use proptest::prelude::*;
use v3_numerics::cpu::{Isa, with_isa};
use v3_numerics::ops::{self, AdamWParams};
use v3_numerics::{MatMut, MatRef, bf16, reference};
use v3_testkit::backend::for_each_available;
use v3_testkit::poison::{Guarded, poisoned};
use v3_testkit::{Rng, Tolerance, assert_bits_eq};

/// 2^-24: half a unit in the last place, relative.
const U: f64 = 1.0 / 16_777_216.0;

/// Runs `f` on every instruction set and fails unless all give the bits of the first.
fn on_every_isa(what: &str, mut f: impl FnMut(Isa) -> Vec<f32>) -> Vec<f32> {
    let mut first: Option<Vec<f32>> = None;
    for_each_available(what, &Isa::ALL, Isa::name, Isa::is_available, |isa| {
        let got = with_isa(isa, || f(isa)).unwrap();
        match &first {
            None => first = Some(got),
            Some(first) => assert_bits_eq(&format!("{what} on {isa}"), &got, first),
        }
    });
    first.unwrap()
}

/// Runs an operation on a guarded, poisoned output.
fn output(n: usize, f: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut out = Guarded::output(n);
    f(out.as_mut_slice());
    out.check().unwrap();
    out.as_slice().to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn rms_norm(t in 0usize..9, d in 1usize..200, seed in any::<u64>()) {
        let mut rng = Rng::new(seed);
        let eps = 1e-6;
        let x = Guarded::input(&rng.normal_vec(t * d, 3.0));
        let dy = Guarded::input(&rng.normal_vec(t * d, 1.0));
        let weight = Guarded::input(&rng.normal_vec(d, 1.0));
        let (x, dy, weight) = (x.as_slice(), dy.as_slice(), weight.as_slice());
        let (y64, rstd64) = reference::rms_norm(x, weight, eps);
        let (dx64, dw64) = reference::rms_norm_backward(dy, x, weight, eps);

        let mut rstd = poisoned(t);
        let y = on_every_isa("rms_norm", |_| {
            let mut r = poisoned(t);
            let y = output(t * d, |y| ops::rms_norm(x, weight, eps, y, &mut r).unwrap());
            rstd = r.clone();
            [y, r].concat()
        });
        // The sum of d squares (all positive) is off by (d / 64 + 9) U relative at most, its root by half; then a few roundings.
        let rel = (d as f64 / 128.0 + 10.0) * U;
        Tolerance::relative(rel).check("y", &y[..t * d], &y64).unwrap();
        Tolerance::relative(rel).check("rstd", &y[t * d..], &rstd64).unwrap();

        let dx = on_every_isa("rms_norm_backward_input", |_| {
            output(t * d, |dx| ops::rms_norm_backward_input(dy, x, weight, &rstd, dx).unwrap())
        });
        // Both terms are off relative to themselves; the second to the sum of magnitudes of its dot product.
        let bounds: Vec<f64> = (0..t * d).map(|p| {
            let (r, row) = (rstd64[p / d], p / d * d..(p / d + 1) * d);
            let magnitude: f64 = row.map(|q| f64::from((dy[q] * weight[q % d] * x[q]).abs())).sum();
            let terms = f64::from((dy[p] * weight[p % d]).abs()) + f64::from(x[p].abs()) * r * r * magnitude / d as f64;
            (d as f64 / 16.0 + 40.0) * U * r * terms
        }).collect();
        Tolerance::EXACT.check_bounded("dx", &dx, &dx64, &bounds).unwrap();

        let before = rng.normal_vec(d, 1.0);
        let dw = on_every_isa("rms_norm_backward_weight", |_| {
            let mut dw = Guarded::input(&before);
            ops::rms_norm_backward_weight(dy, x, &rstd, dw.as_mut_slice()).unwrap();
            dw.check().unwrap();
            dw.as_slice().to_vec()
        });
        let expected: Vec<f64> = dw64.iter().zip(&before).map(|(a, b)| a + f64::from(*b)).collect();
        let bounds: Vec<f64> = (0..d).map(|j| {
            let terms: f64 = (0..t).map(|i| f64::from((dy[i * d + j] * x[i * d + j]).abs()) * rstd64[i]).sum();
            (t as f64 + d as f64 / 128.0 + 16.0) * U * (terms + f64::from(before[j].abs()))
        }).collect();
        Tolerance::EXACT.check_bounded("dweight", &dw, &expected, &bounds).unwrap();
    }

    #[test]
    fn swiglu(t in 0usize..7, inter in 1usize..150, seed in any::<u64>()) {
        let mut rng = Rng::new(seed);
        let gate_up = Guarded::input(&rng.normal_vec(t * 2 * inter, 4.0));
        let dout = Guarded::input(&rng.normal_vec(t * inter, 1.0));
        let (gate_up, dout) = (gate_up.as_slice(), dout.as_slice());
        let y = on_every_isa("swiglu", |_| output(t * inter, |y| ops::swiglu(gate_up, inter, y).unwrap()));
        // exp 2 U, the sum U, the quotient U, the product U, second order.
        Tolerance::relative(6.0 * U).check("swiglu", &y, &reference::swiglu(gate_up, inter)).unwrap();
        let dx = on_every_isa("swiglu_backward", |_| {
            output(2 * t * inter, |dx| ops::swiglu_backward(dout, gate_up, inter, dx).unwrap())
        });
        // The derivative cancels near its zero at -1.28: absolute there, in terms of sigma + |silu (1 - sigma)| < 1.4.
        let bounds: Vec<f64> = (0..2 * t * inter).map(|p| {
            let (row, j) = (p / (2 * inter), p % (2 * inter) % inter);
            12.0 * U * 1.4 * f64::from((dout[row * inter + j] * gate_up[row * 2 * inter + inter + j]).abs())
        }).collect();
        let expected = reference::swiglu_backward(dout, gate_up, inter);
        Tolerance::relative(8.0 * U).check_bounded("swiglu_backward", &dx, &expected, &bounds).unwrap();
    }

    #[test]
    fn softmax(t in 0usize..6, d in 1usize..130, seed in any::<u64>()) {
        let x = Rng::new(seed).normal_vec(t * d, 5.0);
        let y = on_every_isa("softmax_rows", |_| {
            let mut y = Guarded::input(&x);
            ops::softmax_rows(y.as_mut_slice(), d).unwrap();
            y.check().unwrap();
            y.as_slice().to_vec()
        });
        // x - max is rounded: off by U of up to 60, which exp makes relative; the sum has d / 16 + 5 additions.
        let rel = (60.0 + 4.0 + d as f64 / 16.0 + 6.0) * U;
        Tolerance::relative(rel).check("softmax", &y, &reference::softmax_rows(&x, d)).unwrap();
    }

    #[test]
    fn elementwise(n in 0usize..100, alpha in -2.0f32..2.0, seed in any::<u64>()) {
        let mut rng = Rng::new(seed);
        let (x, y) = (rng.bits_vec(n), rng.bits_vec(n));
        let run = |f: &dyn Fn(&[f32], &mut [f32])| {
            on_every_isa("elementwise", |_| {
                let mut out = Guarded::input(&y);
                f(Guarded::input(&x).as_slice(), out.as_mut_slice());
                out.check().unwrap();
                // Which NaN a NaN is, is not specified.
                out.as_slice().iter().map(|x| if x.is_nan() { f32::NAN } else { *x }).collect()
            })
        };
        let expect = |got: Vec<f32>, f: &dyn Fn(f32, f32) -> f32| {
            let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| f(*x, *y)).map(|x| if x.is_nan() { f32::NAN } else { x }).collect();
            assert_bits_eq("elementwise", &got, &expected);
        };
        expect(run(&|x, y| ops::add_assign(y, x).unwrap()), &|x, y| y + x);
        expect(run(&|x, y| ops::axpy(alpha, x, y).unwrap()), &|x, y| alpha.mul_add(x, y));
        expect(run(&|_, y| ops::scale(y, alpha)), &|_, y| y * alpha);
    }

    #[test]
    fn embedding(ids in prop::collection::vec(0u32..11, 0..40), d in 1usize..70, seed in any::<u64>()) {
        let mut rng = Rng::new(seed);
        let table = rng.normal_vec(11 * d, 1.0);
        let out = output(ids.len() * d, |out| ops::embedding_gather(&ids, &table, d, out).unwrap());
        for (id, row) in ids.iter().zip(out.chunks(d)) {
            assert_bits_eq("row", row, &table[*id as usize * d..(*id as usize + 1) * d]);
        }
        let dy = rng.normal_vec(ids.len() * d, 1.0);
        let before = rng.normal_vec(11 * d, 1.0);
        let mut sum = before.clone();
        ops::embedding_scatter_add(&ids, &dy, d, &mut sum).unwrap();
        let mut expected = before;
        for (id, dy) in ids.iter().zip(dy.chunks(d)) {
            for j in 0..d {
                expected[*id as usize * d + j] += dy[j];
            }
        }
        assert_bits_eq("scatter", &sum, &expected);
    }

    #[test]
    fn adamw(n in 0usize..100, step in 1u64..2000, seed in any::<u64>(), scale in 0.1f32..1.0) {
        let p = AdamWParams { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
        let mut rng = Rng::new(seed);
        let (w, g, m) = (rng.normal_vec(n, 1.0), rng.normal_vec(n, 0.1), rng.normal_vec(n, 0.1));
        let v: Vec<f32> = rng.normal_vec(n, 0.1).iter().map(|x| x * x).collect();
        let double = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
        let scaled: Vec<f64> = g.iter().map(|g| f64::from(g * scale)).collect();
        let (w64, m64, v64) = reference::adamw_step(&p, step, &double(&w), &scaled, &double(&m), &double(&v));
        let got = on_every_isa("adamw f32", |_| {
            let (mut w, mut m, mut v) = (Guarded::input(&w), m.clone(), v.clone());
            ops::adamw_step(&p, step, w.as_mut_slice(), &g, scale, &mut m, &mut v).unwrap();
            w.check().unwrap();
            [w.as_slice().to_vec(), m, v].concat()
        });
        // w: the product with the decay and the difference; and the quotient, off by some roundings of its own.
        let bounds: Vec<f64> = (0..n).map(|i| 16.0 * U * (w64[i] - f64::from(w[i])).abs()).collect();
        Tolerance::ulps(2.0).and_absolute(2.0 * U * 1e-2 * 20.0).check_bounded("w", &got[..n], &w64, &bounds).unwrap();
        let bounds: Vec<f64> = (0..n).map(|i| 3.0 * U * (f64::from(m[i].abs()) + scaled[i].abs())).collect();
        Tolerance::EXACT.check_bounded("m", &got[n..2 * n], &m64, &bounds).unwrap();
        Tolerance::relative(5.0 * U).check("v", &got[2 * n..], &v64).unwrap();

        // In bf16 the moments are those of the f32 step from the same start, rounded.
        let round = |x: &[f32]| x.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<bf16>>();
        let widen = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
        let (m16, v16) = (round(&m), round(&v));
        let (mut w32, mut m32, mut v32) = (w.clone(), widen(&m16), widen(&v16));
        ops::adamw_step(&p, step, &mut w32, &g, scale, &mut m32, &mut v32).unwrap();
        let got = on_every_isa("adamw bf16", |_| {
            let (mut w, mut m, mut v) = (w.clone(), m16.clone(), v16.clone());
            ops::adamw_step(&p, step, &mut w, &g, scale, &mut m, &mut v).unwrap();
            [w, widen(&m), widen(&v)].concat()
        });
        assert_bits_eq("bf16", &got, &[w32, widen(&round(&m32)), widen(&round(&v32))].concat());
    }
}

/// Every f32 exponent and sign, many mantissas: within 1 ulp, and the special values.
#[test]
fn exp_is_within_one_ulp() {
    let mut rng = Rng::new(1);
    let mut x: Vec<f32> = (0..60_000).map(|i| -104.5 + i as f32 * (193.5 / 60_000.0)).collect();
    x.extend(rng.spread_vec(5_000, -30, 7));
    x.extend(rng.bits_vec(2_000));
    x.extend([
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        88.722_84,
        88.722_85,
        -87.336_55,
        -103.972_08,
        -103.972_1,
        1e30,
        -1e30,
    ]);
    let y = on_every_isa("exp", |_| {
        output(x.len(), |y| ops::exp(&x, y).unwrap()).iter().map(|y| if y.is_nan() { f32::NAN } else { *y }).collect()
    });
    let expected: Vec<f64> = x.iter().map(|x| f64::from(*x).exp()).collect();
    Tolerance::ulps(1.0).check("exp", &y, &expected).unwrap();
    let at = |value: f32| y[x.iter().rposition(|x| x.to_bits() == value.to_bits()).unwrap()];
    assert_eq!((at(0.0), at(-0.0), at(f32::INFINITY), at(f32::NEG_INFINITY)), (1.0, 1.0, f32::INFINITY, 0.0));
    assert!(at(f32::NAN).is_nan());
}

#[test]
fn large_inputs_do_not_overflow() {
    let mut y = [f32::NAN; 4];
    ops::swiglu(&[200.0, -200.0, 1e30, -1e30, 1.0, 1.0, 1.0, 1.0], 4, &mut y).unwrap();
    assert_eq!(y, [200.0, 0.0, 1e30, 0.0]);
    let mut dx = [f32::NAN; 8];
    ops::swiglu_backward(&[1.0; 4], &[200.0, -200.0, 1e30, -1e30, 1.0, 1.0, 1.0, 1.0], 4, &mut dx).unwrap();
    assert_eq!(dx, [1.0, 0.0, 1.0, 0.0, 200.0, 0.0, 1e30, 0.0]);
    let mut row = [f32::NEG_INFINITY, 1e30, 1e30, -1e30];
    ops::softmax_rows(&mut row, 4).unwrap();
    assert_eq!(row, [0.0, 0.5, 0.5, 0.0]);
}

/// Larger than a task, so that work is really cut; every number of threads gives the bits of one.
#[test]
fn same_bits_for_every_number_of_threads() {
    let (t, d) = (300, 520);
    let mut rng = Rng::new(2);
    let (x, dy, weight) = (rng.normal_vec(t * d, 1.0), rng.normal_vec(t * d, 1.0), rng.normal_vec(d, 1.0));
    let ids: Vec<u32> = (0..t).map(|_| rng.below(7) as u32).collect();
    let run = || {
        let (mut y, mut rstd, mut dx, mut dw) = (poisoned(t * d), poisoned(t), poisoned(t * d), vec![1.0; d]);
        ops::rms_norm(&x, &weight, 1e-6, &mut y, &mut rstd).unwrap();
        ops::rms_norm_backward_input(&dy, &x, &weight, &rstd, &mut dx).unwrap();
        ops::rms_norm_backward_weight(&dy, &x, &rstd, &mut dw).unwrap();
        let (mut gated, mut dgated) = (poisoned(t * d / 2), poisoned(t * d));
        ops::swiglu(&x, d / 2, &mut gated).unwrap();
        ops::swiglu_backward(&dy[..t * d / 2], &x, d / 2, &mut dgated).unwrap();
        let (mut rows, mut table) = (poisoned(t * d), vec![0.5; 7 * d]);
        ops::embedding_gather(&ids, &x[..7 * d], d, &mut rows).unwrap();
        ops::embedding_scatter_add(&ids, &dy, d, &mut table).unwrap();
        let (mut w, mut m, mut v) =
            (x.clone(), vec![bf16::ZERO; t * d], vec![0.0f32; t * d].iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>());
        let p = AdamWParams { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
        ops::adamw_step(&p, 1, &mut w, &dy, 1.0, &mut m, &mut v).unwrap();
        let mut soft = x.clone();
        ops::softmax_rows(&mut soft, d).unwrap();
        let norm = ops::sum_squares(&x).to_bits();
        let norm = [f32::from_bits(norm as u32), f32::from_bits((norm >> 32) as u32)];
        [y, rstd, dx, dw, gated, dgated, rows, table, w, soft, norm.to_vec()].concat()
    };
    let first = run();
    #[cfg(feature = "rayon")]
    for threads in [1, 2, 3] {
        let again = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run);
        assert_bits_eq(&format!("{threads} threads"), &again, &first);
    }
    assert_bits_eq("again", &run(), &first);
    // d = 520 dw sums 300 rows; U-relative to the sum of magnitudes.
    let expected = reference::sum_squares(&x);
    assert!((ops::sum_squares(&x) - expected).abs() <= 1e-12 * expected);
    assert!((ops::global_norm(&[&x[..1000], &x[1000..]]) - expected.sqrt()).abs() <= 1e-12 * expected);
}

#[test]
fn strided_rows_equal_contiguous_rows() {
    let (t, d, wide) = (5, 21, 50);
    let mut rng = Rng::new(3);
    let (x, dy, weight) = (rng.normal_vec(t * wide, 1.0), rng.normal_vec(t * wide, 1.0), rng.normal_vec(d, 1.0));
    let slice = |x: &[f32]| x.chunks(wide).flat_map(|row| row[7..7 + d].to_vec()).collect::<Vec<f32>>();
    let view = |x: &'static [f32]| MatRef::new(x, t, wide).unwrap().col_range(7..7 + d).unwrap();
    let (x, dy): (&'static [f32], &'static [f32]) = (x.leak(), dy.leak());
    let (mut y, mut rstd, mut y2, mut rstd2) = (poisoned(t * d), poisoned(t), vec![9.0; t * wide], poisoned(t));
    ops::rms_norm(&slice(x), &weight, 1e-5, &mut y, &mut rstd).unwrap();
    let out = MatMut::new(&mut y2, t, wide).unwrap().col_range(7..7 + d).unwrap();
    ops::rms_norm_strided(view(x), &weight, 1e-5, out, &mut rstd2).unwrap();
    assert_bits_eq("y", &slice(&y2), &y);
    assert_bits_eq("rstd", &rstd2, &rstd);
    assert_eq!(y2.iter().filter(|y| **y == 9.0).count(), t * (wide - d));
    let (mut dx, mut dx2) = (poisoned(t * d), vec![9.0; t * wide]);
    ops::rms_norm_backward_input(&slice(dy), &slice(x), &weight, &rstd, &mut dx).unwrap();
    let out = MatMut::new(&mut dx2, t, wide).unwrap().col_range(7..7 + d).unwrap();
    ops::rms_norm_backward_input_strided(view(dy), view(x), &weight, &rstd, out).unwrap();
    assert_bits_eq("dx", &slice(&dx2), &dx);
    let (mut dw, mut dw2) = (vec![0.0; d], vec![0.0; d]);
    ops::rms_norm_backward_weight(&slice(dy), &slice(x), &rstd, &mut dw).unwrap();
    ops::rms_norm_backward_weight_strided(view(dy), view(x), &rstd, &mut dw2).unwrap();
    assert_bits_eq("dw", &dw2, &dw);
    assert!(
        ops::rms_norm_strided(view(x).t(), &weight, 1e-5, MatMut::new(&mut poisoned(d * t), d, t).unwrap(), &mut [0.0; 21])
            .is_err()
    );
}

#[test]
fn wrong_arguments_are_refused() {
    let mut y = [7.0f32; 6];
    let mut r = [7.0f32; 3];
    assert!(ops::rms_norm(&[1.0; 6], &[1.0; 4], 1e-6, &mut y, &mut r).is_err());
    assert!(ops::rms_norm(&[1.0; 6], &[1.0; 2], 1e-6, &mut y, &mut r[..2]).is_err());
    assert!(ops::rms_norm(&[1.0; 6], &[], 1e-6, &mut y, &mut r).is_err());
    assert!(ops::swiglu(&[1.0; 6], 2, &mut y[..4]).is_err());
    assert!(ops::swiglu(&[1.0; 6], 0, &mut y[..0]).is_err());
    assert!(ops::exp(&[1.0; 5], &mut y).is_err());
    assert!(ops::softmax_rows(&mut y, 4).is_err());
    let err = ops::embedding_gather(&[1, 3], &[0.0; 9], 3, &mut y).unwrap_err().to_string();
    assert_eq!(err, "token id: 3 is out of range, there are 3");
    assert!(ops::embedding_scatter_add(&[1, 3], &[0.0; 6], 3, &mut [0.0; 9]).is_err());
    let p = AdamWParams { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    assert!(ops::adamw_step(&p, 0, &mut y, &[0.0; 6], 1.0, &mut [0.0f32; 6], &mut [0.0f32; 6]).is_err());
    assert!(ops::adamw_step(&p, 1, &mut y, &[0.0; 6], 1.0, &mut [0.0f32; 5], &mut [0.0f32; 6]).is_err());
    assert_eq!(y, [7.0; 6]);
    // No rows, and rows of nothing, are fine.
    ops::rms_norm(&[], &[1.0; 2], 1e-6, &mut [], &mut []).unwrap();
    ops::rms_norm(&[], &[], 1e-6, &mut [], &mut r).unwrap();
    ops::softmax_rows(&mut [], 0).unwrap();
    ops::swiglu(&[], 0, &mut []).unwrap();
    ops::embedding_gather(&[], &[], 0, &mut []).unwrap();
}

#[test]
fn clipping() {
    assert_eq!(ops::clip_factor(0.5, 1.0), 1.0);
    assert_eq!(ops::clip_factor(0.0, 1.0), 1.0);
    assert!((ops::clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
}
