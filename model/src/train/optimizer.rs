//! AdamW with its states sharded over the ranks that hold a parameter (ZeRO-1), and the sums that go with it.
//!
//! Bucket by bucket: the gradients are summed over the holders in the order of their ranks, each holder getting its shard of
//! the sum; it updates that shard; the shards are gathered. A rank keeps the two moments of its shards only.

use std::ops::Range;

use half::bf16;
use v3_numerics::ops::{self, AdamWParams};
use v3_ranks::Comm;

use crate::config::TensorKind;
use crate::error::Result;
use crate::grid::shard;
use crate::params::ParamLayout;
use crate::stage::RankModel;

/// Moments of a rank's shards.
#[derive(Debug)]
pub enum Moments {
    /// Full precision.
    F32(Vec<f32>, Vec<f32>),
    /// As DeepSeek-V3 was trained.
    Bf16(Vec<bf16>, Vec<bf16>),
}

impl Moments {
    fn zeroed(len: usize, low_precision: bool) -> Self {
        if low_precision {
            Moments::Bf16(vec![bf16::ZERO; len], vec![bf16::ZERO; len])
        } else {
            Moments::F32(vec![0.0; len], vec![0.0; len])
        }
    }

    /// Bytes of both.
    pub fn bytes(&self) -> usize {
        match self {
            Moments::F32(m, v) => (m.len() + v.len()) * 4,
            Moments::Bf16(m, v) => (m.len() + v.len()) * 2,
        }
    }

    /// Values `range` of the first moment (`which` 0) or the second, exactly, as f32.
    pub fn values(&self, which: usize, range: Range<usize>) -> Vec<f32> {
        match (self, which) {
            (Moments::F32(m, _), 0) => m[range].to_vec(),
            (Moments::F32(_, v), _) => v[range].to_vec(),
            (Moments::Bf16(m, _), 0) => m[range].iter().map(|x| x.to_f32()).collect(),
            (Moments::Bf16(_, v), _) => v[range].iter().map(|x| x.to_f32()).collect(),
        }
    }

    /// Sets values from `start` on.
    pub fn set(&mut self, which: usize, start: usize, values: &[f32]) {
        let range = start..start + values.len();
        match (self, which) {
            (Moments::F32(m, _), 0) => m[range].copy_from_slice(values),
            (Moments::F32(_, v), _) => v[range].copy_from_slice(values),
            (Moments::Bf16(m, _), 0) => m[range].iter_mut().zip(values).for_each(|(o, x)| *o = bf16::from_f32(*x)),
            (Moments::Bf16(_, v), _) => v[range].iter_mut().zip(values).for_each(|(o, x)| *o = bf16::from_f32(*x)),
        }
    }
}

/// A rank's share of one bucket.
#[derive(Debug)]
pub struct Shard {
    /// The bucket in the flat buffers.
    pub bucket: Range<usize>,
    /// This rank's share of it.
    pub own: Range<usize>,
    /// Everybody's share, in the order of the holders.
    counts: Vec<usize>,
    /// The holders, when there is more than one.
    comm: Option<Comm>,
    /// Moments of `own`.
    pub moments: Moments,
}

/// The shards of world rank `rank`: bucket and own range. A pure function of the layout, so that any rank knows any other's.
pub fn shards_of(layout: &ParamLayout, rank: usize) -> Vec<(Range<usize>, Range<usize>)> {
    let of = |holders: &[usize], range: &Range<usize>| {
        let index = holders.iter().position(|&h| h == rank).unwrap_or(0);
        (range.clone(), shard(range, holders.len(), index))
    };
    layout.buckets().iter().map(|b| of(&b.holders, &b.range)).collect()
}

/// Settings that do not change during a run.
#[derive(Debug, Clone, Copy)]
pub struct OptimizerConfig {
    /// First and second decay.
    pub betas: (f32, f32),
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Of matrices and embeddings; norms have none.
    pub weight_decay: f32,
    /// Largest global norm of the gradient.
    pub max_norm: f64,
    /// Moments in bf16.
    pub bf16_moments: bool,
}

impl OptimizerConfig {
    /// The technical report's settings.
    pub fn report(bf16_moments: bool) -> Self {
        Self { betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.1, max_norm: 1.0, bf16_moments }
    }
}

/// The optimiser of one rank.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    /// One for each bucket of the rank's layout.
    pub shards: Vec<Shard>,
}

/// Identifies the groups of holders among other groups of the same ranks.
const HOLDERS_GROUP: u64 = 3;

impl Optimizer {
    /// The optimiser of a rank, its moments zero.
    pub fn new(config: OptimizerConfig, layout: &ParamLayout, world: &Comm) -> Result<Self> {
        let mut shards = Vec::new();
        for (bucket, (range, own)) in layout.buckets().iter().zip(shards_of(layout, world.rank())) {
            let n = bucket.holders.len();
            let comm = if n > 1 { Some(world.subgroup(&bucket.holders, HOLDERS_GROUP)?) } else { None };
            let counts = (0..n).map(|i| shard(&range, n, i).len()).collect();
            let moments = Moments::zeroed(own.len(), config.bf16_moments);
            shards.push(Shard { bucket: range, own, counts, comm, moments });
        }
        Ok(Self { config, shards })
    }

    /// Bytes of the moments this rank keeps.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|s| s.moments.bytes()).sum()
    }

    /// Sums the gradients over their holders; afterwards this rank's shards hold the sums. Returns the global norm, the same
    /// bits on every rank.
    pub fn reduce(&self, model: &mut RankModel, world: &Comm) -> Result<f64> {
        let mut sum = 0.0;
        for shard in &self.shards {
            if let Some(comm) = &shard.comm {
                let own = comm.reduce_scatter_sum(&model.grads[shard.bucket.clone()], &shard.counts)?;
                model.grads[shard.own.clone()].copy_from_slice(&own);
            }
            sum += ops::sum_squares(&model.grads[shard.own.clone()]);
        }
        let mut sum = [sum];
        world.all_reduce_sum(&mut sum)?;
        Ok(sum[0].sqrt())
    }

    /// Updates this rank's shards (`step` counts from 1), then gathers everybody's and packs the weights again.
    pub fn update(&mut self, model: &mut RankModel, step: u64, lr: f64, grad_norm: f64) -> Result<()> {
        let scale = ops::clip_factor(grad_norm, self.config.max_norm);
        let layout = model.store.layout().clone();
        for shard in &mut self.shards {
            for param in layout.params().iter().filter(|p| p.is_trained()) {
                let range = param.offset.max(shard.own.start)..(param.offset + param.len).min(shard.own.end);
                if range.is_empty() {
                    continue;
                }
                let decays = param.kind != TensorKind::Norm;
                let params = AdamWParams {
                    lr: lr as f32,
                    beta1: self.config.betas.0,
                    beta2: self.config.betas.1,
                    eps: self.config.eps,
                    weight_decay: if decays { self.config.weight_decay } else { 0.0 },
                };
                let (w, g) = (&mut model.store.weights[range.clone()], &model.grads[range.clone()]);
                let local = range.start - shard.own.start..range.end - shard.own.start;
                match &mut shard.moments {
                    Moments::F32(m, v) => ops::adamw_step(&params, step, w, g, scale, &mut m[local.clone()], &mut v[local])?,
                    Moments::Bf16(m, v) => ops::adamw_step(&params, step, w, g, scale, &mut m[local.clone()], &mut v[local])?,
                }
            }
        }
        for shard in &self.shards {
            if let Some(comm) = &shard.comm {
                let mut start = shard.bucket.start;
                for part in comm.all_gather_v(&model.store.weights[shard.own.clone()])? {
                    model.store.weights[start..start + part.len()].copy_from_slice(&part);
                    start += part.len();
                }
            }
        }
        model.pack()
    }
}
