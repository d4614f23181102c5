//! A pair on paper: one lane computes, one communicates.

use crate::error::{Error, Result};
use crate::overlap::arrangement::{Arrangement, Op};
use crate::overlap::component::{Half, Pairing};
use crate::overlap::costs::{ComponentCost, PairCosts, Ports};

/// What [`simulate_pair`] finds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairTimeline {
    /// When the last component is done.
    pub makespan: f64,
    /// How long the computing lane waits for communication of its components.
    pub exposed: f64,
    /// What of the communication would be exposed if nothing overlapped: the sum of what each takes alone.
    pub communication: f64,
    /// How long the computing lane works. Weights that the arrangement puts off count in the pair in which they are done.
    pub computing: f64,
    /// How long the port of the slow links is busy (with one port: that port).
    pub slow: f64,
    /// How long the port of the fast links is busy (with one port: 0).
    pub fast: f64,
    /// When the result of the forward, then that of the backward, leaves; nothing for a half that is not there.
    pub results: [Option<f64>; 2],
}

impl PairTimeline {
    /// The share of the communication that computation hides, 0 to 1; 1 where there is none.
    pub fn hidden(&self) -> f64 {
        if self.communication > 0.0 { 1.0 - self.exposed / self.communication } else { 1.0 }
    }
}

/// Runs an arrangement with these costs, both inputs being there at the start. All ranks that communicate do the same at
/// the same time. The computing lane takes the entries in order; a communication occupies its ports from its start on, or from
/// where they are free, in the order of the starts, and is there a latency after both are done with it; a finish waits for
/// that. Results leave over the ports as well, after what has been started before, and nobody waits for them here.
///
/// # Errors
/// An arrangement or costs that are not for these components.
pub fn simulate_pair(pairing: &Pairing, costs: &PairCosts, arrangement: &Arrangement) -> Result<PairTimeline> {
    let flat = Flat::new(pairing, costs)?;
    arrangement.check(pairing)?;
    let mut lanes = Lanes::default();
    flat.run(arrangement.ops(), &mut lanes, [0.0; 2]);
    Ok(flat.timeline(&lanes))
}

/// The time from one pair to the next when many follow each other: a pair's inputs are the results that the neighbouring ranks,
/// which do the same, sent from the pair before, [`PairCosts::transfer`] later. [`PairTimeline::exposed`] then includes waiting for
/// these. All times are those of one pair, after a few that fill the pipeline.
///
/// # Errors
/// As [`simulate_pair`].
pub fn simulate_steady(pairing: &Pairing, costs: &PairCosts, arrangement: &Arrangement) -> Result<PairTimeline> {
    let flat = Flat::new(pairing, costs)?;
    arrangement.check(pairing)?;
    Ok(flat.steady(arrangement.ops()))
}

/// A lower bound of the time from pair to pair of every arrangement of these components, and of the makespan of every one that puts no
/// weights off: the largest of the work of each lane, with the shortest way before and after it, and the critical path without the
/// weights, which may be put off.
///
/// # Errors
/// Costs that are not for these components.
pub fn pair_bound(pairing: &Pairing, costs: &PairCosts) -> Result<f64> {
    Ok(Flat::new(pairing, costs)?.bound())
}

/// A pairing with its costs, its components numbered through: the forward's, then the backward's.
pub(crate) struct Flat {
    ports: Ports,
    transfer: ComponentCost,
    pub(crate) forward: usize,
    pub(crate) costs: Vec<ComponentCost>,
    pub(crate) after: Vec<Vec<usize>>,
    pub(crate) communicates: Vec<bool>,
    pub(crate) is_weight: Vec<bool>,
}

/// Both lanes while they run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lanes {
    /// When the computing lane is free.
    pub(crate) now: f64,
    pub(crate) slow_free: f64,
    pub(crate) fast_free: f64,
    pub(crate) exposed: f64,
    pub(crate) computing: f64,
    /// Weights that the pair before put off.
    pub(crate) put_off: Vec<usize>,
    /// When each communication is there.
    pub(crate) arrives: Vec<f64>,
    /// When results left, and when they reach the neighbour.
    pub(crate) results: [Option<(f64, f64)>; 2],
}

impl Lanes {
    fn work(&mut self, time: f64) {
        self.now += time;
        self.computing += time;
    }
}

impl Flat {
    pub(crate) fn new(pairing: &Pairing, costs: &PairCosts) -> Result<Flat> {
        let forward = pairing.half(Half::Forward).len();
        let mut flat = Flat {
            ports: costs.ports,
            transfer: costs.transfer,
            forward,
            costs: Vec::new(),
            after: Vec::new(),
            communicates: Vec::new(),
            is_weight: Vec::new(),
        };
        for half in [Half::Forward, Half::Backward] {
            let (components, times) = (pairing.half(half), costs.half(half));
            if components.len() != times.len() {
                return Err(Error::Shape {
                    what: format!("costs of the half {half}"),
                    expected: format!("{}, one a component", components.len()),
                    got: times.len().to_string(),
                });
            }
            let first = flat.costs.len();
            for (component, cost) in components.iter().zip(times) {
                flat.costs.push(*cost);
                flat.after.push(component.after.iter().map(|other| first + other).collect());
                flat.communicates.push(component.kind.communicates());
                flat.is_weight.push(component.kind.is_weight());
            }
        }
        Ok(flat)
    }

    pub(crate) fn len(&self) -> usize {
        self.costs.len()
    }

    pub(crate) fn id(&self, half: Half, component: usize) -> usize {
        match half {
            Half::Forward => component,
            Half::Backward => self.forward + component,
        }
    }

    pub(crate) fn half(&self, id: usize) -> (Half, usize) {
        if id < self.forward { (Half::Forward, id) } else { (Half::Backward, id - self.forward) }
    }

    /// Components that a half's result waits for.
    fn left(&self) -> [usize; 2] {
        let count = |range: std::ops::Range<usize>| range.filter(|&id| !self.is_weight[id]).count();
        [count(0..self.forward), count(self.forward..self.len())]
    }

    /// Occupies the ports from `now` on; returns when what was sent is there.
    pub(crate) fn send(&self, lanes: &mut Lanes, cost: &ComponentCost) -> f64 {
        let mut end = lanes.now;
        if self.ports == Ports::One {
            let time = cost.slow.max(cost.fast);
            if time > 0.0 {
                lanes.slow_free = lanes.slow_free.max(lanes.now) + time;
                end = end.max(lanes.slow_free);
            }
        } else {
            if cost.slow > 0.0 {
                lanes.slow_free = lanes.slow_free.max(lanes.now) + cost.slow;
                end = end.max(lanes.slow_free);
            }
            if cost.fast > 0.0 {
                lanes.fast_free = lanes.fast_free.max(lanes.now) + cost.fast;
                end = end.max(lanes.fast_free);
            }
        }
        end + cost.latency
    }

    /// Runs the entries, which are an arrangement of these components; the inputs are there at `inputs`.
    pub(crate) fn run(&self, ops: &[Op], lanes: &mut Lanes, inputs: [f64; 2]) {
        lanes.arrives.clear();
        lanes.arrives.resize(self.len(), 0.0);
        lanes.results = [None; 2];
        let mut left = self.left();
        let mut begun = [false; 2];
        let mut put_off = std::mem::take(&mut lanes.put_off).into_iter();
        let mut kept: Vec<bool> = self.is_weight.clone();
        for &op in ops {
            let (half, component) = match op {
                Op::Fill => {
                    if let Some(id) = put_off.next() {
                        lanes.work(self.costs[id].compute);
                    }
                    continue;
                }
                Op::Compute(half, component) | Op::Start(half, component) | Op::Finish(half, component) => (half, component),
            };
            let (h, id) = (half as usize, self.id(half, component));
            let cost = &self.costs[id];
            if !begun[h] {
                begun[h] = true;
                lanes.exposed += (inputs[h] - lanes.now).max(0.0);
                lanes.now = lanes.now.max(inputs[h]);
            }
            match op {
                Op::Start(..) => {
                    lanes.work(cost.start);
                    lanes.arrives[id] = self.send(lanes, cost);
                    continue;
                }
                Op::Finish(..) => {
                    lanes.exposed += (lanes.arrives[id] - lanes.now).max(0.0);
                    lanes.now = lanes.now.max(lanes.arrives[id]);
                    lanes.work(cost.finish);
                }
                _ => {
                    lanes.work(cost.compute);
                    kept[id] = false;
                }
            }
            if !self.is_weight[id] {
                left[h] -= 1;
                if left[h] == 0 {
                    let leaves = lanes.now;
                    lanes.results[h] = Some((leaves, self.send(lanes, &self.transfer)));
                }
            }
        }
        for id in put_off {
            lanes.work(self.costs[id].compute);
        }
        lanes.put_off.extend((0..self.len()).filter(|&id| kept[id]));
    }

    pub(crate) fn timeline(&self, lanes: &Lanes) -> PairTimeline {
        let sum = |part: &dyn Fn(&ComponentCost) -> f64| self.costs.iter().map(part).sum::<f64>();
        let alone = |id: usize| if self.communicates[id] { self.costs[id].alone() } else { 0.0 };
        let (slow, fast) = match self.ports {
            Ports::One => (sum(&|cost| cost.slow.max(cost.fast)), 0.0),
            Ports::Two => (sum(&|cost| cost.slow), sum(&|cost| cost.fast)),
        };
        PairTimeline {
            makespan: lanes.now,
            exposed: lanes.exposed,
            communication: (0..self.len()).map(alone).sum(),
            computing: lanes.computing,
            slow,
            fast,
            results: lanes.results.map(|result| result.map(|(leaves, _)| leaves)),
        }
    }

    /// Pairs behind each other; the last one's times.
    pub(crate) fn steady(&self, ops: &[Op]) -> PairTimeline {
        const PAIRS: usize = 3;
        let mut lanes = Lanes::default();
        let mut inputs = [0.0; 2];
        let (mut begin, mut exposed, mut computing) = (0.0, 0.0, 0.0);
        for _ in 0..PAIRS {
            (begin, exposed, computing) = (lanes.now, lanes.exposed, lanes.computing);
            self.run(ops, &mut lanes, inputs);
            inputs = lanes.results.map(|result| result.map_or(0.0, |(_, arrives)| arrives));
        }
        let timeline = self.timeline(&lanes);
        PairTimeline {
            makespan: lanes.now - begin,
            exposed: lanes.exposed - exposed,
            computing: lanes.computing - computing,
            results: timeline.results.map(|leaves| leaves.map(|leaves| leaves - begin)),
            ..timeline
        }
    }

    /// The time that a component takes alone.
    fn duration(&self, id: usize) -> f64 {
        let cost = &self.costs[id];
        if self.communicates[id] { cost.start + cost.alone() + cost.finish } else { cost.compute }
    }

    /// For each component the longest way from the begin to its begin, and from its end to the end, with or without weights.
    pub(crate) fn ways(&self, weights: bool) -> (Vec<f64>, Vec<f64>) {
        let (mut heads, mut tails) = (vec![0.0f64; self.len()], vec![0.0f64; self.len()]);
        for id in 0..self.len() {
            for &other in &self.after[id] {
                heads[id] = heads[id].max(heads[other] + self.duration(other));
            }
        }
        for id in (0..self.len()).rev().filter(|&id| weights || !self.is_weight[id]) {
            for &other in &self.after[id] {
                tails[other] = tails[other].max(tails[id] + self.duration(id));
            }
        }
        (heads, tails)
    }

    pub(crate) fn bound(&self) -> f64 {
        let (heads, tails) = self.ways(false);
        let kept = |id: &usize| !self.is_weight[*id];
        let path = (0..self.len()).filter(kept).map(|id| heads[id] + self.duration(id) + tails[id]).fold(0.0, f64::max);
        let computing: f64 = self.costs.iter().map(ComponentCost::computing).sum();
        // A port's work, what comes before its first piece of it, and what comes after its last.
        let port = |work: &dyn Fn(&ComponentCost) -> f64| {
            let total: f64 = self.costs.iter().map(work).sum();
            let used = || (0..self.len()).filter(|&id| work(&self.costs[id]) > 0.0);
            if total == 0.0 {
                return 0.0;
            }
            let before = used().map(|id| heads[id] + self.costs[id].start).fold(f64::INFINITY, f64::min);
            let after = used().map(|id| tails[id] + self.costs[id].latency + self.costs[id].finish).fold(f64::INFINITY, f64::min);
            total + before + after
        };
        let ports = match self.ports {
            Ports::One => port(&|cost| cost.slow.max(cost.fast)),
            Ports::Two => port(&|cost| cost.slow).max(port(&|cost| cost.fast)),
        };
        path.max(computing).max(ports)
    }
}
