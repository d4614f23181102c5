use super::super::wmma::{Element, Fragment, Matrix as Kind, Wmma};
use super::super::{Accumulator, Error, Multiplicand as M, Register};
use super::{Matrix, Random, expected, random_accumulators};

const WIDE: [(usize, usize, usize); 3] = [(16, 16, 16), (8, 32, 16), (32, 8, 16)];

/// The tables of section 9.7.14.4.1.
#[test]
fn fragment_sizes() {
    let registers = |matrix, shape, element| Fragment::new(matrix, shape, element).unwrap().registers();
    for shape in WIDE {
        for matrix in [Kind::A, Kind::B] {
            assert_eq!(registers(matrix, shape, Element::Multiplicand(M::F16)), 8);
        }
        assert_eq!(registers(Kind::C, shape, Element::Accumulator(Accumulator::F16)), 4);
        assert_eq!(registers(Kind::C, shape, Element::Accumulator(Accumulator::F32)), 8);
        assert_eq!(registers(Kind::C, shape, Element::Accumulator(Accumulator::S32)), 8);
    }
    for (shape, a, b) in [(WIDE[0], 2, 2), (WIDE[1], 1, 4), (WIDE[2], 4, 1)] {
        assert_eq!(registers(Kind::A, shape, Element::Multiplicand(M::U8)), a);
        assert_eq!(registers(Kind::B, shape, Element::Multiplicand(M::S8)), b);
        assert_eq!(registers(Kind::A, shape, Element::Multiplicand(M::Bf16)), 2 * a);
        assert_eq!(registers(Kind::B, shape, Element::Multiplicand(M::Bf16)), 2 * b);
    }
    assert_eq!(registers(Kind::A, (16, 16, 8), Element::Multiplicand(M::Tf32)), 4);
    assert_eq!(registers(Kind::B, (8, 8, 32), Element::Multiplicand(M::S4)), 1);
    assert_eq!(registers(Kind::C, (8, 8, 32), Element::Accumulator(Accumulator::S32)), 2);
    assert_eq!(registers(Kind::A, (8, 8, 4), Element::F64), 1);
    assert_eq!(registers(Kind::C, (8, 8, 4), Element::F64), 2); // as the example of section 9.7.14.4.5 has it
    assert!(Fragment::new(Kind::A, (16, 8, 16), Element::Multiplicand(M::F16)).is_err());
    assert!(Fragment::new(Kind::C, (16, 16, 16), Element::Multiplicand(M::F16)).is_err());
}

/// Loaded from memory in either layout, multiplied, and stored: the product of the matrices.
#[test]
fn every_form_against_a_naive_product() {
    use Accumulator::{F16, F32, S32};
    let mut random = Random::new(9);
    let mut forms = 0;
    for shape in WIDE.into_iter().chain([(16, 16, 8), (8, 8, 32)]) {
        let (m, n, k) = shape;
        for ty in [M::F16, M::Bf16, M::Tf32, M::S8, M::U8, M::S4, M::U4] {
            for (d, c, saturate) in
                [(F16, F16, false), (F32, F16, false), (F16, F32, false), (F32, F32, false), (S32, S32, false), (S32, S32, true)]
            {
                let Ok(form) = Wmma::new(shape, d, ty, ty, c, saturate) else { continue };
                forms += 1;
                let (a, b) = (Matrix::random(ty, m, k, &mut random), Matrix::random(ty, n, k, &mut random));
                let (c_patterns, c_values) = random_accumulators(c, m * n, &mut random);
                let packed = if ty.bits() == 4 { 2 } else { 1 };
                // A unit of A or of B (stored by columns: [n][k]).
                let unit = |matrix: &Matrix, row: usize, place: usize| -> u64 {
                    (0..packed).map(|i| u64::from(matrix.pattern(row, place * packed + i)) << (4 * i)).sum()
                };
                let load = |fragment: &Fragment, value: &dyn Fn(usize, usize) -> u64| -> Vec<Register> {
                    let units: Vec<u64> = (0..fragment.units())
                        .map(|index| {
                            let (row, column) = fragment.place(index);
                            value(row, column)
                        })
                        .collect();
                    fragment.pack(&units).into_iter().map(|r| r.map(|w| w as u32)).collect()
                };
                let [fa, fb, fc, fd] = form.fragments();
                let ar = load(fa, &|row, column| unit(&a, row, column));
                let br = load(fb, &|row, column| unit(&b, column, row));
                let cr = load(fc, &|row, column| u64::from(c_patterns[row * n + column]));
                let dr: Vec<[u64; 32]> = form.run(&ar, &br, &cr).unwrap().into_iter().map(|r| r.map(u64::from)).collect();
                let units = fd.unpack(&dr).unwrap();
                for (index, &got) in units.iter().enumerate() {
                    let (row, column) = fd.place(index);
                    let products = (0..k).map(|at| (a.value(row, at), b.value(column, at)));
                    let want = expected(d, saturate, c_values[row * n + column], products);
                    assert_eq!(got, u64::from(want), "{shape:?} {ty:?} {d:?} {c:?} at ({row}, {column})");
                }
            }
        }
    }
    // Three shapes: f16 with 4 pairs of accumulators, bf16, two integers with and without .satfinite; tf32; two 4-bit ones likewise.
    assert_eq!(forms, 3 * (4 + 1 + 4) + 1 + 4);
}

#[test]
fn memory_offsets() {
    let a = Fragment::new(Kind::A, (16, 16, 16), Element::Multiplicand(M::Bf16)).unwrap();
    let b = Fragment::new(Kind::B, (8, 32, 16), Element::Multiplicand(M::S8)).unwrap();
    for index in 0..256 {
        let (row, column) = a.place(index);
        assert_eq!(a.offset(index, 24, false), (row * 24 + column) as u64 * 2);
        assert_eq!(a.offset(index, 24, true), (column * 24 + row) as u64 * 2);
    }
    assert_eq!((a.dense_stride(false), a.dense_stride(true)), (16, 16));
    assert_eq!((b.dense_stride(false), b.dense_stride(true)), (32, 16));
    let mut places: Vec<_> = (0..b.units()).map(|index| b.place(index)).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!((places.len(), places.last()), (512, Some(&(15, 31))));
}

#[test]
fn what_does_not_exist_is_refused() {
    use Accumulator::{F16, F32, S32};
    for (shape, d, a, b, c, saturate) in [
        ((16, 16, 16), F32, M::F16, M::Bf16, F32, false),
        ((16, 16, 16), F16, M::Bf16, M::Bf16, F16, false),
        ((16, 16, 16), F32, M::E4m3, M::E4m3, F32, false),
        ((16, 16, 16), S32, M::S8, M::U8, S32, false),
        ((16, 16, 16), F32, M::F16, M::F16, F32, true),
        ((16, 16, 8), F32, M::F16, M::F16, F32, false),
        ((16, 8, 16), F32, M::F16, M::F16, F32, false),
    ] {
        assert!(matches!(Wmma::new(shape, d, a, b, c, saturate), Err(Error::NoSuchForm { .. })), "{shape:?} {a:?}");
    }
    let form = Wmma::new((16, 16, 16), F32, M::F16, M::F16, F32, false).unwrap();
    let refused = form.run(&[[0; 32]; 8], &[[0; 32]; 4], &[[0; 32]; 8]);
    assert_eq!(refused, Err(Error::Registers { instruction: "wmma", operand: "b", expected: 8, got: 4 }));
}
