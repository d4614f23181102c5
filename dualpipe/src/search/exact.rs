//! An exact solver for small problems, the judge of the search in the tests.
//!
//! Dynamic programming over what has been done: a state is how many forwards, backwards and weights every place has done, with the
//! times at which ranks are free and results are there. Of two states with the same counts, one with no time later makes the other
//! superfluous, since a later start never makes anything end earlier. To keep ranks from running ahead of each other in vain, actions are
//! added in the order of their starts: an added action starts no earlier than the one added before (every schedule has such an
//! order, and the rule keeps "no time later" a reason to drop). A state whose bound is not below the best known end is dropped as well.
//!
//! Times are whole numbers, so that equal is equal.

use std::collections::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};

use crate::kind::Placement;
use crate::search::setup::{Op, Setup};

/// More states than this are not looked at.
const MOST_STATES: usize = 3_000_000;

/// Whole-number costs of a setup.
struct Whole {
    f: Vec<u32>,
    i: Vec<u32>,
    w: Vec<u32>,
    pair: Vec<[u32; 2]>,
    before: Vec<Option<(usize, u32)>>,
    after: Vec<Option<(usize, u32)>>,
    /// The least times of a forward, and of a backward for inputs (in a pair or not).
    least_f: Vec<u32>,
    least_i: Vec<u32>,
    /// The least time from the end of a backward for inputs to the end of all.
    tail: Vec<u32>,
    /// The least time from the start of a forward to the end of its backward for inputs.
    hold: Vec<u32>,
    /// The most that pairing one backward of this place saves on its rank, of `F + I + W` and of `F + I`.
    saves: Vec<u32>,
    saves_inputs: Vec<u32>,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Counts(Vec<[u8; 3]>);

/// Clocks, floor, then activations and gradients that are not yet used.
type Times = Vec<u32>;

/// How a state was reached: the node of the state before, and what was added on which rank.
type Node = (usize, usize, Op);

/// What the exact solver says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// The least makespan below the one given, and lists that have it.
    Best(f64, Vec<Vec<Op>>),
    /// None below the one given.
    NoneBelow,
    /// Too many states.
    Unknown,
}

fn whole(value: f64) -> u32 {
    let scaled = value * 4.0;
    assert_eq!(scaled.fract(), 0.0, "the exact solver takes multiples of a quarter");
    scaled as u32
}

impl Whole {
    fn new(setup: &Setup) -> Whole {
        let count = setup.places.len();
        let dirs = setup.dirs;
        let each = |get: fn(&crate::search::setup::Place) -> f64| -> Vec<u32> {
            setup.places.iter().map(|place| whole(get(place))).collect()
        };
        let (f, i, w) = (each(|p| p.f), each(|p| p.i), each(|p| p.w));
        let pair: Vec<[u32; 2]> =
            setup.places.iter().map(|p| p.pair.map(|cost| if cost.is_finite() { whole(cost) } else { u32::MAX })).collect();
        let link = |link: Option<crate::search::setup::Link>| link.map(|link| (link.place, whole(link.time)));
        let before: Vec<_> = setup.places.iter().map(|p| link(p.before)).collect();
        let after: Vec<_> = setup.places.iter().map(|p| link(p.after)).collect();
        let with_forward = |p: usize| pair[p].into_iter().min().unwrap_or(u32::MAX);
        let with_backward = |p: usize| (0..dirs).map(|d| pair[p / dirs * dirs + d][p % dirs]).min().unwrap_or(u32::MAX);
        let least_f: Vec<u32> = (0..count).map(|p| f[p].min(with_forward(p))).collect();
        let least_i: Vec<u32> = (0..count).map(|p| i[p].min(with_backward(p))).collect();
        let mut tail = vec![0; count];
        let mut hold = vec![0; count];
        for first in (0..count).filter(|&p| before[p].is_none()) {
            let mut chain = vec![first];
            while let Some((next, _)) = after[chain[chain.len() - 1]] {
                chain.push(next);
            }
            for &p in &chain {
                let own = if with_backward(p) < u32::MAX { 0 } else { w[p] };
                let further = before[p].map_or(0, |(q, _)| after[q].map_or(0, |(_, time)| time) + least_i[q] + tail[q]);
                tail[p] = own.max(further);
            }
            for (n, &p) in chain.iter().enumerate().rev() {
                hold[p] = least_f[p] + least_i[p];
                if let Some(&next) = chain.get(n + 1) {
                    hold[p] += before[next].map_or(0, |(_, t)| t) + hold[next] + after[p].map_or(0, |(_, t)| t);
                }
            }
        }
        let saved = |p: usize, weights: u32| {
            let of = |d: usize| {
                let forward = p / dirs * dirs + d;
                (f[forward] + i[p] + weights).saturating_sub(pair[forward][p % dirs])
            };
            (0..dirs).map(of).max().unwrap_or(0)
        };
        let saves = (0..count).map(|p| saved(p, w[p])).collect();
        let saves_inputs = (0..count).map(|p| saved(p, 0)).collect();
        Whole { f, i, w, pair, before, after, least_f, least_i, tail, hold, saves, saves_inputs }
    }
}

struct Solver<'a> {
    setup: &'a Setup,
    whole: Whole,
}

impl Solver<'_> {
    fn activation(&self, place: usize, chunk: usize) -> usize {
        self.setup.ranks + 1 + place * self.setup.chunks + chunk
    }

    fn gradient(&self, place: usize, chunk: usize) -> usize {
        self.activation(self.setup.places.len() + place, chunk)
    }

    fn held(&self, counts: &Counts, rank: usize) -> f64 {
        let of = |place: usize| {
            let [f, i, due] = counts.0[place];
            let own = &self.setup.places[place];
            f64::from(f - i) * own.size() + f64::from(due) * own.at_weight
        };
        (rank * self.setup.dirs..(rank + 1) * self.setup.dirs).map(of).sum()
    }

    /// A time below which no completion of this state ends.
    fn bound(&self, counts: &Counts, times: &Times) -> u32 {
        let (setup, whole) = (self.setup, &self.whole);
        let floor = times[setup.ranks];
        let mut best = 0;
        for rank in 0..setup.ranks {
            let now = times[rank].max(floor);
            let (mut work, mut inputs) = (0, 0);
            let (mut saved, mut saved_inputs, mut forwards) = (0, 0, 0);
            let mut tail = u32::MAX;
            let mut any = false;
            for place in rank * setup.dirs..(rank + 1) * setup.dirs {
                let [f, i, due] = counts.0[place].map(u32::from);
                let chunks = setup.chunks_at(place) as u32;
                let (left_f, left_i) = (chunks - f, chunks - i);
                any |= left_i > 0 || due > 0;
                work += left_f * whole.f[place] + left_i * (whole.i[place] + whole.w[place]) + due * whole.w[place];
                inputs += left_f * whole.f[place] + left_i * whole.i[place];
                forwards += left_f;
                saved = saved.max(whole.saves[place]);
                saved_inputs = saved_inputs.max(whole.saves_inputs[place]);
                if left_i > 0 {
                    tail = tail.min(whole.tail[place]);
                    // The last chunk here, and the next result to come.
                    let here = now + left_i.saturating_sub(left_f + 1) * whole.least_i[place];
                    best = best.max(here + whole.least_i[place] + whole.tail[place]);
                    if left_f > 0 {
                        let mut first = now;
                        if let Some((from, time)) = whole.before[place]
                            && counts.0[from][0] > counts.0[place][0]
                        {
                            first = first.max(times[self.activation(from, f as usize)] + time);
                        }
                        best = best.max(first + (left_f - 1) * whole.least_f[place] + whole.hold[place] + whole.tail[place]);
                    }
                    if let Some((from, time)) = whole.after[place]
                        && counts.0[from][1] > counts.0[place][1]
                    {
                        let first = now.max(times[self.gradient(from, i as usize)] + time);
                        best = best.max(first + whole.least_i[place] + whole.tail[place]);
                    }
                }
            }
            if any {
                best = best.max(now + work.saturating_sub(saved * forwards));
            }
            if tail < u32::MAX {
                // In a V the way down comes last.
                if setup.placement == Placement::V {
                    tail = whole.tail[rank * setup.dirs];
                }
                best = best.max(now + inputs.saturating_sub(saved_inputs * forwards) + tail);
            }
            best = best.max(times[rank]);
        }
        best
    }

    /// All states that follow from adding one action.
    fn follow(&self, counts: &Counts, times: &Times, mut found: impl FnMut(Counts, Times, usize, usize, Op)) {
        let (setup, whole) = (self.setup, &self.whole);
        let dirs = setup.dirs;
        let floor = times[setup.ranks];
        for rank in 0..setup.ranks {
            let free = times[rank].max(floor);
            let room = setup.room[rank] - self.held(counts, rank);
            let forward_at = |d: usize| {
                let place = rank * dirs + d;
                let f = usize::from(counts.0[place][0]);
                if f == setup.counts[d] || setup.places[place].size() > room {
                    return None;
                }
                match whole.before[place] {
                    None => Some(free),
                    Some((from, _)) if counts.0[from][0] as usize <= f => None,
                    Some((from, time)) => Some(free.max(times[self.activation(from, f)] + time)),
                }
            };
            let backward_at = |d: usize| {
                let place = rank * dirs + d;
                let [f, i, _] = counts.0[place].map(usize::from);
                if i == f {
                    return None;
                }
                match whole.after[place] {
                    None => Some(free),
                    Some((from, _)) if counts.0[from][1] as usize <= i => None,
                    Some((from, time)) => Some(free.max(times[self.gradient(from, i)] + time)),
                }
            };
            let mut options: Vec<(Op, u32)> = Vec::new();
            let mut shortest = u32::MAX;
            for d in 0..dirs {
                let place = rank * dirs + d;
                options.extend(forward_at(d).map(|start| (Op::F(d as u8), start)));
                options.extend(backward_at(d).map(|start| (Op::I(d as u8), start)));
                if counts.0[place][2] > 0 {
                    options.push((Op::W(d as u8), free));
                    shortest = shortest.min(whole.w[place]);
                }
                for b in 0..dirs {
                    if whole.pair[place][b] < u32::MAX
                        && let (Some(f), Some(i)) = (forward_at(d), backward_at(b))
                    {
                        options.push((Op::Pair(d as u8, b as u8), f.max(i)));
                    }
                }
            }
            for (op, start) in options {
                // Weights that are due and fit before it would come first at no cost.
                if start > free && start - free >= shortest {
                    continue;
                }
                let mut next = (counts.clone(), times.clone());
                let size = self.apply(&mut next, rank, op, start);
                found(next.0, next.1, size, rank, op);
            }
        }
    }

    /// Adds an action; how many parts of the work (`F`, `I`, `W`) it does.
    fn apply(&self, (counts, times): &mut (Counts, Times), rank: usize, op: Op, start: u32) -> usize {
        let (setup, whole) = (self.setup, &self.whole);
        let place = |d: u8| setup.place(rank, d);
        let (f, b, end, size) = match op {
            Op::F(d) => (Some(place(d)), None, start + whole.f[place(d)], 1),
            Op::I(d) => (None, Some(place(d)), start + whole.i[place(d)], 1),
            Op::W(d) => (None, None, start + whole.w[place(d)], 1),
            Op::Pair(f, b) => (Some(place(f)), Some(place(b)), start + whole.pair[place(f)][usize::from(b)], 3),
        };
        times[rank] = end;
        times[setup.ranks] = start;
        match op {
            Op::I(d) => counts.0[place(d)][2] += 1,
            Op::W(d) => counts.0[place(d)][2] -= 1,
            _ => {}
        }
        if let Some(p) = f {
            let chunk = usize::from(counts.0[p][0]);
            counts.0[p][0] += 1;
            if let Some((from, _)) = whole.before[p] {
                times[self.activation(from, chunk)] = 0;
            }
            if whole.after[p].is_some() {
                times[self.activation(p, chunk)] = end;
            }
        }
        if let Some(p) = b {
            let chunk = usize::from(counts.0[p][1]);
            counts.0[p][1] += 1;
            if let Some((from, _)) = whole.after[p] {
                times[self.gradient(from, chunk)] = 0;
            }
            if whole.before[p].is_some() {
                times[self.gradient(p, chunk)] = end;
            }
        }
        size
    }
}

/// States with the same counts, each with its node.
type Front = Vec<(Times, usize)>;

/// Adds times unless others are no later everywhere; drops those that are no earlier anywhere.
fn add(front: &mut Front, times: Times, node: usize) -> bool {
    let no_later = |a: &Times, b: &Times| a.iter().zip(b).all(|(a, b)| a <= b);
    if front.iter().any(|(other, _)| no_later(other, &times)) {
        return false;
    }
    front.retain(|(other, _)| !no_later(&times, other));
    front.push((times, node));
    true
}

/// The least makespan below `below` of this placement.
pub(crate) fn solve(setup: &Setup, below: f64) -> Verdict {
    let solver = Solver { setup, whole: Whole::new(setup) };
    let places = setup.places.len();
    let mut best = if below.is_finite() { (below * 4.0 - 1e-6).ceil() as u32 } else { u32::MAX };
    let mut found = None;
    let mut nodes: Vec<Node> = Vec::new();
    let mut layers: BTreeMap<usize, HashMap<Counts, Front>> = BTreeMap::new();
    let start = (Counts(vec![[0; 3]; places]), vec![0; setup.ranks + 1 + 2 * places * setup.chunks]);
    layers.entry(0).or_default().insert(start.0, vec![(start.1, usize::MAX)]);
    let parts = 3 * setup.ranks * setup.counts.iter().sum::<usize>();
    while let Some((done, layer)) = layers.pop_first() {
        if done == parts {
            for (times, node) in layer.into_values().flatten() {
                let end = times[..setup.ranks].iter().copied().max().unwrap_or(0);
                if end < best {
                    (best, found) = (end, Some(node));
                }
            }
            continue;
        }
        for (counts, front) in layer {
            for (times, node) in front {
                solver.follow(&counts, &times, |counts, times, size, rank, op| {
                    if solver.bound(&counts, &times) >= best {
                        return;
                    }
                    let new = nodes.len();
                    let added = match layers.entry(done + size).or_default().entry(counts) {
                        Entry::Occupied(mut entry) => add(entry.get_mut(), times, new),
                        Entry::Vacant(entry) => {
                            entry.insert(vec![(times, new)]);
                            true
                        }
                    };
                    if added {
                        nodes.push((node, rank, op));
                    }
                });
                if nodes.len() > MOST_STATES {
                    return Verdict::Unknown;
                }
            }
        }
    }
    let Some(mut node) = found else { return Verdict::NoneBelow };
    let mut lists = vec![Vec::new(); setup.ranks];
    while let Some(&(before, rank, op)) = nodes.get(node) {
        lists[rank].push(op);
        node = before;
    }
    lists.iter_mut().for_each(|list: &mut Vec<Op>| list.reverse());
    Verdict::Best(f64::from(best) / 4.0, lists)
}
