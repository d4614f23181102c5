//! SwiGLU and its backward.

use super::{Lanewise, check_rows, check_rows_mut, map, rows_per_task};
use crate::cpu::Isa;
use crate::error::{Result, check_shape, rows_of};
use crate::par;
use crate::simd::{self, Simd};
use crate::view::{MatMut, MatRef};

/// SwiGLU: `out = silu(gate) * up` with `gate_up` `[t, 2 * inter]`, the gate in the first half of each row; `out` `[t, inter]`.
pub fn swiglu(gate_up: &[f32], inter: usize, out: &mut [f32]) -> Result<()> {
    let t = rows_of("output of SwiGLU", out.len(), inter)?;
    swiglu_strided(MatRef::new(gate_up, t, 2 * inter)?, MatMut::new(out, t, inter)?)
}

/// [`swiglu`] of strided rows.
pub fn swiglu_strided(gate_up: MatRef<'_, f32>, out: MatMut<'_, f32>) -> Result<()> {
    check_rows("input of SwiGLU", &gate_up)?;
    check_rows_mut("output of SwiGLU", &out)?;
    let inter = out.cols();
    check_shape("input of SwiGLU", (out.rows(), 2 * inter), (gate_up.rows(), gate_up.cols()))?;
    let isa = Isa::detect();
    par::for_each_row_band(out, rows_per_task(4 * inter), |first, mut out| {
        for i in 0..out.rows() {
            let (gate, up) = gate_up.row(first + i).split_at(inter);
            map(isa, [gate, up], [out.row_mut(i)], Forward);
        }
    });
    Ok(())
}

#[derive(Clone, Copy)]
struct Forward;
impl Lanewise<2, 1> for Forward {
    const IN_PLACE: bool = false;
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [gate, up]: [S::F; 2], _: [S::F; 1]) -> [S::F; 1] {
        [s.mul(simd::silu(s, gate), up)]
    }
}

/// The gradient of [`swiglu`]: `dgate_up` `[t, 2 * inter]` is overwritten.
pub fn swiglu_backward(dout: &[f32], gate_up: &[f32], inter: usize, dgate_up: &mut [f32]) -> Result<()> {
    let t = rows_of("output gradient of SwiGLU", dout.len(), inter)?;
    swiglu_backward_strided(
        MatRef::new(dout, t, inter)?,
        MatRef::new(gate_up, t, 2 * inter)?,
        MatMut::new(dgate_up, t, 2 * inter)?,
    )
}

/// [`swiglu_backward`] of strided rows.
pub fn swiglu_backward_strided(dout: MatRef<'_, f32>, gate_up: MatRef<'_, f32>, dgate_up: MatMut<'_, f32>) -> Result<()> {
    check_rows("output gradient of SwiGLU", &dout)?;
    check_rows("input of SwiGLU", &gate_up)?;
    check_rows_mut("input gradient of SwiGLU", &dgate_up)?;
    let inter = dout.cols();
    check_shape("input of SwiGLU", (dout.rows(), 2 * inter), (gate_up.rows(), gate_up.cols()))?;
    check_shape("input gradient of SwiGLU", (dout.rows(), 2 * inter), (dgate_up.rows(), dgate_up.cols()))?;
    let isa = Isa::detect();
    par::for_each_row_band(dgate_up, rows_per_task(4 * inter), |first, mut dgate_up| {
        for i in 0..dgate_up.rows() {
            let (gate, up) = gate_up.row(first + i).split_at(inter);
            let (dgate, dup) = dgate_up.row_mut(i).split_at_mut(inter);
            map(isa, [dout.row(first + i), gate, up], [dgate, dup], Backward);
        }
    });
    Ok(())
}

#[derive(Clone, Copy)]
struct Backward;
impl Lanewise<3, 2> for Backward {
    const IN_PLACE: bool = false;
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [dout, gate, up]: [S::F; 3], _: [S::F; 2]) -> [S::F; 2] {
        let (value, derivative) = simd::silu_and_derivative(s, gate);
        [s.mul(s.mul(dout, up), derivative), s.mul(dout, value)]
    }
}
