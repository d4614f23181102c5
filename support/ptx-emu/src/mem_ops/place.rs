//! Where addresses lie, and whether an access there is allowed: what all memory instructions, asynchronous ones too, have in common.

use super::modifiers::MemSpace;
use crate::cx::{Cx, LOCAL_WINDOW, PARAM_WINDOW, SHARED_RANK_SHIFT, SHARED_START, SHARED_WINDOW, WINDOW};
use crate::fault::{Exec, Fault};
use crate::isa::{Addr, Src, Width};
use crate::machine::{Env, Launch};
use crate::memory::{Allocation, SharedMemory, View};
use crate::race::{Access as RaceAccess, AccessKind, Sem, Space as RaceSpace};
use crate::regs::{LANES, Lanes64, Mask, lanes};
use crate::report::Kind;

/// Where memory is, once an address is resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Global memory, constants included.
    Global,
    /// Shared memory of the cluster's block of this rank.
    Shared(usize),
    /// The lane's own local memory.
    Local,
    /// The kernel's parameters.
    Param,
}

/// What an access does, the same for all lanes.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// All bytes of a lane's access; a power of two, which the address must be a multiple of.
    pub bytes: u32,
    /// Bytes of an element of the vector.
    pub element: u32,
    /// Elements whose values are used, a bit each.
    pub used: u32,
    /// It loads.
    pub reads: bool,
    /// It stores.
    pub writes: bool,
    /// `.const`: only constants.
    pub constant: bool,
}

impl Shape {
    fn verb(&self) -> &'static str {
        match (self.reads, self.writes) {
            (true, true) => "atomic operation on",
            (_, true) => "store of",
            _ => "load of",
        }
    }
}

/// Where each lane's bytes are on the host. Lanes that do not execute have the address of one that does.
pub type Pointers = [*mut u8; LANES];

/// What resolving addresses gives.
pub enum Bytes {
    /// All lanes are in one piece of memory: `base` is the address of the byte at `data`.
    Together {
        /// On the host.
        data: *mut u8,
        /// In the emulated address space.
        base: u64,
    },
    /// Each has its own.
    Apart(Box<Pointers>),
}

impl Bytes {
    /// By lane.
    pub fn pointers(&self, addresses: &Lanes64) -> Pointers {
        match *self {
            Bytes::Together { data, base } => {
                let together = Together { data, base, addresses };
                std::array::from_fn(|lane| together.at(lane))
            }
            Bytes::Apart(ref pointers) => **pointers,
        }
    }
}

/// Where a lane's bytes are on the host.
pub trait Locate {
    /// Of one lane.
    fn at(&self, lane: usize) -> *mut u8;
}

impl Locate for Pointers {
    #[inline(always)]
    fn at(&self, lane: usize) -> *mut u8 {
        self[lane]
    }
}

/// See [`Bytes::Together`].
pub struct Together<'a> {
    /// On the host.
    pub data: *mut u8,
    /// Of `data` in the emulated address space.
    pub base: u64,
    /// By lane.
    pub addresses: &'a Lanes64,
}

impl Locate for Together<'_> {
    #[inline(always)]
    fn at(&self, lane: usize) -> *mut u8 {
        self.data.wrapping_add(self.addresses[lane].wrapping_sub(self.base) as usize)
    }
}

/// Evaluates an expression with `$locate` bound to what implements [`Locate`] for these bytes.
macro_rules! with_bytes {
    ($bytes:expr, $addresses:expr, |$locate:ident| $body:expr) => {
        match $bytes {
            $crate::mem_ops::place::Bytes::Together { data, base } => {
                let $locate = &$crate::mem_ops::place::Together { data, base, addresses: $addresses };
                $body
            }
            $crate::mem_ops::place::Bytes::Apart(pointers) => {
                let $locate = &*pointers;
                $body
            }
        }
    };
}
pub(super) use with_bytes;

/// The addresses of an operand.
#[inline]
pub fn addresses_of(cx: &Cx<'_>, addr: &Addr) -> Lanes64 {
    match addr.base {
        // One pass, without a copy in between.
        Src::Reg(reg) if reg.width == Width::W64 => {
            let row = cx.warp.regs.r64(reg.slot);
            let mut result = [0; LANES];
            for (to, from) in result.iter_mut().zip(row) {
                *to = from.wrapping_add(addr.offset as u64);
            }
            result
        }
        Src::Reg(reg) if reg.width == Width::W32 => {
            let row = cx.warp.regs.r32(reg.slot);
            let mut result = [0; LANES];
            for (to, from) in result.iter_mut().zip(row) {
                *to = u64::from(*from).wrapping_add(addr.offset as u64);
            }
            result
        }
        _ => cx.address(addr),
    }
}

/// Where a shared address lies: rank and offset. `within`: only the executing block's own memory counts (`.shared::cta`).
fn shared_place(address: u64, rank: usize, ranks: usize, within: bool) -> Result<(usize, u64), String> {
    let code = address >> SHARED_RANK_SHIFT;
    let offset = address & ((1 << SHARED_RANK_SHIFT) - 1);
    match code {
        0 => Ok((rank, address)),
        code if code > ranks as u64 => Err(format!("{address:#x} is no shared address of a cluster of {ranks} blocks")),
        code if within && code - 1 != rank as u64 => Err(format!(
            "shared address {address:#x} is in the block of rank {}, and the instruction may only access its own block (rank {rank}): it \
             wants .shared::cluster",
            code - 1
        )),
        code => Ok((code as usize - 1, offset)),
    }
}

/// Where an address lies, and the address there.
pub fn place_of(space: MemSpace, address: u64, rank: usize, ranks: usize) -> Result<(Place, u64), String> {
    let window = |start: u64| address.wrapping_sub(start);
    Ok(match space {
        MemSpace::Global | MemSpace::Const => (Place::Global, address),
        MemSpace::Local => (Place::Local, address),
        MemSpace::Param => (Place::Param, address),
        MemSpace::SharedCta | MemSpace::SharedCluster => {
            let (rank, offset) = shared_place(address, rank, ranks, space == MemSpace::SharedCta)?;
            (Place::Shared(rank), offset)
        }
        MemSpace::Generic if window(SHARED_WINDOW) < WINDOW => {
            let (rank, offset) = shared_place(window(SHARED_WINDOW), rank, ranks, false)?;
            (Place::Shared(rank), offset)
        }
        MemSpace::Generic if window(LOCAL_WINDOW) < WINDOW => (Place::Local, window(LOCAL_WINDOW)),
        MemSpace::Generic if window(PARAM_WINDOW) < WINDOW => (Place::Param, window(PARAM_WINDOW)),
        MemSpace::Generic => (Place::Global, address),
    })
}

/// The shared memory that an address of one lane points at, generic or shared: rank in the cluster and shared address there. For
/// asynchronous operations and mbarriers.
pub fn shared_address(space: MemSpace, address: u64, rank: usize, ranks: usize, lane: usize) -> Exec<(usize, u32)> {
    match place_of(space, address, rank, ranks) {
        Ok((Place::Shared(rank), offset)) if offset <= u64::from(u32::MAX) => Ok((rank, offset as u32)),
        Ok(_) => Err(Fault::at(Kind::OutOfBounds, lane, format!("{address:#x} is not an address of shared memory"))),
        Err(what) => Err(Fault::at(Kind::OutOfBounds, lane, what)),
    }
}

/// Replaces the addresses of lanes that do not execute by that of one that does.
#[inline]
fn fill(addresses: &mut Lanes64, mask: Mask) {
    if mask == Mask::MAX {
        return;
    }
    let first = addresses[mask.trailing_zeros() as usize % LANES];
    for (i, address) in addresses.iter_mut().enumerate() {
        let keep = u64::from(mask >> i & 1).wrapping_neg();
        *address = *address & keep | first & !keep;
    }
}

/// Calls `f` with the lanes at each place and their addresses there, those of lanes that do not execute
/// replaced by that of one that does.
#[inline]
pub fn by_place(
    cx: &mut Cx<'_>,
    space: MemSpace,
    addresses: &Lanes64,
    mut f: impl FnMut(&mut Cx<'_>, Place, &Lanes64, Mask) -> Exec,
) -> Exec {
    let mask = cx.mask;
    if mask == 0 {
        return Ok(());
    }
    let mut filled;
    let all = if mask == Mask::MAX {
        addresses
    } else {
        filled = *addresses;
        fill(&mut filled, mask);
        &filled
    };
    // The usual cases: nothing to translate, all lanes at one place.
    let simple = match space {
        MemSpace::Global | MemSpace::Const => Some(Place::Global),
        MemSpace::Local => Some(Place::Local),
        MemSpace::Param => Some(Place::Param),
        MemSpace::SharedCta | MemSpace::SharedCluster => {
            (all.iter().fold(0, |bits, a| bits | a) >> SHARED_RANK_SHIFT == 0).then_some(Place::Shared(cx.rank))
        }
        // Below the windows: the top bits of both the address and the distance to them are clear.
        MemSpace::Generic => {
            (all.iter().fold(0, |bits, &a| bits | a | (SHARED_WINDOW - 1).wrapping_sub(a)) >> 63 == 0).then_some(Place::Global)
        }
    };
    if let Some(place) = simple {
        return f(cx, place, all, mask);
    }
    let (rank, ranks) = (cx.rank, cx.blocks.len());
    let mut rest = mask;
    while rest != 0 {
        let mut here = None;
        let mut translated = [0; LANES];
        let mut same = 0;
        for lane in lanes(rest) {
            let (place, address) =
                place_of(space, all[lane], rank, ranks).map_err(|what| Fault::at(Kind::OutOfBounds, lane, what))?;
            if *here.get_or_insert(place) == place {
                translated[lane] = address;
                same |= 1 << lane;
            }
        }
        rest &= !same;
        if let Some(place) = here {
            fill(&mut translated, same);
            f(cx, place, &translated, same)?;
        }
    }
    Ok(())
}

/// Whether all accesses of `bytes` bytes are inside the `size` bytes from `base` on, and aligned.
#[inline(always)]
fn inside(addresses: &Lanes64, base: u64, size: u64, bytes: u32) -> bool {
    let Some(limit) = size.checked_sub(u64::from(bytes)) else { return false };
    let (mut outside, mut low) = (0, 0);
    for &address in addresses {
        let offset = address.wrapping_sub(base);
        // Sizes are below 2^63: one of the two has its top bit set when the offset is beyond the limit, and neither has otherwise.
        outside |= offset | limit.wrapping_sub(offset);
        low |= address;
    }
    outside >> 63 == 0 && low & u64::from(bytes - 1) == 0
}

/// Bytes of which some were written, as both kinds of memory keep them.
trait Written {
    fn first_undefined(&self, offset: u64, len: u64) -> Option<u64>;
}

impl Written for Allocation {
    fn first_undefined(&self, offset: u64, len: u64) -> Option<u64> {
        Allocation::first_undefined(self, offset, len)
    }
}

impl Written for SharedMemory {
    fn first_undefined(&self, offset: u64, len: u64) -> Option<u64> {
        SharedMemory::first_undefined(self, offset, len)
    }
}

/// The first byte that one lane uses and nothing wrote.
fn unwritten(memory: &impl Written, offset: u64, shape: &Shape) -> Option<u64> {
    let first = memory.first_undefined(offset, u64::from(shape.bytes))?;
    let count = shape.bytes / shape.element;
    if shape.used.count_ones() >= count {
        return Some(first);
    }
    (0..count)
        .filter(|e| shape.used >> e & 1 != 0)
        .find_map(|e| memory.first_undefined(offset + u64::from(e * shape.element), u64::from(shape.element)))
}

/// Lowest and highest of the offsets.
#[inline]
fn span(addresses: &Lanes64, base: u64) -> (u64, u64) {
    let low = addresses.iter().fold(u64::MAX, |m, &a| m.min(a));
    let high = addresses.iter().fold(0, |m, &a| m.max(a));
    (low - base, high - base)
}

/// Whether the lanes tile a range without gaps, in order.
#[inline]
fn consecutive(addresses: &Lanes64, bytes: u32) -> bool {
    (0..LANES).fold(0, |bits, i| bits | addresses[i].wrapping_sub(addresses[0]) ^ (i as u64 * u64::from(bytes))) == 0
}

/// Bytes between the lanes of one instruction up to which they are looked at as one range.
const NEAR: u64 = 1 << 14;

/// The lane that uses bytes nothing wrote, and the offset of the first of those.
fn unwritten_lane(memory: &impl Written, addresses: &Lanes64, base: u64, mask: Mask, shape: &Shape) -> Option<(usize, u64)> {
    let (low, high) = span(addresses, base);
    if high - low <= NEAR && memory.first_undefined(low, high - low + u64::from(shape.bytes)).is_none() {
        return None;
    }
    lanes(mask).find_map(|lane| unwritten(memory, addresses[lane] - base, shape).map(|at| (lane, at)))
}

/// Resolves the addresses of global memory that lanes access: checks bounds, alignment, permission and whether what is read was
/// written; notes what is written. The pointers are good until the block's next access.
pub fn global(cx: &mut Cx<'_>, addresses: &Lanes64, mask: Mask, shape: &Shape) -> Exec<Pointers> {
    Ok(find_global(cx, addresses, mask, shape)?.pointers(addresses))
}

/// The same as [`global`] for shared memory of the block of this rank. The pointers are good while nothing else uses its bytes.
pub fn shared(cx: &mut Cx<'_>, rank: usize, addresses: &Lanes64, mask: Mask, shape: &Shape) -> Exec<Pointers> {
    Ok(find_shared(cx, rank, addresses, mask, shape)?.pointers(addresses))
}

/// What [`global`] does.
#[inline]
pub fn find_global(cx: &mut Cx<'_>, addresses: &Lanes64, mask: Mask, shape: &Shape) -> Exec<Bytes> {
    let first = mask.trailing_zeros() as usize % LANES;
    let (device, site) = (cx.launch.device, cx.site);
    let Some(block) = cx.blocks.get_mut(cx.rank) else { return Err(Fault::new(Kind::Unsupported, "no such block")) };
    block.view.renew(&cx.env.memory);
    if let Some(found) = block.view.current(device, site, addresses[first])
        && !(shape.writes && found.constant())
        && (!shape.constant || found.constant())
        && inside(addresses, found.base(), found.size(), shape.bytes)
    {
        if found.tracked() {
            if shape.reads
                && let Some((lane, at)) = unwritten_lane(found, addresses, found.base(), mask, shape)
            {
                return Err(unwritten_fault(cx.env, device, lane, addresses[lane], found.base() + at, shape));
            }
            if shape.writes {
                define(found, addresses, mask, shape);
            }
        }
        return Ok(Bytes::Together { data: found.pointer(), base: found.base() });
    }
    scattered(cx, addresses, mask, shape)
}

/// [`find_global`] where lanes access several allocations, or something is wrong.
#[cold]
fn scattered(cx: &mut Cx<'_>, addresses: &Lanes64, mask: Mask, shape: &Shape) -> Exec<Bytes> {
    let first = mask.trailing_zeros() as usize % LANES;
    let (device, site) = (cx.launch.device, cx.site);
    let block = &mut cx.blocks[cx.rank];
    let mut pointers = Box::new([std::ptr::null_mut(); LANES]);
    for lane in lanes(mask) {
        pointers[lane] = global_lane(&mut block.view, cx.env, device, site, lane, addresses[lane], shape)?;
    }
    let any = pointers[first];
    for (i, pointer) in pointers.iter_mut().enumerate() {
        if mask >> i & 1 == 0 {
            *pointer = any;
        }
    }
    Ok(Bytes::Apart(pointers))
}

/// Notes that lanes write.
#[inline]
fn define(found: &Allocation, addresses: &Lanes64, mask: Mask, shape: &Shape) {
    let (base, bytes) = (found.base(), u64::from(shape.bytes));
    if mask == Mask::MAX && consecutive(addresses, shape.bytes) {
        return found.define(addresses[0] - base, bytes * LANES as u64);
    }
    let (low, high) = span(addresses, base);
    if high - low > NEAR || found.first_undefined(low, high - low + bytes).is_some() {
        lanes(mask).for_each(|lane| found.define(addresses[lane] - base, bytes));
    }
}

fn unwritten_fault(env: &Env, device: u32, lane: usize, address: u64, at: u64, shape: &Shape) -> Box<Fault> {
    Fault::at(
        Kind::UninitializedMemory,
        lane,
        format!(
            "{} {} bytes at {address:#x}: nothing wrote {at:#x}, {}",
            shape.verb(),
            shape.bytes,
            env.memory.explain(device, at, 1)
        ),
    )
}

/// One lane's part of [`global`]; its view is current.
fn global_lane(view: &mut View, env: &Env, device: u32, site: u32, lane: usize, address: u64, shape: &Shape) -> Exec<*mut u8> {
    let bytes = u64::from(shape.bytes);
    let fault =
        |kind: Kind, what: &str| Err(Fault::at(kind, lane, format!("{} {bytes} bytes at {address:#x}: {what}", shape.verb())));
    let found = match view.current(device, site, address) {
        Some(found) if bytes <= found.size() - (address - found.base()) => found,
        _ => {
            let window = |start: u64| address.wrapping_sub(start) < WINDOW;
            let what = match () {
                () if window(SHARED_WINDOW) => "a generic address of shared memory, accessed as global memory".to_string(),
                () if window(LOCAL_WINDOW) => "a generic address of local memory, accessed as global memory".to_string(),
                () if window(PARAM_WINDOW) => "a generic address of a kernel parameter, accessed as global memory".to_string(),
                () => env.memory.explain(device, address, bytes),
            };
            return fault(Kind::OutOfBounds, &what);
        }
    };
    if !address.is_multiple_of(bytes) {
        return fault(Kind::Misaligned, &format!("the address is not a multiple of {bytes}"));
    }
    if shape.writes && found.constant() {
        return fault(Kind::OutOfBounds, &format!("constants cannot be written: {}", env.memory.explain(device, address, bytes)));
    }
    if shape.constant && !found.constant() {
        return fault(Kind::OutOfBounds, &format!("not a constant: {}", env.memory.explain(device, address, bytes)));
    }
    let offset = address - found.base();
    if shape.reads
        && let Some(at) = unwritten(found, offset, shape)
    {
        return Err(unwritten_fault(env, device, lane, address, found.base() + at, shape));
    }
    if shape.writes {
        found.define(offset, bytes);
    }
    Ok(found.pointer().wrapping_add(offset as usize))
}

/// What [`shared`] does.
#[inline]
pub fn find_shared(cx: &mut Cx<'_>, rank: usize, addresses: &Lanes64, mask: Mask, shape: &Shape) -> Exec<Bytes> {
    let Some(block) = cx.blocks.get_mut(rank) else { return Err(Fault::new(Kind::Unsupported, "no such block")) };
    if rank != cx.rank && block.live_threads == 0 {
        let lane = mask.trailing_zeros() as usize % LANES;
        let (verb, bytes, address) = (shape.verb(), shape.bytes, addresses[lane]);
        let message =
            format!("{verb} {bytes} bytes at shared address {address:#x} of block {rank} of the cluster, which has exited");
        return Err(Fault::at(Kind::EarlyExit, lane, message));
    }
    let memory = &mut block.shared;
    let start = u64::from(SHARED_START);
    // Only what lies behind the reserved bytes.
    if !memory.size().checked_sub(start).is_some_and(|size| inside(addresses, start, size, shape.bytes)) {
        return Err(shared_fault(memory, rank, addresses, mask, shape));
    }
    if memory.tracked() {
        if shape.reads
            && let Some((lane, at)) = unwritten_lane(memory, addresses, 0, mask, shape)
        {
            let message =
                format!("{} {} bytes at shared address {:#x}: nothing wrote {at:#x}", shape.verb(), shape.bytes, addresses[lane]);
            return Err(Fault::at(Kind::UninitializedMemory, lane, message));
        }
        if shape.writes {
            let bytes = u64::from(shape.bytes);
            if mask == Mask::MAX && consecutive(addresses, shape.bytes) {
                memory.define(addresses[0], bytes * LANES as u64);
            } else {
                lanes(mask).for_each(|lane| memory.define(addresses[lane], bytes));
            }
        }
    }
    Ok(Bytes::Together { data: memory.data.as_mut_ptr(), base: 0 })
}

#[cold]
fn shared_fault(memory: &SharedMemory, rank: usize, addresses: &Lanes64, mask: Mask, shape: &Shape) -> Box<Fault> {
    let bytes = u64::from(shape.bytes);
    let head = |lane: usize| format!("{} {bytes} bytes at shared address {:#x}", shape.verb(), addresses[lane]);
    if let Some(lane) = lanes(mask).find(|&i| !memory.holds(addresses[i], bytes)) {
        let end = memory.size();
        let what = match addresses[lane] {
            NOT_SHARED.. => "the address came from one that is not of shared memory".to_string(),
            _ => format!("shared memory of the block (rank {rank}) has the addresses {SHARED_START:#x} to {end:#x}"),
        };
        return Fault::at(Kind::OutOfBounds, lane, format!("{}: {what}", head(lane)));
    }
    let lane = lanes(mask).find(|&i| !addresses[i].is_multiple_of(bytes)).unwrap_or(0);
    Fault::at(Kind::Misaligned, lane, format!("{}: the address is not a multiple of {bytes}", head(lane)))
}

/// What `cvta.to.shared` makes of an address that is not of shared memory: no block has shared memory here.
pub const NOT_SHARED: u64 = 0xffff_0000;

/// Checks addresses of local memory: inside the activations of the thread, and aligned.
pub fn local(cx: &Cx<'_>, addresses: &Lanes64, mask: Mask, shape: &Shape) -> Exec {
    let frame = cx.frame();
    let size = cx.launch.program.functions.get(frame.function as usize).map_or(0, |f| f.local_size);
    let end = u64::from(frame.local_base) + u64::from(size);
    let bytes = u64::from(shape.bytes);
    let fault = |kind: Kind, lane: usize, what: String| {
        Err(Fault::at(kind, lane, format!("{} {bytes} bytes at local address {:#x}: {what}", shape.verb(), addresses[lane])))
    };
    if inside(addresses, 0, end, shape.bytes) {
        return Ok(());
    }
    for lane in lanes(mask) {
        let address = addresses[lane];
        if address.checked_add(bytes).is_none_or(|e| e > end) {
            return fault(Kind::OutOfBounds, lane, format!("the variables of the thread end at {end:#x}"));
        }
        if !address.is_multiple_of(bytes) {
            return fault(Kind::Misaligned, lane, format!("the address is not a multiple of {bytes}"));
        }
    }
    Ok(())
}

/// Checks addresses of kernel parameters.
pub fn param(launch: &Launch, addresses: &Lanes64, mask: Mask, shape: &Shape) -> Exec {
    let end = launch.params.len() as u64;
    let bytes = u64::from(shape.bytes);
    let fault = |kind: Kind, lane: usize, what: String| {
        Err(Fault::at(kind, lane, format!("{} {bytes} bytes at parameter address {:#x}: {what}", shape.verb(), addresses[lane])))
    };
    for lane in lanes(mask) {
        let address = addresses[lane];
        if shape.writes {
            return fault(Kind::OutOfBounds, lane, "a kernel's parameters cannot be written".to_string());
        }
        if address.checked_add(bytes).is_none_or(|e| e > end) {
            return fault(Kind::OutOfBounds, lane, format!("the kernel has {end} bytes of parameters"));
        }
        if !address.is_multiple_of(bytes) {
            return fault(Kind::Misaligned, lane, format!("the address is not a multiple of {bytes}"));
        }
    }
    Ok(())
}

/// What the race detector is told of an access.
pub struct Note<'a> {
    /// Reads, writes or both.
    pub kind: AccessKind,
    /// Order and scope.
    pub sem: Sem,
    /// What and how much.
    pub shape: &'a Shape,
    /// Whether two lanes write equal values.
    pub agree: Option<&'a dyn Fn(u32, u32) -> bool>,
}

/// The one place where loads, stores and atomics tell the race detector what they do.
pub fn note_access(cx: &mut Cx<'_>, place: Place, addresses: &Lanes64, mask: Mask, note: &Note<'_>) -> Exec {
    let space = match place {
        Place::Global => RaceSpace::Global,
        Place::Shared(rank) => match cx.blocks.get(rank).and_then(|b| b.race) {
            Some(block) => RaceSpace::Shared(block),
            None => return Ok(()),
        },
        Place::Local | Place::Param => return Ok(()),
    };
    let (Some(warp), site) = (cx.race_warp(), cx.site) else { return Ok(()) };
    let Some(detector) = cx.detector.as_deref_mut() else { return Ok(()) };
    let access = RaceAccess {
        space,
        kind: note.kind,
        sem: note.sem,
        mask,
        addresses,
        size: note.shape.bytes,
        element: note.shape.element,
        site,
        agree: note.agree,
    };
    Ok(detector.race.access(warp, &access)?)
}

/// Reads bytes of one lane at a generic address, as a C function of the device would: each must be accessible and written.
pub fn read_generic(cx: &mut Cx<'_>, lane: usize, address: u64, to: &mut [u8]) -> Exec {
    let (rank, ranks) = (cx.rank, cx.blocks.len());
    let shape = Shape { bytes: 1, element: 1, used: 1, reads: true, writes: false, constant: false };
    let mask = 1 << lane;
    for (i, byte) in to.iter_mut().enumerate() {
        let at = address.wrapping_add(i as u64);
        let (place, offset) =
            place_of(MemSpace::Generic, at, rank, ranks).map_err(|what| Fault::at(Kind::OutOfBounds, lane, what))?;
        let all = [offset; LANES];
        *byte = match place {
            // SAFETY: the pointer was just checked for one byte, and other threads access it atomically only.
            Place::Global => unsafe { crate::memory::Word::load(global(cx, &all, mask, &shape)?[lane]) },
            // SAFETY: the pointer was just checked for one byte; a cluster's shared memory is its thread's own.
            Place::Shared(rank) => unsafe { crate::memory::Word::load_own(shared(cx, rank, &all, mask, &shape)?[lane]) },
            Place::Local => {
                local(cx, &all, mask, &shape)?;
                let mut one = [0];
                if !cx.warp.local.read(lane, offset as u32, &mut one)? && cx.env.memory.tracks() {
                    let message = format!("nothing wrote the byte at local address {offset:#x}");
                    return Err(Fault::at(Kind::UninitializedMemory, lane, message));
                }
                one[0]
            }
            Place::Param => {
                param(cx.launch, &all, mask, &shape)?;
                cx.launch.params.get(offset as usize).copied().unwrap_or(0)
            }
        };
    }
    Ok(())
}

/// The allocation that holds a range of global memory, for operations that work on ranges; an error names what is wrong. It may be held for
/// as long as the operation lasts.
pub fn global_range(
    env: &Env,
    device: u32,
    address: u64,
    len: u64,
    writes: bool,
    what: &str,
) -> Exec<std::sync::Arc<Allocation>> {
    let mut view = View::default();
    let wrong = |why: &str| Err(Fault::new(Kind::OutOfBounds, format!("{what}: {len} bytes at {address:#x}: {why}")));
    match (view.find(&env.memory, device, 0, address), env.memory.range(address, len)) {
        (Some(found), Ok(_)) if writes && found.constant() => wrong("constants cannot be written"),
        (Some(_), Ok(range)) => Ok(range),
        _ => wrong(&env.memory.explain(device, address, len)),
    }
}
