//! Linear layers: which parameters one GEMM reads, packed for the chosen precision.

use std::ops::Range;

use fp8_gemm::Precision;
use fp8_gemm::linear::{self, Activation, Weight};
use v3_numerics::view::{MatMut, MatRef};

use super::Env;
use crate::error::Result;
use crate::params::ParamStore;

/// How the weights of a layer are packed: for training (forward and both backward GEMMs) or for inference only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Fprop and dgrad.
    Training,
    /// Fprop only.
    Inference,
}

/// Weight matrices `[n_i, k]` that read the same input, side by side in the columns of the output, for one or more groups
/// (experts). Matrices are fused into one GEMM where that changes no result: always in f32 and bf16, in FP8 when the 128-row
/// blocks of the scales do not cross from one matrix into the next.
#[derive(Debug)]
pub struct Linear {
    parts: Vec<Part>,
    groups: usize,
    /// Output features of all matrices together.
    pub n: usize,
    /// Input features.
    pub k: usize,
    precision: Precision,
}

#[derive(Debug)]
struct Part {
    /// Columns of the output.
    columns: Range<usize>,
    /// Values of all groups, `[groups, columns.len(), k]`, in the parameter buffers.
    range: Range<usize>,
    weights: Vec<Weight>,
}

/// Whether matrices of `n` rows each are fused into one.
pub fn fuses(precision: Precision, n: &[usize]) -> bool {
    precision != Precision::Fp8 || n[..n.len() - 1].iter().all(|n| n % 128 == 0)
}

impl Linear {
    /// One group: the matrices `names`, in the order of the output's columns. They need not be neighbours in memory; they
    /// are fused when they are and may be.
    pub fn new(store: &ParamStore, names: &[String], precision: Precision, packing: Packing) -> Result<Self> {
        let k = store.param(&names[0])?.shape[1];
        let sizes = names.iter().map(|name| Ok(store.param(name)?.shape[0])).collect::<Result<Vec<_>>>()?;
        let n = sizes.iter().sum();
        let mut parts = Vec::new();
        if fuses(precision, &sizes) && store.contiguous(names).is_ok() {
            parts.push(Part { columns: 0..n, range: store.contiguous(names)?, weights: Vec::new() });
        } else {
            let mut column = 0;
            for (name, size) in names.iter().zip(&sizes) {
                let range = store.param(name)?.range();
                parts.push(Part { columns: column..column + size, range, weights: Vec::new() });
                column += size;
            }
        }
        let mut linear = Self { parts, groups: 1, n, k, precision };
        linear.pack(store, packing)?;
        Ok(linear)
    }

    /// Grouped by expert: `matrices[i]` names the i-th matrix of every expert. Their memory order must be the one of
    /// [`expert_order`].
    pub fn grouped(store: &ParamStore, matrices: &[Vec<String>], precision: Precision, packing: Packing) -> Result<Self> {
        let groups = matrices[0].len();
        let k = store.param(&matrices[0][0])?.shape[1];
        let sizes = matrices.iter().map(|m| Ok(store.param(&m[0])?.shape[0])).collect::<Result<Vec<_>>>()?;
        let n = sizes.iter().sum();
        let mut parts = Vec::new();
        let mut rest = expert_order(matrices, fuses(precision, &sizes)).into_iter();
        if fuses(precision, &sizes) {
            let names: Vec<String> = rest.collect();
            parts.push(Part { columns: 0..n, range: store.contiguous(&names)?, weights: Vec::new() });
        } else {
            let mut column = 0;
            for size in sizes {
                let names: Vec<String> = rest.by_ref().take(groups).collect();
                parts.push(Part { columns: column..column + size, range: store.contiguous(&names)?, weights: Vec::new() });
                column += size;
            }
        }
        let mut linear = Self { parts, groups, n, k, precision };
        linear.pack(store, packing)?;
        Ok(linear)
    }

    /// Packs the current values; after every change of the weights.
    pub fn pack(&mut self, store: &ParamStore, packing: Packing) -> Result<()> {
        for part in &mut self.parts {
            let n = part.columns.len();
            part.weights = store
                .at(&part.range)
                .chunks_exact(n * self.k)
                .map(|w| match packing {
                    Packing::Training => Weight::pack(w, n, self.k, self.precision),
                    Packing::Inference => Weight::pack_inference(w, n, self.k, self.precision),
                })
                .collect::<fp8_gemm::Result<_>>()?;
        }
        Ok(())
    }

    /// Bytes of packed weights.
    pub fn bytes(&self) -> usize {
        self.parts.iter().flat_map(|p| &p.weights).map(Weight::bytes).sum()
    }

    /// `y[m, n] = x[m, k] * w^T`, one group.
    pub fn forward(&self, x: &Activation) -> Result<Vec<f32>> {
        self.forward_grouped(x, &[0, x.rows()])
    }

    /// The same for rows sorted by group: group `g` has rows `offsets[g]..offsets[g + 1]`.
    pub fn forward_grouped(&self, x: &Activation, offsets: &[usize]) -> Result<Vec<f32>> {
        let m = x.rows();
        let mut y = vec![0.0; m * self.n];
        for part in &self.parts {
            let view = columns_mut(&mut y, m, self.n, &part.columns)?;
            match &part.weights[..] {
                [w] => linear::fprop(x, w, view)?,
                ws => linear::fprop_grouped(x, offsets, ws, view)?,
            }
        }
        Ok(y)
    }

    /// `dx[m, k] = dy[m, n] * w`, added to `dx` when `accumulate`.
    pub fn backward_input(&self, dy: &[f32], dx: MatMut<'_, f32>, accumulate: bool) -> Result<()> {
        let m = dx.rows();
        self.backward_input_grouped(dy, &[0, m], dx, accumulate)
    }

    /// The same for rows sorted by group.
    pub fn backward_input_grouped(&self, dy: &[f32], offsets: &[usize], mut dx: MatMut<'_, f32>, accumulate: bool) -> Result<()> {
        let m = dx.rows();
        for (i, part) in self.parts.iter().enumerate() {
            let view = columns(dy, m, self.n, &part.columns)?;
            let accumulate = accumulate || i > 0;
            match &part.weights[..] {
                [w] => linear::dgrad(view, w, dx.reborrow(), accumulate)?,
                ws => linear::dgrad_grouped(view, offsets, ws, dx.reborrow(), accumulate)?,
            }
        }
        Ok(())
    }

    /// `dw[n, k] += dy[m, n]^T * x[m, k]` into the gradient buffer.
    pub fn backward_weight(&self, env: &Env<'_>, x: &Activation, dy: &[f32], grads: &mut [f32]) -> Result<()> {
        self.backward_weight_grouped(env, x, &[0, x.rows()], dy, grads)
    }

    /// The same for rows sorted by group.
    pub fn backward_weight_grouped(
        &self,
        env: &Env<'_>,
        x: &Activation,
        offsets: &[usize],
        dy: &[f32],
        grads: &mut [f32],
    ) -> Result<()> {
        let m = x.rows();
        let absolute;
        let x = if env.magnitudes {
            absolute = Activation::from_vec(env.factor(&x.to_f32()).into_owned(), m, x.cols(), Precision::F32)?;
            &absolute
        } else {
            x
        };
        let dy = &env.factor(dy);
        for part in &self.parts {
            let view = columns(dy, m, self.n, &part.columns)?;
            let dw = &mut grads[part.range.clone()];
            if self.groups == 1 {
                linear::wgrad(x, view, dw, self.precision)?;
            } else {
                linear::wgrad_grouped(x, offsets, view, dw, self.precision)?;
            }
        }
        Ok(())
    }
}

/// The memory order that [`Linear::grouped`] needs: expert by expert when the matrices are fused, matrix by matrix otherwise.
pub fn expert_order(matrices: &[Vec<String>], fused: bool) -> Vec<String> {
    if fused {
        (0..matrices[0].len()).flat_map(|e| matrices.iter().map(move |m| m[e].clone())).collect()
    } else {
        matrices.iter().flatten().cloned().collect()
    }
}

/// Columns `columns` of a row-major `[m, n]` buffer.
pub fn columns<'a>(data: &'a [f32], m: usize, n: usize, columns: &Range<usize>) -> Result<MatRef<'a, f32>> {
    let start = if m == 0 { 0 } else { columns.start };
    let end = if m == 0 { 0 } else { (m - 1) * n + columns.end };
    Ok(MatRef::with_stride(&data[start..end], m, columns.len(), n)?)
}

/// Columns `columns` of a row-major `[m, n]` buffer, to write.
pub fn columns_mut<'a>(data: &'a mut [f32], m: usize, n: usize, columns: &Range<usize>) -> Result<MatMut<'a, f32>> {
    let start = if m == 0 { 0 } else { columns.start };
    let end = if m == 0 { 0 } else { (m - 1) * n + columns.end };
    Ok(MatMut::with_stride(&mut data[start..end], m, columns.len(), n)?)
}
