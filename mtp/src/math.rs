//! Elementary functions and sums with the same bits on every processor.

use v3_numerics::ops;

/// Values that are exponentiated at a time, through a buffer on the stack.
const RUN: usize = 512;

/// `x = exp(x - shift)` for every value.
pub(crate) fn exp_shifted(x: &mut [f32], shift: f32) {
    let mut shifted = [0.0f32; RUN];
    for x in x.chunks_mut(RUN) {
        let shifted = &mut shifted[..x.len()];
        shifted.iter_mut().zip(&*x).for_each(|(s, x)| *s = x - shift);
        ops::exp(shifted, x).expect("both have one length");
    }
}

/// exp of one value, as [`exp_shifted`] has it.
pub(crate) fn exp(x: f32) -> f32 {
    let mut x = [x];
    exp_shifted(&mut x, 0.0);
    x[0]
}

/// The largest value; NaN is passed over; minus infinity where there is none.
pub(crate) fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 16];
    let mut groups = x.chunks_exact(16);
    for group in &mut groups {
        for (lane, &x) in lanes.iter_mut().zip(group) {
            *lane = larger(*lane, x);
        }
    }
    lanes.iter().chain(groups.remainder()).fold(f32::NEG_INFINITY, |m, &x| larger(m, x))
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
        let mut x: Vec<f32> = (0..37).map(|i| -(i as f32)).collect();
        x[0] = f32::NAN;
        assert_eq!(max(&x), -1.0);
        assert_eq!(max(&[]), f32::NEG_INFINITY);
        assert_eq!(max(&[f32::NAN; 20]), f32::NEG_INFINITY);
    }

    #[test]
    fn exp_at_its_limits() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-200.0), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }
}
