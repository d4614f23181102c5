//! The loops over rows that arrive in pieces: sums in the fixed tree, products of gradients.

use std::ops::Range;

use v3_numerics::cpu::Isa;
use v3_numerics::par;
use v3_numerics::simd::{Kernel, LANES, Simd, dispatch};

use crate::cpu::{Element, RowMap};
use crate::tree::{Program, Term};

/// Elements that one thread handles at a time, about.
const ELEMENTS_PER_ITEM: usize = 1 << 16;

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

/// What one input has sent: rows from `first` on, in chunks.
pub(crate) struct Received<'a, W> {
    pub first: u32,
    pub chunks: &'a [Vec<W>],
}

/// Sums to form: the rows of a program, and where its terms are.
pub(crate) struct SumRows<'a, E, W> {
    pub program: &'a Program,
    pub own: &'a [E],
    pub received: &'a [Received<'a, W>],
    /// Rows in a chunk.
    pub chunk_rows: usize,
    pub row_len: usize,
    pub weighted: bool,
}

/// Evaluates some rows of a program into `out`. When `W` is narrower than f32, sums that would travel from another rank are rounded to it.
pub(crate) fn sum_rows<E: Element, W: Element, O: Element>(sums: &SumRows<'_, E, W>, rows: Range<usize>, out: &mut [O]) {
    let per_item = rows_per_item(sums.row_len);
    let isa = Isa::detect();
    par::for_each_chunk_mut(out, per_item * sums.row_len, |item, out| {
        dispatch(isa, TreeSums { sums, first: rows.start + item * per_item, out });
    });
}

/// Vectors of a row that are summed together: a tree's waiting sums stay in the first-level cache.
const VECTORS: usize = 4;

struct TreeSums<'a, E, W, O> {
    sums: &'a SumRows<'a, E, W>,
    first: usize,
    out: &'a mut [O],
}

/// A row to add.
#[derive(Clone, Copy)]
enum Leaf<'a, E, W> {
    Own(&'a [E]),
    Sum(&'a [W]),
}

impl<E: Element, W: Element, O: Element> Kernel for TreeSums<'_, E, W, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (sums, row_len) = (self.sums, self.sums.row_len);
        let mut waiting = vec![[s.splat(0.0); VECTORS]; sums.program.depth];
        let mut leaves: Vec<Leaf<'_, E, W>> = Vec::new();
        for (at, out) in self.out.chunks_exact_mut(row_len).enumerate() {
            let terms = sums.program.row(self.first + at);
            leaves.clear();
            leaves.extend(terms.iter().map(|term| sums.leaf(term)));
            let factor = |term: &Term| if sums.weighted { term.weight } else { 1.0 };
            let (blocks, tail) = out.as_chunks_mut::<{ LANES * VECTORS }>();
            for (block, out) in blocks.iter_mut().enumerate() {
                let column = block * LANES * VECTORS;
                let leaf = |at: usize, term: &Term| {
                    // Multiplying by 1 leaves every bit as it is.
                    let factor = s.splat(factor(term));
                    let mut x = [factor; VECTORS];
                    match leaves[at] {
                        Leaf::Own(row) => products::<S, E>(s, &row[column..], &mut x),
                        Leaf::Sum(row) => products::<S, W>(s, &row[column..], &mut x),
                    }
                    x
                };
                sum_terms::<S, W>(s, terms, &mut waiting, leaf, |sum| {
                    for (x, out) in sum.into_iter().zip(out.as_chunks_mut::<LANES>().0) {
                        O::store(s, x, out);
                    }
                });
            }
            let done = row_len - tail.len();
            for (chunk, out) in tail.chunks_mut(LANES).enumerate() {
                let columns = done + chunk * LANES..done + chunk * LANES + out.len();
                let leaf = |at: usize, term: &Term| {
                    let mut x = [s.splat(0.0); VECTORS];
                    let value = match leaves[at] {
                        Leaf::Own(row) => load_partial(s, &row[columns.clone()]),
                        Leaf::Sum(row) => load_partial(s, &row[columns.clone()]),
                    };
                    x[0] = s.mul(value, s.splat(factor(term)));
                    x
                };
                sum_terms::<S, W>(s, terms, &mut waiting, leaf, |sum| store_partial(s, sum[0], out));
            }
        }
    }
}

impl<'a, E: Element, W: Element> SumRows<'a, E, W> {
    fn leaf(&self, term: &Term) -> Leaf<'a, E, W> {
        match (term.buffer as usize).checked_sub(1) {
            None => Leaf::Own(row_of(self.own, term.row, self.row_len)),
            Some(input) => {
                let received = &self.received[input];
                let row = (term.row - received.first) as usize;
                Leaf::Sum(row_of(&received.chunks[row / self.chunk_rows], (row % self.chunk_rows) as u32, self.row_len))
            }
        }
    }
}

/// Up to 16 values, zeros behind them.
#[inline(always)]
fn load_partial<S: Simd, T: Element>(s: S, x: &[T]) -> S::F {
    let mut lanes = [T::zeroed(); LANES];
    lanes[..x.len()].copy_from_slice(x);
    T::load(s, &lanes)
}

#[inline(always)]
fn store_partial<S: Simd, T: Element>(s: S, x: S::F, y: &mut [T]) {
    let mut lanes = [T::zeroed(); LANES];
    T::store(s, x, &mut lanes);
    y.copy_from_slice(&lanes[..y.len()]);
}

/// Multiplies each of `x` by as many columns.
#[inline(always)]
fn products<S: Simd, T: Element>(s: S, columns: &[T], x: &mut [S::F; VECTORS]) {
    if let Some(columns) = columns.first_chunk::<{ LANES * VECTORS }>() {
        for (x, columns) in x.iter_mut().zip(columns.as_chunks::<LANES>().0) {
            *x = s.mul(T::load(s, columns), *x);
        }
    }
}

/// The tree sum of some terms, which `leaf` reads. `waiting` holds the left sums whose right neighbours are not complete.
#[inline(always)]
fn sum_terms<S: Simd, W: Element>(
    s: S,
    terms: &[Term],
    waiting: &mut [[S::F; VECTORS]],
    leaf: impl Fn(usize, &Term) -> [S::F; VECTORS],
    done: impl FnOnce([S::F; VECTORS]),
) {
    let mut top = 0;
    let mut sum = [s.splat(0.0); VECTORS];
    for (at, term) in terms.iter().enumerate() {
        sum = leaf(at, term);
        round_if::<S, W>(s, term.rounds_after(0), &mut sum);
        for adds in 1..=term.adds {
            top -= 1;
            for (right, left) in sum.iter_mut().zip(waiting[top]) {
                *right = s.add(left, *right);
            }
            round_if::<S, W>(s, term.rounds_after(adds), &mut sum);
        }
        if at + 1 < terms.len() {
            waiting[top] = sum;
            top += 1;
        }
    }
    done(sum);
}

/// Rounds to what `W` can hold.
#[inline(always)]
fn round_if<S: Simd, W: Element>(s: S, condition: bool, x: &mut [S::F; VECTORS]) {
    if size_of::<W>() < size_of::<f32>() && condition {
        for x in x {
            let mut narrow = [W::zeroed(); LANES];
            W::store(s, *x, &mut narrow);
            *x = W::load(s, &narrow);
        }
    }
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
    let per_item = rows_per_item(row_len);
    par::for_each(count.div_ceil(per_item), |item| {
        for row in item * per_item..((item + 1) * per_item).min(count) {
            let dy = row_of(rows.dy, row as u32, row_len);
            for &place in rows.map.copies(rows.first + row) {
                // SAFETY: a map has every place once, so no other thread uses that row.
                let (d_row, product) = unsafe { (d_rows.row(place, row_len), products.row(place, 1)) };
                let weight = rows.weights[place as usize];
                let expert_row = rows.expert_rows.map(|rows| row_of(rows, place, row_len));
                product[0] = dispatch(isa, WeightedRow { dy, expert_row, weight, d_row });
            }
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
