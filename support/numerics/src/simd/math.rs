//! Elementary functions in a fixed form: the same bits on every instruction set.

use super::Simd;

/// `exp(x)`, within 1 ulp; 0 below about -103.97, infinite above about 88.72, NaN for NaN. Subnormal results are rounded once.
///
/// Cody-Waite reduction `x = n ln 2 + r`, a polynomial of degree 6 in `r` (1 + r, minimax beyond: relative
/// error 3.1e-9 before rounding) evaluated by Horner's rule with fused multiply-adds, and two exact multiplications by powers of two.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // Adding and subtracting 1.5 * 2^23 rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has 15 significant bits, so that n times it is exact.
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    // The second operand wins where the first is not smaller (larger): a NaN passes through.
    let x = s.min(s.splat(89.0), x);
    let x = s.max(s.splat(-105.0), x);
    let round = s.splat(ROUND);
    let n = s.sub(s.mul_add(x, s.splat(std::f32::consts::LOG2_E), round), round);
    let r = s.neg_mul_add(n, s.splat(LN2_HIGH), x);
    let r = s.neg_mul_add(n, s.splat(LN2_LOW), r);
    let mut p = s.splat(1.381_446_5e-3);
    for c in [8.368_781e-3, 4.166_839_3e-2, 0.166_665_2, 0.499_999_94, 1.0, 1.0] {
        p = s.mul_add(p, r, s.splat(c));
    }
    // 2^n itself may be out of range where the result is not.
    let half = s.sub(s.mul_add(n, s.splat(0.5), round), round);
    s.mul(s.mul(p, s.exp2_integral(half)), s.exp2_integral(s.sub(n, half)))
}

/// `silu(x) = x / (1 + exp(-x))`.
#[inline(always)]
pub fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(x, s.add(s.splat(1.0), e))
}

/// `silu(x)` and its derivative `sigma (1 + x (1 - sigma))`, where `sigma = 1 / (1 + exp(-x))`. The first is `x * sigma`, which may differ
/// from [`silu`] in the last place.
#[inline(always)]
pub fn silu_and_derivative<S: Simd>(s: S, x: S::F) -> (S::F, S::F) {
    let one = s.splat(1.0);
    let sigma = s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))));
    let value = s.mul(x, sigma);
    // sigma + x sigma (1 - sigma)
    (value, s.mul_add(value, s.sub(one, sigma), sigma))
}
