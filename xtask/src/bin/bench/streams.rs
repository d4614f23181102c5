//! Memory at its fastest: what the kernels that move rows are held against. Stores go past the caches, whole lines at a time.
//!
//! Bytes of rows count, those read and those written; a store past the caches fetches nothing first.

use rayon::prelude::*;
use std::hint::black_box;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u64; 8]);

/// Bytes of a [`Line`].
pub const LINE: usize = size_of::<Line>();

/// `bytes` bytes, in whole lines, that have been touched.
pub fn lines(bytes: usize) -> Vec<Line> {
    vec![Line([1; 8]); bytes.div_ceil(LINE)]
}

/// Lines that each thread gets.
fn part(lines: usize) -> usize {
    lines.div_ceil(rayon::current_num_threads()).max(1)
}

/// Fills memory.
pub fn fill(out: &mut [Line]) {
    let part = part(out.len());
    out.par_chunks_mut(part).for_each(|out| copy::<1>(&[Line([2; 8]); 4], out, usize::MAX));
    black_box(out);
}

/// Copies each row of `from`, of `row` lines, to eight rows of `out` that follow each other: the reads and writes of top-8 dispatch, in order.
pub fn spread(from: &[Line], row: usize, out: &mut [Line]) {
    let rows = part(from.len() / row);
    out.par_chunks_mut(8 * rows * row).zip(from.par_chunks(rows * row)).for_each(|(out, from)| {
        for (out, from) in out.chunks_exact_mut(8 * row).zip(from.chunks_exact(row)) {
            copy::<8>(from, out, row);
        }
    });
    black_box(out);
}

/// Reads memory in eight places at a time on each thread, asking a KiB ahead: as fast as a core does, faster than from one end to the other.
pub fn read(from: &[Line]) {
    let part = part(from.len());
    black_box(from.par_chunks(part).map(read_part).reduce(|| 0, u64::wrapping_add));
}

/// `from` to each of `N` runs of `out`, of `row` lines each; when `row` is larger than all of `out`, the same lines over and over.
fn copy<const N: usize>(from: &[Line], out: &mut [Line], row: usize) {
    let over_and_over = row >= out.len();
    let row = row.min(out.len());
    assert!(over_and_over || (N * row <= out.len() && row <= from.len()), "rows are inside");
    #[cfg(target_arch = "x86_64")]
    {
        let from = |at: usize| if over_and_over { &from[at % from.len()] } else { &from[at] };
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F.
            unsafe { x86::copy_avx512::<N>(from, out, row) };
        } else {
            x86::copy_sse2::<N>(from, out, row);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    for at in 0..row {
        for copy in 0..N {
            out[copy * row + at] = from[at % from.len()];
        }
    }
}

fn read_part(from: &[Line]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512F.
        return unsafe { x86::read_avx512(from) };
    }
    let mut sums = [0u64; 8];
    for line in from {
        sums.iter_mut().zip(line.0).for_each(|(sum, x)| *sum = sum.wrapping_add(x));
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Line;
    use std::arch::x86_64::*;

    /// Lines that are handled together.
    const TOGETHER: usize = 4;
    /// Places that are read at a time.
    const PLACES: usize = 8;
    /// Lines to ask for ahead.
    const AHEAD: usize = 16;

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn copy_avx512<'a, const N: usize>(from: impl Fn(usize) -> &'a Line, out: &mut [Line], row: usize) {
        let start = out.as_mut_ptr();
        let mut at = 0;
        while at < row {
            let together = TOGETHER.min(row - at);
            let mut x = [_mm512_setzero_si512(); TOGETHER];
            for (i, x) in x.iter_mut().enumerate().take(together) {
                // SAFETY: a line is 64 bytes.
                *x = unsafe { _mm512_loadu_si512(std::ptr::from_ref(from(at + i)).cast()) };
            }
            for copy in 0..N {
                for (i, x) in x.into_iter().enumerate().take(together) {
                    // SAFETY: line `copy * row + at + i` is inside `out`, whose lines are aligned.
                    unsafe { _mm512_stream_si512(start.add(copy * row + at + i).cast(), x) };
                }
            }
            at += together;
        }
        _mm_sfence();
    }

    #[inline]
    pub fn copy_sse2<'a, const N: usize>(from: impl Fn(usize) -> &'a Line, out: &mut [Line], row: usize) {
        let start = out.as_mut_ptr();
        for at in 0..row {
            let line = std::ptr::from_ref(from(at)).cast::<__m128i>();
            for copy in 0..N {
                for quarter in 0..4 {
                    // SAFETY: a line is four aligned quarters, and line `copy * row + at` is inside `out`; every x86-64 processor has SSE2.
                    unsafe {
                        _mm_stream_si128(
                            start.add(copy * row + at).cast::<__m128i>().add(quarter),
                            _mm_load_si128(line.add(quarter)),
                        )
                    };
                }
            }
        }
        // SAFETY: as above.
        unsafe { _mm_sfence() };
    }

    #[target_feature(enable = "avx512f")]
    pub fn read_avx512(from: &[Line]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); TOGETHER];
        let part = from.len() / PLACES;
        let start = from.as_ptr();
        let mut at = 0;
        while at + TOGETHER <= part {
            for place in 0..PLACES {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let line = start.wrapping_add(place * part + at + i);
                    _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(AHEAD).cast());
                    // SAFETY: inside `from`: `at + i` is below `part`.
                    *sum = _mm512_add_epi64(*sum, unsafe { _mm512_load_si512(line.cast()) });
                }
            }
            at += TOGETHER;
        }
        let sum = sums.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_add_epi64(a, b));
        _mm512_reduce_add_epi64(sum) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_where_they_belong() {
        let (rows, row) = (5, 7);
        let from: Vec<Line> = (0..rows * row).map(|i| Line([i as u64; 8])).collect();
        let mut out = lines(8 * rows * row * LINE);
        spread(&from, row, &mut out);
        for (i, line) in out.iter().enumerate() {
            assert_eq!(line.0, [(i / row / 8 * row + i % row) as u64; 8]);
        }
        fill(&mut out);
        assert!(out.iter().all(|line| line.0 == [2; 8]));
        assert_eq!(read_part(&out), (out.len() / 8 / 4 * 4 * 8 * 16) as u64);
    }
}
