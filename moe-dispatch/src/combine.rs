//! Expert rows travel back and are added in the fixed tree; gradients take the same way in the other direction.

use v3_numerics::cpu::Isa;
use v3_numerics::par;
use v3_numerics::simd::{Kernel, LANES, Simd, dispatch};
use v3_ranks::Comm;

use crate::dispatch::{check_len, items, row_of, rows_per_item};
use crate::error::{Error, Result};
use crate::plan::{Kind, Merge, PADDING, Plan, tag};
use crate::tree::{Program, Term};

impl Plan {
    /// Adds the expert rows `[R, row_len]` of each token where the token is at home: returns `[T, row_len]`.
    ///
    /// The sum is a fixed binary tree over logical expert ids, absent experts skipped; a leaf is the row, times its weight and
    /// rounded if `weighted`. The bits depend neither on the number of ranks nor on where the experts are.
    /// Padding rows are not read.
    ///
    /// # Errors
    /// When `expert_rows` has another length than R rows, other ranks have another `row_len`, or another rank has failed.
    pub fn combine(&self, comm: &Comm, expert_rows: &[f32], row_len: usize, weighted: bool) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.tokens * row_len];
        self.combine_into(comm, expert_rows, row_len, weighted, &mut out)?;
        Ok(out)
    }

    /// [`combine`](Plan::combine) into memory of the caller, `[T, row_len]`, overwritten.
    ///
    /// # Errors
    /// As [`combine`](Plan::combine), and when `out` has another length than T rows.
    pub fn combine_into(&self, comm: &Comm, expert_rows: &[f32], row_len: usize, weighted: bool, out: &mut [f32]) -> Result<()> {
        check_len("expert rows", expert_rows.len(), self.expert_rows(), row_len)?;
        check_len("combined rows", out.len(), self.tokens, row_len)?;
        self.check_group(comm)?;
        if row_len == 0 {
            return Ok(());
        }
        for merge in &self.outgoing {
            let rows = merge.program.rows();
            if rows == 0 {
                continue;
            }
            let mut sums = vec![0.0; rows * row_len];
            self.merge(comm, merge, expert_rows, row_len, weighted, &mut sums)?;
            self.combined.add(merge.slow, rows, size_of_val(sums.as_slice()));
            comm.send_rows(merge.to, tag(Kind::Sums, merge.source), sums, rows)?;
        }
        self.merge(comm, &self.home, expert_rows, row_len, weighted, out)
    }

    /// Waits for the partial sums that a merge needs, and adds.
    fn merge(
        &self,
        comm: &Comm,
        merge: &Merge,
        expert_rows: &[f32],
        row_len: usize,
        weighted: bool,
        out: &mut [f32],
    ) -> Result<()> {
        let received = receive(comm, Kind::Sums, merge.source, &merge.inputs, row_len)?;
        let buffers = by_buffer(self.layout.ep_size(), expert_rows, &merge.inputs, &received);
        let isa = Isa::detect();
        par::for_each_chunk_mut(out, rows_per_item(row_len) * row_len, |item, part| {
            let first = item * rows_per_item(row_len);
            dispatch(isa, TreeSums { program: &merge.program, first, buffers: &buffers, row_len, weighted, out: part });
        });
        Ok(())
    }

    /// The backward pass of the weighted [`combine`](Plan::combine): from `dy` `[T, row_len]`, the gradient of its result, and the expert
    /// rows it was given, returns the gradients of the expert rows, weight * dy `[R, row_len]` (zeros in padding rows), and of the
    /// routing's weights, dy . row `[T, k]`.
    ///
    /// A product dy . row is added in 16 chains of fused multiply-adds, each over every 16th column, and the chains pairwise.
    ///
    /// # Errors
    /// When a length does not fit, other ranks have another `row_len`, or another rank has failed.
    pub fn combine_backward(&self, comm: &Comm, dy: &[f32], expert_rows: &[f32], row_len: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let mut d_expert_rows = vec![0.0; expert_rows.len()];
        let d_weights = self.combine_backward_into(comm, dy, expert_rows, row_len, &mut d_expert_rows)?;
        Ok((d_expert_rows, d_weights))
    }

    /// [`combine_backward`](Plan::combine_backward) with the gradients of the expert rows in memory of the caller, `[R, row_len]`, overwritten.
    /// Returns the gradients of the weights.
    ///
    /// # Errors
    /// As [`combine_backward`](Plan::combine_backward), and when `d_expert_rows` has another length than R rows.
    pub fn combine_backward_into(
        &self,
        comm: &Comm,
        dy: &[f32],
        expert_rows: &[f32],
        row_len: usize,
        d_expert_rows: &mut [f32],
    ) -> Result<Vec<f32>> {
        check_len("expert rows", expert_rows.len(), self.expert_rows(), row_len)?;
        self.backward::<false>(comm, dy, expert_rows, row_len, d_expert_rows)
    }

    /// [`combine_backward`](Plan::combine_backward) where the gradients of the expert rows replace the rows themselves: no further memory.
    /// Returns the gradients of the weights.
    ///
    /// # Errors
    /// As [`combine_backward`](Plan::combine_backward).
    pub fn combine_backward_in_place(
        &self,
        comm: &Comm,
        dy: &[f32],
        expert_rows: &mut [f32],
        row_len: usize,
    ) -> Result<Vec<f32>> {
        self.backward::<true>(comm, dy, &[], row_len, expert_rows)
    }

    /// If `IN_PLACE`, the expert rows are in `d_expert_rows`.
    fn backward<const IN_PLACE: bool>(
        &self,
        comm: &Comm,
        dy: &[f32],
        expert_rows: &[f32],
        row_len: usize,
        d_expert_rows: &mut [f32],
    ) -> Result<Vec<f32>> {
        check_len("gradients of expert rows", d_expert_rows.len(), self.expert_rows(), row_len)?;
        let received = self.exchange(comm, dy, row_len, Kind::Rows)?;
        let buffers = self.buffers(dy, &received);
        let mut products = vec![0.0f32; self.expert_rows()];
        let isa = Isa::detect();
        if row_len > 0 {
            let rows = rows_per_item(row_len);
            let mut parts: Vec<(&mut [f32], &mut [f32])> =
                d_expert_rows.chunks_mut(rows * row_len).zip(products.chunks_mut(rows)).collect();
            par::for_each_chunk_mut(&mut parts, 1, |item, part| {
                for (d_rows, products) in part {
                    let range = item * rows * row_len..item * rows * row_len + d_rows.len();
                    let kernel = WeightedRows::<IN_PLACE> {
                        gather: items(&self.gather, item, row_len),
                        weights: items(&self.row_weights, item, row_len),
                        expert_rows: if IN_PLACE { &[] } else { &expert_rows[range] },
                        buffers: &buffers,
                        row_len,
                        d_rows,
                        products,
                    };
                    dispatch(isa, kernel);
                }
            });
        }
        // One number for each weight goes home.
        for merge in &self.outgoing {
            if !merge.gradients.is_empty() {
                let gradients = self.gradients(comm, merge, &products)?;
                comm.send(merge.to, tag(Kind::Gradients, merge.source), gradients)?;
            }
        }
        let mut d_weights = vec![0.0; self.tokens * self.top_k];
        for (gradient, &at) in self.gradients(comm, &self.home, &products)?.into_iter().zip(&self.choice) {
            d_weights[at as usize] = gradient;
        }
        Ok(d_weights)
    }

    fn gradients(&self, comm: &Comm, merge: &Merge, products: &[f32]) -> Result<Vec<f32>> {
        let received = receive(comm, Kind::Gradients, merge.source, &merge.gradient_inputs, 1)?;
        let buffers = by_buffer(self.layout.ep_size(), products, &merge.gradient_inputs, &received);
        Ok(merge.gradients.iter().map(|&(buffer, at)| buffers[buffer as usize][at as usize]).collect())
    }

    /// The backward pass of [`dispatch`](Plan::dispatch) of f32 rows: the gradients of the dispatched rows `[R, row_len]` of each token,
    /// added in the same tree as in [`combine`](Plan::combine), without weights: `[T, row_len]`.
    ///
    /// # Errors
    /// As [`combine`](Plan::combine).
    pub fn dispatch_backward(&self, comm: &Comm, d_expert_rows: &[f32], row_len: usize) -> Result<Vec<f32>> {
        self.combine(comm, d_expert_rows, row_len, false)
    }
}

/// One message of `rows` rows from each of some ranks.
fn receive(comm: &Comm, kind: Kind, source: usize, inputs: &[(usize, usize)], row_len: usize) -> Result<Vec<Vec<f32>>> {
    let mut received = Vec::with_capacity(inputs.len());
    for &(from, rows) in inputs {
        let values: Vec<f32> = comm.recv(from, tag(kind, source))?;
        if values.len() != rows * row_len {
            let expected = format!("{rows} rows of {row_len} from rank {from}");
            return Err(Error::Shape { what: "sums of another rank", expected, got: format!("{} elements", values.len()) });
        }
        received.push(values);
    }
    Ok(received)
}

/// Buffer 0 is this rank's, 1 + r what came from rank r.
fn by_buffer<'a>(ranks: usize, own: &'a [f32], inputs: &[(usize, usize)], received: &'a [Vec<f32>]) -> Vec<&'a [f32]> {
    let mut buffers: Vec<&[f32]> = vec![&[]; 1 + ranks];
    buffers[0] = own;
    for (&(from, _), values) in inputs.iter().zip(received) {
        buffers[1 + from] = values;
    }
    buffers
}

/// Vectors of a row that are summed together: a tree's waiting sums stay in the first-level cache.
const VECTORS: usize = 4;

/// Evaluates some rows of a program.
struct TreeSums<'a> {
    program: &'a Program,
    first: usize,
    buffers: &'a [&'a [f32]],
    row_len: usize,
    weighted: bool,
    out: &'a mut [f32],
}

impl Kernel for TreeSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (row_len, out) = (self.row_len, std::mem::take(&mut self.out));
        let mut waiting = vec![[s.splat(0.0); VECTORS]; self.program.depth];
        for (at, out) in out.chunks_exact_mut(row_len).enumerate() {
            let row = self.first + at;
            let terms = &self.program.terms[self.program.starts[row] as usize..self.program.starts[row + 1] as usize];
            let (blocks, tail) = out.as_chunks_mut::<{ LANES * VECTORS }>();
            for (block, out) in blocks.iter_mut().enumerate() {
                let column = block * LANES * VECTORS;
                sum_terms(s, terms, &mut waiting, |term| self.leaf(s, term, column), |sum| store(s, sum, out));
            }
            let done = row_len - tail.len();
            for (at, out) in tail.chunks_mut(LANES).enumerate() {
                let column = done + at * LANES;
                let leaf = |term: &Term| {
                    let row = row_of(self.buffers[term.buffer as usize], term.row, row_len);
                    let mut x = [s.splat(0.0); VECTORS];
                    x[0] = s.mul(s.load_partial(&row[column..]), s.splat(self.factor(term)));
                    x
                };
                sum_terms(s, terms, &mut waiting, leaf, |sum| s.store_partial(sum[0], out));
            }
        }
    }
}

impl TreeSums<'_> {
    /// Multiplying by 1 leaves every bit as it is.
    #[inline(always)]
    fn factor(&self, term: &Term) -> f32 {
        if self.weighted { term.weight } else { 1.0 }
    }

    /// The product of the columns from `column` on.
    #[inline(always)]
    fn leaf<S: Simd>(&self, s: S, term: &Term, column: usize) -> [S::F; VECTORS] {
        let row = row_of(self.buffers[term.buffer as usize], term.row, self.row_len);
        let factor = s.splat(self.factor(term));
        let mut x = [factor; VECTORS];
        if let Some(columns) = row[column..].first_chunk::<{ LANES * VECTORS }>() {
            for (x, columns) in x.iter_mut().zip(columns.as_chunks::<LANES>().0) {
                *x = s.mul(s.load(columns), factor);
            }
        }
        x
    }
}

#[inline(always)]
fn store<S: Simd>(s: S, sum: [S::F; VECTORS], out: &mut [f32; LANES * VECTORS]) {
    for (x, out) in sum.into_iter().zip(out.as_chunks_mut::<LANES>().0) {
        s.store(x, out);
    }
}

/// The tree sum of some terms, which `leaf` reads. `waiting` holds the left sums whose right neighbours are not complete.
#[inline(always)]
fn sum_terms<S: Simd>(
    s: S,
    terms: &[Term],
    waiting: &mut [[S::F; VECTORS]],
    leaf: impl Fn(&Term) -> [S::F; VECTORS],
    done: impl FnOnce([S::F; VECTORS]),
) {
    let mut top = 0;
    let mut sum = [s.splat(0.0); VECTORS];
    for (at, term) in terms.iter().enumerate() {
        sum = leaf(term);
        for _ in 0..term.adds {
            top -= 1;
            for (right, left) in sum.iter_mut().zip(waiting[top]) {
                *right = s.add(left, *right);
            }
        }
        if at + 1 < terms.len() {
            waiting[top] = sum;
            top += 1;
        }
    }
    done(sum);
}

/// Gradients of some expert-major rows and of their weights. If `IN_PLACE`, the rows are in `d_rows` until they are overwritten.
struct WeightedRows<'a, const IN_PLACE: bool> {
    gather: &'a [(u32, u32)],
    weights: &'a [f32],
    expert_rows: &'a [f32],
    buffers: &'a [&'a [f32]],
    row_len: usize,
    d_rows: &'a mut [f32],
    products: &'a mut [f32],
}

impl<const IN_PLACE: bool> Kernel for WeightedRows<'_, IN_PLACE> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let row_len = self.row_len;
        let rows = self.d_rows.chunks_exact_mut(row_len).zip(self.products).zip(self.gather.iter().zip(self.weights));
        for (at, ((d_row, product), (&(source, row), &weight))) in rows.enumerate() {
            if source == PADDING {
                d_row.fill(0.0);
                continue;
            }
            let dy = row_of(self.buffers[source as usize], row, row_len);
            let expert_row = if IN_PLACE { &[] } else { &self.expert_rows[at * row_len..][..row_len] };
            let factor = s.splat(weight);
            let mut sum = s.splat(0.0);
            let (d_blocks, d_tail) = d_row.as_chunks_mut::<LANES>();
            let (dy_blocks, dy_tail) = dy.as_chunks::<LANES>();
            let (expert_blocks, expert_tail) = expert_row.as_chunks::<LANES>();
            for (block, (d, dy)) in d_blocks.iter_mut().zip(dy_blocks).enumerate() {
                let dy = s.load(dy);
                let expert = s.load(if IN_PLACE { d } else { &expert_blocks[block] });
                s.store(s.mul(factor, dy), d);
                sum = s.mul_add(dy, expert, sum);
            }
            if !d_tail.is_empty() {
                let dy = s.load_partial(dy_tail);
                let expert = s.load_partial(if IN_PLACE { d_tail } else { expert_tail });
                s.store_partial(s.mul(factor, dy), d_tail);
                sum = s.mul_add(dy, expert, sum);
            }
            *product = s.reduce_add(sum);
        }
    }
}
