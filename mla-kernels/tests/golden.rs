//! YaRN against values computed apart from this crate, and RoPE against its reference.
//!
//! `data/yarn.txt` holds frequencies and attention factors of the formula that published DeepSeek-V3 configurations use
//! (correction range rounded outwards, linear ramp, blend of interpolated and extrapolated frequencies), evaluated in f64 by
//! another program.

use mla_kernels::rope::yarn_mscale;
use mla_kernels::{Error, RopeConfig, RopeTable, Yarn, reference, softmax_scale};
use proptest::prelude::*;
use v3_testkit::poison::Guarded;
use v3_testkit::{Rng, Tolerance, assert_bits_eq};

fn plain(dim: usize) -> RopeConfig {
    RopeConfig { dim, theta: 10_000.0, max_position: 100, yarn: None, interleaved: true }
}

#[test]
fn yarn_frequencies() {
    let mut cases = 0;
    for line in include_str!("data/yarn.txt").lines().filter(|l| !l.starts_with('#')) {
        let parts: Vec<Vec<f64>> = line.split('|').map(|p| p.split_whitespace().map(|v| v.parse().unwrap()).collect()).collect();
        let [dim, theta, factor, original, beta_fast, beta_slow, mscale, mscale_all_dim] = parts[0][..] else { panic!("{line}") };
        let original_max_position = original as usize;
        let yarn = Yarn { factor, original_max_position, beta_fast, beta_slow, mscale, mscale_all_dim };
        let config = RopeConfig { theta, yarn: Some(yarn), ..plain(dim as usize) };
        let (frequencies, magnitude) = config.frequencies().unwrap();
        Tolerance::relative(1e-13).check("frequencies", &frequencies, &parts[2]).unwrap();
        Tolerance::relative(1e-13).check("attention factor", &[magnitude], &parts[1]).unwrap();
        cases += 1;
    }
    assert_eq!(cases, 5);
}

#[test]
fn softmax_scales() {
    assert_eq!(softmax_scale(192, &plain(64)), 192f32.powf(-0.5));
    let yarn =
        Yarn { factor: 40.0, original_max_position: 4096, beta_fast: 32.0, beta_slow: 1.0, mscale: 1.0, mscale_all_dim: 1.0 };
    // 0.1 ln 40 + 1 = 1.36888794541139...
    Tolerance::relative(1e-12).check("mscale", &[yarn_mscale(40.0, 1.0)], &[1.368_887_945_411_394]).unwrap();
    let scale = softmax_scale(192, &RopeConfig { yarn: Some(yarn), ..plain(64) });
    Tolerance::ulps(1.0).check("scale", &[scale], &[1.368_887_945_411_394f64.powi(2) / 192f64.sqrt()]).unwrap();
    let silent = Yarn { mscale_all_dim: 0.0, ..yarn };
    assert_eq!(softmax_scale(192, &RopeConfig { yarn: Some(silent), ..plain(64) }), 192f32.powf(-0.5));
    assert_eq!(yarn_mscale(1.0, 1.0), 1.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rotation(
        half in 0usize..9,
        rows in 0usize..40,
        heads in 0usize..4,
        offset in 0usize..5,
        gaps in (0usize..3, 0usize..3),
        interleaved in any::<bool>(),
        inverse in any::<bool>(),
        scaled in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let yarn = Yarn { factor: 4.0, original_max_position: 64, beta_fast: 32.0, beta_slow: 1.0, mscale: 0.7, mscale_all_dim: 0.3 };
        let config = RopeConfig { interleaved, yarn: scaled.then_some(yarn), ..plain(2 * half) };
        let table = RopeTable::new(&config).unwrap();
        let head_stride = config.dim + gaps.0;
        let row_stride = offset + heads * head_stride + gaps.1;
        let mut rng = Rng::new(seed);
        let x = rng.normal_vec(rows * row_stride, 1.0);
        // Within the table, beyond it, and far beyond.
        let positions: Vec<u32> = (0..rows).map(|i| [i as u32, 99, 100, 101, 163_839, u32::MAX][i % 6]).collect();
        let mut got = Guarded::input(&x);
        table.apply(got.as_mut_slice(), rows, row_stride, offset, heads, head_stride, &positions, inverse).unwrap();
        got.check().unwrap();
        let (frequencies, magnitude) = config.frequencies().unwrap();
        let mut expected = reference::widen(&x);
        for (row, position) in positions.iter().enumerate() {
            for head in 0..heads {
                let at = row * row_stride + offset + head * head_stride;
                reference::rotate(&config, &frequencies, magnitude, &mut expected[at..at + config.dim], *position, inverse);
            }
        }
        // Each output is two products with a rounded cosine or sine and a sum, of values below 6 times a magnitude below 1.1.
        Tolerance::absolute(6.0 * 1.1 * 6.0 * 2f64.powi(-24)).check("rotated", got.as_slice(), &expected).unwrap();
    }
}

#[test]
fn the_inverse_undoes_the_rotation_and_products_depend_on_distance_alone() {
    for interleaved in [true, false] {
        let table = RopeTable::new(&RopeConfig { interleaved, ..plain(8) }).unwrap();
        let mut rng = Rng::new(1);
        let (q, k) = (rng.normal_vec(8, 1.0), rng.normal_vec(8, 1.0));
        let turned = |x: &[f32], position: u32, inverse: bool| {
            let mut x = x.to_vec();
            table.apply(&mut x, 1, 8, 0, 1, 8, &[position], inverse).unwrap();
            x
        };
        assert_bits_eq("position 0", &turned(&q, 0, false), &q);
        Tolerance::absolute(1e-6).check("there and back", &turned(&turned(&q, 37, false), 37, true), &q).unwrap();
        let product = |a: u32, b: u32| -> f64 {
            turned(&q, a, false).iter().zip(turned(&k, b, false)).map(|(x, y)| f64::from(*x) * f64::from(y)).sum()
        };
        Tolerance::absolute(2e-5).check("distance", &[product(12, 5), product(4007, 4000)], &[product(7, 0); 2]).unwrap();
        assert!((product(7, 0) - product(8, 0)).abs() > 1e-3);
    }
}

/// Both pairings give the same dot products, when the values are permuted alike.
#[test]
fn pairings_agree() {
    let mut rng = Rng::new(2);
    let x = rng.normal_vec(10, 1.0);
    let halves: Vec<f32> = x.iter().step_by(2).chain(x.iter().skip(1).step_by(2)).copied().collect();
    let turned = |x: &[f32], interleaved| {
        let mut x = x.to_vec();
        let table = RopeTable::new(&RopeConfig { interleaved, ..plain(10) }).unwrap();
        table.apply(&mut x, 1, 10, 0, 1, 10, &[11], false).unwrap();
        x
    };
    let (a, b) = (turned(&x, true), turned(&halves, false));
    let a: Vec<f32> = a.iter().step_by(2).chain(a.iter().skip(1).step_by(2)).copied().collect();
    assert_bits_eq("permuted", &a, &b);
}

#[test]
fn wrong_configurations_and_sizes_are_refused() {
    let yarn = Yarn { factor: 4.0, original_max_position: 64, beta_fast: 32.0, beta_slow: 1.0, mscale: 1.0, mscale_all_dim: 1.0 };
    for bad in [
        plain(7),
        RopeConfig { theta: 1.0, ..plain(8) },
        RopeConfig { theta: f64::NAN, ..plain(8) },
        RopeConfig { yarn: Some(Yarn { factor: 0.5, ..yarn }), ..plain(8) },
        RopeConfig { yarn: Some(Yarn { original_max_position: 0, ..yarn }), ..plain(8) },
        RopeConfig { yarn: Some(Yarn { beta_fast: 0.0, ..yarn }), ..plain(8) },
        RopeConfig { yarn: Some(Yarn { beta_slow: f64::INFINITY, ..yarn }), ..plain(8) },
        RopeConfig { yarn: Some(Yarn { mscale: -1.0, ..yarn }), ..plain(8) },
    ] {
        assert!(matches!(RopeTable::new(&bad), Err(Error::Parameter { .. })), "{bad:?}");
    }
    let table = RopeTable::new(&plain(4)).unwrap();
    let mut x = vec![0.0; 20];
    assert!(table.apply(&mut x, 2, 10, 2, 2, 4, &[0, 1], false).is_ok());
    assert!(table.apply(&mut x, 2, 10, 3, 2, 4, &[0, 1], false).is_err());
    assert!(table.apply(&mut x, 2, 10, 2, 2, 3, &[0, 1], false).is_err());
    assert!(table.apply(&mut x, 3, 10, 2, 2, 4, &[0, 1, 2], false).is_err());
    assert!(table.apply(&mut x, 2, 10, 2, 2, 4, &[0], false).is_err());
    assert!(table.apply(&mut x, 2, usize::MAX, 2, 2, 4, &[0, 1], false).is_err());
    assert!(table.apply(&mut x, 1, 1, usize::MAX, 2, 4, &[0], false).is_err());
}
