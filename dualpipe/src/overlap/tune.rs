//! Searches an arrangement for given costs.

use std::collections::HashMap;

use crate::action::{ActionKind, Step};
use crate::error::Result;
use crate::overlap::arrangement::{Arrangement, Op, Random};
use crate::overlap::component::{Component, Half, Pairing};
use crate::overlap::costs::{ComponentCosts, PairCosts};
use crate::overlap::lanes::{Flat, Lanes, PairTimeline, pair_bound, simulate_pair};
use crate::overlap::set::Arrangements;
use crate::schedule::Schedule;

/// How long a search goes on. The same costs, seed and effort give the same arrangement everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Of the search's chance.
    pub seed: u64,
    /// Arrangements tried for each distinct pair; the search of a pair ends sooner at its lower bound.
    pub tries: usize,
    /// How many components for weights a pair may put off into the next one, where they fill the time before its first
    /// communication is there. What they need of the chunk's activations is kept as long.
    pub put_off: usize,
}

impl Default for Tuning {
    /// Seed 0, 100,000 tries (about half a second for four layers), 2 components put off.
    fn default() -> Tuning {
        Tuning { seed: 0, tries: 100_000, put_off: 2 }
    }
}

/// The best arrangement found.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuned {
    /// It.
    pub arrangement: Arrangement,
    /// One pair of it, with its inputs there at the start.
    pub alone: PairTimeline,
    /// One of many that follow each other: see [`crate::simulate_steady`].
    pub steady: PairTimeline,
    /// No arrangement of these components has a shorter makespan: see [`crate::pair_bound`].
    pub bound: f64,
}

/// Searches the arrangement of these components with the shortest time from pair to pair ([`crate::simulate_steady`]; where one half
/// is empty, the shortest makespan): all orders where there are few, else a list scheduler whose priorities climb, then annealing by
/// moving single entries and putting weights off. Never worse than [`Arrangement::default`] and [`Arrangement::sequential`].
///
/// # Errors
/// Costs that are not for these components.
pub fn tune_pair(pairing: &Pairing, costs: &PairCosts, tuning: Tuning) -> Result<Tuned> {
    let flat = Flat::new(pairing, costs)?;
    let bound = pair_bound(pairing, costs)?;
    let mut search = Search::new(&flat, pairing, bound);
    for start in [Arrangement::default(pairing), Arrangement::sequential(pairing)] {
        search.offer(start.ops().iter().copied().filter(|&op| op != Op::Fill).collect());
    }
    search.run(tuning);
    let arrangement = Arrangement::new(pairing, search.best)?;
    let alone = simulate_pair(pairing, costs, &arrangement)?;
    let steady = flat.steady(arrangement.ops());
    Ok(Tuned { arrangement, alone, steady, bound })
}

/// The arrangements of all steps of a schedule: each distinct pair, and each chunk that runs alone, whose waits get as many
/// [`Op::Fill`] as components for weights fit in.
///
/// # Errors
/// Components that are not an order in which they can run, or have no cost.
pub fn tune(
    schedule: &Schedule,
    components: impl Fn(Half, usize) -> Vec<Component>,
    costs: &ComponentCosts,
    tuning: Tuning,
) -> Result<Arrangements> {
    let mut set = Arrangements::new();
    let mut known: Vec<(Pairing, PairCosts, Vec<Op>)> = Vec::new();
    let mut lists: HashMap<(Half, usize), Vec<Component>> = HashMap::new();
    for rank in 0..schedule.ranks() {
        for step in schedule.steps(rank) {
            let mut halves = [Vec::new(), Vec::new()];
            for action in step.actions().filter(|action| action.kind != ActionKind::W) {
                let half = if action.kind == ActionKind::F { Half::Forward } else { Half::Backward };
                let stage = schedule.stage_of(rank, action.direction).unwrap_or_default();
                halves[half as usize] = lists.entry((half, stage)).or_insert_with(|| components(half, stage)).clone();
            }
            let [forward, backward] = halves;
            if forward.is_empty() && backward.is_empty() {
                continue;
            }
            let pairing = Pairing::new(forward, backward)?;
            if set.get(&pairing).is_some() {
                continue;
            }
            let pair_costs = costs.of(&pairing)?;
            // Stages in the middle differ by the numbers of their layers only.
            let same = known.iter().find(|(other, at, _)| alike(other, &pairing) && *at == pair_costs);
            let ops = match same {
                Some((_, _, ops)) => ops.clone(),
                None => {
                    let tuned = tune_pair(&pairing, &pair_costs, tuning)?;
                    match step {
                        Step::Pair(..) => tuned.arrangement.ops().to_vec(),
                        Step::One(_) => filled(&pairing, &pair_costs, tuned.arrangement, costs)?.ops().to_vec(),
                    }
                }
            };
            known.push((pairing.clone(), pair_costs, ops.clone()));
            let arrangement = Arrangement::new(&pairing, ops)?;
            set.insert(pairing, arrangement)?;
        }
    }
    Ok(set)
}

fn alike(a: &Pairing, b: &Pairing) -> bool {
    [Half::Forward, Half::Backward].into_iter().all(|half| {
        let (a, b) = (a.half(half), b.half(half));
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.kind == b.kind && a.after == b.after)
    })
}

/// Puts as many fills before each wait as components for weights of the mean cost take its time.
fn filled(pairing: &Pairing, costs: &PairCosts, arrangement: Arrangement, all: &ComponentCosts) -> Result<Arrangement> {
    let flat = Flat::new(pairing, costs)?;
    let weight = all.mean_weight();
    let waits = flat.waits(arrangement.ops());
    let count = |op: Op| match op {
        Op::Finish(half, component) if weight > 0.0 => (waits[flat.id(half, component)] / weight).round().min(64.0) as usize,
        _ => 0,
    };
    Ok(arrangement.with_fills(count))
}

/// What a result counts that leaves later, as a share of the time of a pair.
const EARLY: f64 = 1e-3;

/// How much worse an order may be that annealing goes through, to begin with, as a share of the bound.
const HEATS: [f64; 2] = [0.02, 0.005];

/// What a list scheduler decides by.
#[derive(Clone)]
struct Rules {
    /// Of each component: the highest first.
    priority: Vec<f64>,
    /// Of weights that the pair before put off.
    fill: f64,
    /// How long a priority of 1 is waited for rather than taking one of 0.
    patience: f64,
    /// Weights that this pair puts off, in order.
    put_off: Vec<usize>,
}

/// The orders tried so far.
struct Search<'a> {
    flat: &'a Flat,
    pairing: &'a Pairing,
    paired: bool,
    bound: f64,
    /// Components that nothing waits for.
    is_sink: Vec<bool>,
    best: Vec<Op>,
    best_score: f64,
    /// The best of the list scheduler, without and with weights put off.
    best_with: [(f64, Vec<Op>); 2],
    tries: usize,
}

impl<'a> Search<'a> {
    fn new(flat: &'a Flat, pairing: &'a Pairing, bound: f64) -> Search<'a> {
        let mut is_sink = vec![true; flat.len()];
        flat.after.iter().flatten().for_each(|&other| is_sink[other] = false);
        let paired = !pairing.half(Half::Forward).is_empty() && !pairing.half(Half::Backward).is_empty();
        Search {
            flat,
            pairing,
            paired,
            bound,
            is_sink,
            best: Vec::new(),
            best_score: f64::INFINITY,
            best_with: [(f64::INFINITY, Vec::new()), (f64::INFINITY, Vec::new())],
            tries: 0,
        }
    }

    /// The time of a pair, and a little for results that leave late.
    fn score(&self, ops: &[Op], lanes: &mut Lanes) -> f64 {
        let timeline = match self.paired {
            true => self.flat.steady(ops),
            false => {
                *lanes = Lanes::default();
                self.flat.run(ops, lanes, [0.0; 2]);
                self.flat.timeline(lanes)
            }
        };
        let results: f64 = timeline.results.iter().flatten().sum();
        timeline.makespan + EARLY * results
    }

    fn offer(&mut self, ops: Vec<Op>) -> f64 {
        let score = self.score(&ops, &mut Lanes::default());
        self.tries += 1;
        if score < self.best_score {
            self.best_score = score;
            self.best = ops;
        }
        score
    }

    /// Tries all orders if there are no more than `most`, and says whether there were.
    fn exhaust(&mut self, most: usize) -> bool {
        let ops = self.best.clone();
        let n = ops.len();
        let follows: Vec<Vec<usize>> =
            ops.iter().map(|&a| (0..n).filter(|&b| self.flat.must_precede(a, ops[b])).collect()).collect();
        let mut open = vec![0usize; n];
        follows.iter().flatten().for_each(|&b| open[b] += 1);
        // Depth first: `next` is the first entry that has not been tried at this depth.
        let mut order: Vec<usize> = Vec::with_capacity(n);
        let mut taken = vec![false; n];
        let (mut next, mut leaves, mut steps) = (0usize, 0usize, 0usize);
        loop {
            steps += 1;
            // Few leaves can lie deep.
            if leaves > most || steps > most.saturating_mul(8) {
                return false;
            }
            if order.len() == n {
                leaves += 1;
                self.offer(order.iter().map(|&at| ops[at]).collect());
            }
            match (next..n).find(|&at| !taken[at] && open[at] == 0) {
                Some(at) => {
                    taken[at] = true;
                    follows[at].iter().for_each(|&b| open[b] -= 1);
                    order.push(at);
                    next = 0;
                }
                None => {
                    let Some(at) = order.pop() else { return true };
                    taken[at] = false;
                    follows[at].iter().for_each(|&b| open[b] += 1);
                    next = at + 1;
                }
            }
        }
    }

    fn run(&mut self, tuning: Tuning) {
        if self.exhaust(tuning.tries / 8) && !(self.paired && tuning.put_off > 0) {
            return;
        }
        let mut random = Random::new(tuning.seed);
        // Priorities: the longest way to the end, disturbed by chance.
        let tails = self.flat.ways(true).1;
        let scale = tails.iter().copied().fold(0.0, f64::max).max(f64::MIN_POSITIVE);
        let start =
            Rules { priority: tails.iter().map(|tail| tail / scale).collect(), fill: 0.0, patience: 0.0, put_off: Vec::new() };
        let weights: Vec<usize> = (0..self.flat.len()).filter(|&id| self.flat.is_weight[id]).collect();
        let mut rules = start.clone();
        let mut rules_score = self.offer(self.flat.list_schedule(&rules, &self.is_sink));
        for round in 0..tuning.tries / 3 {
            if round % 100 == 0 && self.is_best() {
                return;
            }
            let fresh = round % 1000 == 999;
            let mut other = if fresh { start.clone() } else { rules.clone() };
            let changes = 1 + random.below(3);
            for _ in 0..changes {
                match random.below(8) {
                    0 => other.fill = random.share() * 1.2 - 0.1,
                    1 => other.patience = random.share() * 0.1 * self.bound,
                    2 if self.paired && tuning.put_off > 0 && !weights.is_empty() => {
                        let id = weights[random.below(weights.len())];
                        match other.put_off.iter().position(|&known| known == id) {
                            Some(at) => drop(other.put_off.remove(at)),
                            None => other.put_off.push(id),
                        }
                        other.put_off.sort_unstable();
                    }
                    _ => {
                        let id = random.below(other.priority.len().max(1));
                        if let Some(key) = other.priority.get_mut(id) {
                            *key = random.share() * 1.2 - 0.1;
                        }
                    }
                }
            }
            let loose =
                |id: usize| weights.iter().all(|&next| other.put_off.contains(&next) || !self.flat.after[next].contains(&id));
            if other.put_off.len() > tuning.put_off || !other.put_off.iter().all(|&id| loose(id)) {
                continue;
            }
            let ops = self.flat.list_schedule(&other, &self.is_sink);
            let sort = usize::from(!other.put_off.is_empty());
            let score = self.offer(ops.clone());
            if score < self.best_with[sort].0 {
                self.best_with[sort] = (score, ops);
            }
            if score <= rules_score || fresh {
                rules = other;
                rules_score = score;
            }
        }
        // Annealing, from what is best of each sort so far.
        let default = Arrangement::default(self.pairing).ops().iter().copied().filter(|&op| op != Op::Fill).collect();
        let mut starts: Vec<Vec<Op>> = vec![default, self.best.clone()];
        starts.extend(self.best_with.iter().map(|(_, ops)| ops.clone()).filter(|ops| !ops.is_empty()));
        starts.dedup();
        let each = tuning.tries.saturating_sub(self.tries) / (HEATS.len() * (starts.len() + 1));
        for start in starts {
            let mut from = start;
            for heat in HEATS {
                if self.is_best() {
                    return;
                }
                from = self.anneal(from, heat, each, tuning.put_off, &mut random);
            }
        }
        // And once more from the best of all.
        for heat in HEATS {
            self.anneal(self.best.clone(), heat, each, tuning.put_off, &mut random);
        }
    }

    /// Whether no other order has a shorter time of a pair.
    fn is_best(&self) -> bool {
        self.paired && self.flat.steady(&self.best).makespan <= self.bound * (1.0 + 1e-9)
    }

    fn is_weight(&self, op: Op) -> bool {
        op != Op::Fill && self.flat.is_weight[self.flat.id_of(op)]
    }

    /// Moves one entry to another place, if there is one.
    fn shift(&self, ops: &mut [Op], random: &mut Random) -> bool {
        let before = |a: Op, b: Op| self.flat.must_precede(a, b);
        let from = random.below(ops.len());
        let op = ops[from];
        let low = (0..from).rev().find(|&at| before(ops[at], op)).map_or(0, |at| at + 1);
        let high = (from + 1..ops.len()).find(|&at| before(op, ops[at])).map_or(ops.len() - 1, |at| at - 1);
        if low == high {
            return false;
        }
        let mut to = low + random.below(high - low);
        if to >= from {
            to += 1;
        }
        match from < to {
            true => ops[from..=to].rotate_left(1),
            false => ops[to..=from].rotate_right(1),
        }
        true
    }

    /// Puts a component for weights off into the next pair, where a fill near the begin takes it; or takes one back.
    fn put_off(&self, ops: &mut Vec<Op>, most: usize, random: &mut Random) -> bool {
        let fills: Vec<usize> = (0..ops.len()).filter(|&at| ops[at] == Op::Fill).collect();
        let weights = |ops: &[Op]| (0..ops.len()).filter(|&at| self.is_weight(ops[at])).collect::<Vec<_>>();
        if fills.len() < most && (fills.is_empty() || random.below(2) == 0) {
            let weights = weights(ops);
            let Some(&at) = weights.get(random.below(weights.len().max(1))) else { return false };
            // Others may come after it.
            if ops[at + 1..].iter().any(|&op| self.flat.must_precede(ops[at], op)) {
                return false;
            }
            ops.remove(at);
            ops.insert(random.below(1 + ops.len() / 4), Op::Fill);
            return true;
        }
        let Some(&fill) = fills.get(random.below(fills.len().max(1))) else { return false };
        let here: Vec<usize> = weights(ops).into_iter().map(|at| self.flat.id_of(ops[at])).collect();
        let missing: Vec<usize> = (0..self.flat.len()).filter(|&id| self.flat.is_weight[id] && !here.contains(&id)).collect();
        let Some(&id) = missing.get(random.below(missing.len().max(1))) else { return false };
        if self.flat.after[id].iter().any(|other| missing.contains(other)) {
            return false;
        }
        ops.remove(fill);
        let (half, component) = self.flat.half(id);
        let op = Op::Compute(half, component);
        let low = (0..ops.len()).rev().find(|&at| self.flat.must_precede(ops[at], op)).map_or(0, |at| at + 1);
        ops.insert(low + random.below(ops.len() - low + 1), op);
        true
    }

    /// Moves single entries about; worse orders are accepted ever more rarely. Returns the best order it went through.
    fn anneal(&mut self, from: Vec<Op>, heat: f64, rounds: usize, put_off: usize, random: &mut Random) -> Vec<Op> {
        let mut lanes = Lanes::default();
        let mut current_score = self.score(&from, &mut lanes);
        let mut current = from;
        let (mut best, mut best_score) = (current.clone(), current_score);
        let mut other = Vec::new();
        for round in 0..rounds {
            if current.len() < 2 {
                break;
            }
            other.clone_from(&current);
            let moved = match self.paired && random.below(8) == 0 {
                true => self.put_off(&mut other, put_off, random),
                false => self.shift(&mut other, random),
            };
            if !moved {
                continue;
            }
            let score = self.score(&other, &mut lanes);
            let heat = heat * self.bound * (1.0 - round as f64 / rounds as f64).powi(2);
            let accept = score <= current_score || random.share() < ((current_score - score) / heat.max(f64::MIN_POSITIVE)).exp();
            if accept {
                std::mem::swap(&mut current, &mut other);
                current_score = score;
                if score < best_score {
                    (best, best_score) = (current.clone(), score);
                }
            }
        }
        if best_score < self.best_score {
            (self.best, self.best_score) = (best.clone(), best_score);
        }
        best
    }
}

impl Flat {
    /// Whether `b` needs `a` directly.
    fn must_precede(&self, a: Op, b: Op) -> bool {
        let done = match a {
            Op::Compute(half, component) | Op::Finish(half, component) => Some(self.id(half, component)),
            _ => None,
        };
        match b {
            Op::Finish(half, component) => a == Op::Start(half, component),
            Op::Compute(half, component) | Op::Start(half, component) => {
                done.is_some_and(|done| self.after[self.id(half, component)].contains(&done))
            }
            Op::Fill => false,
        }
    }

    /// The component of an entry; 0 for a fill.
    fn id_of(&self, op: Op) -> usize {
        match op {
            Op::Compute(half, component) | Op::Start(half, component) | Op::Finish(half, component) => self.id(half, component),
            Op::Fill => 0,
        }
    }

    /// How long each communication is waited for when the pair runs alone.
    fn waits(&self, ops: &[Op]) -> Vec<f64> {
        let mut waits = vec![0.0; self.len()];
        let mut lanes = Lanes::default();
        self.run(ops, &mut lanes, [0.0; 2]);
        let arrives = lanes.arrives.clone();
        // The same again, to see when each finish came.
        let mut now = 0.0f64;
        for &op in ops {
            match op {
                Op::Compute(half, component) => now += self.costs[self.id(half, component)].compute,
                Op::Start(half, component) => now += self.costs[self.id(half, component)].start,
                Op::Finish(half, component) => {
                    let id = self.id(half, component);
                    waits[id] = (arrives[id] - now).max(0.0);
                    now = now.max(arrives[id]) + self.costs[id].finish;
                }
                Op::Fill => {}
            }
        }
        waits
    }

    /// An order made by going along in time: what can be started is started at once; of what can be computed without waiting the
    /// highest priority comes first; where nothing can, what can soonest.
    fn list_schedule(&self, rules: &Rules, is_sink: &[bool]) -> Vec<Op> {
        let priority = &rules.priority;
        let n = self.len();
        let mut ops = Vec::with_capacity(2 * n);
        let mut lanes = Lanes { arrives: vec![0.0; n], ..Lanes::default() };
        let (mut taken, mut done) = (vec![false; n], vec![false; n]);
        for &id in &rules.put_off {
            (taken[id], done[id]) = (true, true);
        }
        let mut fills = rules.put_off.iter().copied().peekable();
        let finish = |id: usize, lanes: &mut Lanes, done: &mut [bool], ops: &mut Vec<Op>| {
            let (half, component) = self.half(id);
            ops.push(Op::Finish(half, component));
            lanes.now = lanes.now.max(lanes.arrives[id]) + self.costs[id].finish;
            done[id] = true;
        };
        loop {
            // Results that wait for nothing but their arrival.
            for id in 0..n {
                if is_sink[id] && self.communicates[id] && taken[id] && !done[id] && lanes.arrives[id] <= lanes.now {
                    finish(id, &mut lanes, &mut done, &mut ops);
                }
            }
            let startable =
                (0..n).filter(|&id| self.communicates[id] && !taken[id] && self.after[id].iter().all(|&other| done[other]));
            if let Some(id) = startable.max_by(|&a, &b| priority[a].total_cmp(&priority[b]).then(b.cmp(&a))) {
                let (half, component) = self.half(id);
                ops.push(Op::Start(half, component));
                taken[id] = true;
                lanes.now += self.costs[id].start;
                lanes.arrives[id] = self.send(&mut lanes, &self.costs[id]);
                continue;
            }
            // When each could be computed (or, a communication after a communication, be started).
            let ready = |id: usize| {
                let mut at = lanes.now;
                for &other in &self.after[id] {
                    match (done[other], self.communicates[other] && taken[other]) {
                        (true, _) => {}
                        (false, true) => at = at.max(lanes.arrives[other]),
                        (false, false) => return None,
                    }
                }
                Some(at)
            };
            let candidates = (0..n).filter(|&id| !taken[id]).filter_map(|id| ready(id).map(|at| (id, at)));
            // The soonest first, where a priority counts as so much time; then the higher.
            let rank = |priority: f64, at: f64| (at - rules.patience * priority, -priority);
            let chosen = candidates
                .map(|(id, at)| (rank(priority[id], at), id))
                .min_by(|(a, id_a), (b, id_b)| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(id_a.cmp(id_b)));
            if let Some(&fill) = fills.peek()
                && chosen.is_none_or(|(chosen, _)| rank(rules.fill, lanes.now) < chosen)
            {
                fills.next();
                ops.push(Op::Fill);
                lanes.now += self.costs[fill].compute;
                continue;
            }
            let Some((_, id)) = chosen else { break };
            for &other in &self.after[id] {
                if !done[other] {
                    finish(other, &mut lanes, &mut done, &mut ops);
                }
            }
            if !self.communicates[id] {
                let (half, component) = self.half(id);
                ops.push(Op::Compute(half, component));
                (taken[id], done[id]) = (true, true);
                lanes.now += self.costs[id].compute;
            }
        }
        // Communications whose arrival nothing but the result waits for.
        let mut rest: Vec<usize> = (0..n).filter(|&id| taken[id] && !done[id]).collect();
        rest.sort_by(|&a, &b| lanes.arrives[a].total_cmp(&lanes.arrives[b]));
        for id in rest {
            finish(id, &mut lanes, &mut done, &mut ops);
        }
        ops
    }
}
