//! Module entry, targets, sampler, statistics and greedy verification against the reference.

use mtp::{
    AcceptanceStats, Averaging, Draft, Error, LossWeights, MergeNorms, MergeSaved, RequestRng, Sampler, TokenBatch, Uniform,
    Verdict, argmax, merge_backward_input, merge_backward_weight, merge_forward, project, project_backward_input,
    project_backward_weight, reference, sample, sum_losses, verify_greedy, verify_sampled,
};
use proptest::prelude::*;
use v3_numerics::cpu::{Isa, with_isa};
use v3_testkit::{Rng, assert_bits_eq, backend::for_each_available, poison::Guarded};

/// Half an ulp of f32 relative to the value.
const U: f64 = 1.0 / (1u64 << 24) as f64;

fn config(cases: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    // The environment variable PROPTEST_CASES can ask for fewer.
    ProptestConfig { failure_persistence: None, cases: cases.min(default.cases), ..default }
}

fn assert_within(what: &str, got: &[f32], want: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(got) - want).abs() <= bound(i), "{what}[{i}]: {got} against {want}, bound {:e}", bound(i));
    }
}

fn in_pool<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

// ---- module entry ----

struct Entry {
    emb: Vec<f32>,
    h: Vec<f32>,
    enorm: Vec<f32>,
    hnorm: Vec<f32>,
    dmerged: Vec<f32>,
    tokens: usize,
}

/// Merged rows, both reciprocal deviations, and the four gradients.
type EntryOutputs = [Vec<f32>; 7];

impl Entry {
    fn new(tokens: usize, hidden: usize, seed: u64) -> Entry {
        let mut rng = Rng::new(seed);
        Entry {
            emb: rng.normal_vec(tokens * hidden, 0.02),
            h: rng.normal_vec(tokens * hidden, 3.0),
            enorm: rng.uniform_vec(hidden, 0.5, 1.5),
            hnorm: rng.uniform_vec(hidden, -1.5, 1.5),
            dmerged: rng.normal_vec(tokens * 2 * hidden, 1.0),
            tokens,
        }
    }

    fn run(&self, dweights: f32) -> EntryOutputs {
        let hidden = self.enorm.len();
        let norms = MergeNorms { enorm: &self.enorm, hnorm: &self.hnorm, eps: 1e-6 };
        let mut merged = Guarded::output(2 * self.emb.len());
        let [mut rstd_emb, mut rstd_h] = [vec![f32::NAN; self.tokens], vec![f32::NAN; self.tokens]];
        merge_forward(&norms, &self.emb, &self.h, merged.as_mut_slice(), &mut rstd_emb, &mut rstd_h).unwrap();
        merged.check().unwrap();
        let saved = MergeSaved { emb: &self.emb, h: &self.h, rstd_emb: &rstd_emb, rstd_h: &rstd_h };
        let (mut demb, mut dh) = (Guarded::output(self.emb.len()), Guarded::output(self.h.len()));
        merge_backward_input(&norms, &saved, &self.dmerged, demb.as_mut_slice(), dh.as_mut_slice()).unwrap();
        demb.check().unwrap();
        dh.check().unwrap();
        let (mut denorm, mut dhnorm) = (vec![dweights; hidden], vec![dweights; hidden]);
        merge_backward_weight(&saved, &self.dmerged, &mut denorm, &mut dhnorm).unwrap();
        let [merged, demb, dh] = [merged, demb, dh].map(|g| g.as_slice().to_vec());
        [merged, rstd_emb.clone(), rstd_h.clone(), demb, dh, denorm, dhnorm]
    }
}

fn assert_same(a: &EntryOutputs, b: &EntryOutputs) {
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert_bits_eq(&format!("output {i}"), a, b);
    }
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn entry_equals_the_reference(tokens in 0usize..30, hidden in 1usize..80, seed: u64) {
        let case = Entry::new(tokens, hidden, seed);
        let [merged, _, _, demb, dh, denorm, dhnorm] = case.run(0.0);
        // A sum of `hidden` squares, all positive, is off by a relative (hidden + 2) U at most, its root by half of that;
        // a product of three factors adds four roundings.
        let relative = (hidden as f64 + 8.0) * U;
        let want = reference::merge(&case.emb, &case.h, &case.enorm, &case.hnorm, 1e-6);
        assert_within("merged", &merged, &want, |i| relative * want[i].abs() + 1e-37);
        let half = |right: usize| -> Vec<f64> {
            case.dmerged.chunks(2 * hidden).flat_map(|r| &r[right * hidden..][..hidden]).map(|&x| f64::from(x)).collect()
        };
        for (right, x, w, dx, dw) in [(0, &case.emb, &case.enorm, &demb, &denorm), (1, &case.h, &case.hnorm, &dh, &dhnorm)] {
            let dy = half(right);
            let (want_dx, want_dw) = reference::rms_norm_backward(&dy, x, w, 1e-6);
            let rstd = reference::rms_norm(x, w, 1e-6).1;
            // dx = rstd (dy w - x rstd^2 mean(dy w x)): every term by its magnitude.
            assert_within("dx", dx, &want_dx, |i| {
                let row = i / hidden * hidden..(i / hidden + 1) * hidden;
                let r = rstd[i / hidden];
                let dot: f64 = row.map(|j| (dy[j] * f64::from(w[j % hidden]) * f64::from(x[j])).abs()).sum();
                let terms = (dy[i] * f64::from(w[i % hidden])).abs() + f64::from(x[i]).abs() * r * r * dot / hidden as f64;
                4.0 * relative * r * terms + 1e-37
            });
            assert_within("dweight", dw, &want_dw, |j| {
                let sum: f64 = (0..tokens).map(|t| (dy[t * hidden + j] * f64::from(x[t * hidden + j]) * rstd[t]).abs()).sum();
                (relative + (tokens as f64 + 4.0) * U) * sum + 1e-37
            });
        }
    }

    #[test]
    fn entry_has_the_same_bits_on_any_threads(tokens in 1usize..200, hidden in 1usize..40, seed: u64) {
        let case = Entry::new(tokens, hidden, seed);
        let one = in_pool(1, || case.run(0.25));
        assert_same(&in_pool(2, || case.run(0.25)), &one);
        assert_same(&in_pool(5, || case.run(0.25)), &one);
    }

    #[test]
    fn norm_gradients_are_added_once(tokens in 1usize..200, hidden in 1usize..20, seed: u64) {
        let case = Entry::new(tokens, hidden, seed);
        let (fresh, added) = (case.run(0.0), case.run(0.7));
        for i in [5, 6] {
            let expected: Vec<f32> = fresh[i].iter().map(|x| 0.7 + x).collect();
            assert_bits_eq("dweight", &added[i], &expected);
        }
    }

    #[test]
    fn projection_equals_the_reference(tokens in 0usize..20, hidden in 1usize..30, seed: u64) {
        let mut rng = Rng::new(seed);
        let merged = rng.normal_vec(tokens * 2 * hidden, 1.0);
        let w = rng.normal_vec(2 * hidden * hidden, 0.3);
        let dout = rng.normal_vec(tokens * hidden, 1.0);
        let abs = |x: &[f32]| x.iter().map(|x| x.abs()).collect::<Vec<_>>();
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let mut out = Guarded::output(tokens * hidden);
        project(&merged, &w, hidden, out.as_mut_slice()).unwrap();
        let bound = reference::logits(&abs(&merged), &abs(&w), 2 * hidden, hidden, tokens);
        let want = reference::logits(&merged, &w, 2 * hidden, hidden, tokens);
        assert_within("out", out.as_slice(), &want, |i| 2.0 * hidden as f64 * U * bound[i]);
        // The gradients have the form of the head's: d out in the place of d logits.
        let mut dmerged = Guarded::output(merged.len());
        project_backward_input(&dout, &w, hidden, dmerged.as_mut_slice()).unwrap();
        let bound = reference::head_backward_input(&wide(&abs(&dout)), &abs(&w), 2 * hidden, hidden);
        let want = reference::head_backward_input(&wide(&dout), &w, 2 * hidden, hidden);
        assert_within("dmerged", dmerged.as_slice(), &want, |i| hidden as f64 * U * bound[i]);
        let mut dw = vec![1.0; w.len()];
        project_backward_weight(&dout, &merged, hidden, &mut dw).unwrap();
        let bound = reference::head_backward_weight(&wide(&abs(&dout)), &abs(&merged), 2 * hidden, hidden);
        let mut want = reference::head_backward_weight(&wide(&dout), &merged, 2 * hidden, hidden);
        want.iter_mut().for_each(|x| *x += 1.0);
        assert_within("dw", &dw, &want, |i| (tokens as f64 + 1.0) * U * (bound[i] + 1.0));
        prop_assert!(out.check().is_ok() && dmerged.check().is_ok());
    }
}

#[test]
fn entry_has_the_same_bits_on_every_instruction_set() {
    let case = Entry::new(13, 67, 3);
    let run = |isa| in_pool(1, || with_isa(isa, || case.run(0.0)).unwrap());
    let portable = run(Isa::Portable);
    for_each_available("module entry", &Isa::ALL, |isa| isa.name(), Isa::is_available, |isa| assert_same(&run(isa), &portable));
}

#[test]
fn embedding_comes_first() {
    let norms = MergeNorms { enorm: &[1.0], hnorm: &[2.0], eps: 0.0 };
    let (mut merged, mut r1, mut r2) = ([0.0; 2], [0.0], [0.0]);
    merge_forward(&norms, &[4.0], &[-8.0], &mut merged, &mut r1, &mut r2).unwrap();
    assert_eq!((merged, r1, r2), ([1.0, -2.0], [0.25], [0.125]));
}

#[test]
fn entry_refuses_wrong_shapes() {
    let shape = |r: Result<(), Error>| assert!(matches!(r, Err(Error::Shape { .. })), "{r:?}");
    let norms = MergeNorms { enorm: &[1.0; 3], hnorm: &[1.0; 3], eps: 1e-6 };
    let x = [1.0; 6];
    let (mut merged, mut r1, mut r2) = ([0.0; 12], [0.0; 2], [0.0; 2]);
    shape(merge_forward(&norms, &x[1..], &x, &mut merged, &mut r1, &mut r2));
    shape(merge_forward(&norms, &x, &x[1..], &mut merged, &mut r1, &mut r2));
    shape(merge_forward(&norms, &x, &x, &mut merged[1..], &mut r1, &mut r2));
    shape(merge_forward(&norms, &x, &x, &mut merged, &mut r1, &mut r2[1..]));
    shape(merge_forward(&MergeNorms { hnorm: &[1.0; 2], ..norms }, &x, &x, &mut merged, &mut r1, &mut r2));
    let empty = MergeNorms { enorm: &[], hnorm: &[], eps: 1e-6 };
    assert!(matches!(merge_forward(&empty, &[], &[], &mut [], &mut r1, &mut r2), Err(Error::Parameter { .. })));
    shape(project(&x, &[1.0; 18], 3, &mut [0.0; 3][1..]));
    shape(project(&x, &[1.0; 17], 3, &mut [0.0; 3]));
    assert!(matches!(project(&x, &[], 0, &mut []), Err(Error::Parameter { .. })));
}

// ---- targets ----

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn targets_follow_the_definition(
        lengths in prop::collection::vec(0usize..12, 0..6),
        documents in prop::collection::vec(0u32..2, 72),
        with_documents: bool,
        lookahead in 0usize..4,
        depth in 0usize..5,
    ) {
        let mut cu_seqlens = vec![0];
        lengths.iter().for_each(|len| cu_seqlens.push(cu_seqlens.last().unwrap() + len));
        let n = *cu_seqlens.last().unwrap();
        let ids: Vec<u32> = (0..n as u32).map(|i| 100 + i).collect();
        let documents = &documents[..n];
        let batch = TokenBatch { ids: &ids, cu_seqlens: &cu_seqlens, documents: with_documents.then_some(documents), lookahead };
        let got = batch.depth(depth).unwrap();
        let mut row = 0;
        for s in cu_seqlens.windows(2) {
            for i in s[0]..s[1].saturating_sub(lookahead).max(s[0]) {
                // Tokens i ..= i + reach all exist and are of one document.
                let together = |reach: usize| {
                    i + reach < s[1] && (!with_documents || documents[i..=i + reach].iter().all(|&d| d == documents[i]))
                };
                let target = if together(depth + 1) { i64::from(ids[i + depth + 1]) } else { -1 };
                prop_assert_eq!(got.targets[row], target);
                prop_assert_eq!(got.inputs[row], if together(depth) { ids[i + depth] } else { ids[i] });
                prop_assert_eq!(got.positions[row] as usize, i - s[0] + depth);
                row += 1;
            }
        }
        prop_assert_eq!((got.targets.len(), got.inputs.len(), got.positions.len()), (row, row, row));
        prop_assert_eq!(batch.rows().unwrap(), row);
        prop_assert_eq!(got.count, got.targets.iter().filter(|&&t| t >= 0).count());
    }
}

#[test]
fn enough_lookahead_gives_every_row_a_target() {
    let ids: Vec<u32> = (0..20).collect();
    let batch = TokenBatch { lookahead: 3, ..TokenBatch::new(&ids, &[0, 10, 20]) };
    for depth in 0..=2 {
        let rows = batch.depth(depth).unwrap();
        assert_eq!((rows.count, rows.targets.len()), (14, 14));
    }
}

#[test]
fn wrong_boundaries_are_errors() {
    let ids = [1, 2, 3];
    for cu_seqlens in [&[] as &[usize], &[0], &[0, 2], &[1, 3], &[0, 4], &[0, 2, 1, 3]] {
        assert!(matches!(TokenBatch::new(&ids, cu_seqlens).depth(0), Err(Error::Shape { .. })), "{cu_seqlens:?}");
    }
    let batch = TokenBatch { documents: Some(&[0, 0]), ..TokenBatch::new(&ids, &[0, 3]) };
    assert!(matches!(batch.depth(0), Err(Error::Shape { .. })));
    assert!(matches!(TokenBatch::new(&ids, &[0, 3]).depth(usize::MAX), Err(Error::Parameter { .. })));
    assert_eq!(TokenBatch::new(&[], &[0]).depth(0).unwrap().count, 0);
}

#[test]
fn depths_share_lambda() {
    let own = LossWeights { lambda: 0.3, depths: 3, averaging: Averaging::default() };
    assert_eq!(own.averaging, Averaging::OwnTokens);
    assert_eq!(own.token_weight(50, 64), 0.3 / 150.0);
    assert_eq!(LossWeights { averaging: Averaging::AllTokens, ..own }.token_weight(50, 64), 0.3 / 192.0);
    assert_eq!(own.token_weight(0, 64), 0.0);
    assert_eq!(LossWeights { depths: 0, ..own }.token_weight(50, 64), 0.0);
    assert_eq!(sum_losses(&[0.5, 0.25]), 0.75);
}

// ---- sampler ----

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn distribution_equals_the_reference(
        vocab in 1usize..900,
        temperature in prop::sample::select(vec![0.0f32, 0.1, 0.7, 1.0, 2.5]),
        top_k in prop::sample::select(vec![0usize, 1, 2, 50, 10_000]),
        top_p in prop::sample::select(vec![1e-6f32, 0.3, 0.9, 0.999, 1.0]),
        spread in 0.0f32..6.0,
        seed: u64,
    ) {
        let mut rng = Rng::new(seed);
        // Rounded, so that ties occur.
        let logits: Vec<f32> = (0..vocab).map(|_| (rng.normal() * spread * 8.0).round() / 8.0).collect();
        let want = reference::distribution(&logits, f64::from(temperature), top_k, f64::from(top_p));
        let largest = logits.iter().copied().fold(f32::MIN, f32::max);
        let got = Sampler::new(temperature, top_k, top_p).unwrap().probs(&logits).unwrap();
        // (x - max) is exact here; its division rounds once, so exp is off by |x - max| / T U and its own 4 U. The total
        // is off by the average of that under the distribution, less than ln V and 4 U; then one division.
        let error = |i: usize| {
            let exponent = f64::from(largest - logits[i]) / f64::from(temperature.max(1e-3));
            (U * (exponent + (vocab as f64).ln() + 10.0)) * want[i] + 1e-37
        };
        let kept = |p: &f64| *p > 1e-30;
        if got.iter().filter(|&&p| f64::from(p) > 1e-30).count() != want.iter().filter(|&p| kept(p)).count() {
            // Allowed where the running sum meets top-p within rounding: the last token kept then decides by a hair.
            let full = reference::distribution(&logits, f64::from(temperature), top_k, 1.0);
            let mut sorted = full.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let mut sum = 0.0;
            let hair = sorted.iter().any(|p| { sum += p; (sum - f64::from(top_p)).abs() < 1e-5 });
            prop_assert!(hair, "different tokens were cut");
        } else {
            assert_within("probs", &got, &want, error);
        }
        let total: f64 = got.iter().map(|&p| f64::from(p)).sum();
        prop_assert!((total - 1.0).abs() < 1e-6);
    }

    #[test]
    fn drawn_tokens_are_possible(seed: u64, vocab in 1usize..50) {
        let mut rng = Rng::new(seed);
        let mut probs: Vec<f32> = (0..vocab).map(|_| if rng.below(2) == 0 { 0.0 } else { rng.uniform() }).collect();
        probs[rng.below(vocab)] = 1e-9;
        let mut rng = RequestRng::new(seed, 0);
        for _ in 0..100 {
            prop_assert!(probs[sample(&probs, &mut rng).unwrap() as usize] > 0.0);
        }
        struct Always(f64);
        impl Uniform for Always {
            fn uniform(&mut self) -> f64 { self.0 }
        }
        for u in [0.0, 1.0 - f64::EPSILON / 2.0] {
            prop_assert!(probs[sample(&probs, &mut Always(u)).unwrap() as usize] > 0.0);
        }
    }
}

#[test]
fn frequencies_are_the_probabilities() {
    let logits = [0.0, 1.0, -1.0, 2.0, 0.5];
    let sampler = Sampler::new(0.8, 4, 1.0).unwrap();
    let probs = sampler.probs(&logits).unwrap();
    assert_eq!(probs[2], 0.0);
    let mut rng = RequestRng::new(1, 1);
    let (mut counts, n) = ([0u32; 5], 100_000);
    (0..n).for_each(|_| counts[sampler.sample(&logits, &mut rng).unwrap() as usize] += 1);
    for (&count, &p) in counts.iter().zip(&probs) {
        let (mean, deviation) = (f64::from(p) * f64::from(n), (f64::from(n) * f64::from(p) * (1.0 - f64::from(p))).sqrt());
        assert!((f64::from(count) - mean).abs() <= 6.0 * deviation, "{counts:?} {probs:?}");
    }
}

#[test]
fn equal_logits_are_kept_from_the_lowest() {
    let probs = |k, p| Sampler::new(1.0, k, p).unwrap().probs(&[3.0; 8]).unwrap();
    assert_eq!(probs(3, 1.0), [1.0f32 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(probs(0, 0.25), [0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(probs(0, 0.2501), [1.0f32 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn sampler_at_its_limits() {
    let greedy = Sampler::new(0.0, 0, 1.0).unwrap();
    assert!(greedy.is_greedy() && !Sampler::default().is_greedy());
    assert_eq!(greedy.probs(&[1.0, 3.0, 3.0]).unwrap(), [0.0, 1.0, 0.0]);
    assert_eq!(greedy.sample(&[1.0, 3.0, 3.0], &mut RequestRng::new(0, 0)).unwrap(), 1);
    let one = Sampler::default();
    assert_eq!(one.probs(&[f32::INFINITY, 0.0, f32::INFINITY]).unwrap(), [0.5, 0.0, 0.5]);
    assert_eq!(one.probs(&[f32::NEG_INFINITY, 5.0]).unwrap(), [0.0, 1.0]);
    // So cold that the division overflows.
    assert_eq!(Sampler::new(1e-38, 0, 1.0).unwrap().probs(&[1.0, 0.0]).unwrap(), [1.0, 0.0]);
    for bad in [&[] as &[f32], &[f32::NAN, 1.0], &[f32::NEG_INFINITY; 2]] {
        assert!(matches!(one.probs(bad), Err(Error::Distribution { .. })), "{bad:?}");
        assert!(argmax(bad).is_err());
    }
    assert!(matches!(one.probs_into(&[1.0], &mut []), Err(Error::Shape { .. })));
    for (temperature, top_p) in [(-1.0, 1.0), (f32::NAN, 1.0), (f32::INFINITY, 1.0), (1.0, 0.0), (1.0, 1.5), (1.0, f32::NAN)] {
        assert!(matches!(Sampler::new(temperature, 0, top_p), Err(Error::Parameter { .. })));
    }
}

#[test]
fn distribution_has_the_same_bits_on_every_instruction_set() {
    let logits = Rng::new(4).normal_vec(1021, 3.0);
    let run = |isa| in_pool(1, || with_isa(isa, || Sampler::new(0.7, 300, 0.95).unwrap().probs(&logits).unwrap()).unwrap());
    let portable = run(Isa::Portable);
    for_each_available(
        "sampler",
        &Isa::ALL,
        |isa| isa.name(),
        Isa::is_available,
        |isa| {
            assert_bits_eq(isa.name(), &run(isa), &portable);
        },
    );
}

// ---- verification ----

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn greedy_commits_what_plain_greedy_would(draft in prop::collection::vec(0u32..3, 0..6), seed: u64) {
        // A target that is a function of the tokens so far, as a model is.
        let choice = |tokens: &[u32]| -> u32 {
            let hash = tokens.iter().fold(seed, |h, &t| (h ^ u64::from(t)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
            (hash % 3) as u32
        };
        let choices: Vec<u32> = (0..=draft.len()).map(|n| choice(&draft[..n])).collect();
        let verdict = verify_greedy(&draft, &choices).unwrap();
        let mut plain = vec![];
        while plain.len() < verdict.kept_rows() {
            plain.push(choice(&plain));
        }
        prop_assert_eq!(verdict.committed(&draft).collect::<Vec<_>>(), plain);
        prop_assert!(verdict.accepted == draft.len() || verdict.next != draft[verdict.accepted]);
    }

    #[test]
    fn a_drafter_with_the_targets_law_is_always_accepted(n in 0usize..5, vocab in 1usize..20, seed: u64) {
        let mut rng = Rng::new(seed);
        let target: Vec<f32> = (0..(n + 1) * vocab).map(|_| rng.uniform() + 0.01).collect();
        let mut numbers = RequestRng::new(seed, 1);
        let draft: Vec<u32> = target.chunks(vocab).take(n).map(|p| sample(p, &mut numbers).unwrap()).collect();
        // The same law said with another factor.
        let q: Vec<f32> = target[..n * vocab].iter().map(|p| p * 4.0).collect();
        let verdict = verify_sampled(&draft, Draft::Sampled(&q), &target, vocab, &mut numbers).unwrap();
        prop_assert_eq!(verdict.accepted, n);
    }

    #[test]
    fn numbers_used_depend_on_the_verdict_only(n in 0usize..5, vocab in 1usize..8, seed: u64) {
        let mut rng = Rng::new(seed);
        let target: Vec<f32> = (0..(n + 1) * vocab).map(|_| rng.uniform() + 0.01).collect();
        let draft: Vec<u32> = (0..n).map(|_| rng.below(vocab) as u32).collect();
        let mut numbers = RequestRng::new(seed, 2);
        let mut after = numbers.clone();
        let verdict = verify_sampled(&draft, Draft::Certain, &target, vocab, &mut numbers).unwrap();
        (0..verdict.accepted + 1 + usize::from(verdict.accepted < n)).for_each(|_| { after.uniform(); });
        prop_assert_eq!(numbers, after);
    }
}

#[test]
fn verifier_refuses_what_is_no_distribution() {
    let mut rng = RequestRng::new(0, 0);
    let mut verify = |draft: &[u32], q: &[f32], p: &[f32]| verify_sampled(draft, Draft::Sampled(q), p, 2, &mut rng).unwrap_err();
    let half = [0.5f32; 4];
    assert!(matches!(verify(&[0], &half[..2], &half[..2]), Error::Shape { .. }));
    assert!(matches!(verify(&[0], &half, &half), Error::Shape { .. }));
    assert_eq!(verify(&[2], &half[..2], &half), Error::Token { what: "draft", index: 0, value: 2, vocab: 2 });
    assert!(matches!(verify(&[1], &[1.0, 0.0], &half), Error::Distribution { what: "draft distributions", .. }));
    for bad in [[0.0, 0.0], [f32::NAN, 1.0], [-0.5, 1.0], [f32::INFINITY, 1.0]] {
        let target = [bad, [0.5, 0.5]].concat();
        assert!(matches!(verify(&[0], &half[..2], &target), Error::Distribution { what: "target", position: 0, .. }), "{bad:?}");
        assert!(matches!(verify(&[0], &bad, &half), Error::Distribution { what: "draft distributions", .. }), "{bad:?}");
    }
    let mut rng = RequestRng::new(0, 0);
    assert!(matches!(verify_sampled(&[], Draft::Certain, &[], 0, &mut rng), Err(Error::Parameter { .. })));
    assert!(matches!(verify_greedy(&[1], &[1]), Err(Error::Shape { .. })));
    assert!(matches!(verify_greedy(&[], &[]), Err(Error::Shape { .. })));
}

#[test]
fn statistics_count_by_position() {
    let mut stats = AcceptanceStats::default();
    assert_eq!(stats.to_string(), "nothing drafted");
    assert_eq!((stats.rate(), stats.tokens_per_pass(), stats.position_rate(0)), (None, None, None));
    for (drafted, accepted) in [(3, 3), (3, 1), (3, 0), (2, 2)] {
        stats.record(drafted, &Verdict { accepted, next: 0 });
    }
    assert_eq!((stats.drafted(), stats.accepted(), stats.passes()), (&[4u64, 4, 3][..], &[3u64, 2, 1][..], 4));
    assert_eq!(stats.conditional_rate(0), Some(0.75));
    assert_eq!(stats.conditional_rate(1), Some(2.0 / 3.0));
    assert_eq!(stats.tokens_per_pass(), Some(2.5));
    assert_eq!(stats.to_string(), "accepted 54.5% (by position 75.0%, 50.0%, 33.3%), 2.50 tokens a pass");
    let mut both = AcceptanceStats::default();
    both.record(1, &Verdict { accepted: 0, next: 0 });
    both.merge(&stats);
    assert_eq!((both.drafted(), both.accepted(), both.passes()), (&[5u64, 4, 3][..], &[3u64, 2, 1][..], 5));
}
