//! Causal attention of one head over one sequence.

use super::attend::{Block, PAD, Queries, attend_all, finish, from_lanes, gather_head, reset, to_lanes};
use super::simd::Simd;
use super::{LANES, Scratch, Shared, scratch_values};

/// Keys of a block before the diagonal one: blocks begin at multiples of it from the start of the sequence.
pub(super) const BLOCK: usize = 128;

/// The work of one head over one sequence.
///
/// Query block `b` is tokens `32 b..32 b + 32` of the sequence. Its keys come as blocks of 128 from 0 on up to token `32 b`, the
/// last of these shorter, then as the diagonal block `32 b..32 b + 32`; so how a row is computed depends on its position alone.
///
/// # Safety contract
/// Pointers are those of the first token of the sequence and of this head, valid for `tokens` rows of the given strides; nothing
/// else touches the rows of `out` and `lse` of this head meanwhile.
pub(crate) struct ForwardHead {
    pub(crate) tokens: usize,
    pub(crate) d_nope: usize,
    pub(crate) d_rope: usize,
    pub(crate) d_v: usize,
    /// Softmax scale, positive.
    pub(crate) scale: f32,
    pub(crate) q: *const f32,
    pub(crate) q_stride: usize,
    pub(crate) kv: *const f32,
    pub(crate) kv_stride: usize,
    pub(crate) k_rope: *const f32,
    pub(crate) out: Shared,
    pub(crate) out_stride: usize,
    pub(crate) lse: Shared,
    pub(crate) lse_stride: usize,
}

/// # Safety
/// The contract of [`ForwardHead`]; the processor has `S`.
#[inline(always)]
pub(super) unsafe fn run<S: Simd, const W: usize>(task: &ForwardHead) {
    let d_qk = task.d_nope + task.d_rope;
    let (ldk, ldv) = (d_qk.next_multiple_of(16), task.d_v.next_multiple_of(16));
    let rows = task.tokens + PAD;
    let parts = [rows * ldk, rows * ldv, d_qk * LANES, (BLOCK + PAD) * LANES, ldv * LANES, LANES, LANES, LANES, LANES, LANES];
    let mut scratch = Scratch::new(scratch_values(&parts));
    let [k, v, q, p, out, max, sum, limit, lse, inverse] = scratch.parts(parts);
    // SAFETY: the caller's contract; `parts` are the sizes that the blocks below state.
    unsafe {
        let dims = (task.d_nope, task.d_rope, task.d_v);
        gather_head::<S>(task.kv, task.kv_stride, task.k_rope, task.tokens, dims, (k, ldk), (v, ldv));
        let scale_log2 = task.scale * std::f32::consts::LOG2_E;
        let queries = Queries { q, d_qk, d_v: task.d_v, scale_log2, p, max, sum, out };
        for first in (0..task.tokens).step_by(LANES) {
            let lanes = (task.tokens - first).min(LANES);
            to_lanes::<S>(task.q.add(first * task.q_stride), task.q_stride, lanes, d_qk, q);
            reset(&queries);
            for start in (0..first).step_by(BLOCK) {
                let keys = (first - start).min(BLOCK);
                for lane in 0..LANES {
                    *limit.add(lane) = keys as f32;
                }
                let block = Block { k: k.add(start * ldk), ldk, v: v.add(start * ldv), ldv, limit, keys };
                attend_all::<S, W>(&block, &queries, lanes, false);
            }
            for lane in 0..LANES {
                *limit.add(lane) = lane.min(lanes - 1) as f32 + 1.0;
            }
            let block = Block { k: k.add(first * ldk), ldk, v: v.add(first * ldv), ldv, limit, keys: lanes };
            attend_all::<S, W>(&block, &queries, lanes, true);

            finish(max, sum, lse, inverse);
            let dst = task.out.0.add(first * task.out_stride);
            from_lanes::<S>(out, inverse, dst, task.out_stride, lanes, task.d_v);
            for lane in 0..lanes {
                *task.lse.0.add((first + lane) * task.lse_stride) = *lse.add(lane);
            }
        }
    }
}
