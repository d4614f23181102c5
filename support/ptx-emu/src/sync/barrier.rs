//! Barriers of a block: `bar`, `barrier.cta` (PTX ISA 9.0, section 9.7.13.1), and of a warp: `bar.warp.sync` (9.7.13.2).
//!
//! A barrier counts warps: when all live lanes of a warp have come, the warp's 32 threads have arrived, whether or not all 32 exist. Without a thread
//! count a barrier expects the whole block, and threads that have exited count as arrived, as on hardware; with a count they do not.
//! A warp that arrives twice before the others came, different counts, or a reduction mixed with plain arrivals at one barrier would be
//! undefined on hardware and are errors here.

use super::parts::Parts;
use super::{BlockState, SyncOp, hooks};
use crate::ast::{Instruction, Operand, Type};
use crate::cx::{Block, Cx, Step, Wait, Warp};
use crate::decode::{Decoder, Result};
use crate::fault::{Exec, Fault};
use crate::isa::{PredSrc, Reg, Src};
use crate::race::SyncVar;
use crate::regs::{Mask, lanes};
use crate::report::Kind;

/// Named barriers of a block.
pub const BARRIERS: u32 = 16;

/// How threads take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// They arrive and wait.
    Sync,
    /// They arrive.
    Arrive,
    /// They arrive with a predicate and wait.
    Reduce,
}

/// What a reduction gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reduction {
    /// How many threads gave true.
    Popc(Reg),
    /// Whether all did.
    And(Option<u32>),
    /// Whether any did.
    Or(Option<u32>),
}

/// `bar`, `barrier.cta`.
#[derive(Debug)]
pub struct Bar {
    action: Action,
    aligned: bool,
    id: Src,
    /// None: the whole block.
    count: Option<Src>,
    reduction: Option<(Reduction, PredSrc)>,
}

/// Decodes `bar` and `barrier`, all but those of the cluster.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<SyncOp> {
    let mut parts = Parts::new(instruction, 1);
    let old = instruction.opcode.first().is_some_and(|base| base == "bar");
    if old && parts.take("warp") {
        let ([members], true, true) = (instruction.operands.as_slice(), parts.take("sync"), parts.done()) else {
            return Err(decoder.unknown(instruction));
        };
        return Ok(SyncOp::WarpBarrier { members: decoder.src(members, Type::U32)? });
    }
    parts.take("cta");
    let aligned = old || parts.take("aligned");
    let action = parts.one_of(&[("sync", Action::Sync), ("arrive", Action::Arrive), ("red", Action::Reduce)]);
    let Some(action) = action else { return Err(decoder.unknown(instruction)) };
    let mut operands = instruction.operands.iter();
    let mut reduction = None;
    if action == Action::Reduce {
        let (Some(dst), Some(value)) = (operands.next(), operands.next_back()) else {
            return Err(decoder.error("too few operands of a barrier with a reduction"));
        };
        let kind = if parts.take("popc") && parts.take("u32") {
            Reduction::Popc(decoder.dst_of(dst, Type::U32)?)
        } else if parts.take("and") && parts.take("pred") {
            Reduction::And(decoder.pred_dst(dst)?)
        } else if parts.take("or") && parts.take("pred") {
            Reduction::Or(decoder.pred_dst(dst)?)
        } else {
            return Err(decoder.unknown(instruction));
        };
        reduction = Some((kind, decoder.pred_src(value)?));
    }
    if !parts.done() {
        return Err(decoder.unknown(instruction));
    }
    let operands: Vec<&Operand> = operands.collect();
    let (id, count) = match operands.as_slice() {
        [id] if action != Action::Arrive => (*id, None),
        [id, count] => (*id, Some(*count)),
        _ => return Err(decoder.error("a barrier takes its number and a count of threads")),
    };
    let id = decoder.src(id, Type::U32)?;
    let count = count.map(|c| decoder.src(c, Type::U32)).transpose()?;
    if let Src::Imm(id) = id
        && id >= u64::from(BARRIERS)
    {
        return Err(decoder.error(format!("barrier {id} does not exist: there are {BARRIERS}")));
    }
    Ok(SyncOp::Bar(Bar { action, aligned, id, count, reduction }))
}

/// Threads that wait at one barrier: the lanes of each warp.
pub type Waiting = Vec<(u32, Mask)>;

/// One named barrier.
#[derive(Debug, Default)]
pub struct Barrier {
    /// Phases completed.
    pub generation: u64,
    /// Threads that this phase expects; None when nobody has come.
    expected: Option<u32>,
    /// Whether all of the block are expected, so that threads that exited count.
    all: bool,
    reducing: bool,
    /// Warps that have arrived.
    arrived: Mask,
    /// Warps of which some lanes have come, by warp.
    partial: Waiting,
    waiting: Waiting,
    count: u32,
    every: bool,
    any: bool,
    /// What `bar.arrive` and the like released.
    released: SyncVar,
    /// Phases that have completed and whose threads have not all gone on.
    finished: Vec<Finished>,
}

#[derive(Debug)]
struct Finished {
    generation: u64,
    waiting: Waiting,
    count: u32,
    every: bool,
    any: bool,
    released: SyncVar,
    told: bool,
}

impl Barrier {
    /// What threads that arrive without waiting release into.
    pub fn released(&mut self) -> &mut SyncVar {
        &mut self.released
    }

    /// Threads that have arrived in this phase.
    fn threads(&self, exited: Mask) -> u32 {
        let arrived = if self.all { self.arrived | exited } else { self.arrived };
        arrived.count_ones() * 32
    }

    fn try_complete(&mut self, exited: Mask) -> bool {
        match self.expected {
            Some(expected) if self.threads(exited) >= expected => {}
            _ => return false,
        }
        let waiting = std::mem::take(&mut self.waiting);
        if !waiting.is_empty() {
            self.finished.push(Finished {
                generation: self.generation,
                waiting,
                count: self.count,
                every: self.every,
                any: self.any,
                released: std::mem::take(&mut self.released),
                told: false,
            });
        }
        self.generation += 1;
        self.expected = None;
        self.all = false;
        self.arrived = 0;
        (self.count, self.every, self.any) = (0, true, false);
        self.released = SyncVar::new();
        true
    }

    /// In words: who has come.
    pub fn describe(&self, id: u32, exited: Mask) -> String {
        let expected = self.expected.unwrap_or(0);
        let mut text = format!("named barrier {id}: {} of {expected} threads have arrived", self.threads(exited));
        for (warp, mask) in &self.partial {
            text += &format!("; of warp {warp} only lanes {mask:#010x}");
        }
        text
    }
}

fn warp_bit(index: u32) -> Mask {
    1u32.checked_shl(index).unwrap_or(0)
}

/// Executes `bar` and `barrier`.
pub fn exec(op: &Bar, cx: &mut Cx<'_>) -> Exec<Step> {
    let ids = cx.get64(&op.id);
    let id = cx.uniform(&ids, "the barrier's number")? as u32;
    if let Some(Wait::Barrier { id, generation }) = cx.resumed {
        return finish(op, cx, id, generation);
    }
    if op.aligned
        && let Some(wait) = super::converge(cx)?
    {
        return Ok(Step::Wait(wait));
    }
    if id >= BARRIERS {
        return Err(Fault::new(Kind::BarrierMisuse, format!("barrier {id} does not exist: there are {BARRIERS}")));
    }
    let warps = cx.blocks[cx.rank].warps.len() as u32;
    let block = warps * 32;
    let count = match &op.count {
        None => None,
        Some(count) => {
            let counts = cx.get64(count);
            let count = cx.uniform(&counts, "the barrier's count of threads")? as u32;
            if count == 0 || !count.is_multiple_of(32) {
                let message =
                    format!("named barrier {id}: a count of {count} threads is not a positive multiple of the warp's 32");
                return Err(Fault::new(Kind::BarrierMisuse, message));
            }
            if count > block {
                let message = format!("named barrier {id}: a count of {count} threads in a block of {block}");
                return Err(Fault::new(Kind::BarrierMisuse, message));
            }
            Some(count)
        }
    };
    let warp = cx.warp.index;
    let (mask, live) = (cx.mask, cx.warp.live);
    let values = op.reduction.map(|(_, value)| cx.pred(value) & mask);
    let state = &mut cx.blocks[cx.rank].sync;
    let exited = state.exited_warps;
    let barrier = &mut state.barriers[id as usize];
    let reducing = op.action == Action::Reduce;
    match barrier.expected {
        None => {
            barrier.expected = Some(count.unwrap_or(block));
            barrier.reducing = reducing;
            (barrier.count, barrier.every, barrier.any) = (0, true, false);
        }
        Some(expected) => {
            if expected != count.unwrap_or(block) {
                let message = format!(
                    "named barrier {id}: this warp expects {} threads, those that arrived before it expect {expected}",
                    count.unwrap_or(block)
                );
                return Err(Fault::new(Kind::BarrierMisuse, message));
            }
            if barrier.reducing != reducing {
                let message = format!("named barrier {id}: a reduction and plain arrivals meet at one barrier");
                return Err(Fault::new(Kind::BarrierMisuse, message));
            }
        }
    }
    if barrier.arrived & warp_bit(warp) != 0 {
        let message = format!("warp {warp} arrives twice: {}", barrier.describe(id, exited));
        return Err(Fault::new(Kind::BarrierMisuse, message));
    }
    barrier.all |= count.is_none();
    if let Some(values) = values {
        barrier.count += values.count_ones();
        barrier.every &= values == mask;
        barrier.any |= values != 0;
    }
    // Lanes of a warp may come one group after the other where the instruction is not aligned.
    let partial = barrier.partial.iter().position(|p| p.0 == warp);
    let before = partial.map_or(0, |at| barrier.partial[at].1);
    if before & mask != 0 {
        let lane = (before & mask).trailing_zeros() as usize;
        return Err(Fault::at(Kind::BarrierMisuse, lane, format!("a thread arrives twice: {}", barrier.describe(id, exited))));
    }
    let here = if partial.is_some() { 0 } else { 32 };
    if barrier.threads(exited) + 32 * barrier.partial.len() as u32 + here > barrier.expected.unwrap_or(0) {
        let message = format!("more threads arrive than it expects: {}", barrier.describe(id, exited));
        return Err(Fault::new(Kind::BarrierMisuse, message));
    }
    if (before | mask) & live == live {
        barrier.partial.retain(|p| p.0 != warp);
        barrier.arrived |= warp_bit(warp);
    } else {
        match partial {
            Some(at) => barrier.partial[at].1 |= mask,
            None => barrier.partial.push((warp, mask)),
        }
    }
    let generation = barrier.generation;
    if op.action == Action::Arrive {
        hooks::barrier_arrive(cx, id)?;
    } else {
        match barrier.waiting.iter_mut().find(|w| w.0 == warp) {
            Some(waiting) => waiting.1 |= mask,
            None => barrier.waiting.push((warp, mask)),
        }
    }
    let completed = cx.blocks[cx.rank].sync.barriers[id as usize].try_complete(exited);
    match (op.action, completed) {
        (Action::Arrive, _) => Ok(Step::Next),
        (_, true) => finish(op, cx, id, generation),
        (_, false) => Ok(Step::Wait(Wait::Barrier { id, generation })),
    }
}

/// A group goes on behind a barrier that has completed.
fn finish(op: &Bar, cx: &mut Cx<'_>, id: u32, generation: u64) -> Exec<Step> {
    let (rank, mask, warp) = (cx.rank, cx.mask, cx.warp.index);
    let Some(barrier) = cx.blocks[rank].sync.barriers.get_mut(id as usize) else { return Ok(Step::Next) };
    let Some(at) = barrier.finished.iter().position(|f| f.generation == generation) else { return Ok(Step::Next) };
    let finished = &mut barrier.finished[at];
    let (count, every, any) = (finished.count, finished.every, finished.any);
    // The first to go on tells the detector of all who met; nobody has done anything since.
    let meeting = (!std::mem::replace(&mut finished.told, true))
        .then(|| (finished.waiting.clone(), std::mem::take(&mut finished.released)));
    if let Some(waiting) = finished.waiting.iter_mut().find(|w| w.0 == warp) {
        waiting.1 &= !mask;
    }
    finished.waiting.retain(|w| w.1 != 0);
    if finished.waiting.is_empty() {
        barrier.finished.swap_remove(at);
    }
    if let Some((waiting, released)) = meeting {
        hooks::barrier_complete(cx, &waiting, &released)?;
    }
    match op.reduction {
        None => {}
        Some((Reduction::Popc(dst), _)) => cx.set32(dst, &[count; 32]),
        Some((Reduction::And(dst), _)) => set_pred(cx, dst, every),
        Some((Reduction::Or(dst), _)) => set_pred(cx, dst, any),
    }
    Ok(Step::Next)
}

fn set_pred(cx: &mut Cx<'_>, dst: Option<u32>, value: bool) {
    if let Some(dst) = dst {
        cx.set_pred(dst, if value { Mask::MAX } else { 0 });
    }
}

/// Threads of a warp have exited: those that remain may be all that a barrier waits for.
pub fn exited(state: &mut BlockState, warp: &Warp) {
    if warp.live == 0 {
        state.exited_warps |= warp_bit(warp.index);
    }
    let exited = state.exited_warps;
    for barrier in &mut state.barriers {
        if barrier.expected.is_none() {
            continue;
        }
        if let Some(at) = barrier.partial.iter().position(|p| p.0 == warp.index)
            && barrier.partial[at].1 & warp.live == warp.live
        {
            barrier.partial.swap_remove(at);
            barrier.arrived |= warp_bit(warp.index);
        }
        barrier.try_complete(exited);
    }
}

/// Whether a wait at a barrier is over.
pub fn passed(block: &Block, id: u32, generation: u64) -> bool {
    block.sync.barriers.get(id as usize).is_none_or(|b| b.generation != generation)
}

/// Lanes of a warp that wait in `bar.warp.sync`.
#[derive(Debug, Default)]
pub struct WarpBarriers {
    /// Lanes that wait.
    pub blocked: Mask,
    /// By member mask: the lanes that have arrived.
    arrived: Vec<(Mask, Mask)>,
}

impl WarpBarriers {
    /// Lanes arrive at the barrier of these members; whether all have.
    fn arrive(&mut self, members: Mask, mask: Mask, live: Mask) -> bool {
        let at = match self.arrived.iter().position(|a| a.0 == members) {
            Some(at) => at,
            None => {
                self.arrived.push((members, 0));
                self.arrived.len() - 1
            }
        };
        self.arrived[at].1 |= mask;
        self.blocked |= mask;
        self.complete(at, live)
    }

    fn complete(&mut self, at: usize, live: Mask) -> bool {
        let (members, arrived) = self.arrived[at];
        let all = members & live & !arrived == 0;
        if all {
            self.arrived.swap_remove(at);
            self.blocked &= !arrived;
        }
        all
    }

    /// Whether the lanes of a group may go on. `live`: lanes that have exited since are not waited for.
    pub fn passed(&self, mask: Mask, live: Mask) -> bool {
        let open = |&(members, arrived): &(Mask, Mask)| if members & live & !arrived == 0 { arrived } else { 0 };
        mask & self.blocked & !self.arrived.iter().map(open).fold(0, |a, b| a | b) == 0
    }

    /// In words: who has not come.
    pub fn describe(&self, mask: Mask, live: Mask) -> String {
        let missing = self.arrived.iter().filter(|a| a.1 & mask != 0).map(|a| a.0 & live & !a.1).fold(0, |a, b| a | b);
        format!("bar.warp.sync: lanes {missing:#010x} have not arrived")
    }
}

/// Executes `bar.warp.sync`.
pub fn exec_warp(members: &Src, cx: &mut Cx<'_>) -> Exec<Step> {
    if let Some(Wait::WarpBarrier { .. }) = cx.resumed {
        // Lanes that exited may have been the last ones missing.
        let live = cx.warp.live;
        let barriers = &mut cx.warp.sync.barriers;
        let mut met = vec![];
        for at in (0..barriers.arrived.len()).rev() {
            let members = barriers.arrived[at].0;
            if barriers.complete(at, live) {
                met.push(members & live);
            }
        }
        for members in met {
            hooks::warp_barrier(cx, members)?;
        }
        return Ok(Step::Next);
    }
    let members = cx.get32(members);
    let (mask, live) = (cx.mask, cx.warp.live);
    let mut rest = mask;
    let mut all = true;
    while rest != 0 {
        let first = rest.trailing_zeros() as usize;
        let group = lanes(rest).filter(|&l| members[l] == members[first]).fold(0, |m: Mask, l| m | 1 << l);
        rest &= !group;
        let set = members[first];
        if group & !set != 0 {
            let lane = (group & !set).trailing_zeros() as usize;
            let message = format!("bar.warp.sync with members {set:#010x} executed by lane {lane}, which is not one of them");
            return Err(Fault::at(Kind::Divergence, lane, message));
        }
        if cx.warp.sync.barriers.arrive(set, group, live) {
            hooks::warp_barrier(cx, set & live)?;
        } else {
            all = false;
        }
    }
    if all {
        return Ok(Step::Next);
    }
    let first = mask.trailing_zeros() as usize;
    Ok(Step::Wait(Wait::WarpBarrier { members: members[first], generation: 0 }))
}
