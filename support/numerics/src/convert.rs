//! Conversion of whole slices between f32 and the narrow formats. Lengths must agree.
//!
//! Vectorised and, where there is much to do, parallel; every value is converted as the format's own `from_f32` and `to_f32` do it.

use crate::cpu::Isa;
use crate::error::{Result, check_len};
use crate::formats::{E4M3, E5M2};
use crate::par;
use crate::simd::{Kernel, LANES, Simd, dispatch};
use half::bf16;

/// To bf16, nearest even; overflow becomes infinite, NaN stays NaN (quiet).
pub fn f32_to_bf16(x: &[f32], y: &mut [bf16]) -> Result<()> {
    convert::<ToBf16>("bf16 output", x, y)
}

/// From bf16, exactly.
pub fn bf16_to_f32(x: &[bf16], y: &mut [f32]) -> Result<()> {
    convert::<FromBf16>("f32 output", x, y)
}

/// To E4M3 as [`E4M3::from_f32`].
pub fn f32_to_e4m3(x: &[f32], y: &mut [E4M3]) -> Result<()> {
    convert::<ToE4M3>("E4M3 output", x, y)
}

/// From E4M3, exactly.
pub fn e4m3_to_f32(x: &[E4M3], y: &mut [f32]) -> Result<()> {
    convert::<FromE4M3>("f32 output", x, y)
}

/// To E5M2 as [`E5M2::from_f32`].
pub fn f32_to_e5m2(x: &[f32], y: &mut [E5M2]) -> Result<()> {
    convert::<ToE5M2>("E5M2 output", x, y)
}

/// From E5M2, exactly.
pub fn e5m2_to_f32(x: &[E5M2], y: &mut [f32]) -> Result<()> {
    convert::<FromE5M2>("f32 output", x, y)
}

/// A conversion of 16 values.
trait Convert {
    type From: bytemuck::Pod + Send + Sync;
    type To: bytemuck::Pod + Send + Sync;
    fn lanes<S: Simd>(s: S, x: &[Self::From; LANES], y: &mut [Self::To; LANES]);
}

macro_rules! conversion {
    ($name:ident: $from:ty => $to:ty, |$s:ident, $x:ident, $y:ident| $body:expr) => {
        struct $name;
        impl Convert for $name {
            type From = $from;
            type To = $to;
            #[inline(always)]
            fn lanes<S: Simd>($s: S, $x: &[$from; LANES], $y: &mut [$to; LANES]) {
                $body
            }
        }
    };
}
conversion!(ToBf16: f32 => bf16, |s, x, y| s.store_bf16(s.load(x), y));
conversion!(FromBf16: bf16 => f32, |s, x, y| s.store(s.load_bf16(x), y));
conversion!(ToE4M3: f32 => E4M3, |s, x, y| s.store_e4m3(s.load(x), y));
conversion!(FromE4M3: E4M3 => f32, |s, x, y| s.store(s.load_e4m3(x), y));
conversion!(ToE5M2: f32 => E5M2, |_s, x, y| *y = x.map(E5M2::from_f32));
conversion!(FromE5M2: E5M2 => f32, |_s, x, y| *y = x.map(E5M2::to_f32));

struct Slices<'a, C: Convert>(&'a [C::From], &'a mut [C::To]);

impl<C: Convert> Kernel for Slices<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, x_rest) = self.0.as_chunks::<LANES>();
        let (y, y_rest) = self.1.as_chunks_mut::<LANES>();
        for (x, y) in x.iter().zip(y) {
            C::lanes(s, x, y);
        }
        if !x_rest.is_empty() {
            let mut x = [<C::From as bytemuck::Zeroable>::zeroed(); LANES];
            let mut y = [<C::To as bytemuck::Zeroable>::zeroed(); LANES];
            x[..x_rest.len()].copy_from_slice(x_rest);
            C::lanes(s, &x, &mut y);
            y_rest.copy_from_slice(&y[..y_rest.len()]);
        }
    }
}

fn convert<C: Convert>(what: &'static str, x: &[C::From], y: &mut [C::To]) -> Result<()> {
    const GRAIN: usize = 1 << 16;
    check_len(what, x.len(), y.len())?;
    let isa = Isa::detect();
    par::for_each_chunk_mut(y, GRAIN, |i, y| {
        dispatch(isa, Slices::<C>(&x[i * GRAIN..i * GRAIN + y.len()], y));
    });
    Ok(())
}
