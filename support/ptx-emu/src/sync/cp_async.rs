//! `cp.async`: copies of 4, 8 or 16 bytes a thread from global to shared memory, their groups, and their arrival at mbarriers (PTX ISA 9.0,
//! sections 9.7.9.25.3 and 9.7.13.15.17).

use super::SyncOp;
use super::groups::{self, Open, WaitGroup};
use super::io::{Use, world};
use super::mbarrier;
use super::parts::{Parts, SharedAddr, Window, places, shared_addr};
use super::queue::{Body, Family, LaneCopy, Operation, at_once};
use crate::ast::{Instruction, Type};
use crate::cx::{Cx, Step};
use crate::decode::{Decoder, Result};
use crate::fault::{Exec, Fault};
use crate::isa::{Addr, PredSrc, Src};
use crate::race::{Access, AccessKind, AgentId, AgentKind, Proxy, Sem, Space};
use crate::regs::{LANES, Mask, lanes};
use crate::report::Kind;

/// `cp.async` and what belongs to it.
#[derive(Debug)]
pub enum CopyOp {
    /// The copy.
    Copy {
        /// Destination.
        to: SharedAddr,
        /// Source.
        from: Addr,
        /// Bytes written.
        size: u32,
        /// Bytes read; all where None.
        read: Option<Src>,
        /// Nothing is read where it holds.
        ignore: Option<PredSrc>,
    },
    /// `commit_group`
    Commit,
    /// `wait_group`
    Wait(u32),
    /// `wait_all`
    WaitAll,
    /// `mbarrier.arrive`
    Arrive {
        /// The mbarrier.
        at: SharedAddr,
        /// `.noinc`
        counted: bool,
    },
}

/// Decodes one.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<SyncOp> {
    let mut parts = Parts::new(instruction, 2);
    let operands = instruction.operands.as_slice();
    let op = if parts.take("commit_group") {
        CopyOp::Commit
    } else if parts.take("wait_all") {
        CopyOp::WaitAll
    } else if parts.take("wait_group") {
        let [n] = operands else { return Err(decoder.error("cp.async.wait_group takes a number")) };
        CopyOp::Wait(u32::try_from(decoder.literal(n)?).unwrap_or(u32::MAX))
    } else if parts.take("mbarrier") {
        let window = parts.shared_window();
        if !(parts.take("arrive") && parts.take("b64")) || window == Window::Cluster {
            return Err(decoder.unknown(instruction));
        }
        let counted = parts.take("noinc");
        let [at] = operands else { return Err(decoder.error("cp.async.mbarrier.arrive takes an address")) };
        CopyOp::Arrive { at: shared_addr(decoder, at, window)?, counted }
    } else {
        copy(decoder, instruction, &mut parts)?
    };
    if !parts.done() {
        return Err(decoder.unknown(instruction));
    }
    if matches!(op, CopyOp::Commit | CopyOp::WaitAll) && !operands.is_empty() {
        return Err(decoder.error("this instruction takes no operands"));
    }
    Ok(SyncOp::Copy(op))
}

fn copy(decoder: &mut Decoder<'_>, instruction: &Instruction, parts: &mut Parts<'_>) -> Result<CopyOp> {
    let all = parts.take("ca");
    if !all && !parts.take("cg") {
        return Err(decoder.unknown(instruction));
    }
    if !(parts.take("shared") || parts.take("shared::cta")) || !parts.take("global") {
        return Err(decoder.unknown(instruction));
    }
    let hint = parts.take("L2::cache_hint");
    let _prefetch = parts.take("L2::64B") || parts.take("L2::128B") || parts.take("L2::256B");
    let [to, from, size, rest @ ..] = instruction.operands.as_slice() else {
        return Err(decoder.error("cp.async takes a destination, a source and a size"));
    };
    let to = shared_addr(decoder, to, Window::Cta)?;
    let from = decoder.addr(from)?;
    let size = match (decoder.literal(size)?, all) {
        (size @ (4 | 8), true) => size as u32,
        (16, _) => 16,
        (size, _) => return Err(decoder.error(format!("cp.async of {size} bytes: .ca takes 4, 8 or 16, .cg 16"))),
    };
    let rest = match (hint, rest) {
        (true, [rest @ .., policy]) => {
            decoder.src(policy, Type::B64)?;
            rest
        }
        (false, rest) => rest,
        (true, []) => return Err(decoder.error("a cache policy is missing")),
    };
    let (mut read, mut ignore) = (None, None);
    match rest {
        [] => {}
        [operand] => match decoder.pred_src(operand) {
            Ok(pred) => ignore = Some(pred),
            Err(_) => read = Some(decoder.src(operand, Type::U32)?),
        },
        _ => return Err(decoder.error("too many operands of cp.async")),
    }
    Ok(CopyOp::Copy { to, from, size, read, ignore })
}

/// Executes one.
pub fn exec(op: &CopyOp, cx: &mut Cx<'_>) -> Exec<Step> {
    match op {
        CopyOp::Copy { to, from, size, read, ignore } => {
            issue(cx, to, from, *size, read.as_ref(), *ignore)?;
            return Ok(Step::Next);
        }
        CopyOp::Commit => groups::commit(cx, Family::Copies),
        CopyOp::Wait(remain) => groups::wait(cx, WaitGroup { family: Family::Copies, remain: *remain, read: false })?,
        CopyOp::WaitAll => {
            groups::commit(cx, Family::Copies);
            groups::wait(cx, WaitGroup { family: Family::Copies, remain: 0, read: false })?;
        }
        CopyOp::Arrive { at, counted } => arrive(cx, at, *counted)?,
    }
    Ok(Step::Next)
}

fn issue(cx: &mut Cx<'_>, to: &SharedAddr, from: &Addr, size: u32, read: Option<&Src>, ignore: Option<PredSrc>) -> Exec {
    const WHAT: &str = "cp.async";
    let targets = places(cx, to, u64::from(size), size, WHAT)?;
    let sources = cx.address(from);
    let wanted = read.map(|read| cx.get32(read));
    let ignored = ignore.map_or(0, |ignore| cx.pred(ignore));
    let mut reads = [0u32; LANES];
    let mut copies = Vec::with_capacity(targets.len());
    let site = cx.site;
    for &(lane, place) in &targets {
        let read = match wanted {
            _ if ignored & (1 << lane) != 0 => 0,
            Some(wanted) => wanted[lane],
            None => size,
        };
        if read > size {
            let message = format!("{WHAT} reads {read} bytes and writes {size}");
            return Err(Fault::at(Kind::IllegalOperand, lane, message));
        }
        if read > 0 && !sources[lane].is_multiple_of(u64::from(size)) {
            let message = format!("{WHAT}: global address {:#x} is not a multiple of {size}", sources[lane]);
            return Err(Fault::at(Kind::Misaligned, lane, message));
        }
        reads[lane] = read;
        let (mut world, _) = world(cx);
        world.check_global(site, sources[lane], u64::from(read), Use::Read, WHAT).map_err(|mut fault| {
            fault.lane = Some(lane);
            fault
        })?;
        if let Some(object) = world.blocks[place.rank].sync.mbarrier_at(place.address, size) {
            let message = format!("{WHAT} writes the mbarrier at shared address {object:#x}");
            return Err(Fault::at(Kind::BarrierMisuse, lane, message));
        }
        copies.push((lane, LaneCopy { from: sources[lane], to: place.address, bytes: size as u8, read: read as u8 }));
    }
    let mut shared = [0u64; LANES];
    targets.iter().for_each(|&(lane, place)| shared[lane] = u64::from(place.address));
    for (group, mask) in cx.warp.sync.copies.split(cx.mask) {
        let agent = agent(cx, group, mask)?;
        if let Some(agent) = agent {
            tell(cx, agent, mask, &sources, &reads, &shared, size)?;
        }
        let list = copies.iter().filter(|(lane, _)| mask & (1 << lane) != 0).map(|&(_, copy)| copy).collect();
        let operation = Operation {
            body: Body::Lanes { copies: list },
            rank: cx.rank,
            warp: cx.warp.index,
            lanes: mask,
            family: Family::Copies,
            group,
            agent,
            site,
            what: WHAT,
        };
        let (mut world, queue) = world(cx);
        for &(_, place) in targets.iter().filter(|(lane, _)| mask & (1 << lane) != 0) {
            world.announce_shared(place, u64::from(size));
        }
        queue.push(operation);
        if at_once(&world) {
            queue.complete_last(&mut world)?;
        }
    }
    Ok(())
}

/// The detector's name for the group that these lanes issue into.
fn agent(cx: &mut Cx<'_>, group: u32, mask: Mask) -> Exec<Option<AgentId>> {
    let Some(warp) = cx.race_warp() else { return Ok(None) };
    let Some(detector) = cx.detector.as_deref_mut() else { return Ok(None) };
    if let Some(Open { agent: Some(agent), .. }) = cx.warp.sync.copies.growing(group, mask) {
        detector.race.agent_reissue(*agent, &[(warp, mask)])?;
        return Ok(Some(*agent));
    }
    groups::prune(&mut cx.warp.sync.copies, cx.cluster, detector, (cx.rank, warp.index));
    let agent = detector.race.agent_issue(AgentKind::CpAsync, Proxy::Generic, &[(warp, mask)], true)?;
    let open = Open { lanes: mask, read: 0, group, agent: Some(agent), growing: true, what: "cp.async" };
    cx.warp.sync.copies.open.push(open);
    Ok(Some(agent))
}

fn tell(
    cx: &mut Cx<'_>,
    agent: AgentId,
    mask: Mask,
    sources: &[u64; LANES],
    reads: &[u32; LANES],
    shared: &[u64; LANES],
    size: u32,
) -> Exec {
    let owner = cx.blocks[cx.rank].race;
    let (Some(detector), Some(owner)) = (cx.detector.as_deref_mut(), owner) else { return Ok(()) };
    let mut rest = mask & lanes(mask).filter(|&l| reads[l] > 0).fold(0, |m: Mask, l| m | 1 << l);
    while rest != 0 {
        let bytes = reads[rest.trailing_zeros() as usize];
        let same = lanes(rest).filter(|&l| reads[l] == bytes).fold(0, |m: Mask, l| m | 1 << l);
        rest &= !same;
        let access = Access {
            space: Space::Global,
            kind: AccessKind::Read,
            sem: Sem::WEAK,
            mask: same,
            addresses: sources,
            size: bytes,
            element: bytes,
            site: cx.site,
            agree: None,
        };
        detector.race.agent_access_lanes(agent, &access)?;
    }
    let access = Access {
        space: Space::Shared(owner),
        kind: AccessKind::Write,
        sem: Sem::WEAK,
        mask,
        addresses: shared,
        size,
        element: size,
        site: cx.site,
        agree: None,
    };
    Ok(detector.race.agent_access_lanes(agent, &access)?)
}

/// `cp.async.mbarrier.arrive`: without `.noinc` the phase first expects one arrival more, so that `init` need not count it.
fn arrive(cx: &mut Cx<'_>, at: &SharedAddr, counted: bool) -> Exec {
    const WHAT: &str = "cp.async.mbarrier.arrive";
    let list = places(cx, at, 8, 8, WHAT)?;
    for &(lane, place) in &list {
        if counted {
            mbarrier::exists(cx.blocks, place, lane, WHAT)?;
        } else {
            mbarrier::add_pending(cx, lane, place, WHAT)?;
        }
    }
    let agents = cx.warp.sync.copies.seal(cx.mask);
    let operation = Operation {
        body: Body::Arrive { places: list.into_iter().map(|(_, place)| place).collect(), agents },
        rank: cx.rank,
        warp: cx.warp.index,
        lanes: cx.mask,
        family: Family::Copies,
        group: 0,
        agent: None,
        site: cx.site,
        what: WHAT,
    };
    let (mut world, queue) = world(cx);
    queue.push(operation);
    if at_once(&world) {
        queue.complete_last(&mut world)?;
    }
    Ok(())
}
