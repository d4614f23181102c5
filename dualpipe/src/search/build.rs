//! Makes lists by rules: time goes on, and a rank that is free takes the most urgent action that it can do.

use crate::kind::Placement;
use crate::search::setup::{Op, Setup};
use crate::search::sim::Sim;

/// How urgent each action is: the least first. Slot `place * chunks + chunk`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys {
    pub f: Vec<f64>,
    pub i: Vec<f64>,
    pub w: Vec<f64>,
}

/// How a rank chooses among what it can do.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    /// How long it waits for a more urgent result that is under way.
    pub wait: f64,
    /// How long it waits to make a pair.
    pub pair_wait: f64,
    /// By how much a pair is more urgent than its parts.
    pub pair_bonus: f64,
    /// The most chunks held (between `F` and `I`) at each place.
    pub limit: Vec<usize>,
    /// Whether memory is kept free for what must follow (without, the ranks may block each other).
    pub reserve: bool,
    /// Whether every rank does its actions in the order of their urgency, and waits for each; only a forward for which there is no
    /// room is put off.
    pub strict: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Builder {
    activation: Vec<f64>,
    gradient: Vec<f64>,
    forward: Vec<usize>,
    backward: Vec<usize>,
    /// The chunks whose weights are due, and how many of them are done.
    due: Vec<Vec<usize>>,
    done: Vec<usize>,
    clock: Vec<f64>,
    wake: Vec<f64>,
    held: Vec<f64>,
    left: Vec<usize>,
    sim: Sim,
    pub lists: Vec<Vec<Op>>,
    pub makespan: f64,
}

#[derive(Clone, Copy)]
struct Choice {
    op: Op,
    key: f64,
    ready: f64,
}

impl Builder {
    /// Makes lists; whether all work could be done. They keep every rank within its memory.
    pub fn run(&mut self, setup: &Setup, keys: &Keys, rule: &Rule) -> bool {
        if rule.strict {
            return self.in_order(setup, keys, rule);
        }
        let (chunks, count) = (setup.chunks, setup.places.len());
        let fill = |buffer: &mut Vec<f64>, len: usize, value: f64| {
            buffer.clear();
            buffer.resize(len, value);
        };
        fill(&mut self.activation, count * chunks, f64::INFINITY);
        fill(&mut self.gradient, count * chunks, f64::INFINITY);
        fill(&mut self.clock, setup.ranks, 0.0);
        fill(&mut self.wake, setup.ranks, 0.0);
        fill(&mut self.held, setup.ranks, 0.0);
        for counts in [&mut self.forward, &mut self.backward, &mut self.done] {
            counts.clear();
            counts.resize(count, 0);
        }
        self.left.clear();
        self.left.resize(setup.ranks, setup.counts.iter().sum());
        self.due.resize_with(count, Vec::new);
        self.due.iter_mut().for_each(Vec::clear);
        self.lists.resize_with(setup.ranks, Vec::new);
        self.lists.iter_mut().for_each(Vec::clear);
        let mut unfinished = setup.ranks;
        while unfinished > 0 {
            let (mut rank, mut now) = (0, f64::INFINITY);
            for (r, &wake) in self.wake.iter().enumerate() {
                if wake < now {
                    (rank, now) = (r, wake);
                }
            }
            if now == f64::INFINITY {
                return false;
            }
            match self.choose(setup, keys, rule, rank, now) {
                Ok(op) => {
                    self.take(setup, rank, op, now);
                    if self.left[rank] == 0 {
                        self.wake[rank] = f64::INFINITY;
                        unfinished -= 1;
                    }
                }
                Err(later) => self.wake[rank] = later,
            }
        }
        self.makespan = self.clock.iter().copied().fold(0.0, f64::max);
        true
    }

    /// Lists in the order of the keys. They may wait for each other in a circle: nobody has looked at times.
    fn in_order(&mut self, setup: &Setup, keys: &Keys, rule: &Rule) -> bool {
        let (chunks, dirs) = (setup.chunks, setup.dirs);
        self.lists.resize_with(setup.ranks, Vec::new);
        for rank in 0..setup.ranks {
            let list = &mut self.lists[rank];
            list.clear();
            let places = &setup.places[rank * dirs..(rank + 1) * dirs];
            let (mut f, mut i, mut w, mut held) = ([0usize; 2], [0usize; 2], [0usize; 2], 0.0);
            // Backwards that were part of a pair have no weights to come.
            let mut paired = [0usize; 2];
            let mut left: usize = setup.counts.iter().sum();
            while left > 0 {
                let mut best: Option<(f64, Op)> = None;
                let mut forward: Option<(f64, usize)> = None;
                let mut backward: Option<(f64, usize)> = None;
                let mut offer = |key: f64, op: Op| {
                    if best.is_none_or(|(other, _)| key < other) {
                        best = Some((key, op));
                    }
                };
                for d in 0..dirs {
                    let base = (rank * dirs + d) * chunks;
                    if f[d] < setup.counts[d]
                        && f[d] - i[d] < rule.limit[rank * dirs + d]
                        && held + places[d].size() <= setup.room[rank]
                    {
                        let key = keys.f[base + f[d]];
                        offer(key, Op::F(d as u8));
                        if forward.is_none_or(|(other, _)| key < other) {
                            forward = Some((key, d));
                        }
                    }
                    if i[d] < f[d] {
                        let key = keys.i[base + i[d]];
                        offer(key, Op::I(d as u8));
                        if backward.is_none_or(|(other, _)| key < other) {
                            backward = Some((key, d));
                        }
                    }
                    if w[d] + paired[d] < i[d] {
                        offer(keys.w[base + w[d] + paired[d]], Op::W(d as u8));
                    }
                }
                let Some((_, mut op)) = best else { return false };
                if let (Some((kf, f)), Some((ki, b))) = (forward, backward)
                    && (kf - ki).abs() <= rule.pair_wait
                    && !matches!(op, Op::W(_))
                    && places[f].pair[b] < f64::INFINITY
                {
                    op = Op::Pair(f as u8, b as u8);
                }
                list.push(op);
                match op {
                    Op::F(d) => {
                        f[usize::from(d)] += 1;
                        held += places[usize::from(d)].size();
                    }
                    Op::I(d) => {
                        i[usize::from(d)] += 1;
                        held -= places[usize::from(d)].at_input;
                    }
                    Op::W(d) => {
                        w[usize::from(d)] += 1;
                        held -= places[usize::from(d)].at_weight;
                        left -= 1;
                    }
                    Op::Pair(forward, d) => {
                        f[usize::from(forward)] += 1;
                        i[usize::from(d)] += 1;
                        paired[usize::from(d)] += 1;
                        held += places[usize::from(forward)].size() - places[usize::from(d)].size();
                        left -= 1;
                    }
                }
            }
        }
        self.sim.run(setup, &self.lists);
        self.makespan = self.sim.makespan;
        self.makespan < f64::INFINITY
    }

    /// What `rank` does at `now`, or when it looks again.
    fn choose(&self, setup: &Setup, keys: &Keys, rule: &Rule, rank: usize, now: f64) -> Result<Op, f64> {
        let (chunks, dirs) = (setup.chunks, setup.dirs);
        let mut choices = [Choice { op: Op::F(0), key: f64::INFINITY, ready: f64::INFINITY }; 10];
        let mut count = 0;
        let mut f_of = [None; 2];
        let mut i_of = [None; 2];
        for d in 0..dirs {
            let place = rank * dirs + d;
            let own = &setup.places[place];
            let (nf, ni) = (self.forward[place], self.backward[place]);
            if nf < setup.counts[d] && nf - ni < rule.limit[place] && self.has_room(setup, rule, rank, d) {
                let ready = own.before.map_or(0.0, |from| self.activation[from.place * chunks + nf] + from.time);
                if ready < f64::INFINITY {
                    f_of[d] = Some((keys.f[place * chunks + nf], ready));
                }
            }
            if ni < nf {
                let ready = own.after.map_or(0.0, |from| self.gradient[from.place * chunks + ni] + from.time);
                if ready < f64::INFINITY {
                    i_of[d] = Some((keys.i[place * chunks + ni], ready));
                }
            }
            let mut push = |op: Op, key: f64, ready: f64| {
                choices[count] = Choice { op, key, ready };
                count += 1;
            };
            if let Some((key, ready)) = f_of[d] {
                push(Op::F(d as u8), key, ready);
            }
            if let Some((key, ready)) = i_of[d] {
                push(Op::I(d as u8), key, ready);
            }
            if let Some(&chunk) = self.due[place].get(self.done[place]) {
                push(Op::W(d as u8), keys.w[place * chunks + chunk], now);
            }
        }
        if setup.pairs {
            for (f, forward) in f_of.iter().enumerate().take(dirs) {
                for (b, backward) in i_of.iter().enumerate().take(dirs) {
                    if let (Some((kf, rf)), Some((kb, rb))) = (forward, backward)
                        && setup.places[rank * dirs + f].pair[b] < f64::INFINITY
                    {
                        let key = kf.min(*kb) - rule.pair_bonus;
                        choices[count] = Choice { op: Op::Pair(f as u8, b as u8), key, ready: rf.max(*rb) };
                        count += 1;
                    }
                }
            }
        }
        let choices = &choices[..count];
        let mut best: Option<&Choice> = None;
        for choice in choices {
            let patience = if matches!(choice.op, Op::Pair(..)) { rule.pair_wait } else { rule.wait };
            if choice.ready <= now + patience && best.is_none_or(|best| choice.key < best.key) {
                best = Some(choice);
            }
        }
        let Some(best) = best else {
            return Err(choices.iter().map(|choice| choice.ready).fold(f64::INFINITY, f64::min));
        };
        if best.ready <= now {
            return Ok(best.op);
        }
        // Something shorter than the wait costs nothing.
        let gap = (best.ready - now) * (1.0 + 1e-12);
        let mut filler: Option<&Choice> = None;
        for choice in choices {
            if choice.ready <= now && setup.cost(rank, choice.op) <= gap && filler.is_none_or(|f| choice.key < f.key) {
                filler = Some(choice);
            }
        }
        filler.map_or(Err(best.ready), |choice| Ok(choice.op))
    }

    /// Whether a forward fits, and leaves room for what must follow it.
    fn has_room(&self, setup: &Setup, rule: &Rule, rank: usize, d: usize) -> bool {
        let room = setup.room[rank];
        let place = rank * setup.dirs + d;
        let after = self.held[rank] + setup.places[place].size();
        if after > room {
            return false;
        }
        if setup.dirs == 1 || !rule.reserve {
            return true;
        }
        // The later direction of a V, or the other one: if it holds nothing here, one chunk of it must be able to come once
        // all weights that are due are done.
        let other = 1 - d;
        if setup.placement == Placement::V && d == 1 {
            return true;
        }
        let there = rank * setup.dirs + other;
        if self.forward[there] > self.backward[there] || self.forward[there] == setup.counts[other] {
            return true;
        }
        let freed: f64 = (0..setup.dirs)
            .map(|d| {
                let place = rank * setup.dirs + d;
                (self.due[place].len() - self.done[place]) as f64 * setup.places[place].at_weight
            })
            .sum();
        after - freed + setup.places[there].size() <= room
    }

    fn take(&mut self, setup: &Setup, rank: usize, op: Op, now: f64) {
        let (chunks, dirs) = (setup.chunks, setup.dirs);
        let end = now + setup.cost(rank, op);
        self.lists[rank].push(op);
        self.clock[rank] = end;
        self.wake[rank] = end;
        let (f, b) = match op {
            Op::F(d) => (Some(d), None),
            Op::I(d) => (None, Some((d, false))),
            Op::Pair(f, b) => (Some(f), Some((b, true))),
            Op::W(d) => {
                let place = setup.place(rank, d);
                self.done[place] += 1;
                self.held[rank] -= setup.places[place].at_weight;
                self.left[rank] -= 1;
                (None, None)
            }
        };
        if let Some(d) = f {
            let place = setup.place(rank, d);
            self.held[rank] += setup.places[place].size();
            self.activation[place * chunks + self.forward[place]] = end;
            self.forward[place] += 1;
            if let Some(to) = setup.places[place].after {
                self.rouse(to.place / dirs, end + setup.places[to.place].before.map_or(0.0, |link| link.time));
            }
        }
        if let Some((d, whole)) = b {
            let place = setup.place(rank, d);
            let chunk = self.backward[place];
            self.gradient[place * chunks + chunk] = end;
            self.backward[place] += 1;
            self.held[rank] -= setup.places[place].at_input;
            if whole {
                self.held[rank] -= setup.places[place].at_weight;
                self.left[rank] -= 1;
            } else {
                self.due[place].push(chunk);
            }
            if let Some(to) = setup.places[place].before {
                self.rouse(to.place / dirs, end + setup.places[to.place].after.map_or(0.0, |link| link.time));
            }
        }
    }

    /// A result reaches `rank` at `time`.
    fn rouse(&mut self, rank: usize, time: f64) {
        if self.left[rank] > 0 {
            self.wake[rank] = self.wake[rank].min(time.max(self.clock[rank]));
        }
    }
}
