use super::super::Register;
use super::super::matrix::{Row, load, store, transpose};

/// Figure 104: lane `4 * i + j` holds elements (i, 2j) and (i, 2j + 1) of the matrix, the former in the lower half; `.trans` loads the
/// matrix in column-major format, that is (2j, i) and (2j + 1, i).
#[test]
fn fragments() {
    let number = |row: usize, column: usize| (row * 16 + column) as u16;
    let mut matrix: [Row; 8] = [[0; 16]; 8];
    for (r, row) in matrix.iter_mut().enumerate() {
        for c in 0..8 {
            row[2 * c..2 * c + 2].copy_from_slice(&number(r, c).to_le_bytes());
        }
    }
    let (plain, transposed) = (load(&matrix, false), load(&matrix, true));
    for i in 0..8 {
        for j in 0..4 {
            let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
            assert_eq!(plain[4 * i + j], pair(number(i, 2 * j), number(i, 2 * j + 1)));
            assert_eq!(transposed[4 * i + j], pair(number(2 * j, i), number(2 * j + 1, i)));
        }
    }
    assert_eq!(store(&plain, false), matrix);
    assert_eq!(store(&transposed, true), matrix);
    assert_eq!(transpose(&plain), transposed);
    let register: Register = std::array::from_fn(|l| l as u32 * 0x0101_0001);
    assert_eq!(transpose(&transpose(&register)), register);
}
