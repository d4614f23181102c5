//! Where the experts live: which are replicated, and which device holds which replica.
//!
//! Input: the load of every logical expert per layer, how many physical slots there are, and how they are spread over
//! nodes and devices (the first `num_replicas / num_devices` slots are device 0's, and so on; the first devices are node
//! 0's). Output: the logical expert of every slot. Each replica of an expert takes an equal share of its load.
//!
//! When the expert groups divide evenly among the nodes the placement is *hierarchical*: every group belongs to one node,
//! which holds all replicas of all its experts (so that group-limited routing keeps its bound on the nodes a token visits);
//! otherwise all devices form one pool. Within a pool:
//!
//! - no expert is twice on a device, unless a device has more slots than its pool has experts; then each expert is on it at
//!   most `ceil(slots / experts)` times;
//! - replicas are handed out to the expert with the largest load per replica, packed largest first, and then improved by a
//!   local search on the most loaded device: exchanges with other devices, of one expert or of two, and moving a replica from one expert to
//!   another, with small deterministic shake-ups of the best answer between descents. It stops when the mean over the largest load reaches 0.9995, at
//!   a lower bound, or after [`PlacementInput::effort`] shake-ups;
//! - with a previous placement, the search also starts from that one and stops as soon as the result is within
//!   [`PlacementInput::tolerance`] of what a fresh search reaches, so that few experts move; experts that stay on a device
//!   keep their slot. A fresh answer, when it is needed, is matched to the previous devices to move little.
//!
//! The answer depends on the input alone: no clock, no randomness, any number of threads.

use std::cmp::Reverse;

use v3_numerics::par;

use crate::error::{Error, Result};
use crate::router::{check_len, shape};

mod assign;
mod search;

use search::Pool;

/// What [`place`] needs to know. Build it with [`PlacementInput::new`] and change what differs.
#[derive(Clone, Copy, Debug)]
pub struct PlacementInput<'a> {
    /// Load of each logical expert, `[layers, experts]`: finite, not negative.
    pub weight: &'a [f64],
    /// Logical experts of a layer.
    pub num_experts: usize,
    /// Physical slots of a layer, at least one for every expert; a multiple of `num_devices`.
    pub num_replicas: usize,
    /// Expert groups; divides `num_experts`.
    pub num_groups: usize,
    /// Nodes; divides `num_devices`.
    pub num_nodes: usize,
    /// Devices.
    pub num_devices: usize,
    /// The `phy2log` in force, `[layers, replicas]`.
    pub previous: Option<&'a [u32]>,
    /// With a previous placement: the share of balancedness that may be given up to move fewer experts (0.005).
    pub tolerance: f64,
    /// Shake-ups of the local search per pool (100).
    pub effort: usize,
}

impl<'a> PlacementInput<'a> {
    /// An input without a previous placement.
    pub fn new(weight: &'a [f64], num_experts: usize, num_replicas: usize, num_devices: usize) -> Self {
        Self {
            weight,
            num_experts,
            num_replicas,
            num_groups: 1,
            num_nodes: 1,
            num_devices,
            previous: None,
            tolerance: 0.005,
            effort: 100,
        }
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.weight.len().checked_div(self.num_experts).unwrap_or(0)
    }

    /// Whether every group gets a node of its own: `num_nodes` divides `num_groups`.
    pub fn is_hierarchical(&self) -> bool {
        self.num_nodes > 0 && self.num_groups.is_multiple_of(self.num_nodes)
    }

    /// Refuses sizes that do not divide each other and loads that are no loads.
    pub fn validate(&self) -> Result<()> {
        let bad = |what, reason: String| Err(Error::Config { what, reason });
        if self.num_experts == 0 || self.num_experts > u32::MAX as usize {
            return bad("num_experts", format!("expected between 1 and 2^32 - 1, got {}", self.num_experts));
        }
        check_len("weight", self.weight.len(), self.layers(), self.num_experts)?;
        for (what, divisor, of, n) in [
            ("num_devices", self.num_devices, "replicas", self.num_replicas),
            ("num_nodes", self.num_nodes, "devices", self.num_devices),
            ("num_groups", self.num_groups, "experts", self.num_experts),
        ] {
            if divisor == 0 || !n.is_multiple_of(divisor) {
                return bad(what, format!("expected a divisor of the {n} {of}, got {divisor}"));
            }
        }
        if self.num_replicas < self.num_experts || self.num_replicas >= 1 << 16 {
            let reason = format!("expected between the {} experts and 65535, got {}", self.num_experts, self.num_replicas);
            return bad("num_replicas", reason);
        }
        if self.num_replicas * self.num_devices > 1 << 26 {
            let reason = format!("at most 2^26 pairs of a replica and a device, got {}", self.num_replicas * self.num_devices);
            return bad("num_devices", reason);
        }
        // Sums of this many loads stay finite.
        if let Some(i) = self.weight.iter().position(|w| !(0.0..=1e200).contains(w)) {
            let (layer, expert) = (i / self.num_experts, i % self.num_experts);
            let got = format!("{} for expert {expert} of layer {layer}", self.weight[i]);
            return Err(shape("weight", "loads between 0 and 1e200", got));
        }
        if !(0.0..1.0).contains(&self.tolerance) {
            return bad("tolerance", format!("expected at least 0 and below 1, got {}", self.tolerance));
        }
        if let Some(previous) = self.previous {
            check_len("previous", previous.len(), self.layers(), self.num_replicas)?;
            if let Some(e) = previous.iter().find(|&&e| e as usize >= self.num_experts) {
                return Err(shape("previous", format!("experts below {}", self.num_experts), e));
            }
        }
        Ok(())
    }
}

/// Where everything is.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// Layers.
    pub layers: usize,
    /// Logical experts of a layer.
    pub num_experts: usize,
    /// Physical slots of a layer.
    pub num_replicas: usize,
    /// Devices.
    pub num_devices: usize,
    /// The logical expert of each slot, `[layers, replicas]`.
    pub phy2log: Vec<u32>,
    /// The number of replicas of each expert, `[layers, experts]`.
    pub logcnt: Vec<u32>,
    /// Load of each device, `[layers, devices]`.
    pub device_load: Vec<f64>,
    /// Mean over largest device load, `[layers]`: 1 is perfect, and the value without any load.
    pub balancedness: Vec<f64>,
    /// With a previous placement: expert copies that a device holds now and did not before, `[layers]`.
    pub moves: Option<Vec<usize>>,
}

impl Placement {
    /// The slots of one layer.
    pub fn layer(&self, layer: usize) -> &[u32] {
        &self.phy2log[layer * self.num_replicas..][..self.num_replicas]
    }

    /// The slots of every expert of one layer, ascending.
    pub fn log2phy(&self, layer: usize) -> Vec<Vec<u32>> {
        let mut slots = vec![Vec::new(); self.num_experts];
        for (slot, &e) in self.layer(layer).iter().enumerate() {
            slots[e as usize].push(slot as u32);
        }
        slots
    }

    /// Loads, balancedness and moves of given slots (a placement made elsewhere), `[layers, replicas]`.
    pub fn evaluate(input: &PlacementInput<'_>, phy2log: Vec<u32>) -> Result<Self> {
        input.validate()?;
        let (layers, e, r, d) = (input.layers(), input.num_experts, input.num_replicas, input.num_devices);
        check_len("phy2log", phy2log.len(), layers, r)?;
        let mut logcnt = vec![0u32; layers * e];
        for (i, &x) in phy2log.iter().enumerate() {
            if x as usize >= e {
                return Err(shape("phy2log", format!("experts below {e}"), x));
            }
            logcnt[i / r * e + x as usize] += 1;
        }
        if let Some(i) = logcnt.iter().position(|&c| c == 0) {
            let got = format!("none of expert {} of layer {}", i % e, i / e);
            return Err(shape("phy2log", "a slot for every expert", got));
        }
        let mut device_load = vec![0.0f64; layers * d];
        for (i, &x) in phy2log.iter().enumerate() {
            let at = i / r * e + x as usize;
            device_load[i / (r / d)] += input.weight[at] / f64::from(logcnt[at]);
        }
        let balancedness = (0..layers)
            .map(|l| {
                let max = device_load[l * d..][..d].iter().fold(0.0f64, |m, &x| m.max(x));
                // From the loads themselves: a placement cannot be more balanced than balanced.
                let mean = input.weight[l * e..][..e].iter().sum::<f64>() / d as f64;
                if max == 0.0 { 1.0 } else { (mean / max).min(1.0) }
            })
            .collect();
        let moves = input
            .previous
            .map(|previous| (0..layers).map(|l| count_moves(&previous[l * r..][..r], &phy2log[l * r..][..r], r / d)).collect());
        Ok(Self { layers, num_experts: e, num_replicas: r, num_devices: d, phy2log, logcnt, device_load, balancedness, moves })
    }
}

/// Copies of experts that a device of `slots` slots holds in `after` and did not in `before`.
fn count_moves(before: &[u32], after: &[u32], slots: usize) -> usize {
    let (mut b, mut a) = (vec![0; slots], vec![0; slots]);
    let mut moves = 0;
    for (before, after) in before.chunks(slots).zip(after.chunks(slots)) {
        b.copy_from_slice(before);
        a.copy_from_slice(after);
        b.sort_unstable();
        a.sort_unstable();
        moves += slots - overlap(&b, &a);
    }
    moves
}

/// Size of the intersection of two multisets, both ascending.
fn overlap(a: &[u32], b: &[u32]) -> usize {
    let (mut i, mut j, mut n) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                (i, j, n) = (i + 1, j + 1, n + 1);
            }
        }
    }
    n
}

/// Chooses replicas and slots for every layer.
///
/// ```
/// use moe_dispatch::placement::{PlacementInput, place};
/// // Four experts, the first as busy as the other three together, on two devices of three slots.
/// let input = PlacementInput::new(&[6.0, 2.0, 2.0, 2.0], 4, 6, 2);
/// let placement = place(&input)?;
/// assert_eq!(placement.balancedness, [1.0]);
/// assert_eq!(placement.logcnt[0], 2); // the busy one is on both
/// # Ok::<(), moe_dispatch::Error>(())
/// ```
pub fn place(input: &PlacementInput<'_>) -> Result<Placement> {
    input.validate()?;
    let (e, r) = (input.num_experts, input.num_replicas);
    let layers = par::map(input.layers(), |l| {
        let previous = input.previous.map(|p| &p[l * r..][..r]);
        place_layer(input, &input.weight[l * e..][..e], previous)
    });
    Placement::evaluate(input, layers.concat())
}

/// Pairs of groups that an exchange search looks at before it is content.
const EXCHANGE_WORK: usize = 1 << 28;

/// The pools of one layer: one per node, or one in all.
struct Layer<'a> {
    weight: &'a [f64],
    /// Groups of neighbouring experts that stay together.
    groups: usize,
    nodes: usize,
    /// Devices of a node.
    devices: usize,
    /// Slots of a device.
    slots: usize,
    effort: usize,
}

fn place_layer(input: &PlacementInput<'_>, weight: &[f64], previous: Option<&[u32]>) -> Vec<u32> {
    let (groups, nodes) = if input.is_hierarchical() { (input.num_groups, input.num_nodes) } else { (1, 1) };
    let layer = Layer {
        weight,
        groups,
        nodes,
        devices: input.num_devices / nodes,
        slots: input.num_replicas / input.num_devices,
        effort: input.effort,
    };
    let (mut fresh, max) = layer.fresh();
    let Some(previous) = previous else {
        fresh.chunks_mut(layer.slots).for_each(|device| device.sort_unstable());
        return fresh;
    };
    let target = max / (1.0 - input.tolerance);
    let fresh = layer.align(&fresh, previous);
    let adapted = layer.adapt(previous, target);
    let answer = match adapted {
        Some(a) if count_moves(previous, &a, layer.slots) <= count_moves(previous, &fresh, layer.slots) => a,
        _ => fresh,
    };
    keep_slots(&answer, previous, layer.slots)
}

impl Layer<'_> {
    fn group_size(&self) -> usize {
        self.weight.len() / self.groups
    }

    /// Experts of a node, ascending.
    fn experts_of(&self, node_of: &[usize], node: usize) -> Vec<u32> {
        let size = self.group_size();
        let groups = (0..self.groups).filter(|&g| node_of[g] == node);
        groups.flat_map(|g| (g * size) as u32..((g + 1) * size) as u32).collect()
    }

    fn group_loads(&self) -> Vec<f64> {
        self.weight.chunks(self.group_size()).map(|g| g.iter().sum()).collect()
    }

    fn node_loads(&self, node_of: &[usize]) -> Vec<f64> {
        let mut loads = vec![0.0; self.nodes];
        self.group_loads().iter().zip(node_of).for_each(|(load, &n)| loads[n] += load);
        loads
    }

    /// The load that a device has at least, on average, on the fullest node.
    fn bound(&self, node_of: &[usize]) -> f64 {
        self.node_loads(node_of).iter().fold(0.0f64, |m, &x| m.max(x)) / self.devices as f64
    }

    /// The slots of one node, searched from the slots of `start` (as far as its experts belong here) or from nothing.
    fn solve(&self, node_of: &[usize], node: usize, start: Option<&[u32]>, target: f64, effort: usize) -> (Vec<u32>, f64) {
        let experts = self.experts_of(node_of, node);
        let weight: Vec<f64> = experts.iter().map(|&e| self.weight[e as usize]).collect();
        let pool = Pool::new(&weight, self.devices, self.slots);
        let run = self.devices * self.slots;
        let slots = match start {
            None => vec![search::EMPTY; run],
            Some(all) => {
                let local = |e| experts.binary_search(e).map_or(search::EMPTY, |i| i as u32);
                all[node * run..][..run].iter().map(local).collect()
            }
        };
        let state = pool.improve(pool.fill(slots), target, effort);
        (state.expert.iter().map(|&i| experts[i as usize]).collect(), state.max())
    }

    /// A placement from nothing, and its largest load.
    fn fresh(&self) -> (Vec<u32>, f64) {
        let mut node_of = self.pack_groups();
        let plain = self.plain(self.bound(&node_of) / 0.9995);
        let good = |node_of: &[usize]| (self.bound(node_of) / 0.9995).min(plain);
        let mut target = good(&node_of);
        let mut nodes: Vec<(Vec<u32>, f64)> =
            (0..self.nodes).map(|n| self.solve(&node_of, n, None, target, self.effort)).collect();
        // The lowest target that each node has been searched for with all the effort.
        let mut searched = vec![target; self.nodes];
        let fullest =
            |nodes: &[(Vec<u32>, f64)]| (1..nodes.len()).fold(0, |best, n| if nodes[n].1 > nodes[best].1 { n } else { best });
        // A node may be hard to balance inside although its total is fair: try other company for its groups.
        let mut tries = self.effort;
        // Nodes of one group each only change their names.
        'again: while tries > 0 && self.nodes > 1 && self.groups > self.nodes {
            let worst = fullest(&nodes);
            let max = nodes[worst].1;
            if max <= target {
                break;
            }
            let (loads, total) = (self.group_loads(), self.node_loads(&node_of));
            let mut swaps: Vec<(f64, usize, usize)> = Vec::new();
            for a in (0..self.groups).filter(|&g| node_of[g] == worst) {
                for b in (0..self.groups).filter(|&g| node_of[g] != worst) {
                    let delta = loads[a] - loads[b];
                    let high = (total[worst] - delta).max(total[node_of[b]] + delta);
                    if high / (self.devices as f64) < max {
                        swaps.push((high, a, b));
                    }
                }
                // Keep the promising ones only: there may be very many pairs.
                swaps.sort_by(|x, y| x.0.total_cmp(&y.0).then((x.1, x.2).cmp(&(y.1, y.2))));
                swaps.truncate(tries);
            }
            for (_, a, b) in swaps {
                if tries == 0 {
                    break;
                }
                tries -= 1;
                let mut swapped = node_of.clone();
                swapped.swap(a, b);
                let other = node_of[b];
                let target = good(&swapped);
                let first = self.solve(&swapped, worst, None, target, self.effort / 4);
                if first.1 >= max * (1.0 - 1e-9) {
                    continue;
                }
                let second = self.solve(&swapped, other, None, target, self.effort / 4);
                if second.1 >= max * (1.0 - 1e-9) {
                    continue;
                }
                nodes[worst] = first;
                nodes[other] = second;
                (searched[worst], searched[other]) = (f64::INFINITY, f64::INFINITY);
                node_of = swapped;
                continue 'again;
            }
            break;
        }
        // What the last exchange searched with less effort gets the rest, the fullest node first.
        target = good(&node_of);
        for _ in 0..self.nodes {
            let worst = fullest(&nodes);
            // The same search would end the same.
            if nodes[worst].1 <= target || searched[worst] <= target {
                break;
            }
            searched[worst] = target;
            let again = self.solve(&node_of, worst, None, target, self.effort);
            if again.1 >= nodes[worst].1 {
                break;
            }
            nodes[worst] = again;
        }
        let max = nodes[fullest(&nodes)].1;
        (nodes.into_iter().flat_map(|(slots, _)| slots).collect(), max)
    }

    /// The largest load of the plain method: groups and replicas packed largest first, with experts twice on a device where it
    /// comes so, and nothing improved. The search does not stop above it. Nodes are looked at until one is above `enough`.
    fn plain(&self, enough: f64) -> f64 {
        let node_of = self.pack_largest_first();
        let total = self.node_loads(&node_of);
        let mut order: Vec<usize> = (0..self.nodes).collect();
        order.sort_by(|&a, &b| total[b].total_cmp(&total[a]).then(a.cmp(&b)));
        let mut max = 0.0f64;
        for node in order {
            let weight: Vec<f64> = self.experts_of(&node_of, node).iter().map(|&e| self.weight[e as usize]).collect();
            let pool = Pool { cap: u16::MAX, ..Pool::new(&weight, self.devices, self.slots) };
            max = max.max(pool.fill(vec![search::EMPTY; self.devices * self.slots]).max());
            if max > enough {
                break;
            }
        }
        max
    }

    /// The node of every group, equally many on each: packed, then improved by exchanges between the fullest node and others.
    fn pack_groups(&self) -> Vec<usize> {
        let mut node_of = self.pack_largest_first();
        self.exchange_groups(&mut node_of, 0.0);
        node_of
    }

    /// The node of every group, equally many on each: largest first onto the least loaded node with room.
    fn pack_largest_first(&self) -> Vec<usize> {
        let loads = self.group_loads();
        let mut order: Vec<usize> = (0..self.groups).collect();
        order.sort_by(|&a, &b| loads[b].total_cmp(&loads[a]).then(a.cmp(&b)));
        let mut node_of = vec![0; self.groups];
        let mut total = vec![0.0; self.nodes];
        let mut room = vec![self.groups / self.nodes; self.nodes];
        for g in order {
            let open = (0..self.nodes).filter(|&n| room[n] > 0);
            if let Some(n) = open.min_by(|&a, &b| f64::total_cmp(&total[a], &total[b])) {
                node_of[g] = n;
                total[n] += loads[g];
                room[n] -= 1;
            }
        }
        node_of
    }

    /// Exchanges groups between the fullest node and others while that lowers the larger of the two loads and the fullest
    /// node's is above `target`.
    fn exchange_groups(&self, node_of: &mut [usize], target: f64) {
        let loads = self.group_loads();
        let noise = 1e-12 * loads.iter().sum::<f64>();
        let pairs = self.groups * (self.groups / self.nodes);
        for _ in 0..EXCHANGE_WORK.div_ceil(pairs) {
            let total = self.node_loads(node_of);
            let fullest = (1..self.nodes).fold(0, |best, n| if total[n] > total[best] { n } else { best });
            let mut lowest = total[fullest] - noise;
            let mut best = None;
            if total[fullest] <= target {
                return;
            }
            for a in (0..self.groups).filter(|&g| node_of[g] == fullest) {
                for b in (0..self.groups).filter(|&g| node_of[g] != fullest) {
                    let delta = loads[a] - loads[b];
                    let high = (total[fullest] - delta).max(total[node_of[b]] + delta);
                    if high < lowest {
                        (lowest, best) = (high, Some((a, b)));
                    }
                }
            }
            let Some((a, b)) = best else { return };
            node_of.swap(a, b);
        }
    }

    /// A placement near the previous one with no load above `target`, if the search finds one.
    fn adapt(&self, previous: &[u32], target: f64) -> Option<Vec<u32>> {
        let mut node_of = self.previous_nodes(previous);
        for _ in 0..2 {
            let nodes: Vec<_> = (0..self.nodes).map(|n| self.solve(&node_of, n, Some(previous), target, self.effort)).collect();
            if nodes.iter().all(|(_, max)| *max <= target) {
                return Some(nodes.into_iter().flat_map(|(slots, _)| slots).collect());
            }
            let before = node_of.clone();
            self.exchange_groups(&mut node_of, target * self.devices as f64);
            if node_of == before {
                break;
            }
        }
        None
    }

    /// The node that held most slots of each group, equally many groups on each.
    fn previous_nodes(&self, previous: &[u32]) -> Vec<usize> {
        let run = self.devices * self.slots;
        let mut held = vec![0usize; self.groups * self.nodes];
        for (i, &e) in previous.iter().enumerate() {
            held[e as usize / self.group_size() * self.nodes + i / run] += 1;
        }
        let mut pairs: Vec<usize> = (0..held.len()).collect();
        pairs.sort_by_key(|&i| (Reverse(held[i]), i));
        let mut node_of = vec![usize::MAX; self.groups];
        let mut room = vec![self.groups / self.nodes; self.nodes];
        for i in pairs {
            let (g, n) = (i / self.nodes, i % self.nodes);
            if node_of[g] == usize::MAX && room[n] > 0 {
                node_of[g] = n;
                room[n] -= 1;
            }
        }
        node_of
    }

    /// The same sets of experts on the nodes and devices that held most of them.
    fn align(&self, slots: &[u32], previous: &[u32]) -> Vec<u32> {
        let run = self.devices * self.slots;
        let sorted = |slots: &[u32], len: usize| -> Vec<Vec<u32>> {
            slots
                .chunks(len)
                .map(|c| {
                    let mut c = c.to_vec();
                    c.sort_unstable();
                    c
                })
                .collect()
        };
        let (new_nodes, old_nodes) = (sorted(slots, run), sorted(previous, run));
        let node_to = assign::best_matching(self.nodes, |a, b| overlap(&new_nodes[a], &old_nodes[b]));
        let mut out = vec![0; slots.len()];
        for (from, &to) in node_to.iter().enumerate() {
            let new = sorted(&slots[from * run..][..run], self.slots);
            let old = sorted(&previous[to * run..][..run], self.slots);
            let device_to = assign::best_matching(self.devices, |a, b| overlap(&new[a], &old[b]));
            for (a, &b) in device_to.iter().enumerate() {
                out[to * run + b * self.slots..][..self.slots].copy_from_slice(&new[a]);
            }
        }
        out
    }
}

/// Reorders each device's experts so that those it held before keep their slot; the others follow in ascending order.
fn keep_slots(slots: &[u32], previous: &[u32], per_device: usize) -> Vec<u32> {
    let mut out = vec![search::EMPTY; slots.len()];
    for ((new, old), out) in slots.chunks(per_device).zip(previous.chunks(per_device)).zip(out.chunks_mut(per_device)) {
        let mut left = new.to_vec();
        left.sort_unstable();
        for (o, e) in out.iter_mut().zip(old) {
            if let Ok(i) = left.binary_search(e) {
                *o = left.remove(i);
            }
        }
        let mut rest = left.into_iter();
        for o in out.iter_mut().filter(|o| **o == search::EMPTY) {
            *o = rest.next().unwrap_or(search::EMPTY); // as many left as empty
        }
    }
    out
}
