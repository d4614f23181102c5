//! What the rest of the workspace relies on: comparators that fail when they should, and generators that never change.

use v3_testkit::compare::{Mismatches, Tolerance, check_bits, ulp};
use v3_testkit::poison::{Guarded, POISON, poisoned, unwritten};
use v3_testkit::rng::{Rng, awkward_sizes};
use v3_testkit::skip::{skip, skipped};

#[test]
fn ulp_is_the_distance_of_neighbours() {
    for x in [1.0f32, 1.5, -3.0, 448.0, 1e-30, 3.0e38, f32::MIN_POSITIVE] {
        let up = f32::from_bits(x.abs().to_bits() + 1);
        assert_eq!(ulp(f64::from(x)), f64::from(up) - f64::from(x.abs()), "{x:e}");
    }
    assert_eq!(ulp(0.0), f64::from(f32::from_bits(1)));
    assert_eq!(ulp(1e-45), f64::from(f32::from_bits(1)));
}

#[test]
fn bounds_add_up() {
    let t = Tolerance::absolute(0.5).and_relative(0.1).and_ulps(0.0);
    assert!(t.accepts(11.5, 10.0));
    assert!(!t.accepts(11.6, 10.0));
    assert!(Tolerance::ulps(1.0).accepts(f64::from(f32::from_bits(0x3f80_0001)), 1.0));
    assert!(!Tolerance::ulps(1.0).accepts(f64::from(f32::from_bits(0x3f80_0002)), 1.0));
}

#[test]
fn special_values_are_no_excuse() {
    let wide = Tolerance::absolute(f64::INFINITY);
    assert!(!wide.accepts(f64::NAN, 0.0));
    assert!(!wide.accepts(0.0, f64::NAN));
    assert!(wide.accepts(f64::NAN, f64::NAN));
    assert!(!wide.accepts(f64::INFINITY, 0.0));
    assert!(!wide.accepts(0.0, f64::INFINITY));
    assert!(!wide.accepts(f64::NEG_INFINITY, f64::INFINITY));
    assert!(Tolerance::EXACT.accepts(f64::INFINITY, f64::INFINITY));
    assert!(Tolerance::ulps(0.5).accepts(f64::INFINITY, 1e300));
    assert!(wide.check("nan", &[f32::NAN], &[0.0f32]).is_err());
    assert!(wide.check("inf", &[f32::INFINITY], &[0.0f32]).is_err());
}

#[test]
fn a_report_lists_the_failing_indexes() {
    let expected: Vec<f32> = (0..100).map(|i| i as f32).collect();
    let mut got = expected.clone();
    for i in (0..60).step_by(2) {
        got[i] += 1.0;
    }
    got[58] += 5.0;
    let report = Tolerance::absolute(0.5).check("ramp", &got, &expected).unwrap_err();
    assert_eq!(report.failed(), 30);
    assert_eq!(report.shown().len(), Mismatches::SHOWN);
    assert_eq!(report.shown()[1].index, 2);
    assert_eq!(report.worst().unwrap().index, 58);
    let text = report.to_string();
    assert!(text.starts_with("ramp: 30 of 100 values differ\n  [0] 1e0, expected 0e0"), "{text}");
    assert!(text.contains("and 14 more"), "{text}");
    assert!(text.contains("worst: [58] 6.4e1, expected 5.8e1"), "{text}");
}

#[test]
fn lengths_must_agree() {
    assert!(Tolerance::EXACT.check("short", &[1.0f32], &[1.0f32, 2.0]).is_err());
    assert!(Tolerance::EXACT.check_bounded("bounds", &[1.0f32], &[1.0f32], &[]).is_err());
    assert!(Tolerance::EXACT.check_bounded("bounds", &[1.5f32], &[1.0f32], &[0.5]).is_ok());
    assert!(Tolerance::EXACT.check_bounded("bounds", &[1.75f32], &[1.0f32], &[0.5]).is_err());
    assert!(check_bits("short", &[], &[0.0]).is_err());
}

#[test]
fn bits_tell_zeros_apart() {
    assert!(check_bits("zero", &[-0.0], &[0.0]).is_err());
    assert!(check_bits("nan", &[f32::NAN], &[f32::NAN]).is_ok());
    assert!(check_bits("payload", &[POISON], &[f32::NAN]).is_err());
}

#[test]
fn generators_never_change() {
    let mut rng = Rng::new(1);
    let first: Vec<u32> = (0..4).map(|_| rng.u32()).collect();
    let mut again = Rng::new(1);
    assert_eq!(first, (0..4).map(|_| again.u32()).collect::<Vec<_>>());
    assert_ne!(first, (0..4).map(|_| Rng::new(2).u32()).collect::<Vec<_>>());

    let normal = Rng::new(3).normal_vec(20_000, 2.0);
    let mean = normal.iter().map(|x| f64::from(*x)).sum::<f64>() / 20_000.0;
    let variance = normal.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 20_000.0;
    // Five standard errors: 2 / sqrt(20000) = 0.014 for the mean, 4 * sqrt(2 / 20000) = 0.04 for the variance.
    assert!(mean.abs() < 0.07 && (variance - 4.0).abs() < 0.2, "mean {mean}, variance {variance}");

    for x in Rng::new(4).spread_vec(1000, -3, 5) {
        assert!(x.abs() >= 0.125 && x.abs() < 32.0, "{x}");
    }
    assert!(Rng::new(5).bits_vec(1000).iter().any(|x| x.is_nan()));
    let mut order: Vec<usize> = (0..100).collect();
    rng.shuffle(&mut order);
    assert_ne!(order, (0..100).collect::<Vec<_>>());
    order.sort_unstable();
    assert_eq!(order, (0..100).collect::<Vec<_>>());
    assert!((0..1000).all(|_| rng.below(7) < 7) && rng.below(0) == 0);
}

#[test]
fn awkward_sizes_surround_the_tile() {
    assert_eq!(awkward_sizes(16, 40), [0, 1, 2, 3, 5, 7, 13, 15, 16, 17, 31, 32, 33]);
    assert_eq!(awkward_sizes(0, 3), [0, 1, 2, 3]);
}

#[test]
fn guards_catch_stray_writes() {
    let mut buffer = Guarded::output(10);
    assert_eq!(unwritten(buffer.as_slice()).len(), 10);
    buffer.as_mut_slice().fill(1.0);
    buffer.check().unwrap();
    assert!(unwritten(buffer.as_slice()).is_empty());
    assert_eq!(unwritten(&poisoned(3)), [0, 1, 2]);
    assert_eq!(Guarded::input(&[1.0, 2.0]).as_slice(), [1.0, 2.0]);
}

#[test]
fn skips_are_noted_once() {
    skip("imaginary backend", "does not exist");
    skip("imaginary backend", "does not exist");
    let noted = skipped().into_iter().filter(|(name, _)| name == "imaginary backend").count();
    assert_eq!(noted, 1);
}

fn on_backend(lanes: usize) {
    assert!(lanes.is_power_of_two());
}
v3_testkit::backend_tests!(on_backend;
    four: 4, if true;
    three: 3, if false;
);
