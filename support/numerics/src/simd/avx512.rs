//! AVX-512 F, BW, DQ, VL: a vector is one register.

use super::{Kernel, LANES, Simd, sealed};
use crate::formats::E4M3;
use half::bf16;
use std::arch::x86_64::*;

/// The token of AVX-512.
#[derive(Debug, Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// # Safety
    /// [`Isa::Avx512`](crate::cpu::Isa::Avx512) must be available.
    #[inline(always)]
    pub unsafe fn new_unchecked() -> Avx512 {
        Avx512(())
    }
}

impl sealed::Sealed for Avx512 {}

/// Calls an intrinsic of the instruction set that the token stands for.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: a token exists only where its instruction set does, and pointers come from references or from the caller's contract.
        unsafe { $call }
    };
}

/// A mask of the first `n` lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1u32 << n.min(LANES)) - 1) as __mmask16
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
#[inline(never)]
fn outlined<K: Kernel>(token: Avx512, kernel: K) -> K::Output {
    kernel.run(token)
}

impl Simd for Avx512 {
    type F = __m512;
    const TILE_ROWS: usize = 14;
    const TILE_VECTORS: usize = 2;

    #[inline(always)]
    fn outline<K: Kernel>(self, kernel: K) -> K::Output {
        op!(outlined(self, kernel))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        op!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        op!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn store(self, x: Self::F, y: &mut [f32; LANES]) {
        op!(_mm512_storeu_ps(y.as_mut_ptr(), x))
    }
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> Self::F {
        op!(_mm512_maskz_loadu_ps(first(x.len()), x.as_ptr()))
    }
    #[inline(always)]
    fn store_partial(self, x: Self::F, y: &mut [f32]) {
        op!(_mm512_mask_storeu_ps(y.as_mut_ptr(), first(y.len()), x))
    }
    #[inline(always)]
    unsafe fn load_ptr(self, x: *const f32) -> Self::F {
        op!(_mm512_loadu_ps(x))
    }
    #[inline(always)]
    unsafe fn store_ptr(self, x: Self::F, y: *mut f32) {
        op!(_mm512_storeu_ps(y, x))
    }
    #[inline(always)]
    fn prefetch(self, x: *const f32) {
        op!(_mm_prefetch::<_MM_HINT_T0>(x.cast()))
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        op!(_mm512_fnmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        op!(_mm512_sqrt_ps(a))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn exp2_integral(self, n: Self::F) -> Self::F {
        op!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)))))
    }

    #[inline(always)]
    fn load_bf16(self, x: &[bf16; LANES]) -> Self::F {
        op!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast())))))
    }
    #[inline(always)]
    fn store_bf16(self, x: Self::F, y: &mut [bf16; LANES]) {
        op!({
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let upper = _mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, nan, quiet));
            _mm256_storeu_si256(y.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(upper));
        })
    }

    #[inline(always)]
    fn load_e4m3(self, x: &[E4M3; LANES]) -> Self::F {
        op!({
            let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            let magnitude = _mm512_and_si512(codes, _mm512_set1_epi32(0x7f));
            let normal = _mm512_add_epi32(_mm512_slli_epi32::<20>(magnitude), _mm512_set1_epi32(120 << 23));
            // Subnormals are multiples of 2^-9.
            let small = _mm512_mul_ps(_mm512_cvtepi32_ps(magnitude), _mm512_set1_ps(1.0 / 512.0));
            let is_small = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(8));
            let is_nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7f));
            let value = _mm512_mask_mov_epi32(normal, is_small, _mm512_castps_si512(small));
            let value = _mm512_mask_mov_epi32(value, is_nan, _mm512_set1_epi32(0x7fc0_0000));
            let sign = _mm512_slli_epi32::<24>(_mm512_andnot_si512(_mm512_set1_epi32(0x7f), codes));
            _mm512_castsi512_ps(_mm512_or_si512(value, sign))
        })
    }
    #[inline(always)]
    fn store_e4m3(self, x: Self::F, y: &mut [E4M3; LANES]) {
        op!({
            let bits = _mm512_castps_si512(x);
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fff_ffff));
            // 448
            let magnitude = _mm512_min_epi32(magnitude, _mm512_set1_epi32(0x43e0_0000));
            let odd = _mm512_and_si512(_mm512_srli_epi32::<20>(magnitude), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(magnitude, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7_ffff)));
            let normal = _mm512_sub_epi32(_mm512_srli_epi32::<20>(rounded), _mm512_set1_epi32(120 << 3));
            // Below 2^-6: added to 2^14, whose last place is 2^-9, the adder rounds.
            let sum = _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(16384.0));
            let small = _mm512_sub_epi32(_mm512_castps_si512(sum), _mm512_set1_epi32(0x4680_0000));
            let is_small = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(0x3c80_0000));
            let code = _mm512_mask_mov_epi32(normal, is_small, small);
            let code = _mm512_mask_mov_epi32(code, is_nan, _mm512_set1_epi32(0x7f));
            let sign = _mm512_and_si512(_mm512_srli_epi32::<24>(bits), _mm512_set1_epi32(0x80));
            _mm_storeu_si128(y.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_or_si512(code, sign)));
        })
    }

    #[inline(always)]
    fn transpose(self, r: [Self::F; LANES]) -> [Self::F; LANES] {
        op!({
            let zero = _mm512_setzero_ps();
            // Within each 128-bit quarter: pairs of rows, then groups of four.
            let mut pairs = [zero; LANES];
            for i in 0..8 {
                pairs[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                pairs[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            // fours[4 g + j]: rows 4 g .. 4 g + 4 of columns j, j + 4, j + 8, j + 12.
            let mut fours = [zero; LANES];
            for g in 0..4 {
                for j in 0..2 {
                    let a = _mm512_castps_pd(pairs[4 * g + j]);
                    let b = _mm512_castps_pd(pairs[4 * g + 2 + j]);
                    fours[4 * g + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    fours[4 * g + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                }
            }
            // Then whole quarters.
            let mut out = [zero; LANES];
            for j in 0..4 {
                let low_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(fours[j], fours[4 + j]);
                let low_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(fours[j], fours[4 + j]);
                let high_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(fours[8 + j], fours[12 + j]);
                let high_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(fours[8 + j], fours[12 + j]);
                out[j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(low_even, high_even);
                out[4 + j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(low_odd, high_odd);
                out[8 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(low_even, high_even);
                out[12 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(low_odd, high_odd);
            }
            out
        })
    }
}
