//! The fused conversion and interpolation: one pass over the average and the snapshot.
//!
//! Bound by memory: 4 bytes of the average read and 4 written, 2 or 4 of the snapshot read, one subtraction and one fused
//! multiply-add. Plain stores: the line is already in the cache, and non-temporal ones were slower when tried.

use half::bf16;
use v3_numerics::cpu::Isa;
use v3_numerics::simd::{Kernel, LANES, Simd, dispatch};

/// A type that weights are submitted in: f32 or bf16.
pub trait Element: bytemuck::Pod + Send + Sync + sealed::Sealed {
    /// Its name in messages.
    const NAME: &'static str;
    /// The value, exactly.
    fn to_f32(self) -> f32;
    /// The nearest value, ties to even.
    fn from_f32(x: f32) -> Self;
}

mod sealed {
    use super::{Simd, bf16};

    pub trait Sealed: Sized {
        fn load<S: Simd>(s: S, x: &[Self; 16]) -> S::F;
        fn vec(buffer: &mut crate::ema::Buffer) -> &mut Vec<Self>;
    }

    impl Sealed for f32 {
        #[inline(always)]
        fn load<S: Simd>(s: S, x: &[f32; 16]) -> S::F {
            s.load(x)
        }
        fn vec(buffer: &mut crate::ema::Buffer) -> &mut Vec<f32> {
            buffer.as_f32()
        }
    }

    impl Sealed for bf16 {
        #[inline(always)]
        fn load<S: Simd>(s: S, x: &[bf16; 16]) -> S::F {
            s.load_bf16(x)
        }
        fn vec(buffer: &mut crate::ema::Buffer) -> &mut Vec<bf16> {
            buffer.as_bf16()
        }
    }
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(x: f32) -> f32 {
        x
    }
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    fn from_f32(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
}

/// `average = fma(rate, weight - average, average)`, element by element: the difference is rounded to f32, the product and
/// the sum together once. The same bits on every instruction set ([`crate::reference::lerp`] is the definition). A NaN stays
/// a NaN. Elements beyond the shorter of the two are left alone.
pub fn lerp<T: Element>(average: &mut [f32], weight: &[T], rate: f32) {
    lerp_on(Isa::detect(), average, weight, rate);
}

/// [`lerp`] on a given instruction set.
pub(crate) fn lerp_on<T: Element>(isa: Isa, average: &mut [f32], weight: &[T], rate: f32) {
    let n = average.len().min(weight.len());
    dispatch(isa, Lerp { average: &mut average[..n], weight: &weight[..n], rate });
}

struct Lerp<'a, T> {
    average: &'a mut [f32],
    weight: &'a [T],
    rate: f32,
}

impl<T: Element> Kernel for Lerp<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rate = s.splat(self.rate);
        let (weights, weight_rest) = self.weight.as_chunks::<LANES>();
        let (averages, average_rest) = self.average.as_chunks_mut::<LANES>();
        for (a, w) in averages.iter_mut().zip(weights) {
            let old = s.load(a);
            s.store(s.mul_add(rate, s.sub(T::load(s, w), old), old), a);
        }
        let mut last = [T::zeroed(); LANES];
        last[..weight_rest.len()].copy_from_slice(weight_rest);
        let old = s.load_partial(average_rest);
        s.store_partial(s.mul_add(rate, s.sub(T::load(s, &last), old), old), average_rest);
    }
}
