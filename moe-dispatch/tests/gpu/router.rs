//! The router: the bits of the CPU's, and the selection of the reference.

use crate::{config, devices, emulator};
use moe_dispatch::Error;
use moe_dispatch::gpu::router::{DeviceRouting, RouterKernels};
use moe_dispatch::reference::router::select_all;
use moe_dispatch::router::{GroupScore, RouterConfig, Scoring, route};
use proptest::prelude::*;
use v3_testkit::Rng;

/// Logits of several kinds: ordinary ones, ones far out, and ones with many ties.
fn logits(rng: &mut Rng, len: usize) -> Vec<f32> {
    match rng.below(4) {
        0 => rng.spread_vec(len, -20, 7),
        1 => (0..len).map(|_| rng.below(3) as f32).collect(),
        _ => rng.normal_vec(len, 2.0),
    }
}

fn check(test: &str, cfg: &RouterConfig, tokens: usize, with_bias: bool, seed: u64) {
    let mut rng = Rng::new(seed);
    let logits = logits(&mut rng, tokens * cfg.num_experts);
    let bias: Vec<f32> = if with_bias { rng.normal_vec(cfg.num_experts, 0.3) } else { vec![] };
    let expected = route(cfg, &logits, &bias).unwrap();
    assert_eq!(expected.indices, select_all(cfg, &expected, &bias), "CPU and reference");
    for device in devices(test) {
        let kernels = RouterKernels::load(&device).unwrap();
        let (stream, other) = (device.stream().unwrap(), device.stream().unwrap());
        let logits = stream.upload(&logits).unwrap();
        let bias_there = with_bias.then(|| stream.upload(&bias).unwrap());
        for with_scores in [true, false] {
            let mut out = DeviceRouting::new(&other, cfg, tokens, with_scores).unwrap();
            kernels.route(&stream, cfg, &logits, bias_there.as_ref(), &mut out).unwrap();
            let got = out.download(&stream).unwrap();
            let what = format!("{} {cfg:?}", device.backend());
            if with_scores {
                v3_testkit::assert_bits_eq(&format!("{what}: scores"), &got.scores, &expected.scores);
                assert_eq!(got.indices, select_all(cfg, &got, &bias), "{what}: selection of the reference");
            } else {
                assert!(got.scores.is_empty());
            }
            assert_eq!(got.indices, expected.indices, "{what}");
            v3_testkit::assert_bits_eq(&format!("{what}: weights"), &got.weights, &expected.weights);
        }
    }
}

/// Any configuration that the kernels offer.
fn configs() -> impl Strategy<Value = RouterConfig> {
    let sizes = prop_oneof![
        (Just(1usize), 1..65usize),
        (2..9usize, 1..30usize),
        (20..40usize, 1..4usize),
        (Just(8), Just(32)),
        (Just(16), Just(32))
    ];
    (sizes, any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<[bool; 3]>(), prop_oneof![Just(1.0f32), Just(2.5)])
        .prop_map(|((n_group, size), kept, top_k, [softmax, normalise, over_m], factor)| {
            let topk_group = kept.index(n_group) + 1;
            let top_k = top_k.index((topk_group * size).min(16)) + 1;
            RouterConfig {
                n_group,
                topk_group,
                scoring: if softmax { Scoring::Softmax } else { Scoring::Sigmoid },
                group_score: if over_m { GroupScore::TopKOverM } else { GroupScore::TopTwo },
                norm_topk_prob: normalise,
                routed_scaling_factor: factor,
                ..RouterConfig::new(n_group * size, top_k)
            }
        })
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn routings_have_the_bits_of_the_cpu(
        cfg in configs(), tokens in prop_oneof![Just(0usize), Just(1), 2..12usize], with_bias: bool, seed: u64,
    ) {
        check("routings_have_the_bits_of_the_cpu", &cfg, tokens, with_bias, seed);
    }
}

#[test]
fn the_published_configuration() {
    for (seed, tokens) in [7, 41, 64].into_iter().enumerate() {
        check("the_published_configuration", &RouterConfig::deepseek_v3(), tokens, true, seed as u64);
    }
}

/// All affinities equal: the lowest groups, and of these the lowest experts.
#[test]
fn ties_go_to_the_lowest() {
    for device in devices("ties_go_to_the_lowest") {
        let stream = device.stream().unwrap();
        let cfg = RouterConfig::deepseek_v3();
        let logits = stream.upload(&[0.25f32; 2 * 256]).unwrap();
        let mut out = DeviceRouting::new(&stream, &cfg, 2, false).unwrap();
        RouterKernels::load(&device).unwrap().route(&stream, &cfg, &logits, None, &mut out).unwrap();
        assert_eq!(out.download(&stream).unwrap().indices, [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7]);
    }
}

#[test]
fn values_that_are_not_finite_are_left_out_and_said() {
    let device = emulator();
    let (kernels, stream) = (RouterKernels::load(&device).unwrap(), device.stream().unwrap());
    let cfg = RouterConfig::new(40, 3);
    for (bad, softmax) in [(f32::NAN, false), (f32::INFINITY, true), (f32::NEG_INFINITY, false)] {
        let cfg = RouterConfig { scoring: if softmax { Scoring::Softmax } else { Scoring::Sigmoid }, ..cfg };
        let mut values = vec![0.5f32; 3 * 40];
        let expected = route(&cfg, &values, &[]).unwrap();
        values[40 + 39] = bad;
        let logits = stream.upload(&values).unwrap();
        let mut out = DeviceRouting::new(&stream, &cfg, 3, false).unwrap();
        kernels.route(&stream, &cfg, &logits, None, &mut out).unwrap();
        assert!(out.check(&stream).unwrap_err().to_string().contains("token 1"));
        let got = out.download(&stream).unwrap();
        for token in [0, 2] {
            assert_eq!(got.indices[token * 3..][..3], expected.indices[token * 3..][..3]);
            assert_eq!(got.weights[token * 3..][..3], expected.weights[token * 3..][..3]);
        }
        assert_eq!(got.indices[3..6], [u32::MAX; 3]);
        assert_eq!(got.weights[3..6], [0.0; 3]);
    }
    let logits = stream.upload(&[0.5f32; 40]).unwrap();
    let bias = stream.upload(&[f32::NAN; 40]).unwrap();
    let mut out = DeviceRouting::new(&stream, &cfg, 1, false).unwrap();
    kernels.route(&stream, &cfg, &logits, Some(&bias), &mut out).unwrap();
    assert!(out.download(&stream).is_err());

    let refused = |cfg: RouterConfig| DeviceRouting::new(&stream, &cfg, 1, false).unwrap_err();
    assert!(matches!(refused(RouterConfig::new(513, 3)), Error::Unsupported { what } if what.contains("513 experts")));
    assert!(matches!(refused(RouterConfig::new(40, 17)), Error::Unsupported { what } if what.contains("17 experts for a token")));
    assert!(matches!(refused(RouterConfig { n_group: 3, ..cfg }), Error::Config { what: "n_group", .. }));
    assert!(matches!(
        kernels.route(&stream, &RouterConfig::new(40, 2), &logits, None, &mut out),
        Err(Error::Shape { what: "router", .. })
    ));
}
