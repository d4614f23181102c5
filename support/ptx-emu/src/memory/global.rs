//! Global memory of all devices in one 64-bit address space: allocation, access by the host, who may access what.

use super::allocation::Allocation;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Device `d` has the addresses from `(d + 1) << SPACE_SHIFT` on, up to where the next device's begin.
const SPACE_SHIFT: u32 = 40;
/// Most devices of one machine: their addresses and those of host memory stay below the windows of the generic address space.
pub const MOST_DEVICES: u32 = 64;
/// Alignment of allocations in bytes, and not more: what `cuMemAlloc` promises.
const ALIGN: u64 = 256;
/// Bytes between allocations that belong to none of them.
const GAP: u64 = 1 << 16;
/// Freed allocations that are remembered, so that a late access can be told what it hit.
const MOST_FREED: usize = 1 << 16;
/// Bytes of the buffer through which copies between allocations go.
const CHUNK: usize = 4096;

/// Why a call of the host on global memory cannot be carried out. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum MemoryError {
    #[error("the address is null")]
    Null,
    #[error("an allocation of 0 bytes")]
    ZeroSize,
    #[error("device {device} does not exist: there are {devices}")]
    NoDevice { device: u32, devices: u32 },
    #[error("an alignment of {align} bytes: it must be a power of two of at most 1 MiB")]
    Alignment { align: u64 },
    #[error("out of memory: {bytes} bytes cannot be allocated")]
    OutOfMemory { bytes: u64 },
    #[error("address {address:#x} lies in an allocation of {size} bytes at {base:#x} that was freed")]
    Freed { address: u64, base: u64, size: u64 },
    #[error("{bytes} bytes at {address:#x} reach beyond the allocation of {size} bytes at {base:#x}")]
    OutOfRange { address: u64, bytes: u64, base: u64, size: u64 },
    #[error("address {address:#x}: nothing is allocated there")]
    NoAllocation { address: u64 },
    #[error("address {address:#x} is inside the allocation at {base:#x}, not its beginning")]
    NotABase { address: u64, base: u64 },
    #[error("address {address:#x} is not pinned host memory")]
    NotPinned { address: u64 },
}

/// How to allocate.
#[derive(Debug, Clone, Default)]
pub struct AllocOptions {
    /// Alignment in bytes, a power of two of at most 1 MiB; at least 256 is given.
    pub align: u64,
    /// Kernels may only read it: `.const` variables.
    pub constant: bool,
    /// What reports call it: the name of a variable.
    pub name: Option<Arc<str>>,
}

/// What is known of an allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AllocationInfo {
    /// Address of its first byte.
    pub base: u64,
    /// In bytes.
    pub size: u64,
    /// Device; None for pinned host memory.
    pub device: Option<u32>,
    /// Kernels may only read it.
    pub constant: bool,
    /// What reports call it.
    pub name: Option<Arc<str>>,
}

/// Bytes in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Now.
    pub current: u64,
    /// At most at any time.
    pub peak: u64,
}

/// The addresses of one device, or of pinned host memory.
#[derive(Debug)]
struct Space {
    start: u64,
    /// Where the next allocation is tried: addresses are not used again before the space has been used up once.
    next: u64,
    usage: Usage,
}

impl Space {
    fn end(&self) -> u64 {
        self.start + (1 << SPACE_SHIFT)
    }
}

#[derive(Debug)]
struct State {
    /// By device, then pinned host memory.
    spaces: Vec<Space>,
    live: BTreeMap<u64, Arc<Allocation>>,
    /// Sizes by address.
    freed: BTreeMap<u64, u64>,
    freed_order: VecDeque<u64>,
    /// `from * devices + to`.
    peers: Vec<bool>,
    /// What `View`s share; made again after a change.
    snapshot: Option<Arc<Snapshot>>,
}

/// The allocations at one time.
#[derive(Debug)]
struct Snapshot {
    /// By address.
    list: Vec<Arc<Allocation>>,
    peers: Vec<bool>,
    devices: u32,
}

/// Global memory of all devices, and pinned host memory, in one address space. Host threads may use it at the same time as kernels run.
#[derive(Debug)]
pub struct Memory {
    devices: u32,
    track: bool,
    state: Mutex<State>,
    /// Changes with every change of `State` that a `Snapshot` shows. Starts at 1: a new `View` has seen nothing.
    generation: AtomicU64,
    /// Held by 128-bit atomic operations, for which there is no machine instruction everywhere.
    wide: Mutex<()>,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new(1, false)
    }
}

/// The first address from `at` on that an allocation may have.
fn place(at: u64, align: u64) -> Option<u64> {
    if align > ALIGN {
        return at.checked_next_multiple_of(align);
    }
    // Aligned to 256 and to no more, so that code that takes more for granted is found out.
    at.checked_next_multiple_of(2 * ALIGN)?.checked_add(ALIGN)
}

impl State {
    /// The live allocation that holds an address.
    fn find(&self, address: u64) -> Option<&Arc<Allocation>> {
        let (_, allocation) = self.live.range(..=address).next_back()?;
        (address - allocation.base < allocation.size).then_some(allocation)
    }

    /// The freed allocation that held it.
    fn find_freed(&self, address: u64) -> Option<(u64, u64)> {
        let (&base, &size) = self.freed.range(..=address).next_back()?;
        (address - base < size).then_some((base, size))
    }

    /// Why there is no allocation for an address.
    fn nothing(&self, address: u64) -> MemoryError {
        match self.find_freed(address) {
            _ if address == 0 => MemoryError::Null,
            Some((base, size)) => MemoryError::Freed { address, base, size },
            None => MemoryError::NoAllocation { address },
        }
    }

    /// The allocation that holds a range.
    fn range(&self, address: u64, bytes: u64) -> Result<Arc<Allocation>, MemoryError> {
        let allocation = self.find(address).ok_or_else(|| self.nothing(address))?;
        if bytes > allocation.size - (address - allocation.base) {
            return Err(MemoryError::OutOfRange { address, bytes, base: allocation.base, size: allocation.size });
        }
        Ok(Arc::clone(allocation))
    }

    /// An address for a new allocation.
    fn reserve(&mut self, space: usize, bytes: u64, align: u64) -> Option<u64> {
        let known = &self.spaces[space];
        let (start, end) = (known.start, known.end());
        let fits = |at: u64| place(at, align).filter(|&a| a.checked_add(bytes).is_some_and(|e| e <= end - GAP));
        if let Some(address) = fits(known.next) {
            self.spaces[space].next = address + bytes + GAP;
            return Some(address);
        }
        // The space is used up: what was freed is used again, the first gap that is large enough.
        let mut at = start;
        let mut found = None;
        for (&base, allocation) in self.live.range(start..end) {
            if let Some(address) = fits(at).filter(|a| a + bytes + GAP <= base) {
                found = Some(address);
                break;
            }
            at = base + allocation.size + GAP;
        }
        let address = found.or_else(|| fits(at))?;
        let stale: Vec<u64> = self
            .freed
            .range(..address + bytes)
            .rev()
            .take_while(|(base, size)| *base + *size > address)
            .map(|(&b, _)| b)
            .collect();
        for base in stale {
            self.freed.remove(&base);
        }
        Some(address)
    }

    fn snapshot(&mut self, devices: u32) -> Arc<Snapshot> {
        if let Some(known) = &self.snapshot {
            return Arc::clone(known);
        }
        let list = self.live.values().map(Arc::clone).collect();
        let new = Arc::new(Snapshot { list, peers: self.peers.clone(), devices });
        self.snapshot = Some(Arc::clone(&new));
        new
    }
}

impl Memory {
    /// Nothing is allocated. `devices`: from 1 to 64, and brought into that range. `track`: whether to keep which bytes something wrote.
    pub fn new(devices: u32, track: bool) -> Memory {
        let devices = devices.clamp(1, MOST_DEVICES);
        let space = |number: u32| {
            let start = u64::from(number + 1) << SPACE_SHIFT;
            Space { start, next: start + GAP, usage: Usage::default() }
        };
        let state = State {
            // The last one is pinned host memory.
            spaces: (0..devices).chain([MOST_DEVICES]).map(space).collect(),
            live: BTreeMap::new(),
            freed: BTreeMap::new(),
            freed_order: VecDeque::new(),
            peers: (0..devices).flat_map(|a| (0..devices).map(move |b| a == b)).collect(),
            snapshot: None,
        };
        Memory { devices, track, state: Mutex::new(state), generation: AtomicU64::new(1), wide: Mutex::new(()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two related changes of the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, state: &mut State) {
        state.snapshot = None;
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn check_device(&self, device: u32) -> Result<usize, MemoryError> {
        if device >= self.devices {
            return Err(MemoryError::NoDevice { device, devices: self.devices });
        }
        Ok(device as usize)
    }

    /// Devices.
    pub fn devices(&self) -> u32 {
        self.devices
    }

    /// Whether it is kept which bytes something wrote.
    pub fn tracks(&self) -> bool {
        self.track
    }

    /// Allocates bytes on a device, at an address that is a multiple of 256. Nothing counts as written yet.
    pub fn alloc(&self, device: u32, bytes: u64) -> Result<u64, MemoryError> {
        self.alloc_with(device, bytes, &AllocOptions::default())
    }

    /// The same, with options.
    pub fn alloc_with(&self, device: u32, bytes: u64, options: &AllocOptions) -> Result<u64, MemoryError> {
        let space = self.check_device(device)?;
        self.allocate(space, Some(device), bytes, options)
    }

    /// Allocates pinned host memory, which all devices may access at the same address. All of it counts as written: the host may write it
    /// through [`Memory::pinned_pointer`].
    pub fn alloc_pinned(&self, bytes: u64) -> Result<u64, MemoryError> {
        self.allocate(self.devices as usize, None, bytes, &AllocOptions::default())
    }

    fn allocate(&self, space: usize, device: Option<u32>, bytes: u64, options: &AllocOptions) -> Result<u64, MemoryError> {
        let align = options.align.max(1);
        if bytes == 0 {
            return Err(MemoryError::ZeroSize);
        }
        if !align.is_power_of_two() || align > 1 << 20 {
            return Err(MemoryError::Alignment { align });
        }
        if bytes > 1 << SPACE_SHIFT {
            return Err(MemoryError::OutOfMemory { bytes });
        }
        let state = &mut *self.state();
        let address = state.reserve(space, bytes, align).ok_or(MemoryError::OutOfMemory { bytes })?;
        let track = self.track && device.is_some();
        let allocation = Allocation::new(address, bytes, device, options.constant, options.name.clone(), track)
            .ok_or(MemoryError::OutOfMemory { bytes })?;
        state.live.insert(address, Arc::new(allocation));
        let usage = &mut state.spaces[space].usage;
        usage.current += bytes;
        usage.peak = usage.peak.max(usage.current);
        self.changed(state);
        Ok(address)
    }

    /// Frees an allocation by the address that allocating it gave. Its address is not given again until the address space of its device,
    /// 1 TiB, has been used up.
    pub fn free(&self, address: u64) -> Result<(), MemoryError> {
        let state = &mut *self.state();
        let Some(allocation) = state.live.remove(&address) else {
            return Err(match state.find(address) {
                Some(inside) => MemoryError::NotABase { address, base: inside.base },
                None => state.nothing(address),
            });
        };
        state.freed.insert(address, allocation.size);
        state.freed_order.push_back(address);
        if state.freed_order.len() > MOST_FREED
            && let Some(oldest) = state.freed_order.pop_front()
        {
            state.freed.remove(&oldest);
        }
        let space = allocation.device.unwrap_or(self.devices) as usize;
        state.spaces[space].usage.current -= allocation.size;
        self.changed(state);
        Ok(())
    }

    /// What is known of the allocation that holds an address.
    pub fn info(&self, address: u64) -> Option<AllocationInfo> {
        let state = self.state();
        let found = state.find(address)?;
        Some(AllocationInfo {
            base: found.base,
            size: found.size,
            device: found.device,
            constant: found.constant,
            name: found.name.clone(),
        })
    }

    /// Bytes in use on a device.
    pub fn usage(&self, device: u32) -> Result<Usage, MemoryError> {
        let space = self.check_device(device)?;
        Ok(self.state().spaces[space].usage)
    }

    /// Bytes of pinned host memory in use.
    pub fn pinned_usage(&self) -> Usage {
        self.state().spaces[self.devices as usize].usage
    }

    /// Where the bytes of pinned host memory are in this process, from this address on to the end of the allocation. Valid until it is freed;
    /// using it while a kernel accesses the same bytes is a data race, as it is with a GPU.
    pub fn pinned_pointer(&self, address: u64) -> Result<*mut u8, MemoryError> {
        let allocation = self.range(address, 1)?;
        if allocation.device.is_some() {
            return Err(MemoryError::NotPinned { address });
        }
        // The offset is inside the allocation.
        Ok(allocation.pointer().wrapping_add((address - allocation.base) as usize))
    }

    /// Lets kernels of device `from` access memory of device `to`.
    pub fn enable_peer(&self, from: u32, to: u32) -> Result<(), MemoryError> {
        self.set_peer(from, to, true)
    }

    /// Takes that back.
    pub fn disable_peer(&self, from: u32, to: u32) -> Result<(), MemoryError> {
        self.set_peer(from, to, false)
    }

    fn set_peer(&self, from: u32, to: u32, value: bool) -> Result<(), MemoryError> {
        let (a, b) = (self.check_device(from)?, self.check_device(to)?);
        if a != b {
            let state = &mut *self.state();
            state.peers[a * self.devices as usize + b] = value;
            self.changed(state);
        }
        Ok(())
    }

    /// The allocation that holds a range of addresses. It stays accessible while it is held, even if it is freed meanwhile.
    pub(crate) fn range(&self, address: u64, bytes: u64) -> Result<Arc<Allocation>, MemoryError> {
        self.state().range(address, bytes)
    }

    /// Copies host bytes in; they count as written.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let Some(allocation) = self.range_or_nothing(address, bytes.len() as u64)? else { return Ok(()) };
        let offset = address - allocation.base;
        allocation.copy_in(offset, bytes);
        allocation.define(offset, bytes.len() as u64);
        Ok(())
    }

    /// Copies bytes out to the host, whether or not something wrote them.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let Some(allocation) = self.range_or_nothing(address, bytes.len() as u64)? else { return Ok(()) };
        allocation.copy_out(address - allocation.base, bytes);
        Ok(())
    }

    /// Makes a range count as written, whatever is there: new memory is zero.
    pub fn define(&self, address: u64, bytes: u64) -> Result<(), MemoryError> {
        let Some(allocation) = self.range_or_nothing(address, bytes)? else { return Ok(()) };
        allocation.define(address - allocation.base, bytes);
        Ok(())
    }

    /// Makes a range count as never written: a kernel that reads it is reported.
    pub fn undefine(&self, address: u64, bytes: u64) -> Result<(), MemoryError> {
        let Some(allocation) = self.range_or_nothing(address, bytes)? else { return Ok(()) };
        allocation.undefine(address - allocation.base, bytes);
        Ok(())
    }

    /// Makes all memory there is count as written.
    pub fn define_all(&self) {
        let live: Vec<Arc<Allocation>> = self.state().live.values().map(Arc::clone).collect();
        live.iter().for_each(|allocation| allocation.define(0, allocation.size));
    }

    /// Sets bytes to a value; they count as written.
    pub fn fill(&self, address: u64, value: u8, bytes: u64) -> Result<(), MemoryError> {
        let Some(allocation) = self.range_or_nothing(address, bytes)? else { return Ok(()) };
        let chunk = [value; CHUNK];
        let (mut offset, end) = (address - allocation.base, address - allocation.base + bytes);
        allocation.define(offset, bytes);
        while offset < end {
            let n = (end - offset).min(CHUNK as u64);
            allocation.copy_in(offset, &chunk[..n as usize]);
            offset += n;
        }
        Ok(())
    }

    /// Copies between two addresses of any devices or of host memory. The ranges may overlap. What nothing wrote stays unwritten.
    pub fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), MemoryError> {
        let (Some(target), Some(source)) = (self.range_or_nothing(to, bytes)?, self.range_or_nothing(from, bytes)?) else {
            return Ok(());
        };
        let (to, from) = (to - target.base, from - source.base);
        let mut buffer = [0; CHUNK];
        // From the end when the target begins inside the source: no chunk is overwritten before it is read.
        let backwards = Arc::ptr_eq(&target, &source) && to > from;
        let chunks = bytes.div_ceil(CHUNK as u64);
        for i in 0..chunks {
            let start = if backwards { chunks - 1 - i } else { i } * CHUNK as u64;
            let n = (bytes - start).min(CHUNK as u64);
            let part = &mut buffer[..n as usize];
            source.copy_out(from + start, part);
            target.copy_in(to + start, part);
        }
        match (&target.defined, &source.defined) {
            (Some(defined), Some(known)) if !Arc::ptr_eq(&target, &source) => defined.copy_from(to, known, from, bytes),
            (Some(defined), Some(known)) => {
                // Through a copy: the ranges may overlap.
                if let Some(scratch) = super::defined::Defined::new(bytes) {
                    scratch.copy_from(0, known, from, bytes);
                    defined.copy_from(to, &scratch, 0, bytes);
                }
            }
            (Some(defined), None) => defined.define(to, bytes),
            (None, _) => {}
        }
        Ok(())
    }

    /// A range of no bytes needs no allocation.
    fn range_or_nothing(&self, address: u64, bytes: u64) -> Result<Option<Arc<Allocation>>, MemoryError> {
        if bytes == 0 { Ok(None) } else { self.range(address, bytes).map(Some) }
    }

    /// Runs a 128-bit atomic operation: no other one runs meanwhile.
    pub(crate) fn wide<R>(&self, operation: impl FnOnce() -> R) -> R {
        let _held = self.wide.lock().unwrap_or_else(PoisonError::into_inner);
        operation()
    }

    /// In words, why a kernel on `device` cannot access `bytes` bytes at an address; for messages.
    pub fn explain(&self, device: u32, address: u64, bytes: u64) -> String {
        let state = self.state();
        let called = |a: &Allocation| {
            let name = a.name.as_ref().map_or(String::new(), |n| format!(" ({n})"));
            let place = a.device.map_or("in pinned host memory".to_string(), |d| format!("on device {d}"));
            format!("allocation of {} bytes at {:#x}{name} {place}", a.size, a.base)
        };
        if let Some(found) = state.find(address) {
            let offset = address - found.base;
            if bytes > found.size - offset {
                return format!("{} of {bytes} bytes beyond the end of the {}", bytes - (found.size - offset), called(found));
            }
            return match found.device {
                Some(owner) if !state.peer(self.devices, device, owner) => {
                    format!("in an {}; device {device} has no peer access to it", called(found))
                }
                _ => format!("byte {offset} of the {}", called(found)),
            };
        }
        if address < 1 << 12 {
            return "a null pointer".to_string();
        }
        if let Some((base, size)) = state.find_freed(address) {
            return format!("byte {} of an allocation of {size} bytes at {base:#x} that was freed", address - base);
        }
        let before = state.live.range(..address).next_back().map(|(_, a)| (address - (a.base + a.size), a));
        let after = state.live.range(address..).next().map(|(_, a)| (a.base - address, a));
        match (before, after) {
            (Some((past, a)), b) if past < GAP && b.is_none_or(|(d, _)| past <= d) => match past {
                0 => format!("just past the end of the {}", called(a)),
                _ => format!("{past} bytes past the end of the {}", called(a)),
            },
            (_, Some((distance, a))) if distance < GAP => format!("{distance} bytes before the {}", called(a)),
            _ => "nowhere near an allocation".to_string(),
        }
    }
}

impl State {
    fn peer(&self, devices: u32, from: u32, to: u32) -> bool {
        self.peers.get((from * devices + to) as usize).copied().unwrap_or(false)
    }
}

/// Slots of the hints of a [`View`].
const HINTS: usize = 64;

/// What a block keeps to find allocations without locks: all allocations as they last were, and where its instructions found theirs.
#[derive(Debug)]
pub struct View {
    snapshot: Option<Arc<Snapshot>>,
    generation: u64,
    hints: [u32; HINTS],
}

impl Default for View {
    fn default() -> View {
        View { snapshot: None, generation: 0, hints: [0; HINTS] }
    }
}

impl View {
    /// Sees what has changed since. Allocations found before may be gone then, and their pointers with them.
    #[inline]
    pub fn renew(&mut self, memory: &Memory) {
        if self.generation != memory.generation.load(Ordering::Acquire) {
            self.replace(memory);
        }
    }

    #[cold]
    fn replace(&mut self, memory: &Memory) {
        let mut state = memory.state();
        // Changes happen under the lock.
        self.generation = memory.generation.load(Ordering::Relaxed);
        self.snapshot = Some(state.snapshot(memory.devices));
    }

    /// The allocation that holds an address, if a kernel on `device` may access it now; it lives at least until this view is used again.
    /// `site` is a number of the instruction, under which the place is remembered.
    #[inline]
    pub fn find(&mut self, memory: &Memory, device: u32, site: u32, address: u64) -> Option<&Allocation> {
        self.renew(memory);
        self.current(device, site, address)
    }

    /// The allocation that holds an address, if a kernel on `device` may access it, as of the last [`View::renew`]; it lives at least until
    /// the next.
    #[inline]
    pub fn current(&mut self, device: u32, site: u32, address: u64) -> Option<&Allocation> {
        let snapshot = self.snapshot.as_deref()?;
        let hint = &mut self.hints[site as usize % HINTS];
        let holds = |a: &Allocation| address.wrapping_sub(a.base) < a.size;
        let found = match snapshot.list.get(*hint as usize) {
            Some(last) if holds(last) => last,
            _ => {
                let at = snapshot.list.partition_point(|a| a.base <= address).checked_sub(1)?;
                let found = &snapshot.list[at];
                if !holds(found) {
                    return None;
                }
                *hint = at as u32;
                found
            }
        };
        match found.device {
            Some(owner) if owner != device && !*snapshot.peers.get((device * snapshot.devices + owner) as usize)? => None,
            _ => Some(found),
        }
    }
}
