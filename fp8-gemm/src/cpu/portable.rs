//! Plain Rust: correct on every processor.

use super::{A_STRIDE, A_STRIDE_T, Kernels, PANEL, Tile};

/// The most rows of a tile.
const ROWS: usize = 4;

pub(super) const KERNELS: Kernels = super::elementwise::elementwise_kernels!(ROWS, tile);

/// See [`super::TileFn`].
///
/// # Safety
/// As there.
unsafe fn tile(t: &Tile, rows: usize) {
    let (row_step, k_step) = if t.transposed { (1, A_STRIDE_T) } else { (A_STRIDE, 1) };
    for r in 0..rows {
        // SAFETY: the caller promises a total of PANEL values for each row, which nothing else reaches meanwhile.
        let total = unsafe { &mut *t.total.add(r * t.total_stride).cast::<[f32; PANEL]>() };
        let mut chain = if t.promote || t.first { [0.0f32; PANEL] } else { *total };
        for p in 0..t.k {
            // SAFETY: the caller promises `k` values for each row of the left operand, and a panel of `k` rows.
            let (a, b) = unsafe { (*t.a.add(r * row_step + p * k_step), &*t.b.add(p * PANEL).cast::<[f32; PANEL]>()) };
            for (chain, b) in chain.iter_mut().zip(b) {
                *chain = a.mul_add(*b, *chain);
            }
        }
        if t.promote {
            // SAFETY: with `promote` the caller promises a scale for each row and each column.
            let (row_scale, col_scales) = unsafe { (*t.row_scales.add(r), &*t.col_scales.cast::<[f32; PANEL]>()) };
            for ((total, chain), col_scale) in total.iter_mut().zip(&chain).zip(col_scales) {
                let before = if t.first { 0.0 } else { *total };
                *total = chain.mul_add(row_scale * col_scale, before);
            }
        } else {
            *total = chain;
        }
    }
}
