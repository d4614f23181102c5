//! Random programs under the virtual clock: the times of an independent simulation, to the bit, whatever the threads do.

mod program;
mod reference;

use std::time::Duration;

use proptest::prelude::*;
use v3_ranks::{Link, LinkModel};
use v3_testkit::Rng;

use program::{Program, run};
use reference::Reference;

fn links() -> impl Strategy<Value = Option<LinkModel>> {
    let link = (0u64..4, prop::sample::select(vec![1.0, 3.0, 8.0, 1e3, f64::INFINITY]))
        .prop_map(|(halves, bandwidth)| Link { latency: Duration::from_millis(500 * halves), bandwidth });
    prop::option::weighted(0.9, (link.clone(), link).prop_map(|(fast, slow)| LinkModel { fast, slow }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn times_are_those_of_an_independent_simulation(seed: u64, ranks in 1usize..7, length in 0usize..120, link in links()) {
        let program = Program::random(&mut Rng::new(seed), ranks, length, link);
        let want = Reference::run(&program);
        prop_assert_eq!(&run(&program, None, 0), &want);
        prop_assert_eq!(&run(&program, Some(1), seed | 1), &want);
        prop_assert_eq!(&run(&program, Some(2), seed.rotate_left(20) | 1), &want);
    }
}

/// The programs of the test above do what it is meant to test.
#[test]
fn random_programs_wait_for_both_reasons_and_use_their_lanes() {
    let second = Duration::from_secs(1);
    let link = LinkModel { fast: Link { latency: second, bandwidth: 8.0 }, slow: Link { latency: second, bandwidth: 2.0 } };
    let program = Program::random(&mut Rng::new(3), 5, 400, Some(link));
    let seen = Reference::run(&program);
    assert!(seen.iter().all(|rank| rank.waits.exposed > 0.0));
    assert!(seen.iter().any(|rank| rank.waits.bubble > 0.0));
    assert!(seen.iter().flat_map(|rank| &rank.lanes).any(|lane| lane.exposed > 0.0));
}
