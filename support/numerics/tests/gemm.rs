//! The matrix product: the same bits as the plain chain, on every instruction set, layout, split and thread count.

use proptest::prelude::*;
use v3_numerics::cpu::{Isa, with_isa};
use v3_numerics::gemm::{PackedB, gemm, gemm_grouped, gemm_k_grouped, gemm_packed};
use v3_numerics::{MatMut, MatRef, reference};
use v3_testkit::backend::for_each_available;
use v3_testkit::poison::Guarded;
use v3_testkit::{Rng, assert_bits_eq, compare::Tolerance};

/// The policy, word by word.
fn chain(a: MatRef<'_, f32>, b: MatRef<'_, f32>, c: &[f32], accumulate: bool) -> Vec<f32> {
    let (m, k, n) = (a.rows(), a.cols(), b.cols());
    let mut out = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            let sum = (0..k).fold(0.0f32, |sum, p| a.at(i, p).mul_add(*b.at(p, j), sum));
            out[i * n + j] = if accumulate { c[i * n + j] + sum } else { sum };
        }
    }
    out
}

/// A matrix inside a larger buffer: with padding between rows, or transposed.
struct Stored {
    data: Guarded,
    rows: usize,
    cols: usize,
    stride: usize,
    transposed: bool,
}

impl Stored {
    fn random(rng: &mut Rng, rows: usize, cols: usize, pad: usize, transposed: bool) -> Stored {
        let (r, c) = if transposed { (cols, rows) } else { (rows, cols) };
        let stride = c + pad;
        let len = if r == 0 || c == 0 { 0 } else { (r - 1) * stride + c };
        let mut data = rng.normal_vec(len, 1.0);
        for (i, x) in data.iter_mut().enumerate() {
            if i % stride >= c {
                *x = f32::NAN;
            }
        }
        Stored { data: Guarded::input(&data), rows, cols, stride, transposed }
    }

    fn view(&self) -> MatRef<'_, f32> {
        if self.transposed {
            MatRef::with_stride(self.data.as_slice(), self.cols, self.rows, self.stride).unwrap().t()
        } else {
            MatRef::with_stride(self.data.as_slice(), self.rows, self.cols, self.stride).unwrap()
        }
    }

    fn view_mut(&mut self) -> MatMut<'_, f32> {
        let (rows, cols, stride) = (self.rows, self.cols, self.stride);
        if self.transposed {
            MatMut::with_stride(self.data.as_mut_slice(), cols, rows, stride).unwrap().t()
        } else {
            MatMut::with_stride(self.data.as_mut_slice(), rows, cols, stride).unwrap()
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Case {
    m: usize,
    k: usize,
    n: usize,
    pads: [usize; 3],
    transposed: [bool; 3],
    accumulate: bool,
    seed: u64,
}

fn check(case: Case) {
    let Case { m, k, n, pads, transposed, accumulate, seed } = case;
    let mut rng = Rng::new(seed);
    let a = Stored::random(&mut rng, m, k, pads[0], transposed[0]);
    let b = Stored::random(&mut rng, k, n, pads[1], transposed[1]);
    let c = rng.normal_vec(m * n, 1.0);
    let expected = chain(a.view(), b.view(), &c, accumulate);
    for_each_available("gemm", &Isa::ALL, Isa::name, Isa::is_available, |isa| {
        let run = |packed: bool| {
            let mut out = Stored::random(&mut rng.clone(), m, n, pads[2], transposed[2]);
            for i in 0..m {
                for j in 0..n {
                    *out.view_mut().at_mut(i, j) = if accumulate { c[i * n + j] } else { f32::NAN };
                }
            }
            let before = out.data.as_slice().to_vec();
            with_isa(isa, || {
                if packed {
                    gemm_packed(a.view(), &PackedB::new(b.view()), out.view_mut(), accumulate).unwrap();
                } else {
                    gemm(a.view(), b.view(), out.view_mut(), accumulate).unwrap();
                }
            })
            .unwrap();
            let what = format!("{case:?} on {isa}, packed {packed}");
            assert_bits_eq(&what, &out.view_mut().as_ref().to_vec(), &expected);
            out.data.check().unwrap();
            let own = if transposed[2] { m } else { n };
            for (i, (x, before)) in out.data.as_slice().iter().zip(&before).enumerate() {
                assert!(i % out.stride < own || x.to_bits() == before.to_bits(), "{what}: wrote between rows, at {i}");
            }
        };
        run(false);
        run(true);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn same_bits_as_the_chain(
        m in 0usize..48, k in 0usize..70, n in 0usize..80,
        pads in [0usize..5, 0usize..5, 0usize..5],
        transposed in any::<[bool; 3]>(),
        accumulate in any::<bool>(),
        seed in any::<u64>(),
    ) {
        check(Case { m, k, n, pads, transposed, accumulate, seed });
    }
}

/// Sizes around every tile, panel and block of every instruction set.
#[test]
fn edges_of_tiles() {
    let mut seed = 0;
    for (m, k, n) in [
        (1, 255, 1),
        (1, 513, 33),
        (2, 512, 32),
        (13, 5, 31),
        (14, 17, 16),
        (15, 16, 15),
        (27, 15, 17),
        (28, 31, 47),
        (29, 33, 48),
        (6, 1025, 63),
        (7, 1, 64),
        (4, 0, 65),
        (3, 1536, 20),
        (223, 3, 2),
        (225, 2, 34),
        (449, 3, 3),
        (5, 3, 7),
        (40, 2, 1),
    ] {
        for transposed in [[false; 3], [true, false, false], [false, true, false], [true, true, true]] {
            for accumulate in [false, true] {
                seed += 1;
                check(Case { m, k, n, pads: [seed as usize % 3, 1, seed as usize % 2], transposed, accumulate, seed });
            }
        }
    }
}

/// One shape large enough for every way of cutting: threads, prior packing, blocks of k.
#[test]
fn same_bits_for_every_number_of_threads() {
    let mut rng = Rng::new(5);
    for (m, k, n) in [(300, 600, 70), (20, 1100, 200), (700, 40, 90), (33, 64, 1000)] {
        let a = Stored::random(&mut rng, m, k, 1, false);
        let b = Stored::random(&mut rng, k, n, 0, true);
        let c = rng.normal_vec(m * n, 1.0);
        let expected = chain(a.view(), b.view(), &c, true);
        let run = || {
            let mut out = c.clone();
            gemm(a.view(), b.view(), MatMut::new(&mut out, m, n).unwrap(), true).unwrap();
            assert_bits_eq("gemm", &out, &expected);
            let mut out = c.clone();
            let packed = PackedB::new(b.view());
            gemm_packed(a.view(), &packed, MatMut::new(&mut out, m, n).unwrap(), true).unwrap();
            assert_bits_eq("gemm_packed", &out, &expected);
        };
        run();
        #[cfg(feature = "rayon")]
        for threads in [1, 2, 3, 5] {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run);
        }
    }
}

/// The chain of k fused multiply-adds is off by at most k 2^-24 / (1 - k 2^-24) of the sum of magnitudes (Higham 2002, section 3.1).
#[test]
fn close_to_the_f64_reference() {
    let (m, k, n) = (37, 700, 45);
    let mut rng = Rng::new(9);
    let (a, b) = (rng.normal_vec(m * k, 1.0), rng.normal_vec(k * n, 1.0));
    let (a, b) = (MatRef::new(&a, m, k).unwrap(), MatRef::new(&b, k, n).unwrap());
    let mut c = vec![f32::NAN; m * n];
    gemm(a, b, MatMut::new(&mut c, m, n).unwrap(), false).unwrap();
    let (expected, magnitude) = reference::gemm(a, b);
    let gamma = k as f64 * 2f64.powi(-24) * 1.001;
    let bounds: Vec<f64> = magnitude.iter().map(|x| x * gamma).collect();
    Tolerance::EXACT.check_bounded("gemm", &c, &expected, &bounds).unwrap();
}

#[test]
fn groups_equal_their_products() {
    let mut rng = Rng::new(11);
    let (k, n) = (50, 40);
    let offsets = [0usize, 0, 7, 7, 40, 41, 90, 90];
    let rows = 90;
    let a = rng.normal_vec(rows * k, 1.0);
    let dy = rng.normal_vec(rows * n, 1.0);
    let (a, dy) = (MatRef::new(&a, rows, k).unwrap(), MatRef::new(&dy, rows, n).unwrap());
    let weights: Vec<Vec<f32>> = (0..7).map(|_| rng.normal_vec(n * k, 1.0)).collect();
    let packed: Vec<PackedB> = weights.iter().map(|w| PackedB::new(MatRef::new(w, n, k).unwrap().t())).collect();
    let packed: Vec<&PackedB> = packed.iter().collect();
    let mut c = vec![f32::NAN; rows * n];
    gemm_grouped(a, &offsets, &packed, MatMut::new(&mut c, rows, n).unwrap(), false).unwrap();
    let mut dw = rng.normal_vec(7 * n * k, 1.0);
    let before = dw.clone();
    gemm_k_grouped(dy, a, &offsets, &mut dw, true).unwrap();
    for g in 0..7 {
        let range = offsets[g]..offsets[g + 1];
        let (x, dy) = (a.row_range(range.clone()).unwrap(), dy.row_range(range.clone()).unwrap());
        let w = MatRef::new(&weights[g], n, k).unwrap();
        assert_bits_eq("rows", &c[range.start * n..range.end * n], &chain(x, w.t(), &[], false));
        let own = g * n * k..(g + 1) * n * k;
        assert_bits_eq("summands", &dw[own.clone()], &chain(dy.t(), x, &before[own], true));
    }
}

#[test]
fn repacking_is_packing() {
    let mut rng = Rng::new(13);
    let (k, n, m) = (33, 50, 9);
    let (x, w1, w2) = (rng.normal_vec(m * k, 1.0), rng.normal_vec(k * n, 1.0), rng.normal_vec(k * n, 1.0));
    let x = MatRef::new(&x, m, k).unwrap();
    let w2 = MatRef::new(&w2, n, k).unwrap().t();
    let mut packed = PackedB::new(MatRef::new(&w1, k, n).unwrap());
    packed.repack(w2).unwrap();
    assert!(packed.repack(w2.t()).is_err());
    assert!(packed.bytes() >= 4 * k * n && packed.k() == k && packed.n() == n);
    let mut y = vec![f32::NAN; m * n];
    gemm_packed(x, &packed, MatMut::new(&mut y, m, n).unwrap(), false).unwrap();
    assert_bits_eq("repacked", &y, &chain(x, w2, &[], false));
}

#[test]
fn wrong_shapes_are_refused_and_nothing_is_written() {
    let x = vec![1.0f32; 64];
    let view = |rows, cols| MatRef::new(&x[..rows * cols], rows, cols).unwrap();
    let mut c = vec![7.0f32; 64];
    let packed = PackedB::new(view(3, 4));
    let mut run = |a: MatRef<'_, f32>, b: MatRef<'_, f32>, rows: usize, cols: usize| {
        gemm(a, b, MatMut::new(&mut c[..rows * cols], rows, cols).unwrap(), false).unwrap_err().to_string()
    };
    assert_eq!(run(view(2, 3), view(4, 5), 2, 5), "b of a matrix product: expected [3, 5], got [4, 5]");
    assert_eq!(run(view(2, 3), view(3, 5), 2, 4), "c of a matrix product: expected [2, 5], got [2, 4]");
    assert!(gemm_packed(view(2, 4), &packed, MatMut::new(&mut c[..8], 2, 4).unwrap(), false).is_err());
    assert!(gemm_packed(view(2, 3), &packed, MatMut::new(&mut c[..6], 2, 3).unwrap(), false).is_err());
    for offsets in [&[0usize, 2][..], &[0, 3, 2], &[1, 2], &[0, 1], &[0], &[]] {
        let out = MatMut::new(&mut c[..8], 2, 4).unwrap();
        let got = gemm_grouped(view(2, 3), offsets, &[&packed], out, false);
        assert_eq!(got.is_ok(), offsets == [0, 2], "{offsets:?}");
    }
    assert!(gemm_k_grouped(view(4, 2), view(4, 3), &[0, 3], &mut [0.0; 6], false).is_err());
    assert!(gemm_k_grouped(view(4, 2), view(4, 3), &[0, 4], &mut [0.0; 5], false).is_err());
    assert!(gemm_k_grouped(view(4, 2), view(3, 3), &[0, 4], &mut [0.0; 6], false).is_err());
}
