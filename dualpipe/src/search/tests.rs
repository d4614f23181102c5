//! The search against the exact solver, and that one against every list there is.

use super::exact::{Verdict, solve};
use super::rules::Chance;
use super::setup::Setup;
use super::{Options, Problem, Slice, lower_bound, search};
use crate::{Action, ActionKind, Kind, Placement, Schedule, Step, simulate};

fn pick(chance: &mut Chance, values: &[f64]) -> f64 {
    values[chance.below(values.len())]
}

/// A random problem: costs that differ by up to 3 from stage to stage, pairs that save or do not, transfers, and a cap between
/// what one micro-batch needs and no cap.
fn random_problem(chance: &mut Chance, ranks: usize, micro_batches: usize, placement: Placement) -> Problem {
    let saves = chance.below(2) == 0;
    let slices = (0..2 * ranks)
        .map(|_| {
            let (f, i, w) = (1 + chance.below(6), 1 + chance.below(6), chance.below(7));
            let saved = if saves { chance.below(1 + (f + i + w) / 2) } else { 0 };
            Slice {
                f: f as f64,
                i: i as f64,
                w: w as f64,
                fb: (f + i + w - saved) as f64,
                parameters: chance.below(3) as f64,
                at_input: chance.below(3) as f64,
                at_weight: chance.below(3) as f64,
            }
        })
        .collect();
    let link = pick(chance, &[0.0, 0.0, 1.0, 3.0, 8.0]);
    let mut problem = Problem {
        ranks,
        micro_batches,
        slices,
        links: (0..ranks).map(|_| link + chance.below(2) as f64).collect(),
        memory: f64::INFINITY,
        placements: vec![placement],
    };
    let setup = Setup::new(&problem, placement).expect("it has no cap");
    let parameters = problem.parameters(placement);
    let least = (0..ranks).map(|rank| parameters[rank] + setup.least(rank)).fold(0.0, f64::max);
    let more = [0.0, 1.0, 2.0, 4.0, 6.0, f64::INFINITY][chance.below(6)];
    problem.memory = least + more;
    problem
}

/// Every list of one rank: each chunk of each direction once forward and once backward, in any order in which the rank alone
/// could do it, as `B` or as `I` and `W`, and with every pair.
fn every_list(counts: &[usize], full: bool, pairs: bool) -> Vec<Vec<Step>> {
    #[derive(Clone, Copy, PartialEq)]
    enum At {
        Start,
        Forward,
        Input,
        End,
    }
    fn grow(chunks: &[(u8, usize)], full: bool, pairs: bool, at: &mut Vec<At>, list: &mut Vec<Step>, all: &mut Vec<Vec<Step>>) {
        if at.iter().all(|&state| state == At::End) {
            all.push(list.clone());
            return;
        }
        for n in 0..chunks.len() {
            let (direction, chunk) = chunks[n];
            let action = |kind| Action::new(kind, direction, chunk);
            let before = at[n];
            let mut go = |step: Step, next: At, at: &mut Vec<At>| {
                at[n] = next;
                list.push(step);
                grow(chunks, full, pairs, at, list, all);
                list.pop();
                at[n] = before;
            };
            match before {
                At::Start => {
                    go(Step::One(action(ActionKind::F)), At::Forward, at);
                    for m in (0..chunks.len()).filter(|_| pairs) {
                        if at[m] == At::Forward {
                            let other = Action::new(ActionKind::B, chunks[m].0, chunks[m].1);
                            at[m] = At::End;
                            go(Step::Pair(action(ActionKind::F), other), At::Forward, at);
                            at[m] = At::Forward;
                        }
                    }
                }
                At::Forward => {
                    go(Step::One(action(ActionKind::I)), At::Input, at);
                    if full {
                        go(Step::One(action(ActionKind::B)), At::End, at);
                    }
                }
                At::Input => go(Step::One(action(ActionKind::W)), At::End, at),
                At::End => {}
            }
        }
    }
    let chunks: Vec<(u8, usize)> = counts.iter().enumerate().flat_map(|(d, &n)| (0..n).map(move |c| (d as u8, c))).collect();
    let mut all = Vec::new();
    grow(&chunks, full, pairs, &mut vec![At::Start; chunks.len()], &mut Vec::new(), &mut all);
    all
}

/// The least makespan of all schedules there are.
fn brute_force(problem: &Problem, placement: Placement, full: bool, pairs: bool) -> f64 {
    let counts: Vec<usize> = (0..placement.directions()).map(|d| placement.chunks(problem.micro_batches, d)).collect();
    let lists = every_list(&counts, full, pairs);
    let costs = problem.costs(placement);
    let mut best = f64::INFINITY;
    let mut index = vec![0; problem.ranks];
    loop {
        let chosen = index.iter().map(|&n| lists[n].clone()).collect();
        let made = Schedule::from_actions(Kind::Custom(placement), problem.ranks, problem.micro_batches, chosen);
        if let Ok(schedule) = made
            && problem.fits(&schedule).unwrap()
        {
            best = best.min(simulate(&schedule, &costs).unwrap().makespan());
        }
        let Some(next) = index.iter().position(|&n| n + 1 < lists.len()) else { return best };
        index[next] += 1;
        index[..next].fill(0);
    }
}

#[test]
fn the_exact_solver_equals_brute_force() {
    use Placement::{Bidirectional, Line, V};
    let mut chance = Chance::new(11);
    let mut gained = 0;
    // Ranks, micro-batches, placement, instances, full backwards too, pairs too.
    for (ranks, micro_batches, placement, instances, full, pairs) in [
        (1, 2, Line, 10, true, true),
        (2, 2, Line, 20, true, true),
        (3, 2, Line, 8, false, false),
        (1, 3, Line, 10, false, true),
        (2, 2, Bidirectional, 20, true, true),
        (2, 1, Bidirectional, 5, true, true),
        (2, 1, V, 20, true, true),
        (1, 2, V, 1, false, false),
    ] {
        for instance in 0..instances {
            let mut problem = random_problem(&mut chance, ranks, micro_batches, placement);
            if instance % 2 == 0 {
                problem.slices.iter_mut().for_each(|slice| slice.fb = (0.5 * slice.fb).floor());
            }
            if !pairs {
                // Even that of two stages saves nothing.
                problem.slices.iter_mut().for_each(|slice| slice.fb = 100.0);
            }
            let expected = brute_force(&problem, placement, full, pairs);
            let setup = Setup::new(&problem, placement).unwrap();
            let Verdict::Best(exact, lists) = solve(&setup, f64::INFINITY) else { panic!("{problem:?}") };
            assert_eq!(exact, expected, "{problem:?}");
            // What it says can be done, and by its bound nothing better can.
            let schedule = Schedule::from_actions(Kind::Custom(placement), ranks, micro_batches, setup.steps(&lists)).unwrap();
            assert!(problem.fits(&schedule).unwrap());
            assert_eq!(simulate(&schedule, &problem.costs(placement)).unwrap().makespan(), exact);
            assert_eq!(solve(&setup, exact), Verdict::NoneBelow);
            assert!(lower_bound(&problem).unwrap() <= exact * (1.0 + 1e-9), "{problem:?}");
            gained += usize::from(schedule.ranks_actions().iter().flatten().any(Step::is_pair));
        }
    }
    assert!(gained > 5, "pairs were of use in only {gained} instances");
}

#[test]
fn the_search_equals_the_exact_solver() {
    let mut chance = Chance::new(7);
    let (mut equal, mut proved, mut worst) = (0, 0, 1.0f64);
    const INSTANCES: usize = 200;
    for seed in 0..INSTANCES as u64 {
        let (ranks, micro_batches, placement) = loop {
            let drawn = (1 + chance.below(3), 1 + chance.below(4), super::PLACEMENTS[chance.below(3)]);
            if Kind::Custom(drawn.2).placement_fits(drawn.0, drawn.1).is_ok() {
                break drawn;
            }
        };
        let problem = random_problem(&mut chance, ranks, micro_batches, placement);
        let found = search(&problem, &Options { seed, effort: 50_000, known: false }).unwrap();
        assert!(problem.fits(&found.schedule).unwrap());
        assert!(lower_bound(&problem).unwrap() <= found.makespan * (1.0 + 1e-9));
        if found.gap() < 1e-8 {
            (equal, proved) = (equal + 1, proved + 1);
            continue;
        }
        match solve(&Setup::new(&problem, placement).unwrap(), found.makespan) {
            Verdict::NoneBelow => equal += 1,
            Verdict::Best(best, _) => {
                assert!(found.lower_bound <= best * (1.0 + 1e-9));
                worst = worst.max(found.makespan / best);
                println!("{ranks} ranks, {micro_batches} micro-batches, {placement:?}: {} for {best}", found.makespan);
            }
            Verdict::Unknown => panic!("too large for the exact solver: {problem:?}"),
        }
    }
    println!("{equal} of {INSTANCES} equal ({proved} by the lower bound alone), at worst {worst:.4} of the best");
    assert!(100 * equal >= 95 * INSTANCES && worst <= 1.02);
}
