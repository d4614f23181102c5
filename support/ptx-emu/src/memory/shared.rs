//! Shared memory of a block.

use super::defined::words;
use crate::cx::SHARED_START;

/// The shared memory of a block; byte i of `data` has shared address i.
#[derive(Debug, Default)]
pub struct SharedMemory {
    /// Bytes, the reserved first ones included.
    pub data: Vec<u8>,
    /// A bit a byte: whether something wrote it. Empty when that is not tracked.
    defined: Vec<u64>,
}

impl SharedMemory {
    /// Shared addresses up to `size`; nothing counts as written. `track`: whether to keep which bytes something wrote.
    pub fn new(size: u32, track: bool) -> SharedMemory {
        let size = size as usize;
        SharedMemory { data: vec![0; size], defined: vec![0; if track { size.div_ceil(64) } else { 0 }] }
    }

    /// Where shared addresses end.
    #[inline]
    pub fn size(&self) -> u64 {
        self.data.len() as u64
    }

    /// Whether it is tracked which bytes were written.
    #[inline]
    pub fn tracked(&self) -> bool {
        !self.defined.is_empty()
    }

    /// Whether a range of addresses is inside, and not in the first bytes that are reserved.
    #[inline]
    pub fn holds(&self, address: u64, len: u64) -> bool {
        address >= u64::from(SHARED_START) && address.checked_add(len).is_some_and(|end| end <= self.size())
    }

    /// Bytes of a range; None when it is not inside. Says nothing about which bytes are defined.
    pub fn bytes(&self, address: u32, len: usize) -> Option<&[u8]> {
        self.holds(u64::from(address), len as u64).then(|| &self.data[address as usize..][..len])
    }

    /// Writes bytes, which count as written; false when the range is not inside.
    #[must_use]
    pub fn write(&mut self, address: u32, bytes: &[u8]) -> bool {
        if !self.holds(u64::from(address), bytes.len() as u64) {
            return false;
        }
        self.data[address as usize..][..bytes.len()].copy_from_slice(bytes);
        self.define(u64::from(address), bytes.len() as u64);
        true
    }

    /// Marks bytes as written; what is not inside is left out.
    #[inline]
    pub fn define(&mut self, address: u64, len: u64) {
        words(address, address.saturating_add(len), |word, mask| match self.defined.get_mut(word) {
            Some(bits) => {
                *bits |= mask;
                true
            }
            None => false,
        });
    }

    /// Marks bytes as not written; what is not inside is left out.
    pub fn undefine(&mut self, address: u64, len: u64) {
        words(address, address.saturating_add(len), |word, mask| match self.defined.get_mut(word) {
            Some(bits) => {
                *bits &= !mask;
                true
            }
            None => false,
        });
    }

    /// The first byte of a range that nothing wrote; None when all were written, or when nothing is tracked.
    #[inline]
    pub fn first_undefined(&self, address: u64, len: u64) -> Option<u64> {
        let mut found = None;
        words(address, address.saturating_add(len), |word, mask| {
            let Some(&bits) = self.defined.get(word) else { return false };
            let missing = mask & !bits;
            if missing != 0 {
                found = Some(word as u64 * 64 + u64::from(missing.trailing_zeros()));
            }
            missing == 0
        });
        found
    }
}
