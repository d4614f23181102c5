//! The obvious versions, in f64 throughout: what every kernel of this crate is tested against.
//!
//! No blocking, no SIMD, no unsafe. Buffers have the layouts of the kernels; wrong sizes panic, as indexing does.

use crate::prefill::PrefillShape;
use crate::rope::RopeConfig;

/// Each value as f64.
pub fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

/// The `d_nope + d_rope` values of a key: the head's own part, then the part that all heads share.
fn key(s: &PrefillShape, kv: &[f64], k_rope: &[f64], t: usize, h: usize) -> Vec<f64> {
    let own = &kv[(t * s.heads + h) * (s.d_nope + s.d_v)..][..s.d_nope];
    [own, &k_rope[t * s.d_rope..][..s.d_rope]].concat()
}

fn value<'a>(s: &PrefillShape, kv: &'a [f64], t: usize, h: usize) -> &'a [f64] {
    &kv[(t * s.heads + h) * (s.d_nope + s.d_v) + s.d_nope..][..s.d_v]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Softmax of `scores`, and its natural log-sum-exp. No score gives no weight and `-inf`.
pub fn softmax(scores: &[f64]) -> (Vec<f64>, f64) {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if scores.is_empty() {
        return (Vec::new(), max);
    }
    let exps: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    (exps.iter().map(|e| e / sum).collect(), max + sum.ln())
}

/// Causal attention within each sequence: `(out [T, H, d_v], lse [T, H])`. See [`crate::prefill_forward`] for the operands.
pub fn prefill_forward(
    s: &PrefillShape,
    scale: f64,
    cu_seqlens: &[usize],
    q: &[f64],
    kv: &[f64],
    k_rope: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let tokens = cu_seqlens[cu_seqlens.len() - 1];
    let d_qk = s.d_nope + s.d_rope;
    let mut out = vec![0.0; tokens * s.heads * s.d_v];
    let mut lse = vec![0.0; tokens * s.heads];
    for bounds in cu_seqlens.windows(2) {
        for t in bounds[0]..bounds[1] {
            for h in 0..s.heads {
                let row = t * s.heads + h;
                let query = &q[row * d_qk..][..d_qk];
                let scores: Vec<f64> = (bounds[0]..=t).map(|k| scale * dot(query, &key(s, kv, k_rope, k, h))).collect();
                let (weights, row_lse) = softmax(&scores);
                lse[row] = row_lse;
                for (k, w) in (bounds[0]..=t).zip(weights) {
                    for (o, v) in out[row * s.d_v..][..s.d_v].iter_mut().zip(value(s, kv, k, h)) {
                        *o += w * v;
                    }
                }
            }
        }
    }
    (out, lse)
}

/// Gradients of the sum of `out * dout`: `(dq, dkv, dk_rope)`, of the shapes of `q`, `kv` and `k_rope`.
pub fn prefill_backward(
    s: &PrefillShape,
    scale: f64,
    cu_seqlens: &[usize],
    q: &[f64],
    kv: &[f64],
    k_rope: &[f64],
    dout: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let d_qk = s.d_nope + s.d_rope;
    let d_kv = s.d_nope + s.d_v;
    let mut dq = vec![0.0; q.len()];
    let mut dkv = vec![0.0; kv.len()];
    let mut dk_rope = vec![0.0; k_rope.len()];
    for bounds in cu_seqlens.windows(2) {
        for t in bounds[0]..bounds[1] {
            for h in 0..s.heads {
                let row = t * s.heads + h;
                let query = &q[row * d_qk..][..d_qk];
                let grad = &dout[row * s.d_v..][..s.d_v];
                let scores: Vec<f64> = (bounds[0]..=t).map(|k| scale * dot(query, &key(s, kv, k_rope, k, h))).collect();
                let (weights, _) = softmax(&scores);
                let dweights: Vec<f64> = (bounds[0]..=t).map(|k| dot(grad, value(s, kv, k, h))).collect();
                let mean = dot(&weights, &dweights);
                for ((k, w), dw) in (bounds[0]..=t).zip(weights).zip(dweights) {
                    let dscore = w * (dw - mean) * scale;
                    let dkv_row = &mut dkv[(k * s.heads + h) * d_kv..][..d_kv];
                    for (g, v) in dkv_row[s.d_nope..].iter_mut().zip(grad) {
                        *g += w * v;
                    }
                    for (g, v) in dkv_row[..s.d_nope].iter_mut().zip(query) {
                        *g += dscore * v;
                    }
                    for (g, v) in dk_rope[k * s.d_rope..][..s.d_rope].iter_mut().zip(&query[s.d_nope..]) {
                        *g += dscore * v;
                    }
                    for (g, v) in dq[row * d_qk..][..d_qk].iter_mut().zip(key(s, kv, k_rope, k, h)) {
                        *g += dscore * v;
                    }
                }
            }
        }
    }
    (dq, dkv, dk_rope)
}

/// Absorbed attention of one request: `(out [s_q, H, d_c], lse [s_q, H])`.
///
/// `latent` `[len, d_c]` and `k_rope` `[len, d_rope]` are the tokens of its sequence as the cache gives them back,
/// `q_latent` `[s_q, H, d_c]`, `q_rope` `[s_q, H, d_rope]`. Row `i` sees the first `len - s_q + i + 1` tokens.
pub fn decode(
    heads: usize,
    d_c: usize,
    d_rope: usize,
    scale: f64,
    latent: &[f64],
    k_rope: &[f64],
    q_latent: &[f64],
    q_rope: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let len = latent.len() / d_c;
    let s_q = q_latent.len() / (heads * d_c);
    let mut out = vec![0.0; q_latent.len()];
    let mut lse = Vec::with_capacity(s_q * heads);
    for row in 0..s_q * heads {
        let visible = (len + row / heads + 1).saturating_sub(s_q);
        let scores: Vec<f64> = (0..visible)
            .map(|k| {
                scale
                    * (dot(&q_latent[row * d_c..][..d_c], &latent[k * d_c..][..d_c])
                        + dot(&q_rope[row * d_rope..][..d_rope], &k_rope[k * d_rope..][..d_rope]))
            })
            .collect();
        let (weights, row_lse) = softmax(&scores);
        lse.push(row_lse);
        for (k, w) in weights.iter().enumerate() {
            for (o, v) in out[row * d_c..][..d_c].iter_mut().zip(&latent[k * d_c..][..d_c]) {
                *o += w * v;
            }
        }
    }
    (out, lse)
}

/// `q_latent [rows, H, d_c]` of `q_nope [rows, H, d_nope]`: per head, the row vector times its key up-projection.
///
/// `kv_b_proj` is `[H * (d_nope + d_v), d_c]`: per head the `d_nope` rows that make keys, then the `d_v` that make values.
pub fn absorb_query(kv_b_proj: &[f64], heads: usize, d_nope: usize, d_v: usize, d_c: usize, q_nope: &[f64]) -> Vec<f64> {
    let rows = q_nope.len() / (heads * d_nope);
    let mut out = vec![0.0; rows * heads * d_c];
    for r in 0..rows * heads {
        let h = r % heads;
        for n in 0..d_nope {
            let weight = &kv_b_proj[(h * (d_nope + d_v) + n) * d_c..][..d_c];
            for (o, w) in out[r * d_c..][..d_c].iter_mut().zip(weight) {
                *o += q_nope[r * d_nope + n] * w;
            }
        }
    }
    out
}

/// `[rows, H, d_v]` of `out_latent [rows, H, d_c]`: per head, its value up-projection times the vector.
pub fn expand_output(kv_b_proj: &[f64], heads: usize, d_nope: usize, d_v: usize, d_c: usize, out_latent: &[f64]) -> Vec<f64> {
    let rows = out_latent.len() / (heads * d_c);
    let mut out = Vec::with_capacity(rows * heads * d_v);
    for r in 0..rows * heads {
        let h = r % heads;
        for v in 0..d_v {
            let weight = &kv_b_proj[(h * (d_nope + d_v) + d_nope + v) * d_c..][..d_c];
            out.push(dot(&out_latent[r * d_c..][..d_c], weight));
        }
    }
    out
}

/// Rotates one head in place. `frequencies` must be valid for `config` (see [`RopeConfig::frequencies`]).
pub fn rotate(config: &RopeConfig, frequencies: &[f64], magnitude: f64, x: &mut [f64], position: u32, inverse: bool) {
    for (i, f) in frequencies.iter().enumerate() {
        let (a, b) = if config.interleaved { (2 * i, 2 * i + 1) } else { (i, i + config.dim / 2) };
        let (sin, cos) = (f * f64::from(position)).sin_cos();
        let sin = if inverse { -sin } else { sin };
        (x[a], x[b]) = (magnitude * (x[a] * cos - x[b] * sin), magnitude * (x[b] * cos + x[a] * sin));
    }
}
