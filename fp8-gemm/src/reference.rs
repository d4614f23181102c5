//! The same operations, written to be obvious: one loop for each index, no SIMD, no unsafe.
//!
//! Quantisers here define the bits of the fast ones. Products come twice: [`matmul`] sums in f64 and is what a result should
//! be near; [`matmul_chain`] and [`matmul_promoted`] carry out the stated f32 order of summation and are what a result must equal.

use crate::scaled::{BLOCK, Block, ScalePolicy};
use v3_numerics::E4M3;

/// The largest magnitude of a block: NaN does not count, and an infinity counts as the largest finite f32.
pub fn amax(values: impl IntoIterator<Item = f32>) -> f32 {
    values.into_iter().filter(|x| !x.is_nan()).map(|x| x.abs().min(f32::MAX)).fold(0.0, f32::max)
}

/// Codes and scales of `x` `[rows, cols]` for any kind of block, both row-major.
pub fn quantize(x: &[f32], rows: usize, cols: usize, block: Block, policy: ScalePolicy) -> (Vec<E4M3>, Vec<f32>) {
    let (scale_rows, scale_cols) = block.scale_shape(rows, cols);
    let mut codes = vec![E4M3(0); rows * cols];
    let mut scales = vec![0.0; scale_rows * scale_cols];
    for si in 0..scale_rows {
        for sj in 0..scale_cols {
            let mut members = Vec::new();
            for i in 0..rows {
                for j in 0..cols {
                    if block.scale_index(i, j) == (si, sj) {
                        members.push(i * cols + j);
                    }
                }
            }
            let scale = policy.scale(amax(members.iter().map(|&at| x[at])));
            scales[si * scale_cols + sj] = scale.scale;
            for at in members {
                codes[at] = E4M3::from_f32(x[at] * scale.reciprocal);
            }
        }
    }
    (codes, scales)
}

/// The values of codes and scales, in f64: exact.
pub fn dequantize(codes: &[E4M3], scales: &[f32], rows: usize, cols: usize, block: Block) -> Vec<f64> {
    let scale_cols = block.scale_shape(rows, cols).1;
    let mut x = Vec::with_capacity(rows * cols);
    for i in 0..rows {
        for j in 0..cols {
            let (si, sj) = block.scale_index(i, j);
            x.push(f64::from(codes[i * cols + j].to_f32()) * f64::from(scales[si * scale_cols + sj]));
        }
    }
    x
}

/// `silu(gate) * up` of rows `[gate | up]`, `gate_up` `[tokens, 2 * inter]`, in f64.
pub fn swiglu(gate_up: &[f32], tokens: usize, inter: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(tokens * inter);
    for t in 0..tokens {
        for j in 0..inter {
            let gate = f64::from(gate_up[t * 2 * inter + j]);
            let up = f64::from(gate_up[t * 2 * inter + inter + j]);
            out.push(gate / (1.0 + (-gate).exp()) * up);
        }
    }
    out
}

/// `a b` for `a` `[m, k]`, `b` `[k, n]`, row-major, in f64.
pub fn matmul(a: &[f64], b: &[f64], m: usize, n: usize, k: usize) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            for p in 0..k {
                c[i * n + j] += a[i * k + p] * b[p * n + j];
            }
        }
    }
    c
}

/// `a b` as the f32 and bf16 products sum: one chain of fused multiply-adds along k from +0.
pub fn matmul_chain(a: &[f32], b: &[f32], m: usize, n: usize, k: usize) -> Vec<f32> {
    let mut c = vec![0.0f32; m * n];
    for i in 0..m {
        for j in 0..n {
            for p in 0..k {
                c[i * n + j] = a[i * k + p].mul_add(b[p * n + j], c[i * n + j]);
            }
        }
    }
    c
}

/// A block-scaled operand of [`matmul_promoted`]: codes, scales, and which elements share one.
#[derive(Debug, Clone, Copy)]
pub struct Scaled<'a> {
    /// Codes, row-major.
    pub codes: &'a [E4M3],
    /// Scales, row-major.
    pub scales: &'a [f32],
    /// Which elements share a scale.
    pub block: Block,
}

/// `a b` as the FP8 products sum. For each 128 along k in turn: a chain of fused multiply-adds of the codes' values from +0, then
/// `total = fma(chain, scale_a * scale_b, total)` with the product of the scales rounded to f32; `total` begins at +0.
pub fn matmul_promoted(a: Scaled<'_>, b: Scaled<'_>, m: usize, n: usize, k: usize) -> Vec<f32> {
    let a_scale_cols = a.block.scale_shape(m, k).1;
    let b_scale_cols = b.block.scale_shape(k, n).1;
    let mut c = vec![0.0f32; m * n];
    for i in 0..m {
        for j in 0..n {
            for first in (0..k).step_by(BLOCK) {
                let mut chain = 0.0f32;
                for p in first..(first + BLOCK).min(k) {
                    chain = a.codes[i * k + p].to_f32().mul_add(b.codes[p * n + j].to_f32(), chain);
                }
                let (ai, aj) = a.block.scale_index(i, first);
                let (bi, bj) = b.block.scale_index(first, j);
                let scale = a.scales[ai * a_scale_cols + aj] * b.scales[bi * b_scale_cols + bj];
                c[i * n + j] = chain.mul_add(scale, c[i * n + j]);
            }
        }
    }
    c
}

/// The 12-bit code and the scale of one 1x128 block in E5M6: `scale = 2^ceil(log2(amax / 65024))`, 1 when the block is zero.
pub fn e5m6_block(x: &[f32]) -> (Vec<u16>, f32) {
    let amax = amax(x.iter().copied());
    let mut scale = 1.0f32;
    if amax > 0.0 {
        while f64::from(amax) > 65024.0 * f64::from(scale) {
            scale *= 2.0;
        }
        while f64::from(amax) <= 65024.0 * f64::from(scale) / 2.0 && scale > f32::MIN_POSITIVE {
            scale /= 2.0;
        }
    }
    (x.iter().map(|x| v3_numerics::e5m6::encode(x.clamp(-f32::MAX, f32::MAX) / scale)).collect(), scale)
}
