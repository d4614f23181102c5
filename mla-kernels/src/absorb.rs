//! The absorbed projections: queries into latent space and attended latents out of it.
//!
//! `k_nope = W_UK c` and `v = W_UV c` are linear in the latent `c`, so `q . k_nope = (W_UK^T q) . c` and
//! `sum p v = W_UV sum p c`. Decoding therefore attends to latents alone; only the query and the result are projected.

use crate::error::{Error, Result, check_len, product};
use std::sync::OnceLock;
use v3_numerics::gemm::{PackedB, gemm_packed};
use v3_numerics::{MatMut, MatRef, par};

/// Both up-projections of one layer, packed per head.
///
/// Results follow the numerical policy of [`v3_numerics::gemm`]: chains of fused multiply-adds, ascending; a row's bits do not
/// depend on the other rows.
#[derive(Debug, Clone)]
pub struct Absorbed {
    heads: usize,
    d_nope: usize,
    d_v: usize,
    d_c: usize,
    /// Per head `[d_nope, d_c]`.
    key: Vec<PackedB>,
    /// Per head `[d_c, d_v]`.
    value: Vec<PackedB>,
}

impl Absorbed {
    /// Packs `kv_b_proj`, `[heads * (d_nope + d_v), d_c]` as published: per head the rows of keys, then those of values.
    pub fn new(kv_b_proj: &[f32], heads: usize, d_nope: usize, d_v: usize, d_c: usize) -> Result<Self> {
        let per_head = product("kv_b_proj", &[d_nope + d_v, d_c])?;
        check_len("kv_b_proj", kv_b_proj.len(), &[heads, d_nope + d_v, d_c])?;
        let (mut key, mut value) = (Vec::with_capacity(heads), Vec::with_capacity(heads));
        for h in 0..heads {
            let (k, v) = kv_b_proj[h * per_head..][..per_head].split_at(d_nope * d_c);
            key.push(PackedB::new(MatRef::new(k, d_nope, d_c)?));
            value.push(PackedB::new(MatRef::new(v, d_v, d_c)?.t()));
        }
        Ok(Self { heads, d_nope, d_v, d_c, key, value })
    }

    /// Bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        self.key.iter().chain(&self.value).map(PackedB::bytes).sum()
    }

    /// Projects queries into latent space: `q_latent [rows, heads, d_c]`, overwritten.
    ///
    /// The `d_nope` values of row `r`, head `h` start at `q[r * row_stride + h * head_stride]`, so that `q` can be the query
    /// projection `[rows, heads, d_nope + d_rope]` itself.
    pub fn absorb_query(
        &self,
        q: &[f32],
        rows: usize,
        row_stride: usize,
        head_stride: usize,
        q_latent: &mut [f32],
    ) -> Result<()> {
        check_len("q_latent", q_latent.len(), &[rows, self.heads, self.d_c])?;
        if rows == 0 || q_latent.is_empty() {
            return Ok(());
        }
        if self.heads > 1 && head_stride < self.d_nope {
            return Err(Error::Shape {
                what: "q head stride",
                expected: format!("at least {}", self.d_nope),
                got: head_stride.to_string(),
            });
        }
        let last = product("q", &[self.heads - 1, head_stride])?;
        if last > q.len() {
            return Err(Error::Shape { what: "q", expected: format!("at least {last} values"), got: q.len().to_string() });
        }
        let queries = (0..self.heads)
            .map(|h| MatRef::with_stride(&q[h * head_stride..], rows, self.d_nope, row_stride))
            .collect::<v3_numerics::Result<Vec<_>>>()?;
        project(&queries, &self.key, MatMut::new(q_latent, rows, self.heads * self.d_c)?, self.d_c)
    }

    /// Projects attended latents, `[rows, heads, d_c]`, to the heads' outputs: `out [rows, heads, d_v]`, overwritten.
    pub fn expand_output(&self, out_latent: &[f32], rows: usize, out: &mut [f32]) -> Result<()> {
        check_len("out_latent", out_latent.len(), &[rows, self.heads, self.d_c])?;
        check_len("out", out.len(), &[rows, self.heads, self.d_v])?;
        if rows == 0 || out.is_empty() {
            return Ok(());
        }
        let width = self.heads * self.d_c;
        let latents = (0..self.heads)
            .map(|h| MatRef::new(out_latent, rows, width)?.col_range(h * self.d_c..(h + 1) * self.d_c))
            .collect::<v3_numerics::Result<Vec<_>>>()?;
        project(&latents, &self.value, MatMut::new(out, rows, self.heads * self.d_v)?, self.d_v)
    }
}

/// `c[.., head] = a[head] * weights[head]` for every head, each `width` columns of `c`; heads in parallel.
fn project(a: &[MatRef<'_, f32>], weights: &[PackedB], c: MatMut<'_, f32>, width: usize) -> Result<()> {
    let failed = OnceLock::new();
    let rows = c.rows();
    par::for_each_tile(c, rows, width, |_, column, tile| {
        let head = column / width;
        if let Err(error) = gemm_packed(a[head], &weights[head], tile, false) {
            // Which of several errors is kept does not matter.
            let _ = failed.set(error);
        }
    });
    failed.into_inner().map_or(Ok(()), |error| Err(error.into()))
}
