//! Data-parallel loops on the caller's thread pool.
//!
//! Work goes to the rayon pool that the calling thread belongs to (the global one outside any); no pool is ever built here.
//! Without the feature `rayon`, or in a pool of one thread, the same loops run in order on the calling thread. How work is
//! cut never depends on the number of threads, only on the arguments: a caller that gives each piece its own output gets
//! the same bits for every number of threads.

use crate::error::{Error, Result};
use crate::view::MatMut;

/// The number of threads that a loop of this module may use: 1 without the feature `rayon`.
pub fn num_threads() -> usize {
    #[cfg(feature = "rayon")]
    {
        rayon::current_num_threads()
    }
    #[cfg(not(feature = "rayon"))]
    {
        1
    }
}

/// Calls `f(i)` for every `i` in `0..n`, in any order and at the same time.
pub fn for_each(n: usize, f: impl Fn(usize) + Sync + Send) {
    #[cfg(feature = "rayon")]
    if n > 1 && num_threads() > 1 {
        use rayon::prelude::*;
        (0..n).into_par_iter().with_max_len(1).for_each(f);
        return;
    }
    (0..n).for_each(f);
}

/// `f(0), f(1), ..., f(n - 1)`, computed in any order, collected in this one.
pub fn map<R: Send>(n: usize, f: impl Fn(usize) -> R + Sync + Send) -> Vec<R> {
    #[cfg(feature = "rayon")]
    if n > 1 && num_threads() > 1 {
        use rayon::prelude::*;
        return (0..n).into_par_iter().with_max_len(1).map(f).collect();
    }
    (0..n).map(f).collect()
}

/// Runs both, possibly at the same time.
pub fn join<A: Send, B: Send>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    #[cfg(feature = "rayon")]
    if num_threads() > 1 {
        return rayon::join(a, b);
    }
    (a(), b())
}

/// Cuts `data` into chunks of `chunk_len` values (the last may be shorter; 0 is taken as 1) and calls `f(index, chunk)` on each.
pub fn for_each_chunk_mut<T: Send>(data: &mut [T], chunk_len: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    let chunk_len = chunk_len.max(1);
    #[cfg(feature = "rayon")]
    if data.len() > chunk_len && num_threads() > 1 {
        use rayon::prelude::*;
        data.par_chunks_mut(chunk_len).enumerate().with_max_len(1).for_each(|(i, c)| f(i, c));
        return;
    }
    data.chunks_mut(chunk_len).enumerate().for_each(|(i, c)| f(i, c));
}

/// Cuts `data` at `bounds` (`bounds[i]..bounds[i + 1]` is part `i`; ascending, from 0 to the length of `data`) and calls
/// `f(index, part)` on each part, empty ones included.
pub fn for_each_part_mut<T: Send>(data: &mut [T], bounds: &[usize], f: impl Fn(usize, &mut [T]) + Sync + Send) -> Result<()> {
    let sound = bounds.first() == Some(&0) && bounds.last() == Some(&data.len()) && bounds.is_sorted();
    if !sound {
        return Err(Error::Shape {
            what: "bounds of parts",
            expected: format!("ascending from 0 to {}", data.len()),
            got: format!("{bounds:?}"),
        });
    }
    let mut parts = Vec::with_capacity(bounds.len());
    let mut rest = data;
    for pair in bounds.windows(2) {
        let (part, tail) = rest.split_at_mut(pair[1] - pair[0]);
        parts.push(part);
        rest = tail;
    }
    for_each_chunk_mut(&mut parts, 1, |i, part| f(i, part[0]));
    Ok(())
}

/// Cuts a matrix into bands of `rows_per_band` rows (the last may be shorter; 0 is taken as 1) and calls
/// `f(first_row, band)` on each.
pub fn for_each_row_band<T: Send + Sync>(
    mat: MatMut<'_, T>,
    rows_per_band: usize,
    f: impl Fn(usize, MatMut<'_, T>) + Sync + Send,
) {
    let cols = mat.cols();
    for_each_tile(mat, rows_per_band, cols, |first_row, _, band| f(first_row, band));
}

/// Cuts a matrix into tiles of `tile_rows` by `tile_cols` (smaller at the edges; 0 is taken as 1) and calls
/// `f(first_row, first_col, tile)` on each. Tiles of one column of tiles come one after the other.
pub fn for_each_tile<T: Send + Sync>(
    mut mat: MatMut<'_, T>,
    tile_rows: usize,
    tile_cols: usize,
    f: impl Fn(usize, usize, MatMut<'_, T>) + Sync + Send,
) {
    let (tile_rows, tile_cols) = (tile_rows.max(1), tile_cols.max(1));
    let (rows, cols) = (mat.rows(), mat.cols());
    let down = rows.div_ceil(tile_rows);
    let across = cols.div_ceil(tile_cols).max(1);
    let whole = mat.as_shared();
    for_each(down * across, |i| {
        let (r, c) = ((i % down) * tile_rows, (i / down) * tile_cols);
        // SAFETY: each index gives another tile, and `mat` is borrowed for as long as the loop runs.
        let tile = unsafe { whole.tile(r, (rows - r).min(tile_rows), c, (cols - c).min(tile_cols)) };
        f(r, c, tile);
    });
}
