//! The linear layer: what each product computes, how far it is from exact, and what is refused.

use fp8_gemm::linear::{Activation, ActivationKind, Weight, dgrad, dgrad_grouped, fprop, fprop_grouped, wgrad, wgrad_grouped};
use fp8_gemm::quantize::{quantize_1x128, quantize_128x1, quantize_128x128, retile_128x1, swiglu_quantize_1x128, transpose};
use fp8_gemm::{Block, BlockScaled, E5m6Rows, Error, Precision, ScalePolicy, reference};
use proptest::prelude::*;
use v3_numerics::cpu::{Isa, with_isa};
use v3_numerics::{MatMut, MatRef, bf16};

fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len).map(|_| (next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

fn mat(x: &[f32], rows: usize, cols: usize) -> MatRef<'_, f32> {
    MatRef::new(x, rows, cols).unwrap()
}

fn transposed<T: Copy>(x: &[T], rows: usize, cols: usize) -> Vec<T> {
    (0..cols).flat_map(|j| (0..rows).map(move |i| x[i * cols + j])).collect()
}

/// What an operand is rounded to, in f64, for fp8 with the given blocks.
fn rounded(x: &[f32], rows: usize, cols: usize, precision: Precision, block: Block, policy: ScalePolicy) -> Vec<f64> {
    match precision {
        Precision::F32 => x.iter().map(|x| f64::from(*x)).collect(),
        Precision::Bf16 => x.iter().map(|x| f64::from(bf16::from_f32(*x).to_f32())).collect(),
        Precision::Fp8 => {
            let (codes, scales) = reference::quantize(x, rows, cols, block, policy);
            reference::dequantize(&codes, &scales, rows, cols, block)
        }
    }
}

fn assert_bits(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert_eq!(g.to_bits(), w.to_bits(), "{what}: element {i} is {g:e}, expected {w:e}");
    }
}

/// Every element within the error of a sum of `k` f32 products, `(k + 4) 2^-24 sum |a b|`: each of the `k` additions rounds a partial
/// sum that is no larger than the sum of magnitudes, and the scales, their product, the promotion and the store add a few more.
fn assert_near(what: &str, got: &[f32], a: &[f64], b: &[f64], m: usize, n: usize, k: usize) {
    let want = reference::matmul(a, b, m, n, k);
    let abs = |x: &[f64]| -> Vec<f64> { x.iter().map(|x| x.abs()).collect() };
    let size = reference::matmul(&abs(a), &abs(b), m, n, k);
    for i in 0..m * n {
        let bound = (k as f64 + 4.0) * 2f64.powi(-24) * size[i];
        let error = (f64::from(got[i]) - want[i]).abs();
        assert!(error <= bound, "{what}: element {i} is {:e}, expected {:e}, off by {error:e} > {bound:e}", got[i], want[i]);
    }
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1), Just(13), Just(33), Just(128), Just(131), 1..70usize]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_three_products_are_near_exact(m in prop_oneof![Just(0usize), sizes()], n in sizes(), k in sizes(), seed: u64) {
        let (x, w, dy) = (values(m * k, seed), values(n * k, seed ^ 1), values(m * n, seed ^ 2));
        for precision in Precision::ALL {
            let what = |product: &str| format!("{product} {precision} m {m} n {n} k {k}");
            let weight = Weight::pack(&w, n, k, precision).unwrap();
            let input = Activation::new(&x, m, k, precision).unwrap();
            let xr = rounded(&x, m, k, precision, Block::Row128, ScalePolicy::PowerOfTwo);
            let wr = rounded(&w, n, k, precision, Block::Square128, ScalePolicy::F32);
            let dyr = rounded(&dy, m, n, precision, Block::Row128, ScalePolicy::F32);

            let mut y = vec![f32::NAN; m * n];
            fprop(&input, &weight, MatMut::new(&mut y, m, n).unwrap()).unwrap();
            assert_near(&what("fprop"), &y, &xr, &transposed(&wr, n, k), m, n, k);

            let mut dx = vec![f32::NAN; m * k];
            dgrad(mat(&dy, m, n), &weight, MatMut::new(&mut dx, m, k).unwrap(), false).unwrap();
            assert_near(&what("dgrad"), &dx, &dyr, &wr, m, k, n);
            let mut twice = dx.clone();
            dgrad(mat(&dy, m, n), &weight, MatMut::new(&mut twice, m, k).unwrap(), true).unwrap();
            assert_bits(&what("dgrad added"), &twice, &dx.iter().map(|x| x + x).collect::<Vec<_>>());

            // Along tokens, from what was kept: in FP8 the kept values are tiled anew.
            let kept: Vec<f32> = xr.iter().map(|x| *x as f32).collect();
            let xt = rounded(&kept, m, k, precision, Block::Col128, ScalePolicy::PowerOfTwo);
            let dyt = rounded(&dy, m, n, precision, Block::Col128, ScalePolicy::F32);
            let mut dw = vec![0.0; n * k];
            wgrad(&input, mat(&dy, m, n), &mut dw, precision).unwrap();
            assert_near(&what("wgrad"), &dw, &transposed(&dyt, m, n), &xt, n, k, m);
            let mut twice = dw.clone();
            wgrad(&input, mat(&dy, m, n), &mut twice, precision).unwrap();
            assert_bits(&what("wgrad added"), &twice, &dw.iter().map(|x| x + x).collect::<Vec<_>>());
        }
    }

    #[test]
    fn experts_are_linear_layers(groups in prop::collection::vec(prop_oneof![Just(0usize), Just(1), Just(128), Just(129), 0..40usize], 0..6),
                                 n in sizes(), k in sizes(), seed: u64) {
        let offsets: Vec<usize> = std::iter::once(0).chain(groups.iter().scan(0, |sum, s| { *sum += s; Some(*sum) })).collect();
        let m = *offsets.last().unwrap();
        let (x, dy) = (values(m * k, seed), values(m * n, seed ^ 2));
        for precision in Precision::ALL {
            let weights: Vec<Weight> =
                (0..groups.len()).map(|g| Weight::pack(&values(n * k, seed ^ g as u64), n, k, precision).unwrap()).collect();
            let input = Activation::new(&x, m, k, precision).unwrap();
            let (mut y, mut dx) = (vec![f32::NAN; m * n], vec![f32::NAN; m * k]);
            let mut dw = values(groups.len() * n * k, seed ^ 9);
            let (mut want_y, mut want_dx, mut want_dw) = (y.clone(), dx.clone(), dw.clone());
            fprop_grouped(&input, &offsets, &weights, MatMut::new(&mut y, m, n).unwrap()).unwrap();
            dgrad_grouped(mat(&dy, m, n), &offsets, &weights, MatMut::new(&mut dx, m, k).unwrap(), false).unwrap();
            wgrad_grouped(&input, &offsets, mat(&dy, m, n), &mut dw, precision).unwrap();
            for (g, weight) in weights.iter().enumerate() {
                let (first, end) = (offsets[g], offsets[g + 1]);
                let input = Activation::new(&x[first * k..end * k], end - first, k, precision).unwrap();
                let dy = mat(&dy[first * n..end * n], end - first, n);
                fprop(&input, weight, MatMut::new(&mut want_y[first * n..end * n], end - first, n).unwrap()).unwrap();
                dgrad(dy, weight, MatMut::new(&mut want_dx[first * k..end * k], end - first, k).unwrap(), false).unwrap();
                wgrad(&input, dy, &mut want_dw[g * n * k..(g + 1) * n * k], precision).unwrap();
            }
            assert_bits("fprop", &y, &want_y);
            assert_bits("dgrad", &dx, &want_dx);
            assert_bits("wgrad", &dw, &want_dw);
        }
    }

    #[test]
    fn what_is_kept_serves_the_weight_gradient(m in sizes(), n in sizes(), k in sizes(), seed: u64) {
        let (x, dy) = (values(m * k, seed), values(m * n, seed ^ 2));
        let from = Activation::new(&x, m, k, Precision::F32).unwrap();
        let kept = from.to_e5m6();
        prop_assert_eq!(kept.kind(), ActivationKind::E5m6);
        prop_assert_eq!(kept.bytes(), m * k.div_ceil(2) * 3 + 4 * m * k.div_ceil(128));
        let decoded = E5m6Rows::encode(mat(&x, m, k)).decode();
        prop_assert_eq!(&kept.to_f32(), &decoded);
        // Any kept format with any precision is the same as the values it holds.
        for precision in Precision::ALL {
            for input in [kept.clone(), Activation::new(&x, m, k, Precision::Bf16).unwrap(), Activation::new(&x, m, k, Precision::Fp8).unwrap()] {
                let mut dw = vec![0.0; n * k];
                wgrad(&input, mat(&dy, m, n), &mut dw, precision).unwrap();
                let plain = Activation::from_vec(input.to_f32(), m, k, Precision::F32).unwrap();
                let mut want = vec![0.0; n * k];
                wgrad(&plain, mat(&dy, m, n), &mut want, precision).unwrap();
                assert_bits(&format!("{:?} {precision}", input.kind()), &dw, &want);
            }
        }
    }

    #[test]
    fn strided_views_are_read_in_place(m in sizes(), n in sizes(), k in sizes(), seed: u64) {
        let (wide_x, wide_dy) = (values(m * (k + 5), seed), values(m * (n + 3), seed ^ 1));
        let w = values(n * k, seed ^ 2);
        let x = MatRef::with_stride(&wide_x[2..], m, k, k + 5).unwrap();
        let dy = MatRef::with_stride(&wide_dy[1..], m, n, n + 3).unwrap();
        let (x_copy, dy_copy) = (x.to_vec(), dy.to_vec());
        for precision in Precision::ALL {
            let weight = Weight::pack(&w, n, k, precision).unwrap();
            let wt = transposed(&w, n, k);
            let from_transpose = Weight::pack_mat(mat(&wt, k, n).t(), precision, true).unwrap();
            let products = |x: &Activation, dy: MatRef<'_, f32>, weight: &Weight| {
                let (mut y, mut dx, mut dw) = (vec![f32::NAN; m * n], vec![f32::NAN; m * k], vec![0.0; n * k]);
                fprop(x, weight, MatMut::new(&mut y, m, n).unwrap()).unwrap();
                dgrad(dy, weight, MatMut::new(&mut dx, m, k).unwrap(), false).unwrap();
                wgrad(x, dy, &mut dw, precision).unwrap();
                [y, dx, dw].concat()
            };
            let want = products(&Activation::new(&x_copy, m, k, precision).unwrap(), mat(&dy_copy, m, n), &weight);
            assert_bits("strided", &products(&Activation::from_mat(x, precision), dy, &from_transpose), &want);
            // And turned: columns of the transpose are rows.
            let (xt, dyt) = (transposed(&x_copy, m, k), transposed(&dy_copy, m, n));
            let turned = products(&Activation::from_mat(mat(&xt, k, m).t(), precision), mat(&dyt, n, m).t(), &weight);
            assert_bits("turned", &turned, &want);
        }
    }
}

/// All products of a linear layer, one after the other.
fn all_products(sizes: &[usize], n: usize, k: usize, precision: Precision) -> Vec<f32> {
    let offsets: Vec<usize> = (0..=sizes.len()).map(|g| sizes[..g].iter().sum()).collect();
    let m = offsets[sizes.len()];
    let (x, dy) = (values(m * k, 1), values(m * n, 2));
    let weights: Vec<Weight> =
        (0..sizes.len()).map(|g| Weight::pack(&values(n * k, 10 + g as u64), n, k, precision).unwrap()).collect();
    let input = Activation::new(&x, m, k, precision).unwrap();
    let (mut y, mut dx, mut dw) = (vec![f32::NAN; m * n], vec![f32::NAN; m * k], vec![0.0; sizes.len() * n * k]);
    fprop_grouped(&input, &offsets, &weights, MatMut::new(&mut y, m, n).unwrap()).unwrap();
    dgrad_grouped(mat(&dy, m, n), &offsets, &weights, MatMut::new(&mut dx, m, k).unwrap(), false).unwrap();
    wgrad_grouped(&input, &offsets, mat(&dy, m, n), &mut dw, precision).unwrap();
    [y, dx, dw].concat()
}

/// Large enough to be cut into tasks, with tiles, panels and blocks that are not whole.
#[test]
fn instruction_sets_and_threads_change_no_bit() {
    let (sizes, n, k) = ([130, 0, 1, 260, 77], 161, 230);
    for precision in Precision::ALL {
        let want = all_products(&sizes, n, k, precision);
        for isa in Isa::ALL {
            match with_isa(isa, || all_products(&sizes, n, k, precision)) {
                Ok(got) => assert_bits(&format!("{precision} on {isa}"), &got, &want),
                Err(_) => eprintln!("skipped, not passed: {isa} (this processor lacks it)"),
            }
        }
        #[cfg(feature = "rayon")]
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let got = pool.install(|| all_products(&sizes, n, k, precision));
            assert_bits(&format!("{precision} on {threads} threads"), &got, &want);
        }
    }
}

/// The weight gradient in FP8 has the bits of the public quantisers and the promoted product, though no code of it is stored.
#[test]
fn weight_gradient_is_quantised_along_tokens() {
    for (m, n, k) in [(1, 1, 1), (127, 33, 129), (128, 200, 140), (300, 40, 260)] {
        let (mut x, dy) = (values(m * k, 1), values(m * n, 2));
        // The largest magnitude of a column may be infinite, or hide behind a NaN.
        x[m * k / 2] = f32::INFINITY;
        for (x, name) in [(values(m * k, 3), "finite"), (x, "infinite")] {
            let input = Activation::new(&x, m, k, Precision::Fp8).unwrap();
            let mut dw = vec![0.0; n * k];
            wgrad(&input, mat(&dy, m, n), &mut dw, Precision::Fp8).unwrap();
            let dyq = transpose(&quantize_128x1(mat(&dy, m, n), ScalePolicy::F32));
            let xq = retile_128x1(&quantize_1x128(mat(&x, m, k), ScalePolicy::PowerOfTwo), ScalePolicy::PowerOfTwo);
            let scaled = |q| -> reference::Scaled<'_> {
                let q: &BlockScaled = q;
                reference::Scaled { codes: q.data(), scales: q.scales(), block: q.block() }
            };
            let want = reference::matmul_promoted(scaled(&dyq), scaled(&xq), n, k, m);
            // Added to +0, which turns a -0 into +0.
            assert_bits(name, &dw, &want.iter().map(|x| 0.0 + x).collect::<Vec<_>>());
        }
    }
}

/// Rounding to E4M3 agrees with another implementation of the format.
#[test]
fn codes_agree_with_float8() {
    let mut x: Vec<f32> =
        values(127 * 16, 3).into_iter().enumerate().map(|(i, x)| x * 448.0 * 0.5f32.powi(i as i32 % 24)).collect();
    // 448 in each block makes the scale 1.
    x = x.chunks(127).flat_map(|block| block.iter().copied().chain([448.0])).collect();
    let q = quantize_1x128(mat(&x, 16, 128), ScalePolicy::F32);
    assert_eq!(q.scales(), [1.0; 16]);
    for (x, code) in x.iter().zip(q.data()) {
        assert_eq!(code.0, float8::F8E4M3::from_f32(*x).to_bits(), "{x}");
    }
}

#[test]
fn bytes_are_counted() {
    let (n, k) = (256, 384);
    let w = values(n * k, 1);
    // A code a weight, twice; a scale for 32 columns and 128 of k, twice.
    let fp8 = Weight::pack(&w, n, k, Precision::Fp8).unwrap();
    assert_eq!(fp8.bytes(), 2 * (n * k + 4 * n * k / 128));
    let bf16 = Weight::pack(&w, n, k, Precision::Bf16).unwrap();
    assert_eq!(bf16.bytes(), 2 * 2 * n * k);
    assert_eq!(Weight::pack_inference(&w, n, k, Precision::Bf16).unwrap().bytes(), 2 * n * k);
    assert_eq!(Weight::pack(&w, n, k, Precision::F32).unwrap().bytes(), 2 * 4 * n * k);
    assert_eq!(Activation::new(&w, n, k, Precision::F32).unwrap().bytes(), 4 * n * k);
    assert_eq!(Activation::new(&w, n, k, Precision::Bf16).unwrap().bytes(), 2 * n * k);
    assert_eq!(Activation::new(&w, n, k, Precision::Fp8).unwrap().bytes(), n * k + 4 * n * k / 128);
}

#[test]
fn what_does_not_fit_is_refused() {
    let (m, n, k) = (4, 6, 8);
    let (x, w) = (values(m * k, 1), values(n * k, 2));
    let dy = values(m * n, 3);
    let mut y = vec![0.0; m * n];
    let bf = Weight::pack(&w, n, k, Precision::Bf16).unwrap();
    let fp8 = Activation::new(&x, m, k, Precision::Fp8).unwrap();
    // Precisions of the two sides.
    assert!(matches!(fprop(&fp8, &bf, MatMut::new(&mut y, m, n).unwrap()), Err(Error::Unsupported { .. })));
    // E5M6 is for keeping only.
    assert!(matches!(fprop(&fp8.to_e5m6(), &bf, MatMut::new(&mut y, m, n).unwrap()), Err(Error::Unsupported { .. })));
    // Shapes.
    assert!(matches!(Weight::pack(&w, n, k + 1, Precision::Fp8), Err(Error::Shape { .. })));
    assert!(matches!(Activation::new(&x, usize::MAX, 2, Precision::Bf16), Err(Error::Shape { .. })));
    assert!(matches!(Activation::from_vec(x.clone(), m, k - 1, Precision::F32), Err(Error::Shape { .. })));
    assert!(matches!(dgrad(mat(&x, m, k), &bf, MatMut::new(&mut y, m, n).unwrap(), false), Err(Error::Shape { .. })));
    let mut dw = vec![7.0; n * k];
    assert!(matches!(wgrad(&fp8, mat(&dy, m, n), &mut dw[1..], Precision::Fp8), Err(Error::Shape { .. })));
    assert!(matches!(wgrad(&fp8, mat(&x, m, k).row_range(1..3).unwrap(), &mut dw, Precision::Fp8), Err(Error::Shape { .. })));
    for offsets in [vec![], vec![0], vec![0, 3], vec![0, 3, 2, 4]] {
        let mut dw = vec![7.0; offsets.len().saturating_sub(1) * n * k];
        assert!(matches!(wgrad_grouped(&fp8, &offsets, mat(&dy, m, n), &mut dw, Precision::Fp8), Err(Error::Shape { .. })));
        assert!(dw.iter().all(|x| *x == 7.0), "a refused call has written");
    }
    // What was not packed.
    let inference = Weight::pack_inference(&w, n, k, Precision::Bf16).unwrap();
    let mut dx = vec![0.0; m * k];
    assert!(matches!(
        dgrad(mat(&dy, m, n), &inference, MatMut::new(&mut dx, m, k).unwrap(), false),
        Err(Error::Unsupported { .. })
    ));
    // Blocks.
    let rows = quantize_1x128(mat(&w, n, k), ScalePolicy::F32);
    assert!(matches!(Weight::from_block_scaled(&rows, true), Err(Error::Unsupported { .. })));
    let square = quantize_128x128(mat(&x, m, k), ScalePolicy::F32);
    assert!(matches!(Activation::from_block_scaled(square), Err(Error::Unsupported { .. })));
    assert!(matches!(
        Activation::from_block_scaled(quantize_128x1(mat(&x, m, k), ScalePolicy::F32)),
        Err(Error::Unsupported { .. })
    ));
    assert!("fp16".parse::<Precision>().is_err());
    assert_eq!(Precision::ALL.map(|p| p.to_string().parse()), Precision::ALL.map(Ok));
}

/// Weights that are FP8 already are used as they are, and so is a fused SwiGLU.
#[test]
fn quantised_operands_are_taken_as_they_are() {
    let (m, n, k) = (5, 130, 140);
    let (gate_up, w) = (values(m * 2 * k, 1), values(n * k, 2));
    let (codes, scales) = quantize_128x128(mat(&w, n, k), ScalePolicy::PowerOfTwo).into_parts();
    let stored = BlockScaled::new(codes, scales, n, k, Block::Square128).unwrap();
    let weight = Weight::from_block_scaled(&stored, false).unwrap();
    let fused = swiglu_quantize_1x128(mat(&gate_up, m, 2 * k), ScalePolicy::PowerOfTwo).unwrap();
    let xr = fused.dequantize().iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    let wr = stored.dequantize().iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    let input = Activation::from_block_scaled(fused).unwrap();
    let mut y = vec![f32::NAN; m * n];
    fprop(&input, &weight, MatMut::new(&mut y, m, n).unwrap()).unwrap();
    assert_near("swiglu", &y, &xr, &transposed(&wr, n, k), m, n, k);
}

/// NaN and infinities are not swallowed.
#[test]
fn what_is_not_finite_stays_visible() {
    let (m, n, k) = (3, 40, 200);
    let w = values(n * k, 2);
    for precision in Precision::ALL {
        let mut x = values(m * k, 1);
        x[k + 7] = f32::NAN;
        let weight = Weight::pack(&w, n, k, precision).unwrap();
        let mut y = vec![0.0; m * n];
        fprop(&Activation::new(&x, m, k, precision).unwrap(), &weight, MatMut::new(&mut y, m, n).unwrap()).unwrap();
        assert!(y[..n].iter().chain(&y[2 * n..]).all(|y| y.is_finite()), "{precision}: other rows are unharmed");
        assert!(y[n..2 * n].iter().all(|y| y.is_nan()), "{precision}: the row of a NaN is NaN");
    }
}
