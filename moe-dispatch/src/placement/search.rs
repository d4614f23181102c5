//! One pool of devices: filling its slots, and improving on the most loaded device.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use v3_numerics::cpu::Isa;
use v3_numerics::simd::{Kernel, Simd, dispatch};

/// A slot without an expert.
pub(super) const EMPTY: u32 = u32::MAX;

/// Candidate exchanges looked at per shake-up, on average, before the search gives up: bounds the time on huge pools.
const WORK_PER_SHAKE: u64 = 1 << 17;

/// Slots of a device up to which two are exchanged for two.
const FEW_SLOTS: usize = 8;

/// What exchanges have brought to more than this many times the best largest load is not searched further: it is rarely what becomes the best.
const HOPELESS: f64 = 1.001;

/// `devices` devices of `slots` slots each, for the experts with loads `weight`.
pub(super) struct Pool<'a> {
    pub(super) weight: &'a [f64],
    pub(super) devices: usize,
    pub(super) slots: usize,
    /// How often an expert may be on one device.
    pub(super) cap: u16,
    pub(super) isa: Isa,
}

/// An assignment: expert by slot, with what follows from it.
pub(super) struct State {
    /// `[devices, slots]`
    pub(super) expert: Vec<u32>,
    /// `[experts]`
    count: Vec<u32>,
    /// `[experts, devices]`: how often an expert is on a device.
    has: Vec<u16>,
    /// `[devices]`
    load: Vec<f64>,
    /// `[experts]`: the load of each replica, and what it were with one more and with one less.
    share: Vec<Share>,
}

#[derive(Clone, Copy, Default)]
struct Share {
    now: f64,
    more: f64,
    less: f64,
}

impl Clone for State {
    fn clone(&self) -> Self {
        let State { expert, count, has, load, share } = self;
        State { expert: expert.clone(), count: count.clone(), has: has.clone(), load: load.clone(), share: share.clone() }
    }

    /// Without new memory.
    fn clone_from(&mut self, from: &Self) {
        self.expert.clone_from(&from.expert);
        self.count.clone_from(&from.count);
        self.has.clone_from(&from.has);
        self.load.clone_from(&from.load);
        self.share.clone_from(&from.share);
    }
}

impl State {
    /// The largest device load.
    pub(super) fn max(&self) -> f64 {
        self.load.iter().fold(0.0, |m, &x| if x > m { x } else { m })
    }

    fn fullest(&self) -> usize {
        (1..self.load.len()).fold(0, |best, d| if self.load[d] > self.load[best] { d } else { best })
    }

    fn sum_squares(&self) -> f64 {
        self.load.iter().map(|x| x * x).sum()
    }
}

/// Replacing the expert of a slot.
struct Change {
    slot: usize,
    to: usize,
}

/// SplitMix64: the shake-ups need to be varied, and the same every time.
struct Mixer(u64);

impl Mixer {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ (z >> 31)) * n as u128) >> 64) as usize
    }
}

impl<'a> Pool<'a> {
    /// A pool in which an expert is once on a device, unless a device has more slots than there are experts.
    pub(super) fn new(weight: &'a [f64], devices: usize, slots: usize) -> Self {
        Self { weight, devices, slots, cap: slots.div_ceil(weight.len()) as u16, isa: Isa::detect() }
    }

    fn experts(&self) -> usize {
        self.weight.len()
    }

    fn most(&self) -> u32 {
        (self.devices * usize::from(self.cap)) as u32
    }

    fn share(&self, state: &State, expert: usize) -> f64 {
        state.share[expert].now
    }

    /// To be called when the number of an expert's replicas has changed.
    fn recount(&self, state: &mut State, expert: usize) {
        let (weight, count) = (self.weight[expert], f64::from(state.count[expert]));
        state.share[expert] = Share { now: weight / count, more: weight / (count + 1.0), less: weight / (count - 1.0) };
    }

    /// Completes a partial assignment ([`EMPTY`] slots; all of them for a fresh start), first dropping what breaks the cap
    /// and what an expert without any slot needs. Every expert gets a replica, the spare ones go where the load per
    /// replica is largest, then the new replicas are packed, largest first, onto the least loaded device.
    pub(super) fn fill(&self, mut expert: Vec<u32>) -> State {
        let (n, slots, cap) = (self.experts(), self.slots, self.cap);
        let mut count = vec![0u32; n];
        let mut has = vec![0u16; self.devices * n];
        for (i, e) in expert.iter_mut().enumerate().filter(|(_, e)| **e != EMPTY) {
            let on_device = &mut has[*e as usize * self.devices + i / slots];
            if *on_device == cap {
                *e = EMPTY;
            } else {
                *on_device += 1;
                count[*e as usize] += 1;
            }
        }
        let missing = count.iter().filter(|&&c| c == 0).count();
        let mut empty = expert.iter().filter(|&&e| e == EMPTY).count();
        while empty < missing {
            let spare = (0..expert.len()).filter(|&i| expert[i] != EMPTY && count[expert[i] as usize] > 1);
            let loss = |i: &usize| self.weight[expert[*i] as usize] / f64::from(count[expert[*i] as usize] - 1);
            let Some(i) = spare.min_by(|a, b| loss(a).total_cmp(&loss(b))) else { break };
            let e = std::mem::replace(&mut expert[i], EMPTY) as usize;
            count[e] -= 1;
            has[e * self.devices + i / slots] -= 1;
            empty += 1;
        }
        let placed = count.clone();
        count.iter_mut().for_each(|c| *c = (*c).max(1));
        let mut heap: BinaryHeap<_> = (0..n).filter(|&e| count[e] < self.most()).map(|e| self.wish(e, count[e])).collect();
        for _ in missing..empty {
            // Never empty: all experts at their most would be more than all slots.
            let Some((_, _, Reverse(e))) = heap.pop() else { break };
            count[e] += 1;
            if count[e] < self.most() {
                heap.push(self.wish(e, count[e]));
            }
        }
        let mut state = State { expert, count, has, load: vec![0.0; self.devices], share: vec![Share::default(); n] };
        (0..n).for_each(|e| self.recount(&mut state, e));
        (0..self.devices).for_each(|d| self.reload(&mut state, d));
        let mut todo: Vec<usize> = (0..n).flat_map(|e| (placed[e]..state.count[e]).map(move |_| e)).collect();
        todo.sort_by(|&a, &b| self.share(&state, b).total_cmp(&self.share(&state, a)).then(a.cmp(&b)));
        let mut room: Vec<usize> = state.expert.chunks(slots).map(|c| c.iter().filter(|&&e| e == EMPTY).count()).collect();
        for x in todo {
            let open = (0..self.devices).filter(|&d| room[d] > 0);
            let fits = open.clone().filter(|&d| state.has[x * self.devices + d] < cap);
            let least = |a: &usize, b: &usize| state.load[*a].total_cmp(&state.load[*b]);
            if let Some(d) = fits.min_by(least) {
                self.put(&mut state, d, x);
                room[d] -= 1;
            } else if let Some(a) = open.min_by(least) {
                // Only devices that already hold it have room: another device takes it and gives one of its own.
                self.put_by_exchange(&mut state, a, x);
                room[a] -= 1;
            }
        }
        state
    }

    fn wish(&self, expert: usize, count: u32) -> (Order, Reverse<u32>, Reverse<usize>) {
        (Order(self.weight[expert] / f64::from(count)), Reverse(count), Reverse(expert))
    }

    fn put(&self, state: &mut State, device: usize, x: usize) {
        let slots = &mut state.expert[device * self.slots..][..self.slots];
        if let Some(slot) = slots.iter_mut().find(|e| **e == EMPTY) {
            *slot = x as u32;
            state.has[x * self.devices + device] += 1;
            self.reload(state, device);
        }
    }

    /// Places `x`, of which device `a` holds as many as it may, by moving another expert to `a`. A device `b` below the cap
    /// for `x` exists, or there would be more replicas than `most`; if it has no room itself it holds, counted with
    /// repetition, more of the others than `a`, so one of them may move.
    fn put_by_exchange(&self, state: &mut State, a: usize, x: usize) {
        let cap = self.cap;
        let mut best: Option<(f64, usize, u32)> = None;
        for b in (0..self.devices).filter(|&b| state.has[x * self.devices + b] < cap) {
            for i in b * self.slots..(b + 1) * self.slots {
                let y = state.expert[i];
                if y == EMPTY || y as usize == x || state.has[y as usize * self.devices + a] >= cap {
                    continue;
                }
                let (px, py) = (self.share(state, x), self.share(state, y as usize));
                let high = (state.load[a] + py).max(state.load[b] - py + px);
                if best.is_none_or(|(h, ..)| high < h) {
                    best = Some((high, i, y));
                }
            }
        }
        if let Some((_, i, y)) = best {
            let b = i / self.slots;
            state.has[y as usize * self.devices + b] -= 1;
            state.has[x * self.devices + b] += 1;
            state.expert[i] = x as u32;
            self.reload(state, b);
            self.put(state, a, y as usize);
        }
    }

    /// A device's load from its slots: never updated by differences, so that equal assignments have equal loads.
    fn reload(&self, state: &mut State, device: usize) {
        let slots = &state.expert[device * self.slots..][..self.slots];
        let held = slots.iter().filter(|&&e| e != EMPTY);
        state.load[device] = held.map(|&e| self.share(state, e as usize)).sum();
    }

    /// Differences below this are rounding.
    fn noise(&self) -> f64 {
        1e-12 * self.weight.iter().sum::<f64>()
    }

    /// Improves until no load exceeds `target`, or for `effort` shake-ups.
    pub(super) fn improve(&self, state: State, target: f64, effort: usize) -> State {
        let mut work = effort as u64 * WORK_PER_SHAKE;
        let mut best = state;
        self.descend(&mut best, target, f64::INFINITY, &mut work);
        if self.devices == 1 {
            return best;
        }
        let mut mixer = Mixer(0);
        let mut current = best.clone();
        for _ in 0..effort {
            if best.max() <= target || work == 0 {
                break;
            }
            self.shake(&mut current, &mut mixer);
            self.descend(&mut current, target, best.max() * HOPELESS, &mut work);
            if current.max() < best.max() - self.noise() {
                best.clone_from(&current);
            } else if current.max() > best.max() {
                // Answers as good as the best are other places to start from.
                current.clone_from(&best);
            }
        }
        best
    }

    /// Steps that lower the load of the fullest device, the best one each time, until there is none; exchanges only where they leave
    /// the largest load above `hopeless`.
    fn descend(&self, state: &mut State, target: f64, hopeless: f64, work: &mut u64) {
        dispatch(self.isa, Descent { pool: self, state, target, hopeless, work });
    }

    #[inline(always)]
    fn may_exchange(&self, state: &State, i: usize, j: usize) -> bool {
        let cap = self.cap;
        let (a, b) = (i / self.slots, j / self.slots);
        let (x, y) = (state.expert[i] as usize, state.expert[j] as usize);
        a != b && x != y && state.has[y * self.devices + a] < cap && state.has[x * self.devices + b] < cap
    }

    /// The exchange of a slot of the fullest device with one of another device that leaves the larger of the two loads
    /// smallest, if that is smaller than now.
    #[inline(always)]
    fn best_exchange(&self, state: &State, work: &mut u64) -> Option<(usize, usize)> {
        let (a, slots) = (state.fullest(), self.slots);
        let mut best = None;
        let mut lowest = state.load[a] - self.noise();
        let mut theirs = Vec::with_capacity(slots);
        for b in (0..self.devices).filter(|&b| b != a) {
            if !promises(state.load[a], state.load[b], lowest) {
                continue;
            }
            theirs.clear();
            theirs.extend(state.expert[b * slots..][..slots].iter().map(|&e| self.share(state, e as usize)));
            for i in a * slots..(a + 1) * slots {
                let px = self.share(state, state.expert[i] as usize);
                if !any_below(state.load[a], state.load[b], px, &theirs, lowest) {
                    continue;
                }
                for j in b * slots..(b + 1) * slots {
                    let delta = px - self.share(state, state.expert[j] as usize);
                    let high = (state.load[a] - delta).max(state.load[b] + delta);
                    if high < lowest && self.may_exchange(state, i, j) {
                        (lowest, best) = (high, Some((i, j)));
                    }
                }
            }
        }
        *work = work.saturating_sub((self.devices * slots * slots) as u64);
        best
    }

    /// As [`best_exchange`](Pool::best_exchange), two slots for two: with few slots on a device the single ones are few, and far apart.
    #[inline(always)]
    fn best_double_exchange(&self, state: &State, work: &mut u64) -> Option<[(usize, usize); 2]> {
        let (a, slots) = (state.fullest(), self.slots);
        if self.cap > 1 || !(2..=FEW_SLOTS).contains(&slots) {
            return None;
        }
        const PAIRS: usize = FEW_SLOTS * (FEW_SLOTS - 1) / 2;
        // The pairs of slots of a device, and their loads.
        let pairs = |device: usize, loads: &mut [f64; PAIRS], places: &mut [(usize, usize); PAIRS]| {
            let slots = device * slots..(device + 1) * slots;
            let both = slots.clone().flat_map(|i| (i + 1..slots.end).map(move |j| (i, j)));
            let share = |slot: usize| self.share(state, state.expert[slot] as usize);
            let to = loads.iter_mut().zip(places);
            both.zip(to).map(|(pair, (load, place))| (*load, *place) = (share(pair.0) + share(pair.1), pair)).count()
        };
        let (mut own, mut own_places) = ([0.0; PAIRS], [(0, 0); PAIRS]);
        let (mut theirs, mut their_places) = (own, own_places);
        let count = pairs(a, &mut own, &mut own_places);
        let mut best = None;
        let load_a = state.load[a];
        let mut lowest = load_a - self.noise();
        for b in (0..self.devices).filter(|&b| b != a) {
            let load_b = state.load[b];
            if !promises(load_a, load_b, lowest) {
                continue;
            }
            pairs(b, &mut theirs, &mut their_places);
            for (&px, &(i, j)) in own[..count].iter().zip(&own_places) {
                if !any_below(load_a, load_b, px, &theirs[..count], lowest) {
                    continue;
                }
                for (&py, &(k, l)) in theirs[..count].iter().zip(&their_places) {
                    let delta = px - py;
                    let high = (load_a - delta).max(load_b + delta);
                    if high < lowest && self.may_exchange(state, i, k) && self.may_exchange(state, j, l) {
                        (lowest, best) = (high, Some([(i, k), (j, l)]));
                    }
                }
            }
        }
        *work = work.saturating_sub((self.devices * count * count) as u64);
        best
    }

    fn exchange(&self, state: &mut State, i: usize, j: usize) {
        let (a, b) = (i / self.slots, j / self.slots);
        let (x, y) = (state.expert[i] as usize, state.expert[j] as usize);
        state.has[x * self.devices + a] -= 1;
        state.has[x * self.devices + b] += 1;
        state.has[y * self.devices + b] -= 1;
        state.has[y * self.devices + a] += 1;
        state.expert.swap(i, j);
        self.reload(state, a);
        self.reload(state, b);
    }

    /// The best replica to hand from one expert to another: a slot of the fullest device to anyone, or any slot to an
    /// expert of the fullest device. It must lower the largest load, or leave it and lower the sum of squares.
    #[inline(always)]
    fn best_change(&self, state: &State, work: &mut u64) -> Option<Change> {
        let (a, slots) = (state.fullest(), self.slots);
        let noise = self.noise();
        let (max, squares) = (state.load[a], state.sum_squares());
        let mut best = None;
        let mut lowest = (max, squares);
        // Only what has another replica can lose one.
        let spare = |slot: &usize| state.count[state.expert[*slot] as usize] > 1;
        let own = a * slots..(a + 1) * slots;
        for slot in own.clone().chain(0..own.start).chain(own.end..state.expert.len()).filter(spare) {
            let candidates = if own.contains(&slot) { self.experts() } else { slots };
            for candidate in 0..candidates {
                let to = if own.contains(&slot) { candidate } else { state.expert[own.start + candidate] as usize };
                if !self.may_change(state, slot, to) {
                    continue;
                }
                let Some((high, sum)) = self.after_change(state, slot, to, a, lowest.0) else { continue };
                let lower = high < max - noise || (high <= max && sum < squares * (1.0 - 1e-12));
                if lower && (high < lowest.0 || (high == lowest.0 && sum < lowest.1)) {
                    lowest = (high, sum);
                    best = Some(Change { slot, to });
                }
            }
        }
        let looked_at = slots * self.experts() + state.expert.len() * slots;
        *work = work.saturating_sub((looked_at * self.devices) as u64 / 8);
        best
    }

    #[inline(always)]
    fn may_change(&self, state: &State, slot: usize, x: usize) -> bool {
        let y = state.expert[slot] as usize;
        let device = slot / self.slots;
        x != y && state.count[y] > 1 && state.count[x] < self.most() && state.has[x * self.devices + device] < self.cap
    }

    /// Largest load and sum of squares after a change; `None` when a load, that of device `first` looked at first, were above `limit`.
    #[inline(always)]
    fn after_change(&self, state: &State, slot: usize, x: usize, first: usize, limit: f64) -> Option<(f64, f64)> {
        let (y, device) = (state.expert[slot] as usize, slot / self.slots);
        let (px, py) = (state.share[x].more, state.share[y].less);
        let (dx, dy) = (px - self.share(state, x), py - self.share(state, y));
        let has = |expert: usize| &state.has[expert * self.devices..][..self.devices];
        let (has_x, has_y) = (has(x), has(y));
        let on_others = |load: f64, x: u16, y: u16| load + dx * f64::from(x) + dy * f64::from(y);
        let after = |d: usize| on_others(state.load[d], has_x[d], has_y[d]) + if d == device { px - py } else { 0.0 };
        if after(first) > limit || after(device) > limit {
            return None;
        }
        // Without a branch: several at a time. What the device of the slot has been found to have is not above.
        let loads = || state.load.iter().zip(has_x).zip(has_y).map(|((&load, &x), &y)| on_others(load, x, y));
        let above = loads().enumerate().fold(false, |above, (d, load)| above | ((load > limit) & (d != device)));
        if above {
            return None;
        }
        let (mut max, mut squares) = (0.0f64, 0.0f64);
        for d in 0..self.devices {
            let load = after(d);
            max = if load > max { load } else { max };
            squares += load * load;
        }
        Some((max, squares))
    }

    fn change(&self, state: &mut State, change: &Change) {
        let (x, y, device) = (change.to, state.expert[change.slot] as usize, change.slot / self.slots);
        state.count[x] += 1;
        state.count[y] -= 1;
        state.has[x * self.devices + device] += 1;
        state.has[y * self.devices + device] -= 1;
        state.expert[change.slot] = x as u32;
        self.recount(state, x);
        self.recount(state, y);
        for d in 0..self.devices {
            if state.has[x * self.devices + d] > 0 || state.has[y * self.devices + d] > 0 {
                self.reload(state, d);
            }
        }
    }

    /// A few arbitrary permitted steps, half of them at the fullest device.
    fn shake(&self, state: &mut State, mixer: &mut Mixer) {
        for _ in 0..2 + mixer.below(3) {
            let slots = state.expert.len();
            let i = if mixer.below(2) == 0 { state.fullest() * self.slots + mixer.below(self.slots) } else { mixer.below(slots) };
            if mixer.below(4) == 0 {
                let to = mixer.below(self.experts());
                if self.may_change(state, i, to) {
                    self.change(state, &Change { slot: i, to });
                }
            } else {
                let j = mixer.below(slots);
                if self.may_exchange(state, i, j) {
                    self.exchange(state, i, j);
                }
            }
        }
    }
}

/// [`Pool::descend`]: its loops over loads are compiled for wide vectors where the processor has them.
struct Descent<'a, 'b> {
    pool: &'a Pool<'b>,
    state: &'a mut State,
    target: f64,
    hopeless: f64,
    work: &'a mut u64,
}

impl Kernel for Descent<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Descent { pool, state, target, hopeless, work } = self;
        while *work > 0 && state.max() > target {
            if let Some((i, j)) = pool.best_exchange(state, work) {
                pool.exchange(state, i, j);
            } else if let Some([(i, j), (k, l)]) = pool.best_double_exchange(state, work) {
                pool.exchange(state, i, j);
                pool.exchange(state, k, l);
            } else if state.max() > hopeless {
                break;
            } else if let Some(change) = pool.best_change(state, work) {
                pool.change(state, &change);
            } else {
                break;
            }
        }
    }
}

/// Whether moving `px` from a device of load `a` to one of load `b`, for one of `others`, leaves both below `lowest`: most have none, which is
/// found without a branch for each.
#[inline(always)]
fn any_below(a: f64, b: f64, px: f64, others: &[f64], lowest: f64) -> bool {
    others.iter().fold(false, |any, py| {
        let delta = px - py;
        any | ((a - delta < lowest) & (b + delta < lowest))
    })
}

/// Whether an exchange between devices of these loads may leave both below `lowest`: their mean is not above, but for rounding.
fn promises(a: f64, b: f64, lowest: f64) -> bool {
    0.5 * (a + b) <= lowest * (1.0 + 1e-12)
}

/// A finite load, ordered.
#[derive(PartialEq)]
struct Order(f64);

impl Eq for Order {}

impl PartialOrd for Order {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Order {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}
