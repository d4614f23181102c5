//! Random problems, and bounds on the rounding of their solutions.
#![allow(dead_code, reason = "each test binary uses a part")]

use mla_kernels::{PrefillShape, prefill_backward, prefill_forward};
use v3_numerics::cpu::{Isa, with_isa};
use v3_testkit::Rng;
use v3_testkit::backend::for_each_available;
use v3_testkit::poison::{Guarded, unwritten};

pub const EPS: f64 = f32::EPSILON as f64 / 2.0;

/// Runs `property` on every instruction set; absent ones are skipped by name.
pub fn on_every_isa(test: &str, mut property: impl FnMut(Isa)) {
    let run = |isa| with_isa(isa, || property(isa)).expect("it is available");
    for_each_available(test, &Isa::ALL, Isa::name, Isa::is_available, run);
}

#[derive(Debug, Clone)]
pub struct Problem {
    pub shape: PrefillShape,
    pub scale: f32,
    pub cu_seqlens: Vec<usize>,
    pub q: Vec<f32>,
    pub kv: Vec<f32>,
    pub k_rope: Vec<f32>,
    pub dout: Vec<f32>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
    pub dq: Vec<f32>,
    pub dkv: Vec<f32>,
    pub dk_rope: Vec<f32>,
}

impl Problem {
    pub fn new(shape: PrefillShape, lengths: &[usize], seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut cu_seqlens = vec![0];
        cu_seqlens.extend(lengths.iter().scan(0, |sum, l| {
            *sum += l;
            Some(*sum)
        }));
        let tokens = cu_seqlens[lengths.len()];
        let rows = tokens * shape.heads;
        Self {
            shape,
            scale: (shape.d_qk().max(1) as f32).powf(-0.5),
            cu_seqlens,
            q: rng.normal_vec(rows * shape.d_qk(), 1.5),
            kv: rng.normal_vec(rows * shape.d_kv(), 1.0),
            k_rope: rng.normal_vec(tokens * shape.d_rope, 1.0),
            dout: rng.normal_vec(rows * shape.d_v, 1.0),
        }
    }

    pub fn tokens(&self) -> usize {
        self.cu_seqlens[self.cu_seqlens.len() - 1]
    }

    pub fn forward(&self) -> (Vec<f32>, Vec<f32>) {
        let rows = self.tokens() * self.shape.heads;
        let (q, kv, k_rope) = (Guarded::input(&self.q), Guarded::input(&self.kv), Guarded::input(&self.k_rope));
        let (mut out, mut lse) = (Guarded::output(rows * self.shape.d_v), Guarded::output(rows));
        prefill_forward(
            &self.shape,
            self.scale,
            &self.cu_seqlens,
            q.as_slice(),
            kv.as_slice(),
            k_rope.as_slice(),
            out.as_mut_slice(),
            lse.as_mut_slice(),
        )
        .unwrap();
        checked([out, lse]).into()
    }

    pub fn solve(&self) -> Solution {
        let (out, lse) = self.forward();
        let inputs = [&self.q, &self.kv, &self.k_rope, &out, &lse, &self.dout].map(|x| Guarded::input(x));
        let [q, kv, k_rope, o, l, dout] = inputs.each_ref().map(Guarded::as_slice);
        let mut grads = [q, kv, k_rope].map(|x| Guarded::output(x.len()));
        let [dq, dkv, dk_rope] = grads.each_mut().map(Guarded::as_mut_slice);
        prefill_backward(&self.shape, self.scale, &self.cu_seqlens, q, kv, k_rope, o, l, dout, dq, dkv, dk_rope).unwrap();
        let [dq, dkv, dk_rope] = checked(grads);
        Solution { out, lse, dq, dkv, dk_rope }
    }

    /// The longest sequence.
    pub fn longest(&self) -> usize {
        self.cu_seqlens.windows(2).map(|b| b[1] - b[0]).max().unwrap_or(0)
    }

    /// A bound on the relative error of any softmax weight, from rounding in f32.
    ///
    /// A score is a chain of `d` fused multiply-adds, off by at most `d eps sum |q k|`; scaling, subtracting the maximum or the
    /// log-sum-exp and the exponential's own error (below 3 eps) add a few eps of magnitudes up to the largest score
    /// `m`. Numerator and denominator: twice; and the denominator is a chain over the keys with a rescaling per block.
    pub fn weight_bound(&self) -> f64 {
        let norm = |x: &[f32], d: usize| {
            x.chunks(d.max(1)).map(|r| r.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()).fold(0.0, f64::max)
        };
        let s = &self.shape;
        let own: Vec<f32> = self.kv.chunks(s.d_kv().max(1)).flat_map(|r| r[..s.d_nope.min(r.len())].to_vec()).collect();
        let keys = norm(&own, s.d_nope).hypot(norm(&self.k_rope, s.d_rope));
        let m = f64::from(self.scale) * norm(&self.q, s.d_qk()) * keys + (self.longest().max(1) as f64).ln();
        EPS * (2.0 * m * (s.d_qk() as f64 + 8.0) + 2.0 * self.longest() as f64 + 16.0)
    }
}

/// Outputs whose every value was written and whose guards are intact.
pub fn checked<const N: usize>(buffers: [Guarded; N]) -> [Vec<f32>; N] {
    buffers.map(|b| {
        b.check().unwrap();
        assert_eq!(unwritten(b.as_slice()), [0usize; 0], "values that were not written");
        b.as_slice().to_vec()
    })
}

pub fn max_abs(x: &[f32]) -> f64 {
    x.iter().map(|v| f64::from(v.abs())).fold(0.0, f64::max)
}
