//! The search itself: rules first, then moves on the best lists they made.

use crate::error::{Error, Result};
use crate::kind::{Kind, Placement};
use crate::schedule::Schedule;
use crate::search::bound::bound;
use crate::search::build::Builder;
use crate::search::improve::{Improver, possible};
use crate::search::problem::Problem;
use crate::search::rules::{Chance, Recipe};
use crate::search::setup::{Op, Setup};

/// How to search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Same seed, same answer.
    pub seed: u64,
    /// How many schedules are tried for each placement, about, where these have some hundred to 2,000 actions: up to three times as
    /// many if there are fewer actions, and fewer if there are more, so that the time depends little on the problem.
    pub effort: usize,
    /// Whether the schedules that have a name, where they fit, are among the starting points.
    pub known: bool,
}

impl Default for Options {
    /// Seed 0, an effort of 120,000, known schedules as starting points.
    fn default() -> Options {
        Options { seed: 0, effort: 120_000, known: true }
    }
}

/// What the search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The schedule: its kind is [`Kind::Custom`], even where the search found nothing better than a known one.
    pub schedule: Schedule,
    /// When it ends, as [`crate::simulate`] with [`Problem::costs`] says.
    pub makespan: f64,
    /// No schedule of this problem ends earlier: see [`crate::search::lower_bound`].
    pub lower_bound: f64,
    /// The most memory that each rank uses, parameters and activations.
    pub peak_memory: Vec<f64>,
    /// How many schedules were tried.
    pub tried: usize,
}

impl Found {
    /// By what share the makespan exceeds the lower bound, 0 where it is proved to be the best.
    pub fn gap(&self) -> f64 {
        if self.lower_bound > 0.0 { (self.makespan / self.lower_bound - 1.0).max(0.0) } else { 0.0 }
    }
}

/// Lists that the search works on.
struct Candidate {
    setup: usize,
    lists: Vec<Vec<Op>>,
    makespan: f64,
}

/// Candidates that the rules of one placement may give.
const KEPT: usize = 12;
/// Candidates that are improved at first; half as many in each round after.
const IMPROVED: usize = 8;

/// Finds a schedule with a short makespan that keeps every rank within the cap.
///
/// Lists are made by rules whose numbers are drawn by chance, the best rules are varied, and the best lists improved by
/// moving, splitting and joining actions on the longest path. Full backwards are searched as `I` and `W`; pairs are used where they
/// are cheaper than their parts.
///
/// # Errors
/// A problem that [`Problem::check`] refuses; ranks or micro-batches that no placement takes; a cap below what the parameters and one micro-batch
/// need under every placement.
///
/// ```
/// use dualpipe::Costs;
/// use dualpipe::search::{Options, Problem, search};
/// let mut problem = Problem::uniform(2, 4, &"F=1,B=2,W=1".parse::<Costs>()?)?;
/// problem.memory = 2.0; // two micro-batches' activations a rank
/// let found = search(&problem, &Options { effort: 2000, ..Options::default() })?;
/// assert_eq!(found.makespan, found.lower_bound); // proved to be the best
/// assert!(found.peak_memory.iter().all(|&peak| peak <= 2.0));
/// # Ok::<(), dualpipe::Error>(())
/// ```
pub fn search(problem: &Problem, options: &Options) -> Result<Found> {
    problem.check()?;
    let mut setups: Vec<(Setup, f64)> = Vec::new();
    for (index, &placement) in problem.placements.iter().enumerate() {
        if !problem.placements[..index].contains(&placement)
            && let Some(setup) = Setup::new(problem, placement)
        {
            let least = bound(&setup);
            setups.push((setup, least));
        }
    }
    if setups.is_empty() {
        return Err(no_placement(problem));
    }
    let lower_bound = setups.iter().map(|(_, least)| *least).fold(f64::INFINITY, f64::min);
    let target = lower_bound * (1.0 + 1e-10);
    let mut chance = Chance::new(options.seed);
    let mut tried = 0;
    let mut candidates: Vec<Candidate> = Vec::new();
    for (index, (setup, least)) in setups.iter().enumerate() {
        if best(&candidates) <= *least * (1.0 + 1e-10) {
            continue;
        }
        if options.known {
            add_known(problem, setup, index, &mut candidates);
        }
        by_rules(setup, index, (effort(options, setup) / 12).max(16), target, &mut chance, &mut candidates, &mut tried);
    }
    // The most promising ones get the most: rounds over ever fewer of them.
    candidates.sort_by(|a, b| a.makespan.total_cmp(&b.makespan));
    let mut kept = diverse(candidates, setups.len());
    let rounds = IMPROVED.ilog2() as usize + 1;
    let whole = setups.iter().map(|(setup, _)| effort(options, setup)).fold(0, usize::saturating_add);
    for round in 0..rounds {
        if best(&kept) <= target {
            break;
        }
        let share = whole / rounds / kept.len().max(1);
        for candidate in &mut kept {
            let setup = &setups[candidate.setup].0;
            let mut improver = Improver::new(setup, &candidate.lists);
            // Small problems are annealed again and again, with more heat or less.
            let once = 30 * setup.chunks * setup.places.len();
            let mut heat = 0.03;
            let mut left = share;
            while left > 0 && improver.best_makespan > target {
                let trials = left.min(once.max(1000));
                improver.anneal(&mut chance, trials, heat, target);
                left -= trials;
                heat = [0.03, 0.1, 0.3, 0.6][chance.below(4)];
            }
            tried += improver.tried;
            if improver.best_makespan < candidate.makespan {
                candidate.makespan = improver.best_makespan;
                candidate.lists = improver.best;
            }
            if candidate.makespan <= target {
                break;
            }
        }
        kept.sort_by(|a, b| a.makespan.total_cmp(&b.makespan));
        kept.truncate((IMPROVED >> (round + 1)).max(1));
    }
    let Some(winner) = kept.into_iter().next() else { return Err(no_placement(problem)) };
    let setup = &setups[winner.setup].0;
    let steps = setup.steps(&winner.lists);
    let schedule = Schedule::from_actions(Kind::Custom(setup.placement), problem.ranks, problem.micro_batches, steps)?;
    let makespan = crate::simulate(&schedule, &problem.costs(setup.placement))?.makespan();
    let peak_memory = problem.peak_memory(&schedule)?;
    Ok(Found { schedule, makespan, lower_bound: lower_bound.min(makespan), peak_memory, tried })
}

/// The trials of a placement: more of them for small problems and fewer for large ones, since each costs less, or more.
fn effort(options: &Options, setup: &Setup) -> usize {
    let letters = (3 * setup.chunks * setup.places.len()).max(1);
    if letters <= ORDINARY {
        return options.effort.saturating_mul((400 / letters).clamp(1, 3));
    }
    (options.effort as u128 * ORDINARY as u128 / letters as u128) as usize
}

/// Actions of a problem for which [`Options::effort`] is meant: 8 ranks, 32 micro-batches, two stages a rank have 1,536.
const ORDINARY: usize = 2000;

fn best(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| candidate.makespan).fold(f64::INFINITY, f64::min)
}

/// The best of all, at least two of each placement among them.
fn diverse(candidates: Vec<Candidate>, setups: usize) -> Vec<Candidate> {
    let mut count = vec![0; setups];
    let mut kept: Vec<Candidate> = Vec::new();
    let mut rest: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        count[candidate.setup] += 1;
        if count[candidate.setup] <= 2 {
            kept.push(candidate);
        } else {
            rest.push(candidate);
        }
    }
    let free = IMPROVED.saturating_sub(kept.len());
    kept.extend(rest.into_iter().take(free));
    kept.sort_by(|a, b| a.makespan.total_cmp(&b.makespan));
    kept
}

/// The schedules with a name that have this placement and fit.
fn add_known(problem: &Problem, setup: &Setup, index: usize, candidates: &mut Vec<Candidate>) {
    for kind in Kind::ALL.into_iter().filter(|kind| kind.placement() == setup.placement) {
        let Ok(schedule) = Schedule::new(kind, problem.ranks, problem.micro_batches) else { continue };
        let lists = setup.letters(schedule.ranks_actions());
        // Pairs that save nothing are two actions.
        let lists: Vec<Vec<Op>> = lists.iter().enumerate().map(|(rank, list)| apart(setup, rank, list)).collect();
        if !lists.iter().enumerate().all(|(rank, list)| possible(setup, rank, list)) {
            continue;
        }
        let makespan = Improver::new(setup, &lists).best_makespan;
        if makespan.is_finite() {
            candidates.push(Candidate { setup: index, lists, makespan });
        }
    }
}

/// The list with those pairs taken apart that are not cheaper than their parts. The forward comes first, so that memory
/// is needed as in the pair.
fn apart(setup: &Setup, rank: usize, list: &[Op]) -> Vec<Op> {
    let parts = |&op: &Op| match op {
        Op::Pair(f, b) if setup.cost(rank, op) == f64::INFINITY => vec![Op::F(f), Op::I(b), Op::W(b)],
        other => vec![other],
    };
    list.iter().flat_map(parts).collect()
}

/// Tries recipes, at first any, then those near the best, and adds the best lists.
fn by_rules(
    setup: &Setup,
    index: usize,
    tries: usize,
    target: f64,
    chance: &mut Chance,
    candidates: &mut Vec<Candidate>,
    tried: &mut usize,
) {
    let mut builder = Builder::default();
    let mut pool: Vec<(f64, Recipe)> = Vec::new();
    for trial in 0..tries {
        let recipe = match pool.len().min(6) {
            0 => Recipe::random(chance),
            _ if trial < tries / 3 => Recipe::random(chance),
            few => pool[chance.below(few)].1.moved(chance),
        };
        let (keys, rule) = recipe.cook(setup);
        *tried += 1;
        if !builder.run(setup, &keys, &rule) {
            continue;
        }
        let makespan = builder.makespan;
        let at = pool.partition_point(|(other, _)| *other <= makespan);
        if at < KEPT && (at == 0 || pool[at - 1].0 < makespan) {
            pool.insert(at, (makespan, recipe));
            pool.truncate(KEPT);
        }
        if makespan <= target {
            break;
        }
    }
    for (_, recipe) in &pool {
        let (keys, rule) = recipe.cook(setup);
        if builder.run(setup, &keys, &rule) {
            let lists = builder.lists.clone();
            let makespan = Improver::new(setup, &lists).best_makespan;
            candidates.push(Candidate { setup: index, lists, makespan });
        }
    }
    if pool.is_empty() {
        // One micro-batch after the other needs the least memory of all.
        let lists = one_by_one(setup);
        let makespan = Improver::new(setup, &lists).best_makespan;
        candidates.push(Candidate { setup: index, lists, makespan });
    }
}

/// Each micro-batch through all stages and back before the next.
fn one_by_one(setup: &Setup) -> Vec<Vec<Op>> {
    let of_rank = |_: usize| {
        let mut list = Vec::new();
        let up: &[u8] = if setup.placement == Placement::V { &[0, 1] } else { &[0] };
        let groups: &[u8] = if setup.placement == Placement::Bidirectional { &[0, 1] } else { &[0] };
        for &group in groups {
            for _ in 0..setup.counts[usize::from(group)] {
                list.extend(up.iter().map(|&d| Op::F(d + group)));
                list.extend(up.iter().rev().flat_map(|&d| [Op::I(d + group), Op::W(d + group)]));
            }
        }
        list
    };
    (0..setup.ranks).map(of_rank).collect()
}

/// Why no placement can be used.
fn no_placement(problem: &Problem) -> Error {
    let fitting = problem
        .placements
        .iter()
        .filter(|&&placement| Kind::Custom(placement).placement_fits(problem.ranks, problem.micro_batches).is_ok());
    let least = |placement: &Placement| {
        let unlimited = Problem { memory: f64::INFINITY, ..problem.clone() };
        let setup = Setup::new(&unlimited, *placement)?;
        let parameters = problem.parameters(*placement);
        Some((0..problem.ranks).map(|rank| parameters[rank] + setup.least(rank)).fold(0.0, f64::max))
    };
    let least = fitting.filter_map(least).fold(f64::INFINITY, f64::min);
    if least.is_finite() {
        return Error::Shape {
            what: "search: memory".into(),
            expected: format!("{least} or more, for the parameters and one micro-batch of the fullest rank"),
            got: problem.memory.to_string(),
        };
    }
    match problem.placements.first().map(|p| Kind::Custom(*p).placement_fits(problem.ranks, problem.micro_batches)) {
        Some(Err(error)) => error,
        _ => Error::Shape { what: "search: placements".into(), expected: "at least one that fits".into(), got: "none".into() },
    }
}
