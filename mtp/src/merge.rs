//! The entry of a module: `[RMSNorm(embedding) | RMSNorm(hidden)]`, and the projection that follows it.
//!
//! Published checkpoints concatenate the embedding first (`eh_proj`), although the report's formula (21) writes the hidden
//! state first. The hidden state is that of the previous depth; for depth 1 the main model's, after its final norm.

use crate::error::{Error, Result, area, check_len};
use v3_numerics::gemm::gemm;
use v3_numerics::ops;
use v3_numerics::view::{MatMut, MatRef};

/// The two norms of a module's entry, each `[hidden]`.
#[derive(Debug, Clone, Copy)]
pub struct MergeNorms<'a> {
    /// Weight of the norm of the embedding (`enorm`).
    pub enorm: &'a [f32],
    /// Weight of the norm of the hidden state (`hnorm`).
    pub hnorm: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
}

/// What the forward pass read and the reciprocal deviations it found: the operands of the backward passes.
#[derive(Debug, Clone, Copy)]
pub struct MergeSaved<'a> {
    /// Embeddings, `[tokens, hidden]`.
    pub emb: &'a [f32],
    /// Hidden states, `[tokens, hidden]`.
    pub h: &'a [f32],
    /// 1 / root mean square of each embedding, `[tokens]`.
    pub rstd_emb: &'a [f32],
    /// 1 / root mean square of each hidden state, `[tokens]`.
    pub rstd_h: &'a [f32],
}

impl MergeNorms<'_> {
    fn hidden(&self) -> Result<usize> {
        check_len("hnorm", self.hnorm.len(), self.enorm.len())?;
        if self.enorm.is_empty() {
            return Err(Error::Parameter { what: "hidden size", expected: "at least 1", got: "0".into() });
        }
        Ok(self.enorm.len())
    }
}

fn check_rows(hidden: usize, tokens: usize, emb: &[f32], h: &[f32], merged: usize) -> Result<()> {
    check_len("emb", emb.len(), area("emb", tokens, hidden)?)?;
    check_len("h", h.len(), emb.len())?;
    check_len("merged rows", merged, area("merged rows", tokens, 2 * hidden)?)
}

/// `merged` `[tokens, 2 hidden]` = `[RMSNorm(emb) | RMSNorm(h)]`; `rstd_emb` and `rstd_h` `[tokens]` are kept for backward.
///
/// # Errors
/// [`Error::Shape`]; [`Error::Parameter`] for an empty hidden size.
pub fn merge_forward(
    norms: &MergeNorms<'_>,
    emb: &[f32],
    h: &[f32],
    merged: &mut [f32],
    rstd_emb: &mut [f32],
    rstd_h: &mut [f32],
) -> Result<()> {
    let (hidden, tokens) = (norms.hidden()?, rstd_emb.len());
    check_len("rstd_h", rstd_h.len(), tokens)?;
    check_rows(hidden, tokens, emb, h, merged.len())?;
    let (left, right) = MatMut::new(merged, tokens, 2 * hidden)?.split_at_col(hidden)?;
    ops::rms_norm_strided(MatRef::new(emb, tokens, hidden)?, norms.enorm, norms.eps, left, rstd_emb)?;
    ops::rms_norm_strided(MatRef::new(h, tokens, hidden)?, norms.hnorm, norms.eps, right, rstd_h)?;
    Ok(())
}

/// Gradients for the embeddings and the hidden states, `demb` and `dh` `[tokens, hidden]`, overwritten.
///
/// # Errors
/// As [`merge_forward`].
pub fn merge_backward_input(
    norms: &MergeNorms<'_>,
    saved: &MergeSaved<'_>,
    dmerged: &[f32],
    demb: &mut [f32],
    dh: &mut [f32],
) -> Result<()> {
    let (hidden, tokens) = (norms.hidden()?, saved.rstd_emb.len());
    check_len("rstd_h", saved.rstd_h.len(), tokens)?;
    check_rows(hidden, tokens, saved.emb, saved.h, dmerged.len())?;
    check_len("demb", demb.len(), saved.emb.len())?;
    check_len("dh", dh.len(), saved.h.len())?;
    let dmerged = MatRef::new(dmerged, tokens, 2 * hidden)?;
    let (left, right) = (dmerged.col_range(0..hidden)?, dmerged.col_range(hidden..2 * hidden)?);
    let (emb, h) = (MatRef::new(saved.emb, tokens, hidden)?, MatRef::new(saved.h, tokens, hidden)?);
    let demb = MatMut::new(demb, tokens, hidden)?;
    ops::rms_norm_backward_input_strided(left, emb, norms.enorm, saved.rstd_emb, demb)?;
    let dh = MatMut::new(dh, tokens, hidden)?;
    ops::rms_norm_backward_input_strided(right, h, norms.hnorm, saved.rstd_h, dh)?;
    Ok(())
}

/// Gradients for the two norms, `denorm` and `dhnorm` `[hidden]`: finished sums, each added once.
///
/// # Errors
/// As [`merge_forward`].
pub fn merge_backward_weight(saved: &MergeSaved<'_>, dmerged: &[f32], denorm: &mut [f32], dhnorm: &mut [f32]) -> Result<()> {
    let (hidden, tokens) = (denorm.len(), saved.rstd_emb.len());
    check_len("dhnorm", dhnorm.len(), hidden)?;
    check_len("rstd_h", saved.rstd_h.len(), tokens)?;
    check_rows(hidden, tokens, saved.emb, saved.h, dmerged.len())?;
    let dmerged = MatRef::new(dmerged, tokens, 2 * hidden)?;
    let (left, right) = (dmerged.col_range(0..hidden)?, dmerged.col_range(hidden..2 * hidden)?);
    ops::rms_norm_backward_weight_strided(left, MatRef::new(saved.emb, tokens, hidden)?, saved.rstd_emb, denorm)?;
    ops::rms_norm_backward_weight_strided(right, MatRef::new(saved.h, tokens, hidden)?, saved.rstd_h, dhnorm)?;
    Ok(())
}

/// The projection of merged rows in f32, `out` `[tokens, hidden]` = `merged` `[tokens, 2 hidden]` times `eh_proj`
/// `[hidden, 2 hidden]` transposed. A model that trains in bf16 or FP8 uses its own linear layer instead.
///
/// # Errors
/// [`Error::Shape`]; [`Error::Parameter`] for an empty hidden size.
pub fn project(merged: &[f32], eh_proj: &[f32], hidden: usize, out: &mut [f32]) -> Result<()> {
    let tokens = check_projection(merged, eh_proj.len(), hidden, out)?;
    let w = MatRef::new(eh_proj, hidden, 2 * hidden)?.t();
    Ok(gemm(MatRef::new(merged, tokens, 2 * hidden)?, w, MatMut::new(out, tokens, hidden)?, false)?)
}

/// The gradient of [`project`] for the merged rows, overwritten.
///
/// # Errors
/// As [`project`].
pub fn project_backward_input(dout: &[f32], eh_proj: &[f32], hidden: usize, dmerged: &mut [f32]) -> Result<()> {
    let tokens = check_projection(dmerged, eh_proj.len(), hidden, dout)?;
    let w = MatRef::new(eh_proj, hidden, 2 * hidden)?;
    Ok(gemm(MatRef::new(dout, tokens, hidden)?, w, MatMut::new(dmerged, tokens, 2 * hidden)?, false)?)
}

/// The gradient of [`project`] for the weights: a finished sum, added once.
///
/// # Errors
/// As [`project`].
pub fn project_backward_weight(dout: &[f32], merged: &[f32], hidden: usize, deh_proj: &mut [f32]) -> Result<()> {
    let tokens = check_projection(merged, deh_proj.len(), hidden, dout)?;
    let dw = MatMut::new(deh_proj, hidden, 2 * hidden)?;
    Ok(gemm(MatRef::new(dout, tokens, hidden)?.t(), MatRef::new(merged, tokens, 2 * hidden)?, dw, true)?)
}

fn check_projection(merged: &[f32], weights: usize, hidden: usize, out: &[f32]) -> Result<usize> {
    if hidden == 0 {
        return Err(Error::Parameter { what: "hidden size", expected: "at least 1", got: "0".into() });
    }
    let tokens = out.len() / hidden;
    check_len("projected rows", out.len(), tokens * hidden)?;
    check_len("merged rows", merged.len(), 2 * tokens * hidden)?;
    check_len("eh_proj", weights, area("eh_proj", hidden, 2 * hidden)?)?;
    Ok(tokens)
}
