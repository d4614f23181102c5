//! What forward and decode share: one block of keys, up to [`LANES`] queries.

use super::LANES;
use super::simd::Simd;

/// Rows that a tile may read or write beyond the keys of a block.
pub(super) const PAD: usize = 8;

/// A tile of matrix product with broadcasts: `acc[r][v] = sum over k of a[r * ar + k * ak] * b[k * ldb + v * lanes ..]`, a chain
/// of fused multiply-adds from +0, `k` ascending.
///
/// # Safety
/// The processor has `S`; the elements named above are readable.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, const R: usize, const N: usize>(
    a: *const f32,
    ar: usize,
    ak: usize,
    b: *const f32,
    ldb: usize,
    n: usize,
) -> [[S::V; N]; R] {
    // SAFETY: the caller's contract.
    unsafe {
        let mut acc = [[S::splat(0.0); N]; R];
        let (mut a, mut b) = (a, b);
        for _ in 0..n {
            let mut bv = [S::splat(0.0); N];
            for v in 0..N {
                bv[v] = S::load(b.add(v * S::LANES));
            }
            for r in 0..R {
                let av = S::splat(*a.add(r * ar));
                for v in 0..N {
                    acc[r][v] = S::fma(av, bv[v], acc[r][v]);
                }
            }
            a = a.add(ak);
            b = b.add(ldb);
        }
        acc
    }
}

/// Continues the chains of [`tile`] (with `ar` = 1) over `k` in `from..to`, in each lane for `k < limit` alone.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
pub(super) unsafe fn tile_limited<S: Simd, const R: usize, const N: usize>(
    acc: &mut [[S::V; N]; R],
    a: *const f32,
    ak: usize,
    b: *const f32,
    ldb: usize,
    from: usize,
    to: usize,
    limit: *const f32,
) {
    // SAFETY: the caller's contract.
    unsafe {
        for k in from..to {
            let key = S::splat(k as f32);
            for v in 0..N {
                let seen = S::lt(key, S::load(limit.add(v * S::LANES)));
                let bv = S::load(b.add(k * ldb + v * S::LANES));
                for r in 0..R {
                    let av = S::splat(*a.add(k * ak + r));
                    acc[r][v] = S::fma_where(seen, av, bv, acc[r][v]);
                }
            }
        }
    }
}

/// Keys and values of a block, and how far each query sees into it.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// `[keys + PAD, d_qk]`, rows `ldk` apart; the padding rows are readable, their values do not matter.
    pub(super) k: *const f32,
    pub(super) ldk: usize,
    /// `[keys, d_v rounded up to PAD]`, rows `ldv` apart.
    pub(super) v: *const f32,
    pub(super) ldv: usize,
    /// `[LANES]`: query `lane` sees the first `limit` keys of the block (0 or less: none). Ascending along the lanes.
    pub(super) limit: *const f32,
    /// Number of keys; no limit matters beyond it.
    pub(super) keys: usize,
}

/// A block of queries and the running state of its softmax.
#[derive(Clone, Copy)]
pub(super) struct Queries {
    /// `[d_qk, LANES]`.
    pub(super) q: *const f32,
    pub(super) d_qk: usize,
    pub(super) d_v: usize,
    /// Softmax scale times log2(e), positive.
    pub(super) scale_log2: f32,
    /// Scores, then probabilities, `[keys + PAD, LANES]`.
    pub(super) p: *mut f32,
    /// `[LANES]`: largest score so far, times `scale_log2`; -inf before the first key.
    pub(super) max: *mut f32,
    /// `[LANES]`: sum of `2^(score - max)` so far.
    pub(super) sum: *mut f32,
    /// `[d_v rounded up to PAD, LANES]`: sum of `2^(score - max) * value` so far.
    pub(super) out: *mut f32,
}

/// The number of keys seen by all, and by any, of `n` lanes from `lane` on.
///
/// # Safety
/// `block.limit` is valid.
#[inline(always)]
pub(super) unsafe fn seen_range(block: &Block, lane: usize, n: usize) -> (usize, usize) {
    // SAFETY: the caller's contract. A negative float becomes 0.
    unsafe {
        let all = *block.limit.add(lane) as usize;
        let any = *block.limit.add(lane + n - 1) as usize;
        (all.min(block.keys), any.min(block.keys))
    }
}

/// Scores of the lanes from `lane` on against the keys that any of them sees; -inf where a lane does not see a key.
/// Returns the largest in each lane.
///
/// # Safety
/// As [`attend`].
#[inline(always)]
unsafe fn scores<S: Simd, const R: usize, const N: usize>(
    block: &Block,
    queries: &Queries,
    lane: usize,
    all: usize,
    any: usize,
) -> [S::V; N] {
    // SAFETY: the caller's contract.
    unsafe {
        let nothing = S::splat(f32::NEG_INFINITY);
        let mut max = [nothing; N];
        let mut k = 0;
        while k < any {
            let mut s = tile::<S, R, N>(block.k.add(k * block.ldk), block.ldk, 1, queries.q.add(lane), LANES, queries.d_qk);
            if k + R > all {
                for r in 0..R {
                    let key = S::splat((k + r) as f32);
                    for v in 0..N {
                        let seen = S::lt(key, S::load(block.limit.add(lane + v * S::LANES)));
                        s[r][v] = S::select(seen, s[r][v], nothing);
                    }
                }
            }
            for r in 0..R {
                for v in 0..N {
                    max[v] = S::max(max[v], s[r][v]);
                    S::store(queries.p.add((k + r) * LANES + lane + v * S::LANES), s[r][v]);
                }
            }
            k += R;
        }
        max
    }
}

/// Takes a block of keys into the running softmax of `N` vectors of queries, from `lane` on, with tiles of `R` keys.
///
/// # Safety
/// The processor has `S`; the pointers of `block` and `queries` are valid for the sizes stated there; `R <= PAD` and
/// `lane + N * S::LANES <= LANES`.
#[inline(always)]
pub(super) unsafe fn attend<S: Simd, const R: usize, const N: usize>(block: &Block, queries: &Queries, lane: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let (all, any) = seen_range(block, lane, N * S::LANES);
        if any == 0 {
            return;
        }
        let block_max = scores::<S, R, N>(block, queries, lane, all, any);
        let scale = S::splat(queries.scale_log2);
        let zero = S::splat(0.0);
        let mut minus_max = [zero; N];
        let mut alpha = [zero; N];
        for v in 0..N {
            let at = lane + v * S::LANES;
            let old = S::load(queries.max.add(at));
            let new = S::max(old, S::mul(block_max[v], scale));
            // A lane that has seen no key subtracts 0: 2^(-inf - 0) is 0, where 2^(-inf + inf) would be NaN.
            let finite = S::select(S::lt(S::splat(f32::NEG_INFINITY), new), new, zero);
            minus_max[v] = S::sub(zero, finite);
            alpha[v] = S::exp2(S::sub(old, finite));
            S::store(queries.max.add(at), new);
        }
        let mut sum = [zero; N];
        for k in 0..any {
            for v in 0..N {
                let p = queries.p.add(k * LANES + lane + v * S::LANES);
                let e = S::exp2(S::fma(S::load(p), scale, minus_max[v]));
                sum[v] = S::add(sum[v], e);
                S::store(p, e);
            }
        }
        for v in 0..N {
            let l = queries.sum.add(lane + v * S::LANES);
            S::store(l, S::fma(S::load(l), alpha[v], sum[v]));
        }
        let p = queries.p.add(lane);
        let mut column = 0;
        while column < queries.d_v {
            let value = block.v.add(column);
            let mut acc = tile::<S, R, N>(value, 1, block.ldv, p, LANES, all);
            tile_limited::<S, R, N>(&mut acc, value, block.ldv, p, LANES, all, any, block.limit.add(lane));
            for r in 0..R {
                for v in 0..N {
                    let o = queries.out.add((column + r) * LANES + lane + v * S::LANES);
                    let old = S::load(o);
                    let new = S::fma(old, alpha[v], acc[r][v]);
                    // A lane that sees nothing here keeps its bits, the sign of a zero included.
                    let sees = S::lt(zero, S::load(block.limit.add(lane + v * S::LANES)));
                    S::store(o, if all > 0 { new } else { S::select(sees, new, old) });
                }
            }
            column += R;
        }
    }
}

/// [`attend`] for the first `lanes` queries: two vectors at a time with tiles of `W` rows when the block is seen by all,
/// one vector at a time with tiles of eight rows, which leaves out the most of what is not seen, when it is not.
///
/// # Safety
/// As [`attend`].
#[inline(always)]
pub(super) unsafe fn attend_all<S: Simd, const W: usize>(block: &Block, queries: &Queries, lanes: usize, diagonal: bool) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut lane = 0;
        while lane < lanes {
            if !diagonal && lane + S::LANES < lanes {
                attend::<S, W, 2>(block, queries, lane);
                lane += 2 * S::LANES;
            } else {
                attend::<S, 8, 1>(block, queries, lane);
                lane += S::LANES;
            }
        }
    }
}

/// Resets the running softmax.
///
/// # Safety
/// `queries` is valid for the sizes stated there.
#[inline(always)]
pub(super) unsafe fn reset(queries: &Queries) {
    // SAFETY: the caller's contract.
    unsafe {
        for lane in 0..LANES {
            *queries.max.add(lane) = f32::NEG_INFINITY;
            *queries.sum.add(lane) = 0.0;
        }
        std::ptr::write_bytes(queries.out, 0, queries.d_v.next_multiple_of(PAD) * LANES);
    }
}

/// Transposes `rows` rows of `cols` values, `stride` apart, to `dst [cols, LANES]`; lanes from `rows` on become 0.
///
/// # Safety
/// The processor has `S`; both are valid; `rows <= LANES`.
#[inline(always)]
pub(super) unsafe fn to_lanes<S: Simd>(src: *const f32, stride: usize, rows: usize, cols: usize, dst: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut lane = 0;
        while lane < LANES {
            let mut col = 0;
            if lane + S::LANES <= rows {
                while col + 4 <= cols {
                    let v = S::load_columns(src.add(lane * stride + col), stride);
                    for c in 0..4 {
                        S::store(dst.add((col + c) * LANES + lane), v[c]);
                    }
                    col += 4;
                }
            }
            for c in col..cols {
                for l in lane..lane + S::LANES {
                    *dst.add(c * LANES + l) = if l < rows { *src.add(l * stride + c) } else { 0.0 };
                }
            }
            lane += S::LANES;
        }
    }
}

/// Transposes `src [cols, LANES]`, each lane times its `factor [LANES]`, to `rows` rows of `cols` values, `stride` apart.
///
/// # Safety
/// The processor has `S`; both are valid; `rows <= LANES`.
#[inline(always)]
pub(super) unsafe fn from_lanes<S: Simd>(
    src: *const f32,
    factor: *const f32,
    dst: *mut f32,
    stride: usize,
    rows: usize,
    cols: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut lane = 0;
        while lane < rows {
            let mut col = 0;
            if lane + S::LANES <= rows {
                let f = S::load(factor.add(lane));
                while col + 4 <= cols {
                    let mut v = [f; 4];
                    for c in 0..4 {
                        v[c] = S::mul(S::load(src.add((col + c) * LANES + lane)), f);
                    }
                    S::store_columns(dst.add(lane * stride + col), stride, v);
                    col += 4;
                }
            }
            for c in col..cols {
                for l in lane..(lane + S::LANES).min(rows) {
                    *dst.add(l * stride + c) = *src.add(c * LANES + l) * *factor.add(l);
                }
            }
            lane += S::LANES;
        }
    }
}

/// Copies `rows` rows of `cols` values into rows `dst_stride` apart.
///
/// # Safety
/// The processor has `S`; both are valid and do not overlap.
#[inline(always)]
pub(super) unsafe fn copy_rows<S: Simd>(
    src: *const f32,
    stride: usize,
    rows: usize,
    cols: usize,
    dst: *mut f32,
    dst_stride: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        for r in 0..rows {
            let (src, dst) = (src.add(r * stride), dst.add(r * dst_stride));
            let mut c = 0;
            while c + S::LANES <= cols {
                S::store(dst.add(c), S::load(src.add(c)));
                c += S::LANES;
            }
            while c < cols {
                *dst.add(c) = *src.add(c);
                c += 1;
            }
        }
    }
}

/// Zeroes columns `from..width` of `rows` rows of `width` values, and `more` rows after them.
///
/// # Safety
/// `dst` is valid for them.
#[inline(always)]
pub(super) unsafe fn zero_edges(dst: *mut f32, width: usize, rows: usize, from: usize, more: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        if from < width {
            for r in 0..rows {
                std::ptr::write_bytes(dst.add(r * width + from), 0, width - from);
            }
        }
        std::ptr::write_bytes(dst.add(rows * width), 0, more * width);
    }
}

/// Gathers one head's keys, `[k_nope | k_rope]`, and values into contiguous rows with `PAD` rows of zeros after them.
///
/// # Safety
/// The processor has `S`; `kv` and `k_rope` are valid for `tokens` rows, `k` and `v` for `tokens + PAD` rows of `ldk` and `ldv`.
#[inline(always)]
pub(super) unsafe fn gather_head<S: Simd>(
    kv: *const f32,
    kv_stride: usize,
    k_rope: *const f32,
    tokens: usize,
    (d_nope, d_rope, d_v): (usize, usize, usize),
    (k, ldk): (*mut f32, usize),
    (v, ldv): (*mut f32, usize),
) {
    // SAFETY: the caller's contract.
    unsafe {
        copy_rows::<S>(kv, kv_stride, tokens, d_nope, k, ldk);
        copy_rows::<S>(k_rope, d_rope, tokens, d_rope, k.add(d_nope), ldk);
        zero_edges(k, ldk, tokens, d_nope + d_rope, PAD);
        copy_rows::<S>(kv.add(d_nope), kv_stride, tokens, d_v, v, ldv);
        zero_edges(v, ldv, tokens, d_v, PAD);
    }
}

/// Natural log-sum-exp of each lane from its `max` (in log2 units) and `sum`, and `1 / sum`, 0 where there was no key.
///
/// # Safety
/// All are valid for [`LANES`] values.
#[inline(always)]
pub(super) unsafe fn finish(max: *const f32, sum: *const f32, lse: *mut f32, inverse: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe {
        for lane in 0..LANES {
            let (m, l) = (*max.add(lane), *sum.add(lane));
            let none = m == f32::NEG_INFINITY && l == 0.0;
            *inverse.add(lane) = if none { 0.0 } else { 1.0 / l };
            *lse.add(lane) = if none { f32::NEG_INFINITY } else { m.mul_add(std::f32::consts::LN_2, ln(l)) };
        }
    }
}

/// Natural logarithm of a normal positive number, off by at most 2e-7 of it plus 2e-8; other arguments come back as NaN. Without branches, so that a loop over it becomes vectors.
#[inline(always)]
fn ln(x: f32) -> f32 {
    // x = 2^e * m with m in [2/3, 4/3); ln m = 2 atanh(t), t = (m - 1) / (m + 1), |t| <= 0.2.
    let bits = x.to_bits();
    let e = (bits.wrapping_sub(0x3f2a_aaab) as i32) >> 23;
    let m = f32::from_bits(bits.wrapping_sub((e as u32) << 23));
    let t = (m - 1.0) / (m + 1.0);
    let t2 = t * t;
    let mut p = 0.222_222_22f32;
    p = p.mul_add(t2, 0.285_714_3);
    p = p.mul_add(t2, 0.4);
    p = p.mul_add(t2, 0.666_666_7);
    let ln_m = (p * t2).mul_add(t, 2.0 * t);
    let y = (e as f32).mul_add(std::f32::consts::LN_2, ln_m);
    if (f32::MIN_POSITIVE..f32::INFINITY).contains(&x) { y } else { f32::NAN }
}

#[cfg(test)]
mod tests {
    use super::ln;

    #[test]
    fn ln_is_accurate() {
        for i in 0..=200_000 {
            // From just below 1 to 2^24: sums of exponentials whose largest is 1.
            let x = (i as f32 * (24.0 / 200_000.0)).exp2() * 0.999;
            let expected = f64::from(x).ln();
            assert!((f64::from(ln(x)) - expected).abs() <= 2e-7 * expected.abs() + 2e-8, "{x}: {} {expected}", ln(x));
        }
        assert_eq!(ln(1.0), 0.0);
        assert!([0.0, f32::INFINITY, f32::NAN, -1.0].iter().all(|x| ln(*x).is_nan()));
    }
}
