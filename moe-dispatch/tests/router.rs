//! The router, its backward, the balance loss and the bias update against the reference and by hand.

use moe_dispatch::Error;
use moe_dispatch::balance::{LoadMetrics, sequence_balance_loss, update_bias};
use moe_dispatch::reference::router as reference;
use moe_dispatch::router::{GroupScore, RouterConfig, Routing, Scoring, route, route_backward};
use proptest::prelude::*;
use v3_numerics::cpu::{Isa, with_isa};
use v3_testkit::backend::for_each_available;
use v3_testkit::{Rng, Tolerance, assert_bits_eq};

const SCORINGS: [Scoring; 2] = [Scoring::Sigmoid, Scoring::Softmax];

fn config() -> impl Strategy<Value = RouterConfig> {
    let sizes = prop_oneof![Just(1usize), Just(2), Just(3), Just(5), Just(15), Just(16), Just(17), Just(32), Just(33), Just(48)];
    (1usize..=8, sizes, any::<[bool; 3]>(), any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0.25f32..4.0).prop_map(
        |(n_group, size, [softmax, by_k, norm], keep, k, factor)| {
            let topk_group = 1 + keep.index(n_group);
            RouterConfig {
                n_group,
                topk_group,
                scoring: SCORINGS[usize::from(softmax)],
                group_score: if by_k { GroupScore::TopKOverM } else { GroupScore::TopTwo },
                norm_topk_prob: norm,
                routed_scaling_factor: factor,
                ..RouterConfig::new(n_group * size, 1 + k.index((topk_group * size).min(12)))
            }
        },
    )
}

/// Logits with equal values among them, so that ties occur.
fn logits(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| if rng.below(3) == 0 { rng.below(4) as f32 - 1.5 } else { 3.0 * rng.normal() }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn route_equals_the_reference(cfg in config(), tokens in 0usize..70, seed: u64, biased: bool) {
        let mut rng = Rng::new(seed);
        let e = cfg.num_experts;
        let logits = logits(&mut rng, tokens * e);
        // Large biases make biased scores negative: a rejected group must lose against them all the same.
        let bias: Vec<f32> = if biased { (0..e).map(|_| 0.5 * rng.below(5) as f32 - 2.0).collect() } else { vec![] };
        let routing = route(&cfg, &logits, &bias).unwrap();
        prop_assert_eq!(routing.tokens, tokens);
        prop_assert_eq!(&routing.indices, &reference::select_all(&cfg, &routing, &bias));
        for t in 0..tokens {
            let row = &logits[t * e..][..e];
            let scores = reference::scores(cfg.scoring, row);
            let top = row.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
            let bounds: Vec<f64> = scores.iter().zip(row).map(|(s, x)| {
                let units = match cfg.scoring {
                    Scoring::Sigmoid => 4.0,
                    Scoring::Softmax => f64::from(top - x) + e as f64 + 8.0,
                };
                s * units * 2f64.powi(-24)
            }).collect();
            Tolerance::absolute(2f64.powi(-126)).check_bounded("scores", &routing.scores[t * e..][..e], &scores, &bounds).unwrap();
            // From the f32 scores, the sum of K terms, the quotient and the product round K + 2 times at most.
            let own: Vec<f64> = routing.scores[t * e..][..e].iter().map(|&s| f64::from(s)).collect();
            let k = cfg.top_k;
            let weights = reference::weights(&cfg, &own, &routing.indices[t * k..][..k]);
            Tolerance::relative((k + 3) as f64 * 2f64.powi(-24)).and_absolute(2f64.powi(-126))
                .check("weights", &routing.weights[t * k..][..k], &weights).unwrap();
        }
        let counts = routing.expert_counts(e).unwrap();
        prop_assert_eq!(counts.iter().sum::<u64>(), (tokens * cfg.top_k) as u64);
    }

    #[test]
    fn backward_equals_the_reference(cfg in config(), tokens in 0usize..5, seed: u64) {
        let mut rng = Rng::new(seed);
        let (e, k) = (cfg.num_experts, cfg.top_k);
        let logits = logits(&mut rng, tokens * e);
        let routing = route(&cfg, &logits, &[]).unwrap();
        let dweights = rng.normal_vec(tokens * k, 1.0);
        let dlogits = route_backward(&cfg, &routing, &dweights).unwrap();
        for t in 0..tokens {
            let dw = &dweights[t * k..][..k];
            let indices = &routing.indices[t * k..][..k];
            let expected = reference::route_backward(&cfg, &logits[t * e..][..e], indices, dw);
            // Every term is at most |dw| times the scores' slope: cancellation leaves an error relative to that.
            let sum: f64 = indices.iter().map(|&i| f64::from(routing.scores[t * e + i as usize])).sum();
            let factor = f64::from(cfg.routed_scaling_factor) / if cfg.norm_topk_prob { sum } else { 1.0 };
            let size = factor * dw.iter().map(|x| f64::from(x.abs())).sum::<f64>();
            let bound = size * (2 * e + 2 * k + 40) as f64 * 2f64.powi(-24);
            Tolerance::absolute(bound).check("dlogits", &dlogits[t * e..][..e], &expected).unwrap();
        }
    }

    #[test]
    fn balance_loss_equals_the_reference(cfg in config(), lens in prop::collection::vec(0usize..150, 0..4), seed: u64) {
        let mut rng = Rng::new(seed);
        let e = cfg.num_experts;
        let tokens = lens.iter().sum::<usize>();
        let logits = logits(&mut rng, tokens * e);
        let routing = route(&cfg, &logits, &[]).unwrap();
        let got = sequence_balance_loss(&cfg, &routing, &lens, 0.5).unwrap();
        let scores: Vec<Vec<f64>> = logits.chunks(e).map(|row| reference::scores(cfg.scoring, row)).collect();
        let expected = reference::sequence_balance_loss(&cfg, &scores, &routing.indices, &lens, 0.5);
        // Scores (softmax: d + E + 8, d at most 25 here), their sum, the quotient, and 64 additions in f32.
        let tolerance = (2 * e + 64 + 40) as f64 * 2f64.powi(-24);
        prop_assert!((got.loss - expected).abs() <= tolerance * expected.max(0.5), "{} {}", got.loss, expected);
        let filled = lens.iter().filter(|&&n| n > 0).count();
        prop_assert_eq!(got.per_sequence.len(), lens.len());
        prop_assert!((got.per_sequence.iter().sum::<f64>() - expected * filled as f64).abs() <= tolerance * 0.5 * e as f64 * 4.0);
    }

    #[test]
    fn placement_of_rows_does_not_matter(cfg in config(), seed: u64) {
        let mut rng = Rng::new(seed);
        let (e, k) = (cfg.num_experts, cfg.top_k);
        let logits = logits(&mut rng, 50 * e);
        let bias = rng.normal_vec(e, 0.1);
        let all = route(&cfg, &logits, &bias).unwrap();
        for t in [0, 31, 32, 49] {
            let one = route(&cfg, &logits[t * e..][..e], &bias).unwrap();
            prop_assert_eq!(&one.indices, &all.indices[t * k..][..k]);
            assert_bits_eq("weights", &one.weights, &all.weights[t * k..][..k]);
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let mut rng = Rng::new(3);
    for scoring in SCORINGS {
        for (experts, n_group) in [(8, 4), (13, 1), (40, 2), (256, 8)] {
            let cfg = RouterConfig { n_group, topk_group: n_group.div_ceil(2), scoring, ..RouterConfig::new(experts, 3) };
            let logits = logits(&mut rng, 67 * experts);
            let bias = rng.normal_vec(experts, 0.05);
            let expected = with_isa(Isa::Portable, || route(&cfg, &logits, &bias).unwrap()).unwrap();
            for_each_available("router", &Isa::ALL, Isa::name, Isa::is_available, |isa| {
                let got = with_isa(isa, || route(&cfg, &logits, &bias).unwrap()).unwrap();
                assert_eq!(got.indices, expected.indices, "{isa}");
                assert_bits_eq("scores", &got.scores, &expected.scores);
                assert_bits_eq("weights", &got.weights, &expected.weights);
            });
        }
    }
}

#[cfg(feature = "rayon")]
#[test]
fn every_number_of_threads_gives_the_same_bits() {
    let mut rng = Rng::new(4);
    let cfg = RouterConfig::deepseek_v3();
    let logits = logits(&mut rng, 301 * 256);
    let dweights = rng.normal_vec(301 * 8, 1.0);
    let lens = [200, 1, 100];
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let routing = route(&cfg, &logits, &[]).unwrap();
            let dlogits = route_backward(&cfg, &routing, &dweights).unwrap();
            let loss = sequence_balance_loss(&cfg, &routing, &lens, 1e-4).unwrap();
            (routing, dlogits, loss)
        })
    };
    let one = run(1);
    for threads in [2, 3, 5] {
        assert!(run(threads) == one, "{threads} threads");
    }
}

/// Central differences in f64 of a function of one token's logits.
fn slope(logits: &[f32], i: usize, f: impl Fn(&[f64]) -> f64) -> f64 {
    let h = 1e-5;
    let mut x: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    x[i] += h;
    let up = f(&x);
    x[i] -= 2.0 * h;
    (up - f(&x)) / (2.0 * h)
}

fn scores_f64(scoring: Scoring, x: &[f64]) -> Vec<f64> {
    match scoring {
        Scoring::Sigmoid => x.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        Scoring::Softmax => {
            let sum: f64 = x.iter().map(|x| x.exp()).sum();
            x.iter().map(|x| x.exp() / sum).collect()
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let mut rng = Rng::new(5);
    for scoring in SCORINGS {
        for norm_topk_prob in [true, false] {
            let cfg = RouterConfig { scoring, norm_topk_prob, routed_scaling_factor: 2.5, ..RouterConfig::new(11, 4) };
            let tokens = 6;
            let logits = rng.normal_vec(tokens * 11, 1.5);
            let routing = route(&cfg, &logits, &[]).unwrap();
            let dweights = rng.normal_vec(tokens * 4, 1.0);
            let dlogits = route_backward(&cfg, &routing, &dweights).unwrap();
            let lens = [2, 0, 4];
            let balance = sequence_balance_loss(&cfg, &routing, &lens, 0.7).unwrap();
            let all: Vec<Vec<f64>> = logits.chunks(11).map(|row| reference::scores(scoring, row)).collect();
            for t in 0..tokens {
                let row = &logits[t * 11..][..11];
                let indices = &routing.indices[t * 4..][..4];
                for i in 0..11 {
                    let expected = slope(row, i, |x| {
                        let weights = reference::weights(&cfg, &scores_f64(scoring, x), indices);
                        weights.iter().zip(&dweights[t * 4..]).map(|(w, d)| w * f64::from(*d)).sum()
                    });
                    let got = f64::from(dlogits[t * 11 + i]);
                    assert!((got - expected).abs() < 1e-5, "{cfg:?} token {t} logit {i}: {got} {expected}");
                    let expected = slope(row, i, |x| {
                        let mut all = all.clone();
                        all[t] = scores_f64(scoring, x);
                        reference::sequence_balance_loss(&cfg, &all, &routing.indices, &lens, 0.7)
                    });
                    let got = f64::from(balance.dlogits[t * 11 + i]);
                    assert!((got - expected).abs() < 1e-6, "{cfg:?} token {t} logit {i}: {got} {expected}");
                }
            }
        }
    }
}

/// Logits whose sigmoids are these.
fn logit(scores: &[f64]) -> Vec<f32> {
    scores.iter().map(|s| (s / (1.0 - s)).ln() as f32).collect()
}

#[test]
fn groups_by_hand() {
    // Four groups of two; the scores of the groups: 1.0, 1.1, 0.9, 1.0 (a tie of 0 and 3, which 0 wins).
    let logits = logit(&[0.5, 0.5, 0.9, 0.2, 0.6, 0.3, 0.5, 0.5]);
    let cfg = RouterConfig { n_group: 4, topk_group: 2, ..RouterConfig::new(8, 3) };
    let r = route(&cfg, &logits, &[]).unwrap();
    assert_eq!(r.indices, [2, 0, 1], "expert 4 scores 0.6 but its group is out");
    Tolerance::absolute(1e-6).check("weights", &r.weights, &[0.9 / 1.9, 0.5 / 1.9, 0.5 / 1.9]).unwrap();
    // The best single score of a group (top_k / topk_group = 1): groups 1 and 2.
    let by_k = RouterConfig { group_score: GroupScore::TopKOverM, ..cfg };
    assert_eq!(route(&by_k, &logits, &[]).unwrap().indices, [2, 4, 5]);
    // The bias selects, the unbiased scores weigh. With it all biased scores of the kept group are negative: an expert of a
    // rejected group, whose masked score would be 0 under a careless mask, must not slip in.
    let bias = [-3.0, -3.0, -2.0, -2.0, -4.0, -4.0, -4.0, -4.0];
    let cfg = RouterConfig { topk_group: 1, norm_topk_prob: false, routed_scaling_factor: 2.0, ..RouterConfig::new(8, 2) };
    let r = route(&RouterConfig { n_group: 4, ..cfg }, &logits, &bias).unwrap();
    assert_eq!(r.indices, [2, 3]);
    Tolerance::absolute(1e-6).check("weights", &r.weights, &[1.8, 0.4]).unwrap();
    // Groups of one.
    let single = RouterConfig { n_group: 8, topk_group: 3, ..RouterConfig::new(8, 3) };
    assert_eq!(route(&single, &logits, &[]).unwrap().indices, [2, 4, 0]);
}

#[test]
fn ties_go_to_the_lower_index_everywhere() {
    for e in [1, 7, 16, 17, 64, 256] {
        for n_group in [1, 2, 4].into_iter().filter(|g| e % g == 0) {
            let k = (e / n_group).min(5);
            let cfg = RouterConfig { n_group, ..RouterConfig::new(e, k) };
            let r = route(&cfg, &vec![0.25; 3 * e], &[]).unwrap();
            assert_eq!(r.indices, (0..k as u32).collect::<Vec<_>>().repeat(3), "{e} experts, {n_group} groups");
        }
    }
}

#[test]
fn extreme_logits_stay_finite() {
    let cfg = RouterConfig::new(4, 2);
    let logits = [f32::MAX, f32::MIN, 1e4, -1e4, -1e30, -1e20, -2000.0, -90.0];
    for scoring in SCORINGS {
        let r = route(&RouterConfig { scoring, ..cfg }, &logits, &[]).unwrap();
        assert!(r.weights.iter().chain(&r.scores).all(|x| x.is_finite()), "{r:?}");
        let d = route_backward(&RouterConfig { scoring, ..cfg }, &r, &[1.0, -1.0, 0.5, 2.0]).unwrap();
        assert!(d.iter().all(|x| x.is_finite()), "{d:?}");
        let l = sequence_balance_loss(&RouterConfig { scoring, ..cfg }, &r, &[2], 1e-4).unwrap();
        assert!(l.loss.is_finite() && l.dlogits.iter().all(|x| x.is_finite()), "{l:?}");
    }
}

#[test]
fn what_is_not_finite_is_refused_with_its_place() {
    let cfg = RouterConfig::new(40, 2);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut logits = vec![0.0; 70 * 40];
        logits[69 * 40 + 3] = bad;
        logits[50 * 40 + 39] = bad;
        let message = route(&cfg, &logits, &[]).unwrap_err().to_string();
        assert!(message.contains("token 50, expert 39"), "{message}");
        let mut bias = vec![0.0; 40];
        bias[7] = bad;
        let message = route(&cfg, &[], &bias).unwrap_err().to_string();
        assert!(message.contains("expert 7"), "{message}");
    }
}

#[test]
fn contradictory_configurations_are_refused() {
    let good = RouterConfig { n_group: 4, topk_group: 2, ..RouterConfig::new(8, 4) };
    good.validate().unwrap();
    for bad in [
        RouterConfig { num_experts: 0, ..good },
        RouterConfig { n_group: 0, ..good },
        RouterConfig { n_group: 3, ..good },
        RouterConfig { topk_group: 0, ..good },
        RouterConfig { topk_group: 5, ..good },
        RouterConfig { top_k: 0, ..good },
        RouterConfig { top_k: 5, ..good }, // two groups of two hold four
        RouterConfig { routed_scaling_factor: f32::NAN, ..good },
    ] {
        assert!(matches!(bad.validate(), Err(Error::Config { .. })), "{bad:?}");
        assert!(route(&bad, &[], &[]).is_err());
    }
}

#[test]
fn wrong_lengths_are_refused() {
    let cfg = RouterConfig::new(4, 2);
    assert!(route(&cfg, &[0.0; 7], &[]).is_err());
    assert!(route(&cfg, &[0.0; 8], &[0.0; 3]).is_err());
    let good = route(&cfg, &[0.0; 8], &[]).unwrap();
    assert!(route_backward(&cfg, &good, &[0.0; 3]).is_err());
    assert!(sequence_balance_loss(&cfg, &good, &[1], 1.0).is_err());
    assert!(sequence_balance_loss(&cfg, &good, &[usize::MAX, 3], 1.0).is_err());
    assert!(sequence_balance_loss(&cfg, &good, &[2], f32::NAN).is_err());
    let broken = [
        Routing { indices: vec![0, 1, 2, 4], ..good.clone() },
        Routing { indices: vec![0], ..good.clone() },
        Routing { scores: vec![0.0; 9], ..good.clone() },
        Routing { top_k: 3, ..good.clone() },
    ];
    for routing in broken {
        assert!(route_backward(&cfg, &routing, &[0.0; 4]).is_err(), "{routing:?}");
        assert!(sequence_balance_loss(&cfg, &routing, &[2], 1.0).is_err(), "{routing:?}");
    }
    assert!(good.expert_counts(1).is_err());
}

#[test]
fn no_tokens_is_fine() {
    let cfg = RouterConfig::new(4, 2);
    let r = route(&cfg, &[], &[0.0; 4]).unwrap();
    assert_eq!((r.tokens, r.indices.len(), r.bytes()), (0, 0, 0));
    assert_eq!(route_backward(&cfg, &r, &[]).unwrap(), []);
    for lens in [&[][..], &[0, 0]] {
        assert_eq!(sequence_balance_loss(&cfg, &r, lens, 1.0).unwrap().loss, 0.0);
    }
}

#[test]
fn an_even_load_costs_alpha() {
    // Equal scores, each expert chosen equally often: f_i = 1, P_i = 1 / E.
    let cfg = RouterConfig::new(4, 2);
    let r = Routing { tokens: 2, top_k: 2, indices: vec![0, 1, 2, 3], weights: vec![0.5; 4], scores: vec![0.5; 8] };
    let loss = sequence_balance_loss(&cfg, &r, &[2], 0.25).unwrap();
    assert!((loss.loss - 0.25).abs() < 1e-9);
    assert!(loss.dlogits.iter().all(|d| d.abs() < 1e-9), "no slope at the even point: {loss:?}");
}

#[test]
fn bias_update_balances_a_skewed_router() {
    let cfg = RouterConfig { n_group: 2, topk_group: 1, ..RouterConfig::new(8, 2) };
    let mut rng = Rng::new(6);
    let skew: Vec<f32> = (0..8).map(|i| 0.4 * i as f32).collect();
    let mut bias = vec![0.0f32; 8];
    let mut first = None;
    let mut last = 0.0;
    for _ in 0..150 {
        let logits: Vec<f32> = (0..256 * 8).map(|i| skew[i % 8] + rng.normal()).collect();
        let counts = route(&cfg, &logits, &bias).unwrap().expert_counts(8).unwrap();
        last = LoadMetrics::of(&counts).unwrap().max_over_mean;
        first.get_or_insert(last);
        update_bias(&mut bias, &counts, 0.01).unwrap();
    }
    assert!(first.unwrap() > 2.0 && last < 1.35, "{first:?} {last}");
}

#[test]
fn bias_update_and_metrics_by_hand() {
    let mut bias = [0.5f32, 0.5, 0.5];
    update_bias(&mut bias, &[u64::MAX, 0, u64::MAX / 2], 0.25).unwrap();
    assert_eq!(bias, [0.25, 0.75, 0.75], "the mean is just above the third: sums do not overflow");
    assert!(update_bias(&mut bias, &[1, 2], 0.1).is_err());
    assert!(update_bias(&mut bias, &[1, 2, 3], f32::INFINITY).is_err());
    let m = LoadMetrics::of(&[4, 0, 2, 2]).unwrap();
    assert_eq!((m.mean, m.max, m.min, m.max_over_mean, m.idle), (2.0, 4, 0, 2.0, 1));
    assert!((m.coefficient_of_variation - 0.5f64.sqrt()).abs() < 1e-12);
    assert_eq!(LoadMetrics::of_ranks(&[4, 0, 2, 2], 2).unwrap().max_over_mean, 1.0);
    assert_eq!(LoadMetrics::of(&[0, 0]).unwrap().max_over_mean, 1.0);
    assert!(LoadMetrics::of(&[]).is_err());
    assert!(LoadMetrics::of_ranks(&[1, 2, 3], 2).is_err());
}
