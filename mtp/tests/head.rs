//! The fused head against the reference, and what it promises beyond closeness: bits.

use mtp::{Error, GradScale, Head, head_backward, head_backward_input, head_backward_weight, head_forward, reference};
use proptest::prelude::*;
use v3_numerics::cpu::{Isa, with_isa};
use v3_testkit::{Rng, assert_bits_eq, backend::for_each_available, poison::Guarded};

/// Half an ulp of f32 relative to the value.
const U: f64 = 1.0 / (1u64 << 24) as f64;
/// What an exponential may be off, relatively; `v3_numerics::ops::exp` states less.
const EXP: f64 = 4.0 * U;

fn config(cases: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    // The environment variable PROPTEST_CASES can ask for fewer.
    ProptestConfig { failure_persistence: None, cases: cases.min(default.cases), ..default }
}

struct Case {
    h: Vec<f32>,
    w: Vec<f32>,
    targets: Vec<i64>,
    scale: Vec<f32>,
    hidden: usize,
    vocab: usize,
}

impl Case {
    fn new(tokens: usize, hidden: usize, vocab: usize, seed: u64) -> Case {
        let mut rng = Rng::new(seed);
        Case {
            h: rng.normal_vec(tokens * hidden, 1.0),
            w: rng.normal_vec(vocab * hidden, 2.0 / (hidden.max(1) as f32).sqrt()),
            targets: (0..tokens)
                .map(|_| rng.below(vocab + vocab.div_ceil(4)) as i64)
                .map(|t| if t < vocab as i64 { t } else { -1 })
                .collect(),
            scale: rng.uniform_vec(tokens, -1.0, 1.0),
            hidden,
            vocab,
        }
    }

    fn head(&self) -> Head<'_> {
        Head { h: &self.h, w: &self.w, targets: &self.targets, hidden: self.hidden, vocab: self.vocab }
    }

    fn tokens(&self) -> usize {
        self.targets.len()
    }

    /// Everything the head computes, outputs poisoned first; `dw` begins at `dw`.
    fn run(&self, dw: &[f32]) -> All {
        let out = head_forward(&self.head()).unwrap();
        let mut dh = Guarded::output(self.h.len());
        let mut dw_buffer = Guarded::input(dw);
        let scale = GradScale::PerToken(&self.scale);
        head_backward_input(&self.head(), &out.lse, scale, dh.as_mut_slice()).unwrap();
        head_backward_weight(&self.head(), &out.lse, scale, dw_buffer.as_mut_slice()).unwrap();
        dh.check().unwrap();
        dw_buffer.check().unwrap();
        All { loss: out.loss, lse: out.lse, argmax: out.argmax, dh: dh.as_slice().to_vec(), dw: dw_buffer.as_slice().to_vec() }
    }
}

struct All {
    loss: Vec<f32>,
    lse: Vec<f32>,
    argmax: Vec<u32>,
    dh: Vec<f32>,
    dw: Vec<f32>,
}

impl All {
    fn assert_same(&self, other: &All, what: &str) {
        assert_bits_eq(&format!("loss, {what}"), &self.loss, &other.loss);
        assert_bits_eq(&format!("lse, {what}"), &self.lse, &other.lse);
        assert_eq!(self.argmax, other.argmax, "{what}");
        assert_bits_eq(&format!("dh, {what}"), &self.dh, &other.dh);
        assert_bits_eq(&format!("dw, {what}"), &self.dw, &other.dw);
    }
}

fn in_pool<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

fn assert_within(what: &str, got: &[f32], want: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        // Written so that a NaN fails.
        assert!((f64::from(got) - want).abs() <= bound(i), "{what}[{i}]: {got} against {want}, bound {:e}", bound(i));
    }
}

/// Compares with the reference under bounds that follow from the order of summation; `U` is the unit roundoff.
fn check_against_reference(case: &Case) {
    let (tokens, hidden, vocab) = (case.tokens(), case.hidden, case.vocab);
    let got = case.run(&vec![0.0; case.w.len()]);
    let logits = reference::logits(&case.h, &case.w, hidden, vocab, tokens);
    let (loss, lse) = reference::cross_entropy(&logits, vocab, &case.targets);

    // A chain of `hidden` fused multiply-adds is off by at most hidden * U * sum |h| |w|.
    let abs = |x: &[f32]| x.iter().map(|x| x.abs()).collect::<Vec<_>>();
    let magnitude = reference::logits(&abs(&case.h), &abs(&case.w), hidden, vocab, tokens);
    let logit_error: Vec<f64> = magnitude.iter().map(|m| hidden as f64 * U * m).collect();
    let worst: Vec<f64> = logit_error.chunks(vocab).map(|e| e.iter().copied().fold(0.0, f64::max)).collect();
    // lse moves by at most the largest error of a logit. The exponentials: EXP each, U |x - max| from the subtraction,
    // whose average under the softmax is at most the entropy, ln V. The sum itself is in f64.
    let sum_error = EXP + U * (vocab as f64).ln();
    let lse_error = |t: usize| worst[t] + sum_error + U * lse[t].abs() + 1e-30;
    assert_within("lse", &got.lse, &lse, lse_error);
    assert_within("loss", &got.loss, &loss, |t| {
        if case.targets[t] < 0 { 0.0 } else { 2.0 * worst[t] + sum_error + U * loss[t].abs() + 1e-30 }
    });
    for t in 0..tokens {
        let row = &logits[t * vocab..][..vocab];
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        assert!(row[got.argmax[t] as usize] >= max - 2.0 * worst[t], "argmax of row {t}");
    }

    let scale: Vec<f64> = case.scale.iter().map(|&s| f64::from(s)).collect();
    let grads = reference::cross_entropy_backward(&logits, vocab, &case.targets, &scale);
    // p = exp(x - lse): relative error from both, from the subtraction and from exp; then two roundings of the result.
    let grad_error: Vec<f64> = (0..grads.len())
        .map(|i| {
            let t = i / vocab;
            let p = (logits[i] - lse[t]).exp();
            let relative = logit_error[i] + lse_error(t) + U * (logits[i] - lse[t]).abs() + EXP;
            scale[t].abs() * (p * relative + 2.0 * U) + 1e-37
        })
        .collect();
    let dh = reference::head_backward_input(&grads, &case.w, hidden, vocab);
    let dw = reference::head_backward_weight(&grads, &case.h, hidden, vocab);
    // Errors of the logits' gradients carried over, and the sums': a chain and the additions of its chunks.
    let with_sum_error =
        |terms: f64| -> Vec<f64> { grads.iter().zip(&grad_error).map(|(g, e)| e + terms * U * (g.abs() + e)).collect() };
    let dh_bound = reference::head_backward_input(&with_sum_error(vocab as f64 + 2.0), &abs(&case.w), hidden, vocab);
    let dw_bound = reference::head_backward_weight(&with_sum_error(tokens as f64 + 2.0), &abs(&case.h), hidden, vocab);
    assert_within("dh", &got.dh, &dh, |i| dh_bound[i] + 1e-37);
    assert_within("dw", &got.dw, &dw, |i| dw_bound[i] + 1e-37);
}

#[test]
fn every_size_around_the_blocks() {
    for (tokens, hidden, vocab) in [
        (0, 3, 5),
        (1, 0, 4),
        (1, 1, 1),
        (3, 7, 2),
        (2, 5, 511),
        (2, 5, 512),
        (2, 5, 513),
        (17, 16, 1031),
        (511, 3, 7),
        (512, 3, 7),
        (513, 3, 7),
        (1030, 2, 517),
    ] {
        check_against_reference(&Case::new(tokens, hidden, vocab, (tokens * 31 + vocab) as u64));
    }
}

proptest! {
    #![proptest_config(config(40))]

    #[test]
    fn equals_the_reference(tokens in 0usize..40, hidden in 0usize..40, vocab in 1usize..700, seed: u64) {
        check_against_reference(&Case::new(tokens, hidden, vocab, seed));
    }

    #[test]
    fn threads_change_no_bit(tokens in 1usize..600, hidden in 1usize..20, vocab in 1usize..600, seed: u64) {
        let case = Case::new(tokens, hidden, vocab, seed);
        let dw = Rng::new(seed ^ 1).normal_vec(case.w.len(), 1.0);
        let one = in_pool(1, || case.run(&dw));
        for threads in [2, 3] {
            in_pool(threads, || case.run(&dw)).assert_same(&one, &format!("{threads} threads"));
        }
    }

    #[test]
    fn rows_do_not_see_each_other(tokens in 2usize..40, hidden in 1usize..20, vocab in 1usize..600, seed: u64) {
        let case = Case::new(tokens, hidden, vocab, seed);
        let all = case.run(&vec![0.0; case.w.len()]);
        let at = seed as usize % tokens;
        let alone = Case {
            h: case.h[at * hidden..(at + 1) * hidden].to_vec(),
            w: case.w.clone(),
            targets: vec![case.targets[at]],
            scale: vec![case.scale[at]],
            ..case
        };
        let row = alone.run(&vec![0.0; alone.w.len()]);
        prop_assert_eq!(row.loss[0].to_bits(), all.loss[at].to_bits());
        prop_assert_eq!(row.argmax[0], all.argmax[at]);
        assert_bits_eq("dh of one row", &row.dh, &all.dh[at * hidden..(at + 1) * hidden]);
    }

    #[test]
    fn finished_weight_gradient_is_added_once(tokens in 1usize..1100, vocab in 1usize..40, seed: u64) {
        let case = Case::new(tokens, 3, vocab, seed);
        let before = Rng::new(seed ^ 2).normal_vec(case.w.len(), 1.0);
        let fresh = case.run(&vec![0.0; case.w.len()]).dw;
        let expected: Vec<f32> = before.iter().zip(&fresh).map(|(b, f)| b + f).collect();
        assert_bits_eq("dw", &case.run(&before).dw, &expected);
    }

    #[test]
    fn both_gradients_at_once_have_the_same_bits(tokens in 1usize..600, hidden in 1usize..9, vocab in 1usize..600, seed: u64) {
        let case = Case::new(tokens, hidden, vocab, seed);
        let before = Rng::new(seed ^ 3).normal_vec(case.w.len(), 1.0);
        let apart = case.run(&before);
        let (mut dh, mut dw) = (Guarded::output(case.h.len()), Guarded::input(&before));
        head_backward(&case.head(), &apart.lse, GradScale::PerToken(&case.scale), dh.as_mut_slice(), dw.as_mut_slice()).unwrap();
        assert_bits_eq("dh", dh.as_slice(), &apart.dh);
        assert_bits_eq("dw", dw.as_slice(), &apart.dw);
        prop_assert!(dh.check().is_ok() && dw.check().is_ok());
    }
}

#[test]
fn instruction_sets_agree_on_every_bit() {
    for (tokens, hidden, vocab) in [(33, 17, 1031), (5, 64, 512)] {
        let case = Case::new(tokens, hidden, vocab, 11);
        let dw = vec![0.5; case.w.len()];
        let run = |isa| in_pool(1, || with_isa(isa, || case.run(&dw)).unwrap());
        let portable = run(Isa::Portable);
        let ran = for_each_available(
            "head",
            &Isa::ALL,
            |isa| isa.name(),
            Isa::is_available,
            |isa| {
                run(isa).assert_same(&portable, isa.name());
            },
        );
        assert!(ran >= 1);
    }
}

#[test]
fn one_scale_for_all_is_the_same_as_one_for_each() {
    let mut case = Case::new(20, 8, 30, 5);
    case.scale.fill(0.125);
    let each = case.run(&vec![0.0; case.w.len()]);
    let mut dh = vec![f32::NAN; case.h.len()];
    head_backward_input(&case.head(), &each.lse, GradScale::Uniform(0.125), &mut dh).unwrap();
    assert_bits_eq("dh", &dh, &each.dh);
}

#[test]
fn ignored_rows_give_and_take_nothing() {
    let mut case = Case::new(9, 4, 20, 6);
    case.targets.fill(-1);
    let before = vec![1.5; case.w.len()];
    let got = case.run(&before);
    assert_eq!(got.loss, [0.0; 9]);
    assert!(got.dh.iter().all(|&x| x == 0.0));
    assert_eq!(got.dw, before);
}

#[test]
fn ties_go_to_the_lowest_token() {
    // Two equal logits in one chunk of the vocabulary, and a third in another.
    let mut w = vec![0.0; 1200];
    (w[7], w[9], w[1100]) = (2.0, 2.0, 2.0);
    let out = head_forward(&Head { h: &[1.0], w: &w, targets: &[3], hidden: 1, vocab: 1200 }).unwrap();
    assert_eq!(out.argmax, [7]);
    let out = head_forward(&Head { h: &[0.0], w: &w, targets: &[3], hidden: 1, vocab: 1200 }).unwrap();
    assert_eq!(out.argmax, [0]);
    assert!((f64::from(out.loss[0]) - 1200f64.ln()).abs() < 1e-6);
}

#[test]
fn a_nan_anywhere_shows_in_the_loss() {
    for bad in [0, 5, 511, 512, 699] {
        let mut w = vec![0.25; 700];
        w[bad] = f32::NAN;
        let out = head_forward(&Head { h: &[1.0], w: &w, targets: &[3], hidden: 1, vocab: 700 }).unwrap();
        assert!(out.loss[0].is_nan(), "NaN at {bad} gave {}", out.loss[0]);
    }
    let out = head_forward(&Head { h: &[f32::NAN], w: &[1.0; 700], targets: &[3], hidden: 1, vocab: 700 }).unwrap();
    assert!(out.loss[0].is_nan());
}

#[test]
fn large_and_impossible_logits() {
    let head = |w: &[f32], target| {
        let out = head_forward(&Head { h: &[1.0], w, targets: &[target], hidden: 1, vocab: w.len() }).unwrap();
        (out.loss[0], out.lse[0])
    };
    assert_eq!(head(&[1e30, 0.0], 0), (0.0, 1e30));
    assert_eq!(head(&[1e30, 0.0], 1).0, 1e30);
    let (loss, _) = head(&[f32::NEG_INFINITY, 0.0], 0);
    assert_eq!(loss, f32::INFINITY);
    assert_eq!(head(&[f32::NEG_INFINITY, 0.0], 1), (0.0, 0.0));
    // A token predicted with near certainty keeps its small loss: e^-20, far below an ulp of the logit.
    let (loss, _) = head(&[1000.0, 980.0], 0);
    assert!((f64::from(loss) / (-20f64).exp() - 1.0).abs() < 1e-5, "{loss:e}");
}

/// The reference's own gradient, by central differences of its loss.
#[test]
fn reference_gradient_is_the_derivative_of_the_reference_loss() {
    let logits: Vec<f64> = (0..12).map(|i| f64::from(i * i % 7) * 0.3).collect();
    let (targets, scale) = ([2, -1, 0], [0.5, 2.0, -1.0]);
    let total = |x: &[f64]| -> f64 { reference::cross_entropy(x, 4, &targets).0.iter().zip(&scale).map(|(l, s)| l * s).sum() };
    let grad = reference::cross_entropy_backward(&logits, 4, &targets, &scale);
    for i in 0..12 {
        let moved = |by: f64| {
            let mut x = logits.clone();
            x[i] += by;
            total(&x)
        };
        let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        // Truncation 1e-10, cancellation 1e-16 / 1e-5.
        assert!((slope - grad[i]).abs() < 1e-9, "{i}: {slope} {}", grad[i]);
    }
}

#[test]
fn wrong_arguments_are_errors() {
    let case = Case::new(4, 3, 5, 1);
    let good = case.head();
    let lse = head_forward(&good).unwrap().lse;
    let shape = |r: Result<(), Error>| matches!(r, Err(Error::Shape { .. }));
    let forward = |head: Head<'_>| head_forward(&head).map(|_| ());
    assert!(shape(forward(Head { h: &case.h[1..], ..good })));
    assert!(shape(forward(Head { w: &case.w[1..], ..good })));
    assert!(shape(forward(Head { hidden: usize::MAX, ..good })));
    assert!(matches!(forward(Head { vocab: 0, w: &[], ..good }), Err(Error::Parameter { .. })));
    for bad in [-2, 5, i64::MIN, i64::MAX] {
        let targets = [0, 1, bad, 2];
        let error = forward(Head { targets: &targets, ..good }).unwrap_err();
        assert_eq!(error, Error::Token { what: "targets", index: 2, value: bad, vocab: 5 });
    }
    let (mut dh, mut dw) = (vec![0.0; 12], vec![0.0; 15]);
    let one = GradScale::Uniform(1.0);
    assert!(shape(head_backward_input(&good, &lse[1..], one, &mut dh)));
    assert!(shape(head_backward_input(&good, &lse, one, &mut dh[1..])));
    assert!(shape(head_backward_input(&good, &lse, GradScale::PerToken(&[1.0]), &mut dh)));
    assert!(shape(head_backward_weight(&good, &lse, one, &mut dw[1..])));
    assert!(shape(head_backward(&good, &lse, one, &mut dh, &mut dw[1..])));
    assert!(dh.iter().chain(&dw).all(|&x| x == 0.0), "an error left something behind");
}
