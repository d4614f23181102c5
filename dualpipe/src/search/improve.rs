//! Improves lists by moving letters: simulated annealing on what the longest path goes through.

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

/// Lists on their way to better ones, with the buffers of the search.
pub(crate) struct Improver<'a> {
    setup: &'a Setup,
    sim: Sim,
    tails: Vec<Vec<f64>>,
    critical: Vec<(usize, usize)>,
    pub best: Vec<Vec<Op>>,
    pub best_makespan: f64,
    pub tried: usize,
}

impl<'a> Improver<'a> {
    pub fn new(setup: &'a Setup, lists: &[Vec<Op>]) -> Improver<'a> {
        let mut sim = Sim::default();
        let makespan = sim.run(setup, lists);
        Improver { setup, sim, tails: Vec::new(), critical: Vec::new(), best: lists.to_vec(), best_makespan: makespan, tried: 0 }
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
        let first = heat * self.sim.makespan;
        let mut old: Vec<Op> = Vec::new();
        for trial in 0..trials {
            if self.best_makespan <= target {
                return;
            }
            self.tried += 1;
            let Some(&(rank, index)) = self.critical.get(chance.below(self.critical.len())) else { return };
            old.clone_from(&lists[rank]);
            if !self.change(&mut lists[rank], rank, index, chance) || !possible(self.setup, rank, &lists[rank]) {
                lists[rank].clone_from(&old);
                continue;
            }
            let makespan = self.sim.run(self.setup, &lists);
            let new = if makespan.is_finite() { self.value() } else { f64::INFINITY };
            let left = 1.0 - trial as f64 / trials as f64;
            let temperature = first * left * left;
            let accept = new <= value || (temperature > 0.0 && chance.unit() < ((value - new) / temperature).exp());
            if !accept {
                lists[rank].clone_from(&old);
                continue;
            }
            value = new;
            if makespan < self.best_makespan * (1.0 - 1e-12) {
                self.best_makespan = makespan;
                self.best.clone_from(&lists);
            }
            self.find_critical(&lists);
        }
    }

    /// One small change around a letter; whether there was one to make.
    fn change(&self, list: &mut Vec<Op>, rank: usize, index: usize, chance: &mut Chance) -> bool {
        let len = list.len();
        let kinds = if self.setup.pairs { 6 } else { 4 };
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
            // A pair apart.
            4 => {
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
