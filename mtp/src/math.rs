//! Elementary functions and sums with the same bits on every processor.

use v3_numerics::cpu::Isa;
use v3_numerics::simd::{Kernel, LANES, Simd, dispatch, exp};

/// 16 values of a row; beyond its end, `fill`.
#[inline(always)]
fn load<S: Simd>(s: S, x: &[f32], fill: f32) -> S::F {
    match x.try_into() {
        Ok(x) => s.load(x),
        Err(_) => {
            let mut lanes = [fill; LANES];
            lanes[..x.len()].copy_from_slice(x);
            s.load(&lanes)
        }
    }
}

/// `x = exp(x - shift) * scale` for every value.
pub(crate) fn exp_scaled(isa: Isa, x: &mut [f32], shift: f32, scale: f32) {
    dispatch(isa, ExpScaled { x, shift, scale });
}

struct ExpScaled<'a> {
    x: &'a mut [f32],
    shift: f32,
    scale: f32,
}

impl Kernel for ExpScaled<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (shift, scale) = (s.splat(self.shift), s.splat(self.scale));
        for x in self.x.chunks_mut(LANES) {
            let y = s.mul(exp(s, s.sub(load(s, x, 0.0), shift)), scale);
            s.store_partial(y, x);
        }
    }
}

/// exp of one value, as [`exp_scaled`] has it.
pub(crate) fn exp_one(isa: Isa, x: f32) -> f32 {
    let mut x = [x];
    exp_scaled(isa, &mut x, 0.0, 1.0);
    x[0]
}

/// The largest value; NaN is passed over; minus infinity where there is none.
pub(crate) fn max(isa: Isa, x: &[f32]) -> f32 {
    dispatch(isa, Max(x))
}

struct Max<'a>(&'a [f32]);

impl Kernel for Max<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut max = s.splat(f32::NEG_INFINITY);
        for x in self.0.chunks(LANES) {
            // The second operand wins where the first is NaN.
            max = s.max(load(s, x, f32::NEG_INFINITY), max);
        }
        s.reduce_max(max)
    }
}

/// Where `value` first occurs; 0 if it does not.
pub(crate) fn position(x: &[f32], value: f32) -> usize {
    const RUN: usize = 64;
    // Whole runs without an early exit inside are compared many values at a time.
    let holds = |run: &[f32]| run.iter().fold(false, |found, &x| found | (x == value));
    let run = x.chunks(RUN).position(holds).unwrap_or(0) * RUN;
    run + x[run..].iter().position(|&x| x == value).unwrap_or(0)
}

/// The sum of exp(x - shift), as if it were taken in twice the precision of f32.
///
/// Sixteen interleaved sums, each with the sum of its own rounding errors beside it (Knuth's two-sum, exact in any order of
/// magnitudes); their totals are added in f64, in order. A plain f32 sum would lose what is below 6e-8 of the largest term, and
/// with it the whole loss of a token predicted with near certainty.
pub(crate) fn sum_exp(isa: Isa, x: &[f32], shift: f32) -> f64 {
    dispatch(isa, SumExp { x, shift })
}

struct SumExp<'a> {
    x: &'a [f32],
    shift: f32,
}

impl Kernel for SumExp<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let shift = s.splat(self.shift);
        let (mut sum, mut error) = (s.splat(0.0), s.splat(0.0));
        for x in self.x.chunks(LANES) {
            let e = exp(s, s.sub(load(s, x, f32::NEG_INFINITY), shift));
            let next = s.add(sum, e);
            let added = s.sub(next, sum);
            error = s.add(error, s.add(s.sub(sum, s.sub(next, added)), s.sub(e, added)));
            sum = next;
        }
        let (sum, error) = (s.to_array(sum), s.to_array(error));
        sum.iter().zip(error).map(|(&s, e)| f64::from(s) + f64::from(e)).sum()
    }
}

/// The sum in f64: eight interleaved running sums, added as a tree.
pub(crate) fn sum_f64(x: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let mut groups = x.chunks_exact(8);
    for group in &mut groups {
        for (lane, &x) in lanes.iter_mut().zip(group) {
            *lane += f64::from(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(groups.remainder()) {
        *lane += f64::from(x);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

/// The natural logarithm of a positive, normal, finite number; NaN, infinity and 0 as `f64::ln`.
///
/// The C library's may be compiled with fused multiply-adds on one processor and without on another. Here
/// x = 2^e m with m in [sqrt(1/2), sqrt(2)), and ln m = 2 atanh t with t = (m - 1)/(m + 1), |t| <= 0.1716, whose series is cut
/// after t^21: the remainder is under 2^-56 of t.
pub(crate) fn ln(x: f64) -> f64 {
    if !(f64::MIN_POSITIVE..f64::INFINITY).contains(&x) {
        return x.ln();
    }
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i64 - 1023;
    let mut m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    let t = (m - 1.0) / (m + 1.0);
    let square = t * t;
    let series = (1..=10).rev().fold(0.0, |sum, i| (sum + 1.0 / f64::from(2 * i + 1)) * square);
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * t * (1.0 + series)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_isa(f: impl Fn(Isa)) {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).for_each(f);
    }

    #[test]
    fn ln_is_within_two_units_of_the_last_place() {
        for i in 0..20_000 {
            let x = 2f64.powf(f64::from(i) * 0.01 - 60.0) * (1.0 + f64::from(i % 97) * 1e-3);
            let (got, want) = (ln(x), x.ln());
            assert!((got - want).abs() <= 4.0 * f64::EPSILON * want.abs().max(1e-3), "ln {x}: {got} {want}");
        }
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(0.0), f64::NEG_INFINITY);
        assert!(ln(f64::NAN).is_nan());
    }

    #[test]
    fn sum_is_exact_where_it_can_be() {
        let x: Vec<f32> = (0..1003).map(|i| i as f32).collect();
        assert_eq!(sum_f64(&x), 1002.0 * 1003.0 / 2.0);
        assert_eq!(sum_f64(&[]), 0.0);
    }

    #[test]
    fn max_passes_over_nan() {
        every_isa(|isa| {
            let mut x: Vec<f32> = (0..37).map(|i| -(i as f32)).collect();
            // In the lane of the largest value, one comes after it.
            (x[0], x[17]) = (f32::NAN, f32::NAN);
            assert_eq!(max(isa, &x), -1.0);
            assert_eq!(max(isa, &x[..1]), f32::NEG_INFINITY);
            assert_eq!(max(isa, &[]), f32::NEG_INFINITY);
            assert_eq!(max(isa, &[f32::NAN; 20]), f32::NEG_INFINITY);
        });
    }

    #[test]
    fn position_is_the_first() {
        let mut x = vec![0.0; 200];
        (x[70], x[90], x[199]) = (1.0, 1.0, 2.0);
        assert_eq!(
            [position(&x, 1.0), position(&x, 2.0), position(&x, 0.0), position(&x, 3.0), position(&[], 3.0)],
            [70, 199, 0, 0, 0]
        );
    }

    #[test]
    fn exp_at_its_limits() {
        every_isa(|isa| {
            assert_eq!(exp_one(isa, 0.0), 1.0);
            assert_eq!(exp_one(isa, f32::NEG_INFINITY), 0.0);
            assert_eq!(exp_one(isa, -200.0), 0.0);
            assert!(exp_one(isa, f32::NAN).is_nan());
        });
    }

    #[test]
    fn small_terms_of_a_sum_are_not_lost() {
        every_isa(|isa| {
            for (len, large) in [(2, 0), (100, 50), (100, 99), (33, 32)] {
                let mut x = vec![-18.0; len];
                x[large] = 0.0;
                let rest = sum_exp(isa, &x, 0.0) - 1.0;
                let want = (len - 1) as f64 * (-18f64).exp();
                assert!((rest / want - 1.0).abs() < 1e-6, "{rest:e} {want:e}");
            }
            assert!(sum_exp(isa, &[0.0, f32::NAN, 1.0], 0.0).is_nan());
            assert_eq!(sum_exp(isa, &[], 0.0), 0.0);
        });
    }
}
