//! What every operation computes, in the most obvious way: f64, one loop after the other, no SIMD, no unsafe.
//!
//! The oracle of the tests of this crate, and of its users' tests.

use crate::ops::AdamWParams;
use crate::view::MatRef;

/// `a b` `[m, n]` in row-major order, and beside it the sum of the magnitudes of the products, which bounds the rounding of any order
/// of summation.
pub fn gemm(a: MatRef<'_, f32>, b: MatRef<'_, f32>) -> (Vec<f64>, Vec<f64>) {
    let mut value = Vec::with_capacity(a.rows() * b.cols());
    let mut magnitude = Vec::with_capacity(a.rows() * b.cols());
    for i in 0..a.rows() {
        for j in 0..b.cols() {
            let products = || (0..a.cols().min(b.rows())).map(|p| f64::from(*a.at(i, p)) * f64::from(*b.at(p, j)));
            value.push(products().sum());
            magnitude.push(products().map(f64::abs).sum());
        }
    }
    (value, magnitude)
}

fn double(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// RMSNorm: `y` `[t, d]` and `rstd` `[t]`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> (Vec<f64>, Vec<f64>) {
    let d = weight.len().max(1);
    let rstd: Vec<f64> = x
        .chunks_exact(d)
        .map(|row| 1.0 / (double(row).iter().map(|x| x * x).sum::<f64>() / d as f64 + f64::from(eps)).sqrt())
        .collect();
    let y = x.iter().enumerate().map(|(i, x)| f64::from(*x) * rstd[i / d] * f64::from(weight[i % d])).collect();
    (y, rstd)
}

/// The gradients of [`rms_norm`] for `x` and for `weight`.
pub fn rms_norm_backward(dy: &[f32], x: &[f32], weight: &[f32], eps: f32) -> (Vec<f64>, Vec<f64>) {
    let d = weight.len().max(1);
    let (_, rstd) = rms_norm(x, weight, eps);
    let (dy, x, weight) = (double(dy), double(x), double(weight));
    let mut dx = vec![0.0; x.len()];
    let mut dweight = vec![0.0; weight.len()];
    for (i, r) in rstd.iter().enumerate() {
        let row = i * d..(i + 1) * d;
        let dot: f64 = row.clone().map(|p| dy[p] * weight[p % d] * x[p]).sum();
        for p in row {
            dx[p] = r * (dy[p] * weight[p % d] - x[p] * r * r * dot / d as f64);
            dweight[p % d] += dy[p] * x[p] * r;
        }
    }
    (dx, dweight)
}

/// `silu(gate) * up` of `gate_up` `[t, 2 * inter]`.
pub fn swiglu(gate_up: &[f32], inter: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(gate_up.len() / 2);
    for row in gate_up.chunks_exact((2 * inter).max(1)) {
        let row = double(row);
        out.extend((0..inter).map(|j| row[j] / (1.0 + (-row[j]).exp()) * row[inter + j]));
    }
    out
}

/// The gradient of [`swiglu`] for `gate_up`.
pub fn swiglu_backward(dout: &[f32], gate_up: &[f32], inter: usize) -> Vec<f64> {
    let mut dgate_up = vec![0.0; gate_up.len()];
    for (i, dy) in dout.iter().enumerate() {
        let at = i / inter * 2 * inter + i % inter;
        let (g, u, dy) = (f64::from(gate_up[at]), f64::from(gate_up[at + inter]), f64::from(*dy));
        let sigma = 1.0 / (1.0 + (-g).exp());
        dgate_up[at] = dy * u * sigma * (1.0 + g * (1.0 - sigma));
        dgate_up[at + inter] = dy * g * sigma;
    }
    dgate_up
}

/// The gradient of the embedding table: the sum of the rows of `dy` that have each id.
pub fn embedding_scatter(ids: &[u32], dy: &[f32], d: usize, vocabulary: usize) -> Vec<f64> {
    let mut dtable = vec![0.0; vocabulary * d];
    for (i, id) in ids.iter().enumerate() {
        for j in 0..d {
            dtable[*id as usize * d + j] += f64::from(dy[i * d + j]);
        }
    }
    dtable
}

/// The sum of squares.
pub fn sum_squares(x: &[f32]) -> f64 {
    double(x).iter().map(|x| x * x).sum()
}

/// Softmax of each row of length `d`.
pub fn softmax_rows(x: &[f32], d: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(d.max(1)) {
        let row = double(row);
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
        out.extend(row.iter().map(|x| (x - max).exp() / sum));
    }
    out
}

/// One step of AdamW on f64 values: `(w, m, v)` after it.
pub fn adamw_step(p: &AdamWParams, step: u64, w: &[f64], g: &[f64], m: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let [lr, beta1, beta2, eps, decay] = [p.lr, p.beta1, p.beta2, p.eps, p.weight_decay].map(f64::from);
    let m: Vec<f64> = m.iter().zip(g).map(|(m, g)| beta1 * m + (1.0 - beta1) * g).collect();
    let v: Vec<f64> = v.iter().zip(g).map(|(v, g)| beta2 * v + (1.0 - beta2) * g * g).collect();
    let (c1, c2) = (1.0 - beta1.powf(step as f64), 1.0 - beta2.powf(step as f64));
    let w = w.iter().zip(m.iter().zip(&v)).map(|(w, (m, v))| w * (1.0 - lr * decay) - lr * (m / c1) / ((v / c2).sqrt() + eps));
    (w.collect(), m, v)
}

/// The value of a code of a small binary floating-point format, from its definition: a sign, `exponent` bits, `mantissa` bits,
/// with infinities and NaN as in IEEE 754.
pub fn decode_ieee(code: u32, exponent: u32, mantissa: u32) -> f64 {
    let bias = (1i32 << (exponent - 1)) - 1;
    let e = (code >> mantissa) & ((1 << exponent) - 1);
    let fraction = f64::from(code & ((1 << mantissa) - 1)) / f64::from(1u32 << mantissa);
    let magnitude = if e == (1 << exponent) - 1 {
        if fraction == 0.0 { f64::INFINITY } else { f64::NAN }
    } else if e == 0 {
        fraction * 2f64.powi(1 - bias)
    } else {
        (1.0 + fraction) * 2f64.powi(e as i32 - bias)
    };
    if code >> (exponent + mantissa) & 1 == 1 { -magnitude } else { magnitude }
}

/// The value of an E4M3 code: as [`decode_ieee`], but the largest exponent holds numbers too, all ones alone is NaN.
pub fn decode_e4m3(code: u8) -> f64 {
    let magnitude = match code & 0x7f {
        0x7f => f64::NAN,
        c if c >= 0x78 => (1.0 + f64::from(c & 7) / 8.0) * 256.0,
        c => decode_ieee(u32::from(c), 4, 3),
    };
    if code & 0x80 != 0 { -magnitude } else { magnitude }
}

/// The code in `codes` (of which those that are not finite do not count) whose value is nearest to `x`, the even code in a tie.
pub fn nearest(x: f64, codes: std::ops::Range<u32>, decode: impl Fn(u32) -> f64) -> u32 {
    let finite = codes.filter(|code| decode(*code).is_finite());
    let better = |best: u32, code: u32| {
        let (old, new) = ((decode(best) - x).abs(), (decode(code) - x).abs());
        if new < old || (new == old && code.is_multiple_of(2)) { code } else { best }
    };
    finite.reduce(better).unwrap_or(0)
}
