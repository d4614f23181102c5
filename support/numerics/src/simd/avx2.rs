//! AVX2 with FMA: a vector is two registers.

use super::{Kernel, LANES, Simd, sealed};
use crate::formats::E4M3;
use half::bf16;
use std::arch::x86_64::*;

/// The token of AVX2 with FMA.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// # Safety
    /// [`Isa::Avx2`](crate::cpu::Isa::Avx2) must be available.
    #[inline(always)]
    pub unsafe fn new_unchecked() -> Avx2 {
        Avx2(())
    }
}

impl sealed::Sealed for Avx2 {}

/// Calls an intrinsic of the instruction set that the token stands for.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: a token exists only where its instruction set does, and pointers come from references or from the caller's contract.
        unsafe { $call }
    };
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
fn outlined<K: Kernel>(token: Avx2, kernel: K) -> K::Output {
    kernel.run(token)
}

impl Simd for Avx2 {
    type F = [__m256; 2];
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    fn outline<K: Kernel>(self, kernel: K) -> K::Output {
        op!(outlined(self, kernel))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        op!([_mm256_set1_ps(x); 2])
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        op!([_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))])
    }
    #[inline(always)]
    fn store(self, x: Self::F, y: &mut [f32; LANES]) {
        op!({
            _mm256_storeu_ps(y.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(y.as_mut_ptr().add(8), x[1]);
        })
    }
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> Self::F {
        let mut lanes = [0.0; LANES];
        lanes.iter_mut().zip(x).for_each(|(lane, x)| *lane = *x);
        self.load(&lanes)
    }
    #[inline(always)]
    fn store_partial(self, x: Self::F, y: &mut [f32]) {
        y.iter_mut().zip(self.to_array(x)).for_each(|(y, x)| *y = x);
    }
    #[inline(always)]
    unsafe fn load_ptr(self, x: *const f32) -> Self::F {
        op!([_mm256_loadu_ps(x), _mm256_loadu_ps(x.add(8))])
    }
    #[inline(always)]
    unsafe fn store_ptr(self, x: Self::F, y: *mut f32) {
        op!({
            _mm256_storeu_ps(y, x[0]);
            _mm256_storeu_ps(y.add(8), x[1]);
        })
    }
    #[inline(always)]
    fn prefetch(self, x: *const f32) {
        op!(_mm_prefetch::<_MM_HINT_T0>(x.cast()))
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        op!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        op!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        op!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        op!([_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        op!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        op!([_mm256_fnmadd_ps(a[0], b[0], c[0]), _mm256_fnmadd_ps(a[1], b[1], c[1])])
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        op!([_mm256_sqrt_ps(a[0]), _mm256_sqrt_ps(a[1])])
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        op!([_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        op!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn exp2_integral(self, n: Self::F) -> Self::F {
        op!(n.map(|n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
            _mm256_cvtps_epi32(n),
            _mm256_set1_epi32(127)
        )))))
    }

    #[inline(always)]
    fn load_bf16(self, x: &[bf16; LANES]) -> Self::F {
        op!({
            let low = _mm_loadu_si128(x.as_ptr().cast());
            let high = _mm_loadu_si128(x.as_ptr().add(8).cast());
            [low, high].map(|x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x))))
        })
    }
    #[inline(always)]
    fn store_bf16(self, x: Self::F, y: &mut [bf16; LANES]) {
        op!({
            let [low, high] = x.map(|x| {
                let bits = _mm256_castps_si256(x);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
                _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan))
            });
            // The pack works within 128-bit halves: restore the order of the quarters.
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high));
            _mm256_storeu_si256(y.as_mut_ptr().cast(), packed);
        })
    }

    #[inline(always)]
    fn load_e4m3(self, x: &[E4M3; LANES]) -> Self::F {
        op!({
            let codes = _mm_loadu_si128(x.as_ptr().cast());
            [codes, _mm_srli_si128::<8>(codes)].map(|codes| {
                let codes = _mm256_cvtepu8_epi32(codes);
                let magnitude = _mm256_and_si256(codes, _mm256_set1_epi32(0x7f));
                let normal = _mm256_add_epi32(_mm256_slli_epi32::<20>(magnitude), _mm256_set1_epi32(120 << 23));
                // Subnormals are multiples of 2^-9.
                let small = _mm256_mul_ps(_mm256_cvtepi32_ps(magnitude), _mm256_set1_ps(1.0 / 512.0));
                let is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), magnitude);
                let is_nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
                let value = _mm256_blendv_epi8(normal, _mm256_castps_si256(small), is_small);
                let value = _mm256_blendv_epi8(value, _mm256_set1_epi32(0x7fc0_0000), is_nan);
                let sign = _mm256_slli_epi32::<24>(_mm256_andnot_si256(_mm256_set1_epi32(0x7f), codes));
                _mm256_castsi256_ps(_mm256_or_si256(value, sign))
            })
        })
    }
    #[inline(always)]
    fn store_e4m3(self, x: Self::F, y: &mut [E4M3; LANES]) {
        op!({
            let [low, high] = x.map(|x| {
                let bits = _mm256_castps_si256(x);
                let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
                let magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fff_ffff));
                // 448
                let magnitude = _mm256_min_epi32(magnitude, _mm256_set1_epi32(0x43e0_0000));
                let odd = _mm256_and_si256(_mm256_srli_epi32::<20>(magnitude), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(magnitude, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7_ffff)));
                let normal = _mm256_sub_epi32(_mm256_srli_epi32::<20>(rounded), _mm256_set1_epi32(120 << 3));
                // Below 2^-6: added to 2^14, whose last place is 2^-9, the adder rounds.
                let sum = _mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(16384.0));
                let small = _mm256_sub_epi32(_mm256_castps_si256(sum), _mm256_set1_epi32(0x4680_0000));
                let is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c80_0000), magnitude);
                let code = _mm256_blendv_epi8(normal, small, is_small);
                let code = _mm256_blendv_epi8(code, _mm256_set1_epi32(0x7f), is_nan);
                let sign = _mm256_and_si256(_mm256_srli_epi32::<24>(bits), _mm256_set1_epi32(0x80));
                _mm256_or_si256(code, sign)
            });
            // To 16 bits, with the quarters in order; then to 8.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high));
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(y.as_mut_ptr().cast(), bytes);
        })
    }

    #[inline(always)]
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES] {
        op!({
            let mut out = [[_mm256_setzero_ps(); 2]; LANES];
            for half in 0..2 {
                for block in 0..2 {
                    let r = |i: usize| rows[8 * block + i][half];
                    let mut pairs = [_mm256_setzero_ps(); 8];
                    for i in 0..4 {
                        pairs[2 * i] = _mm256_unpacklo_ps(r(2 * i), r(2 * i + 1));
                        pairs[2 * i + 1] = _mm256_unpackhi_ps(r(2 * i), r(2 * i + 1));
                    }
                    for j in 0..2 {
                        let low = [pairs[j], pairs[2 + j]].map(|x| _mm256_castps_pd(x));
                        let high = [pairs[4 + j], pairs[6 + j]].map(|x| _mm256_castps_pd(x));
                        let a = _mm256_castpd_ps(_mm256_unpacklo_pd(low[0], low[1]));
                        let b = _mm256_castpd_ps(_mm256_unpackhi_pd(low[0], low[1]));
                        let c = _mm256_castpd_ps(_mm256_unpacklo_pd(high[0], high[1]));
                        let d = _mm256_castpd_ps(_mm256_unpackhi_pd(high[0], high[1]));
                        out[8 * half + 2 * j][block] = _mm256_permute2f128_ps::<0x20>(a, c);
                        out[8 * half + 2 * j + 1][block] = _mm256_permute2f128_ps::<0x20>(b, d);
                        out[8 * half + 2 * j + 4][block] = _mm256_permute2f128_ps::<0x31>(a, c);
                        out[8 * half + 2 * j + 5][block] = _mm256_permute2f128_ps::<0x31>(b, d);
                    }
                }
            }
            out
        })
    }
}
