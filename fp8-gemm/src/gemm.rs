//! Matrix products, dense and grouped, in f32, bf16 and FP8.
//!
//! **Numerical policy.** f32 and bf16: each output element is the chain `acc = fma(a, b, acc)` over k ascending from +0; products of
//! bf16 values are exact. FP8: for each 128 along k in turn such a chain over the codes' values, promoted by
//! `total = fma(chain, scale_a * scale_b, total)`, the product of the scales rounded to f32. With `accumulate` the finished sum is
//! added to the former value once. The bits are the same on every instruction set, for every number of threads, rows and columns, every
//! stride, packed or not, grouped or not; [`crate::reference`] has both orders written out.

use crate::driver::{self, Job};
use crate::error::{Error, Result, check_offsets, check_shape};
use crate::operand::{Operand, Output};
use crate::packed::{Packed, Panels};
use crate::scaled::Block;
use crate::source::{ColumnQuantized, Left, Right};
use v3_numerics::bf16;
use v3_numerics::gemm as f32_gemm;
use v3_numerics::view::{MatMut, MatRef};

/// `c = a b`, or `c += a b` with `accumulate`: `a` `[m, k]`, `b` `[k, n]`, `c` `[m, n]`, with any strides.
///
/// Both operands must be of one precision: f32; bf16 (rounded on reading or before); or FP8 with scales that change every 128 along k.
pub fn gemm<'a>(a: impl Into<Operand<'a>>, b: impl Into<Operand<'a>>, c: impl Into<Output<'a>>, accumulate: bool) -> Result<()> {
    let (a, b, c) = (a.into(), b.into(), c.into());
    if let (Operand::F32(a), Operand::F32(b)) = (a, b) {
        check_dense(a.rows(), a.cols(), b.rows(), b.cols(), &c)?;
        return f32_product(c, accumulate, |c, accumulate| f32_gemm::gemm(a, b, c, accumulate));
    }
    check_dense(a.rows(), a.cols(), b.rows(), b.cols(), &c)?;
    check_left(&a, kind_of(&b))?;
    let packed;
    let b = match in_place(b) {
        Some(b) => b,
        None => {
            packed = Packed::new(b)?;
            Right::Packed(&packed)
        }
    };
    driver::run(vec![Job { a: Left::Operand(a), b, c }], accumulate);
    Ok(())
}

/// A right operand that tasks can decode from where it is, about as fast as from panels.
fn in_place(b: Operand<'_>) -> Option<Right<'_>> {
    match b {
        Operand::Bf16(b) if b.has_contiguous_rows() => Some(Right::Bf16(b)),
        Operand::RoundedToBf16(b) if b.has_contiguous_rows() => Some(Right::Rounded(b)),
        _ => None,
    }
}

/// [`gemm`] of `a` `[m, k]` and `b` `[n, k]`: `c = a b^T`, the forward pass of a linear layer.
pub fn gemm_nt<'a>(
    a: impl Into<Operand<'a>>,
    b: impl Into<Operand<'a>>,
    c: impl Into<Output<'a>>,
    accumulate: bool,
) -> Result<()> {
    gemm(a, b.into().t()?, c, accumulate)
}

/// [`gemm`] of `a` `[m, k]` and `b` `[k, n]`: `c = a b`, the gradient of a linear layer's input.
pub fn gemm_nn<'a>(
    a: impl Into<Operand<'a>>,
    b: impl Into<Operand<'a>>,
    c: impl Into<Output<'a>>,
    accumulate: bool,
) -> Result<()> {
    gemm(a, b, c, accumulate)
}

/// [`gemm`] of `a` `[k, m]` and `b` `[k, n]`: `c = a^T b`, the gradient of a linear layer's weight.
pub fn gemm_tn<'a>(
    a: impl Into<Operand<'a>>,
    b: impl Into<Operand<'a>>,
    c: impl Into<Output<'a>>,
    accumulate: bool,
) -> Result<()> {
    gemm(a.into().t()?, b, c, accumulate)
}

/// [`gemm`] with a right operand packed before: the same bits.
pub fn gemm_packed<'a>(a: impl Into<Operand<'a>>, b: &Packed, c: impl Into<Output<'a>>, accumulate: bool) -> Result<()> {
    let (a, c) = (a.into(), c.into());
    check_dense(a.rows(), a.cols(), b.k, b.n, &c)?;
    check_left(&a, b.kind())?;
    if let (Operand::F32(a), Panels::F32(b)) = (a, &b.panels) {
        return f32_product(c, accumulate, |c, accumulate| f32_gemm::gemm_packed(a, b, c, accumulate));
    }
    driver::run(vec![Job { a: Left::Operand(a), b: Right::Packed(b), c }], accumulate);
    Ok(())
}

/// One product for each group of consecutive rows (M-grouped, contiguous): `c[rows of g] = a[rows of g] * weights[g]`.
///
/// `a` `[rows, k]`, `c` `[rows, n]`, `offsets` one more than there are groups, ascending from 0 to `rows`; groups may be empty. Offsets need
/// no alignment, except that a left operand whose rows share scales (128x128) must be cut at multiples of 128.
pub fn gemm_grouped<'a>(
    a: impl Into<Operand<'a>>,
    offsets: &[usize],
    weights: &[&Packed],
    c: impl Into<Output<'a>>,
    accumulate: bool,
) -> Result<()> {
    let (a, mut c) = (a.into(), c.into());
    check_offsets(offsets, weights.len(), a.rows())?;
    let ranges: Vec<_> = offsets.windows(2).map(|w| w[0]..w[1]).collect();
    grouped(a, &ranges, weights, &mut c, accumulate)
}

/// One product for each group of a batch padded to equal lengths (M-grouped, masked): group `g` owns the rows from `g * rows_per_group`, of
/// which the first `masked_m[g]` are computed. The other rows of `c` are not touched, and those of `a` not read.
///
/// `a` `[groups * rows_per_group, k]`, `c` `[groups * rows_per_group, n]`.
pub fn gemm_masked<'a>(
    a: impl Into<Operand<'a>>,
    rows_per_group: usize,
    masked_m: &[usize],
    weights: &[&Packed],
    c: impl Into<Output<'a>>,
    accumulate: bool,
) -> Result<()> {
    let (a, mut c) = (a.into(), c.into());
    if masked_m.len() != weights.len() || masked_m.iter().any(|m| *m > rows_per_group) {
        return Err(Error::Shape {
            what: "masked_m",
            expected: format!("{} counts of at most {rows_per_group} rows", weights.len()),
            got: format!("{masked_m:?}"),
        });
    }
    if weights.len().checked_mul(rows_per_group) != Some(a.rows()) {
        return Err(Error::Shape {
            what: "rows of a masked product",
            expected: format!("{} groups of {rows_per_group}", weights.len()),
            got: a.rows().to_string(),
        });
    }
    let ranges: Vec<_> = masked_m.iter().enumerate().map(|(g, m)| g * rows_per_group..g * rows_per_group + m).collect();
    grouped(a, &ranges, weights, &mut c, accumulate)
}

/// One product for each group of consecutive summands (K-grouped): `c[g] = a[g]^T * b[g]`, as the weight gradients of experts are.
///
/// Group `g` has `groups[g] = (a, b)`, `a` `[tokens of g, m]` and `b` `[tokens of g, n]`; `c` is `[groups, m, n]` contiguous. In FP8 both are
/// quantised along tokens, 128x1, group by group, so that no scale spans two groups (see [`crate::quantize::quantize_128x1`]). A group of
/// no tokens gives zeros, or leaves `c` as it is with `accumulate` (a -0 becomes +0).
pub fn gemm_k_grouped(groups: &[(Operand<'_>, Operand<'_>)], m: usize, n: usize, c: &mut [f32], accumulate: bool) -> Result<()> {
    crate::error::check_len("c of a grouped product", groups.len().checked_mul(m).and_then(|x| x.checked_mul(n)), c.len())?;
    let mut lefts = Vec::with_capacity(groups.len());
    for (a, b) in groups {
        check_shape("a of a grouped product", (b.rows(), m), (a.rows(), a.cols()))?;
        check_shape("b of a grouped product", (a.rows(), n), (b.rows(), b.cols()))?;
        let a = a.t()?;
        check_left(&a, kind_of(b))?;
        lefts.push(a);
    }
    if m * n == 0 {
        return Ok(());
    }
    // Everything is checked for every group before anything is written.
    let needs_panels = |b: &Operand<'_>| !matches!(b, Operand::F32(_)) && in_place(*b).is_none();
    let packed: Vec<_> =
        groups.iter().map(|(_, b)| needs_panels(b).then(|| Packed::new(*b)).transpose()).collect::<Result<_>>()?;
    let mut jobs = Vec::new();
    for (((a, (_, b)), packed), c) in lefts.into_iter().zip(groups).zip(&packed).zip(c.chunks_exact_mut(m * n)) {
        let c = MatMut::new(c, m, n)?;
        match (a, b, packed.as_ref().map(Right::Packed).or(in_place(*b))) {
            (a, _, Some(b)) => jobs.push(Job { a: Left::Operand(a), b, c: Output::F32(c) }),
            (Operand::F32(a), Operand::F32(b), None) => f32_gemm::gemm(a, *b, c, accumulate)?,
            _ => unreachable!("check_left refuses a mixture"),
        }
    }
    driver::run(jobs, accumulate);
    Ok(())
}

/// [`gemm_k_grouped`] of operands that are quantised along tokens as they are read; `c` is `[groups, m, n]` and fits.
pub(crate) fn k_grouped_columns(
    groups: &[(ColumnQuantized<'_>, ColumnQuantized<'_>)],
    m: usize,
    n: usize,
    c: &mut [f32],
    accumulate: bool,
) -> Result<()> {
    if m * n == 0 {
        return Ok(());
    }
    let mut jobs = Vec::new();
    for ((a, b), c) in groups.iter().zip(c.chunks_exact_mut(m * n)) {
        jobs.push(Job { a: Left::Columns(a), b: Right::Columns(b), c: Output::F32(MatMut::new(c, m, n)?) });
    }
    driver::run(jobs, accumulate);
    Ok(())
}

fn grouped(
    a: Operand<'_>,
    ranges: &[std::ops::Range<usize>],
    weights: &[&Packed],
    c: &mut Output<'_>,
    accumulate: bool,
) -> Result<()> {
    if a.rows() != c.rows() {
        return check_shape("c of a grouped product", (a.rows(), c.cols()), (c.rows(), c.cols()));
    }
    let mut lefts = Vec::with_capacity(weights.len());
    for (w, range) in weights.iter().zip(ranges) {
        check_shape("weight of a grouped product", (a.cols(), c.cols()), (w.k, w.n))?;
        check_left(&a, w.kind())?;
        lefts.push(a.row_range(range.clone())?);
    }
    let mut jobs = Vec::new();
    let mut rest = c.reborrow();
    let mut done = 0;
    for ((a, w), range) in lefts.into_iter().zip(weights).zip(ranges) {
        let (_, tail) = split_rows(rest, range.start - done)?;
        let (mine, tail) = split_rows(tail, range.len())?;
        rest = tail;
        done = range.end;
        match (a, &w.panels) {
            (Operand::F32(a), Panels::F32(w)) => {
                f32_product(mine, accumulate, |c, accumulate| f32_gemm::gemm_packed(a, w, c, accumulate))?
            }
            _ => jobs.push(Job { a: Left::Operand(a), b: Right::Packed(w), c: mine }),
        }
    }
    driver::run(jobs, accumulate);
    Ok(())
}

fn split_rows(c: Output<'_>, row: usize) -> Result<(Output<'_>, Output<'_>)> {
    Ok(match c {
        Output::F32(c) => {
            let (head, tail) = c.split_at_row(row)?;
            (Output::F32(head), Output::F32(tail))
        }
        Output::Bf16(c) => {
            let (head, tail) = c.split_at_row(row)?;
            (Output::Bf16(head), Output::Bf16(tail))
        }
    })
}

/// Runs an f32 product into f32 or, through a copy, bf16.
fn f32_product(
    c: Output<'_>,
    accumulate: bool,
    product: impl FnOnce(MatMut<'_, f32>, bool) -> v3_numerics::Result<()>,
) -> Result<()> {
    match c {
        Output::F32(c) => Ok(product(c, accumulate)?),
        Output::Bf16(mut c) => {
            let (m, n) = (c.rows(), c.cols());
            let mut sums = vec![0.0f32; m * n];
            product(MatMut::new(&mut sums, m, n)?, false)?;
            let sums = MatRef::new(&sums, m, n)?;
            for i in 0..m {
                for j in 0..n {
                    let c = c.at_mut(i, j);
                    *c = bf16::from_f32(if accumulate { c.to_f32() + sums.at(i, j) } else { *sums.at(i, j) });
                }
            }
            Ok(())
        }
    }
}

fn kind_of(b: &Operand<'_>) -> &'static str {
    match b {
        Operand::F32(_) => "f32",
        Operand::Bf16(_) | Operand::RoundedToBf16(_) => "bf16",
        Operand::Fp8(_) | Operand::QuantizedRows(..) => "fp8",
    }
}

fn check_dense(m: usize, k: usize, bk: usize, n: usize, c: &Output<'_>) -> Result<()> {
    check_shape("b of a matrix product", (k, n), (bk, n))?;
    check_shape("c of a matrix product", (m, n), (c.rows(), c.cols()))
}

/// Whether `a` can stand left of a right operand of the given precision.
fn check_left(a: &Operand<'_>, right: &'static str) -> Result<()> {
    if kind_of(a) != right {
        return Err(Error::Unsupported {
            what: "operands of a product",
            expected: "both f32, both bf16 or both fp8",
            got: format!("{} and {right}", a.kind()),
        });
    }
    if let Operand::Fp8(a) = a
        && a.block() == Block::Col128
    {
        return Err(Error::Unsupported {
            what: "left operand",
            expected: "scales that change every 128 along k: 1x128 or 128x128 blocks",
            got: "128x1 blocks".into(),
        });
    }
    Ok(())
}
