//! Gradients of [`super::forward`], for a group of heads over one sequence.
//!
//! Scores are computed again, block by block, from `q`, `k` and the log-sum-exp. With queries in the lanes as in the forward,
//! `dq` is accumulated as `[d_qk, LANES]`; for `dk` and `dv` the roles change: head dimensions lie in the lanes, and the scores
//! just computed, `[keys, LANES]`, are what is broadcast, so nothing is transposed but the blocks of `q` and `dout`.

use super::attend::{Block, PAD, copy_rows, from_lanes, gather_head, seen_range, tile, tile_limited, to_lanes, zero_edges};
use super::simd::Simd;
use super::{LANES, Scratch, Shared, scratch_values};

/// Keys of a block before the diagonal one.
const BLOCK: usize = 64;

/// The work of some heads over one sequence, one head after the other.
///
/// The order of additions: `dq` of a row adds, per head, one chain over the keys of each block, blocks ascending; `dk` and `dv` of
/// a row add one chain over the queries of each query block, ascending; the rotated part of `dk` adds the heads, ascending.
///
/// # Safety contract
/// Pointers are those of the first token of the sequence and, where there are heads, of the first head, valid for `tokens`
/// rows of the given strides; nothing else touches the rows of `dq` and `dkv` of these heads, or `dk_rope`, meanwhile.
pub(crate) struct BackwardHeads {
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) d_nope: usize,
    pub(crate) d_rope: usize,
    pub(crate) d_v: usize,
    pub(crate) scale: f32,
    pub(crate) q: *const f32,
    pub(crate) q_stride: usize,
    pub(crate) kv: *const f32,
    pub(crate) kv_stride: usize,
    pub(crate) k_rope: *const f32,
    pub(crate) out: *const f32,
    pub(crate) dout: *const f32,
    pub(crate) out_stride: usize,
    pub(crate) lse: *const f32,
    pub(crate) lse_stride: usize,
    /// Strides as `q`.
    pub(crate) dq: Shared,
    /// Strides as `kv`.
    pub(crate) dkv: Shared,
    /// `[tokens, d_rope]`: overwritten with the sum over these heads.
    pub(crate) dk_rope: Shared,
}

/// Pointers into the scratch of one head.
#[derive(Clone, Copy)]
struct Work {
    d_qk: usize,
    d_v: usize,
    ldk: usize,
    ldv: usize,
    /// `[tokens + PAD, ldk]` and `[tokens + PAD, ldv]`.
    k: *mut f32,
    v: *mut f32,
    dk: *mut f32,
    dv: *mut f32,
    /// A block of queries: `[d_qk, LANES]`, `[LANES, ldk]`; of output gradients: `[d_v, LANES]`, `[LANES, ldv]`.
    q_lanes: *mut f32,
    q_rows: *mut f32,
    do_lanes: *mut f32,
    do_rows: *mut f32,
    /// `[d_qk rounded up, LANES]`.
    dq: *mut f32,
    /// Probabilities and gradients of scores, `[BLOCK + PAD, LANES]`.
    p: *mut f32,
    ds: *mut f32,
    /// `[LANES]` each: -lse * log2(e); sum of `dout * out`.
    minus_lse: *mut f32,
    delta: *mut f32,
    limit: *mut f32,
    ones: *mut f32,
    scale: f32,
    scale_log2: f32,
}

/// # Safety
/// The contract of [`BackwardHeads`]; the processor has `S`.
#[inline(always)]
pub(super) unsafe fn run<S: Simd, const W: usize>(task: &BackwardHeads) {
    let d_qk = task.d_nope + task.d_rope;
    let (ldk, ldv) = (d_qk.next_multiple_of(16), task.d_v.next_multiple_of(16));
    let rows = task.tokens + PAD;
    let tall = (BLOCK + PAD) * LANES;
    let parts = [
        [rows * ldk, rows * ldv, rows * ldk, rows * ldv],
        [d_qk * LANES, LANES * ldk, task.d_v * LANES, LANES * ldv],
        [ldk * LANES, tall, tall, LANES],
        [LANES, LANES, LANES, 0],
    ];
    let mut scratch = Scratch::new(scratch_values(parts.as_flattened()));
    let [[k, v, dk, dv], [q_lanes, q_rows, do_lanes, do_rows], [dq, p, ds, minus_lse], [delta, limit, ones, _]] =
        parts.map(|four| scratch.parts(four));
    let scale = task.scale;
    let scale_log2 = scale * std::f32::consts::LOG2_E;
    let d_v = task.d_v;
    let work = Work {
        d_qk,
        d_v,
        ldk,
        ldv,
        k,
        v,
        dk,
        dv,
        q_lanes,
        q_rows,
        do_lanes,
        do_rows,
        dq,
        p,
        ds,
        minus_lse,
        delta,
        limit,
        ones,
        scale,
        scale_log2,
    };
    // SAFETY: the caller's contract; `parts` are the sizes that `Work` states.
    unsafe {
        for lane in 0..LANES {
            *ones.add(lane) = 1.0;
        }
        for head in 0..task.heads {
            one_head::<S, W>(task, &work, head);
        }
    }
}

/// # Safety
/// As [`run`]; `w` as its fields say.
#[inline(always)]
unsafe fn one_head<S: Simd, const W: usize>(task: &BackwardHeads, w: &Work, head: usize) {
    let (tokens, d_nope, d_rope) = (task.tokens, task.d_nope, task.d_rope);
    // SAFETY: the caller's contract.
    unsafe {
        let kv = task.kv.add(head * (d_nope + w.d_v));
        let dims = (d_nope, d_rope, w.d_v);
        gather_head::<S>(kv, task.kv_stride, task.k_rope, tokens, dims, (w.k, w.ldk), (w.v, w.ldv));
        std::ptr::write_bytes(w.dk, 0, (tokens + PAD) * w.ldk);
        std::ptr::write_bytes(w.dv, 0, (tokens + PAD) * w.ldv);

        for first in (0..tokens).step_by(LANES) {
            let lanes = (tokens - first).min(LANES);
            let q = task.q.add(first * task.q_stride + head * w.d_qk);
            let out_at = first * task.out_stride + head * w.d_v;
            let (out, dout) = (task.out.add(out_at), task.dout.add(out_at));
            to_lanes::<S>(q, task.q_stride, lanes, w.d_qk, w.q_lanes);
            copy_rows::<S>(q, task.q_stride, lanes, w.d_qk, w.q_rows, w.ldk);
            zero_edges(w.q_rows, w.ldk, lanes, w.d_qk, 0);
            to_lanes::<S>(dout, task.out_stride, lanes, w.d_v, w.do_lanes);
            copy_rows::<S>(dout, task.out_stride, lanes, w.d_v, w.do_rows, w.ldv);
            zero_edges(w.do_rows, w.ldv, lanes, w.d_v, 0);
            for lane in 0..LANES {
                let row = lane.min(lanes - 1);
                let lse = *task.lse.add((first + row) * task.lse_stride + head);
                *w.minus_lse.add(lane) = -lse * std::f32::consts::LOG2_E;
                let at = row * task.out_stride;
                *w.delta.add(lane) = if lane < lanes { dot(out.add(at), dout.add(at), w.d_v) } else { 0.0 };
            }
            std::ptr::write_bytes(w.dq, 0, w.ldk * LANES);

            for start in (0..first).step_by(BLOCK) {
                let keys = (first - start).min(BLOCK);
                for lane in 0..LANES {
                    *w.limit.add(lane) = keys as f32;
                }
                key_block::<S, W>(w, start, keys, lanes, false);
            }
            for lane in 0..LANES {
                *w.limit.add(lane) = lane.min(lanes - 1) as f32 + 1.0;
            }
            key_block::<S, W>(w, first, lanes, lanes, true);

            let dq = task.dq.0.add(first * task.q_stride + head * w.d_qk);
            from_lanes::<S>(w.dq, w.ones, dq, task.q_stride, lanes, w.d_qk);
        }

        let dkv = task.dkv.0.add(head * (d_nope + w.d_v));
        copy_rows::<S>(w.dk, w.ldk, tokens, d_nope, dkv, task.kv_stride);
        copy_rows::<S>(w.dv, w.ldv, tokens, w.d_v, dkv.add(d_nope), task.kv_stride);
        for t in 0..tokens {
            let (dk, dk_rope) = (w.dk.add(t * w.ldk), task.dk_rope.0.add(t * d_rope));
            for i in 0..d_rope {
                let g = *dk.add(d_nope + i);
                *dk_rope.add(i) = if head == 0 { g } else { *dk_rope.add(i) + g };
            }
        }
    }
}

/// One block of keys against the current block of queries.
///
/// # Safety
/// As [`one_head`]; keys `start..start + keys` exist, up to [`BLOCK`].
#[inline(always)]
unsafe fn key_block<S: Simd, const W: usize>(w: &Work, start: usize, keys: usize, lanes: usize, diagonal: bool) {
    // SAFETY: the caller's contract.
    unsafe {
        let (k, v) = (w.k.add(start * w.ldk), w.v.add(start * w.ldv));
        let block = Block { k, ldk: w.ldk, v, ldv: w.ldv, limit: w.limit, keys };
        let mut lane = 0;
        while lane < lanes {
            if !diagonal && lane + S::LANES < lanes {
                score_gradients::<S, W, 2>(w, &block, lane);
                lane += 2 * S::LANES;
            } else {
                score_gradients::<S, 8, 1>(w, &block, lane);
                lane += S::LANES;
            }
        }
        outer::<S, W>(w.p, w.do_rows, w.ldv, w.d_v, w.dv.add(start * w.ldv), keys, lanes, diagonal);
        outer::<S, W>(w.ds, w.q_rows, w.ldk, w.d_qk, w.dk.add(start * w.ldk), keys, lanes, diagonal);
    }
}

/// Probabilities and score gradients of `N` vectors of queries, into `w.p` and `w.ds` for the keys that any of them sees;
/// then their `dq`.
///
/// # Safety
/// As [`key_block`].
#[inline(always)]
unsafe fn score_gradients<S: Simd, const R: usize, const N: usize>(w: &Work, block: &Block, lane: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let (all, any) = seen_range(block, lane, N * S::LANES);
        let zero = S::splat(0.0);
        let (scale, scale_log2) = (S::splat(w.scale), S::splat(w.scale_log2));
        let mut k = 0;
        while k < any {
            let mut p = tile::<S, R, N>(block.k.add(k * block.ldk), block.ldk, 1, w.q_lanes.add(lane), LANES, w.d_qk);
            for v in 0..N {
                let at = lane + v * S::LANES;
                let (minus_lse, limit) = (S::load(w.minus_lse.add(at)), S::load(w.limit.add(at)));
                for r in 0..R {
                    p[r][v] = S::exp2(S::fma(p[r][v], scale_log2, minus_lse));
                    if k + R > all {
                        p[r][v] = S::select(S::lt(S::splat((k + r) as f32), limit), p[r][v], zero);
                    }
                    S::store(w.p.add((k + r) * LANES + at), p[r][v]);
                }
            }
            let dp = tile::<S, R, N>(block.v.add(k * block.ldv), block.ldv, 1, w.do_lanes.add(lane), LANES, w.d_v);
            for v in 0..N {
                let at = lane + v * S::LANES;
                let (delta, limit) = (S::load(w.delta.add(at)), S::load(w.limit.add(at)));
                for r in 0..R {
                    let p = S::mul(S::load(w.p.add((k + r) * LANES + at)), scale);
                    let mut ds = S::mul(p, S::sub(dp[r][v], delta));
                    if k + R > all {
                        ds = S::select(S::lt(S::splat((k + r) as f32), limit), ds, zero);
                    }
                    S::store(w.ds.add((k + r) * LANES + at), ds);
                }
            }
            k += R;
        }
        let ds = w.ds.add(lane);
        let mut column = 0;
        while column < w.d_qk {
            let key = block.k.add(column);
            let mut acc = tile::<S, R, N>(key, 1, block.ldk, ds, LANES, all);
            tile_limited::<S, R, N>(&mut acc, key, block.ldk, ds, LANES, all, any, block.limit.add(lane));
            for r in 0..R {
                for v in 0..N {
                    let dq = w.dq.add((column + r) * LANES + lane + v * S::LANES);
                    S::store(dq, S::add(S::load(dq), acc[r][v]));
                }
            }
            column += R;
        }
    }
}

/// `grad[key, ..] += sum over queries of weight[key, query] * rows[query, ..]`, the finished chain added once.
///
/// On the diagonal, keys of a tile take the queries from the first of these keys on: earlier ones do not see them.
///
/// # Safety
/// `weight` is `[keys rounded up to 8, LANES]`, `rows` `[lanes, ld]`, `grad` `[keys rounded up to 8, ld]`; `ld` is a multiple of 16.
#[inline(always)]
unsafe fn outer<S: Simd, const W: usize>(
    weight: *const f32,
    rows: *const f32,
    ld: usize,
    width: usize,
    grad: *mut f32,
    keys: usize,
    lanes: usize,
    diagonal: bool,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut k = 0;
        while k < keys {
            let from = if diagonal { k / 8 * 8 } else { 0 };
            let weight = weight.add(k * LANES + from);
            let rows = rows.add(from * ld);
            let mut column = 0;
            while column < width {
                let vectors = (width - column).div_ceil(S::LANES);
                let at = grad.add(k * ld + column);
                match vectors {
                    1 => {
                        add_tile::<S, W, 1>(weight, rows.add(column), ld, at, lanes - from);
                        column += S::LANES;
                    }
                    3 => {
                        add_tile::<S, W, 3>(weight, rows.add(column), ld, at, lanes - from);
                        column += 3 * S::LANES;
                    }
                    _ => {
                        add_tile::<S, W, 2>(weight, rows.add(column), ld, at, lanes - from);
                        column += 2 * S::LANES;
                    }
                }
            }
            k += W;
        }
    }
}

/// # Safety
/// As [`outer`].
#[inline(always)]
unsafe fn add_tile<S: Simd, const R: usize, const N: usize>(
    weight: *const f32,
    rows: *const f32,
    ld: usize,
    grad: *mut f32,
    queries: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let acc = tile::<S, R, N>(weight, LANES, 1, rows, ld, queries);
        for r in 0..R {
            for v in 0..N {
                let g = grad.add(r * ld + v * S::LANES);
                S::store(g, S::add(S::load(g), acc[r][v]));
            }
        }
    }
}

/// Dot product in sixteen interleaved chains, added pairwise: the same order whatever the width of a vector.
///
/// # Safety
/// Both hold `n` values.
#[inline(always)]
unsafe fn dot(a: *const f32, b: *const f32, n: usize) -> f32 {
    // SAFETY: the caller's contract.
    let (a, b) = unsafe { (std::slice::from_raw_parts(a, n), std::slice::from_raw_parts(b, n)) };
    let mut acc = [0.0f32; 16];
    let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
    let (a_rest, b_rest) = (a16.remainder(), b16.remainder());
    for (x, y) in a16.zip(b16) {
        for l in 0..16 {
            acc[l] = x[l].mul_add(y[l], acc[l]);
        }
    }
    for (l, (x, y)) in a_rest.iter().zip(b_rest).enumerate() {
        acc[l] = x.mul_add(*y, acc[l]);
    }
    let mut n = 8;
    while n > 0 {
        for l in 0..n {
            acc[l] += acc[l + n];
        }
        n /= 2;
    }
    acc[0]
}
