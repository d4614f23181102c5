//! The small operations of a transformer layer, each with its backward, on f32 rows of length `d`.
//!
//! All are vectorised, run on the threads of the caller's pool, and give the same bits for every number of threads and on every
//! instruction set. Sums along a row run in 64 interleaved chains of fused multiply-adds, combined in a fixed tree; sums over rows and
//! over tensors are cut into chunks of a fixed size, added in order.

mod adamw;
mod elementwise;
mod embedding;
mod norm;
mod softmax;
mod swiglu;

pub use adamw::{AdamWParams, Moment, adamw_step};
pub use elementwise::{add_assign, axpy, clip_factor, exp, global_norm, scale, sum_squares};
pub use embedding::{embedding_gather, embedding_scatter_add};
pub use norm::{
    rms_norm, rms_norm_backward_input, rms_norm_backward_input_strided, rms_norm_backward_weight,
    rms_norm_backward_weight_strided, rms_norm_strided,
};
pub use softmax::softmax_rows;
pub use swiglu::{swiglu, swiglu_backward, swiglu_backward_strided, swiglu_strided};

use crate::cpu::Isa;
use crate::error::{Error, Result};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::view::{MatMut, MatRef};

/// The values that one task of a parallel loop takes: some ten microseconds of work.
const GRAIN: usize = 1 << 15;

/// The rows of length `d` that make a task.
fn rows_per_task(d: usize) -> usize {
    (GRAIN / d.max(1)).max(1)
}

/// A function of lanes: `I` inputs and the former values of `O` outputs to `O` outputs.
trait Lanewise<const I: usize, const O: usize>: Copy + Send + Sync {
    /// Whether the former outputs are looked at.
    const IN_PLACE: bool;
    /// Mark the implementation `#[inline(always)]`.
    fn apply<S: Simd>(self, s: S, inputs: [S::F; I], outputs: [S::F; O]) -> [S::F; O];
}

/// Applies a function to slices of equal length.
struct Map<'a, const I: usize, const O: usize, L> {
    inputs: [&'a [f32]; I],
    outputs: [&'a mut [f32]; O],
    op: L,
}

impl<const I: usize, const O: usize, L: Lanewise<I, O>> Kernel for Map<'_, I, O, L> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        map_lanes(s, self.inputs, self.outputs, self.op);
    }
}

/// [`Map`] on an instruction set.
fn map<const I: usize, const O: usize, L: Lanewise<I, O>>(isa: Isa, inputs: [&[f32]; I], outputs: [&mut [f32]; O], op: L) {
    dispatch(isa, Map { inputs, outputs, op });
}

/// [`Map`] inside a kernel.
#[inline(always)]
fn map_lanes<S: Simd, const I: usize, const O: usize, L: Lanewise<I, O>>(
    s: S,
    inputs: [&[f32]; I],
    mut outputs: [&mut [f32]; O],
    op: L,
) {
    let n = outputs[0].len();
    for x in &inputs {
        assert!(x.len() == n, "operands of different length");
    }
    for y in &outputs {
        assert!(y.len() == n, "operands of different length");
    }
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        let mut x = [s.splat(0.0); I];
        let mut y = [s.splat(0.0); O];
        // SAFETY: i + 16 <= n, the length of every operand.
        unsafe {
            for (x, input) in x.iter_mut().zip(&inputs) {
                *x = s.load_ptr(input.as_ptr().add(i));
            }
            if L::IN_PLACE {
                for (y, output) in y.iter_mut().zip(&outputs) {
                    *y = s.load_ptr(output.as_ptr().add(i));
                }
            }
            for (y, output) in op.apply(s, x, y).into_iter().zip(&mut outputs) {
                s.store_ptr(y, output.as_mut_ptr().add(i));
            }
        }
        i += LANES;
    }
    if i < n {
        let mut x = [s.splat(0.0); I];
        let mut y = [s.splat(0.0); O];
        for (x, input) in x.iter_mut().zip(&inputs) {
            *x = s.load_partial(&input[i..]);
        }
        if L::IN_PLACE {
            for (y, output) in y.iter_mut().zip(&outputs) {
                *y = s.load_partial(&output[i..]);
            }
        }
        for (y, output) in op.apply(s, x, y).into_iter().zip(&mut outputs) {
            s.store_partial(y, &mut output[i..]);
        }
    }
}

/// The sum over a row of `f(acc, lanes)`: four vectors of chains, so that a multiply-add does not wait for the one before.
macro_rules! sum_row {
    ($s:ident, $n:expr, |$i:ident, $acc:ident| $full:expr, |$rest:ident| $partial:expr) => {{
        let n: usize = $n;
        let zero = $s.splat(0.0);
        let mut sums = [zero; 4];
        let mut $i = 0;
        while $i + 4 * LANES <= n {
            for sum in &mut sums {
                let $acc = *sum;
                *sum = $full;
                $i += LANES;
            }
        }
        let mut next = 0;
        while $i + LANES <= n {
            let $acc = sums[next];
            sums[next] = $full;
            next += 1;
            $i += LANES;
        }
        if $i < n {
            let $rest = $i..n;
            let $acc = sums[next];
            sums[next] = $partial($acc);
        }
        $s.reduce_add($s.add($s.add(sums[0], sums[1]), $s.add(sums[2], sums[3])))
    }};
}
use sum_row;

fn check_rows(what: &'static str, x: &MatRef<'_, f32>) -> Result<()> {
    contiguous(what, x.has_contiguous_rows())
}

fn check_rows_mut(what: &'static str, x: &MatMut<'_, f32>) -> Result<()> {
    contiguous(what, x.has_contiguous_rows())
}

fn contiguous(what: &'static str, yes: bool) -> Result<()> {
    if yes { Ok(()) } else { Err(Error::Shape { what, expected: "contiguous rows".into(), got: "a transposed view".into() }) }
}
