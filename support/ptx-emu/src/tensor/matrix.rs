//! `ldmatrix`, `stmatrix` and `movmatrix` of 8x8 matrices of 16-bit elements (sections 9.7.14.5.15 to 9.7.14.5.17).
//!
//! A matrix is 8 rows of 16 bytes; the caller reads or writes them where lanes `8 * i ..+ 8` point, for matrix `i`.

use super::Register;

/// One row of an 8x8 matrix of 16-bit elements.
pub type Row = [u8; 16];

/// The element at (`row`, `column`).
fn element(matrix: &[Row; 8], row: usize, column: usize) -> u32 {
    u32::from(u16::from_le_bytes([matrix[row][2 * column], matrix[row][2 * column + 1]]))
}

/// The register that `ldmatrix` makes of one matrix.
///
/// Lane `l` gets elements `2 * (l % 4)` and `2 * (l % 4) + 1` (the lower half first) of row `l / 4`; with `.trans` of column `l / 4`.
#[must_use]
pub fn load(matrix: &[Row; 8], transpose: bool) -> Register {
    std::array::from_fn(|lane| {
        let (i, j) = (lane / 4, 2 * (lane % 4));
        if transpose {
            element(matrix, j, i) | element(matrix, j + 1, i) << 16
        } else {
            element(matrix, i, j) | element(matrix, i, j + 1) << 16
        }
    })
}

/// The matrix that `stmatrix` makes of one register: the reverse of [`load`].
#[must_use]
pub fn store(register: &Register, transpose: bool) -> [Row; 8] {
    let mut matrix = [[0; 16]; 8];
    for (lane, word) in register.iter().enumerate() {
        for half in 0..2 {
            let (i, j) = (lane / 4, 2 * (lane % 4) + half);
            let (row, column) = if transpose { (j, i) } else { (i, j) };
            let bits = (word >> (16 * half)) as u16;
            matrix[row][2 * column..2 * column + 2].copy_from_slice(&bits.to_le_bytes());
        }
    }
    matrix
}

/// `movmatrix.trans`: the transpose, across the registers of a warp.
#[must_use]
pub fn transpose(register: &Register) -> Register {
    load(&store(register, false), true)
}
