//! Barriers, mbarriers, fences, asynchronous copies and what keeps track of them: decoding and executing.

mod barrier;
mod bulk;
mod cluster;
mod cp_async;
mod fence;
mod groups;
mod hooks;
mod io;
mod mbarrier;
mod misc;
mod parts;
mod phase;
mod queue;

use crate::ast::Instruction;
use crate::cx::{Block, Cx, Group, SHARED_START, Step, Wait, Warp};
use crate::decode::{Decoder, Result};
use crate::detect::Detector;
use crate::engine::unravel;
use crate::fault::{Exec, Fault};
use crate::isa::Src;
use crate::machine::{Env, Launch};
use crate::memory::View;
use crate::race::{self, AccessKind, Actor, Space};
use crate::regs::{LANES, Mask};
use crate::report::{Kind, ThreadId};
use crate::rng::Rng;

/// A decoded instruction of this family.
#[derive(Debug)]
pub enum SyncOp {
    /// `bar`, `barrier.cta`
    Bar(barrier::Bar),
    /// `bar.warp.sync`
    WarpBarrier {
        /// Lanes that meet.
        members: Src,
    },
    /// `barrier.cluster`
    ClusterBarrier(cluster::ClusterBarrierOp),
    /// `mbarrier`
    Mbarrier(mbarrier::MbarrierOp),
    /// `fence`, `membar`
    Fence(fence::FenceOp),
    /// `griddepcontrol`, `nanosleep`, `setmaxnreg`
    Misc(misc::MiscOp),
    /// `cp.async`
    Copy(cp_async::CopyOp),
    /// `cp.async.bulk`, `cp.reduce.async.bulk`
    Bulk(bulk::BulkOp),
}

/// What a warp keeps: groups of asynchronous copies, warp barriers.
#[derive(Debug, Default)]
pub struct WarpState {
    barriers: barrier::WarpBarriers,
    cluster: cluster::Arrivals,
    copies: groups::Groups,
    bulk: groups::Groups,
}

/// What a block keeps: named barriers, mbarriers, the multiprocessor it runs on.
#[derive(Debug, Default)]
pub struct BlockState {
    /// `%smid`.
    pub sm: u32,
    /// It executed `griddepcontrol.launch_dependents`.
    pub released: bool,
    barriers: [barrier::Barrier; barrier::BARRIERS as usize],
    /// Warps all of whose threads have exited.
    exited_warps: Mask,
    /// Threads that have exited, by warp.
    exited: Vec<Mask>,
    mbarriers: mbarrier::Objects,
    registers: misc::Registers,
    /// A bulk copy that a thread has issued from shared memory and not waited for before it exited.
    abandoned: Option<&'static str>,
}

impl BlockState {
    /// Of a block on this multiprocessor.
    pub fn new(sm: u32) -> BlockState {
        BlockState { sm, ..BlockState::default() }
    }

    /// The shared address of an mbarrier that these bytes overlap: writing them with anything but `mbarrier` instructions is an error as long as the object
    /// is not invalidated.
    pub fn mbarrier_at(&self, address: u32, size: u32) -> Option<u32> {
        self.mbarriers.overlapping(address, size)
    }
}

/// What a cluster keeps: its barrier, asynchronous operations in flight.
#[derive(Debug, Default)]
pub struct ClusterState {
    barrier: cluster::ClusterBarrier,
    queue: queue::Queue,
    view: View,
}

/// Decodes one.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<SyncOp> {
    let opcode: Vec<&str> = instruction.opcode.iter().map(String::as_str).collect();
    match opcode.as_slice() {
        ["barrier", "cluster", ..] => cluster::decode(decoder, instruction),
        ["bar" | "barrier", ..] => barrier::decode(decoder, instruction),
        ["mbarrier", ..] => mbarrier::decode(decoder, instruction),
        ["fence" | "membar", ..] => fence::decode(decoder, instruction),
        ["cp", "async", "bulk", ..] | ["cp", "reduce", "async", "bulk", ..] => bulk::decode(decoder, instruction),
        ["cp", "async", ..] => cp_async::decode(decoder, instruction),
        ["griddepcontrol" | "nanosleep" | "setmaxnreg", ..] => misc::decode(decoder, instruction),
        _ => Err(decoder.unknown(instruction)),
    }
}

/// Executes one.
pub fn exec(op: &SyncOp, cx: &mut Cx<'_>) -> Exec<Step> {
    match op {
        SyncOp::Bar(op) => barrier::exec(op, cx),
        SyncOp::WarpBarrier { members } => barrier::exec_warp(members, cx),
        SyncOp::ClusterBarrier(op) => cluster::exec(*op, cx),
        SyncOp::Mbarrier(op) => mbarrier::exec(op, cx),
        SyncOp::Fence(op) => fence::exec(*op, cx),
        SyncOp::Misc(op) => misc::exec(op, cx),
        SyncOp::Copy(op) => cp_async::exec(op, cx),
        SyncOp::Bulk(op) => bulk::exec(op, cx),
    }
}

/// Before an `.aligned` instruction: all live lanes of the warp must be here, and none may skip it by its guard.
fn converge(cx: &Cx<'_>) -> Exec<Option<Wait>> {
    let live = cx.warp.live;
    if cx.mask == live {
        return Ok(None);
    }
    let here = cx.warp.groups.get(cx.warp.current).map_or(0, |g| g.mask);
    let skip = here & !cx.mask & live;
    if skip != 0 {
        let message = format!("all threads of a warp must execute it together, the guard is false in lanes {skip:#010x}");
        return Err(Fault::at(Kind::Divergence, skip.trailing_zeros() as usize % LANES, message));
    }
    Ok(Some(Wait::Converge(live)))
}

/// Whether what a group waits for has come: then its instruction runs again. Polled by the engine.
pub fn satisfied(wait: &Wait, group: &Group, warp: &Warp, rank: usize, blocks: &[Block], cluster: &ClusterState) -> bool {
    match *wait {
        Wait::Barrier { id, generation } => blocks.get(rank).is_none_or(|b| barrier::passed(b, id, generation)),
        Wait::WarpBarrier { .. } => warp.sync.barriers.passed(group.mask, warp.live),
        Wait::ClusterBarrier { generation } => cluster.barrier.generation > generation,
        Wait::Mbarrier { rank, address, parity } => mbarrier::passed(blocks, rank, address, parity),
        Wait::Registers { count } => blocks.get(rank).is_none_or(|b| misc::enough_registers(b, warp.index, count)),
        Wait::Warpgroup { number } => {
            blocks.get(rank).is_none_or(|b| crate::tensor_ops::satisfied(b, warp.index as usize, number))
        }
        // The engine's own.
        Wait::Converge(_) | Wait::GridDependency => false,
    }
}

/// In words, what a group waits for: "named barrier 1: 96 of 128 threads have arrived".
pub fn describe(wait: &Wait, warp: &Warp, rank: usize, blocks: &[Block], cluster: &ClusterState) -> String {
    let Some(block) = blocks.get(rank) else { return String::new() };
    match *wait {
        Wait::Barrier { id, .. } => {
            block.sync.barriers.get(id as usize).map_or_else(String::new, |b| b.describe(id, block.sync.exited_warps))
        }
        Wait::WarpBarrier { members, .. } => warp.sync.barriers.describe(members, warp.live),
        Wait::ClusterBarrier { .. } => cluster.barrier.describe(),
        Wait::Mbarrier { rank, address, parity } => mbarrier::describe(blocks, rank, address, parity),
        Wait::Registers { count } => misc::describe(block, warp.index, count),
        Wait::Converge(mask) => format!("waits for lanes {mask:#010x} of its warp"),
        Wait::GridDependency => "waits for the launches before it".into(),
        Wait::Warpgroup { number } => crate::tensor_ops::describe(block, warp.index as usize, number),
    }
}

/// Asynchronous operations in flight that could complete now.
pub fn pending(cluster: &ClusterState) -> usize {
    cluster.queue.len()
}

/// Carries one asynchronous operation in flight on, chosen by `rng`; false when there is none.
pub fn advance(
    env: &Env,
    launch: &Launch,
    blocks: &mut [Block],
    cluster: &mut ClusterState,
    detector: Option<&mut Detector>,
    rng: &mut Rng,
) -> Exec<bool> {
    let mut world = io::World { env, launch, blocks, detector, view: &mut cluster.view };
    cluster.queue.advance(&mut world, rng)
}

/// Called when threads of a warp exit: barriers no longer wait for them.
pub fn exited(
    launch: &Launch,
    blocks: &mut [Block],
    cluster: &mut ClusterState,
    rank: usize,
    warp: &Warp,
    detector: Option<&mut Detector>,
) -> Exec {
    let alone = blocks.len() == 1;
    let Some(block) = blocks.get_mut(rank) else { return Ok(()) };
    let warps = block.warps.len();
    let state = &mut block.sync;
    state.exited.resize(warps, 0);
    let gone = warp.exists & !warp.live;
    let Some(before) = state.exited.get_mut(warp.index as usize) else { return Ok(()) };
    let newly = gone & !std::mem::replace(before, gone);
    barrier::exited(state, warp);
    cluster::exited(cluster, warp, newly);
    if let Some(open) = warp.sync.bulk.open.iter().find(|o| o.lanes & !o.read & newly != 0) {
        state.abandoned = Some(open.what);
    }
    if warp.live == 0 {
        misc::exited(block, warp.index)?;
    }
    if block.live_threads == 0 {
        block_exited(block, cluster, rank)?;
        if !alone && let Some(detector) = detector {
            others_are_done(launch, block, detector)?;
        }
    }
    Ok(())
}

/// The last thread of a block has exited: nothing may touch its shared memory any more.
fn block_exited(block: &Block, cluster: &ClusterState, rank: usize) -> Exec {
    if let Some(operation) = cluster.queue.iter().find(|o| o.touches(rank) && !matches!(o.body, queue::Body::Lanes { .. })) {
        let message = format!("the block ends while {} from or to its shared memory is in flight", operation.what);
        return Err(Fault::new(Kind::EarlyExit, message));
    }
    if let Some(what) = block.sync.abandoned {
        let message = format!("the block ends, and a thread that issued {what} from its shared memory has not waited for it");
        return Err(Fault::new(Kind::EarlyExit, message));
    }
    if let Some(address) = block.sync.mbarriers.unwaited() {
        let message = format!(
            "the block ends, and no thread has waited for the asynchronous copies that complete on the mbarrier at shared address {address:#x}"
        );
        return Err(Fault::new(Kind::EarlyExit, message));
    }
    Ok(())
}

/// A block of a cluster has exited: what the others do with its shared memory must be ordered before that, or it may find the memory gone.
fn others_are_done(launch: &Launch, block: &Block, detector: &mut Detector) -> Exec {
    // Bytes checked at a time: of each such part, one access is reported.
    const PART: u32 = 4096;
    let Some(id) = block.race else { return Ok(()) };
    let [x, y, z] = block.index.map(u64::from);
    let [width, height, _] = launch.grid.map(u64::from);
    let own = x + width * (y + height * z);
    // The end of the block is after all that its threads did and know.
    let members: Vec<(u32, Mask)> = (0..).zip(block.sync.exited.iter().copied()).collect();
    detector.race.barrier(id, &members, None)?;
    let first = crate::race::Warp { block: id, index: 0 };
    for address in (SHARED_START..launch.shared_size).step_by(PART as usize) {
        let bytes = u64::from((launch.shared_size - address).min(PART));
        let space = Space::Shared(id);
        let Err(report) = detector.race.access_range(first, 0, space, u64::from(address), bytes, AccessKind::Write, u32::MAX)
        else {
            continue;
        };
        let race::Report::Race(found) = *report else { return Err(report.into()) };
        let (Actor::Thread { block: theirs, warp, lane, .. } | Actor::Agent { block: theirs, warp, lane, .. }) =
            found.first.actor
        else {
            continue;
        };
        // What a block leaves unfinished in its own memory is no business of others.
        if theirs == own {
            continue;
        }
        let who = ThreadId {
            device: launch.device,
            block: unravel(theirs, launch.grid),
            thread: unravel(u64::from(warp) * LANES as u64 + u64::from(lane), launch.block),
        };
        let message = format!(
            "{who} accesses shared memory at {:#x} of another block of its cluster, ({}, {}, {}), which may have ended: nothing orders the access before its end",
            found.address, block.index[0], block.index[1], block.index[2]
        );
        let mut fault = Fault::new(Kind::EarlyExit, message);
        fault.thread = Some(who);
        fault.site = Some(found.first.site);
        return Err(fault);
    }
    Ok(())
}
