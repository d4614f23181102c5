//! Prefill against the reference, on every instruction set.

mod common;

use common::{EPS, Problem, max_abs, on_every_isa};
use mla_kernels::{Error, PrefillShape, prefill_forward, reference};
use proptest::prelude::*;
use v3_testkit::{Tolerance, assert_bits_eq};

fn shape(heads: usize, d_nope: usize, d_rope: usize, d_v: usize) -> PrefillShape {
    PrefillShape { heads, d_nope, d_rope, d_v }
}

/// Forward and backward are within the bounds of rounding of the reference.
fn check_against_reference(p: &Problem, what: &str) {
    let got = p.solve();
    let w = reference::widen;
    let (q, kv, k_rope, dout) = (w(&p.q), w(&p.kv), w(&p.k_rope), w(&p.dout));
    let scale = f64::from(p.scale);
    let (out, lse) = reference::prefill_forward(&p.shape, scale, &p.cu_seqlens, &q, &kv, &k_rope);
    let (dq, dkv, dk_rope) = reference::prefill_backward(&p.shape, scale, &p.cu_seqlens, &q, &kv, &k_rope, &dout);
    let n = p.longest() as f64;
    let weight = p.weight_bound();
    let (v, g) = (max_abs(&p.kv), max_abs(&p.dout));
    // The output is an average of values: the weights' error and a chain over the keys.
    let out_bound = v * (weight + 2.0 * n * EPS);
    Tolerance::absolute(out_bound).check(&format!("{what}: out"), &got.out, &out).unwrap();
    Tolerance::absolute(weight).check(&format!("{what}: lse"), &got.lse, &lse).unwrap();
    // A score's gradient is w (dp - delta) scale, |dp|, |delta| <= d_v v g: each is a chain of d_v products, delta has the error of
    // `out` too, and w that of the weights. The sum of w over keys is 1; over queries it is at most their number.
    let d_v = p.shape.d_v as f64;
    let score = f64::from(p.scale) * d_v * g * (2.0 * v * (weight + d_v * EPS) + out_bound + 4.0 * v * EPS);
    let (qk, k) = (max_abs(&p.q), max_abs(&p.kv).max(max_abs(&p.k_rope)));
    let size = f64::from(p.scale) * 2.0 * d_v * g * v;
    let row = score + size * n * EPS;
    Tolerance::absolute(row * k).check(&format!("{what}: dq"), &got.dq, &dq).unwrap();
    let columns = n * (row * qk + g * (weight + n * EPS));
    Tolerance::absolute(columns).check(&format!("{what}: dkv"), &got.dkv, &dkv).unwrap();
    let heads = p.shape.heads as f64;
    Tolerance::absolute(heads * columns).check(&format!("{what}: dk_rope"), &got.dk_rope, &dk_rope).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_shape(
        heads in prop::sample::select(vec![1usize, 2, 3, 5]),
        d_nope in prop::sample::select(vec![0usize, 1, 7, 8, 9, 20, 32]),
        d_rope in prop::sample::select(vec![0usize, 2, 8, 16]),
        d_v in prop::sample::select(vec![1usize, 4, 7, 8, 9, 16, 17, 33]),
        lengths in prop::collection::vec(prop::sample::select(vec![0usize, 1, 2, 7, 8, 9, 16, 31, 32, 33, 65, 97]), 0..4),
        seed in any::<u64>(),
    ) {
        let p = Problem::new(shape(heads, d_nope, d_rope, d_v), &lengths, seed);
        on_every_isa("prefill of any shape", |isa| check_against_reference(&p, isa.name()));
    }
}

#[test]
fn real_head_sizes() {
    let p = Problem::new(shape(2, 128, 64, 128), &[70, 131], 1);
    on_every_isa("prefill at 192/128", |isa| check_against_reference(&p, isa.name()));
}

/// The bounds of rounding hold for the worst case; what rounding does is far smaller, and a slightly wrong formula is not.
fn check_typical_accuracy(p: &Problem, what: &str) {
    let w = reference::widen;
    let (q, kv, k_rope, dout) = (w(&p.q), w(&p.kv), w(&p.k_rope), w(&p.dout));
    let scale = f64::from(p.scale);
    let (out, lse) = reference::prefill_forward(&p.shape, scale, &p.cu_seqlens, &q, &kv, &k_rope);
    let (dq, dkv, dk_rope) = reference::prefill_backward(&p.shape, scale, &p.cu_seqlens, &q, &kv, &k_rope, &dout);
    let got = p.solve();
    let check = |name: &str, got: &[f32], expected: &[f64]| {
        let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        Tolerance::absolute(1e-6 * largest).check(&format!("{what}: {name}"), got, expected).unwrap();
    };
    check("out", &got.out, &out);
    check("lse", &got.lse, &lse);
    check("dq", &got.dq, &dq);
    check("dkv", &got.dkv, &dkv);
    check("dk_rope", &got.dk_rope, &dk_rope);
}

#[test]
fn typical_accuracy() {
    // The second has more heads than the sum of `dk_rope` has groups, so that groups hold several, the last one fewer.
    for (shape, lengths) in [(shape(2, 32, 16, 32), vec![256]), (shape(37, 4, 6, 5), vec![9, 40])] {
        let p = Problem::new(shape, &lengths, 10);
        on_every_isa("accuracy of prefill", |isa| check_typical_accuracy(&p, isa.name()));
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    for (s, lengths) in [(shape(3, 20, 8, 17), vec![45, 0, 300]), (shape(2, 32, 16, 32), vec![256, 7])] {
        let p = Problem::new(s, &lengths, 2);
        let mut first = None;
        on_every_isa("bits of prefill", |isa| {
            let got = p.solve();
            let expected = first.get_or_insert_with(|| got.clone());
            assert_eq!(&got, expected, "{isa}");
        });
    }
}

#[cfg(feature = "rayon")]
#[test]
fn every_number_of_threads_gives_the_same_bits() {
    let p = Problem::new(shape(19, 12, 4, 8), &[40, 3, 77, 100], 3);
    let solve = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| p.solve());
    let expected = solve(1);
    for threads in [2, 3, 8] {
        assert_eq!(solve(threads), expected, "{threads} threads");
    }
}

/// Rows `range` of `p` as a problem of one sequence.
fn cut(p: &Problem, range: std::ops::Range<usize>) -> Problem {
    let s = p.shape;
    let rows = |x: &[f32], width: usize| x[range.start * width..range.end * width].to_vec();
    Problem {
        shape: s,
        scale: p.scale,
        cu_seqlens: vec![0, range.len()],
        q: rows(&p.q, s.heads * s.d_qk()),
        kv: rows(&p.kv, s.heads * s.d_kv()),
        k_rope: rows(&p.k_rope, s.d_rope),
        dout: rows(&p.dout, s.heads * s.d_v),
    }
}

#[test]
fn a_row_does_not_see_other_sequences_or_later_tokens() {
    let p = Problem::new(shape(2, 9, 4, 11), &[33, 290, 5], 4);
    on_every_isa("isolation of rows", |_| {
        let (out, lse) = p.forward();
        for kept in [1usize, 8, 31, 32, 33, 64, 129, 200, 289] {
            // The tokens after the ones kept are gone in one run, and NaN in the other.
            let (cut_out, cut_lse) = cut(&p, 33..33 + kept).forward();
            assert_bits_eq("out", &cut_out, &out[33 * 22..(33 + kept) * 22]);
            assert_bits_eq("lse", &cut_lse, &lse[33 * 2..(33 + kept) * 2]);
            let mut poisoned = p.clone();
            poisoned.kv[(33 + kept) * 2 * 20..].fill(f32::NAN);
            poisoned.k_rope[(33 + kept) * 4..].fill(f32::NAN);
            poisoned.q[(33 + kept) * 2 * 13..].fill(f32::NAN);
            let mut o = vec![0.0; out.len()];
            let mut l = vec![0.0; lse.len()];
            let (q, kv, k_rope) = (&poisoned.q, &poisoned.kv, &poisoned.k_rope);
            prefill_forward(&p.shape, p.scale, &p.cu_seqlens, q, kv, k_rope, &mut o, &mut l).unwrap();
            assert_bits_eq("out before NaN", &o[..(33 + kept) * 22], &out[..(33 + kept) * 22]);
            assert!(o[(33 + kept) * 22..].iter().all(|x| x.is_nan()));
        }
    });
}

#[test]
fn sequences_have_the_same_gradients_alone() {
    let p = Problem::new(shape(3, 8, 8, 8), &[33, 130, 64], 5);
    let all = p.solve();
    for bounds in p.cu_seqlens.windows(2) {
        let alone = cut(&p, bounds[0]..bounds[1]).solve();
        let rows = |x: &[f32], width: usize| x[bounds[0] * width..bounds[1] * width].to_vec();
        assert_bits_eq("dq", &alone.dq, &rows(&all.dq, 3 * 16));
        assert_bits_eq("dkv", &alone.dkv, &rows(&all.dkv, 3 * 16));
        assert_bits_eq("dk_rope", &alone.dk_rope, &rows(&all.dk_rope, 8));
    }
}

#[test]
fn large_scores_neither_overflow_nor_vanish() {
    let mut p = Problem::new(shape(1, 8, 0, 8), &[150], 6);
    p.q.iter_mut().for_each(|x| *x *= 300.0);
    on_every_isa("large scores", |isa| check_against_reference(&p, isa.name()));
}

/// The gradients of the reference are those of its forward, by central differences.
#[test]
fn reference_gradients_by_finite_differences() {
    let p = Problem::new(shape(2, 3, 2, 3), &[4, 1, 6], 7);
    let w = reference::widen;
    let scale = f64::from(p.scale);
    let dout = w(&p.dout);
    let inputs = [w(&p.q), w(&p.kv), w(&p.k_rope)];
    let loss = |x: &[Vec<f64>; 3]| -> f64 {
        let (out, _) = reference::prefill_forward(&p.shape, scale, &p.cu_seqlens, &x[0], &x[1], &x[2]);
        out.iter().zip(&dout).map(|(o, g)| o * g).sum()
    };
    let (dq, dkv, dk_rope) =
        reference::prefill_backward(&p.shape, scale, &p.cu_seqlens, &inputs[0], &inputs[1], &inputs[2], &dout);
    for (which, gradient) in [dq, dkv, dk_rope].iter().enumerate() {
        let numerical: Vec<f64> = (0..gradient.len())
            .map(|i| {
                let step = 1e-5;
                let at = |delta: f64| {
                    let mut x = inputs.clone();
                    x[which][i] += delta;
                    loss(&x)
                };
                (at(step) - at(-step)) / (2.0 * step)
            })
            .collect();
        // Third derivatives of a softmax of scores of order 1 times step^2, and cancellation 1e-16 / step.
        Tolerance::absolute(2e-8).check("finite differences", gradient, &numerical).unwrap();
    }
}

#[test]
fn wrong_arguments_are_refused() {
    let s = shape(2, 4, 2, 3);
    let p = Problem::new(s, &[5], 8);
    let run = |scale: f32, cu: &[usize], q: &[f32], out: usize| {
        let (mut out, mut lse) = (vec![0.0; out], vec![0.0; 10]);
        prefill_forward(&s, scale, cu, q, &p.kv, &p.k_rope, &mut out, &mut lse)
    };
    assert!(run(1.0, &[0, 5], &p.q, 30).is_ok());
    for cu in [&[][..], &[1, 5], &[0, 6], &[0, 6, 5], &[0, 4]] {
        assert!(matches!(run(1.0, cu, &p.q, 30), Err(Error::Shape { .. })), "{cu:?}");
    }
    assert!(matches!(run(1.0, &[0, 5], &p.q[1..], 30), Err(Error::Shape { what: "q", .. })));
    assert!(matches!(run(1.0, &[0, 5], &p.q, 29), Err(Error::Shape { what: "out", .. })));
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(matches!(run(scale, &[0, 5], &p.q, 30), Err(Error::Parameter { .. })), "{scale}");
    }
    let huge = PrefillShape { heads: usize::MAX, d_nope: 4, d_rope: 4, d_v: 4 };
    assert!(prefill_forward(&huge, 1.0, &[0, 2], &[], &[], &[], &mut [], &mut []).is_err());
}
