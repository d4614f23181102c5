//! Selection of experts with AVX-512: the answer of the router's portable loops, for the shapes that large models have.
//!
//! A register holds 16 scores as integers that order as the scores do. The best groups and the best experts are found without sorting all
//! of them: of k lanes' largest keys the smallest is at most the k-th largest key of all, so few keys remain; the place of each among those is
//! the number of keys that beat it.

use v3_numerics::cpu::Isa;

use crate::router::RouterConfig;

/// Experts at most.
const MOST: usize = 1024;
/// Of more candidates than this for a token, which only many equal scores bring about, the portable loops choose.
const CANDIDATES: usize = 32;
const LANES: usize = 16;

/// A configuration that this selection can do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selection {
    /// Registers of a token, and of a group.
    registers: usize,
    per_group: usize,
    groups: usize,
    keep: usize,
    /// Whether a group's score is the sum of its two best, not its best.
    two: bool,
    top_k: usize,
}

impl Selection {
    /// `None` when the configuration or the instruction set is not one of those that this module is for.
    pub fn new(cfg: &RouterConfig, isa: Isa) -> Option<Selection> {
        let size = cfg.group_size();
        let fits = cfg.num_experts <= MOST && size.is_multiple_of(LANES) && cfg.top_k <= LANES;
        let groups_fit = cfg.topk_group == cfg.n_group || (cfg.n_group <= LANES && cfg.scores_per_group() <= 2);
        (fits && groups_fit && available(isa)).then(|| Selection {
            registers: cfg.num_experts / LANES,
            per_group: size / LANES,
            groups: cfg.n_group,
            keep: cfg.topk_group,
            two: cfg.scores_per_group() == 2,
            top_k: cfg.top_k,
        })
    }

    /// The experts of each token of `scores` `[tokens, E]`, `bias` `[E]` added: `[tokens, k]`, the best first. `otherwise` is called for each token
    /// that is not done.
    #[cfg(target_arch = "x86_64")]
    pub fn rows(&self, scores: &[f32], bias: &[f32], indices: &mut [u32], mut otherwise: impl FnMut(usize)) {
        let experts = self.registers * LANES;
        assert_eq!(bias.len(), experts, "a bias for each expert");
        let mut keys = [[0i32; LANES]; MOST / LANES];
        for (row, (scores, indices)) in scores.chunks_exact(experts).zip(indices.chunks_exact_mut(self.top_k)).enumerate() {
            // SAFETY: `new` has found the instructions to be there.
            if !unsafe { x86::select(self, scores, bias, &mut keys, indices) } {
                otherwise(row);
            }
        }
    }

    /// Does none of them.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn rows(&self, scores: &[f32], _: &[f32], _: &mut [u32], otherwise: impl FnMut(usize)) {
        (0..scores.len() / (self.registers * LANES)).for_each(otherwise);
    }
}

#[cfg(target_arch = "x86_64")]
fn available(isa: Isa) -> bool {
    use std::sync::OnceLock;
    static COUNTS: OnceLock<bool> = OnceLock::new();
    isa.min(Isa::best_available()) >= Isa::Avx512
        && *COUNTS.get_or_init(|| is_x86_feature_detected!("popcnt") && is_x86_feature_detected!("bmi1"))
}

#[cfg(not(target_arch = "x86_64"))]
fn available(_: Isa) -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{CANDIDATES, LANES, MOST, Selection};
    use std::arch::x86_64::*;

    /// As `router::key`: an integer that orders as the number does.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn key(x: __m512) -> __m512i {
        let bits = _mm512_castps_si512(x);
        _mm512_xor_si512(bits, _mm512_or_si512(_mm512_srai_epi32::<31>(bits), _mm512_set1_epi32(i32::MIN)))
    }

    /// The number of a key.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn value(key: __m512i) -> __m512 {
        let negative = _mm512_srai_epi32::<31>(_mm512_xor_si512(key, _mm512_set1_epi32(-1)));
        _mm512_castsi512_ps(_mm512_xor_si512(key, _mm512_or_si512(negative, _mm512_set1_epi32(i32::MIN))))
    }

    /// Keys, the largest and the second largest of some sets, after adding those of as many other sets.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn merge((high, low): (__m512i, __m512i), (other_high, other_low): (__m512i, __m512i)) -> (__m512i, __m512i) {
        let loser = _mm512_min_epu32(high, other_high);
        (_mm512_max_epu32(high, other_high), _mm512_max_epu32(loser, _mm512_max_epu32(low, other_low)))
    }

    /// The largest and the second largest of all lanes, in every lane.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn top_two(pair: (__m512i, __m512i)) -> (__m512i, __m512i) {
        let (h, l) = pair;
        let (h, l) = merge((h, l), (_mm512_shuffle_i64x2::<0b01_00_11_10>(h, h), _mm512_shuffle_i64x2::<0b01_00_11_10>(l, l)));
        let (h, l) = merge((h, l), (_mm512_shuffle_i64x2::<0b10_11_00_01>(h, h), _mm512_shuffle_i64x2::<0b10_11_00_01>(l, l)));
        let (h, l) = merge((h, l), (_mm512_shuffle_epi32::<0b01_00_11_10>(h), _mm512_shuffle_epi32::<0b01_00_11_10>(l)));
        merge((h, l), (_mm512_shuffle_epi32::<0b10_11_00_01>(h), _mm512_shuffle_epi32::<0b10_11_00_01>(l)))
    }

    /// One step of a bitonic sort: each lane keeps the larger or the smaller of itself and its partner.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn compare(x: __m512i, partner: __m512i, larger: __mmask16) -> __m512i {
        _mm512_mask_mov_epi32(_mm512_min_epu32(x, partner), larger, _mm512_max_epu32(x, partner))
    }

    /// The lanes from the largest to the smallest.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn sort(x: __m512i) -> __m512i {
        // Partners at distance 1, 2, 4, 8. Bit i of a mask: lane i keeps the larger; runs of 2, 4 and 8 fall and rise in turn.
        let by_1 = |x| _mm512_shuffle_epi32::<0b10_11_00_01>(x);
        let by_2 = |x| _mm512_shuffle_epi32::<0b01_00_11_10>(x);
        let by_4 = |x| _mm512_shuffle_i64x2::<0b10_11_00_01>(x, x);
        let by_8 = |x| _mm512_shuffle_i64x2::<0b01_00_11_10>(x, x);
        let x = compare(x, by_1(x), 0b1001_1001_1001_1001);
        let x = compare(x, by_2(x), 0b1100_0011_1100_0011);
        let x = compare(x, by_1(x), 0b1010_0101_1010_0101);
        let x = compare(x, by_4(x), 0b1111_0000_0000_1111);
        let x = compare(x, by_2(x), 0b1100_1100_0011_0011);
        let x = compare(x, by_1(x), 0b1010_1010_0101_0101);
        let x = compare(x, by_8(x), 0b0000_0000_1111_1111);
        let x = compare(x, by_4(x), 0b0000_1111_0000_1111);
        let x = compare(x, by_2(x), 0b0011_0011_0011_0011);
        compare(x, by_1(x), 0b0101_0101_0101_0101)
    }

    /// One token. False when there are too many candidates; `indices` is left alone then.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt,bmi1")]
    pub fn select(
        plan: &Selection,
        scores: &[f32],
        bias: &[f32],
        keys: &mut [[i32; LANES]; MOST / LANES],
        indices: &mut [u32],
    ) -> bool {
        let zero = _mm512_setzero_si512();
        let (scores, _) = scores.as_chunks::<LANES>();
        let (bias, _) = bias.as_chunks::<LANES>();
        let keys = &mut keys[..plan.registers];
        for ((keys, scores), bias) in keys.iter_mut().zip(scores).zip(bias) {
            // SAFETY: 16 values each.
            unsafe {
                let biased = _mm512_add_ps(_mm512_loadu_ps(scores.as_ptr()), _mm512_loadu_ps(bias.as_ptr()));
                _mm512_storeu_si512(keys.as_mut_ptr().cast(), key(biased));
            }
        }
        // SAFETY: 16 values.
        let load = |keys: &[i32; LANES]| unsafe { _mm512_loadu_si512(keys.as_ptr().cast()) };

        // The first registers of the groups to keep; without a choice among groups, one run of all registers. No branch depends on the
        // scores, for none could be foreseen.
        let mut kept = [0usize; LANES + 1];
        let (runs, run) = if plan.keep < plan.groups { (plan.keep, plan.per_group) } else { (1, plan.registers) };
        if plan.keep < plan.groups {
            let (mut high, mut low) = (zero, zero);
            for (group, keys) in keys.chunks_exact(plan.per_group).enumerate() {
                let (mut high_lanes, mut low_lanes) = (zero, zero);
                for keys in keys {
                    let keys = load(keys);
                    low_lanes = _mm512_max_epu32(low_lanes, _mm512_min_epu32(high_lanes, keys));
                    high_lanes = _mm512_max_epu32(high_lanes, keys);
                }
                let pair = top_two((high_lanes, low_lanes));
                let lane = 1 << group;
                high = _mm512_mask_mov_epi32(high, lane, pair.0);
                low = _mm512_mask_mov_epi32(low, lane, pair.1);
            }
            let lanes = ((1u32 << plan.groups) - 1) as __mmask16;
            let sums = if plan.two { key(_mm512_add_ps(value(high), value(low))) } else { high };
            let sums = _mm512_maskz_mov_epi32(lanes, sums);
            let mut each = [0i32; LANES];
            // SAFETY: 16 values.
            unsafe { _mm512_storeu_si512(each.as_mut_ptr().cast(), sums) };
            let mut next = 0;
            for (group, &own) in each[..plan.groups].iter().enumerate() {
                let own = _mm512_set1_epi32(own);
                // Better groups, and equal ones with a lower index.
                let better = _mm512_cmpgt_epu32_mask(sums, own) | (_mm512_cmpge_epu32_mask(sums, own) & ((1 << group) - 1));
                kept[next] = group * plan.per_group;
                next += usize::from((better.count_ones() as usize) < plan.keep);
            }
        }

        // The largest of each lane; the `top_k`-th of these is at most the `top_k`-th of all.
        let mut largest = zero;
        for &first in &kept[..runs] {
            for keys in &keys[first..first + run] {
                largest = _mm512_max_epu32(largest, load(keys));
            }
        }
        let mut sorted = [0i32; LANES];
        // SAFETY: 16 values.
        unsafe { _mm512_storeu_si512(sorted.as_mut_ptr().cast(), sort(largest)) };
        let least = _mm512_set1_epi32(sorted[plan.top_k - 1]);

        // All that are not less, in the order of the experts, and zeros.
        let mut key_of = [0i32; CANDIDATES + 2 * LANES];
        let mut expert_of = [0u32; CANDIDATES + 2 * LANES];
        let numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let mut n = 0;
        for &first in &kept[..runs] {
            for (r, keys) in keys[first..first + run].iter().enumerate() {
                if n > CANDIDATES {
                    return false;
                }
                let keys = load(keys);
                let mask = _mm512_cmpge_epu32_mask(keys, least);
                let experts = _mm512_add_epi32(numbers, _mm512_set1_epi32(((first + r) * LANES) as i32));
                // SAFETY: 16 values from `n` on, at most CANDIDATES.
                unsafe {
                    _mm512_storeu_si512(key_of.as_mut_ptr().add(n).cast(), _mm512_maskz_compress_epi32(mask, keys));
                    _mm512_storeu_si512(expert_of.as_mut_ptr().add(n).cast(), _mm512_maskz_compress_epi32(mask, experts));
                }
                n += mask.count_ones() as usize;
            }
        }
        if n > CANDIDATES {
            return false;
        }
        // SAFETY: `n` is at most CANDIDATES: both registers, and the 16 values that follow the last candidate, are inside.
        let (low, high) = unsafe {
            _mm512_storeu_si512(key_of.as_mut_ptr().add(n).cast(), zero);
            _mm512_storeu_si512(key_of.as_mut_ptr().add(n + LANES).cast(), zero);
            (_mm512_loadu_si512(key_of.as_ptr().cast()), _mm512_loadu_si512(key_of.as_ptr().add(LANES).cast()))
        };
        // The zeros behind the candidates find places as well, behind those of the candidates.
        let mut order = [0u32; CANDIDATES];
        let places = if n <= LANES { LANES } else { CANDIDATES };
        for (at, (&own, &expert)) in key_of[..places].iter().zip(&expert_of).enumerate() {
            let own = _mm512_set1_epi32(own);
            let mut more = u32::from(_mm512_cmpgt_epu32_mask(low, own));
            let mut same = u32::from(_mm512_cmpge_epu32_mask(low, own));
            if places > LANES {
                more |= u32::from(_mm512_cmpgt_epu32_mask(high, own)) << LANES;
                same |= u32::from(_mm512_cmpge_epu32_mask(high, own)) << LANES;
            }
            let place = (more | same & ((1u32 << at) - 1)).count_ones() as usize;
            order[place % CANDIDATES] = expert;
        }
        indices.copy_from_slice(&order[..plan.top_k]);
        true
    }
}
