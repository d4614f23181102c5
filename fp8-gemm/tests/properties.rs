//! Every operation against the obvious reference, on every instruction set of this processor.
//!
//! Quantisers and products must have the reference's bits: the order of summation is part of what they promise.

use fp8_gemm::gemm::{gemm, gemm_grouped, gemm_k_grouped, gemm_masked, gemm_nn, gemm_nt, gemm_packed, gemm_tn};
use fp8_gemm::quantize::{self, quantize_1x128, quantize_1x128_transposed, quantize_128x1, quantize_128x128, retile_128x1};
use fp8_gemm::{Block, BlockScaled, E5m6Rows, Error, Operand, Packed, ScalePolicy, reference};
use proptest::prelude::*;
use v3_numerics::cpu::{Isa, with_isa};
use v3_numerics::{E4M3, MatMut, MatRef, bf16};

/// Runs `f` on every instruction set there is, and names those that are not.
fn on_every_isa(f: impl Fn(Isa)) {
    for isa in Isa::ALL {
        if with_isa(isa, || f(isa)).is_err() {
            eprintln!("skipped, not passed: {isa} (this processor lacks it)");
        }
    }
}

/// Reproducible values of mixed magnitude: most of order 1, some large, some tiny, some zero.
fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len)
        .map(|_| {
            let unit = (next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            match next() % 16 {
                0 => unit * 300.0,
                1 => unit * 1e-4,
                2 => 0.0,
                _ => unit,
            }
        })
        .collect()
}

fn mat(x: &[f32], rows: usize, cols: usize) -> MatRef<'_, f32> {
    MatRef::new(x, rows, cols).unwrap()
}

fn transposed<T: Copy>(x: &[T], rows: usize, cols: usize) -> Vec<T> {
    (0..cols).flat_map(|j| (0..rows).map(move |i| x[i * cols + j])).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn assert_bits(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert_eq!(g.to_bits(), w.to_bits(), "{what}: element {i} is {g:e}, expected {w:e}");
    }
}

fn policies() -> impl Strategy<Value = ScalePolicy> {
    prop_oneof![Just(ScalePolicy::F32), Just(ScalePolicy::PowerOfTwo), Just(ScalePolicy::TransformerEngine)]
}

/// Sizes around everything that blocks: tiles of rows (6, 12), panels (32), scale blocks (128), chunks of rows (192), of columns and of k (512).
fn rows() -> impl Strategy<Value = usize> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(5),
        Just(7),
        Just(11),
        Just(12),
        Just(13),
        Just(47),
        Just(127),
        Just(191),
        Just(193),
        1..40usize
    ]
}
fn cols() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), Just(1), Just(31), Just(32), Just(33), Just(61), Just(64), Just(129), Just(513), 1..140usize]
}
fn depth() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), Just(1), Just(2), Just(97), Just(127), Just(128), Just(129), Just(255), Just(257), Just(511), Just(513)]
}

fn scaled(x: &BlockScaled) -> reference::Scaled<'_> {
    reference::Scaled { codes: x.data(), scales: x.scales(), block: x.block() }
}

fn assert_same(what: &str, got: &BlockScaled, want: &(Vec<E4M3>, Vec<f32>)) {
    assert_bits(&format!("{what}: scales"), got.scales(), &want.1);
    for (i, (g, w)) in got.data().iter().zip(&want.0).enumerate() {
        assert_eq!(g.0, w.0, "{what}: code {i} is {g:?}, expected {w:?}");
    }
}

/// The blocking around the kernels costs nothing here, the reference does: it is what limits the number of cases.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn quantisers_have_the_bits_of_the_reference(rows in rows(), cols in cols(), policy in policies(), seed: u64, odd in 0..4u8) {
        let mut x = values(rows * cols, seed);
        // Values that a sum would not survive: they must stay in their block.
        if let Some(at) = (!x.is_empty()).then(|| seed as usize % x.len()) {
            match odd {
                0 => x[at] = f32::NAN,
                1 => x[at] = f32::NEG_INFINITY,
                2 => x[at] = 1e-40,
                _ => x[at] = f32::MAX,
            }
        }
        let want = |block| reference::quantize(&x, rows, cols, block, policy);
        let (row, col, square) = (want(Block::Row128), want(Block::Col128), want(Block::Square128));
        let xt = transposed(&x, rows, cols);
        on_every_isa(|isa| {
            assert_same(&format!("1x128 {isa}"), &quantize_1x128(mat(&x, rows, cols), policy), &row);
            assert_same(&format!("128x1 {isa}"), &quantize_128x1(mat(&x, rows, cols), policy), &col);
            assert_same(&format!("128x128 {isa}"), &quantize_128x128(mat(&x, rows, cols), policy), &square);
            // The same through strided views.
            assert_same(&format!("1x128 of a transpose {isa}"), &quantize_1x128(mat(&xt, cols, rows).t(), policy), &row);
            assert_same(&format!("128x1 of a transpose {isa}"), &quantize_128x1(mat(&xt, cols, rows).t(), policy), &col);
            assert_same(&format!("128x128 of a transpose {isa}"), &quantize_128x128(mat(&xt, cols, rows).t(), policy), &square);
            let turned = quantize_1x128_transposed(mat(&x, rows, cols), policy);
            assert_eq!((turned.rows(), turned.cols(), turned.block()), (cols, rows, Block::Row128));
            assert_same(&format!("transposed {isa}"), &turned, &reference::quantize(&xt, cols, rows, Block::Row128, policy));
        });
    }

    #[test]
    fn quantised_values_are_within_half_a_step(rows in rows(), cols in cols(), policy in policies(), seed: u64) {
        let x = values(rows * cols, seed);
        for block in [Block::Row128, Block::Col128, Block::Square128] {
            let (codes, scales) = reference::quantize(&x, rows, cols, block, policy);
            let values = reference::dequantize(&codes, &scales, rows, cols, block);
            let q = BlockScaled::new(codes, scales.clone(), rows, cols, block).unwrap();
            for (i, (x, v)) in x.iter().zip(&values).enumerate() {
                let (si, sj) = block.scale_index(i / cols, i % cols);
                let scale = f64::from(scales[si * block.scale_shape(rows, cols).1 + sj]);
                // Half a unit of 3 bits is 1/16 of the value, half a subnormal step 2^-10 of the scale; the reciprocal, the
                // product and, for the fixed policies, the scale itself are each off by at most 2^-24.
                let bound = (f64::from(x.abs()) / 16.0).max(scale / 1024.0) * (1.0 + 1e-6) + f64::from(x.abs()) * 4.0 * f64::from(f32::EPSILON);
                prop_assert!((f64::from(*x) - v).abs() <= bound, "{block:?} {i}: {x:e} became {v:e}, scale {scale:e}");
            }
            on_every_isa(|isa| {
                let got = q.dequantize();
                let want: Vec<f32> = values.iter().map(|v| *v as f32).collect();
                assert_bits(&format!("dequantised {isa} {block:?}"), &got, &want);
            });
        }
    }

    #[test]
    fn power_of_two_scales_are_exact(rows in 1..4usize, cols in cols(), seed: u64) {
        let x = values(rows * cols, seed);
        let q = quantize_1x128(mat(&x, rows, cols), ScalePolicy::PowerOfTwo);
        let bytes = q.scales_ue8m0().unwrap();
        let back = BlockScaled::from_ue8m0(q.data().to_vec(), &bytes, rows, cols, Block::Row128).unwrap();
        prop_assert_eq!(&back, &q);
        // Re-tiling what is tiled already changes nothing: values and largest values are the same.
        let along = quantize_128x1(mat(&x, rows, cols), ScalePolicy::PowerOfTwo);
        let again = retile_128x1(&along, ScalePolicy::PowerOfTwo);
        let worth = |q: &BlockScaled| q.dequantize();
        prop_assert_eq!(bits(&worth(&again)), bits(&worth(&along)));
    }

    #[test]
    fn re_tiling_is_dequantising_and_quantising(rows in rows(), cols in cols(), policy in policies(), seed: u64) {
        let x = values(rows * cols, seed);
        let q = quantize_1x128(mat(&x, rows, cols), policy);
        let want = reference::quantize(&q.dequantize(), rows, cols, Block::Col128, policy);
        on_every_isa(|isa| assert_same(&format!("re-tiled {isa}"), &retile_128x1(&q, policy), &want));
    }

    #[test]
    fn swiglu_fused_equals_swiglu_then_quantise(tokens in rows(), inter in cols(), policy in policies(), seed: u64) {
        let gate_up = values(tokens * 2 * inter, seed);
        let mut plain = vec![f32::NAN; tokens * inter];
        v3_numerics::ops::swiglu(&gate_up, inter, &mut plain).unwrap();
        let want = reference::quantize(&plain, tokens, inter, Block::Row128, policy);
        on_every_isa(|isa| {
            let fused = quantize::swiglu_quantize_1x128(mat(&gate_up, tokens, 2 * inter), policy).unwrap();
            assert_same(&format!("swiglu {isa}"), &fused, &want);
        });
        // And it is SwiGLU: 1e-6 relative is far above the error of an f32 exponential, 1e-30 covers what underflows.
        for (got, want) in plain.iter().zip(reference::swiglu(&gate_up, tokens, inter)) {
            prop_assert!((f64::from(*got) - want).abs() <= 2e-6 * want.abs() + 1e-30, "{got:e} {want:e}");
        }
    }

    #[test]
    fn e5m6_rows_have_the_bits_of_the_reference(rows in 0..20usize, cols in cols(), seed: u64, shift in -100..100i32) {
        let mut x = values(rows * cols, seed);
        x.iter_mut().for_each(|x| *x *= 2f32.powi(shift));
        let kept = E5m6Rows::encode(mat(&x, rows, cols));
        let decoded = kept.decode();
        let blocks = cols.div_ceil(128);
        for i in 0..rows {
            for b in 0..blocks {
                let block = &x[i * cols..(i + 1) * cols][b * 128..cols.min(b * 128 + 128)];
                let (codes, scale) = reference::e5m6_block(block);
                prop_assert_eq!(kept.scales()[i * blocks + b], scale);
                for (j, code) in codes.iter().enumerate() {
                    let want = v3_numerics::e5m6::decode(*code) * scale;
                    prop_assert_eq!(decoded[i * cols + b * 128 + j].to_bits(), want.to_bits());
                    // 7 significant bits: half a unit is 2^-7 of the value, or half the smallest step of the format.
                    let bound = (block[j].abs() / 128.0).max(scale * 2f32.powi(-21));
                    prop_assert!((block[j] - want).abs() <= bound, "{} became {}", block[j], want);
                }
            }
        }
        prop_assert_eq!(kept.bytes(), rows * cols.div_ceil(2) * 3 + 4 * rows * blocks);
    }

    #[test]
    fn products_have_the_bits_of_the_reference(m in rows(), n in cols(), k in depth(), seed: u64, accumulate: bool, policy in policies()) {
        // At most some 10^7 steps of the reference a case.
        let n = if m * n * k > 6_000_000 { n.min(40) } else { n };
        let (a, b) = (values(m * k, seed), values(k * n, seed ^ 1));
        let before = values(m * n, seed ^ 2);
        let add = |product: Vec<f32>| -> Vec<f32> {
            if accumulate { product.iter().zip(&before).map(|(p, c)| c + p).collect() } else { product }
        };
        let start = || if accumulate { before.clone() } else { vec![f32::NAN; m * n] };
        let (at, bt) = (transposed(&a, m, k), transposed(&b, k, n));

        // f32 and bf16: a chain.
        let round = |x: &[f32]| -> Vec<f32> { x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect() };
        let narrow = |x: &[f32]| -> Vec<bf16> { x.iter().map(|x| bf16::from_f32(*x)).collect() };
        let want_f32 = add(reference::matmul_chain(&a, &b, m, n, k));
        let want_bf16 = add(reference::matmul_chain(&round(&a), &round(&b), m, n, k));
        let (a16, b16, at16, bt16) = (narrow(&a), narrow(&b), narrow(&at), narrow(&bt));
        // FP8: activations by weights, and both along k.
        let qa = quantize_1x128(mat(&a, m, k), policy);
        let qw = quantize_128x128(mat(&bt, n, k), policy);
        let want_weight = add(reference::matmul_promoted(scaled(&qa), scaled(&quantize::transpose(&qw)), m, n, k));
        let ka = quantize_128x1(mat(&at, k, m), policy);
        let kb = quantize_128x1(mat(&b, k, n), policy);
        let want_tokens = add(reference::matmul_promoted(scaled(&quantize::transpose(&ka)), scaled(&kb), m, n, k));

        on_every_isa(|isa| {
            let run = |what: &str, want: &[f32], product: &dyn Fn(MatMut<'_, f32>)| {
                let mut c = start();
                product(MatMut::new(&mut c, m, n).unwrap());
                assert_bits(&format!("{what} {isa} [{m}, {k}] x [{k}, {n}]"), &c, want);
            };
            run("f32", &want_f32, &|c| gemm(mat(&a, m, k), mat(&b, k, n), c, accumulate).unwrap());
            run("f32 nt", &want_f32, &|c| gemm_nt(mat(&a, m, k), mat(&bt, n, k), c, accumulate).unwrap());
            let m16 = |x, r, c| Operand::Bf16(MatRef::new(x, r, c).unwrap());
            run("bf16 nt", &want_bf16, &|c| gemm_nt(m16(&a16, m, k), m16(&bt16, n, k), c, accumulate).unwrap());
            run("bf16 nn", &want_bf16, &|c| gemm_nn(m16(&a16, m, k), m16(&b16, k, n), c, accumulate).unwrap());
            run("bf16 tn", &want_bf16, &|c| gemm_tn(m16(&at16, k, m), m16(&b16, k, n), c, accumulate).unwrap());
            run("bf16 rounded", &want_bf16, &|c| {
                gemm_tn(Operand::RoundedToBf16(mat(&at, k, m)), Operand::RoundedToBf16(mat(&b, k, n)), c, accumulate).unwrap();
            });
            run("fp8 nt", &want_weight, &|c| gemm_nt(&qa, &qw, c, accumulate).unwrap());
            run("fp8 nn", &want_weight, &|c| gemm_nn(&qa, &quantize::transpose(&qw), c, accumulate).unwrap());
            run("fp8 quantised on reading", &want_weight, &|c| {
                let w = Packed::new(Operand::from(&qw).t().unwrap()).unwrap();
                gemm_packed(Operand::QuantizedRows(mat(&a, m, k), policy), &w, c, accumulate).unwrap();
            });
            run("fp8 tn", &want_tokens, &|c| gemm_tn(&ka, &kb, c, accumulate).unwrap());
        });
    }

    #[test]
    fn strided_outputs_and_bf16_outputs(m in 1..30usize, n in 1..70usize, k in depth(), seed: u64, accumulate: bool) {
        let (a, b) = (values(m * k, seed), values(k * n, seed ^ 1));
        let product = {
            let round = |x: &[f32]| -> Vec<f32> { x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect() };
            reference::matmul_chain(&round(&a), &round(&b), m, n, k)
        };
        let plain = reference::matmul_chain(&a, &b, m, n, k);
        let (a, b) = (mat(&a, m, k), mat(&b, k, n));
        let (ra, rb) = (Operand::RoundedToBf16(a), Operand::RoundedToBf16(b));
        on_every_isa(|_| {
            // Columns of a wider matrix, whose other columns stay.
            let wide = n + 3;
            let mut c = vec![7.0f32; m * wide];
            gemm(ra, rb, MatMut::with_stride(&mut c, m, n, wide).unwrap(), accumulate).unwrap();
            for i in 0..m {
                for j in 0..wide {
                    let before = 7.0;
                    let want = match (j < n, accumulate) {
                        (false, _) => before,
                        (true, false) => product[i * n + j],
                        (true, true) => before + product[i * n + j],
                    };
                    assert_eq!(c.get(i * wide + j).map(|c| c.to_bits()), Some(want.to_bits()), "({i}, {j})");
                }
            }
            // A transposed output.
            let mut c = vec![f32::NAN; m * n];
            gemm(ra, rb, MatMut::new(&mut c, n, m).unwrap().t(), false).unwrap();
            assert_bits("transposed output", &c, &transposed(&product, m, n));
            // bf16, rounded once.
            for (left, right, product) in [(ra, rb, &product), (Operand::F32(a), Operand::F32(b), &plain)] {
                let mut c = vec![bf16::from_f32(0.5); m * n];
                gemm(left, right, MatMut::new(&mut c, m, n).unwrap(), accumulate).unwrap();
                for (c, p) in c.iter().zip(product) {
                    let want = bf16::from_f32(if accumulate { 0.5 + p } else { *p });
                    assert_eq!(c.to_bits(), want.to_bits());
                }
            }
        });
    }

    #[test]
    fn grouped_products_are_the_products_of_the_groups(sizes in prop::collection::vec(prop_oneof![Just(0usize), Just(1), Just(128), Just(130), 0..30usize], 0..6),
                                                      n in 1..80usize, k in depth(), seed: u64, accumulate: bool) {
        let offsets: Vec<usize> = std::iter::once(0).chain(sizes.iter().scan(0, |sum, s| { *sum += s; Some(*sum) })).collect();
        let rows = *offsets.last().unwrap();
        let a = values(rows * k, seed);
        let qa = quantize_1x128(mat(&a, rows, k), ScalePolicy::F32);
        let before = values(rows * n, seed ^ 3);
        for fp8 in [false, true] {
            let weights: Vec<Packed> = (0..sizes.len()).map(|g| {
                let w = values(n * k, seed ^ (g as u64 + 10));
                let w = mat(&w, n, k);
                if fp8 { Packed::new(Operand::from(&quantize_128x128(w, ScalePolicy::F32)).t().unwrap()).unwrap() }
                else { Packed::new(Operand::RoundedToBf16(w.t())).unwrap() }
            }).collect();
            let weights: Vec<&Packed> = weights.iter().collect();
            let left = if fp8 { Operand::from(&qa) } else { Operand::RoundedToBf16(mat(&a, rows, k)) };
            let mut want = before.clone();
            for (g, w) in weights.iter().enumerate() {
                let range = offsets[g]..offsets[g + 1];
                let c = MatMut::new(&mut want, rows, n).unwrap().row_range(range.clone()).unwrap();
                gemm_packed(left.row_range(range).unwrap(), w, c, accumulate).unwrap();
            }
            on_every_isa(|isa| {
                let mut c = before.clone();
                gemm_grouped(left, &offsets, &weights, MatMut::new(&mut c, rows, n).unwrap(), accumulate).unwrap();
                assert_bits(&format!("contiguous {isa}"), &c, &want);

                // The same rows in a padded batch; the padding must be neither read nor written.
                let most = sizes.iter().copied().max().unwrap_or(0) + 1;
                let mut padded = vec![f32::NAN; sizes.len() * most * k];
                let mut c = vec![f32::NAN; sizes.len() * most * n];
                for (g, range) in offsets.windows(2).enumerate() {
                    padded[g * most * k..][..sizes[g] * k].copy_from_slice(&a[range[0] * k..range[1] * k]);
                    c[g * most * n..][..sizes[g] * n].copy_from_slice(&before[range[0] * n..range[1] * n]);
                }
                let quantized = quantize_1x128(mat(&padded, sizes.len() * most, k), ScalePolicy::F32);
                let left = if fp8 { Operand::from(&quantized) } else { Operand::RoundedToBf16(mat(&padded, sizes.len() * most, k)) };
                let out = MatMut::new(&mut c, sizes.len() * most, n).unwrap();
                gemm_masked(left, most, &sizes, &weights, out, accumulate).unwrap();
                for (g, range) in offsets.windows(2).enumerate() {
                    assert_bits(&format!("masked {isa}"), &c[g * most * n..][..sizes[g] * n], &want[range[0] * n..range[1] * n]);
                    assert!(c[g * most * n..(g + 1) * most * n][sizes[g] * n..].iter().all(|x| x.is_nan()), "padding was written");
                }
            });
        }
    }

    #[test]
    fn k_grouped_products_are_the_products_of_the_groups(sizes in prop::collection::vec(prop_oneof![Just(0usize), Just(1), Just(128), Just(131), 0..40usize], 0..5),
                                                        m in 1..40usize, n in 1..70usize, seed: u64, accumulate: bool) {
        let (lefts, rights): (Vec<_>, Vec<_>) = sizes.iter().enumerate()
            .map(|(g, s)| (values(s * m, seed ^ g as u64), values(s * n, seed ^ (100 + g as u64)))).unzip();
        let before = values(sizes.len() * m * n, seed ^ 5);
        let quantized: Vec<_> = sizes.iter().enumerate().map(|(g, s)| {
            (quantize_128x1(mat(&lefts[g], *s, m), ScalePolicy::F32), quantize_128x1(mat(&rights[g], *s, n), ScalePolicy::PowerOfTwo))
        }).collect();
        for kind in 0..3 {
            let groups: Vec<(Operand<'_>, Operand<'_>)> = sizes.iter().enumerate().map(|(g, s)| {
                let (a, b) = (mat(&lefts[g], *s, m), mat(&rights[g], *s, n));
                match kind {
                    0 => (Operand::F32(a), Operand::F32(b)),
                    1 => (Operand::RoundedToBf16(a), Operand::RoundedToBf16(b)),
                    _ => ((&quantized[g].0).into(), (&quantized[g].1).into()),
                }
            }).collect();
            let mut want = before.clone();
            for ((a, b), c) in groups.iter().zip(want.chunks_exact_mut(m * n)) {
                gemm_tn(*a, *b, MatMut::new(c, m, n).unwrap(), accumulate).unwrap();
            }
            on_every_isa(|isa| {
                let mut c = if accumulate { before.clone() } else { vec![f32::NAN; before.len()] };
                gemm_k_grouped(&groups, m, n, &mut c, accumulate).unwrap();
                assert_bits(&format!("k-grouped {kind} {isa}"), &c, &want);
            });
        }
    }
}

/// A product that is large enough to be cut for threads has the bits of the product of each row alone.
#[cfg(feature = "rayon")]
#[test]
fn threads_and_rows_change_no_bit() {
    let (m, n, k) = (403, 290, 300);
    let (a, w) = (values(m * k, 1), values(n * k, 2));
    let qa = quantize_1x128(mat(&a, m, k), ScalePolicy::F32);
    let operands: [(Operand<'_>, Packed); 2] = [
        (Operand::RoundedToBf16(mat(&a, m, k)), Packed::new(Operand::RoundedToBf16(mat(&w, n, k).t())).unwrap()),
        ((&qa).into(), Packed::new(Operand::from(&quantize_128x128(mat(&w, n, k), ScalePolicy::F32)).t().unwrap()).unwrap()),
    ];
    for (a, w) in &operands {
        let mut alone = vec![f32::NAN; m * n];
        for i in 0..m {
            let c = MatMut::new(&mut alone[i * n..(i + 1) * n], 1, n).unwrap();
            gemm_packed(a.row_range(i..i + 1).unwrap(), w, c, false).unwrap();
        }
        for threads in [1, 2, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut c = vec![f32::NAN; m * n];
            pool.install(|| gemm_packed(*a, w, MatMut::new(&mut c, m, n).unwrap(), false).unwrap());
            assert_bits(&format!("{} on {threads} threads", w.kind()), &c, &alone);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = values(256 * 130, 1);
    let square = quantize_128x128(mat(&x, 256, 130), ScalePolicy::F32);
    let rows = quantize_1x128(mat(&x, 256, 130), ScalePolicy::F32);
    let c = vec![0.0; 256 * 256];
    let out = |m, n| -> MatMut<'static, f32> { MatMut::new(c[..m * n].to_vec().leak(), m, n).unwrap() };
    // Shapes.
    assert!(matches!(gemm(mat(&x, 256, 130), mat(&x, 256, 130), out(256, 130), false), Err(Error::Shape { .. })));
    assert!(matches!(gemm_nt(&rows, &square, out(256, 255), false), Err(Error::Shape { .. })));
    // A mixture of precisions.
    assert!(matches!(gemm_nt(mat(&x, 256, 130), &square, out(256, 256), false), Err(Error::Unsupported { .. })));
    // Scales that do not run along k.
    assert!(matches!(gemm_nn(&rows, &quantize::transpose(&rows), out(256, 256), false), Ok(())));
    assert!(matches!(gemm_tn(&rows, &rows, out(130, 130), false), Err(Error::Unsupported { .. })));
    assert!(matches!(Packed::new(Operand::QuantizedRows(mat(&x, 256, 130), ScalePolicy::F32)), Err(Error::Unsupported { .. })));
    // Groups.
    let w = Packed::new(Operand::RoundedToBf16(mat(&x, 130, 256))).unwrap();
    let a = Operand::RoundedToBf16(mat(&x, 256, 130));
    for offsets in [vec![0, 256, 256], vec![0, 255], vec![1, 256], vec![0], vec![]] {
        assert!(matches!(gemm_grouped(a, &offsets, &[&w], out(256, 256), false), Err(Error::Shape { .. })));
    }
    assert!(matches!(gemm_grouped(&square, &[0, 100, 256], &[&w, &w], out(256, 256), false), Err(Error::Unsupported { .. })));
    assert!(matches!(gemm_masked(a, 128, &[129, 0], &[&w, &w], out(256, 256), false), Err(Error::Shape { .. })));
    // Owners.
    let (codes, scales) = rows.clone().into_parts();
    assert!(matches!(BlockScaled::new(codes.clone(), scales.clone(), 256, 131, Block::Row128), Err(Error::Shape { .. })));
    assert!(matches!(BlockScaled::new(codes.clone(), scales.clone(), 256, 130, Block::Square128), Err(Error::Shape { .. })));
    assert!(matches!(BlockScaled::new(codes.clone(), scales, usize::MAX, 2, Block::Row128), Err(Error::Shape { .. })));
    assert!(matches!(
        BlockScaled::new(codes.clone(), vec![f32::NAN; 512], 256, 130, Block::Row128),
        Err(Error::Unsupported { .. })
    ));
    assert!(matches!(BlockScaled::from_ue8m0(codes, &[255; 512], 256, 130, Block::Row128), Err(Error::Scale { .. })));
    assert!(matches!(rows.scales_ue8m0(), Err(Error::Scale { .. })));
    assert!(matches!(square.view().row_range(100..256), Err(Error::Shape { .. })));
    assert!(quantize::swiglu_quantize_1x128(mat(&x, 130, 256).col_range(0..255).unwrap(), ScalePolicy::F32).is_err());
}
