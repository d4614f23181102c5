//! f32 matrix multiplication with one order of summation.
//!
//! **Numerical policy.** `c[i, j]` is the chain `acc = fma(a[i, p], b[p, j], acc)` over `p` ascending from `acc = +0`; with
//! `accumulate` the finished chain is added to the former `c[i, j]` once. The bits are the same on every instruction set, for
//! every number of threads, every number of rows and columns, every stride, packed or not.

use crate::error::{Error, Result, check_shape};
use crate::view::{MatMut, MatRef};

/// `c = a b`, or `c += a b` with `accumulate`: `a` `[m, k]`, `b` `[k, n]`, `c` `[m, n]`, each with any strides.
pub fn gemm(a: MatRef<'_, f32>, b: MatRef<'_, f32>, mut c: MatMut<'_, f32>, accumulate: bool) -> Result<()> {
    check_shape("b of a matrix product", (a.cols(), b.cols()), (b.rows(), b.cols()))?;
    check_shape("c of a matrix product", (a.rows(), b.cols()), (c.rows(), c.cols()))?;
    for i in 0..a.rows() {
        for j in 0..b.cols() {
            let mut acc = 0.0f32;
            for p in 0..a.cols() {
                acc = a.at(i, p).mul_add(*b.at(p, j), acc);
            }
            let c = c.at_mut(i, j);
            *c = if accumulate { *c + acc } else { acc };
        }
    }
    Ok(())
}

/// A right operand `[k, n]` in the layout the kernels read: packed once, used many times.
#[derive(Debug, Clone)]
pub struct PackedB {
    k: usize,
    n: usize,
    data: Vec<f32>,
}

impl PackedB {
    /// Packs `b` `[k, n]`. For weights stored `[out, in]` pass their transposed view.
    pub fn new(b: MatRef<'_, f32>) -> PackedB {
        PackedB { k: b.rows(), n: b.cols(), data: b.to_vec() }
    }

    /// The number of rows, the length of the sums.
    pub fn k(&self) -> usize {
        self.k
    }
    /// The number of columns.
    pub fn n(&self) -> usize {
        self.n
    }
    /// The bytes it occupies.
    pub fn bytes(&self) -> usize {
        self.data.len() * 4
    }
}

/// [`gemm`] with a packed right operand: the same bits.
pub fn gemm_packed(a: MatRef<'_, f32>, b: &PackedB, c: MatMut<'_, f32>, accumulate: bool) -> Result<()> {
    gemm(a, MatRef::new(&b.data, b.k, b.n)?, c, accumulate)
}

/// One product for each group of consecutive rows: `c[offsets[g]..offsets[g + 1]] = a[same rows] * weights[g]`.
///
/// `a` is `[rows, k]`, `c` `[rows, n]`; `offsets` ascends from 0 to `rows`, one more than there are groups; groups may be empty.
pub fn gemm_grouped(
    a: MatRef<'_, f32>,
    offsets: &[usize],
    weights: &[&PackedB],
    mut c: MatMut<'_, f32>,
    accumulate: bool,
) -> Result<()> {
    check_offsets(offsets, weights.len(), a.rows())?;
    check_shape("c of a grouped product", (a.rows(), c.cols()), (c.rows(), c.cols()))?;
    for w in weights {
        check_shape("weight of a grouped product", (a.cols(), c.cols()), (w.k(), w.n()))?;
    }
    for (g, w) in weights.iter().enumerate() {
        let rows = offsets[g]..offsets[g + 1];
        gemm_packed(a.row_range(rows.clone())?, w, c.reborrow().row_range(rows)?, accumulate)?;
    }
    Ok(())
}

/// One product for each group of consecutive *summands*: `c[g] = a[rows of g]^T * b[rows of g]`, as weight gradients of experts are.
///
/// `a` is `[rows, m]`, `b` `[rows, n]`, `c` `[groups, m, n]` contiguous. An empty group gives 0 (or leaves `c` as it is with `accumulate`).
pub fn gemm_k_grouped(a: MatRef<'_, f32>, b: MatRef<'_, f32>, offsets: &[usize], c: &mut [f32], accumulate: bool) -> Result<()> {
    check_shape("b of a grouped product", (a.rows(), b.cols()), (b.rows(), b.cols()))?;
    let groups = offsets.len().saturating_sub(1);
    check_offsets(offsets, groups, a.rows())?;
    let (m, n) = (a.cols(), b.cols());
    crate::error::check_len("c of a grouped product", groups * m * n, c.len())?;
    for g in 0..groups {
        let rows = offsets[g]..offsets[g + 1];
        let c = MatMut::new(&mut c[g * m * n..(g + 1) * m * n], m, n)?;
        gemm(a.row_range(rows.clone())?.t(), b.row_range(rows)?, c, accumulate)?;
    }
    Ok(())
}

fn check_offsets(offsets: &[usize], groups: usize, rows: usize) -> Result<()> {
    if offsets.len() == groups + 1 && offsets[0] == 0 && offsets[groups] == rows && offsets.is_sorted() {
        Ok(())
    } else {
        Err(Error::Shape {
            what: "group offsets",
            expected: format!("{} values ascending from 0 to {rows}", groups + 1),
            got: format!("{offsets:?}"),
        })
    }
}
