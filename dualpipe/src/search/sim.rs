//! Times of lists of letters: what [`crate::simulate`] computes, without chunks to look up.

use crate::search::setup::{Op, Setup};

/// When the letters of each rank start, and buffers that are kept from one run to the next.
#[derive(Debug, Default)]
pub(crate) struct Sim {
    pub starts: Vec<Vec<f64>>,
    activation: Vec<f64>,
    gradient: Vec<f64>,
    forward: Vec<usize>,
    backward: Vec<usize>,
    clock: Vec<f64>,
    awake: Vec<usize>,
    /// Rank and index of each letter in an order in which all that a letter needs comes before it.
    order: Vec<(u32, u32)>,
    pub makespan: f64,
}

impl Sim {
    /// Runs the lists; the makespan, or infinity when they wait for each other in a circle. Memory is not looked at.
    pub fn run(&mut self, setup: &Setup, lists: &[Vec<Op>]) -> f64 {
        let (chunks, dirs) = (setup.chunks, setup.dirs);
        let slots = setup.places.len() * chunks;
        self.activation.clear();
        self.activation.resize(slots, f64::INFINITY);
        self.gradient.clear();
        self.gradient.resize(slots, f64::INFINITY);
        self.forward.clear();
        self.forward.resize(setup.places.len(), 0);
        self.backward.clear();
        self.backward.resize(setup.places.len(), 0);
        self.clock.clear();
        self.clock.resize(setup.ranks, 0.0);
        self.starts.resize_with(setup.ranks, Vec::new);
        self.starts.iter_mut().for_each(Vec::clear);
        self.order.clear();
        self.awake.clear();
        self.awake.extend((0..setup.ranks).rev());
        while let Some(rank) = self.awake.pop() {
            let list = &lists[rank];
            let base = rank * dirs;
            let mut clock = self.clock[rank];
            while let Some(&op) = list.get(self.starts[rank].len()) {
                let (f, b) = match op {
                    Op::F(d) => (Some(base + usize::from(d)), None),
                    Op::I(d) => (None, Some(base + usize::from(d))),
                    Op::W(d) => {
                        self.order.push((rank as u32, self.starts[rank].len() as u32));
                        self.starts[rank].push(clock);
                        clock += setup.places[base + usize::from(d)].w;
                        continue;
                    }
                    Op::Pair(f, b) => (Some(base + usize::from(f)), Some(base + usize::from(b))),
                };
                let mut start = clock;
                if let Some(place) = f
                    && let Some(from) = setup.places[place].before
                {
                    start = start.max(self.activation[from.place * chunks + self.forward[place]] + from.time);
                }
                if let Some(place) = b
                    && let Some(from) = setup.places[place].after
                {
                    start = start.max(self.gradient[from.place * chunks + self.backward[place]] + from.time);
                }
                if start == f64::INFINITY {
                    break;
                }
                let end = start + setup.cost(rank, op);
                self.order.push((rank as u32, self.starts[rank].len() as u32));
                self.starts[rank].push(start);
                clock = end;
                if let Some(place) = f {
                    self.activation[place * chunks + self.forward[place]] = end;
                    self.forward[place] += 1;
                }
                if let Some(place) = b {
                    self.gradient[place * chunks + self.backward[place]] = end;
                    self.backward[place] += 1;
                    if let Some(to) = setup.places[place].before
                        && to.place / dirs != rank
                    {
                        self.awake.push(to.place / dirs);
                    }
                }
                if let Some(place) = f
                    && let Some(to) = setup.places[place].after
                    && to.place / dirs != rank
                {
                    self.awake.push(to.place / dirs);
                }
            }
            self.clock[rank] = clock;
        }
        let ended = self.starts.iter().zip(lists).all(|(starts, list)| starts.len() == list.len());
        self.makespan = if ended { self.clock.iter().copied().fold(0.0, f64::max) } else { f64::INFINITY };
        self.makespan
    }

    /// When each rank ends.
    pub fn ends(&self) -> &[f64] {
        &self.clock
    }

    /// After a run that ended: the longest path from the start of each letter to the end of all.
    pub fn tails(&mut self, setup: &Setup, lists: &[Vec<Op>], tails: &mut Vec<Vec<f64>>) {
        let (chunks, dirs) = (setup.chunks, setup.dirs);
        tails.resize_with(setup.ranks, Vec::new);
        for (tail, list) in tails.iter_mut().zip(lists) {
            tail.clear();
            tail.resize(list.len(), 0.0);
        }
        // The arrays now say how long before the end a result must be there; counts go down to 0 again.
        self.activation.fill(0.0);
        self.gradient.fill(0.0);
        for &(rank, index) in self.order.iter().rev() {
            let (rank, index) = (rank as usize, index as usize);
            let op = lists[rank][index];
            let base = rank * dirs;
            let (f, b) = match op {
                Op::F(d) => (Some(base + usize::from(d)), None),
                Op::I(d) => (None, Some(base + usize::from(d))),
                Op::W(_) => (None, None),
                Op::Pair(f, b) => (Some(base + usize::from(f)), Some(base + usize::from(b))),
            };
            let mut after = tails[rank].get(index + 1).copied().unwrap_or(0.0);
            if let Some(place) = f {
                self.forward[place] -= 1;
                after = after.max(self.activation[place * chunks + self.forward[place]]);
            }
            if let Some(place) = b {
                self.backward[place] -= 1;
                after = after.max(self.gradient[place * chunks + self.backward[place]]);
            }
            let tail = after + setup.cost(rank, op);
            tails[rank][index] = tail;
            if let Some(place) = f
                && let Some(from) = setup.places[place].before
            {
                self.activation[from.place * chunks + self.forward[place]] = tail + from.time;
            }
            if let Some(place) = b
                && let Some(from) = setup.places[place].after
            {
                self.gradient[from.place * chunks + self.backward[place]] = tail + from.time;
            }
        }
    }
}
