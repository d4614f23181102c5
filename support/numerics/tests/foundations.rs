//! Views, loops, dispatch and the vector operations.

use std::sync::atomic::{AtomicUsize, Ordering};
use v3_numerics::cpu::{Isa, with_isa};
use v3_numerics::simd::{Kernel, LANES, Simd, dispatch};
use v3_numerics::{Error, MatMut, MatRef, bf16, par};
use v3_testkit::backend::for_each_available;
use v3_testkit::{Rng, assert_bits_eq};

#[test]
fn views_address_what_they_say() {
    let data: Vec<f32> = (0..30).map(|i| i as f32).collect();
    let m = MatRef::with_stride(&data, 4, 5, 8).unwrap();
    assert_eq!((m.rows(), m.cols(), m.row_stride(), m.col_stride()), (4, 5, 8, 1));
    assert_eq!(m.row(3), [24.0, 25.0, 26.0, 27.0, 28.0]);
    assert_eq!(*m.t().at(4, 3), 28.0);
    assert_eq!(m.t().to_vec()[..4], [0.0, 8.0, 16.0, 24.0]);
    let inner = m.row_range(1..3).unwrap().col_range(2..4).unwrap();
    assert_eq!(inner.to_vec(), [10.0, 11.0, 18.0, 19.0]);
    assert_eq!(inner.t().row_range(1..2).unwrap().to_vec(), [11.0, 19.0]);
    assert_eq!(format!("{inner:?}"), "MatRef [2, 2] strides (8, 1)");
    assert!(m.has_contiguous_rows() && !m.t().has_contiguous_rows());

    let mut data = vec![0.0f32; 30];
    let mut m = MatMut::with_stride(&mut data, 4, 5, 8).unwrap();
    m.fill(1.0);
    m.row_mut(2)[1] = 5.0;
    *m.reborrow().t().at_mut(0, 3) = 7.0;
    assert_eq!(m.row(2), [1.0, 5.0, 1.0, 1.0, 1.0]);
    let (top, mut bottom) = m.reborrow().split_at_row(3).unwrap();
    assert_eq!((top.rows(), bottom.row(0)[0]), (3, 7.0));
    bottom.fill(2.0);
    let (_, mut right) = m.reborrow().split_at_col(4).unwrap();
    right.fill(3.0);
    assert_eq!(m.as_ref().row(3), [2.0, 2.0, 2.0, 2.0, 3.0]);
    assert_eq!(m.row_range(0..1).unwrap().col_range(3..5).unwrap().as_ref().to_vec(), [1.0, 3.0]);
    assert_eq!(data.iter().filter(|x| **x == 0.0).count(), 30 - 20, "what lies between rows is not touched");
}

#[test]
fn views_refuse_what_does_not_fit() {
    let mut data = [0.0f32; 12];
    assert!(MatRef::new(&data, 3, 4).is_ok() && MatRef::new(&data, 0, 7).is_err() && MatRef::new(&data[..0], 0, 7).is_ok());
    assert_eq!(MatRef::new(&data, 3, 5).unwrap_err().to_string(), "matrix: expected [3, 5], got 12 values");
    assert!(MatRef::new(&data, usize::MAX, usize::MAX).is_err());
    assert!(MatRef::with_stride(&data, 3, 4, 3).is_err(), "rows overlap");
    assert!(MatRef::with_stride(&data, 1, 4, 0).is_ok(), "one row has no next");
    assert!(MatRef::with_stride(&data, 2, 4, 8).is_ok());
    assert!(MatRef::with_stride(&data, 2, 5, 8).is_err());
    assert!(MatRef::with_stride(&data, usize::MAX, 1, usize::MAX).is_err());
    assert!(MatMut::with_stride(&mut data, 3, 4, 3).is_err());
    let m = MatRef::new(&data, 3, 4).unwrap();
    assert!(m.row_range(2..4).is_err() && m.col_range(0..5).is_err() && m.row_range(3..3).is_ok());
    assert!(matches!(MatMut::new(&mut data, 3, 4).unwrap().split_at_row(4), Err(Error::Shape { .. })));
    let none = MatRef::<f32>::new(&[], 3, 0).unwrap();
    assert!(none.row(2).is_empty() && none.t().to_vec().is_empty());
}

#[test]
fn loops_visit_everything_once() {
    let run = || {
        let counts: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
        par::for_each(100, |i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
        assert_eq!(par::map(50, |i| i * i), (0..50).map(|i| i * i).collect::<Vec<_>>());
        assert_eq!(par::join(|| 1, || 2), (1, 2));
        let mut data = vec![0usize; 103];
        par::for_each_chunk_mut(&mut data, 10, |i, chunk| chunk.iter_mut().for_each(|x| *x += 1 + i));
        assert_eq!(data, (0..103).map(|i| 1 + i / 10).collect::<Vec<_>>());
        par::for_each_chunk_mut(&mut data[..3], 0, |i, chunk| assert_eq!((chunk.len(), chunk[0]), (1, 1), "{i}"));
        par::for_each_part_mut(&mut data, &[0, 0, 7, 50, 103, 103], |i, part| part.fill(i)).unwrap();
        assert_eq!((data[0], data[6], data[7], data[49], data[50], data[102]), (1, 1, 2, 2, 3, 3));
        for bounds in [&[][..], &[0], &[1, 103], &[0, 102], &[0, 60, 50, 103]] {
            assert!(par::for_each_part_mut(&mut data, bounds, |_, _| unreachable!()).is_err());
        }
        let mut data = vec![0usize; 7 * 11];
        let mat = MatMut::with_stride(&mut data, 7, 9, 11).unwrap();
        par::for_each_tile(mat, 3, 4, |row, col, mut tile| {
            for i in 0..tile.rows() {
                for j in 0..tile.cols() {
                    *tile.at_mut(i, j) += 100 * (row + i) + col + j + 1;
                }
            }
        });
        for (i, x) in data.iter().enumerate() {
            let expected = if i % 11 < 9 { 100 * (i / 11) + i % 11 + 1 } else { 0 };
            assert_eq!(*x, expected, "{i}");
        }
        par::for_each_row_band(MatMut::new(&mut data, 7, 11).unwrap(), 2, |first, mut band| band.fill(first));
        assert_eq!((data[0], data[21], data[22], data[76]), (0, 0, 2, 6));
        par::for_each_row_band(MatMut::<f32>::new(&mut [], 0, 11).unwrap(), 2, |_, _| unreachable!());
    };
    run();
    #[cfg(feature = "rayon")]
    for threads in [1, 3] {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            assert_eq!(par::num_threads(), threads);
            run();
        });
    }
}

#[test]
fn dispatch_obeys() {
    assert!(Isa::Portable.is_available() && Isa::detect().is_available());
    assert!(Isa::detect() <= Isa::best_available());
    assert_eq!("avx2".parse::<Isa>().unwrap(), Isa::Avx2);
    assert!("sse9".parse::<Isa>().unwrap_err().to_string().contains("expected portable, avx2, avx512 or avx512bf16, got sse9"));
    let outside = Isa::detect();
    for isa in Isa::ALL {
        assert_eq!(isa.to_string().parse::<Isa>().unwrap(), isa);
        match with_isa(isa, Isa::detect) {
            Ok(inside) => assert_eq!(inside, isa),
            Err(error) => assert!(!isa.is_available(), "{error}"),
        }
        assert_eq!(Isa::detect(), outside);
    }
    let caught = std::panic::catch_unwind(|| with_isa(Isa::Portable, || panic!("on purpose")));
    assert!(caught.is_err() && Isa::detect() == outside, "restored after a panic");
}

/// Every operation on three vectors, one result after the other.
struct Everything<'a>(&'a [[f32; LANES]; LANES]);

impl Kernel for Everything<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let [a, b, c] = [s.load(&self.0[0]), s.load(&self.0[1]), s.load(&self.0[2])];
        let mut out = vec![];
        for x in [
            s.add(a, b),
            s.sub(a, b),
            s.mul(a, b),
            s.div(a, b),
            s.mul_add(a, b, c),
            s.neg_mul_add(a, b, c),
            s.sqrt(a),
            s.min(a, b),
            s.max(a, b),
            s.splat(self.0[0][3]),
        ] {
            out.extend(s.to_array(x));
        }
        for n in 0..=LANES {
            out.extend(s.to_array(s.load_partial(&self.0[1][..n])));
            let mut part = [9.0; LANES];
            s.store_partial(a, &mut part[..n]);
            out.extend(part);
        }
        for n in -126i32..=127 {
            out.push(s.to_array(s.exp2_integral(s.splat(n as f32)))[n.unsigned_abs() as usize % LANES]);
        }
        let mut narrow = [bf16::ZERO; LANES];
        s.store_bf16(a, &mut narrow);
        out.extend(s.to_array(s.load_bf16(&narrow)));
        for x in s.transpose(self.0.map(|x| s.load(&x))) {
            out.extend(s.to_array(x));
        }
        out.push(s.reduce_add(b));
        out.push(s.reduce_max(b));
        out
    }
}

#[test]
fn vector_operations_are_the_scalar_ones() {
    let canonical = |x: Vec<f32>| x.into_iter().map(|x| if x.is_nan() { f32::NAN } else { x }).collect::<Vec<f32>>();
    let mut rng = Rng::new(6);
    for round in 0..200 {
        let bits = rng.bits_vec(LANES * LANES);
        let tame = rng.normal_vec(LANES * LANES, 3.0);
        let rows: [[f32; LANES]; LANES] = std::array::from_fn(|i| {
            std::array::from_fn(|j| if round % 2 == 0 { bits[i * LANES + j] } else { tame[i * LANES + j] })
        });
        let [a, b, c] = [rows[0], rows[1], rows[2]];
        let mut expected = vec![];
        let lanes = |f: &dyn Fn(usize) -> f32| (0..LANES).map(f).collect::<Vec<f32>>();
        expected.extend(lanes(&|i| a[i] + b[i]));
        expected.extend(lanes(&|i| a[i] - b[i]));
        expected.extend(lanes(&|i| a[i] * b[i]));
        expected.extend(lanes(&|i| a[i] / b[i]));
        expected.extend(lanes(&|i| a[i].mul_add(b[i], c[i])));
        expected.extend(lanes(&|i| (-a[i]).mul_add(b[i], c[i])));
        expected.extend(lanes(&|i| a[i].sqrt()));
        expected.extend(lanes(&|i| if a[i] < b[i] { a[i] } else { b[i] }));
        expected.extend(lanes(&|i| if a[i] > b[i] { a[i] } else { b[i] }));
        expected.extend(lanes(&|_| a[3]));
        for n in 0..=LANES {
            expected.extend(lanes(&|i| if i < n { b[i] } else { 0.0 }));
            expected.extend(lanes(&|i| if i < n { a[i] } else { 9.0 }));
        }
        expected.extend((-126i32..=127).map(|n| 2f32.powi(n)));
        expected.extend(lanes(&|i| bf16::from_f32(a[i]).to_f32()));
        expected.extend((0..LANES * LANES).map(|i| rows[i % LANES][i / LANES]));
        let mut sums = b;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                sums[i] += sums[i + half];
            }
        }
        expected.push(sums[0]);
        // f32::max ignores NaN, but leaves open which of two zeros is the larger.
        expected.push(b.into_iter().fold(f32::NEG_INFINITY, |max, x| if x > max { x } else { max }));
        let expected = canonical(expected);
        for_each_available("vectors", &Isa::ALL, Isa::name, Isa::is_available, |isa| {
            let got = canonical(dispatch(isa, Everything(&rows)));
            assert_bits_eq(isa.name(), &got, &expected);
        });
    }
}
