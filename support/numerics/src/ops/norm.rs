//! RMSNorm and its two backwards.

use super::{Lanewise, check_rows, check_rows_mut, map_lanes, rows_per_task, sum_row};
use crate::cpu::Isa;
use crate::error::{Result, check_len, check_shape, rows_of};
use crate::par;
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::view::{MatMut, MatRef};

/// RMSNorm of each row: `rstd = 1 / sqrt(mean(x^2) + eps)`, `y = (x * rstd) * weight`.
///
/// `x`, `y` `[t, d]`, `weight` `[d]`, `rstd` `[t]` (kept for the backward).
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) -> Result<()> {
    let d = weight.len();
    let t = rows_of("input of RMSNorm", x.len(), d)?;
    check_len("output of RMSNorm", x.len(), y.len())?;
    // Rows of no values cannot be counted: there are as many as the caller has results for.
    let t = if d == 0 { rstd.len() } else { t };
    rms_norm_strided(MatRef::new(x, t, d)?, weight, eps, MatMut::new(y, t, d)?, rstd)
}

/// [`rms_norm`] of strided rows, such as a column slice of a wider matrix.
pub fn rms_norm_strided(x: MatRef<'_, f32>, weight: &[f32], eps: f32, y: MatMut<'_, f32>, rstd: &mut [f32]) -> Result<()> {
    check_rows("input of RMSNorm", &x)?;
    check_rows_mut("output of RMSNorm", &y)?;
    check_shape("output of RMSNorm", (x.rows(), x.cols()), (y.rows(), y.cols()))?;
    check_len("weight of RMSNorm", x.cols(), weight.len())?;
    check_len("rstd of RMSNorm", x.rows(), rstd.len())?;
    let isa = Isa::detect();
    let band = rows_per_task(x.cols());
    let mut bands = cut(y, band, rstd.chunks_mut(band))?;
    par::for_each_chunk_mut(&mut bands, 1, |i, one| {
        let (y, rstd) = &mut one[0];
        dispatch(isa, Forward { x, weight, eps, first: i * band, y: y.reborrow(), rstd });
    });
    Ok(())
}

/// Bands of rows, each beside its part of something else.
fn cut<'a, P>(mut y: MatMut<'a, f32>, band: usize, parts: impl Iterator<Item = P>) -> Result<Vec<(MatMut<'a, f32>, P)>> {
    let mut bands = Vec::with_capacity(y.rows().div_ceil(band));
    for part in parts {
        let rows = band.min(y.rows());
        let (head, tail) = y.split_at_row(rows)?;
        bands.push((head, part));
        y = tail;
    }
    Ok(bands)
}

struct Forward<'a> {
    x: MatRef<'a, f32>,
    weight: &'a [f32],
    eps: f32,
    first: usize,
    y: MatMut<'a, f32>,
    rstd: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for (i, rstd) in self.rstd.iter_mut().enumerate() {
            let x = self.x.row(self.first + i);
            let sum = sum_row!(
                s,
                x.len(),
                |at, acc| {
                    // SAFETY: the loop keeps `at + 16` within the row.
                    let v = unsafe { s.load_ptr(x.as_ptr().add(at)) };
                    s.mul_add(v, v, acc)
                },
                |rest| |acc| {
                    let v = s.load_partial(&x[rest]);
                    s.mul_add(v, v, acc)
                }
            );
            *rstd = 1.0 / (sum / x.len().max(1) as f32 + self.eps).sqrt();
            map_lanes(s, [x, self.weight], [self.y.row_mut(i)], Apply(*rstd));
        }
    }
}

#[derive(Clone, Copy)]
struct Apply(f32);
impl Lanewise<2, 1> for Apply {
    const IN_PLACE: bool = false;
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x, weight]: [S::F; 2], _: [S::F; 1]) -> [S::F; 1] {
        [s.mul(s.mul(x, s.splat(self.0)), weight)]
    }
}

/// The gradient of [`rms_norm`] for its input: `dx = rstd * (dy * weight - x * rstd^2 * mean(dy * weight * x))`. `dx` is overwritten.
pub fn rms_norm_backward_input(dy: &[f32], x: &[f32], weight: &[f32], rstd: &[f32], dx: &mut [f32]) -> Result<()> {
    let d = weight.len();
    let t = rows_of("input of RMSNorm", x.len(), d)?;
    check_len("output gradient of RMSNorm", x.len(), dy.len())?;
    check_len("input gradient of RMSNorm", x.len(), dx.len())?;
    let t = if d == 0 { rstd.len() } else { t };
    rms_norm_backward_input_strided(MatRef::new(dy, t, d)?, MatRef::new(x, t, d)?, weight, rstd, MatMut::new(dx, t, d)?)
}

/// [`rms_norm_backward_input`] of strided rows.
pub fn rms_norm_backward_input_strided(
    dy: MatRef<'_, f32>,
    x: MatRef<'_, f32>,
    weight: &[f32],
    rstd: &[f32],
    dx: MatMut<'_, f32>,
) -> Result<()> {
    check_rows("input of RMSNorm", &x)?;
    check_rows("output gradient of RMSNorm", &dy)?;
    check_rows_mut("input gradient of RMSNorm", &dx)?;
    check_shape("output gradient of RMSNorm", (x.rows(), x.cols()), (dy.rows(), dy.cols()))?;
    check_shape("input gradient of RMSNorm", (x.rows(), x.cols()), (dx.rows(), dx.cols()))?;
    check_len("weight of RMSNorm", x.cols(), weight.len())?;
    check_len("rstd of RMSNorm", x.rows(), rstd.len())?;
    let isa = Isa::detect();
    par::for_each_row_band(dx, rows_per_task(x.cols()), |first, dx| {
        dispatch(isa, BackwardInput { dy, x, weight, rstd, first, dx });
    });
    Ok(())
}

struct BackwardInput<'a> {
    dy: MatRef<'a, f32>,
    x: MatRef<'a, f32>,
    weight: &'a [f32],
    rstd: &'a [f32],
    first: usize,
    dx: MatMut<'a, f32>,
}

impl Kernel for BackwardInput<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for i in 0..self.dx.rows() {
            let (x, dy, rstd) = (self.x.row(self.first + i), self.dy.row(self.first + i), self.rstd[self.first + i]);
            let weight = self.weight;
            let dot = sum_row!(
                s,
                x.len(),
                |at, acc| {
                    // SAFETY: the loop keeps `at + 16` within the row, whose length all three have.
                    let (x, dy, w) = unsafe {
                        (s.load_ptr(x.as_ptr().add(at)), s.load_ptr(dy.as_ptr().add(at)), s.load_ptr(weight.as_ptr().add(at)))
                    };
                    s.mul_add(s.mul(dy, w), x, acc)
                },
                |rest| |acc| {
                    let dy = s.load_partial(&dy[rest.clone()]);
                    let w = s.load_partial(&weight[rest.clone()]);
                    s.mul_add(s.mul(dy, w), s.load_partial(&x[rest]), acc)
                }
            );
            let mean = dot / x.len().max(1) as f32;
            map_lanes(s, [dy, x, weight], [self.dx.row_mut(i)], ApplyBackward { rstd, factor: rstd * rstd * mean });
        }
    }
}

#[derive(Clone, Copy)]
struct ApplyBackward {
    rstd: f32,
    factor: f32,
}
impl Lanewise<3, 1> for ApplyBackward {
    const IN_PLACE: bool = false;
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [dy, x, weight]: [S::F; 3], _: [S::F; 1]) -> [S::F; 1] {
        let inner = s.neg_mul_add(x, s.splat(self.factor), s.mul(dy, weight));
        [s.mul(s.splat(self.rstd), inner)]
    }
}

/// The gradient of [`rms_norm`] for its weight: `dweight += sum over rows of dy * x * rstd`, the finished sum added once.
pub fn rms_norm_backward_weight(dy: &[f32], x: &[f32], rstd: &[f32], dweight: &mut [f32]) -> Result<()> {
    let d = dweight.len();
    let t = rows_of("input of RMSNorm", x.len(), d)?;
    check_len("output gradient of RMSNorm", x.len(), dy.len())?;
    let t = if d == 0 { rstd.len() } else { t };
    rms_norm_backward_weight_strided(MatRef::new(dy, t, d)?, MatRef::new(x, t, d)?, rstd, dweight)
}

/// [`rms_norm_backward_weight`] of strided rows.
pub fn rms_norm_backward_weight_strided(
    dy: MatRef<'_, f32>,
    x: MatRef<'_, f32>,
    rstd: &[f32],
    dweight: &mut [f32],
) -> Result<()> {
    /// The rows whose sum is one chain.
    const CHUNK: usize = 64;
    check_rows("input of RMSNorm", &x)?;
    check_rows("output gradient of RMSNorm", &dy)?;
    check_shape("output gradient of RMSNorm", (x.rows(), x.cols()), (dy.rows(), dy.cols()))?;
    check_len("weight gradient of RMSNorm", x.cols(), dweight.len())?;
    check_len("rstd of RMSNorm", x.rows(), rstd.len())?;
    let (t, d) = (x.rows(), x.cols());
    if t == 0 || d == 0 {
        return Ok(());
    }
    let isa = Isa::detect();
    let mut partial = vec![0.0f32; t.div_ceil(CHUNK) * d];
    par::for_each_chunk_mut(&mut partial, d, |chunk, sum| {
        for (i, rstd) in rstd.iter().enumerate().skip(chunk * CHUNK).take(CHUNK) {
            super::map(isa, [dy.row(i), x.row(i)], [&mut *sum], AddScaledProduct(*rstd));
        }
    });
    let (first, rest) = partial.split_at_mut(d);
    for sum in rest.chunks_exact(d) {
        super::add_assign(first, sum)?;
    }
    super::add_assign(dweight, first)
}

#[derive(Clone, Copy)]
struct AddScaledProduct(f32);
impl Lanewise<2, 1> for AddScaledProduct {
    const IN_PLACE: bool = true;
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [dy, x]: [S::F; 2], [sum]: [S::F; 1]) -> [S::F; 1] {
        [s.mul_add(dy, s.mul(x, s.splat(self.0)), sum)]
    }
}
