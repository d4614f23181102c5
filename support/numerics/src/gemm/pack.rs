//! Copies of the operands in the order in which the kernel reads them.

use super::kernel::{A_STRIDE, PANEL};
use crate::simd::{Kernel, LANES, Simd};
use crate::view::MatRef;

/// The width in memory of a panel with this many columns of its own.
pub(super) fn panel_width(cols: usize) -> usize {
    if cols <= LANES { LANES } else { PANEL }
}

/// Packs columns of B, `[k, cols]` with `cols <= PANEL`, as `out[p * width + j]`; columns up to the width are zero.
pub(super) struct PackB<'a> {
    pub b: MatRef<'a, f32>,
    /// Room for `k * panel_width(cols)` values.
    pub out: *mut f32,
}

impl Kernel for PackB<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (k, cols) = (self.b.rows(), self.b.cols());
        let width = panel_width(cols);
        let (rs, cs) = (self.b.row_stride(), self.b.col_stride());
        let b = self.b.as_ptr();
        // SAFETY: every element read lies in the view, and `out` holds `k` rows of `width` values.
        unsafe {
            if cs == 1 {
                for p in 0..k {
                    let row = b.add(p * rs);
                    let out = self.out.add(p * width);
                    // The next panel, most likely.
                    s.prefetch(row.wrapping_add(PANEL));
                    s.prefetch(row.wrapping_add(PANEL + LANES));
                    if cols == PANEL {
                        s.store_ptr(s.load_ptr(row), out);
                        s.store_ptr(s.load_ptr(row.add(LANES)), out.add(LANES));
                    } else {
                        for v in 0..width / LANES {
                            let left = cols - v * LANES;
                            let x = s.load_partial(std::slice::from_raw_parts(row.add(v * LANES), left.min(LANES)));
                            s.store_ptr(x, out.add(v * LANES));
                        }
                    }
                }
                return;
            }
            for v in 0..width / LANES {
                let own = (cols - v * LANES).min(LANES);
                let b = b.add(v * LANES * cs);
                let out = self.out.add(v * LANES);
                let mut p = 0;
                if rs == 1 {
                    while p + LANES <= k {
                        let mut rows = [s.splat(0.0); LANES];
                        for (j, row) in rows.iter_mut().enumerate().take(own) {
                            *row = s.load_ptr(b.add(j * cs + p));
                        }
                        for (i, column) in s.transpose(rows).into_iter().enumerate() {
                            s.store_ptr(column, out.add((p + i) * width));
                        }
                        p += LANES;
                    }
                }
                for p in p..k {
                    for j in 0..LANES {
                        *out.add(p * width + j) = if j < own { *b.add(p * rs + j * cs) } else { 0.0 };
                    }
                }
            }
        }
    }
}

/// The layout of a packed A.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ALayout {
    /// `out[i * A_STRIDE + p]`: what a row-major A is copied to.
    RowMajor,
    /// Tiles of rows one after the other, each `out[p * 16 + i]`: what a transposed A is copied to.
    KMajor,
}

/// Packs rows of A, `[rows, kc]`, in tiles whose heights `tiles` lists.
pub(super) struct PackA<'a> {
    pub a: MatRef<'a, f32>,
    pub layout: ALayout,
    pub tiles: Tiles,
    /// Room for [`packed_a_len`] values.
    pub out: *mut f32,
}

/// The number of values of a packed A.
pub(super) fn packed_a_len(layout: ALayout, tiles: Tiles, kc: usize) -> usize {
    match layout {
        ALayout::RowMajor => tiles.rows * A_STRIDE,
        ALayout::KMajor => tiles.count * kc * LANES,
    }
}

impl Kernel for PackA<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (m, kc) = (self.a.rows(), self.a.cols());
        let (rs, cs) = (self.a.row_stride(), self.a.col_stride());
        let a = self.a.as_ptr();
        // SAFETY: every element read lies in the view, and `out` has the room.
        unsafe {
            match self.layout {
                ALayout::RowMajor => {
                    for i in 0..m {
                        let (row, out) = (a.add(i * rs), self.out.add(i * A_STRIDE));
                        if cs == 1 {
                            std::ptr::copy_nonoverlapping(row, out, kc);
                        } else {
                            for p in 0..kc {
                                *out.add(p) = *row.add(p * cs);
                            }
                        }
                    }
                }
                ALayout::KMajor => {
                    // A few steps of k at a time: reads run along a few rows of the source, writes fill lines that lie together.
                    const STEPS: usize = 8;
                    for start in (0..kc).step_by(STEPS) {
                        let end = kc.min(start + STEPS);
                        for t in 0..self.tiles.count {
                            let (first, rows) = self.tiles.get(t);
                            let out = self.out.add(t * kc * LANES);
                            // Sixteen rows may be read where the matrix has them; the kernel uses the first only.
                            let whole = first + LANES <= m;
                            for p in start..end {
                                let column = a.add(first + p * cs);
                                let x = if whole {
                                    s.load_ptr(column)
                                } else {
                                    s.load_partial(std::slice::from_raw_parts(column, rows))
                                };
                                s.store_ptr(x, out.add(p * LANES));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A number of rows cut into tiles whose heights differ by one at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles {
    pub rows: usize,
    pub count: usize,
}

impl Tiles {
    pub(super) fn new(rows: usize, largest: usize) -> Tiles {
        Tiles { rows, count: rows.div_ceil(largest) }
    }

    /// The first row and the number of rows of tile `t`.
    #[inline(always)]
    pub(super) fn get(&self, t: usize) -> (usize, usize) {
        let (small, larger) = (self.rows / self.count, self.rows % self.count);
        (t * small + t.min(larger), small + usize::from(t < larger))
    }
}
