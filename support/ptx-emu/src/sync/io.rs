//! How asynchronous operations reach memory.

use super::parts::Place;
use crate::cx::{Block, Cx};
use crate::detect::Detector;
use crate::fault::{Exec, Fault};
use crate::machine::{Env, Launch};
use crate::memory::{Allocation, SharedMemory, View};
use crate::report::Kind;
use crate::tma::Reduction;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// The 8 bytes of an mbarrier; 0 where there is no memory.
pub fn peek_shared(shared: &SharedMemory, address: u32) -> u64 {
    shared.bytes(address, 8).and_then(|b| <[u8; 8]>::try_from(b).ok()).map_or(0, u64::from_le_bytes)
}

/// Writes the 8 bytes of an mbarrier, which was checked to be inside.
pub fn poke_shared(shared: &mut SharedMemory, address: u32, value: u64) {
    let at = address as usize;
    if let Some(bytes) = shared.data.get_mut(at..at + 8) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
}

/// What operations in flight work on.
pub struct World<'a> {
    /// Memory, settings.
    pub env: &'a Env,
    /// The launch.
    pub launch: &'a Launch,
    /// Blocks of the cluster.
    pub blocks: &'a mut [Block],
    /// Detectors.
    pub detector: Option<&'a mut Detector>,
    /// How allocations are found.
    pub view: &'a mut View,
}

/// What is done with global memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Read.
    Read,
    /// Written, or read and written.
    Write,
}

fn no_shared(place: Place, len: usize) -> Box<Fault> {
    let Place { rank, address } = place;
    Fault::new(Kind::OutOfBounds, format!("{len} bytes at shared address {address:#x} of block {rank} of the cluster"))
}

impl World<'_> {
    /// The allocation of a range and the offset in it.
    fn global(&mut self, site: u32, address: u64, len: u64) -> Exec<(&Allocation, u64)> {
        let device = self.launch.device;
        let memory = &self.env.memory;
        let found = self.view.find(memory, device, site, address);
        match found {
            Some(allocation) if len <= allocation.size() - (address - allocation.base()) => {
                Ok((allocation, address - allocation.base()))
            }
            _ => Err(Fault::new(
                Kind::OutOfBounds,
                format!("{len} bytes at {address:#x}: {}", memory.explain(device, address, len)),
            )),
        }
    }

    /// Checks that a range of global memory may be used, and where it is read, that all of it was written.
    pub fn check_global(&mut self, site: u32, address: u64, len: u64, how: Use, what: &str) -> Exec {
        if len == 0 {
            return Ok(());
        }
        let (allocation, offset) = self.global(site, address, len).map_err(|mut fault| {
            fault.message = format!("{what}: {}", fault.message);
            fault
        })?;
        match how {
            Use::Write if allocation.constant() => {
                Err(Fault::new(Kind::OutOfBounds, format!("{what}: {len} bytes at {address:#x} are constant memory")))
            }
            Use::Read if let Some(at) = allocation.first_undefined(offset, len) => {
                let message = format!(
                    "{what} reads {len} bytes at {address:#x}: byte {} of the allocation of {} bytes at {:#x} was never written",
                    at,
                    allocation.size(),
                    allocation.base()
                );
                Err(Fault::new(Kind::UninitializedMemory, message))
            }
            _ => Ok(()),
        }
    }

    /// Checks that all of a range of shared memory, which is known to be inside, was written.
    pub fn check_defined(&self, place: Place, len: u64, what: &str) -> Exec {
        let Some(block) = self.blocks.get(place.rank) else { return Ok(()) };
        match block.shared.first_undefined(u64::from(place.address), len) {
            None => Ok(()),
            Some(at) => {
                let message = format!(
                    "{what} reads {len} bytes at shared address {:#x}: the byte at {at:#x} was never written",
                    place.address
                );
                Err(Fault::new(Kind::UninitializedMemory, message))
            }
        }
    }

    /// With the race detector on, bytes count as written as soon as the operation that will write them is issued: reading them
    /// before it is complete is a race, and is reported as one.
    pub fn announce_shared(&mut self, place: Place, len: u64) {
        if self.detector.is_some()
            && let Some(block) = self.blocks.get_mut(place.rank)
        {
            block.shared.define(u64::from(place.address), len);
        }
    }

    /// The same for global memory.
    pub fn announce_global(&mut self, site: u32, address: u64, len: u64) -> Exec {
        if self.detector.is_some() && len > 0 {
            let (allocation, offset) = self.global(site, address, len)?;
            allocation.define(offset, len);
        }
        Ok(())
    }

    /// Reads global memory.
    pub fn read_global(&mut self, site: u32, address: u64, to: &mut [u8]) -> Exec {
        if to.is_empty() {
            return Ok(());
        }
        let (allocation, offset) = self.global(site, address, to.len() as u64)?;
        allocation.copy_out(offset, to);
        Ok(())
    }

    /// Writes global memory.
    pub fn write_global(&mut self, site: u32, address: u64, from: &[u8]) -> Exec {
        if from.is_empty() {
            return Ok(());
        }
        let (allocation, offset) = self.global(site, address, from.len() as u64)?;
        allocation.copy_in(offset, from);
        allocation.define(offset, from.len() as u64);
        Ok(())
    }

    /// Combines elements with what is in global memory, each one atomically.
    pub fn reduce_global(&mut self, site: u32, address: u64, from: &[u8], reduction: &Reduction) -> Exec {
        let size = reduction.element_bytes();
        if from.is_empty() {
            return Ok(());
        }
        if !address.is_multiple_of(size as u64) {
            return Err(Fault::new(Kind::Misaligned, format!("a reduction of {size}-byte elements at {address:#x}")));
        }
        let (allocation, offset) = self.global(site, address, from.len() as u64)?;
        for (i, element) in from.chunks_exact(size).enumerate() {
            let operand = element.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
            // SAFETY: the range is inside the allocation, of which `offset` is the first byte.
            let to = unsafe { allocation.pointer().add(offset as usize + i * size) };
            // Allocations are aligned to 16 on the host and to more on the device, and the address is a multiple of the element's size.
            match size {
                2 => {
                    // SAFETY: aligned and inside the allocation, whose bytes are accessed by atomic operations only.
                    let cell = unsafe { AtomicU16::from_ptr(to.cast()) };
                    let change = |old: u16| Some((reduction.element(u64::from(u16::from_le(old)), operand) as u16).to_le());
                    let _ = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
                }
                4 => {
                    // SAFETY: as above.
                    let cell = unsafe { AtomicU32::from_ptr(to.cast()) };
                    let change = |old: u32| Some((reduction.element(u64::from(u32::from_le(old)), operand) as u32).to_le());
                    let _ = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
                }
                _ => {
                    // SAFETY: as above.
                    let cell = unsafe { AtomicU64::from_ptr(to.cast()) };
                    let change = |old: u64| Some(reduction.element(u64::from_le(old), operand).to_le());
                    let _ = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
                }
            }
        }
        Ok(())
    }

    /// Reads shared memory.
    pub fn read_shared(&self, place: Place, to: &mut [u8]) -> Exec {
        match self.blocks.get(place.rank).and_then(|b| b.shared.bytes(place.address, to.len())) {
            Some(bytes) => {
                to.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(no_shared(place, to.len())),
        }
    }

    /// Writes shared memory.
    pub fn write_shared(&mut self, place: Place, from: &[u8]) -> Exec {
        let written = self.blocks.get_mut(place.rank).is_some_and(|block| block.shared.write(place.address, from));
        if written { Ok(()) } else { Err(no_shared(place, from.len())) }
    }
}

/// What an instruction that issues operations works on.
pub fn world<'a>(cx: &'a mut Cx<'_>) -> (World<'a>, &'a mut super::queue::Queue) {
    let cluster = &mut *cx.cluster;
    let world = World {
        env: cx.env,
        launch: cx.launch,
        blocks: &mut *cx.blocks,
        detector: cx.detector.as_deref_mut(),
        view: &mut cluster.view,
    };
    (world, &mut cluster.queue)
}
