//! mbarrier objects: `mbarrier.*` (PTX ISA 9.0, section 9.7.13.15). What a state is and how it changes is in [`super::phase`].
//!
//! Each block keeps a table of its objects; their 8 bytes of shared memory mirror it, so that a store over an object is noticed when it is used next.
//!
//! The lanes of one `arrive` instruction arrive one after the other. That some of them would complete a phase and others arrive in the next is legal by the
//! letter, and a mistake in every kernel (all lanes arrive where one was counted): it is an error here.
//!
//! # Scopes
//!
//! An arrival from another block of the cluster orders something for a wait only if both say `.cluster`. One exception: by the manual an arrival
//! without a scope has `.cta`, under which one at another block's object would order nothing at all. Kernels in wide use arrive like this
//! (and wait without a scope), and hardware orders them. So an arrival without a scope is taken as one that every wait observes.

use super::parts::{Parts, Place, SharedAddr, Window, check_shared, locate, order_and_scope, places, shared_addr};
use super::phase::{Misuse, Phase};
use super::{SyncOp, io};
use crate::ast::{Instruction, Operand, Type};
use crate::cx::{Block, Cx, Step, Wait};
use crate::decode::{Decoder, Result};
use crate::detect::Detector;
use crate::fault::{Exec, Fault};
use crate::isa::{Reg, Src};
use crate::race::{AgentId, MbarrierSync, Order, Scope, Sem};
use crate::regs::{LANES, Lanes64, Mask, lanes};
use crate::report::Kind;
use std::collections::BTreeMap;

/// `mbarrier.*`.
#[derive(Debug)]
pub enum MbarrierOp {
    /// `init`
    Init { at: SharedAddr, count: Src },
    /// `inval`
    Inval { at: SharedAddr },
    /// `arrive`, `arrive_drop`, with what they can carry.
    Arrive { at: SharedAddr, state: Option<Reg>, count: Src, tx: Option<Src>, drop: bool, no_complete: bool, order: Sent },
    /// `expect_tx`, `complete_tx`
    Tx { at: SharedAddr, bytes: Src, complete: bool },
    /// `test_wait`, `try_wait`
    Wait { at: SharedAddr, done: Option<u32>, what: Src, parity: bool, may_wait: bool, sem: Sem },
    /// `pending_count`
    PendingCount { dst: Reg, state: Src },
}

/// What an arrival orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Nothing: `.relaxed`.
    Relaxed,
    /// `.release.cta`
    Block,
    /// `.release.cluster`
    Cluster,
    /// `.release`, and no scope is written.
    Unqualified,
}

/// Decodes one.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<SyncOp> {
    let unknown = || decoder.unknown(instruction);
    let Some(name) = instruction.opcode.get(1) else { return Err(unknown()) };
    let mut parts = Parts::new(instruction, 2);
    if !parts.take("b64") {
        return Err(unknown());
    }
    let operands = instruction.operands.as_slice();
    let window = parts.shared_window();
    let remote = window == Window::Cluster;
    let op = match (name.as_str(), operands) {
        ("init", [at, count]) if !remote => {
            MbarrierOp::Init { at: shared_addr(decoder, at, window)?, count: decoder.src(count, Type::U32)? }
        }
        ("inval", [at]) if !remote => MbarrierOp::Inval { at: shared_addr(decoder, at, window)? },
        ("arrive" | "arrive_drop", [state, at, rest @ ..]) => {
            let expects = parts.take("expect_tx");
            let no_complete = !expects && parts.take("noComplete");
            let order = match order_and_scope(&mut parts, Order::Release) {
                None => return Err(decoder.unknown(instruction)),
                Some((sem, _)) if sem.order == Order::Relaxed => Sent::Relaxed,
                Some((_, false)) => Sent::Unqualified,
                Some((sem, true)) if sem.scope == Scope::Cluster => Sent::Cluster,
                Some(_) => Sent::Block,
            };
            let sink = matches!(state, Operand::Name(name) if name == "_");
            if remote && !sink {
                return Err(decoder.error("an arrival at another block's mbarrier gives no state: the destination must be _"));
            }
            if no_complete && (remote || sink || matches!(order, Sent::Relaxed | Sent::Cluster)) {
                return Err(decoder.unknown(instruction));
            }
            let state = if sink { None } else { Some(decoder.dst_of(state, Type::B64)?) };
            let at = shared_addr(decoder, at, window)?;
            let (count, tx) = match rest {
                [] if !expects && !no_complete => (Src::Imm(1), None),
                [count] if !expects => (decoder.src(count, Type::U32)?, None),
                [tx] if expects => (Src::Imm(1), Some(decoder.src(tx, Type::U32)?)),
                _ => return Err(decoder.error("wrong number of operands of mbarrier.arrive")),
            };
            MbarrierOp::Arrive { at, state, count, tx, drop: name == "arrive_drop", no_complete, order }
        }
        ("expect_tx" | "complete_tx", [at, bytes]) => {
            if order_and_scope(&mut parts, Order::Relaxed).is_none() {
                return Err(decoder.unknown(instruction));
            }
            let at = shared_addr(decoder, at, window)?;
            MbarrierOp::Tx { at, bytes: decoder.src(bytes, Type::U32)?, complete: name == "complete_tx" }
        }
        ("test_wait" | "try_wait", [done, at, what, hint @ ..]) if !remote => {
            let parity = parts.take("parity");
            let Some((sem, _)) = order_and_scope(&mut parts, Order::Acquire) else { return Err(decoder.unknown(instruction)) };
            let may_wait = name == "try_wait";
            match hint {
                [] => {}
                [hint] if may_wait => drop(decoder.src(hint, Type::U32)?),
                _ => return Err(decoder.error("wrong number of operands of an mbarrier's wait")),
            }
            let done = decoder.pred_dst(done)?;
            let at = shared_addr(decoder, at, window)?;
            let what = decoder.src(what, if parity { Type::U32 } else { Type::B64 })?;
            MbarrierOp::Wait { at, done, what, parity, may_wait, sem }
        }
        ("pending_count", [dst, state]) if window == Window::Generic => {
            MbarrierOp::PendingCount { dst: decoder.dst_of(dst, Type::U32)?, state: decoder.src(state, Type::B64)? }
        }
        _ => return Err(decoder.unknown(instruction)),
    };
    if !parts.done() {
        return Err(decoder.unknown(instruction));
    }
    Ok(SyncOp::Mbarrier(op))
}

/// An mbarrier object.
#[derive(Debug)]
pub struct Object {
    /// Its state.
    pub phase: Phase,
    /// What the race detector keeps with it: what arrivals of its own block and asynchronous operations have ordered.
    sync: MbarrierSync,
    /// The same for arrivals of other blocks at cluster scope.
    remote: MbarrierSync,
    /// The phase in which bytes of an asynchronous copy landed last, if no thread has waited since.
    landed: Option<u8>,
}

impl Object {
    fn complete_phase(&mut self) {
        self.sync.complete_phase();
        self.remote.complete_phase();
    }
}

/// The objects of a block, by shared address.
#[derive(Debug, Default)]
pub struct Objects(BTreeMap<u32, Object>);

impl Objects {
    /// The address of an object that overlaps these bytes.
    pub fn overlapping(&self, address: u32, size: u32) -> Option<u32> {
        if self.0.is_empty() {
            return None;
        }
        let end = address.saturating_add(size);
        self.0.range(address.saturating_sub(7)..end).next().map(|(&at, _)| at)
    }

    /// The address of an object on which asynchronous copies landed that no thread has waited for.
    pub fn unwaited(&self) -> Option<u32> {
        self.0.iter().find(|(_, object)| object.landed.is_some()).map(|(&at, _)| at)
    }

    /// The state of the object at an address.
    pub fn phase(&self, address: u32) -> Option<Phase> {
        self.0.get(&address).map(|o| o.phase)
    }
}

fn name(place: Place) -> String {
    format!("the mbarrier at shared address {:#x} of block {} of the cluster", place.address, place.rank)
}

fn misused(place: Place, lane: Option<usize>, what: &str, why: &str) -> Box<Fault> {
    let mut fault = Fault::new(Kind::BarrierMisuse, format!("{what} on {}: {why}", name(place)));
    fault.lane = lane;
    fault
}

/// Runs `change` on an object and mirrors its state to memory.
pub fn with_object<T>(
    blocks: &mut [Block],
    place: Place,
    lane: Option<usize>,
    what: &str,
    change: impl FnOnce(&mut Object) -> Exec<std::result::Result<T, Misuse>>,
) -> Exec<T> {
    let block = &mut blocks[place.rank];
    let Some(object) = block.sync.mbarriers.0.get_mut(&place.address) else {
        return Err(misused(place, lane, what, "there is no mbarrier: mbarrier.init has not been executed there"));
    };
    let before = object.phase;
    if io::peek_shared(&block.shared, place.address) != before.pack() {
        return Err(misused(place, lane, what, "its 8 bytes were overwritten by something that is no mbarrier operation"));
    }
    let result = change(object)?;
    io::poke_shared(&mut block.shared, place.address, object.phase.pack());
    result.map_err(|misuse| misused(place, lane, what, &format!("{misuse} ({before})")))
}

/// Executes one.
pub fn exec(op: &MbarrierOp, cx: &mut Cx<'_>) -> Exec<Step> {
    match op {
        MbarrierOp::Init { at, count } => {
            let counts = cx.get32(count);
            for (lane, place) in places(cx, at, 8, 8, "mbarrier.init")? {
                init(cx, lane, place, counts[lane])?;
            }
        }
        MbarrierOp::Inval { at } => {
            for (lane, place) in places(cx, at, 8, 8, "mbarrier.inval")? {
                inval(cx, lane, place)?;
            }
        }
        MbarrierOp::Arrive { at, state, count, tx, drop, no_complete, order } => {
            let how = Arrival { drop: *drop, no_complete: *no_complete, order: *order };
            let counts = cx.get32(count);
            let tx = tx.as_ref().map(|tx| cx.get32(tx));
            let mut states = [0; LANES];
            let list = places(cx, at, 8, 8, "mbarrier.arrive")?;
            arrive(cx, &list, how, |lane| (counts[lane], tx.map(|tx| tx[lane])), &mut states)?;
            if let Some(state) = state {
                cx.set64(*state, &states);
            }
            cx.env.progress();
        }
        MbarrierOp::Tx { at, bytes, complete } => {
            let bytes = cx.get32(bytes);
            let what = if *complete { "mbarrier.complete_tx" } else { "mbarrier.expect_tx" };
            let list = places(cx, at, 8, 8, what)?;
            for (lane, place) in list {
                let n = bytes[lane];
                let warp = cx.race_warp();
                let owner = cx.blocks[place.rank].race;
                let (detector, site) = (cx.detector.as_deref_mut(), cx.site);
                with_object(cx.blocks, place, Some(lane), what, |object| {
                    if let (Some(detector), Some(warp), Some(owner)) = (detector, warp, owner) {
                        let address = u64::from(place.address);
                        detector.race.mbarrier_arrive(&mut object.sync, owner, address, warp, 1 << lane, true, site)?;
                    }
                    if !*complete {
                        return Ok(object.phase.expect_tx(n));
                    }
                    Ok(object.phase.complete_tx(n).map(|done| {
                        if done {
                            object.complete_phase();
                        }
                    }))
                })?;
            }
            cx.env.progress();
        }
        MbarrierOp::Wait { at, done, what, parity, may_wait, sem } => {
            return wait(cx, at, *done, what, *parity, *may_wait, *sem);
        }
        MbarrierOp::PendingCount { dst, state } => {
            let counts = cx.get64(state).map(|s| Phase::unpack(s).pending);
            cx.set32(*dst, &counts);
        }
    }
    Ok(Step::Next)
}

/// How many groups of lanes wait for an object.
fn waiters(cx: &Cx<'_>, place: Place) -> usize {
    let here = |wait: &Option<Wait>| matches!(wait, Some(Wait::Mbarrier { rank, address, .. }) if *rank as usize == place.rank && *address == place.address);
    let others = cx.blocks.iter().flat_map(|b| b.warps.iter().flatten()).flat_map(|w| w.groups.iter());
    others.chain(cx.warp.groups.iter()).filter(|g| here(&g.wait)).count()
}

fn init(cx: &mut Cx<'_>, lane: usize, place: Place, count: u32) -> Exec {
    let phase = Phase::new(count).map_err(|misuse| misused(place, Some(lane), "mbarrier.init", &misuse.to_string()))?;
    if let Some(old) = cx.blocks[place.rank].sync.mbarriers.phase(place.address) {
        let waiting = waiters(cx, place);
        if waiting > 0 || old.tx != 0 {
            let why = format!("it is in use: {old}, {waiting} groups of threads wait for it");
            return Err(misused(place, Some(lane), "mbarrier.init", &why));
        }
    }
    if let Some(other) = cx.blocks[place.rank].sync.mbarriers.overlapping(place.address, 8)
        && other != place.address
    {
        return Err(misused(place, Some(lane), "mbarrier.init", &format!("it overlaps the one at {other:#x}")));
    }
    let warp = cx.race_warp();
    let block = &mut cx.blocks[place.rank];
    if let (Some(detector), Some(warp), Some(owner)) = (cx.detector.as_deref_mut(), warp, block.race) {
        detector.race.mbarrier_init(warp, lane as u32, owner, u64::from(place.address), cx.site)?;
    }
    io::poke_shared(&mut block.shared, place.address, phase.pack());
    block
        .sync
        .mbarriers
        .0
        .insert(place.address, Object { phase, sync: MbarrierSync::new(), remote: MbarrierSync::new(), landed: None });
    cx.env.progress();
    Ok(())
}

fn inval(cx: &mut Cx<'_>, lane: usize, place: Place) -> Exec {
    with_object(cx.blocks, place, Some(lane), "mbarrier.inval", |_| Ok(Ok(())))?;
    let waiting = waiters(cx, place);
    let warp = cx.race_warp();
    let block = &mut cx.blocks[place.rank];
    if let Some(phase) = block.sync.mbarriers.phase(place.address)
        && (waiting > 0 || phase.tx != 0)
    {
        let why = format!("it is in use: {phase}, {waiting} groups of threads wait for it");
        return Err(misused(place, Some(lane), "mbarrier.inval", &why));
    }
    if let (Some(detector), Some(warp), Some(owner)) = (cx.detector.as_deref_mut(), warp, block.race) {
        detector.race.mbarrier_inval(warp, lane as u32, owner, u64::from(place.address), cx.site)?;
    }
    block.sync.mbarriers.0.remove(&place.address);
    // What is left there is nobody's value.
    block.shared.undefine(u64::from(place.address), 8);
    cx.env.progress();
    Ok(())
}

#[derive(Debug, Clone, Copy)]
struct Arrival {
    drop: bool,
    no_complete: bool,
    order: Sent,
}

/// Lanes arrive one after the other; `states` gets the state before each.
fn arrive(
    cx: &mut Cx<'_>,
    list: &[(usize, Place)],
    how: Arrival,
    operands: impl Fn(usize) -> (u32, Option<u32>),
    states: &mut Lanes64,
) -> Exec {
    let warp = cx.race_warp();
    let (site, rank) = (cx.site, cx.rank);
    let mut rest = list;
    while let Some(&(first, place)) = rest.first() {
        let same = rest.iter().take_while(|(_, p)| *p == place).count();
        let (now, later) = rest.split_at(same);
        rest = later;
        let owner = cx.blocks[place.rank].race;
        let mut detector = cx.detector.as_deref_mut();
        let mut lane = first;
        let mut blamed = first;
        let result = with_object(cx.blocks, place, None, "mbarrier.arrive", |object| {
            // Lanes whose arrival the detector does not know yet: those of one phase are told together.
            let mut untold: Mask = 0;
            for &(l, _) in now {
                lane = l;
                blamed = l;
                let (count, tx) = operands(lane);
                states[lane] = object.phase.pack();
                untold |= 1 << lane;
                if let Some(tx) = tx
                    && let Err(misuse) = object.phase.expect_tx(tx)
                {
                    return Ok(Err(misuse));
                }
                let completed = match object.phase.arrive(count, how.drop, how.no_complete) {
                    Ok(completed) => completed,
                    Err(misuse) => return Ok(Err(misuse)),
                };
                if completed || l == now[now.len() - 1].0 {
                    if let (Some(detector), Some(warp), Some(owner)) = (detector.as_deref_mut(), warp, owner) {
                        let address = u64::from(place.address);
                        let far = place.rank != rank;
                        let into = if far && how.order == Sent::Cluster { &mut object.remote } else { &mut object.sync };
                        // At block scope, an arrival at another block's object orders nothing.
                        let relaxed = how.order == Sent::Relaxed || far && how.order == Sent::Block;
                        detector.race.mbarrier_arrive(into, owner, address, warp, untold, relaxed, site)?;
                    }
                    untold = 0;
                }
                if completed {
                    object.complete_phase();
                    // Lanes of one instruction cannot have waited for each other: those that are left were not meant for another phase.
                    let left = now.iter().filter(|(other, _)| *other > l).count() as u32;
                    if left > 0 {
                        return Ok(Err(Misuse::TooMany(left)));
                    }
                }
            }
            Ok(Ok(()))
        });
        result.map_err(|mut fault| {
            fault.lane = fault.lane.or(Some(blamed));
            fault
        })?;
    }
    Ok(())
}

/// `test_wait`, `try_wait`: lanes may ask about different objects.
fn wait(cx: &mut Cx<'_>, at: &SharedAddr, done: Option<u32>, what: &Src, parity: bool, may_wait: bool, sem: Sem) -> Exec<Step> {
    let instruction = if may_wait { "mbarrier.try_wait" } else { "mbarrier.test_wait" };
    let addresses = cx.address(&at.addr);
    let values = cx.get64(what);
    let mut passed: Mask = 0;
    let mut rest = cx.mask;
    let mut only = None;
    let mut groups = 0;
    while rest != 0 {
        let lane = rest.trailing_zeros() as usize;
        let same = lanes(rest)
            .filter(|&l| addresses[l] == addresses[lane] && values[l] == values[lane])
            .fold(0, |m: Mask, l| m | 1 << l);
        rest &= !same;
        groups += 1;
        let place = locate(cx, addresses[lane], at.window, lane, instruction)?;
        if place.rank != cx.rank {
            return Err(misused(place, Some(lane), instruction, "a thread can only wait at an mbarrier of its own block"));
        }
        check_shared(cx, place, 8, 8, lane, instruction)?;
        let warp = cx.race_warp();
        let owner = cx.blocks[place.rank].race;
        let (detector, site) = (cx.detector.as_deref_mut(), cx.site);
        let (complete, waited) = with_object(cx.blocks, place, Some(lane), instruction, |object| {
            let (complete, waited) = if parity {
                let wanted = values[lane] & 1 != 0;
                (Some(object.phase.completed(wanted)), wanted)
            } else {
                let state = Phase::unpack(values[lane]);
                (object.phase.completed_since(state), state.parity())
            };
            if let (Some(detector), Some(warp), Some(owner)) = (detector, warp, owner) {
                let passed = complete == Some(true);
                let relaxed = sem.order == Order::Relaxed;
                let address = u64::from(place.address);
                detector.race.mbarrier_wait(&mut object.sync, owner, address, warp, same, passed, relaxed, site)?;
                if passed && sem.scope == Scope::Cluster {
                    detector.race.mbarrier_wait(&mut object.remote, owner, address, warp, same, passed, relaxed, site)?;
                }
            }
            if complete == Some(true) && object.landed != Some(object.phase.phase) {
                object.landed = None;
            }
            Ok(Ok((complete, waited)))
        })?;
        let Some(complete) = complete else {
            let why = "the state is neither of the phase in progress nor of the one before";
            return Err(misused(place, Some(lane), instruction, why));
        };
        if complete {
            passed |= same;
        }
        only = Some((place, waited));
    }
    if passed == 0
        && may_wait
        && groups == 1
        && let Some((place, parity)) = only
    {
        // The time that a thread is suspended has a limit: with a seed, now and then it is over at once.
        let impatient = cx.env.config.seed != 0 && cx.resumed.is_none() && cx.rng.one_in(8);
        if !impatient {
            return Ok(Step::Wait(Wait::Mbarrier { rank: place.rank as u32, address: place.address, parity }));
        }
    }
    if let Some(done) = done {
        cx.set_pred(done, passed);
    }
    Ok(if passed == 0 { Step::Yield } else { Step::Next })
}

/// An asynchronous operation completes on an object: bytes that have landed, or one arrival.
pub fn complete(
    blocks: &mut [Block],
    detector: Option<&mut Detector>,
    place: Place,
    agents: &[AgentId],
    landed: Option<u32>,
    (what, site): (&str, u32),
) -> Exec {
    if blocks[place.rank].live_threads == 0 {
        let message = format!("{what} completes on {}, which has exited", name(place));
        return Err(Fault::new(Kind::EarlyExit, message));
    }
    let owner = blocks[place.rank].race;
    with_object(blocks, place, None, what, |object| {
        let mut bytes = landed.unwrap_or(0);
        // Bytes land in portions of any size: where more come than the phase was told of, it completes as soon as what it was told of is
        // there.
        if object.phase.pending == 0
            && let Ok(told @ 1..) = u32::try_from(object.phase.tx)
            && told < bytes
        {
            bytes -= told;
            if object.phase.complete_tx(told) == Ok(true) {
                object.complete_phase();
            }
        }
        if landed.is_some() {
            object.landed = Some(object.phase.phase);
        }
        if let (Some(detector), Some(owner)) = (detector, owner) {
            for &agent in agents {
                detector.race.mbarrier_complete(&mut object.sync, owner, u64::from(place.address), agent, site)?;
            }
        }
        let result = if landed.is_some() { object.phase.complete_tx(bytes) } else { object.phase.arrive(1, false, false) };
        if result == Ok(true) {
            object.complete_phase();
        }
        Ok(result.map(drop))
    })
}

/// Checks that there is an object.
pub fn exists(blocks: &mut [Block], place: Place, lane: usize, what: &str) -> Exec {
    with_object(blocks, place, Some(lane), what, |_| Ok(Ok(())))
}

/// One arrival more is pending at an object: before an asynchronous one.
pub fn add_pending(cx: &mut Cx<'_>, lane: usize, place: Place, what: &str) -> Exec {
    with_object(cx.blocks, place, Some(lane), what, |object| Ok(object.phase.add_pending()))
}

/// Whether the phase of this parity has completed at an object (or there is no object any more).
pub fn passed(blocks: &[Block], rank: u32, address: u32, parity: bool) -> bool {
    let phase = blocks.get(rank as usize).and_then(|b| b.sync.mbarriers.phase(address));
    phase.is_none_or(|phase| phase.completed(parity))
}

/// In words: what is missing at an object.
pub fn describe(blocks: &[Block], rank: u32, address: u32, parity: bool) -> String {
    let phase = blocks.get(rank as usize).and_then(|b| b.sync.mbarriers.phase(address));
    let state = phase.map_or_else(|| "it is gone".into(), |phase| phase.to_string());
    format!("waits for the phase of parity {} of the mbarrier at shared address {address:#x}: {state}", u8::from(parity))
}
