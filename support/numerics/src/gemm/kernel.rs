//! The register tile: `MR` rows by `NV` vectors of 16 columns, one chain of fused multiply-adds per element.

use crate::simd::{Kernel, LANES, Simd};

/// The most values of k that are taken before a tile's partial sums go back to memory.
pub(super) const KC: usize = 256;
/// The row stride of a row-major copy of A: not a multiple of 4 KiB, so that the rows of a tile fall into different sets of the cache.
pub(super) const A_STRIDE: usize = KC + 16;
/// The largest number of rows of a tile on any instruction set.
pub(super) const MAX_ROWS: usize = 14;
/// The columns of a panel of B.
pub(super) const PANEL: usize = 2 * LANES;

/// The operands of a tile. `a` is read at `a[i * A_STRIDE + p]` or, k-major, at `a[p * 16 + i]`; `b` at `b[p * b_stride + j]`.
#[derive(Clone, Copy)]
pub(super) struct TileArgs {
    pub kc: usize,
    pub a: *const f32,
    pub b: *const f32,
    pub b_stride: usize,
    /// Partial sums to continue, or null to start from +0.
    pub init: *const f32,
    pub init_stride: usize,
    pub out: *mut f32,
    pub out_stride: usize,
    /// Add the sums to `out` instead of storing them.
    pub add: bool,
}

struct Tile<const MR: usize, const NV: usize, const K_MAJOR: bool>(TileArgs);

impl<const MR: usize, const NV: usize, const K_MAJOR: bool> Kernel for Tile<MR, NV, K_MAJOR> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let t = self.0;
        let mut acc = [[s.splat(0.0); NV]; MR];
        // SAFETY: the macro-kernel gives operands that hold `kc` steps of MR rows and NV * 16 columns, and an output and initial values of
        // that many rows and columns.
        unsafe {
            if !t.init.is_null() {
                for (i, row) in acc.iter_mut().enumerate() {
                    for (v, x) in row.iter_mut().enumerate() {
                        *x = s.load_ptr(t.init.add(i * t.init_stride + v * LANES));
                    }
                }
            }
            let (mut a, mut b) = (t.a, t.b);
            for _ in 0..t.kc {
                let mut column = [s.splat(0.0); NV];
                for (v, x) in column.iter_mut().enumerate() {
                    *x = s.load_ptr(b.add(v * LANES));
                    s.prefetch(b.wrapping_add(16 * t.b_stride + v * LANES));
                }
                for (i, row) in acc.iter_mut().enumerate() {
                    let x = s.splat(*a.add(if K_MAJOR { i } else { i * A_STRIDE }));
                    for (v, sum) in row.iter_mut().enumerate() {
                        *sum = s.mul_add(x, column[v], *sum);
                    }
                }
                a = a.add(if K_MAJOR { LANES } else { 1 });
                b = b.add(t.b_stride);
            }
            for (i, row) in acc.iter().enumerate() {
                for (v, x) in row.iter().enumerate() {
                    let out = t.out.add(i * t.out_stride + v * LANES);
                    let x = if t.add { s.add(s.load_ptr(out), *x) } else { *x };
                    s.store_ptr(x, out);
                }
            }
        }
    }
}

/// Runs the tile of `rows` (1..=`S::TILE_ROWS`) by `vectors` (1..=`S::TILE_VECTORS`).
///
/// # Safety
/// The operands must hold what [`TileArgs`] says of them.
#[inline(always)]
pub(super) unsafe fn run_tile<S: Simd>(s: S, rows: usize, vectors: usize, k_major: bool, args: TileArgs) {
    macro_rules! rows {
        ($($mr:literal)+) => {
            match (rows, vectors, k_major) {
                // A tile larger than the instruction set's never comes up: the guards keep it from being compiled.
                $(
                    ($mr, 1, false) if $mr <= S::TILE_ROWS => s.outline(Tile::<$mr, 1, false>(args)),
                    ($mr, 1, true) if $mr <= S::TILE_ROWS => s.outline(Tile::<$mr, 1, true>(args)),
                    ($mr, 2, false) if $mr <= S::TILE_ROWS && S::TILE_VECTORS == 2 => s.outline(Tile::<$mr, 2, false>(args)),
                    ($mr, 2, true) if $mr <= S::TILE_ROWS && S::TILE_VECTORS == 2 => s.outline(Tile::<$mr, 2, true>(args)),
                )+
                _ => unreachable!("no tile of {rows} rows and {vectors} vectors"),
            }
        };
    }
    rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}
