use super::super::{Accumulation, Accumulator, HOPPER_FRACTION_BITS, Multiplicand, Step};
use super::{Matrix, Random};
use crate::formats::{e4m3_to_f32, e5m2_to_f32};

/// The alignment, the cut and the sum as [`HOPPER_FRACTION_BITS`] describes them, in f64 and for one element.
fn hopper_element(a: &[u8], b: &[u8], a_ty: Multiplicand, b_ty: Multiplicand, c: f32) -> f32 {
    let factor = |ty: Multiplicand, p: u8| {
        let value = f64::from(if ty == Multiplicand::E5m2 { e5m2_to_f32(p) } else { e4m3_to_f32(p) });
        let smallest = if ty == Multiplicand::E5m2 { -14 } else { -6 };
        (value, (value.abs().log2().floor() as i32).max(smallest))
    };
    let mut terms: Vec<(f64, i32)> = a
        .iter()
        .zip(b)
        .map(|(&x, &y)| {
            let ((x, ex), (y, ey)) = (factor(a_ty, x), factor(b_ty, y));
            (x * y, ex + ey)
        })
        .filter(|term| term.0 != 0.0)
        .collect();
    if c != 0.0 {
        terms.push((f64::from(c), (f64::from(c).abs().log2().floor() as i32).max(-126)));
    }
    let Some(largest) = terms.iter().map(|t| t.1).max() else { return 0.0 };
    let unit = 2f64.powi(largest - HOPPER_FRACTION_BITS as i32);
    let sum: f64 = terms.iter().map(|t| (t.0 / unit).trunc()).sum::<f64>() * unit;
    if sum == 0.0 {
        return 0.0;
    }
    let last = 2f64.powi(sum.abs().log2().floor() as i32 - HOPPER_FRACTION_BITS as i32);
    ((sum / last).trunc() * last) as f32
}

fn step(m: usize, n: usize, a: Multiplicand, b: Multiplicand, accumulation: Accumulation) -> Step {
    Step { m, n, row_bytes: 32, a, b, d: Accumulator::F32, read_d: true, negate: false, saturate: false, accumulation }
}

#[test]
fn hopper_against_its_description() {
    let mut random = Random::new(11);
    let types = [Multiplicand::E4m3, Multiplicand::E5m2];
    for (a_ty, b_ty) in types.iter().flat_map(|&a| types.map(|b| (a, b))) {
        let (m, n) = (8, 24);
        // Any finite pattern, so that exponents spread over the formats' ranges.
        let mut bytes = |count: usize, ty: Multiplicand| -> Vec<u8> {
            let finite = |p: u8| p & 0x7f < if ty == Multiplicand::E5m2 { 0x7c } else { 0x7f };
            (0..count).map(|_| std::iter::repeat_with(|| random.next() as u8).find(|&p| finite(p)).unwrap()).collect()
        };
        let (a, b) = (bytes(m * 32, a_ty), bytes(n * 32, b_ty));
        let mut d: Vec<u32> = (0..m * n)
            .map(|i| if i % 5 == 0 { 0 } else { ((random.next() as i32 as f32) * 2f32.powi(i as i32 % 40 - 50)).to_bits() })
            .collect();
        let before = d.clone();
        step(m, n, a_ty, b_ty, Accumulation::Hopper).run(&a, &b, &mut d);
        for (i, (&got, &c)) in d.iter().zip(&before).enumerate() {
            let (row, column) = (i / n, i % n);
            let want = hopper_element(&a[row * 32..][..32], &b[column * 32..][..32], a_ty, b_ty, f32::from_bits(c));
            assert_eq!(f32::from_bits(got), want, "{a_ty:?} {b_ty:?} element {i}");
        }
    }
}

/// A product 2^14 times smaller than the accumulator is lost whole, one 2^13 times smaller is kept; negative ones are cut toward zero.
#[test]
fn hopper_truncates() {
    let one_product = |x: u8, y: u8, c: f32| {
        let (mut a, mut b) = ([0; 4 * 32], [0; 8 * 32]);
        (a[0], b[0]) = (x, y);
        let mut d = [c.to_bits(); 4 * 8];
        step(4, 8, Multiplicand::E4m3, Multiplicand::E4m3, Accumulation::Hopper).run(&a, &b, &mut d);
        f32::from_bits(d[0])
    };
    let one = 0x38; // 1.0
    assert_eq!(one_product(one, one, 8192.0), 8193.0);
    assert_eq!(one_product(one, one, 16384.0), 16384.0);
    assert_eq!(one_product(one | 0x80, one, 16384.0), 16384.0);
    assert_eq!(one_product(0x3c, one, 8192.0), 8193.0); // 1.5 is cut to 1
    assert_eq!(one_product(0xbc, one, 8192.0), 8191.0); // and -1.5 to -1
    assert_eq!(one_product(0x3c, one, 0.0), 1.5);
    assert_eq!(one_product(0, 0, 0.0), 0.0);
    // The smallest products of all, and an accumulator that loses what is below 13 fraction bits even when nothing is added.
    assert_eq!(one_product(0x01, 0x01, 0.0), 2f32.powi(-18));
    assert_eq!(one_product(0, 0, 1.0 + 2f32.powi(-14)), 1.0);
    assert_eq!(one_product(0, 0, 1.0 + 2f32.powi(-13)), 1.0 + 2f32.powi(-13));
    assert_eq!(one_product(0, 0, f32::MIN_POSITIVE / 2.0), f32::MIN_POSITIVE / 2.0);
}

/// What two-level accumulation is for: over a long sum the kept bits run out, while exact sums stay close.
#[test]
fn hopper_loses_precision_over_a_long_sum() {
    let mut random = Random::new(3);
    let (mut exact, mut hopper, mut reference) = (vec![0u32; 4 * 8], vec![0u32; 4 * 8], vec![0f64; 4 * 8]);
    for _ in 0..128 {
        let a = Matrix::random(Multiplicand::E4m3, 4, 32, &mut random);
        let b = Matrix::random(Multiplicand::E4m3, 8, 32, &mut random);
        // All positive: the sum grows.
        let bytes = |m: &Matrix| -> Vec<u8> { m.patterns.iter().map(|p| *p as u8 & 0x7f).collect() };
        step(4, 8, Multiplicand::E4m3, Multiplicand::E4m3, Accumulation::Exact).run(&bytes(&a), &bytes(&b), &mut exact);
        step(4, 8, Multiplicand::E4m3, Multiplicand::E4m3, Accumulation::Hopper).run(&bytes(&a), &bytes(&b), &mut hopper);
        for (i, r) in reference.iter_mut().enumerate() {
            *r += (0..32).map(|k| (a.value(i / 8, k) * b.value(i % 8, k)).abs()).sum::<f64>();
        }
    }
    for i in 0..32 {
        let error = |d: &[u32]| (f64::from(f32::from_bits(d[i])) / reference[i] - 1.0).abs();
        assert!(error(&exact) < 1e-5, "{}", error(&exact));
        assert!(error(&hopper) > 1e-3 && error(&hopper) < 0.1, "{}", error(&hopper));
    }
}
