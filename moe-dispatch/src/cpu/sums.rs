//! Tree sums of rows of f32 or bf16.

use std::ops::Range;

use bytemuck::Pod;
use v3_numerics::bf16;
use v3_numerics::cpu::Isa;
use v3_numerics::par;
use v3_numerics::simd::{Kernel, LANES, Simd, dispatch};

use super::stream::Copier;
use crate::tree::{Program, Term};

/// Values that rows are made of and that sums are read from and rounded to: f32 and bf16.
pub trait Element: Pod + Send + Sync + sealed::Load {}

impl Element for f32 {}
impl Element for bf16 {}

mod sealed {
    use super::{LANES, Simd, bf16};

    pub trait Load: Copy {
        const ZERO: Self;
        fn load<S: Simd>(s: S, x: &[Self; LANES]) -> S::F;
        fn store<S: Simd>(s: S, x: S::F, y: &mut [Self; LANES]);
    }

    impl Load for f32 {
        const ZERO: f32 = 0.0;
        #[inline(always)]
        fn load<S: Simd>(s: S, x: &[f32; LANES]) -> S::F {
            s.load(x)
        }
        #[inline(always)]
        fn store<S: Simd>(s: S, x: S::F, y: &mut [f32; LANES]) {
            s.store(x, y);
        }
    }

    impl Load for bf16 {
        const ZERO: bf16 = bf16::ZERO;
        #[inline(always)]
        fn load<S: Simd>(s: S, x: &[bf16; LANES]) -> S::F {
            s.load_bf16(x)
        }
        #[inline(always)]
        fn store<S: Simd>(s: S, x: S::F, y: &mut [bf16; LANES]) {
            s.store_bf16(x, y);
        }
    }
}

/// What one input has sent: rows from `first` on, in chunks.
pub(crate) struct Received<'a, B> {
    pub first: u32,
    pub chunks: &'a [Vec<B>],
}

/// Sums to form: the rows of a program, and where its terms are. Rows are those of `A` on this rank and of `B` when another rank sent them.
pub(crate) struct SumRows<'a, A, B> {
    pub program: &'a Program,
    /// Buffer 0 of the terms: this rank's expert rows, `[rows, row_len]`.
    pub own: &'a [A],
    /// The buffers from 1 on.
    pub received: &'a [Received<'a, B>],
    /// Rows in a chunk.
    pub chunk_rows: usize,
    pub row_len: usize,
    pub weighted: bool,
}

/// Vectors of a row that are summed together: a tree's waiting sums stay in the first-level cache.
const VECTORS: usize = 4;
/// Columns of a row that are summed together.
const COLUMNS: usize = LANES * VECTORS;
/// How far ahead of the sums rows are asked for, in bytes. A core waits for as many lines at a time as it has been asked for.
const AHEAD: usize = 1024;
/// Bytes that one thread reads at a time, about.
const BYTES_PER_ITEM: usize = 1 << 20;

/// Evaluates some rows of a program into `out`, `[rows, row_len]`: the tree sums of their terms, each times its weight and rounded if
/// `weighted`, in f32, none of the additions fused with a product. When `B` is narrower than f32, sums that would travel from another
/// rank are rounded to it; the result is rounded to `O`. A row without terms is zero. What the terms name must be there.
pub(crate) fn sum_rows<A: Element, B: Element, O: Element>(sums: &SumRows<'_, A, B>, rows: Range<usize>, out: &mut [O]) {
    let (program, row_len) = (sums.program, sums.row_len);
    let isa = Isa::detect();
    let copier = Copier::new(isa, size_of_val(out));
    let terms = program.starts[rows.end] - program.starts[rows.start];
    let bytes = (row_len * size_of::<A>()).saturating_mul(terms as usize).max(1);
    let per_item = (BYTES_PER_ITEM.saturating_mul(rows.len()) / bytes).clamp(1, rows.len().max(1));
    par::for_each_chunk_mut(out, per_item * row_len, |item, out| {
        dispatch(isa, TreeSums { sums, first: rows.start + item * per_item, copier, out });
    });
}

struct TreeSums<'a, A, B, O> {
    sums: &'a SumRows<'a, A, B>,
    first: usize,
    copier: Copier,
    out: &'a mut [O],
}

/// A row to add.
#[derive(Clone, Copy)]
struct Leaf<'a, A, B> {
    row: Source<'a, A, B>,
    factor: f32,
    term: &'a Term,
}

#[derive(Clone, Copy)]
enum Source<'a, A, B> {
    Own(&'a [A]),
    Received(&'a [B]),
}

impl<A: Element, B: Element> Source<'_, A, B> {
    /// The columns `at..at + COLUMNS`, all of them inside the row.
    #[inline(always)]
    fn load<S: Simd>(&self, s: S, at: usize) -> [S::F; VECTORS] {
        match self {
            Source::Own(row) => load(s, row, at),
            Source::Received(row) => load(s, row, at),
        }
    }

    /// The columns from `at` on, at most `LANES` of them, and zeros.
    #[inline(always)]
    fn load_partial<S: Simd>(&self, s: S, at: usize) -> S::F {
        match self {
            Source::Own(row) => load_partial(s, row, at),
            Source::Received(row) => load_partial(s, row, at),
        }
    }

    /// Asks for the `COLUMNS` that begin at `at`.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, at: usize) {
        match self {
            Source::Own(row) => prefetch(s, row, at),
            Source::Received(row) => prefetch(s, row, at),
        }
    }
}

#[inline(always)]
fn load<S: Simd, T: Element>(s: S, row: &[T], at: usize) -> [S::F; VECTORS] {
    let mut x = [s.splat(0.0); VECTORS];
    if let Some(columns) = row.get(at..at + COLUMNS) {
        for (x, columns) in x.iter_mut().zip(columns.as_chunks::<LANES>().0) {
            *x = T::load(s, columns);
        }
    }
    x
}

#[inline(always)]
fn load_partial<S: Simd, T: Element>(s: S, row: &[T], at: usize) -> S::F {
    let mut x = [T::ZERO; LANES];
    x.iter_mut().zip(row.get(at..).unwrap_or(&[])).for_each(|(x, row)| *x = *row);
    T::load(s, &x)
}

#[inline(always)]
fn prefetch<S: Simd, T: Element>(s: S, row: &[T], at: usize) {
    // A line holds 64 bytes.
    for line in 0..COLUMNS * size_of::<T>() / 64 {
        s.prefetch(row.as_ptr().wrapping_add(at).cast::<f32>().wrapping_add(line * 16));
    }
}

impl<A: Element, B: Element, O: Element> Kernel for TreeSums<'_, A, B, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (row_len, out) = (self.sums.row_len, std::mem::take(&mut self.out));
        let mut waiting = vec![[s.splat(0.0); VECTORS]; self.sums.program.depth];
        let mut sum = vec![O::ZERO; row_len];
        let (mut leaves, mut next_leaves) = (Vec::new(), Vec::new());
        self.sums.leaves(self.first, &mut leaves);
        // Columns asked for ahead, and whole blocks in a row.
        let ahead = AHEAD.max(1) / size_of::<A>() / COLUMNS;
        let whole = row_len / COLUMNS;
        let rows = out.len() / row_len;
        for (at, out) in out.chunks_exact_mut(row_len).enumerate() {
            next_leaves.clear();
            self.copier.prepare(&[out.as_mut_ptr().cast()], row_len * size_of::<O>());
            if at + 1 < rows {
                self.sums.leaves(self.first + at + 1, &mut next_leaves);
            }
            let (blocks, tail) = sum.as_chunks_mut::<COLUMNS>();
            for (block, sum) in blocks.iter_mut().enumerate() {
                let column = block * COLUMNS;
                // What is wanted `ahead` blocks later, in this row or at the beginning of the next.
                let (later, later_column) = match block + ahead {
                    later if later < whole => (&leaves, later * COLUMNS),
                    later => (&next_leaves, (later - whole).min(whole) * COLUMNS),
                };
                let mut later = later.iter();
                let leaf = |leaf: &Leaf<'_, A, B>| {
                    if let Some(later) = later.next() {
                        later.row.prefetch(s, later_column);
                    }
                    let factor = s.splat(leaf.factor);
                    leaf.row.load(s, column).map(|x| s.mul(x, factor))
                };
                let done = |x: [S::F; VECTORS]| {
                    for (x, sum) in x.into_iter().zip(sum.as_chunks_mut::<LANES>().0) {
                        O::store(s, x, sum);
                    }
                };
                sum_leaves(s, &leaves, &mut waiting, leaf, done);
            }
            for (at, tail) in tail.chunks_mut(LANES).enumerate() {
                let column = whole * COLUMNS + at * LANES;
                let leaf = |leaf: &Leaf<'_, A, B>| {
                    let mut x = [s.splat(0.0); VECTORS];
                    x[0] = s.mul(leaf.row.load_partial(s, column), s.splat(leaf.factor));
                    x
                };
                let done = |x: [S::F; VECTORS]| {
                    let mut y = [O::ZERO; LANES];
                    O::store(s, x[0], &mut y);
                    tail.iter_mut().zip(y).for_each(|(tail, y)| *tail = y);
                };
                sum_leaves(s, &leaves, &mut waiting, leaf, done);
            }
            // SAFETY: both rows hold `row_len` values, and `out` is borrowed alone.
            unsafe { self.copier.copy(sum.as_ptr().cast(), &[out.as_mut_ptr().cast()], row_len * size_of::<O>()) };
            std::mem::swap(&mut leaves, &mut next_leaves);
        }
        self.copier.finish();
    }
}

impl<'a, A: Element, B: Element> SumRows<'a, A, B> {
    /// The terms of a row of the program, with the rows that they name.
    #[inline(always)]
    fn leaves(&self, row: usize, leaves: &mut Vec<Leaf<'a, A, B>>) {
        leaves.extend(self.program.row(row).iter().map(|term| {
            let row = match (term.buffer as usize).checked_sub(1) {
                None => Source::Own(row_of(self.own, term.row as usize, self.row_len)),
                Some(input) => {
                    let received = &self.received[input];
                    let row = (term.row - received.first) as usize;
                    Source::Received(row_of(&received.chunks[row / self.chunk_rows], row % self.chunk_rows, self.row_len))
                }
            };
            // Multiplying by 1 leaves every bit as it is.
            Leaf { row, factor: if self.weighted { term.weight } else { 1.0 }, term }
        }));
    }
}

#[inline(always)]
fn row_of<T>(rows: &[T], row: usize, row_len: usize) -> &[T] {
    &rows[row * row_len..][..row_len]
}

/// The tree sum of some leaves, which `load` reads. `waiting` holds the left sums whose right neighbours are not complete.
#[inline(always)]
fn sum_leaves<S: Simd, A, B: Element>(
    s: S,
    leaves: &[Leaf<'_, A, B>],
    waiting: &mut [[S::F; VECTORS]],
    mut load: impl FnMut(&Leaf<'_, A, B>) -> [S::F; VECTORS],
    done: impl FnOnce([S::F; VECTORS]),
) {
    let mut top = 0;
    let mut sum = [s.splat(0.0); VECTORS];
    for (at, leaf) in leaves.iter().enumerate() {
        sum = load(leaf);
        round_if::<S, B>(s, leaf.term.rounds_after(0), &mut sum);
        for adds in 1..=leaf.term.adds {
            top -= 1;
            for (right, left) in sum.iter_mut().zip(waiting[top]) {
                *right = s.add(left, *right);
            }
            round_if::<S, B>(s, leaf.term.rounds_after(adds), &mut sum);
        }
        if at + 1 < leaves.len() {
            waiting[top] = sum;
            top += 1;
        }
    }
    done(sum);
}

/// Rounds to what `B` can hold.
#[inline(always)]
fn round_if<S: Simd, B: Element>(s: S, condition: bool, x: &mut [S::F; VECTORS]) {
    if size_of::<B>() < size_of::<f32>() && condition {
        for x in x {
            let mut narrow = [B::ZERO; LANES];
            B::store(s, *x, &mut narrow);
            *x = B::load(s, &narrow);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use v3_numerics::cpu::with_isa;

    /// Terms of both kinds of buffers, in a tree that is not a chain: ((own0 * w + r1) + (r2 + own1 * w)).
    #[test]
    fn rows_of_this_rank_and_sums_of_others() -> v3_numerics::Result<()> {
        for row_len in [1, 15, 64, 100, 700] {
            let value = |i: usize| ((i * 37) % 101) as f32 * 0.37 - 17.0;
            let own: Vec<f32> = (0..3 * row_len).map(value).collect();
            // The first input's rows 4 and 5, a chunk each; the third input's row 0.
            let sums = |from: usize| (0..row_len).map(|i| bf16::from_f32(value(i + from))).collect::<Vec<_>>();
            let first = [sums(5), sums(77)];
            let second = [sums(9)];
            let mut program = Program::new();
            program.push(0, 2, 0.3, Some(1));
            program.push(1, 5, 1.0, Some(2));
            program.push(3, 0, 1.0, Some(0));
            program.push(0, 0, -0.7, None);
            program.end_row();
            program.end_row();
            program.push(1, 4, 1.0, None);
            program.end_row();
            let sum = |i: usize, weights: [f32; 2]| {
                let left = weights[0] * own[2 * row_len + i] + first[1][i].to_f32();
                left + (second[0][i].to_f32() + weights[1] * own[i])
            };
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let received = [(4, &first[..]), (0, &[]), (0, &second[..])].map(|(first, chunks)| Received { first, chunks });
                for (weighted, weights) in [(true, [0.3, -0.7]), (false, [1.0, 1.0])] {
                    let mut out = vec![9.0f32; 3 * row_len];
                    let sums = SumRows { program: &program, own: &own, received: &received, chunk_rows: 1, row_len, weighted };
                    with_isa(isa, || sum_rows(&sums, 0..3, &mut out))?;
                    for i in 0..row_len {
                        assert_eq!(out[i].to_bits(), sum(i, weights).to_bits(), "{isa} {row_len} {i}");
                        assert_eq!(out[row_len + i].to_bits(), 0);
                        assert_eq!(out[2 * row_len + i], first[0][i].to_f32());
                    }
                }
            }
        }
        Ok(())
    }
}
