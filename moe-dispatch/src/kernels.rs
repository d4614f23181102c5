//! The loop over rows of gradients that arrive in pieces.

use v3_numerics::cpu::Isa;
use v3_numerics::par;
use v3_numerics::simd::{Kernel, LANES, Simd, dispatch};

use crate::cpu::{Element, RowMap};

/// Elements that one thread handles at a time, about.
const ELEMENTS_PER_ITEM: usize = 1 << 16;

/// Elements of a row below which the order of rows in memory decides.
const SHORT_ROW: usize = 2048;

/// Rows that one thread handles at a time; a function of the row length alone.
pub(crate) fn rows_per_item(row_len: usize) -> usize {
    (ELEMENTS_PER_ITEM / row_len.max(1)).max(1)
}

#[inline]
pub(crate) fn row_of<T>(rows: &[T], row: u32, row_len: usize) -> &[T] {
    &rows[row as usize * row_len..][..row_len]
}

/// Rows of several threads at a time: each writes others.
struct SharedRows<T> {
    rows: *mut T,
    len: usize,
}

// SAFETY: it is a `&mut [T]` of which every thread uses other parts, as the callers of `row` promise.
unsafe impl<T: Send> Sync for SharedRows<T> {}

impl<T> SharedRows<T> {
    fn new(rows: &mut [T]) -> Self {
        SharedRows { rows: rows.as_mut_ptr(), len: rows.len() }
    }

    /// # Safety
    /// Nobody else uses this row at the same time, nor the slice that this was made of while the result lives.
    #[allow(clippy::mut_from_ref)] // It stands for several disjoint mutable borrows.
    unsafe fn row(&self, row: u32, row_len: usize) -> &mut [T] {
        let first = row as usize * row_len;
        assert!(first + row_len <= self.len, "a place is a row of the result");
        // SAFETY: the row is inside, and it is nobody else's.
        unsafe { std::slice::from_raw_parts_mut(self.rows.add(first), row_len) }
    }
}

/// Up to 16 values, zeros behind them.
#[inline(always)]
fn load_partial<S: Simd, T: Element>(s: S, x: &[T]) -> S::F {
    let mut lanes = [T::zeroed(); LANES];
    lanes[..x.len()].copy_from_slice(x);
    T::load(s, &lanes)
}

/// Rows of dy, and the expert rows they belong to.
pub(crate) struct WeightedRows<'a, W> {
    pub dy: &'a [W],
    /// Of the row in `map`.
    pub first: usize,
    pub map: &'a RowMap,
    pub weights: &'a [f32],
    /// `None`: the rows are in `d_rows` until they are overwritten.
    pub expert_rows: Option<&'a [f32]>,
    pub row_len: usize,
}

/// The gradients of the expert rows that dy belongs to, and those of their weights.
pub(crate) fn weighted_rows<W: Element>(rows: &WeightedRows<'_, W>, d_rows: &mut [f32], products: &mut [f32]) {
    let (d_rows, products) = (SharedRows::new(d_rows), SharedRows::new(products));
    let (isa, row_len) = (Isa::detect(), rows.row_len);
    let count = rows.dy.len() / row_len;
    // The expert row in the upper half, the row of dy in the lower.
    let mut pairs: Vec<u64> = Vec::with_capacity(count);
    for row in 0..count {
        pairs.extend(rows.map.copies(rows.first + row).iter().map(|&place| u64::from(place) << 32 | row as u64));
    }
    // Rows that are shorter than what is read ahead come in the order of memory; of long ones it is dy that should be read once.
    if row_len < SHORT_ROW {
        pairs.sort_unstable();
    }
    let per_item = rows_per_item(row_len);
    par::for_each(pairs.len().div_ceil(per_item), |item| {
        for &pair in pairs.iter().skip(item * per_item).take(per_item) {
            let (place, row) = ((pair >> 32) as u32, pair as u32);
            let dy = row_of(rows.dy, row, row_len);
            // SAFETY: a map has every place once, so no other thread uses that row.
            let (d_row, product) = unsafe { (d_rows.row(place, row_len), products.row(place, 1)) };
            let weight = rows.weights[place as usize];
            let expert_row = rows.expert_rows.map(|rows| row_of(rows, place, row_len));
            product[0] = dispatch(isa, WeightedRow { dy, expert_row, weight, d_row });
        }
    });
}

struct WeightedRow<'a, W> {
    dy: &'a [W],
    expert_row: Option<&'a [f32]>,
    weight: f32,
    d_row: &'a mut [f32],
}

impl<W: Element> Kernel for WeightedRow<'_, W> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let factor = s.splat(self.weight);
        let mut sum = s.splat(0.0);
        let (d_blocks, d_tail) = self.d_row.as_chunks_mut::<LANES>();
        let (dy_blocks, dy_tail) = self.dy.as_chunks::<LANES>();
        let expert = self.expert_row.map(|row| row.as_chunks::<LANES>());
        for (block, (d, dy)) in d_blocks.iter_mut().zip(dy_blocks).enumerate() {
            let dy = W::load(s, dy);
            let expert = s.load(expert.map_or(&*d, |(blocks, _)| &blocks[block]));
            s.store(s.mul(factor, dy), d);
            sum = s.mul_add(dy, expert, sum);
        }
        if !d_tail.is_empty() {
            let dy = load_partial(s, dy_tail);
            let expert = s.load_partial(expert.map_or(&*d_tail, |(_, tail)| tail));
            s.store_partial(s.mul(factor, dy), d_tail);
            sum = s.mul_add(dy, expert, sum);
        }
        s.reduce_add(sum)
    }
}
