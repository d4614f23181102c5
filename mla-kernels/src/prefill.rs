//! Attention over packed sequences, forward and backward.

use crate::error::{Error, Result, check_len};

/// The shape of one attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefillShape {
    /// Query heads.
    pub heads: usize,
    /// Width of the part of a key that each head has for itself.
    pub d_nope: usize,
    /// Width of the rotated part, one key for all heads.
    pub d_rope: usize,
    /// Width of a value.
    pub d_v: usize,
}

impl PrefillShape {
    /// Width of a query and of a whole key.
    pub fn d_qk(&self) -> usize {
        self.d_nope + self.d_rope
    }

    /// Width of what the key-value up-projection gives per head.
    pub fn d_kv(&self) -> usize {
        self.d_nope + self.d_v
    }
}

/// Checks what forward and backward share; the number of tokens.
fn check_inputs(shape: &PrefillShape, scale: f32, cu_seqlens: &[usize], q: &[f32], kv: &[f32], k_rope: &[f32]) -> Result<usize> {
    let tokens = match (cu_seqlens.first(), cu_seqlens.last()) {
        (Some(0), Some(&tokens)) if cu_seqlens.is_sorted() => tokens,
        _ => {
            return Err(Error::Shape {
                what: "cu_seqlens",
                expected: "ascending from 0".into(),
                got: format!("{:?}", &cu_seqlens[..cu_seqlens.len().min(16)]),
            });
        }
    };
    if !scale.is_finite() {
        return Err(Error::Parameter { what: "softmax scale", expected: "finite", got: scale.to_string() });
    }
    check_len("q", q.len(), &[tokens, shape.heads, shape.d_qk()])?;
    check_len("kv", kv.len(), &[tokens, shape.heads, shape.d_kv()])?;
    check_len("k_rope", k_rope.len(), &[tokens, shape.d_rope])?;
    Ok(tokens)
}

/// Causal attention within each sequence.
///
/// - `cu_seqlens`: sequence `i` is tokens `cu_seqlens[i]..cu_seqlens[i + 1]`; ascending from 0 to `T`, empty sequences allowed.
/// - `q` `[T, heads, d_nope + d_rope]`, rotated; `kv` `[T, heads, d_nope + d_v]`, per head `[k_nope | v]`, as the up-projection
///   gives it; `k_rope` `[T, d_rope]`, rotated, one for all heads.
/// - `out` `[T, heads, d_v]` and `lse` `[T, heads]`, the natural log-sum-exp of the scaled scores; both overwritten.
pub fn prefill_forward(
    shape: &PrefillShape,
    scale: f32,
    cu_seqlens: &[usize],
    q: &[f32],
    kv: &[f32],
    k_rope: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
) -> Result<()> {
    let tokens = check_inputs(shape, scale, cu_seqlens, q, kv, k_rope)?;
    check_len("out", out.len(), &[tokens, shape.heads, shape.d_v])?;
    check_len("lse", lse.len(), &[tokens, shape.heads])?;
    let w = crate::reference::widen;
    let (o, l) = crate::reference::prefill_forward(shape, scale.into(), cu_seqlens, &w(q), &w(kv), &w(k_rope));
    out.iter_mut().zip(o).for_each(|(a, b)| *a = b as f32);
    lse.iter_mut().zip(l).for_each(|(a, b)| *a = b as f32);
    Ok(())
}

/// Gradients of [`prefill_forward`]: `dq`, `dkv`, `dk_rope` of the shapes of `q`, `kv`, `k_rope`; overwritten.
///
/// `out` and `lse` are what the forward gave for the same inputs, `dout` is the gradient of `out`. `dk_rope` sums the heads in
/// a fixed order.
pub fn prefill_backward(
    shape: &PrefillShape,
    scale: f32,
    cu_seqlens: &[usize],
    q: &[f32],
    kv: &[f32],
    k_rope: &[f32],
    out: &[f32],
    lse: &[f32],
    dout: &[f32],
    dq: &mut [f32],
    dkv: &mut [f32],
    dk_rope: &mut [f32],
) -> Result<()> {
    let tokens = check_inputs(shape, scale, cu_seqlens, q, kv, k_rope)?;
    check_len("out", out.len(), &[tokens, shape.heads, shape.d_v])?;
    check_len("lse", lse.len(), &[tokens, shape.heads])?;
    check_len("dout", dout.len(), &[tokens, shape.heads, shape.d_v])?;
    check_len("dq", dq.len(), &[q.len()])?;
    check_len("dkv", dkv.len(), &[kv.len()])?;
    check_len("dk_rope", dk_rope.len(), &[k_rope.len()])?;
    let w = crate::reference::widen;
    let (a, b, c) = crate::reference::prefill_backward(shape, scale.into(), cu_seqlens, &w(q), &w(kv), &w(k_rope), &w(dout));
    dq.iter_mut().zip(a).for_each(|(x, y)| *x = y as f32);
    dkv.iter_mut().zip(b).for_each(|(x, y)| *x = y as f32);
    dk_rope.iter_mut().zip(c).for_each(|(x, y)| *x = y as f32);
    Ok(())
}
