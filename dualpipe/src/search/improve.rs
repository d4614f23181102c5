//! Improves lists by moving letters: simulated annealing on what the longest path goes through.

use crate::search::build::{Builder, Keys, Rule};
use crate::search::rules::Chance;
use crate::search::setup::{Op, Setup};
use crate::search::sim::Sim;

/// Whether a rank can do this list: every letter after what it needs on the rank, within its memory.
pub(crate) fn possible(setup: &Setup, rank: usize, list: &[Op]) -> bool {
    let room = setup.room[rank];
    let places = &setup.places[rank * setup.dirs..(rank + 1) * setup.dirs];
    let (mut held, mut open, mut due) = (0.0, [0usize; 2], [0usize; 2]);
    for &op in list {
        match op {
            Op::F(d) => {
                held += places[usize::from(d)].size();
                open[usize::from(d)] += 1;
                if held > room {
                    return false;
                }
            }
            Op::I(d) => {
                let d = usize::from(d);
                if open[d] == 0 {
                    return false;
                }
                held -= places[d].at_input;
                open[d] -= 1;
                due[d] += 1;
            }
            Op::W(d) => {
                let d = usize::from(d);
                if due[d] == 0 {
                    return false;
                }
                held -= places[d].at_weight;
                due[d] -= 1;
            }
            Op::Pair(f, b) => {
                let (f, b) = (usize::from(f), usize::from(b));
                held += places[f].size();
                if held > room || open[b] == 0 {
                    return false;
                }
                held -= places[b].size();
                open[f] += 1;
                open[b] -= 1;
            }
        }
    }
    true
}

/// One trial of so many makes the lists anew.
const SHAKEN: usize = 32;

/// Lists on their way to better ones, with the buffers of the search.
pub(crate) struct Improver<'a> {
    setup: &'a Setup,
    sim: Sim,
    tails: Vec<Vec<f64>>,
    critical: Vec<(usize, usize)>,
    builder: Builder,
    keys: Keys,
    /// Time of one micro-batch on the busiest rank.
    period: f64,
    pub best: Vec<Vec<Op>>,
    pub best_makespan: f64,
    pub tried: usize,
}

impl<'a> Improver<'a> {
    pub fn new(setup: &'a Setup, lists: &[Vec<Op>]) -> Improver<'a> {
        let mut sim = Sim::default();
        let makespan = sim.run(setup, lists);
        let work = |rank: usize| -> f64 {
            let of = &setup.places[rank * setup.dirs..(rank + 1) * setup.dirs];
            of.iter().map(|p| p.f + p.i + p.w).sum()
        };
        Improver {
            builder: Builder::default(),
            keys: Keys::default(),
            period: (0..setup.ranks).map(work).fold(0.0, f64::max),
            setup,
            sim,
            tails: Vec::new(),
            critical: Vec::new(),
            best: lists.to_vec(),
            best_makespan: makespan,
            tried: 0,
        }
    }

    fn find_critical(&mut self, lists: &[Vec<Op>]) {
        self.sim.tails(self.setup, lists, &mut self.tails);
        self.critical.clear();
        let enough = self.sim.makespan * (1.0 - 1e-9);
        for (rank, (starts, tails)) in self.sim.starts.iter().zip(&self.tails).enumerate() {
            for (index, (start, tail)) in starts.iter().zip(tails).enumerate() {
                if start + tail >= enough {
                    self.critical.push((rank, index));
                }
            }
        }
    }

    /// Objective: the makespan, and a little of what the ranks need on the average, which tells which way is down on a plain.
    fn value(&self) -> f64 {
        let ends = self.sim.ends();
        self.sim.makespan + 0.02 * ends.iter().sum::<f64>() / ends.len() as f64
    }

    /// Anneals from the best lists with so many trials; `heat` is the first temperature, as a share of the makespan. Ends early
    /// at `target`.
    pub fn anneal(&mut self, chance: &mut Chance, trials: usize, heat: f64, target: f64) {
        let mut lists = self.best.clone();
        self.sim.run(self.setup, &lists);
        if !self.sim.makespan.is_finite() {
            return;
        }
        let mut value = self.value();
        self.find_critical(&lists);
        let first = heat * self.period;
        let accepts = |new: f64, old: f64, trial: usize, chance: &mut Chance| {
            let left = 1.0 - trial as f64 / trials as f64;
            let temperature = first * left * left;
            new <= old || (temperature > 0.0 && chance.unit() < ((old - new) / temperature).exp())
        };
        let mut old: Vec<Op> = Vec::new();
        for trial in 0..trials {
            if self.best_makespan <= target {
                return;
            }
            self.tried += 1;
            if chance.below(SHAKEN) == 0 {
                let lists_value = self.shake(&lists, chance);
                if accepts(lists_value, value, trial, chance) {
                    lists.clone_from(&self.builder.lists);
                    value = lists_value;
                    self.keep(&lists);
                    self.find_critical(&lists);
                }
                continue;
            }
            let Some(&(rank, index)) = self.critical.get(chance.below(self.critical.len())) else { return };
            old.clone_from(&lists[rank]);
            if !self.change(&mut lists[rank], rank, index, chance) || !possible(self.setup, rank, &lists[rank]) {
                lists[rank].clone_from(&old);
                continue;
            }
            let makespan = self.sim.run(self.setup, &lists);
            let new = if makespan.is_finite() { self.value() } else { f64::INFINITY };
            if !accepts(new, value, trial, chance) {
                lists[rank].clone_from(&old);
                continue;
            }
            value = new;
            self.keep(&lists);
            self.find_critical(&lists);
        }
    }

    /// Remembers the lists that were run last if they are the best so far.
    fn keep(&mut self, lists: &[Vec<Op>]) {
        if self.sim.makespan < self.best_makespan * (1.0 - 1e-12) {
            self.best_makespan = self.sim.makespan;
            self.best.clear();
            self.best.extend_from_slice(lists);
        }
    }

    /// Makes lists anew in the order of the starts of these, with some chunks moved in time on all ranks at once, and runs them:
    /// their value, infinite where there are none.
    fn shake(&mut self, lists: &[Vec<Op>], chance: &mut Chance) -> f64 {
        let setup = self.setup;
        let (chunks, dirs) = (setup.chunks, setup.dirs);
        let slots = setup.places.len() * chunks;
        self.sim.run(setup, lists);
        for keys in [&mut self.keys.f, &mut self.keys.i, &mut self.keys.w] {
            keys.clear();
            keys.resize(slots, 0.0);
        }
        let noise = [0.0, 0.0, 0.05, 0.2, 0.5][chance.below(5)] * self.period;
        for (rank, list) in lists.iter().enumerate() {
            let (mut f, mut i, mut w) = ([0; 2], [0; 2], [0; 2]);
            for (op, &start) in list.iter().zip(&self.sim.starts[rank]) {
                let mut set = |keys: &mut Vec<f64>, d: u8, count: &mut [usize; 2]| {
                    let d = usize::from(d);
                    keys[(rank * dirs + d) * chunks + count[d]] = start + noise * (chance.unit() - 0.5);
                    count[d] += 1;
                };
                match *op {
                    Op::F(d) => set(&mut self.keys.f, d, &mut f),
                    Op::I(d) => set(&mut self.keys.i, d, &mut i),
                    Op::W(d) => set(&mut self.keys.w, d, &mut w),
                    Op::Pair(d, b) => {
                        set(&mut self.keys.f, d, &mut f);
                        set(&mut self.keys.i, b, &mut i);
                    }
                }
            }
            // Weights in pairs have no key of their own: those that may be due when others pair up come when convenient.
            for (d, &known) in w.iter().enumerate().take(dirs) {
                for chunk in known..setup.counts[d] {
                    let slot = (rank * dirs + d) * chunks + chunk;
                    self.keys.w[slot] = self.keys.i[slot] + self.period;
                }
            }
        }
        // Some chunks earlier or later everywhere.
        for _ in 0..chance.below(3) {
            let d = chance.below(dirs);
            let from = chance.below(setup.counts[d]);
            let to = if chance.below(2) == 0 { from + 1 } else { setup.counts[d] };
            let shift = self.period * chance.range(-3.0, 3.0);
            let which = chance.below(4);
            for rank in 0..setup.ranks {
                for chunk in from..to {
                    let slot = (rank * dirs + d) * chunks + chunk;
                    if which != 1 {
                        self.keys.f[slot] += shift;
                    }
                    if which != 0 {
                        self.keys.i[slot] += shift;
                        self.keys.w[slot] += shift;
                    }
                }
            }
        }
        let patience = [0.0, 0.2, 0.5, 1.0, 3.0];
        let rule = Rule {
            wait: patience[chance.below(5)] * self.period,
            pair_wait: patience[chance.below(5)] * self.period,
            pair_bonus: [1e-9, 0.2, 1.0][chance.below(3)] * self.period,
            limit: vec![usize::MAX; setup.places.len()],
            reserve: chance.below(2) == 0,
            strict: chance.below(3) == 0,
        };
        if !self.builder.run(setup, &self.keys, &rule) {
            return f64::INFINITY;
        }
        if self.sim.run(setup, &self.builder.lists).is_finite() { self.value() } else { f64::INFINITY }
    }

    /// One small change around a letter; whether there was one to make.
    fn change(&self, list: &mut Vec<Op>, rank: usize, index: usize, chance: &mut Chance) -> bool {
        let len = list.len();
        let kinds = if self.setup.pairs { 8 } else { 5 };
        // Steps of 1 mostly, longer ones more rarely.
        let mut far = 1;
        while far < len && chance.below(3) == 0 {
            far += 1 + chance.below(far + 1);
        }
        match chance.below(kinds) {
            // The letter earlier, or later.
            0 => {
                let to = index.saturating_sub(far);
                if to == index || list[to..index].iter().all(|op| *op == list[index]) {
                    return false;
                }
                list[to..=index].rotate_right(1);
                true
            }
            1 => {
                let to = (index + far).min(len - 1);
                if to == index || list[index..=to].iter().all(|op| *op == list[index]) {
                    return false;
                }
                list[index..=to].rotate_left(1);
                true
            }
            // A letter from elsewhere to before this one.
            2 => {
                let from = (index + far).min(len - 1);
                if list[index..=from].iter().all(|op| *op == list[from]) {
                    return false;
                }
                list[index..=from].rotate_right(1);
                true
            }
            // The letter before this one later.
            3 => {
                let Some(before) = index.checked_sub(1) else { return false };
                let to = (before + far).min(len - 1);
                if list[before..=to].iter().all(|op| *op == list[before]) {
                    return false;
                }
                list[before..=to].rotate_left(1);
                true
            }
            // Two letters exchanged.
            4 => {
                let other = if chance.below(2) == 0 { index.saturating_sub(far) } else { (index + far).min(len - 1) };
                if list[index] == list[other] {
                    return false;
                }
                list.swap(index, other);
                true
            }
            // The directions of two forwards, or of two backwards, exchanged, alone or in pairs.
            5 => {
                let other = if chance.below(2) == 0 { index.saturating_sub(far) } else { (index + far).min(len - 1) };
                exchange(list, index, other)
            }
            // A pair apart.
            6 => {
                let Op::Pair(f, b) = list[index] else { return self.join(list, rank, index, chance) };
                let at = (index + 1 + far).min(len);
                if chance.below(2) == 0 {
                    list[index] = Op::F(f);
                    list.insert(index + 1, Op::I(b));
                    list.insert((at + 1).min(list.len()), Op::W(b));
                } else {
                    list[index] = Op::I(b);
                    list.insert(index + 1, Op::F(f));
                    list.insert((at + 1).min(list.len()), Op::W(b));
                }
                true
            }
            _ => self.join(list, rank, index, chance),
        }
    }

    /// Makes a pair of the letter and one near it.
    fn join(&self, list: &mut Vec<Op>, rank: usize, index: usize, chance: &mut Chance) -> bool {
        let reach = 1 + chance.below(6);
        let (low, high) = (index.saturating_sub(reach), (index + reach).min(list.len() - 1));
        let partner = |other: &usize| match (list[index], list[*other]) {
            (Op::F(f), Op::I(b)) | (Op::I(b), Op::F(f)) => {
                self.setup.places[self.setup.place(rank, f)].pair[usize::from(b)] < f64::INFINITY
            }
            _ => false,
        };
        let partners: Vec<usize> = (low..=high).filter(partner).collect();
        let Some(&other) = partners.get(chance.below(partners.len())) else { return false };
        let (f, b) = match (list[index], list[other]) {
            (Op::F(f), Op::I(b)) | (Op::I(b), Op::F(f)) => (f, b),
            _ => return false,
        };
        let (first, second) = (index.min(other), index.max(other));
        let at = if chance.below(2) == 0 { first } else { second - 1 };
        list.remove(second);
        list.remove(first);
        list.insert(at, Op::Pair(f, b));
        let Some(weights) = (at + 1..list.len()).find(|&n| list[n] == Op::W(b)) else { return false };
        list.remove(weights);
        true
    }
}

/// Exchanges the directions of two forwards or of two backwards (with their weights), if these differ.
fn exchange(list: &mut [Op], one: usize, other: usize) -> bool {
    let forward = |op: Op| match op {
        Op::F(d) | Op::Pair(d, _) => Some(d),
        _ => None,
    };
    let backward = |op: Op| match op {
        Op::I(d) | Op::Pair(_, d) => Some(d),
        _ => None,
    };
    let whole = |op: Op| matches!(op, Op::Pair(..));
    if let (Some(a), Some(b)) = (forward(list[one]), forward(list[other]))
        && a != b
    {
        for (index, d) in [(one, b), (other, a)] {
            list[index] = match list[index] {
                Op::Pair(_, back) => Op::Pair(d, back),
                _ => Op::F(d),
            };
        }
        return true;
    }
    let (Some(a), Some(b)) = (backward(list[one]), backward(list[other])) else { return false };
    if a == b {
        return false;
    }
    // An `I` has a `W` later on, a pair has not: where one of each is exchanged, a `W` changes its direction too.
    let weights = match (whole(list[one]), whole(list[other])) {
        (false, true) => Some((a, b, one)),
        (true, false) => Some((b, a, other)),
        _ => None,
    };
    if let Some((from, to, after)) = weights {
        let Some(weights) = (after + 1..list.len()).find(|&n| list[n] == Op::W(from)) else { return false };
        list[weights] = Op::W(to);
    }
    for (index, d) in [(one, b), (other, a)] {
        list[index] = match list[index] {
            Op::Pair(forward, _) => Op::Pair(forward, d),
            _ => Op::I(d),
        };
    }
    true
}
