//! Vectors of 16 f32, written once and instantiated for each instruction set.
//!
//! An algorithm is a [`Kernel`]: a struct of arguments with one generic method. [`dispatch`] runs it inside a function that has the
//! instruction set enabled. A vector always has **16 lanes** (one AVX-512 register, two of AVX2, an array elsewhere) and
//! every method is one IEEE operation per lane, so a kernel gives the same bits on every instruction set.
//!
//! The implementations are zero-sized tokens that only [`dispatch`] hands out, after the instruction set was found to be there: that
//! is why their methods are safe. Everything a kernel calls with a token must be `#[inline(always)]`, or it is compiled without
//! the instruction set and runs slowly.
//!
//! ```
//! use v3_numerics::{cpu::Isa, simd::{Kernel, Simd, dispatch}};
//!
//! /// The sum of squares, in 16 chains.
//! struct SumOfSquares<'a>(&'a [f32]);
//! impl Kernel for SumOfSquares<'_> {
//!     type Output = f32;
//!     #[inline(always)]
//!     fn run<S: Simd>(self, s: S) -> f32 {
//!         let mut sum = s.splat(0.0);
//!         for chunk in self.0.chunks(16) {
//!             let x = s.load_partial(chunk);
//!             sum = s.mul_add(x, x, sum);
//!         }
//!         s.reduce_add(sum)
//!     }
//! }
//! assert_eq!(dispatch(Isa::detect(), SumOfSquares(&[3.0, 4.0])), 25.0);
//! ```

use crate::cpu::Isa;
use crate::formats::E4M3;
use half::bf16;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod math;
mod portable;

pub use math::{exp, silu, silu_and_derivative};

/// The number of lanes of every vector.
pub const LANES: usize = 16;

/// An algorithm that runs on any instruction set.
pub trait Kernel {
    /// What it returns.
    type Output;
    /// Runs it. Mark the implementation `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The operations on vectors of 16 f32, lane by lane. Implemented by the tokens that [`dispatch`] hands to a [`Kernel`].
pub trait Simd: Copy + Send + Sync + sealed::Sealed + 'static {
    /// A vector.
    type F: Copy;
    /// The tile of the matrix-product kernel that fills the registers: rows, at most 14.
    const TILE_ROWS: usize;
    /// Vectors across the same tile, 1 or 2.
    const TILE_VECTORS: usize;

    /// Runs a kernel as a function of its own with this instruction set: what keeps large kernels from being inlined into one.
    fn outline<K: Kernel>(self, kernel: K) -> K::Output;

    /// The same value in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// 16 values.
    fn load(self, x: &[f32; LANES]) -> Self::F;
    /// 16 values.
    fn store(self, x: Self::F, y: &mut [f32; LANES]);
    /// The values of a slice of at most 16 (more are ignored), and zeros.
    fn load_partial(self, x: &[f32]) -> Self::F;
    /// The first lanes, into a slice of at most 16 (what is beyond is left alone).
    fn store_partial(self, x: Self::F, y: &mut [f32]);
    /// 16 values from any address.
    ///
    /// # Safety
    /// The 64 bytes at `x` must be readable f32.
    unsafe fn load_ptr(self, x: *const f32) -> Self::F;
    /// 16 values to any address.
    ///
    /// # Safety
    /// The 64 bytes at `y` must be writable.
    unsafe fn store_ptr(self, x: Self::F, y: *mut f32);
    /// Asks for the cache line of an address, which need not be valid.
    fn prefetch(self, x: *const f32);

    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a * b`, rounded once.
    fn neg_mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The square root.
    fn sqrt(self, a: Self::F) -> Self::F;
    /// `a < b ? a : b`: the second where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a > b ? a : b`: the second where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `2^n` for integral `n` from -126 to 127; unspecified, but the same on every instruction set that has FMA, elsewhere.
    fn exp2_integral(self, n: Self::F) -> Self::F;

    /// 16 bf16, exactly.
    fn load_bf16(self, x: &[bf16; LANES]) -> Self::F;
    /// 16 bf16, nearest even, as [`bf16::from_f32`].
    fn store_bf16(self, x: Self::F, y: &mut [bf16; LANES]);

    /// 16 E4M3, exactly.
    fn load_e4m3(self, x: &[E4M3; LANES]) -> Self::F;
    /// 16 E4M3, nearest even and saturating, as [`E4M3::from_f32`].
    fn store_e4m3(self, x: Self::F, y: &mut [E4M3; LANES]);

    /// The transpose of a 16 x 16 block of rows.
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES];

    /// The lanes.
    #[inline(always)]
    fn to_array(self, x: Self::F) -> [f32; LANES] {
        let mut y = [0.0; LANES];
        self.store(x, &mut y);
        y
    }
    /// The sum of the lanes: lane `i` plus lane `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
    #[inline(always)]
    fn reduce_add(self, x: Self::F) -> f32 {
        let mut y = self.to_array(x);
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                y[i] += y[i + half];
            }
        }
        y[0]
    }
    /// The largest lane that is not NaN; minus infinity when there is none.
    #[inline(always)]
    fn reduce_max(self, x: Self::F) -> f32 {
        self.to_array(x).into_iter().fold(f32::NEG_INFINITY, |max, x| if x > max { x } else { max })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// Runs a kernel on an instruction set, or on the best one below it that the processor has. The result is the same.
#[inline]
pub fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        let isa = isa.min(Isa::best_available());
        if isa >= Isa::Avx512 {
            // SAFETY: the processor has the best available instruction set, and all below it.
            return unsafe { avx512::Avx512::new_unchecked() }.outline(kernel);
        }
        if isa >= Isa::Avx2 {
            // SAFETY: the processor has the best available instruction set, and all below it.
            return unsafe { avx2::Avx2::new_unchecked() }.outline(kernel);
        }
    }
    let _ = isa;
    portable::Portable.outline(kernel)
}

/// The nearest bf16 of each lane, in the upper half of the bits: what every implementation of `store_bf16` computes.
#[inline(always)]
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}
