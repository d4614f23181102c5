//! Memory: global memory of all devices in one address space, shared memory of blocks, local memory of threads.

use crate::fault::Exec;
use crate::regs::Mask;

/// What is wrong with an access of the host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// Nothing is allocated there.
    #[error("address {address:#x}: nothing is allocated there")]
    NoAllocation {
        /// The address.
        address: u64,
    },
}

/// Global memory of all devices, one address space.
#[derive(Debug, Default)]
pub struct Memory {}

impl Memory {
    /// Empty. `track`: whether to keep which bytes were written.
    pub fn new(_devices: u32, _track: bool) -> Memory {
        Memory {}
    }

    /// Allocates bytes on a device.
    pub fn alloc(&self, _device: u32, _bytes: u64) -> Result<u64, MemoryError> {
        Err(MemoryError::NoAllocation { address: 0 })
    }

    /// Frees an allocation.
    pub fn free(&self, address: u64) -> Result<(), MemoryError> {
        Err(MemoryError::NoAllocation { address })
    }

    /// Copies host bytes in.
    pub fn write(&self, address: u64, _bytes: &[u8]) -> Result<(), MemoryError> {
        Err(MemoryError::NoAllocation { address })
    }

    /// Copies bytes out to the host.
    pub fn read(&self, address: u64, _bytes: &mut [u8]) -> Result<(), MemoryError> {
        Err(MemoryError::NoAllocation { address })
    }

    /// Fills bytes.
    pub fn fill(&self, address: u64, _value: u8, _bytes: u64) -> Result<(), MemoryError> {
        Err(MemoryError::NoAllocation { address })
    }

    /// Copies between addresses, which may overlap.
    pub fn copy(&self, to: u64, _from: u64, _bytes: u64) -> Result<(), MemoryError> {
        Err(MemoryError::NoAllocation { address: to })
    }
}

/// The shared memory of a block; byte i of `data` has shared address i.
#[derive(Debug, Default)]
pub struct SharedMemory {
    /// Bytes, the reserved first ones included.
    pub data: Vec<u8>,
}

impl SharedMemory {
    /// Shared addresses up to `size`. `track`: whether to keep which bytes were written.
    pub fn new(size: u32, _track: bool) -> SharedMemory {
        SharedMemory { data: vec![0; size as usize] }
    }
}

/// Local memory of a warp's lanes.
#[derive(Debug, Default)]
pub struct LocalMemory {}

impl LocalMemory {
    /// Makes room for an activation whose part begins at `base`, and forgets what was there, in the given lanes.
    pub fn enter(&mut self, _base: u32, _size: u32, _mask: Mask) -> Exec {
        Ok(())
    }

    /// Reads a lane's bytes; whether all of them were written before.
    pub fn read(&self, _lane: usize, _address: u32, _bytes: &mut [u8]) -> Exec<bool> {
        Ok(false)
    }

    /// Writes a lane's bytes, as defined or not.
    pub fn write(&mut self, _lane: usize, _address: u32, _bytes: &[u8], _defined: bool) -> Exec {
        Ok(())
    }

    /// A digest of everything in it.
    pub fn digest(&self, hash: u64) -> u64 {
        hash
    }
}
