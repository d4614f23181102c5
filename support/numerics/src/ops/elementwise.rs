//! Operations on whole slices.

use super::{GRAIN, Lanewise, map};
use crate::cpu::Isa;
use crate::error::{Result, check_len};
use crate::par;
use crate::simd::{self, Kernel, Simd, dispatch};

/// `y += x`.
pub fn add_assign(y: &mut [f32], x: &[f32]) -> Result<()> {
    binary(x, y, Add)
}

/// `y = fma(alpha, x, y)`.
pub fn axpy(alpha: f32, x: &[f32], y: &mut [f32]) -> Result<()> {
    binary(x, y, Axpy(alpha))
}

/// `y = exp(x)`: within 1 ulp, see [`simd::exp`].
pub fn exp(x: &[f32], y: &mut [f32]) -> Result<()> {
    binary(x, y, Exp)
}

/// `x *= alpha`.
pub fn scale(x: &mut [f32], alpha: f32) {
    let isa = Isa::detect();
    par::for_each_chunk_mut(x, GRAIN, |_, x| map(isa, [], [x], Scale(alpha)));
}

fn binary(x: &[f32], y: &mut [f32], op: impl Lanewise<1, 1>) -> Result<()> {
    check_len("operand", y.len(), x.len())?;
    let isa = Isa::detect();
    par::for_each_chunk_mut(y, GRAIN, |i, y| map(isa, [&x[i * GRAIN..i * GRAIN + y.len()]], [y], op));
    Ok(())
}

#[derive(Clone, Copy)]
struct Add;
impl Lanewise<1, 1> for Add {
    const IN_PLACE: bool = true;
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x]: [S::F; 1], [y]: [S::F; 1]) -> [S::F; 1] {
        [s.add(y, x)]
    }
}

#[derive(Clone, Copy)]
struct Axpy(f32);
impl Lanewise<1, 1> for Axpy {
    const IN_PLACE: bool = true;
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x]: [S::F; 1], [y]: [S::F; 1]) -> [S::F; 1] {
        [s.mul_add(s.splat(self.0), x, y)]
    }
}

#[derive(Clone, Copy)]
struct Exp;
impl Lanewise<1, 1> for Exp {
    const IN_PLACE: bool = false;
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x]: [S::F; 1], _: [S::F; 1]) -> [S::F; 1] {
        [simd::exp(s, x)]
    }
}

#[derive(Clone, Copy)]
struct Scale(f32);
impl Lanewise<0, 1> for Scale {
    const IN_PLACE: bool = true;
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, _: [S::F; 0], [y]: [S::F; 1]) -> [S::F; 1] {
        [s.mul(y, s.splat(self.0))]
    }
}

/// The sum of squares in f64: chunks of 32768 values, each in 16 chains, added in order.
pub fn sum_squares(x: &[f32]) -> f64 {
    let isa = Isa::detect();
    par::map(x.len().div_ceil(GRAIN), |i| dispatch(isa, SumSquares(&x[i * GRAIN..x.len().min((i + 1) * GRAIN)])))
        .into_iter()
        .sum()
}

struct SumSquares<'a>(&'a [f32]);
impl Kernel for SumSquares<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f64 {
        // The square of an f32 is exact in f64, so fused or not is the same; the compiler vectorises this form.
        let mut sums = [0.0f64; 16];
        let mut chunks = self.0.chunks_exact(16);
        for chunk in &mut chunks {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *sum += f64::from(*x) * f64::from(*x);
            }
        }
        for (sum, x) in sums.iter_mut().zip(chunks.remainder()) {
            *sum += f64::from(*x) * f64::from(*x);
        }
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                sums[i] += sums[i + half];
            }
        }
        sums[0]
    }
}

/// The Euclidean norm of all values of several tensors together.
pub fn global_norm(parts: &[&[f32]]) -> f64 {
    parts.iter().map(|part| sum_squares(part)).sum::<f64>().sqrt()
}

/// The factor that clips a gradient of this norm to `max_norm`, `min(1, max_norm / (norm + 1e-6))`, as PyTorch's `clip_grad_norm_`.
pub fn clip_factor(norm: f64, max_norm: f64) -> f32 {
    (max_norm / (norm + 1e-6)).min(1.0) as f32
}
