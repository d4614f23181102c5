//! AVX2 and FMA: 6 rows by 2 registers, twice for the two halves of a panel.

use super::{A_STRIDE, A_STRIDE_T, Kernels, PANEL, Tile};
use core::arch::x86_64::*;

/// The most rows of a tile.
const ROWS: usize = 6;

pub(super) const KERNELS: Kernels = super::elementwise::elementwise_kernels!(ROWS, tile, "avx2,fma");

/// See [`super::TileFn`].
///
/// # Safety
/// As there.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile(t: &Tile, rows: usize) {
    macro_rules! choose {
        ($half:expr, $($n:literal)*) => {
            match (rows, t.transposed) {
                // SAFETY: the caller's promise, passed on; both halves lie inside the panel.
                $(($n, false) => unsafe { tile_rows::<$n, false>(t, $half) },
                // SAFETY: as above.
                ($n, true) => unsafe { tile_rows::<$n, true>(t, $half) },)*
                _ => unreachable!("a tile has 1 to 6 rows"),
            }
        };
    }
    for half in [0, PANEL / 2] {
        choose!(half, 1 2 3 4 5 6);
    }
}

/// The 16 columns from `first_col`.
///
/// # Safety
/// As [`super::TileFn`], with `R` rows; `TRANSPOSED` must agree with the tile; `first_col` is 0 or 16.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn tile_rows<const R: usize, const TRANSPOSED: bool>(t: &Tile, first_col: usize) {
    let (row_step, k_step) = if TRANSPOSED { (1, A_STRIDE_T) } else { (A_STRIDE, 1) };
    let mut acc = [[_mm256_setzero_ps(); 2]; R];
    if !t.promote && !t.first {
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller promises a total of PANEL values for each row.
            unsafe {
                let total = t.total.add(r * t.total_stride + first_col);
                *acc = [_mm256_loadu_ps(total), _mm256_loadu_ps(total.add(8))];
            }
        }
    }
    let (mut a, mut b) = (t.a, t.b.wrapping_add(first_col));
    for _ in 0..t.k {
        // SAFETY: the caller promises `k` values for each row of the left operand, and a panel of `k` rows. The pointers
        // end at most one step behind, where nothing is read.
        unsafe {
            let b0 = _mm256_loadu_ps(b);
            let b1 = _mm256_loadu_ps(b.add(8));
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*a.add(r * row_step));
                acc[0] = _mm256_fmadd_ps(x, b0, acc[0]);
                acc[1] = _mm256_fmadd_ps(x, b1, acc[1]);
            }
            a = a.wrapping_add(k_step);
            b = b.wrapping_add(PANEL);
        }
    }
    // SAFETY: the caller promises a total of PANEL values for each row and, with `promote`, the scales.
    unsafe {
        if t.promote {
            let c0 = _mm256_loadu_ps(t.col_scales.add(first_col));
            let c1 = _mm256_loadu_ps(t.col_scales.add(first_col + 8));
            for (r, acc) in acc.iter().enumerate() {
                let total = t.total.add(r * t.total_stride + first_col);
                let s = _mm256_set1_ps(*t.row_scales.add(r));
                let (before0, before1) = if t.first {
                    (_mm256_setzero_ps(), _mm256_setzero_ps())
                } else {
                    (_mm256_loadu_ps(total), _mm256_loadu_ps(total.add(8)))
                };
                _mm256_storeu_ps(total, _mm256_fmadd_ps(acc[0], _mm256_mul_ps(s, c0), before0));
                _mm256_storeu_ps(total.add(8), _mm256_fmadd_ps(acc[1], _mm256_mul_ps(s, c1), before1));
            }
        } else {
            for (r, acc) in acc.iter().enumerate() {
                let total = t.total.add(r * t.total_stride + first_col);
                _mm256_storeu_ps(total, acc[0]);
                _mm256_storeu_ps(total.add(8), acc[1]);
            }
        }
    }
}
