//! Copies of rows that bypass the caches, to one or several places at once.
//!
//! A store that misses the caches first fetches the line it writes to; a *non-temporal* store of a whole line does not, and leaves the
//! caches to others. It pays for results that are larger than the caches anyway. Such stores are ordered with nothing: a copier ends
//! with [`Copier::finish`] before another thread may read what it has written.

use v3_numerics::cpu::Isa;

/// Results of at least this many bytes go past the caches.
pub(crate) const STREAM_BYTES: usize = 8 << 20;

/// The widest store, and the size of a cache line: stores past the caches are whole lines.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// How far ahead the source is asked for, in bytes: into the row that follows it, too, which is likely to be the next.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 2048;

/// Copies rows, past the caches or not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copier {
    /// With which instructions to store past the caches; `None`: through them.
    #[cfg(target_arch = "x86_64")]
    stream: Option<Wide>,
}

#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
enum Wide {
    Avx2,
    Avx512,
}

impl Copier {
    /// For a result of `bytes` in all.
    #[cfg(target_arch = "x86_64")]
    pub fn new(isa: Isa, bytes: usize) -> Copier {
        let wide = match isa.min(Isa::best_available()) {
            Isa::Portable => None,
            Isa::Avx2 => Some(Wide::Avx2),
            Isa::Avx512 | Isa::Avx512Bf16 => Some(Wide::Avx512),
        };
        Copier { stream: wide.filter(|_| bytes >= STREAM_BYTES) }
    }

    /// For a result of `bytes` in all.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn new(_: Isa, _: usize) -> Copier {
        Copier {}
    }

    /// Copies `len` bytes from `from` to each of `to`, reading them once.
    ///
    /// # Safety
    /// `len` bytes at `from` must be readable, `len` bytes at each of `to` writable by this thread alone, and none of them overlap.
    #[inline]
    pub unsafe fn copy(&self, from: *const u8, to: &[*mut u8], len: usize) {
        #[cfg(target_arch = "x86_64")]
        if let Some(wide) = self.stream.filter(|_| len >= 4 * LINE) {
            // Rows of whole lines are aligned alike wherever they begin.
            let alike = to.windows(2).all(|pair| pair[0].addr() % LINE == pair[1].addr() % LINE);
            let groups = if alike { to.chunks(to.len().max(1)) } else { to.chunks(1) };
            for group in groups {
                // SAFETY: the caller's; the processor has the instructions, or `new` would not have chosen them.
                unsafe {
                    match wide {
                        Wide::Avx2 => x86::stream_avx2(from, group, len),
                        Wide::Avx512 => x86::stream_avx512(from, group, len),
                    }
                }
            }
            return;
        }
        for &to in to {
            // SAFETY: the caller's.
            unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
        }
    }

    /// Asks for the incomplete lines at both ends of places that will be copied to soon. They go through the caches, and a store that waits for its
    /// line holds up all stores behind it. The places need not be valid.
    #[inline]
    pub fn prepare(&self, to: &[*mut u8], len: usize) {
        #[cfg(target_arch = "x86_64")]
        if self.stream.is_some() && len >= 4 * LINE {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            for to in to {
                for end in [*to, to.wrapping_add(len)] {
                    if end.addr() % LINE != 0 {
                        // SAFETY: a prefetch of any address has no effect but on the caches, and every x86-64 processor has it.
                        unsafe { _mm_prefetch::<_MM_HINT_T0>(end.cast()) };
                    }
                }
            }
        }
    }

    /// Makes what this thread has copied visible to whoever synchronises with it after.
    #[inline]
    pub fn finish(&self) {
        #[cfg(target_arch = "x86_64")]
        if self.stream.is_some() {
            // SAFETY: a fence touches no memory, and every x86-64 processor has it.
            unsafe { std::arch::x86_64::_mm_sfence() };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{AHEAD, LINE};
    use std::arch::x86_64::*;

    /// The bytes before the first whole line of the destination, and the end of the last one. `len` is at least a line.
    #[inline(always)]
    fn whole_lines(to: *const u8, len: usize) -> (usize, usize) {
        let head = to.addr().wrapping_neg() % LINE;
        (head, head + (len - head) / LINE * LINE)
    }

    /// The incomplete lines at both ends, through the caches.
    ///
    /// # Safety
    /// As [`Copier::copy`](super::Copier::copy).
    #[inline(always)]
    unsafe fn ends(from: *const u8, to: &[*mut u8], len: usize, (head, end): (usize, usize)) {
        for &to in to {
            // SAFETY: both lie inside the `len` bytes.
            unsafe {
                std::ptr::copy_nonoverlapping(from, to, head);
                std::ptr::copy_nonoverlapping(from.add(end), to.add(end), len - end);
            }
        }
    }

    /// # Safety
    /// As [`Copier::copy`](super::Copier::copy); all of `to` aligned alike, `len` at least a line.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn stream_avx512(from: *const u8, to: &[*mut u8], len: usize) {
        let Some(&first) = to.first() else { return };
        let (head, end) = whole_lines(first, len);
        // SAFETY: the caller's; `head..end` is inside `0..len`, and there the destinations are aligned to a line.
        unsafe {
            ends(from, to, len, (head, end));
            let mut at = head;
            while at + 4 * LINE <= end {
                for line in 0..4 {
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(at + AHEAD + line * LINE).cast());
                }
                let x: [__m512i; 4] = std::array::from_fn(|i| _mm512_loadu_si512(from.add(at + i * LINE).cast()));
                for to in to {
                    for (i, x) in x.into_iter().enumerate() {
                        _mm512_stream_si512(to.add(at + i * LINE).cast(), x);
                    }
                }
                at += 4 * LINE;
            }
            while at < end {
                let x = _mm512_loadu_si512(from.add(at).cast());
                for to in to {
                    _mm512_stream_si512(to.add(at).cast(), x);
                }
                at += LINE;
            }
        }
    }

    /// # Safety
    /// As [`stream_avx512`].
    #[target_feature(enable = "avx2")]
    pub unsafe fn stream_avx2(from: *const u8, to: &[*mut u8], len: usize) {
        let Some(&first) = to.first() else { return };
        let (head, end) = whole_lines(first, len);
        // SAFETY: as above; half a line is aligned to its size.
        unsafe {
            ends(from, to, len, (head, end));
            let mut at = head;
            while at < end {
                let low = _mm256_loadu_si256(from.add(at).cast());
                let high = _mm256_loadu_si256(from.add(at + LINE / 2).cast());
                for to in to {
                    _mm256_stream_si256(to.add(at).cast(), low);
                    _mm256_stream_si256(to.add(at + LINE / 2).cast(), high);
                }
                at += LINE;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alignment_and_length() {
        let source: Vec<u8> = (0..2000usize).map(|i| (i * 7 + i / 251) as u8).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for bytes in [0, STREAM_BYTES] {
                let copier = Copier::new(isa, bytes);
                for len in [0, 1, 63, 64, 255, 256, 257, 319, 640, 1000] {
                    // Destinations aligned alike, and not.
                    for (skew, gap) in [(0, 1024), (16, 1024), (1, 1024), (63, 1024), (0, 1000), (5, 1001)] {
                        for from in [0, 1, 32] {
                            for copies in 0..4 {
                                let mut out = vec![0xaa_u8; 64 + 64 + copies * 1024 + 64];
                                let base = out.as_ptr().addr().wrapping_neg() % 64 + skew;
                                let start = out.as_mut_ptr();
                                // SAFETY: `base` is below 128, and rows of at most 1000 bytes begin 1024 or fewer bytes apart.
                                let to: Vec<*mut u8> = (0..copies).map(|i| unsafe { start.add(base + i * gap) }).collect();
                                // SAFETY: in bounds as above, and rows do not overlap: `gap` is at least `len`.
                                unsafe { copier.copy(source[from..].as_ptr(), &to, len) };
                                copier.finish();
                                for i in 0..copies {
                                    let row = base + i * gap..base + i * gap + len;
                                    assert_eq!(out[row.clone()], source[from..from + len], "{isa} {len} {skew} {gap} {from}");
                                    out[row].fill(0xaa);
                                }
                                assert!(out.iter().all(|&x| x == 0xaa), "{isa} {len} {skew} {gap} {from}: written elsewhere");
                            }
                        }
                    }
                }
            }
        }
    }
}
