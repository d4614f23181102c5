//! What every operation computes, in the most obvious way: f64, one loop after the other, no SIMD, no unsafe.
//!
//! The oracle of the tests of this crate, and of its users' tests.

use crate::view::MatRef;

/// `a b` `[m, n]` in row-major order, and beside it the sum of the magnitudes of the products, which bounds the rounding of any order
/// of summation.
pub fn gemm(a: MatRef<'_, f32>, b: MatRef<'_, f32>) -> (Vec<f64>, Vec<f64>) {
    let mut value = Vec::with_capacity(a.rows() * b.cols());
    let mut magnitude = Vec::with_capacity(a.rows() * b.cols());
    for i in 0..a.rows() {
        for j in 0..b.cols() {
            let products = || (0..a.cols().min(b.rows())).map(|p| f64::from(*a.at(i, p)) * f64::from(*b.at(p, j)));
            value.push(products().sum());
            magnitude.push(products().map(f64::abs).sum());
        }
    }
    (value, magnitude)
}
