//! Attention over packed sequences, forward and backward.

use crate::cpu::{BackwardHeads, ForwardHead, Kernels, Shared};
use crate::error::{Error, Result, check_len, product};
use v3_numerics::par;

/// Groups that the heads are cut into, at most, for the sum of the rotated key's gradient.
const ROPE_GROUPS: usize = 16;
/// Values of that sum that one unit of parallel work adds.
const ROPE_CHUNK: usize = 16 * 1024;

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
    if !(scale.is_finite() && scale > 0.0) {
        return Err(Error::Parameter { what: "softmax scale", expected: "finite and positive", got: scale.to_string() });
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
    let PrefillShape { heads, d_nope, d_rope, d_v } = *shape;
    let (out, lse) = (Shared(out.as_mut_ptr()), Shared(lse.as_mut_ptr()));
    let kernels = Kernels::detect();
    let sequences = cu_seqlens.len() - 1;
    par::for_each(sequences * heads, |i| {
        let (start, head) = (cu_seqlens[i / heads], i % heads);
        let tokens = cu_seqlens[i / heads + 1] - start;
        if tokens == 0 {
            return;
        }
        let row = start * heads + head;
        // SAFETY: the buffers have the sizes of their shapes, checked above, so that every pointer is within its buffer and the
        // rows of this sequence and head follow at these strides; each task has its own rows of `out` and `lse`; the
        // kernels are for an instruction set that the processor has.
        unsafe {
            (kernels.forward)(&ForwardHead {
                tokens,
                d_nope,
                d_rope,
                d_v,
                scale,
                q: q.as_ptr().add(row * shape.d_qk()),
                q_stride: heads * shape.d_qk(),
                kv: kv.as_ptr().add(row * shape.d_kv()),
                kv_stride: heads * shape.d_kv(),
                k_rope: k_rope.as_ptr().add(start * d_rope),
                out: out.add(row * d_v),
                out_stride: heads * d_v,
                lse: lse.add(row),
                lse_stride: heads,
            });
        }
    });
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
    let PrefillShape { heads, d_nope, d_rope, d_v } = *shape;
    dk_rope.fill(0.0);
    if heads == 0 {
        return Ok(());
    }
    // Heads come in at most `ROPE_GROUPS` groups, whatever the number of threads. A group adds its heads in order into its own
    // copy of `dk_rope`; the copies are added in order after.
    let group_heads = heads.div_ceil(ROPE_GROUPS);
    let groups = heads.div_ceil(group_heads);
    let mut partial = vec![0.0f32; product("dk_rope of head groups", &[groups, dk_rope.len()])?];
    let (dq, dkv, parts) = (Shared(dq.as_mut_ptr()), Shared(dkv.as_mut_ptr()), Shared(partial.as_mut_ptr()));
    let rope_len = dk_rope.len();
    let kernels = Kernels::detect();
    par::for_each((cu_seqlens.len() - 1) * groups, |i| {
        let (start, group) = (cu_seqlens[i / groups], i % groups);
        let tokens = cu_seqlens[i / groups + 1] - start;
        if tokens == 0 {
            return;
        }
        let first_head = group * group_heads;
        let row = start * heads + first_head;
        // SAFETY: as in the forward; each task has its own rows of `dq` and `dkv`, and its own part of `partial`.
        unsafe {
            (kernels.backward)(&BackwardHeads {
                tokens,
                heads: group_heads.min(heads - first_head),
                d_nope,
                d_rope,
                d_v,
                scale,
                q: q.as_ptr().add(row * shape.d_qk()),
                q_stride: heads * shape.d_qk(),
                kv: kv.as_ptr().add(row * shape.d_kv()),
                kv_stride: heads * shape.d_kv(),
                k_rope: k_rope.as_ptr().add(start * d_rope),
                out: out.as_ptr().add(row * d_v),
                dout: dout.as_ptr().add(row * d_v),
                out_stride: heads * d_v,
                lse: lse.as_ptr().add(row),
                lse_stride: heads,
                dq: dq.add(row * shape.d_qk()),
                dkv: dkv.add(row * shape.d_kv()),
                dk_rope: parts.add(group * rope_len + start * d_rope),
            });
        }
    });
    par::for_each_chunk_mut(dk_rope, ROPE_CHUNK, |chunk, sums| {
        for part in partial.chunks_exact(rope_len) {
            sums.iter_mut().zip(&part[chunk * ROPE_CHUNK..]).for_each(|(s, g)| *s += g);
        }
    });
    Ok(())
}
