//! Which rank holds which stage, layer and expert.
//!
//! Ranks form a grid of pipeline ranks by expert-parallel ranks; world rank = pipeline rank * expert ranks + expert rank, or, where the
//! ranks of a pipeline are neighbours, expert rank * pipeline ranks + pipeline rank. The
//! expert ranks of one pipeline rank hold the same layers, each with its share of the experts, and split every micro-batch's
//! sequences. Which stages a pipeline rank holds is the schedule's to say: one, two of a V, or two of two opposite pipelines.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use dualpipe::Schedule;
use fp8_gemm::Precision;

use crate::config::{Config, TensorSpec};
use crate::error::{Error, Result};
use crate::layers::{block, moe, tail};
use crate::params::ParamLayout;

/// The grid of ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// Pipeline ranks.
    pub pipeline: usize,
    /// Expert-parallel ranks of each pipeline rank.
    pub expert: usize,
    /// The stages of each pipeline rank, ascending, without repetition.
    pub stages_of: Vec<Vec<usize>>,
    /// The layers of each stage.
    pub layers: Vec<Range<usize>>,
    /// Multi-token-prediction modules of the last stage.
    pub modules: usize,
    /// Whether the ranks of a pipeline have numbers next to each other, so that they share nodes; else those of an expert-parallel
    /// group do.
    pub pipelines_together: bool,
}

/// Cost of the parts of a stage, in forward passes of a block; only used to balance the stages.
const MODULE_COST: f64 = 1.2;
const HEAD_COST: f64 = 0.2;

impl Grid {
    /// One rank that holds everything.
    pub fn single(config: &Config, modules: usize) -> Self {
        Self {
            pipeline: 1,
            expert: 1,
            stages_of: vec![vec![0]],
            layers: std::iter::once(0..config.num_hidden_layers).collect(),
            modules,
            pipelines_together: false,
        }
    }

    /// The grid of a schedule.
    pub fn new(config: &Config, schedule: &Schedule, expert: usize, modules: usize) -> Result<Self> {
        let stages = schedule.stages();
        if stages > config.num_hidden_layers {
            return Err(Error::option(
                "--pipeline",
                format!("at most {} pipeline stages, one a layer", config.num_hidden_layers),
                format!("{stages} stages on {} ranks", schedule.ranks()),
            ));
        }
        if expert == 0 || !config.n_routed_experts.is_multiple_of(expert) {
            return Err(Error::option("--expert-parallel", format!("a divisor of {} experts", config.n_routed_experts), expert));
        }
        let stages_of = (0..schedule.ranks())
            .map(|rank| {
                let mut s = schedule.stages_of(rank);
                s.sort_unstable();
                s.dedup();
                s
            })
            .collect();
        let layers = partition(config.num_hidden_layers, stages, HEAD_COST + MODULE_COST * modules as f64);
        Ok(Self { pipeline: schedule.ranks(), expert, stages_of, layers, modules, pipelines_together: false })
    }

    /// Ranks in all.
    pub fn size(&self) -> usize {
        self.pipeline * self.expert
    }

    /// The pipeline rank and the expert rank of a world rank.
    pub fn coordinates(&self, rank: usize) -> (usize, usize) {
        match self.pipelines_together {
            true => (rank % self.pipeline, rank / self.pipeline),
            false => (rank / self.expert, rank % self.expert),
        }
    }

    fn rank(&self, p: usize, e: usize) -> usize {
        if self.pipelines_together { e * self.pipeline + p } else { p * self.expert + e }
    }

    /// World ranks of the expert-parallel group of `rank`.
    pub fn expert_group(&self, rank: usize) -> Vec<usize> {
        let (p, _) = self.coordinates(rank);
        (0..self.expert).map(|e| self.rank(p, e)).collect()
    }

    /// World ranks of the pipeline of `rank`.
    pub fn pipeline_group(&self, rank: usize) -> Vec<usize> {
        let (_, e) = self.coordinates(rank);
        (0..self.pipeline).map(|p| self.rank(p, e)).collect()
    }

    /// Ranks of an expert-parallel group on one node, where nodes have `ranks_per_node` ranks.
    pub fn experts_per_node(&self, ranks_per_node: usize) -> usize {
        if self.pipelines_together { (ranks_per_node / self.pipeline).max(1) } else { ranks_per_node }
    }

    /// The names of the tensors of `rank`, in memory order; names may repeat.
    fn names(&self, config: &Config, rank: usize, precision: Precision) -> Vec<String> {
        let (p, e) = self.coordinates(rank);
        let experts = moe::local_experts(config, e, self.expert);
        let mut names = Vec::new();
        let layer = |names: &mut Vec<String>, layer: usize| {
            names.extend(block::tensor_names(config, layer));
            if config.is_moe(layer) {
                names.extend(moe::expert_tensor_names(config, layer, experts.clone(), precision));
            }
        };
        for &stage in &self.stages_of[p] {
            if stage == 0 {
                names.push(tail::EMBED.into());
            }
            self.layers[stage].clone().for_each(|l| layer(&mut names, l));
            if stage + 1 == self.layers.len() {
                names.extend([tail::NORM.into(), tail::HEAD.into()]);
                if self.modules > 0 {
                    names.push(tail::EMBED.into());
                }
                for l in (0..self.modules).map(|k| config.num_hidden_layers + k) {
                    names.extend(tail::module_tensor_names(l));
                    layer(&mut names, l);
                }
            }
        }
        names
    }

    /// Where every rank keeps its parameters.
    pub fn layouts(&self, config: &Config, precision: Precision) -> Result<Vec<Arc<ParamLayout>>> {
        let specs: HashMap<String, TensorSpec> = config.tensors().into_iter().map(|s| (s.name.clone(), s)).collect();
        let mut holders: HashMap<String, Vec<usize>> = HashMap::new();
        let names: Vec<Vec<String>> = (0..self.size()).map(|rank| self.names(config, rank, precision)).collect();
        for (rank, names) in names.iter().enumerate() {
            for name in names {
                let h = holders.entry(name.clone()).or_default();
                if h.last() != Some(&rank) {
                    h.push(rank);
                }
            }
        }
        let layout = |names: Vec<String>| {
            let specs = names.into_iter().map(|name| match (specs.get(&name), holders.get(&name)) {
                (Some(spec), Some(ranks)) => Ok((spec.clone(), ranks.clone())),
                _ => Err(Error::config(&name, "a tensor of this configuration", "none of that name")),
            });
            Ok(Arc::new(ParamLayout::new(specs.collect::<Result<_>>()?)))
        };
        names.into_iter().map(layout).collect()
    }
}

/// Contiguous stages of at least one layer each, the largest cost as small as can be; the last stage carries `tail` more.
fn partition(layers: usize, stages: usize, tail: f64) -> Vec<Range<usize>> {
    let cost = |r: &Range<usize>| r.len() as f64 + if r.end == layers { tail } else { 0.0 };
    // best[s][l]: the smallest possible largest cost of the first l layers in s stages, and where the last stage starts.
    let mut best = vec![vec![(f64::INFINITY, 0); layers + 1]; stages + 1];
    best[0][0] = (0.0, 0);
    for s in 1..=stages {
        for l in s..=layers {
            for start in s - 1..l {
                let c = best[s - 1][start].0.max(cost(&(start..l)));
                if c < best[s][l].0 {
                    best[s][l] = (c, start);
                }
            }
        }
    }
    let mut ranges = Vec::new();
    let mut end = layers;
    for s in (1..=stages).rev() {
        let start = best[s][end].1;
        ranges.push(start..end);
        end = start;
    }
    ranges.reverse();
    ranges
}

/// Splits `len` values among `n` holders in contiguous shards: the shard of holder `i`.
pub fn shard(range: &Range<usize>, n: usize, i: usize) -> Range<usize> {
    let len = range.len();
    range.start + len * i / n..range.start + len * (i + 1) / n
}

/// The sequences of a micro-batch that expert rank `e` of `ranks` takes.
pub fn sequences_of(sequences: usize, ranks: usize, e: usize) -> Range<usize> {
    shard(&(0..sequences), ranks, e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_cover_all_layers_and_none_is_empty() {
        for layers in 1..12 {
            for stages in 1..=layers {
                let p = partition(layers, stages, 1.4);
                assert_eq!(p.len(), stages);
                assert_eq!((p[0].start, p[stages - 1].end), (0, layers));
                assert!(p.windows(2).all(|w| w[0].end == w[1].start) && p.iter().all(|r| !r.is_empty()));
            }
        }
        assert_eq!(partition(4, 2, 1.4), vec![0..3, 3..4], "the tail counts");
    }

    #[test]
    fn shards_cover_the_range() {
        for n in 1..7 {
            let shards: Vec<_> = (0..n).map(|i| shard(&(5..16), n, i)).collect();
            assert_eq!((shards[0].start, shards[n - 1].end), (5, 16));
            assert!(shards.windows(2).all(|w| w[0].end == w[1].start));
        }
    }
}
