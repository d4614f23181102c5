//! One allocation: its bytes, which threads of the machine access at the same time.

use super::defined::Defined;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// What one machine instruction loads or stores whole, so that threads of the machine that race see one value or the other, as threads of a
/// GPU do. Little-endian in memory, as on a GPU.
pub trait Word: Copy + Default {
    /// Loads, with no order.
    ///
    /// # Safety
    /// `from` is aligned for the type, and valid for reads; others change what is there only by atomic operations meanwhile.
    unsafe fn load(from: *mut u8) -> Self;

    /// Stores, with no order.
    ///
    /// # Safety
    /// `to` is aligned for the type, and valid for writes; others access what is there only by atomic operations meanwhile.
    unsafe fn store(to: *mut u8, value: Self);

    /// Loads what only this thread accesses, at any alignment.
    ///
    /// # Safety
    /// `from` is valid for reads.
    unsafe fn load_own(from: *const u8) -> Self;

    /// Stores where only this thread has access, at any alignment.
    ///
    /// # Safety
    /// `to` is valid for writes.
    unsafe fn store_own(to: *mut u8, value: Self);

    /// Replaces a value by a function of it, as one operation; gives the old value.
    ///
    /// # Safety
    /// `to` is aligned for the type, and valid for reads and writes; others access what is there only by atomic operations meanwhile.
    unsafe fn update(to: *mut u8, new: impl Fn(Self) -> Self) -> Self;
}

macro_rules! words {
    ($($t:ty, $atomic:ty);*) => { $(
        impl Word for $t {
            #[inline(always)]
            unsafe fn load(from: *mut u8) -> $t {
                // SAFETY: the caller promises what this wants.
                <$t>::from_le(unsafe { <$atomic>::from_ptr(from.cast()) }.load(Ordering::Relaxed))
            }

            #[inline(always)]
            unsafe fn store(to: *mut u8, value: $t) {
                // SAFETY: the caller promises what this wants.
                unsafe { <$atomic>::from_ptr(to.cast()) }.store(value.to_le(), Ordering::Relaxed);
            }

            #[inline(always)]
            unsafe fn load_own(from: *const u8) -> $t {
                // SAFETY: the caller promises what this wants.
                <$t>::from_le(unsafe { from.cast::<$t>().read_unaligned() })
            }

            #[inline(always)]
            unsafe fn store_own(to: *mut u8, value: $t) {
                // SAFETY: the caller promises what this wants.
                unsafe { to.cast::<$t>().write_unaligned(value.to_le()) };
            }

            #[inline]
            unsafe fn update(to: *mut u8, new: impl Fn($t) -> $t) -> $t {
                // SAFETY: the caller promises what this wants.
                let atomic = unsafe { <$atomic>::from_ptr(to.cast()) };
                let mut old = atomic.load(Ordering::Relaxed);
                loop {
                    let value = new(<$t>::from_le(old)).to_le();
                    match atomic.compare_exchange_weak(old, value, Ordering::AcqRel, Ordering::Relaxed) {
                        Ok(old) => return <$t>::from_le(old),
                        Err(other) => old = other,
                    }
                }
            }
        }
    )* };
}
words!(u8, AtomicU8; u16, AtomicU16; u32, AtomicU32; u64, AtomicU64);

/// One allocation of global memory. Its bytes are shared by host threads and by the threads that run blocks; all access is by atomic loads
/// and stores, so that a race of the emulated program is none of this one.
pub struct Allocation {
    pub(super) base: u64,
    pub(super) size: u64,
    /// None: pinned host memory.
    pub(super) device: Option<u32>,
    pub(super) constant: bool,
    pub(super) name: Option<Arc<str>>,
    pub(super) defined: Option<Defined>,
    data: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the bytes are accessed through atomics only (or by whoever took the raw pointer of pinned memory, under a promise of its own).
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl std::fmt::Debug for Allocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Allocation({:#x}, {} bytes, device {:?})", self.base, self.size, self.device)
    }
}

impl Allocation {
    /// None when the host has not enough memory. `size` is not 0.
    pub(super) fn new(
        base: u64,
        size: u64,
        device: Option<u32>,
        constant: bool,
        name: Option<Arc<str>>,
        track: bool,
    ) -> Option<Allocation> {
        let bytes = usize::try_from(size).ok()?.max(1).checked_next_multiple_of(16)?;
        // An alignment of 16 is what the system's allocator gives anyway: then it takes zeroed pages from the system and nothing is
        // committed before it is touched. Device addresses are aligned to more, but only their low 4 bits matter to an access.
        let layout = Layout::from_size_align(bytes, 16).ok()?;
        let defined = if track { Some(Defined::new(size)?) } else { None };
        // SAFETY: the size is not 0.
        let data = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Allocation { base, size, device, constant, name, defined, data, layout })
    }

    /// Device address of its first byte.
    #[inline]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// In bytes.
    #[inline]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where its bytes are on the host, aligned to 16. Valid for `size` bytes while the allocation lives.
    #[inline]
    pub fn pointer(&self) -> *mut u8 {
        self.data.as_ptr()
    }

    /// Whether it is tracked which bytes were written.
    #[inline]
    pub fn tracked(&self) -> bool {
        self.defined.is_some()
    }

    /// Whether kernels may only read it.
    pub fn constant(&self) -> bool {
        self.constant
    }

    fn check(&self, offset: u64, len: usize) {
        assert!(
            offset.checked_add(len as u64).is_some_and(|end| end <= self.size),
            "{len} bytes at {offset} of an allocation of {} bytes",
            self.size
        );
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// When the range is not inside the allocation: callers check addresses first.
    pub fn copy_out(&self, offset: u64, to: &mut [u8]) {
        self.check(offset, to.len());
        // SAFETY: the whole range was just checked.
        let from = unsafe { self.data.as_ptr().add(offset as usize) };
        let head = ((8 - offset % 8) % 8).min(to.len() as u64) as usize;
        let (head, rest) = to.split_at_mut(head);
        for (i, byte) in head.iter_mut().enumerate() {
            // SAFETY: inside the range.
            *byte = unsafe { u8::load(from.add(i)) };
        }
        let (words, tail) = rest.as_chunks_mut::<8>();
        let middle = head.len();
        for (i, word) in words.iter_mut().enumerate() {
            // SAFETY: inside the range; the data is aligned to 16 and `offset + middle` to 8.
            *word = unsafe { u64::load(from.add(middle + 8 * i)) }.to_le_bytes();
        }
        let end = middle + 8 * words.len();
        for (i, byte) in tail.iter_mut().enumerate() {
            // SAFETY: inside the range.
            *byte = unsafe { u8::load(from.add(end + i)) };
        }
    }

    /// Copies bytes in; says nothing about which bytes are defined.
    ///
    /// # Panics
    /// When the range is not inside the allocation: callers check addresses first.
    pub fn copy_in(&self, offset: u64, from: &[u8]) {
        self.check(offset, from.len());
        // SAFETY: the whole range was just checked.
        let to = unsafe { self.data.as_ptr().add(offset as usize) };
        let head = ((8 - offset % 8) % 8).min(from.len() as u64) as usize;
        let (head, rest) = from.split_at(head);
        for (i, &byte) in head.iter().enumerate() {
            // SAFETY: inside the range.
            unsafe { u8::store(to.add(i), byte) };
        }
        let (words, tail) = rest.as_chunks::<8>();
        let middle = head.len();
        for (i, &word) in words.iter().enumerate() {
            // SAFETY: inside the range; the data is aligned to 16 and `offset + middle` to 8.
            unsafe { u64::store(to.add(middle + 8 * i), u64::from_le_bytes(word)) };
        }
        let end = middle + 8 * words.len();
        for (i, &byte) in tail.iter().enumerate() {
            // SAFETY: inside the range.
            unsafe { u8::store(to.add(end + i), byte) };
        }
    }

    /// Marks bytes as written. The range must be inside the allocation.
    #[inline]
    pub fn define(&self, offset: u64, len: u64) {
        if let Some(defined) = &self.defined {
            defined.define(offset, len);
        }
    }

    /// Marks bytes as not written. The range must be inside the allocation.
    pub fn undefine(&self, offset: u64, len: u64) {
        if let Some(defined) = &self.defined {
            defined.undefine(offset, len);
        }
    }

    /// The offset of the first byte of a range, which must be inside the allocation, that nothing wrote; None when all were written, or
    /// when nothing is tracked.
    #[inline]
    pub fn first_undefined(&self, offset: u64, len: u64) -> Option<u64> {
        self.defined.as_ref()?.first_undefined(offset, len)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { dealloc(self.data.as_ptr(), self.layout) };
    }
}
