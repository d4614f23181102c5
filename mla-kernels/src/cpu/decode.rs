//! Absorbed attention of up to 32 queries over one split of one sequence, and the merge of splits.

use super::attend::{Block, PAD, Queries, attend_all, from_lanes, reset, to_lanes};
use super::simd::Simd;
use super::{LANES, Scratch, Shared, scratch_values};
use crate::cache::{LatentCache, widen};

/// Tokens that are widened at a time; blocks begin at multiples of it from the start of a split.
const BLOCK: usize = 64;

/// Some consecutive queries (token-major, head-minor) of one request against tokens `start..end` of its sequence.
///
/// # Safety contract
/// The page table has the tokens; `q_latent`, `q_rope`, `out`, `max` and `sum` are valid for `lanes` rows, and nothing else
/// touches the last three meanwhile.
pub(crate) struct DecodeSplit<'a> {
    pub(crate) cache: &'a LatentCache,
    pub(crate) pages: &'a [u32],
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Softmax scale, positive.
    pub(crate) scale: f32,
    /// Queries, at most [`LANES`], at least 1.
    pub(crate) lanes: usize,
    /// Tokens of the sequence that each query sees; ascending.
    pub(crate) visible: [usize; LANES],
    /// `[lanes, d_c]`, `[lanes, d_rope]`.
    pub(crate) q_latent: *const f32,
    pub(crate) q_rope: *const f32,
    /// `[lanes, d_c]`: sum of `2^(score - max) * latent`.
    pub(crate) out: Shared,
    /// `[lanes]`: largest score in log2 units, -inf when a query sees nothing here; sum of `2^(score - max)`.
    pub(crate) max: Shared,
    pub(crate) sum: Shared,
}

/// # Safety
/// The contract of [`DecodeSplit`]; the processor has `S`.
#[inline(always)]
pub(super) unsafe fn run<S: Simd, const W: usize>(task: &DecodeSplit<'_>) {
    let (d_c, d_rope) = (task.cache.config().d_c, task.cache.config().d_rope);
    let d_qk = d_c + d_rope;
    let ld = d_qk.next_multiple_of(16);
    let parts =
        [(BLOCK + PAD) * ld, d_qk * LANES, (BLOCK + PAD) * LANES, d_c.next_multiple_of(16) * LANES, LANES, LANES, LANES, LANES];
    let mut scratch = Scratch::new(scratch_values(&parts));
    let [rows, q, p, out, max, sum, limit, ones] = scratch.parts(parts);
    // SAFETY: the caller's contract; `parts` are the sizes that the blocks below state.
    unsafe {
        std::ptr::write_bytes(rows, 0, (BLOCK + PAD) * ld);
        to_lanes::<S>(task.q_latent, d_c, task.lanes, d_c, q);
        to_lanes::<S>(task.q_rope, d_rope, task.lanes, d_rope, q.add(d_c * LANES));
        let scale_log2 = task.scale * std::f32::consts::LOG2_E;
        let queries = Queries { q, d_qk, d_v: d_c, scale_log2, p, max, sum, out };
        reset(&queries);
        for start in (task.start..task.end).step_by(BLOCK) {
            let keys = (task.end - start).min(BLOCK);
            for i in 0..keys {
                let row = std::slice::from_raw_parts_mut(rows.add(i * ld), d_qk);
                widen(task.cache.config(), task.cache.row(task.pages, start + i), row);
            }
            for lane in 0..LANES {
                let visible = task.visible[lane.min(task.lanes - 1)];
                *limit.add(lane) = visible.saturating_sub(start).min(keys) as f32;
            }
            let block = Block { k: rows, ldk: ld, v: rows, ldv: ld, limit, keys };
            attend_all::<S, W>(&block, &queries, task.lanes, false);
        }
        for lane in 0..LANES {
            *ones.add(lane) = 1.0;
        }
        from_lanes::<S>(out, ones, task.out.0, d_c, task.lanes, d_c);
        std::ptr::copy_nonoverlapping(max, task.max.0, task.lanes);
        std::ptr::copy_nonoverlapping(sum, task.sum.0, task.lanes);
    }
}

/// Merges the splits of one query in order, exactly: `out [d_c]` and the natural log-sum-exp.
///
/// `max` and `sum` have one value per split that the query sees; `partial(i)` is the unnormalised output of split `i`.
/// A query that sees no split gives 0 and -inf.
pub(crate) fn merge_splits<'a>(max: &[f32], sum: &[f32], partial: impl Fn(usize) -> &'a [f32], out: &mut [f32]) -> f32 {
    let top = max.iter().copied().fold(f32::NEG_INFINITY, |a, b| if b > a || b.is_nan() { b } else { a });
    out.fill(0.0);
    if max.is_empty() || top == f32::NEG_INFINITY {
        return f32::NEG_INFINITY;
    }
    let mut total = 0.0;
    for (i, (m, s)) in max.iter().zip(sum).enumerate() {
        let weight = (m - top).exp2();
        total += weight * s;
        if i == 0 {
            out.iter_mut().zip(partial(i)).for_each(|(o, x)| *o = weight * x);
        } else {
            out.iter_mut().zip(partial(i)).for_each(|(o, x)| *o += weight * x);
        }
    }
    let inverse = 1.0 / total;
    out.iter_mut().for_each(|o| *o *= inverse);
    top * std::f32::consts::LN_2 + total.ln()
}
