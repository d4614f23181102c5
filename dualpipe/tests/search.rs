//! The search on a part of the published grid, and what it promises of every problem.

#[path = "../examples/search_grid/points.rs"]
mod points;

use dualpipe::search::{Options, PLACEMENTS, Problem, Slice, lower_bound, search};
use dualpipe::{Costs, Error, Kind, Placement, Schedule, simulate};
use proptest::prelude::*;

/// The least makespan of the schedules with a name that fit.
fn best_known(problem: &Problem) -> Option<(f64, Kind)> {
    let mut best: Option<(f64, Kind)> = None;
    for kind in Kind::ALL {
        let Ok(schedule) = Schedule::new(kind, problem.ranks, problem.micro_batches) else { continue };
        if problem.fits(&schedule).unwrap() {
            let makespan = simulate(&schedule, &problem.costs(schedule.placement())).unwrap().makespan();
            if best.is_none_or(|(other, _)| makespan < other) {
                best = Some((makespan, kind));
            }
        }
    }
    best
}

/// The grid with a small effort; what the default finds is for `cargo run --release -p dualpipe --example search_grid`.
#[test]
fn without_seeds_the_search_is_as_good_as_what_is_known() {
    let points = points::grid().unwrap();
    assert!(points.len() >= 30);
    let (mut better, mut count) = (0, 0);
    for point in &points {
        let problem = &point.problem;
        let found = search(problem, &Options { seed: 0, effort: 6000, known: false }).unwrap();
        assert!(problem.fits(&found.schedule).unwrap());
        assert!(found.lower_bound <= found.makespan);
        let (known, kind) = best_known(problem).unwrap();
        let ratio = found.makespan / known;
        println!("{}: {:.2}, {kind} {known:.2}: {ratio:.3}", point.name, found.makespan);
        assert!(ratio <= 1.01, "{}: {} for {kind}'s {known}", point.name, found.makespan);
        (better, count) = (better + usize::from(ratio <= 0.97), count + 1);
    }
    assert!(2 * better >= count, "better by 3 % on {better} of {count} only");
}

#[test]
fn every_known_schedule_that_fits_ends_at_the_bound_or_later() {
    let mut compared = 0;
    for point in points::grid().unwrap() {
        let bound = lower_bound(&point.problem).unwrap();
        for kind in Kind::ALL.into_iter().filter(|kind| PLACEMENTS.contains(&kind.placement())) {
            let schedule = Schedule::new(kind, point.problem.ranks, point.problem.micro_batches).unwrap();
            if point.problem.fits(&schedule).unwrap() {
                let makespan = simulate(&schedule, &point.problem.costs(schedule.placement())).unwrap().makespan();
                assert!(bound <= makespan, "{}: {kind} {makespan} below {bound}", point.name);
                compared += 1;
            }
        }
    }
    assert!(compared > 80);
}

#[test]
fn with_seeds_it_is_never_worse_than_they_are() {
    for point in points::grid().unwrap().iter().step_by(7) {
        let found = search(&point.problem, &Options { seed: 3, effort: 200, known: true }).unwrap();
        for kind in Kind::ALL.into_iter().filter(|kind| PLACEMENTS.contains(&kind.placement())) {
            let schedule = Schedule::new(kind, point.problem.ranks, point.problem.micro_batches).unwrap();
            if point.problem.fits(&schedule).unwrap() {
                let known = simulate(&schedule, &point.problem.costs(schedule.placement())).unwrap().makespan();
                assert!(found.makespan <= known * (1.0 + 1e-9), "{}: {kind}", point.name);
            }
        }
    }
}

/// On one rank there is nothing to wait for; one micro-batch alone goes there and back.
#[test]
fn bounds_that_are_met() {
    let costs: Costs = "F=2,B=5,W=2,FB=6,P2P=1".parse().unwrap();
    for (ranks, micro_batches, placement, expected) in [
        (1, 5, Placement::Line, 5.0 * 7.0 - 4.0),
        (3, 1, Placement::Line, 3.0 * (2.0 + 3.0) + 4.0 + 2.0),
        (3, 1, Placement::V, 3.0 * (2.0 + 3.0) + 8.0 + 1.0),
    ] {
        let mut problem = Problem::uniform(ranks, micro_batches, &costs).unwrap();
        problem.placements = vec![placement];
        let found = search(&problem, &Options { effort: 3000, ..Options::default() }).unwrap();
        assert_eq!((found.makespan, found.lower_bound), (expected, expected), "{placement:?}");
        assert_eq!(found.gap(), 0.0);
    }
}

/// Half the room takes the work apart: the bound knows.
#[test]
fn the_bound_knows_the_cap() {
    let costs: Costs = "F=1,B=2,W=1".parse().unwrap();
    let mut problem = Problem::uniform(4, 12, &costs).unwrap();
    problem.placements = vec![Placement::Line];
    let mut before = lower_bound(&problem).unwrap();
    assert_eq!(before, 36.0 + 3.0);
    for memory in [4.0, 3.0, 2.0, 1.0] {
        problem.memory = memory;
        let bound = lower_bound(&problem).unwrap();
        assert!(bound >= before);
        before = bound;
    }
    // One at a time: 8 for each, and the way back at the last.
    assert!(before >= 12.0 * 8.0, "{before}");
}

#[test]
fn what_cannot_be_searched_is_said() {
    let costs: Costs = "F=1,B=2,W=1".parse().unwrap();
    let good = Problem::uniform(3, 4, &costs).unwrap();
    let said = |problem: &Problem| search(problem, &Options::default()).unwrap_err();
    let text = said(&Problem { memory: 0.5, ..good.clone() }).to_string();
    assert!(text.starts_with("search: memory: expected 1 or more"), "{text}");
    let two_ways = Problem { placements: vec![Placement::Bidirectional], ..good.clone() };
    assert!(matches!(said(&two_ways), Error::Ranks { .. }));
    for (problem, what) in [
        (Problem { ranks: 0, ..good.clone() }, "search: sizes"),
        (Problem { micro_batches: 0, ..good.clone() }, "search: sizes"),
        (Problem { micro_batches: usize::MAX, ..good.clone() }, "search: sizes"),
        (Problem { slices: Vec::new(), ..good.clone() }, "search: slices"),
        (Problem { links: vec![0.0], ..good.clone() }, "search: links"),
        (Problem { links: vec![0.0, f64::NAN, 0.0], ..good.clone() }, "search: costs"),
        (Problem { memory: f64::NAN, ..good.clone() }, "search: memory"),
        (Problem { placements: Vec::new(), ..good.clone() }, "search: placements"),
        (Problem { placements: vec![Placement::Loop(2)], ..good.clone() }, "search: placements"),
    ] {
        let text = said(&problem).to_string();
        assert!(text.starts_with(what), "{text}");
        assert!(lower_bound(&problem).is_err());
    }
    assert!(Problem::from_stages(3, 4, &[costs; 4]).is_err());
    assert!(Problem::from_stages(3, 4, &[Costs { w: 9.0, ..costs }; 3]).is_err());
    assert!(Problem::uniform(usize::MAX, 4, &costs).is_err());
    let other = Schedule::new(Kind::Interleaved(3), 3, 4).unwrap();
    assert!(good.peak_memory(&other).is_err());
}

/// Stages given one or two a rank describe the same model.
#[test]
fn stages_and_halves() {
    let stage: Costs = "F=2,B=6,W=2,FB=7,P2P=0.5".parse().unwrap();
    let half: Costs = "F=1,B=3,W=1,FB=3.5,P2P=0.5".parse().unwrap();
    let whole = Problem::from_stages(4, 8, &[stage; 4]).unwrap();
    assert_eq!(whole, Problem::from_stages(4, 8, &[half; 8]).unwrap());
    for kind in [Kind::ZbH1, Kind::DualPipe] {
        let schedule = Schedule::new(kind, 4, 8).unwrap();
        let ours = simulate(&schedule, &whole.costs(schedule.placement())).unwrap();
        assert_eq!(ours.makespan(), simulate(&schedule, &stage).unwrap().makespan());
    }
    let schedule = Schedule::new(Kind::ZbV, 4, 8).unwrap();
    let ours = simulate(&schedule, &whole.costs(Placement::V)).unwrap();
    assert_eq!(ours.makespan(), simulate(&schedule, &half).unwrap().makespan());
    // As many chunks as the schedule counts, each of half a unit.
    let peak = whole.peak_memory(&schedule).unwrap();
    let chunks = schedule.peak_activations(dualpipe::Freed::AtWeight);
    assert!(peak.iter().zip(chunks).all(|(memory, chunks)| *memory == 0.5 * chunks as f64));
}

#[test]
fn a_link_serves_both_ways() {
    use dualpipe::CostModel;
    let costs: Costs = "F=1,B=2,W=1".parse().unwrap();
    for ranks in [2, 3, 5] {
        let mut problem = Problem::uniform(ranks, 4, &costs).unwrap();
        problem.links = (0..ranks).map(|link| 1.0 + link as f64).collect();
        let placed = problem.costs(Placement::Line);
        for rank in 0..ranks - 1 {
            assert_eq!(placed.transfer(rank, rank + 1), 1.0 + rank as f64);
            assert_eq!(placed.transfer(rank + 1, rank), 1.0 + rank as f64);
        }
        if ranks > 2 {
            assert_eq!((placed.transfer(0, ranks - 1), placed.transfer(ranks - 1, 0)), (ranks as f64, ranks as f64));
        }
    }
}

/// Large problems take no longer in proportion; there is a size beyond which nothing is searched.
#[test]
fn large_problems_end() {
    let costs: Costs = "F=1,B=2,W=1,FB=2.5".parse().unwrap();
    for (ranks, micro_batches) in [(32, 128), (1, 4096), (128, 32)] {
        let problem = Problem::uniform(ranks, micro_batches, &costs).unwrap();
        let found = search(&problem, &Options { effort: 100, ..Options::default() }).unwrap();
        assert!(found.lower_bound <= found.makespan);
    }
}

fn slices(ranks: usize) -> impl Strategy<Value = Vec<Slice>> {
    let slice = (1..9u32, 0..9u32, 0..9u32, 0..5u32, 0..4u32, 0..4u32, 0..4u32).prop_map(
        |(f, i, w, saved, parameters, at_input, at_weight)| Slice {
            f: f.into(),
            i: i.into(),
            w: w.into(),
            fb: (f + i + w).saturating_sub(saved).into(),
            parameters: parameters.into(),
            at_input: at_input.into(),
            at_weight: at_weight.into(),
        },
    );
    proptest::collection::vec(slice, 2 * ranks)
}

fn problems() -> impl Strategy<Value = Problem> {
    (1..6usize, 1..10usize).prop_flat_map(|(ranks, micro_batches)| {
        let links = proptest::collection::vec((0..6u32).prop_map(f64::from), ranks);
        let memory = prop_oneof![(5..40u32).prop_map(f64::from), Just(f64::INFINITY)];
        let placements = proptest::sample::subsequence(PLACEMENTS.to_vec(), 1..=3);
        (slices(ranks), links, memory, placements).prop_map(move |(slices, links, memory, placements)| Problem {
            ranks,
            micro_batches,
            slices,
            links,
            memory,
            placements,
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// What is found fits, takes as long as it says, ends no earlier than the bound, and is the same again.
    #[test]
    fn what_is_found_is_what_it_says(problem in problems(), seed in 0..5u64) {
        let options = Options { seed, effort: 300, known: seed % 2 == 0 };
        match search(&problem, &options) {
            Ok(found) => {
                prop_assert!(problem.placements.contains(&found.schedule.placement()));
                prop_assert_eq!(found.schedule.kind(), Kind::Custom(found.schedule.placement()));
                let costs = problem.costs(found.schedule.placement());
                prop_assert_eq!(simulate(&found.schedule, &costs).unwrap().makespan(), found.makespan);
                prop_assert!(found.lower_bound <= found.makespan);
                prop_assert!(lower_bound(&problem).unwrap() <= found.makespan * (1.0 + 1e-9));
                prop_assert!(problem.fits(&found.schedule).unwrap());
                prop_assert_eq!(&problem.peak_memory(&found.schedule).unwrap(), &found.peak_memory);
                prop_assert_eq!(search(&problem, &options).unwrap(), found);
            }
            Err(error) => {
                // Only where nothing fits; then the bound says so, too.
                prop_assert_eq!(lower_bound(&problem).unwrap(), f64::INFINITY);
                prop_assert!(matches!(error, Error::Shape { .. } | Error::Ranks { .. }), "{}", error);
            }
        }
    }
}
