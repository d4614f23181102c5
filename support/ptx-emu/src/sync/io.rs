//! How this family reaches memory.

use crate::memory::SharedMemory;

/// The 8 bytes of an mbarrier; 0 where there is no memory.
pub fn peek_shared(shared: &SharedMemory, address: u32) -> u64 {
    let at = address as usize;
    shared.data.get(at..at + 8).and_then(|b| <[u8; 8]>::try_from(b).ok()).map_or(0, u64::from_le_bytes)
}

/// Writes the 8 bytes of an mbarrier.
pub fn poke_shared(shared: &mut SharedMemory, address: u32, value: u64) {
    let at = address as usize;
    if let Some(bytes) = shared.data.get_mut(at..at + 8) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
}
