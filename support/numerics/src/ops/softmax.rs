//! Softmax along rows.

use super::{Lanewise, map_lanes, rows_per_task};
use crate::cpu::Isa;
use crate::error::{Result, rows_of};
use crate::par;
use crate::simd::{self, Kernel, LANES, Simd, dispatch};

/// Softmax of each row of length `d`, in place. A row with a NaN or of nothing but minus infinity becomes NaN.
pub fn softmax_rows(x: &mut [f32], d: usize) -> Result<()> {
    rows_of("input of softmax", x.len(), d)?;
    let isa = Isa::detect();
    par::for_each_chunk_mut(x, rows_per_task(4 * d) * d, |_, x| {
        for row in x.chunks_exact_mut(d.max(1)) {
            dispatch(isa, Softmax(row));
        }
    });
    Ok(())
}

struct Softmax<'a>(&'a mut [f32]);

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let row = self.0;
        let mut max = s.splat(f32::NEG_INFINITY);
        let (chunks, rest) = row.as_chunks::<LANES>();
        for chunk in chunks {
            max = s.max(s.load(chunk), max);
        }
        let max = rest.iter().fold(s.reduce_max(max), |max, x| if *x > max { *x } else { max });
        let mut sum = s.splat(0.0);
        let (chunks, rest) = row.as_chunks_mut::<LANES>();
        for chunk in chunks {
            let e = simd::exp(s, s.sub(s.load(chunk), s.splat(max)));
            s.store(e, chunk);
            sum = s.add(sum, e);
        }
        if !rest.is_empty() {
            let e = simd::exp(s, s.sub(s.load_partial(rest), s.splat(max)));
            s.store_partial(e, rest);
            // Again from memory: lanes beyond the row must not count.
            sum = s.add(sum, s.load_partial(rest));
        }
        map_lanes(s, [], [row], Divide(s.reduce_add(sum)));
    }
}

#[derive(Clone, Copy)]
struct Divide(f32);
impl Lanewise<0, 1> for Divide {
    const IN_PLACE: bool = true;
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, _: [S::F; 0], [y]: [S::F; 1]) -> [S::F; 1] {
        [s.div(y, s.splat(self.0))]
    }
}
