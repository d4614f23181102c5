//! In which order the components of two chunks run on the computing lane, and when their communication leaves.

use crate::error::{Error, Result};
use crate::overlap::component::{Component, ComponentKind, Half, Pairing};

/// One entry of an [`Arrangement`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// A component computes.
    Compute(Half, usize),
    /// A component's communication leaves.
    Start(Half, usize),
    /// A component's communication is waited for.
    Finish(Half, usize),
    /// A place for one component for weights of another chunk that were put off, if there is one: it fills a wait.
    Fill,
}

/// One order of the components of a forward and of a backward: what the computing lane does, one after the other. A
/// communication is under way, on the communicating lane, from its start to its finish.
///
/// The components for weights of the backward may stand anywhere after what they come after, or be left out: then they are put
/// off to the next step, where each [`Op::Fill`] takes one, and the rest follows when it ends. Where the step is a backward for
/// inputs only, all of them wait for their own step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Arrangement {
    ops: Vec<Op>,
}

impl Arrangement {
    /// An arrangement of your own, checked against the components it is for.
    ///
    /// # Errors
    /// Components that are not there, twice, missing (weights apart), or before what they come after; a communication finished
    /// before it is started.
    pub fn new(pairing: &Pairing, ops: Vec<Op>) -> Result<Arrangement> {
        let arrangement = Arrangement { ops };
        arrangement.check(pairing)?;
        Ok(arrangement)
    }

    /// The entries, in order.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Nothing overlaps: the forward's components one after another, each communication waited for at once, then the
    /// backward's.
    pub fn sequential(pairing: &Pairing) -> Arrangement {
        let mut ops = Vec::new();
        for half in [Half::Forward, Half::Backward] {
            for (index, component) in pairing.half(half).iter().enumerate() {
                match component.kind.communicates() {
                    true => ops.extend([Op::Start(half, index), Op::Finish(half, index)]),
                    false => ops.push(Op::Compute(half, index)),
                }
            }
        }
        Arrangement { ops }
    }

    /// The order of Figure 4 of the DeepSeek-V3 report. Layer by layer, the forward's first with the backward's last: on the
    /// computing lane MLP(B) MLP(W) MLP(F) ATTN(B) ATTN(W) ATTN(F), where ATTN(F) is that of the next layer; on the
    /// communicating lane dispatch(F) dispatch(B) combine(F) combine(B). Where one half has more layers than the other, the
    /// rest follows. A chunk alone takes the order of its half, with a [`Op::Fill`] before each wait.
    pub fn default(pairing: &Pairing) -> Arrangement {
        let ordinals = [Half::Forward, Half::Backward].map(|half| layer_ordinals(pairing.half(half)));
        let place = |op: &Op| -> (i64, i64) {
            let (half, index) = match *op {
                Op::Compute(half, index) | Op::Start(half, index) | Op::Finish(half, index) => (half, index),
                Op::Fill => return (i64::MAX, 0),
            };
            let list = pairing.half(half);
            let (Some(component), Some(&layer)) = (list.get(index), ordinals[half as usize].get(index)) else {
                return (i64::MAX, 0);
            };
            let finish = matches!(op, Op::Finish(..));
            match (component.kind, finish) {
                (ComponentKind::Enter, _) => (-1, if half == Half::Backward { 0 } else { 1 }),
                (ComponentKind::Attention, _) => (layer - 1, 12),
                (ComponentKind::Dispatch, false) => (layer, 0),
                (ComponentKind::CombineBackward, false) => (layer - 1, 9),
                (ComponentKind::CombineBackward, true) => (layer, 1),
                (ComponentKind::MlpInput, _) => (layer, 2),
                (ComponentKind::DispatchBackward, false) => (layer, 3),
                (ComponentKind::MlpWeight, _) => (layer, 4),
                (ComponentKind::Dispatch, true) => (layer, 5),
                (ComponentKind::Mlp, _) => (layer, 6),
                (ComponentKind::Combine, false) => (layer, 7),
                (ComponentKind::DispatchBackward, true) => (layer, 7),
                (ComponentKind::AttentionInput, _) => (layer, 8),
                (ComponentKind::AttentionWeight, _) => (layer, 10),
                (ComponentKind::Combine, true) => (layer, 11),
                (ComponentKind::Leave, _) => (layer, if half == Half::Backward { 9 } else { 12 }),
            }
        };
        let mut arrangement = Arrangement { ops: arrange(pairing, |ready| smallest(ready, &place)) };
        if pairing.half(Half::Forward).is_empty() || pairing.half(Half::Backward).is_empty() {
            arrangement = arrangement.with_fills(|_| 1);
        }
        arrangement
    }

    /// A legal order that chance chose, the same for the same seed, with some weights put off and fills between.
    pub fn random(pairing: &Pairing, seed: u64) -> Arrangement {
        let mut random = Random::new(seed);
        let mut ops = arrange(pairing, |ready| random.below(ready.len()));
        let is_weight = |op: &Op| match *op {
            Op::Compute(half, index) => pairing.half(half)[index].kind.is_weight(),
            _ => false,
        };
        // Weights from some place on are put off: nothing comes after those but weights.
        let keep = random.below(2 * ops.len() + 1);
        let mut index = 0;
        ops.retain(|op| {
            index += 1;
            index <= keep || !is_weight(op)
        });
        let ops = ops.into_iter().flat_map(|op| std::iter::repeat_n(Op::Fill, random.below(3) / 2).chain([op])).collect();
        Arrangement { ops }
    }

    /// This arrangement with so many [`Op::Fill`] before the finish of each communication, in place of those it has.
    pub(crate) fn with_fills(self, count: impl Fn(Op) -> usize) -> Arrangement {
        let mut ops = Vec::with_capacity(self.ops.len());
        for op in self.ops.into_iter().filter(|&op| op != Op::Fill) {
            if let Op::Finish(..) = op {
                ops.extend(std::iter::repeat_n(Op::Fill, count(op)));
            }
            ops.push(op);
        }
        Arrangement { ops }
    }

    /// Checks that this is an order of these components.
    ///
    /// # Errors
    /// As [`Arrangement::new`].
    pub fn check(&self, pairing: &Pairing) -> Result<()> {
        let mut progress = Progress::new(pairing);
        for (index, &op) in self.ops.iter().enumerate() {
            progress.advance(op).map_err(|(expected, got)| Error::Shape {
                what: format!("arrangement: entry {index}"),
                expected,
                got,
            })?;
        }
        match progress.missing() {
            None => Ok(()),
            Some(missing) => Err(Error::Shape {
                what: "arrangement".into(),
                expected: "all components of both halves, weights apart".into(),
                got: format!("none for {missing}"),
            }),
        }
    }
}

/// For each component the place of its layer among those of its list, in order of appearance.
fn layer_ordinals(list: &[Component]) -> Vec<i64> {
    let mut layers: Vec<usize> = Vec::new();
    let at = |component: &Component, layers: &mut Vec<usize>| match component.kind {
        ComponentKind::Enter => 0,
        ComponentKind::Leave => layers.len().saturating_sub(1),
        _ => layers.iter().rposition(|&layer| layer == component.layer).unwrap_or_else(|| {
            layers.push(component.layer);
            layers.len() - 1
        }),
    };
    list.iter().map(|component| at(component, &mut layers) as i64).collect()
}

fn smallest(ready: &[Op], place: &impl Fn(&Op) -> (i64, i64)) -> usize {
    (0..ready.len()).min_by_key(|&index| (place(&ready[index]), index)).unwrap_or(0)
}

/// Lets `choose` take one of the entries that can come next, until all are there.
pub(crate) fn arrange(pairing: &Pairing, mut choose: impl FnMut(&[Op]) -> usize) -> Vec<Op> {
    let mut progress = Progress::new(pairing);
    let mut ops = Vec::new();
    loop {
        let ready = progress.ready();
        if ready.is_empty() {
            return ops;
        }
        let op = ready[choose(&ready).min(ready.len() - 1)];
        // Ready by construction.
        if progress.advance(op).is_err() {
            return ops;
        }
        ops.push(op);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    UnderWay,
    Done,
}

/// How far two chunks are.
pub(crate) struct Progress<'a> {
    pairing: &'a Pairing,
    states: [Vec<State>; 2],
}

impl<'a> Progress<'a> {
    pub(crate) fn new(pairing: &'a Pairing) -> Progress<'a> {
        let states = [Half::Forward, Half::Backward].map(|half| vec![State::Waiting; pairing.half(half).len()]);
        Progress { pairing, states }
    }

    fn can_begin(&self, half: Half, component: &Component) -> bool {
        component.after.iter().all(|&other| self.states[half as usize].get(other) == Some(&State::Done))
    }

    /// All entries that can come next.
    pub(crate) fn ready(&self) -> Vec<Op> {
        let mut ready = Vec::new();
        for half in [Half::Forward, Half::Backward] {
            for (index, component) in self.pairing.half(half).iter().enumerate() {
                match self.states[half as usize][index] {
                    State::Waiting if self.can_begin(half, component) => ready.push(match component.kind.communicates() {
                        true => Op::Start(half, index),
                        false => Op::Compute(half, index),
                    }),
                    State::UnderWay => ready.push(Op::Finish(half, index)),
                    _ => {}
                }
            }
        }
        ready
    }

    /// Takes an entry, or says what was expected and what found.
    pub(crate) fn advance(&mut self, op: Op) -> std::result::Result<(), (String, String)> {
        let (half, index) = match op {
            Op::Fill => return Ok(()),
            Op::Compute(half, index) | Op::Start(half, index) | Op::Finish(half, index) => (half, index),
        };
        let list = self.pairing.half(half);
        let Some(component) = list.get(index) else {
            return Err((format!("a component below {half}{}", list.len()), format!("{half}{index}")));
        };
        let state = self.states[half as usize][index];
        let named = |what: &str| format!("{what} {half}{index} ({component})");
        let next = match op {
            Op::Compute(..) if component.kind.communicates() => {
                return Err(("a communication to be started and finished".into(), named("compute")));
            }
            Op::Start(..) | Op::Finish(..) if !component.kind.communicates() => {
                return Err(("a computation to be computed".into(), named("start or finish of")));
            }
            Op::Finish(..) => match state {
                State::UnderWay => State::Done,
                _ => return Err(("one finish after its start".into(), named("finish"))),
            },
            _ if state != State::Waiting => {
                return Err(("each component once".into(), format!("{} twice", named("")).trim().into()));
            }
            _ if !self.can_begin(half, component) => {
                let missing = component.after.iter().find(|&&other| self.states[half as usize].get(other) != Some(&State::Done));
                let after = missing.and_then(|&other| list.get(other)).map_or(String::new(), ToString::to_string);
                return Err((format!("{after} to be done before"), format!("{half}{index} ({component})")));
            }
            Op::Start(..) => State::UnderWay,
            _ => State::Done,
        };
        self.states[half as usize][index] = next;
        Ok(())
    }

    /// A component that is not done and not for weights.
    pub(crate) fn missing(&self) -> Option<String> {
        [Half::Forward, Half::Backward].into_iter().find_map(|half| {
            let mut list = self.states[half as usize].iter().zip(self.pairing.half(half)).enumerate();
            let (index, (_, component)) =
                list.find(|(_, (state, component))| **state != State::Done && !component.kind.is_weight())?;
            Some(format!("{half}{index} ({component})"))
        })
    }
}

/// A small generator (SplitMix64), so that a seed means the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to 1.
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 * 2f64.powi(-53)
    }

    /// Below `bound`, which is at least 1.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound.max(1) as u128) >> 64) as usize
    }
}
