//! Vectors of f32, the same bits whatever their width.
//!
//! Kernels are written once over [`Simd`], are `#[inline(always)]`, and are instantiated inside one function per instruction set
//! that carries the `#[target_feature]`s. Lanes never mix, so a wider vector computes the same values, more of them at a time.

/// Coefficients of `2^f` for `|f| <= 0.5`, of `f^5` first, without the constant 1.
const EXP2: [f32; 5] = [
    f32::from_bits(0x3aaddc9d), // 1.326460e-3
    f32::from_bits(0x3c1e7542), // 9.671511e-3
    f32::from_bits(0x3d635baa), // 5.550734e-2
    f32::from_bits(0x3e75fcde), // 2.402224e-1
    f32::from_bits(0x3f317215), // 6.931470e-1
];

/// One instruction set. Every operation rounds as IEEE 754 says, once.
///
/// # Safety
/// All functions: the processor has the instruction set. Loads and stores: the memory is valid for the lanes touched.
pub(crate) trait Simd: Copy {
    /// f32 values in a vector.
    const LANES: usize;
    type V: Copy;
    type M: Copy;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `a < b`; false where either is NaN.
    unsafe fn lt(a: Self::V, b: Self::V) -> Self::M;
    /// `if m { a } else { b }`.
    unsafe fn select(m: Self::M, a: Self::V, b: Self::V) -> Self::V;
    /// The float whose bits are those of `v` shifted left by 23.
    unsafe fn shift_to_exponent(v: Self::V) -> Self::V;
    /// Four columns of `LANES` rows `stride` values apart: vector `c` holds `p[row * stride + c]`.
    unsafe fn load_columns(p: *const f32, stride: usize) -> [Self::V; 4];
    /// The inverse of `load_columns`.
    unsafe fn store_columns(p: *mut f32, stride: usize, v: [Self::V; 4]);

    /// `if m { a * b + c } else { c }`.
    #[inline(always)]
    unsafe fn fma_where(m: Self::M, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: the caller's contract.
        unsafe { Self::select(m, Self::fma(a, b, c), c) }
    }

    /// `2^y` for `y <= 127`, relative error below 1.8e-7, exactly 1 at 0; 0 below -126 (no subnormal results), NaN for NaN.
    ///
    /// `y = n + f` with `n` the nearest integer; `2^f` is a polynomial of degree 5 (minimax, error 9.2e-8), `2^n` is made
    /// from the bits of the rounded sum `y + (1.5 * 2^23 + 127)`, whose last bits are the exponent field of `2^n`.
    #[inline(always)]
    unsafe fn exp2(y: Self::V) -> Self::V {
        const ROUND: f32 = 12_582_912.0 + 127.0;
        // SAFETY: the caller's contract.
        unsafe {
            let t = Self::add(y, Self::splat(ROUND));
            let f = Self::sub(y, Self::sub(t, Self::splat(ROUND)));
            let mut p = Self::splat(EXP2[0]);
            for c in &EXP2[1..] {
                p = Self::fma(p, f, Self::splat(*c));
            }
            p = Self::fma(p, f, Self::splat(1.0));
            let p = Self::mul(p, Self::shift_to_exponent(t));
            Self::select(Self::lt(y, Self::splat(-126.0)), Self::splat(0.0), p)
        }
    }
}

/// Eight lanes in plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn zip(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    const LANES: usize = 8;
    type V = [f32; 8];
    type M = [bool; 8];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller gives eight readable values.
        unsafe { p.cast::<Self::V>().read() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the caller gives eight writable values.
        unsafe { p.cast::<Self::V>().write(v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |x, y| x - y)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |x, y| x * y)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    unsafe fn lt(a: Self::V, b: Self::V) -> Self::M {
        std::array::from_fn(|i| a[i] < b[i])
    }
    #[inline(always)]
    unsafe fn select(m: Self::M, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if m[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn shift_to_exponent(v: Self::V) -> Self::V {
        v.map(|x| f32::from_bits(x.to_bits() << 23))
    }
    #[inline(always)]
    unsafe fn load_columns(p: *const f32, stride: usize) -> [Self::V; 4] {
        // SAFETY: the caller gives eight rows of four readable values.
        std::array::from_fn(|c| std::array::from_fn(|r| unsafe { *p.add(r * stride + c) }))
    }
    #[inline(always)]
    unsafe fn store_columns(p: *mut f32, stride: usize, v: [Self::V; 4]) {
        for (c, column) in v.iter().enumerate() {
            for (r, x) in column.iter().enumerate() {
                // SAFETY: the caller gives eight rows of four writable values.
                unsafe { *p.add(r * stride + c) = *x };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    /// Eight lanes.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;
    /// Sixteen lanes.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512;

    /// The operations that are one intrinsic each.
    macro_rules! one_to_one {
        ($($name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $body:expr;)*) => {
            $(
                #[inline(always)]
                unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: the caller has checked the instruction set and gives valid memory.
                    unsafe { $body }
                }
            )*
        };
    }

    impl Simd for Avx2 {
        const LANES: usize = 8;
        type V = __m256;
        type M = __m256;

        one_to_one! {
            splat(x: f32) -> __m256 = _mm256_set1_ps(x);
            load(p: *const f32) -> __m256 = _mm256_loadu_ps(p);
            store(p: *mut f32, v: __m256) = _mm256_storeu_ps(p, v);
            add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
            sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
            mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
            fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
            max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
            lt(a: __m256, b: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_LT_OQ>(a, b);
            select(m: __m256, a: __m256, b: __m256) -> __m256 = _mm256_blendv_ps(b, a, m);
            shift_to_exponent(v: __m256) -> __m256 = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(v)));
        }

        #[inline(always)]
        unsafe fn load_columns(p: *const f32, stride: usize) -> [__m256; 4] {
            // SAFETY: the caller has checked the instruction set and gives eight rows of four readable values.
            unsafe {
                transpose_256([
                    rows_256(p, stride),
                    rows_256(p.add(stride), stride),
                    rows_256(p.add(2 * stride), stride),
                    rows_256(p.add(3 * stride), stride),
                ])
            }
        }
        #[inline(always)]
        unsafe fn store_columns(p: *mut f32, stride: usize, v: [__m256; 4]) {
            // SAFETY: the caller has checked the instruction set and gives eight rows of four writable values.
            unsafe {
                let rows = transpose_256(v);
                for row in 0..4 {
                    let r = rows[row];
                    _mm_storeu_ps(p.add(row * stride), _mm256_castps256_ps128(r));
                    _mm_storeu_ps(p.add((row + 4) * stride), _mm256_extractf128_ps::<1>(r));
                }
            }
        }
    }

    /// Four values of rows 0 and 4.
    #[inline(always)]
    unsafe fn rows_256(p: *const f32, stride: usize) -> __m256 {
        // SAFETY: the caller has checked the instruction set and gives these rows.
        unsafe {
            let r = _mm256_castps128_ps256(_mm_loadu_ps(p));
            _mm256_insertf128_ps::<1>(r, _mm_loadu_ps(p.add(4 * stride)))
        }
    }

    /// Transposes the 4x4 blocks that lie in the 128-bit lanes.
    #[inline(always)]
    unsafe fn transpose_256(v: [__m256; 4]) -> [__m256; 4] {
        // SAFETY: the caller has checked the instruction set.
        unsafe {
            let (a, b) = (_mm256_unpacklo_ps(v[0], v[1]), _mm256_unpackhi_ps(v[0], v[1]));
            let (c, d) = (_mm256_unpacklo_ps(v[2], v[3]), _mm256_unpackhi_ps(v[2], v[3]));
            [
                _mm256_shuffle_ps::<0x44>(a, c),
                _mm256_shuffle_ps::<0xEE>(a, c),
                _mm256_shuffle_ps::<0x44>(b, d),
                _mm256_shuffle_ps::<0xEE>(b, d),
            ]
        }
    }

    impl Simd for Avx512 {
        const LANES: usize = 16;
        type V = __m512;
        type M = __mmask16;

        one_to_one! {
            splat(x: f32) -> __m512 = _mm512_set1_ps(x);
            load(p: *const f32) -> __m512 = _mm512_loadu_ps(p);
            store(p: *mut f32, v: __m512) = _mm512_storeu_ps(p, v);
            add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
            sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
            mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
            fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
            max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
            lt(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b);
            select(m: __mmask16, a: __m512, b: __m512) -> __m512 = _mm512_mask_blend_ps(m, b, a);
            shift_to_exponent(v: __m512) -> __m512 = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(v)));
            fma_where(m: __mmask16, a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_mask3_fmadd_ps(a, b, c, m);
        }

        #[inline(always)]
        unsafe fn load_columns(p: *const f32, stride: usize) -> [__m512; 4] {
            // SAFETY: the caller has checked the instruction set and gives sixteen rows of four readable values.
            unsafe {
                transpose_512([
                    rows_512(p, stride),
                    rows_512(p.add(stride), stride),
                    rows_512(p.add(2 * stride), stride),
                    rows_512(p.add(3 * stride), stride),
                ])
            }
        }
        #[inline(always)]
        unsafe fn store_columns(p: *mut f32, stride: usize, v: [__m512; 4]) {
            // SAFETY: the caller has checked the instruction set and gives sixteen rows of four writable values.
            unsafe {
                let rows = transpose_512(v);
                for row in 0..4 {
                    let r = rows[row];
                    _mm_storeu_ps(p.add(row * stride), _mm512_castps512_ps128(r));
                    _mm_storeu_ps(p.add((row + 4) * stride), _mm512_extractf32x4_ps::<1>(r));
                    _mm_storeu_ps(p.add((row + 8) * stride), _mm512_extractf32x4_ps::<2>(r));
                    _mm_storeu_ps(p.add((row + 12) * stride), _mm512_extractf32x4_ps::<3>(r));
                }
            }
        }
    }

    /// Four values of rows 0, 4, 8 and 12.
    #[inline(always)]
    unsafe fn rows_512(p: *const f32, stride: usize) -> __m512 {
        // SAFETY: the caller has checked the instruction set and gives these rows.
        unsafe {
            let r = _mm512_castps128_ps512(_mm_loadu_ps(p));
            let r = _mm512_insertf32x4::<1>(r, _mm_loadu_ps(p.add(4 * stride)));
            let r = _mm512_insertf32x4::<2>(r, _mm_loadu_ps(p.add(8 * stride)));
            _mm512_insertf32x4::<3>(r, _mm_loadu_ps(p.add(12 * stride)))
        }
    }

    /// Transposes the 4x4 blocks that lie in the 128-bit lanes.
    #[inline(always)]
    unsafe fn transpose_512(v: [__m512; 4]) -> [__m512; 4] {
        // SAFETY: the caller has checked the instruction set.
        unsafe {
            let (a, b) = (_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
            let (c, d) = (_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
            [
                _mm512_shuffle_ps::<0x44>(a, c),
                _mm512_shuffle_ps::<0xEE>(a, c),
                _mm512_shuffle_ps::<0x44>(b, d),
                _mm512_shuffle_ps::<0xEE>(b, d),
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Portable, Simd};

    #[test]
    fn exp2_is_accurate_and_exact_where_it_must_be() {
        let exp2 = |y: f32| {
            // SAFETY: plain Rust runs everywhere.
            unsafe { Portable::exp2([y; 8])[3] }
        };
        let mut worst = 0.0f64;
        for i in 0..=200_000 {
            let y = -126.0 + i as f32 * (127.0 / 200_000.0);
            worst = worst.max((f64::from(exp2(y)) / f64::from(y).exp2() - 1.0).abs());
        }
        assert!(worst < 1.8e-7, "{worst:e}");
        for n in -126..=127 {
            assert_eq!(exp2(n as f32), 2f32.powi(n));
        }
        assert_eq!(exp2(-126.000_01), 0.0);
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        for nan in [f32::NAN, f32::from_bits(0x7fff_ffff), f32::from_bits(0xffc0_dead)] {
            assert!(exp2(nan).is_nan());
        }
    }
}
