//! Memory: global memory of all devices in one address space, shared memory of blocks, local memory of threads.

mod allocation;
mod defined;
mod global;
mod local;
mod shared;

pub use allocation::{Allocation, Word};
pub use global::{AllocOptions, AllocationInfo, Memory, MemoryError, Usage, View};
pub use local::LocalMemory;
pub use shared::SharedMemory;

#[cfg(test)]
mod tests;
