//! The small operations of a transformer layer, each with its backward, on f32 rows of length `d`.

use crate::error::{Error, Result, check_len, check_shape, rows_of};
use crate::view::{MatMut, MatRef};
use half::bf16;

/// RMSNorm of each row: `rstd = 1 / sqrt(mean(x^2) + eps)`, `y = x * rstd * weight`.
///
/// `x`, `y` `[t, d]`, `weight` `[d]`, `rstd` `[t]` (kept for the backward).
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) -> Result<()> {
    let d = weight.len();
    let t = rows_of("input of RMSNorm", x.len(), d)?;
    check_len("output of RMSNorm", x.len(), y.len())?;
    rms_norm_strided(MatRef::new(x, t, d)?, weight, eps, MatMut::new(y, t, d)?, rstd)
}

/// [`rms_norm`] of strided rows.
pub fn rms_norm_strided(x: MatRef<'_, f32>, weight: &[f32], eps: f32, mut y: MatMut<'_, f32>, rstd: &mut [f32]) -> Result<()> {
    check_rows("input of RMSNorm", &x)?;
    check_rows_mut("output of RMSNorm", &y)?;
    check_shape("output of RMSNorm", (x.rows(), x.cols()), (y.rows(), y.cols()))?;
    check_len("weight of RMSNorm", x.cols(), weight.len())?;
    check_len("rstd of RMSNorm", x.rows(), rstd.len())?;
    for i in 0..x.rows() {
        let row = x.row(i);
        let mean = row.iter().map(|v| v * v).sum::<f32>() / row.len().max(1) as f32;
        let r = 1.0 / (mean + eps).sqrt();
        rstd[i] = r;
        for ((y, x), w) in y.row_mut(i).iter_mut().zip(row).zip(weight) {
            *y = x * r * w;
        }
    }
    Ok(())
}

/// The gradient of [`rms_norm`] for its input: `dx = rstd * (dy * weight - x * rstd^2 * mean(dy * weight * x))`. `dx` is overwritten.
pub fn rms_norm_backward_input(dy: &[f32], x: &[f32], weight: &[f32], rstd: &[f32], dx: &mut [f32]) -> Result<()> {
    let d = weight.len();
    let t = rows_of("input of RMSNorm", x.len(), d)?;
    check_len("output gradient of RMSNorm", x.len(), dy.len())?;
    check_len("input gradient of RMSNorm", x.len(), dx.len())?;
    rms_norm_backward_input_strided(MatRef::new(dy, t, d)?, MatRef::new(x, t, d)?, weight, rstd, MatMut::new(dx, t, d)?)
}

/// [`rms_norm_backward_input`] of strided rows.
pub fn rms_norm_backward_input_strided(
    dy: MatRef<'_, f32>,
    x: MatRef<'_, f32>,
    weight: &[f32],
    rstd: &[f32],
    mut dx: MatMut<'_, f32>,
) -> Result<()> {
    check_rows("input of RMSNorm", &x)?;
    check_rows("output gradient of RMSNorm", &dy)?;
    check_rows_mut("input gradient of RMSNorm", &dx)?;
    check_shape("output gradient of RMSNorm", (x.rows(), x.cols()), (dy.rows(), dy.cols()))?;
    check_shape("input gradient of RMSNorm", (x.rows(), x.cols()), (dx.rows(), dx.cols()))?;
    check_len("weight of RMSNorm", x.cols(), weight.len())?;
    check_len("rstd of RMSNorm", x.rows(), rstd.len())?;
    for i in 0..x.rows() {
        let (x, dy, r) = (x.row(i), dy.row(i), rstd[i]);
        let dot: f32 = x.iter().zip(dy).zip(weight).map(|((x, dy), w)| x * dy * w).sum();
        let c = r * r * dot / x.len().max(1) as f32;
        for (((dx, x), dy), w) in dx.row_mut(i).iter_mut().zip(x).zip(dy).zip(weight) {
            *dx = r * (dy * w - x * c);
        }
    }
    Ok(())
}

/// The gradient of [`rms_norm`] for its weight: `dweight += sum over rows of dy * x * rstd`, the finished sum added once.
pub fn rms_norm_backward_weight(dy: &[f32], x: &[f32], rstd: &[f32], dweight: &mut [f32]) -> Result<()> {
    let d = dweight.len();
    let t = rows_of("input of RMSNorm", x.len(), d)?;
    check_len("output gradient of RMSNorm", x.len(), dy.len())?;
    rms_norm_backward_weight_strided(MatRef::new(dy, t, d)?, MatRef::new(x, t, d)?, rstd, dweight)
}

/// [`rms_norm_backward_weight`] of strided rows.
pub fn rms_norm_backward_weight_strided(
    dy: MatRef<'_, f32>,
    x: MatRef<'_, f32>,
    rstd: &[f32],
    dweight: &mut [f32],
) -> Result<()> {
    check_rows("input of RMSNorm", &x)?;
    check_rows("output gradient of RMSNorm", &dy)?;
    check_shape("output gradient of RMSNorm", (x.rows(), x.cols()), (dy.rows(), dy.cols()))?;
    check_len("weight gradient of RMSNorm", x.cols(), dweight.len())?;
    check_len("rstd of RMSNorm", x.rows(), rstd.len())?;
    for (j, dw) in dweight.iter_mut().enumerate() {
        *dw += (0..x.rows()).map(|i| dy.at(i, j) * x.at(i, j) * rstd[i]).sum::<f32>();
    }
    Ok(())
}

/// SwiGLU: `out = silu(gate) * up` with `gate_up` `[t, 2 * inter]`, the gate in the first half of each row; `out` `[t, inter]`.
pub fn swiglu(gate_up: &[f32], inter: usize, out: &mut [f32]) -> Result<()> {
    let t = rows_of("output of SwiGLU", out.len(), inter)?;
    check_len("input of SwiGLU", 2 * t * inter, gate_up.len())?;
    for i in 0..t {
        let (gate, up) = gate_up[2 * i * inter..2 * (i + 1) * inter].split_at(inter);
        for ((o, g), u) in out[i * inter..(i + 1) * inter].iter_mut().zip(gate).zip(up) {
            *o = g / (1.0 + (-g).exp()) * u;
        }
    }
    Ok(())
}

/// The gradient of [`swiglu`]: `dgate_up` `[t, 2 * inter]` is overwritten.
pub fn swiglu_backward(dout: &[f32], gate_up: &[f32], inter: usize, dgate_up: &mut [f32]) -> Result<()> {
    let t = rows_of("output gradient of SwiGLU", dout.len(), inter)?;
    check_len("input of SwiGLU", 2 * t * inter, gate_up.len())?;
    check_len("input gradient of SwiGLU", 2 * t * inter, dgate_up.len())?;
    for i in 0..t {
        for j in 0..inter {
            let (g, u) = (gate_up[2 * i * inter + j], gate_up[(2 * i + 1) * inter + j]);
            let dy = dout[i * inter + j];
            let s = 1.0 / (1.0 + (-g).exp());
            dgate_up[2 * i * inter + j] = dy * u * s * (1.0 + g * (1.0 - s));
            dgate_up[(2 * i + 1) * inter + j] = dy * g * s;
        }
    }
    Ok(())
}

/// `out[i] = table[ids[i]]`: `table` `[vocabulary, d]`, `out` `[ids, d]`. An id out of range is an error.
pub fn embedding_gather(ids: &[u32], table: &[f32], d: usize, out: &mut [f32]) -> Result<()> {
    let vocabulary = rows_of("embedding table", table.len(), d)?;
    check_len("output of the embedding", ids.len() * d, out.len())?;
    check_ids(ids, vocabulary)?;
    for (i, id) in ids.iter().enumerate() {
        out[i * d..(i + 1) * d].copy_from_slice(&table[*id as usize * d..(*id as usize + 1) * d]);
    }
    Ok(())
}

/// `dtable[ids[i]] += dy[i]` for `i` ascending: `dtable` `[vocabulary, d]`, `dy` `[ids, d]`.
pub fn embedding_scatter_add(ids: &[u32], dy: &[f32], d: usize, dtable: &mut [f32]) -> Result<()> {
    let vocabulary = rows_of("embedding table gradient", dtable.len(), d)?;
    check_len("output gradient of the embedding", ids.len() * d, dy.len())?;
    check_ids(ids, vocabulary)?;
    for (i, id) in ids.iter().enumerate() {
        for j in 0..d {
            dtable[*id as usize * d + j] += dy[i * d + j];
        }
    }
    Ok(())
}

/// `y += x`.
pub fn add_assign(y: &mut [f32], x: &[f32]) -> Result<()> {
    check_len("summand", y.len(), x.len())?;
    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    Ok(())
}

/// `y = fma(alpha, x, y)`.
pub fn axpy(alpha: f32, x: &[f32], y: &mut [f32]) -> Result<()> {
    check_len("summand", y.len(), x.len())?;
    y.iter_mut().zip(x).for_each(|(y, x)| *y = alpha.mul_add(*x, *y));
    Ok(())
}

/// `x *= alpha`.
pub fn scale(x: &mut [f32], alpha: f32) {
    x.iter_mut().for_each(|x| *x *= alpha);
}

/// The sum of squares, in f64.
pub fn sum_squares(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()
}

/// The Euclidean norm of all values of several tensors together.
pub fn global_norm(parts: &[&[f32]]) -> f64 {
    parts.iter().map(|p| sum_squares(p)).sum::<f64>().sqrt()
}

/// The factor that clips a gradient of this norm to `max_norm`: 1 when it is no larger, as PyTorch's `clip_grad_norm_` otherwise.
pub fn clip_factor(norm: f64, max_norm: f64) -> f32 {
    (max_norm / (norm + 1e-6)).min(1.0) as f32
}

/// `y = exp(x)`.
pub fn exp(x: &[f32], y: &mut [f32]) -> Result<()> {
    check_len("output of exp", x.len(), y.len())?;
    x.iter().zip(y).for_each(|(x, y)| *y = x.exp());
    Ok(())
}

/// Softmax of each row of length `d`, in place.
pub fn softmax_rows(x: &mut [f32], d: usize) -> Result<()> {
    rows_of("input of softmax", x.len(), d)?;
    for row in x.chunks_exact_mut(d.max(1)) {
        let max = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
        row.iter_mut().for_each(|v| *v = (*v - max).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|v| *v /= sum);
    }
    Ok(())
}

/// The constants of one AdamW step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWParams {
    /// The learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the square root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f32,
}

/// A type that the moments of an optimiser may be stored in: f32, or bf16 rounded to nearest even after each update.
pub trait Moment: bytemuck::Pod + Send + Sync {
    /// The value.
    fn load(self) -> f32;
    /// The nearest value of this type.
    fn store(x: f32) -> Self;
}

impl Moment for f32 {
    fn load(self) -> f32 {
        self
    }
    fn store(x: f32) -> f32 {
        x
    }
}

impl Moment for bf16 {
    fn load(self) -> f32 {
        self.to_f32()
    }
    fn store(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
}

/// One step of AdamW on `w` with the gradient `g * grad_scale`; `step` counts from 1.
///
/// `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
/// `w = w (1 - lr weight_decay) - lr / (1 - beta1^step) * m / (sqrt(v / (1 - beta2^step)) + eps)`.
pub fn adamw_step<M: Moment>(
    params: &AdamWParams,
    step: u64,
    w: &mut [f32],
    g: &[f32],
    grad_scale: f32,
    m: &mut [M],
    v: &mut [M],
) -> Result<()> {
    check_len("gradient of AdamW", w.len(), g.len())?;
    check_len("first moment of AdamW", w.len(), m.len())?;
    check_len("second moment of AdamW", w.len(), v.len())?;
    if step == 0 {
        return Err(Error::Parameter { what: "step of AdamW", expected: "1 or more", got: "0".into() });
    }
    let p = params;
    let decay = 1.0 - p.lr * p.weight_decay;
    let step_size = (f64::from(p.lr) / (1.0 - f64::from(p.beta1).powf(step as f64))) as f32;
    let v_scale = (1.0 / (1.0 - f64::from(p.beta2).powf(step as f64))).sqrt() as f32;
    for i in 0..w.len() {
        let grad = g[i] * grad_scale;
        let mi = p.beta1.mul_add(m[i].load(), (1.0 - p.beta1) * grad);
        let vi = p.beta2.mul_add(v[i].load(), (1.0 - p.beta2) * grad * grad);
        let denominator = vi.sqrt().mul_add(v_scale, p.eps);
        w[i] = (mi / denominator).mul_add(-step_size, w[i] * decay);
        m[i] = M::store(mi);
        v[i] = M::store(vi);
    }
    Ok(())
}

fn check_ids(ids: &[u32], vocabulary: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocabulary) {
        None => Ok(()),
        Some(id) => Err(Error::Index { what: "token id", index: *id as usize, len: vocabulary }),
    }
}

fn check_rows(what: &'static str, x: &MatRef<'_, f32>) -> Result<()> {
    contiguous(what, x.has_contiguous_rows())
}

fn check_rows_mut(what: &'static str, x: &MatMut<'_, f32>) -> Result<()> {
    contiguous(what, x.has_contiguous_rows())
}

fn contiguous(what: &'static str, yes: bool) -> Result<()> {
    if yes { Ok(()) } else { Err(Error::Shape { what, expected: "contiguous rows".into(), got: "a transposed view".into() }) }
}
