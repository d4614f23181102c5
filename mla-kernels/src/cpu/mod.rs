//! The kernels: written once over [`simd::Simd`], instantiated per instruction set, chosen by [`Kernels::detect`].
//!
//! **Queries lie in the lanes.** A block of [`LANES`] queries is transposed once to `[d, LANES]`; then the scores of a tile of keys
//! are `key value (broadcast) x query vector`, maximum, exponential and sum of the softmax are vertical, and the output is
//! accumulated as `[d_v, LANES]`, `value (broadcast) x probability vector`. Neither keys nor values are transposed, no sum
//! crosses lanes, and every chain of additions runs along keys or head dimensions in ascending order: the bits do not depend on
//! the width of a vector, on the tile, or on what the other lanes hold.

// Loops over the registers of a tile are written with indices: they unroll, and an iterator would hide which register is meant.
#![allow(clippy::needless_range_loop)]

mod attend;
mod backward;
mod decode;
mod forward;
mod simd;

pub(crate) use backward::BackwardHeads;
pub(crate) use decode::{DecodeSplit, merge_splits};
pub(crate) use forward::ForwardHead;

use std::cell::RefCell;
use v3_numerics::cpu::Isa;

/// Queries in a block, for every instruction set.
pub(crate) const LANES: usize = 32;

/// The three entry points, instantiated for one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    /// See [`ForwardHead`]. Safety: the task's contract; the processor has the instruction set.
    pub(crate) forward: unsafe fn(&ForwardHead),
    /// See [`BackwardHeads`]. Safety: as `forward`.
    pub(crate) backward: unsafe fn(&BackwardHeads),
    /// See [`DecodeSplit`]. Safety: as `forward`.
    pub(crate) decode: unsafe fn(&DecodeSplit<'_>),
}

/// Instantiates the kernels with tiles of `$wide` rows by two vectors. Those of one vector have eight rows.
macro_rules! instantiate {
    ($module:ident, $simd:ty, $wide:literal $(, #[$feature:meta])?) => {
        mod $module {
            use super::*;

            $(#[$feature])?
            unsafe fn forward(task: &ForwardHead) {
                // SAFETY: the caller's contract.
                unsafe { forward::run::<$simd, $wide>(task) }
            }
            $(#[$feature])?
            unsafe fn backward(task: &BackwardHeads) {
                // SAFETY: the caller's contract.
                unsafe { backward::run::<$simd, $wide>(task) }
            }
            $(#[$feature])?
            unsafe fn decode(task: &DecodeSplit<'_>) {
                // SAFETY: the caller's contract.
                unsafe { decode::run::<$simd, $wide>(task) }
            }
            pub(super) const KERNELS: Kernels = Kernels { forward, backward, decode };
        }
    };
}

instantiate!(portable, simd::Portable, 4);
#[cfg(target_arch = "x86_64")]
instantiate!(avx2, simd::Avx2, 4, #[target_feature(enable = "avx2,fma")]);
#[cfg(target_arch = "x86_64")]
instantiate!(avx512, simd::Avx512, 8, #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]);

impl Kernels {
    /// The kernels for the instruction set that [`Isa::detect`] names.
    pub(crate) fn detect() -> Self {
        match Isa::detect() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::KERNELS,
            _ => portable::KERNELS,
        }
    }
}

/// A pointer that parallel tasks share. Each task touches elements that no other touches while it runs.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub(crate) *mut f32);

impl Shared {
    /// The pointer `n` values on.
    ///
    /// # Safety
    /// It stays within the allocation.
    pub(crate) unsafe fn add(self, n: usize) -> Self {
        // SAFETY: the caller's contract.
        Self(unsafe { self.0.add(n) })
    }
}

// SAFETY: a Shared is only a number; who dereferences it states which elements are whose.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// A cache line of f32.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Scratch above this size is given back when a task ends.
const KEPT_LINES: usize = (16 << 20) / size_of::<Line>();

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// A thread's scratch buffer, given out in parts that are each aligned to a cache line. Dropping it keeps the buffer for the
/// next task of the thread.
///
/// (Not a function that calls a closure: a closure would be compiled without the instruction set of the kernel around it.)
struct Scratch {
    buffer: Vec<Line>,
    used: usize,
}

impl Scratch {
    /// At least `values` f32 (see [`scratch_values`]), whose content is arbitrary.
    fn new(values: usize) -> Self {
        // Taken out of its cell, so that a task that runs another one on this thread finds an empty one instead.
        let mut buffer = SCRATCH.with(|s| std::mem::take(&mut *s.borrow_mut()));
        let lines = values.div_ceil(16);
        if buffer.len() < lines {
            buffer.resize(lines, Line([0.0; 16]));
        }
        Self { buffer, used: 0 }
    }

    /// The next `values` f32, rounded up to a cache line. Parts never overlap; they are valid until the scratch is dropped.
    ///
    /// # Panics
    /// When the buffer is used up: sizes are computed in one place, by [`scratch_values`].
    fn take(&mut self, values: usize) -> *mut f32 {
        let lines = values.div_ceil(16);
        assert!(lines <= self.buffer.len() - self.used, "scratch is too small");
        // SAFETY: `used` lines are within the buffer, as just checked.
        let part = unsafe { self.buffer.as_mut_ptr().add(self.used) };
        self.used += lines;
        part.cast()
    }

    /// [`Scratch::take`] for each of `parts`.
    fn parts<const N: usize>(&mut self, parts: [usize; N]) -> [*mut f32; N] {
        parts.map(|n| self.take(n))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        if buffer.len() <= KEPT_LINES {
            // A thread that is ending has no cell any more; the buffer is simply freed then.
            let _ = SCRATCH.try_with(|s| *s.borrow_mut() = buffer);
        }
    }
}

/// The size that lets [`Scratch::take`] be called once with each of `parts`.
fn scratch_values(parts: &[usize]) -> usize {
    parts.iter().map(|p| p.next_multiple_of(16)).sum()
}
