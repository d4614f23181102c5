//! Memory: global memory of all devices in one address space, shared memory of blocks, local memory of threads.

/// Global memory of all devices, one address space.
#[derive(Debug, Default)]
pub struct Memory {}

/// The shared memory of a block; byte i of `data` has shared address i.
#[derive(Debug, Default)]
pub struct SharedMemory {
    /// Bytes, the reserved first ones included.
    pub data: Vec<u8>,
}

/// Local memory of a warp's lanes.
#[derive(Debug, Default)]
pub struct LocalMemory {}
