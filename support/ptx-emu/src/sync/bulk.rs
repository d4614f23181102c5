//! Bulk asynchronous copies: `cp.async.bulk`, `cp.reduce.async.bulk` and their tensor forms (PTX ISA 9.0, section 9.7.9.25.4 and 9.7.9.25.5). What a
//! tensor map says is in [`crate::tma`].

use super::SyncOp;
use super::groups::{self, Open, WaitGroup};
use super::io::{Use, World, world};
use super::mbarrier;
use super::parts::{Parts, Place, SharedAddr, Window, check_shared, locate, shared_addr};
use super::queue::{Body, Family, Operation, Piece, at_once};
use crate::ast::{Instruction, Operand, Type};
use crate::cx::{Cx, PARAM_WINDOW, Step, WINDOW};
use crate::decode::{Decoder, Result};
use crate::fault::{Exec, Fault};
use crate::isa::{Addr, Src};
use crate::race::{AccessKind, AgentAccess, AgentId, AgentKind, Order, Proxy, Scope, Sem, Space};
use crate::regs::lanes;
use crate::report::Kind;
use crate::tma::{ReduceOp, ReduceType, Reduction, TENSOR_MAP_ALIGN, TENSOR_MAP_BYTES, TensorMap, check_bulk_copy};
use std::collections::VecDeque;

/// A box of a tensor in global memory.
#[derive(Debug)]
pub struct Tensor {
    map: Addr,
    coordinates: Vec<Src>,
}

/// Global memory, linear or by a tensor map.
#[derive(Debug)]
pub enum Global {
    /// An address.
    Linear(Addr),
    /// A box.
    Tensor(Tensor),
}

/// Where a load comes from.
#[derive(Debug)]
pub enum Source {
    /// Global memory.
    Global(Global),
    /// The executing block's shared memory.
    Shared(SharedAddr),
}

/// `cp.async.bulk` and what belongs to it.
#[derive(Debug)]
pub enum BulkOp {
    /// To shared memory.
    Load {
        /// Source.
        from: Source,
        /// Destination.
        to: SharedAddr,
        /// Bytes; None with a tensor.
        size: Option<Src>,
        /// The mbarrier.
        mbarrier: SharedAddr,
        /// `.multicast::cluster`
        multicast: Option<Src>,
        /// `cp.reduce`
        reduction: Option<Reduction>,
    },
    /// To global memory.
    Store {
        /// Source.
        from: SharedAddr,
        /// Destination.
        to: Global,
        /// Bytes; None with a tensor.
        size: Option<Src>,
        /// `cp.reduce`
        reduction: Option<Reduction>,
        /// `cp.reduce` of a tensor, whose type says which reduction it is.
        operation: Option<ReduceOp>,
    },
    /// `prefetch`
    Prefetch {
        /// What.
        from: Global,
        /// Bytes; None with a tensor.
        size: Option<Src>,
    },
    /// `commit_group`
    Commit,
    /// `wait_group`
    Wait {
        /// Groups that may remain.
        remain: u32,
        /// `.read`
        read: bool,
    },
}

const OPERATIONS: [(&str, ReduceOp); 8] = [
    ("add", ReduceOp::Add),
    ("min", ReduceOp::Min),
    ("max", ReduceOp::Max),
    ("inc", ReduceOp::Inc),
    ("dec", ReduceOp::Dec),
    ("and", ReduceOp::And),
    ("or", ReduceOp::Or),
    ("xor", ReduceOp::Xor),
];

const TYPES: [(&str, ReduceType); 10] = [
    ("u32", ReduceType::U32),
    ("s32", ReduceType::S32),
    ("u64", ReduceType::U64),
    ("s64", ReduceType::S64),
    ("b32", ReduceType::B32),
    ("b64", ReduceType::B64),
    ("f16", ReduceType::F16),
    ("bf16", ReduceType::Bf16),
    ("f32", ReduceType::F32),
    ("f64", ReduceType::F64),
];

/// Decodes `cp.async.bulk` and `cp.reduce.async.bulk`.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<SyncOp> {
    let reduce = instruction.opcode.get(1).is_some_and(|part| part == "reduce");
    let mut parts = Parts::new(instruction, if reduce { 4 } else { 3 });
    let operands = instruction.operands.as_slice();
    if !reduce && parts.take("commit_group") {
        if !(parts.done() && operands.is_empty()) {
            return Err(decoder.unknown(instruction));
        }
        return Ok(SyncOp::Bulk(BulkOp::Commit));
    }
    if !reduce && parts.take("wait_group") {
        let read = parts.take("read");
        let ([n], true) = (operands, parts.done()) else { return Err(decoder.unknown(instruction)) };
        let remain = u32::try_from(decoder.literal(n)?).unwrap_or(u32::MAX);
        return Ok(SyncOp::Bulk(BulkOp::Wait { remain, read }));
    }
    let prefetch = !reduce && parts.take("prefetch");
    let dimensions = if parts.take("tensor") {
        let Some(d) = parts.one_of(&[("1d", 1usize), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)]) else {
            return Err(decoder.unknown(instruction));
        };
        parts.take("tile");
        Some(d)
    } else {
        None
    };
    let hint = parts.take("L2::cache_hint");
    if prefetch {
        if !(parts.take("L2") && parts.take("global") && parts.done()) {
            return Err(decoder.unknown(instruction));
        }
        let operands = without_policy(decoder, operands, hint)?;
        let op = match (dimensions, operands) {
            (Some(d), [map]) => BulkOp::Prefetch { from: Global::Tensor(tensor(decoder, map, d)?), size: None },
            (None, [from, size]) => {
                let from = Global::Linear(decoder.addr(from)?);
                BulkOp::Prefetch { from, size: Some(decoder.src(size, Type::U32)?) }
            }
            _ => return Err(decoder.error("wrong number of operands of a bulk prefetch")),
        };
        return Ok(SyncOp::Bulk(op));
    }
    let spaces = (instruction.opcode.iter().map(String::as_str))
        .filter(|part| matches!(*part, "global" | "shared::cta" | "shared::cluster"))
        .collect::<Vec<_>>();
    for space in &spaces {
        parts.take(space);
    }
    let operation = if reduce {
        match parts.one_of(&OPERATIONS) {
            Some(operation) => Some(operation),
            None => return Err(decoder.unknown(instruction)),
        }
    } else {
        None
    };
    let to_global = matches!(spaces.as_slice(), ["global", "shared::cta"]);
    let mut reduction = None;
    if let (Some(operation), None) = (operation, dimensions) {
        let Some(ty) = parts.one_of(&TYPES) else { return Err(decoder.unknown(instruction)) };
        // Additions of the 16-bit types say that they keep subnormals; others have no such part.
        let small = matches!(ty, ReduceType::F16 | ReduceType::Bf16) && operation == ReduceOp::Add;
        if small != parts.take("noftz") {
            return Err(decoder.unknown(instruction));
        }
        reduction = Some(Reduction::new(operation, ty, !to_global).map_err(|e| decoder.error(e.to_string()))?);
    }
    let op = if to_global {
        if !(parts.take("bulk_group") && parts.done()) {
            return Err(decoder.unknown(instruction));
        }
        let operands = without_policy(decoder, operands, hint)?;
        store(decoder, operands, dimensions, reduction, operation)?
    } else {
        let multicast = parts.take("multicast::cluster");
        if !(parts.take("mbarrier::complete_tx::bytes") && parts.done()) {
            return Err(decoder.unknown(instruction));
        }
        let window = match spaces.as_slice() {
            ["shared::cluster", "global"] if !reduce => Window::Cluster,
            ["shared::cta", "global"] if !reduce && !multicast => Window::Cta,
            ["shared::cluster", "shared::cta"] if dimensions.is_none() && !multicast && !hint => Window::Cluster,
            _ => return Err(decoder.unknown(instruction)),
        };
        let shared = spaces.get(1) == Some(&"shared::cta");
        let operands = without_policy(decoder, operands, hint)?;
        load(decoder, operands, dimensions, reduction, window, shared, multicast)?
    };
    Ok(SyncOp::Bulk(op))
}

/// The operands without the cache policy, which must be the last one.
fn without_policy<'o>(decoder: &mut Decoder<'_>, operands: &'o [Operand], hint: bool) -> Result<&'o [Operand]> {
    match (hint, operands) {
        (false, all) => Ok(all),
        (true, [rest @ .., policy]) => {
            decoder.src(policy, Type::B64)?;
            Ok(rest)
        }
        (true, []) => Err(decoder.error("a cache policy is missing")),
    }
}

fn tensor(decoder: &mut Decoder<'_>, operand: &Operand, dimensions: usize) -> Result<Tensor> {
    let (map, rest) = decoder.addr_with(operand)?;
    let [Operand::Vector(list)] = rest else { return Err(decoder.error("a tensor copy takes [map, {coordinates}]")) };
    if list.len() != dimensions {
        return Err(decoder.error(format!("{} coordinates of a tensor of {dimensions} dimensions", list.len())));
    }
    let coordinates = list.iter().map(|c| decoder.src(c, Type::S32)).collect::<Result<Vec<_>>>()?;
    Ok(Tensor { map, coordinates })
}

fn load(
    decoder: &mut Decoder<'_>,
    operands: &[Operand],
    dimensions: Option<usize>,
    reduction: Option<Reduction>,
    window: Window,
    shared: bool,
    multicast: bool,
) -> Result<BulkOp> {
    let (operands, multicast) = match (multicast, operands) {
        (false, all) => (all, None),
        (true, [rest @ .., mask]) => (rest, Some(decoder.src(mask, Type::U16)?)),
        (true, []) => return Err(decoder.error("the mask of blocks is missing")),
    };
    let (to, from, size, mbarrier) = match (dimensions, operands) {
        (Some(d), [to, map, mbarrier]) => (to, Source::Global(Global::Tensor(tensor(decoder, map, d)?)), None, mbarrier),
        (None, [to, from, size, mbarrier]) => {
            let from = if shared {
                Source::Shared(shared_addr(decoder, from, Window::Cta)?)
            } else {
                Source::Global(Global::Linear(decoder.addr(from)?))
            };
            (to, from, Some(decoder.src(size, Type::U32)?), mbarrier)
        }
        _ => return Err(decoder.error("wrong number of operands of a bulk copy")),
    };
    let to = shared_addr(decoder, to, window)?;
    let mbarrier = shared_addr(decoder, mbarrier, window)?;
    Ok(BulkOp::Load { from, to, size, mbarrier, multicast, reduction })
}

fn store(
    decoder: &mut Decoder<'_>,
    operands: &[Operand],
    dimensions: Option<usize>,
    reduction: Option<Reduction>,
    operation: Option<ReduceOp>,
) -> Result<BulkOp> {
    let (to, from, size) = match (dimensions, operands) {
        (Some(d), [map, from]) => (Global::Tensor(tensor(decoder, map, d)?), from, None),
        (None, [to, from, size]) => (Global::Linear(decoder.addr(to)?), from, Some(decoder.src(size, Type::U32)?)),
        _ => return Err(decoder.error("wrong number of operands of a bulk copy")),
    };
    Ok(BulkOp::Store { from: shared_addr(decoder, from, Window::Cta)?, to, size, reduction, operation })
}

/// Executes one: each executing thread issues an operation of its own.
pub fn exec(op: &BulkOp, cx: &mut Cx<'_>) -> Exec<Step> {
    match op {
        BulkOp::Commit => groups::commit(cx, Family::Bulk),
        BulkOp::Wait { remain, read } => {
            groups::wait(cx, WaitGroup { family: Family::Bulk, remain: *remain, read: *read })?;
        }
        BulkOp::Prefetch { from, size } => {
            let sizes = size.as_ref().map(|size| cx.get32(size));
            for lane in lanes(cx.mask) {
                blame(prefetch(cx, lane, from, sizes.map(|s| s[lane])), lane)?;
            }
        }
        BulkOp::Load { .. } => {
            for lane in lanes(cx.mask) {
                blame(issue_load(cx, lane, op), lane)?;
            }
        }
        BulkOp::Store { .. } => {
            for lane in lanes(cx.mask) {
                blame(issue_store(cx, lane, op), lane)?;
            }
        }
    }
    Ok(Step::Next)
}

fn blame<T>(result: Exec<T>, lane: usize) -> Exec<T> {
    result.map_err(|mut fault| {
        fault.lane = fault.lane.or(Some(lane));
        fault
    })
}

fn illegal(message: impl std::fmt::Display) -> Box<Fault> {
    Fault::new(Kind::IllegalOperand, message.to_string())
}

fn check_linear(to: u64, from: u64, size: u32) -> Exec {
    check_bulk_copy(to, from, size).map_err(|e| {
        let kind = if size.is_multiple_of(16) { Kind::Misaligned } else { Kind::IllegalOperand };
        Fault::new(kind, e.to_string())
    })
}

/// The tensor map that a thread names.
fn read_map(cx: &mut Cx<'_>, lane: usize, tensor: &Tensor) -> Exec<TensorMap> {
    let address = cx.address(&tensor.map)[lane];
    if !address.is_multiple_of(TENSOR_MAP_ALIGN as u64) {
        let message = format!("a tensor map at {address:#x}, which is not a multiple of {TENSOR_MAP_ALIGN}");
        return Err(Fault::new(Kind::Misaligned, message));
    }
    let mut bytes = [0; TENSOR_MAP_BYTES];
    match address.checked_sub(PARAM_WINDOW) {
        Some(offset) if offset < WINDOW => {
            let at = offset as usize;
            match cx.launch.params.get(at..at + TENSOR_MAP_BYTES) {
                Some(found) => bytes.copy_from_slice(found),
                None => {
                    let message = format!("a tensor map at byte {at} of {} bytes of parameters", cx.launch.params.len());
                    return Err(Fault::new(Kind::OutOfBounds, message));
                }
            }
        }
        _ => {
            let site = cx.site;
            let (mut world, _) = world(cx);
            world.check_global(site, address, TENSOR_MAP_BYTES as u64, Use::Read, "a tensor map")?;
            world.read_global(site, address, &mut bytes)?;
        }
    }
    TensorMap::decode(&bytes).map_err(|e| illegal(format!("the tensor map at {address:#x}: {e}")))
}

fn coordinates(cx: &Cx<'_>, lane: usize, tensor: &Tensor) -> Vec<i32> {
    tensor.coordinates.iter().map(|c| cx.get32(c)[lane] as i32).collect()
}

/// The bytes of a box, and the map.
fn tile(cx: &mut Cx<'_>, lane: usize, tensor: &Tensor, shared: u32) -> Exec<(TensorMap, crate::tma::Tile)> {
    let map = read_map(cx, lane, tensor)?;
    let coordinates = coordinates(cx, lane, tensor);
    let tile = map.tile(shared, &coordinates, cx.launch.shared_size).map_err(|e| {
        let kind = match e {
            crate::tma::TileError::SharedAlign { .. } => Kind::Misaligned,
            crate::tma::TileError::SharedOutOfBounds { .. } => Kind::OutOfBounds,
            crate::tma::TileError::Unsupported(_) => Kind::Unsupported,
            _ => Kind::IllegalOperand,
        };
        Fault::new(kind, e.to_string())
    })?;
    Ok((map, tile))
}

/// Ranges of addresses, neighbours merged.
fn merged(ranges: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut all: Vec<(u64, u64)> = ranges.filter(|r| r.1 > 0).collect();
    all.sort_unstable();
    let mut list: Vec<(u64, u64)> = vec![];
    for (at, len) in all {
        match list.last_mut() {
            Some(last) if last.0 + last.1 >= at => last.1 = last.1.max(at + len - last.0),
            _ => list.push((at, len)),
        }
    }
    list
}

fn linear_piece(global: u64, shared: u32, bytes: u32) -> VecDeque<Piece> {
    let piece =
        |at: u32| Piece { global: global + u64::from(at), shared: shared + at, bytes: (bytes - at).min(PART), fill: false };
    (0..bytes).step_by(PART as usize).map(piece).collect()
}

/// Bytes of the parts in which a linear copy lands.
const PART: u32 = 512;

fn prefetch(cx: &mut Cx<'_>, lane: usize, from: &Global, size: Option<u32>) -> Exec {
    match from {
        Global::Linear(addr) => {
            let address = cx.address(addr)[lane];
            check_linear(0, address, size.unwrap_or(0))
        }
        Global::Tensor(tensor) => {
            let map = read_map(cx, lane, tensor)?;
            if map.rank() != tensor.coordinates.len() {
                return Err(illegal(format!(
                    "the instruction has {} coordinates, the tensor map has {} dimensions",
                    tensor.coordinates.len(),
                    map.rank()
                )));
            }
            Ok(())
        }
    }
}

/// The blocks of a multicast.
fn receivers(cx: &Cx<'_>, lane: usize, multicast: &Src) -> Exec<Vec<usize>> {
    let mask = cx.get32(multicast)[lane] & 0xffff;
    let blocks = cx.blocks.len();
    if mask == 0 || mask >> blocks.min(31) != 0 {
        return Err(illegal(format!("a multicast to the blocks {mask:#06x} of a cluster of {blocks}")));
    }
    Ok(lanes(mask).collect())
}

fn issue_load(cx: &mut Cx<'_>, lane: usize, op: &BulkOp) -> Exec {
    let BulkOp::Load { from, to, size, mbarrier, multicast, reduction } = op else { return Ok(()) };
    let what = match (from, reduction) {
        (_, Some(_)) => "cp.reduce.async.bulk",
        (Source::Global(Global::Tensor(_)), None) => "cp.async.bulk.tensor",
        _ => "cp.async.bulk",
    };
    let target = locate(cx, cx.address(&to.addr)[lane], to.window, lane, what)?;
    let object = locate(cx, cx.address(&mbarrier.addr)[lane], mbarrier.window, lane, what)?;
    let ranks = match multicast {
        Some(multicast) => receivers(cx, lane, multicast)?,
        None if object.rank != target.rank => {
            let message = format!(
                "{what}: the destination is in block {} of the cluster, the mbarrier in block {}; they must be in the same one",
                target.rank, object.rank
            );
            return Err(Fault::new(Kind::BarrierMisuse, message));
        }
        None => vec![target.rank],
    };
    let mut map = None;
    let mut source = None;
    let pieces: VecDeque<Piece> = match from {
        Source::Global(Global::Tensor(tensor)) => {
            let (found, tile) = tile(cx, lane, tensor, target.address)?;
            let runs = tile.runs.iter().map(|r| Piece { global: r.global, shared: r.shared, bytes: r.bytes, fill: false });
            let fills = tile.fills.iter().map(|f| Piece { global: 0, shared: f.shared, bytes: f.bytes, fill: true });
            map = Some(Box::new(found));
            runs.chain(fills).collect()
        }
        Source::Global(Global::Linear(addr)) => {
            let (address, bytes) = (cx.address(addr)[lane], size.as_ref().map_or(0, |s| cx.get32(s)[lane]));
            check_linear(u64::from(target.address), address, bytes)?;
            if address.checked_add(u64::from(bytes)).is_none() {
                return Err(Fault::new(Kind::OutOfBounds, format!("{what}: {bytes} bytes at {address:#x}")));
            }
            check_shared(cx, target, u64::from(bytes), 16, lane, what)?;
            linear_piece(address, target.address, bytes)
        }
        Source::Shared(addr) => {
            let place = locate(cx, cx.address(&addr.addr)[lane], addr.window, lane, what)?;
            let bytes = size.as_ref().map_or(0, |s| cx.get32(s)[lane]);
            check_linear(u64::from(target.address), u64::from(place.address), bytes)?;
            check_shared(cx, place, u64::from(bytes), 16, lane, what)?;
            check_shared(cx, target, u64::from(bytes), 16, lane, what)?;
            source = Some(place.rank);
            linear_piece(u64::from(place.address), target.address, bytes)
        }
    };
    let writes = merged(pieces.iter().map(|p| (u64::from(p.shared), u64::from(p.bytes))));
    let reads = merged(pieces.iter().filter(|p| !p.fill).map(|p| (p.global, u64::from(p.bytes))));
    for &rank in &ranks {
        for &(at, len) in &writes {
            let place = Place { rank, address: at as u32 };
            check_shared(cx, place, len, 1, lane, what)?;
            if let Some(hit) = cx.blocks[rank].sync.mbarrier_at(at as u32, len as u32) {
                let message = format!("{what} writes the mbarrier at shared address {hit:#x} of block {rank} of the cluster");
                return Err(Fault::new(Kind::BarrierMisuse, message));
            }
        }
        let object = Place { rank, address: object.address };
        check_shared(cx, object, 8, 8, lane, what)?;
        mbarrier::exists(cx.blocks, object, lane, what)?;
    }
    let site = cx.site;
    let agent = agent(cx, lane, map.is_some())?;
    let (mut world, _) = world(cx);
    for &(at, len) in &reads {
        match source {
            Some(rank) => world.check_defined(Place { rank, address: at as u32 }, len, what)?,
            None => world.check_global(site, at, len, Use::Read, what)?,
        }
    }
    let space = source.map_or(Some(Space::Global), |rank| world.blocks[rank].race.map(Space::Shared));
    tell(&mut world, agent, space, AccessKind::Read, None, site, &reads)?;
    let element = reduction.map(|r| r.element_bytes());
    let kind = if reduction.is_some() { AccessKind::ReadWrite } else { AccessKind::Write };
    for &rank in &ranks {
        if reduction.is_some() {
            for &(at, len) in &writes {
                world.check_defined(Place { rank, address: at as u32 }, len, what)?;
            }
        }
        let space = world.blocks[rank].race.map(Space::Shared);
        tell(&mut world, agent, space, kind, element, site, &writes)?;
        for &(at, len) in &writes {
            world.announce_shared(Place { rank, address: at as u32 }, len);
        }
    }
    let body = Body::Load { pieces, from: source, to: ranks, mbarrier: object.address, map, reduction: *reduction };
    push(cx, lane, body, 0, agent, what)
}

fn issue_store(cx: &mut Cx<'_>, lane: usize, op: &BulkOp) -> Exec {
    let BulkOp::Store { from, to, size, reduction, operation } = op else { return Ok(()) };
    let what = match (to, operation) {
        (Global::Tensor(_), None) => "cp.async.bulk.tensor",
        (Global::Linear(_), None) => "cp.async.bulk",
        (Global::Tensor(_), Some(_)) => "cp.reduce.async.bulk.tensor",
        (Global::Linear(_), Some(_)) => "cp.reduce.async.bulk",
    };
    let source = locate(cx, cx.address(&from.addr)[lane], from.window, lane, what)?;
    let mut reduction = *reduction;
    let pieces: VecDeque<Piece> = match to {
        Global::Tensor(tensor) => {
            let (map, tile) = tile(cx, lane, tensor, source.address)?;
            if let Some(operation) = operation {
                reduction = Some(Reduction::for_tensor(*operation, map.data_type()).map_err(illegal)?);
            }
            tile.runs.iter().map(|r| Piece { global: r.global, shared: r.shared, bytes: r.bytes, fill: false }).collect()
        }
        Global::Linear(addr) => {
            let (address, bytes) = (cx.address(addr)[lane], size.as_ref().map_or(0, |s| cx.get32(s)[lane]));
            check_linear(address, u64::from(source.address), bytes)?;
            if address.checked_add(u64::from(bytes)).is_none() {
                return Err(Fault::new(Kind::OutOfBounds, format!("{what}: {bytes} bytes at {address:#x}")));
            }
            check_shared(cx, source, u64::from(bytes), 16, lane, what)?;
            linear_piece(address, source.address, bytes)
        }
    };
    let writes = merged(pieces.iter().map(|p| (p.global, u64::from(p.bytes))));
    let reads = merged(pieces.iter().map(|p| (u64::from(p.shared), u64::from(p.bytes))));
    let site = cx.site;
    let agent = agent(cx, lane, matches!(to, Global::Tensor(_)))?;
    for &(at, len) in &reads {
        check_shared(cx, Place { rank: source.rank, address: at as u32 }, len, 1, lane, what)?;
    }
    let (mut world, _) = world(cx);
    for &(at, len) in &reads {
        world.check_defined(Place { rank: source.rank, address: at as u32 }, len, what)?;
    }
    let space = world.blocks[source.rank].race.map(Space::Shared);
    tell(&mut world, agent, space, AccessKind::Read, None, site, &reads)?;
    for &(at, len) in &writes {
        world.check_global(site, at, len, Use::Write, what)?;
        if reduction.is_some() {
            world.check_global(site, at, len, Use::Read, what)?;
        }
    }
    let kind = if reduction.is_some() { AccessKind::ReadWrite } else { AccessKind::Write };
    let element = reduction.map(|r| r.element_bytes());
    tell(&mut world, agent, Some(Space::Global), kind, element, site, &writes)?;
    for &(at, len) in &writes {
        world.announce_global(site, at, len)?;
    }
    let group = cx.warp.sync.bulk.split(1 << lane).first().map_or(0, |g| g.0);
    cx.warp.sync.bulk.open.push(Open { lanes: 1 << lane, read: 0, group, agent, growing: false, what });
    push(cx, lane, Body::Store { pieces, staged: None, reduction }, group, agent, what)
}

fn agent(cx: &mut Cx<'_>, lane: usize, tensor: bool) -> Exec<Option<AgentId>> {
    let Some(warp) = cx.race_warp() else { return Ok(None) };
    let Some(detector) = cx.detector.as_deref_mut() else { return Ok(None) };
    let kind = if tensor { AgentKind::Tensor } else { AgentKind::Bulk };
    Ok(Some(detector.race.agent_issue(kind, Proxy::Async, &[(warp, 1 << lane)], false)?))
}

/// What an operation does to memory, for the detector. `element`: bytes of what a reduction combines.
fn tell(
    world: &mut World<'_>,
    agent: Option<AgentId>,
    space: Option<Space>,
    kind: AccessKind,
    element: Option<usize>,
    site: u32,
    ranges: &[(u64, u64)],
) -> Exec {
    let (Some(detector), Some(agent), Some(space)) = (world.detector.as_deref_mut(), agent, space) else { return Ok(()) };
    let (sem, element) = match element {
        None => (Sem::WEAK, 1),
        Some(bytes) => (Sem::new(Order::Relaxed, Scope::Gpu), bytes as u32),
    };
    Ok(detector.race.agent_access(agent, &AgentAccess { space, kind, sem, element, site }, ranges)?)
}

fn push(cx: &mut Cx<'_>, lane: usize, body: Body, group: u32, agent: Option<AgentId>, what: &'static str) -> Exec {
    let operation = Operation {
        body,
        rank: cx.rank,
        warp: cx.warp.index,
        lanes: 1 << lane,
        family: Family::Bulk,
        group,
        agent,
        site: cx.site,
        what,
    };
    let (mut world, queue) = world(cx);
    queue.push(operation);
    if at_once(&world) {
        queue.complete_last(&mut world)?;
    }
    Ok(())
}
