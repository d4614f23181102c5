//! One training step on one rank, and the figures that all ranks agree on.

use std::time::Instant;

use dualpipe::{Component, ExecuteError, ExecuteOptions, Half, Overlap, Schedule, Span, StageComponents};
use moe_dispatch::balance;
use v3_ranks::{Comm, Waits};

use super::optimizer::{Optimizer, OptimizerConfig};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::grid::{Grid, sequences_of};
use crate::layers::exchange;
use crate::layers::linear::Packing;
use crate::layers::moe::bias_name;
use crate::layers::tail::Chunk;
use crate::layers::{Recompute, Settings};
use crate::overlap::OverlapFigures;
use crate::params::ParamStore;
use crate::stage::RankModel;
use fp8_gemm::Precision;

/// The training recipe beside the optimiser's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    /// Weight of the multi-token-prediction loss.
    pub mtp_lambda: f64,
    /// Factor of the sequence-wise balance loss.
    pub balance_alpha: f32,
    /// Step of the router bias.
    pub bias_gamma: f32,
}

impl Default for Recipe {
    /// The technical report's values.
    fn default() -> Self {
        Self { mtp_lambda: 0.3, balance_alpha: 1e-4, bias_gamma: 1e-3 }
    }
}

impl Recipe {
    /// The report's values for a run of `steps` steps. Its router bias moves by 0.001 a step, over millions of steps; a short run
    /// has to move faster to balance the load at all: far enough for a distance of 3 in the whole run, up to 0.01 a step.
    pub fn for_steps(steps: u64) -> Self {
        Self { bias_gamma: (3.0 / steps as f32).clamp(1e-3, 1e-2), ..Self::default() }
    }
}

/// The tokens of one micro-batch: `[sequences, tokens]`, the same on every rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MicroBatch {
    /// Sequences.
    pub sequences: usize,
    /// Tokens of a sequence, one more than rows.
    pub tokens: usize,
    /// The ids.
    pub ids: Vec<u32>,
}

/// What a step came to; the same bits on every rank.
#[derive(Debug, Clone, PartialEq)]
pub struct StepOutcome {
    /// Mean cross entropy of the main model, of each micro-batch.
    pub micro_losses: Vec<f64>,
    /// The loss that was minimised.
    pub loss: f64,
    /// Mean cross entropy of the main model.
    pub main_loss: f64,
    /// Mean cross entropy of each multi-token-prediction depth.
    pub mtp_losses: Vec<f64>,
    /// Balance loss, summed over layers.
    pub balance_loss: f64,
    /// Largest load of an expert over the mean, over all layers.
    pub max_load: f64,
    /// Norm of the gradient before clipping; NaN before the gradients were reduced.
    pub grad_norm: f64,
}

/// One component, measured alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Forward or backward.
    pub half: Half,
    /// What it is.
    pub component: Component,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Bytes this rank sent between nodes.
    pub slow_bytes: u64,
    /// Bytes this rank sent inside its node.
    pub fast_bytes: u64,
}

/// What a rank needs to take steps.
#[derive(Debug)]
pub struct RankTrainer {
    /// The model.
    pub model: RankModel,
    /// The optimiser.
    pub optimizer: Optimizer,
    /// All ranks.
    pub world: Comm,
    /// What this rank's own thread waited for in the chunks of the last run.
    pub waits: Waits,
    pipeline: Comm,
    schedule: Schedule,
    expert_rank: usize,
    expert_ranks: usize,
    recipe: Recipe,
    overlap: ExecuteOptions,
}

/// Identify the rows and columns of the grid of ranks among other groups.
const EXPERT_GROUP: u64 = 1;
const PIPELINE_GROUP: u64 = 2;

impl RankTrainer {
    /// Builds the trainer of this rank from its filled parameters.
    pub fn new(
        config: &Config,
        grid: &Grid,
        schedule: &Schedule,
        world: Comm,
        store: ParamStore,
        precision: Precision,
        recompute: Recompute,
        recipe: Recipe,
        optimizer: OptimizerConfig,
    ) -> Result<Self> {
        let rank = world.rank();
        let ep = world.subgroup(&grid.expert_group(rank), EXPERT_GROUP)?;
        let pipeline = world.subgroup(&grid.pipeline_group(rank), PIPELINE_GROUP)?;
        let mut settings =
            Settings::new(config, precision, recompute, grid.expert, grid.experts_per_node(world.ranks_per_node()))?;
        settings.balance_alpha = recipe.balance_alpha;
        settings.report_divergence = true;
        let optimizer = Optimizer::new(optimizer, store.layout(), &world)?;
        let model = RankModel::new(config, grid, rank, settings, store, ep, recipe.mtp_lambda, Packing::Training)?;
        let (_, expert_rank) = grid.coordinates(rank);
        let (schedule, overlap, waits) = (schedule.clone(), ExecuteOptions::default(), Waits::default());
        Ok(Self { model, optimizer, world, waits, pipeline, schedule, expert_rank, expert_ranks: grid.expert, recipe, overlap })
    }

    /// Orders the components of a step. Unless they run one after another, exchanges get a lane of their own. Every rank of the
    /// world calls it with the same order; no order changes a bit of any result.
    pub fn set_overlap(&mut self, overlap: Overlap) -> Result<()> {
        self.model.lane = None;
        if overlap != Overlap::Off && self.expert_ranks > 1 {
            self.model.lane = Some(exchange::lane(self.model.expert_group())?);
        }
        self.overlap = ExecuteOptions::new(overlap);
        Ok(())
    }

    /// What pairs and other steps of the last run took, summed over all ranks. A collective operation.
    pub fn overlap_figures(&self) -> Result<OverlapFigures> {
        let lists = |half, stage| self.model.components(half, stage);
        let (rank, costs) = (self.pipeline.rank(), self.model.costs.as_deref());
        let mut sums = OverlapFigures::new(&self.schedule, rank, lists, &self.model.records, costs).to_array();
        self.world.all_reduce_sum(&mut sums)?;
        Ok(OverlapFigures::from_array(sums))
    }

    /// Runs the components of one chunk of `stage`, forward and then backward, one after another with a barrier before each exchange, and returns
    /// for each of them its half, what it is, what it took and what this rank sent for it. Every rank of the expert-parallel group calls it.
    pub fn measure_components(&mut self, stage: usize, batch: &MicroBatch) -> Result<Vec<Measured>> {
        let chunk = self.chunk(batch, 1);
        let (rows, hidden) = (chunk.sequences * chunk.rows, self.model.config.hidden_size);
        self.model.begin_step(vec![chunk]);
        let last = stage + 1 == self.schedule.stages();
        let ep = self.model.expert_group().clone();
        let mut measured = Vec::new();
        for half in [Half::Forward, Half::Backward] {
            let own = if half == Half::Forward { stage == 0 } else { last };
            let input = (!own).then(|| (0..rows * hidden).map(|i| 1e-3 * ((i % 7) as f32 - 3.0)).collect());
            self.model.begin(half, dualpipe::Work { stage, micro_batch: 0, input })?;
            for (index, component) in self.model.components(half, stage).into_iter().enumerate() {
                let before = ep.traffic();
                let begun;
                if component.kind.communicates() {
                    ep.barrier()?;
                    begun = Instant::now();
                    self.model.start(half, stage, 0, index)?;
                    self.model.finish(half, stage, 0, index)?;
                } else {
                    begun = Instant::now();
                    self.model.compute(half, stage, 0, index)?;
                }
                let seconds = begun.elapsed().as_secs_f64();
                let sent = ep.traffic().since(&before);
                measured.push(Measured { half, component, seconds, slow_bytes: sent.slow.bytes, fast_bytes: sent.fast.bytes });
            }
            self.model.result(half, stage, 0)?;
            self.model.end(half, stage, 0)?;
        }
        Ok(measured)
    }

    /// This rank's share of a micro-batch.
    pub fn chunk(&self, batch: &MicroBatch, micro_batches: usize) -> Chunk {
        let own = sequences_of(batch.sequences, self.expert_ranks, self.expert_rank);
        Chunk {
            sequences: own.len(),
            tokens: batch.tokens,
            rows: batch.tokens - 1,
            ids: batch.ids[own.start * batch.tokens..own.end * batch.tokens].to_vec(),
            global_sequences: batch.sequences,
            first_sequence: own.start,
            micro_batches,
        }
    }

    /// Forward and backward of all micro-batches under the schedule. Gradients are this rank's own afterwards.
    pub fn run(&mut self, step: u64, batches: &[MicroBatch]) -> Result<(StepOutcome, Vec<Span>)> {
        let chunks = batches.iter().map(|b| self.chunk(b, batches.len())).collect();
        self.model.begin_step(chunks);
        let before = self.pipeline.waits();
        let spans = dualpipe::execute_with(&self.schedule, &self.pipeline, &mut self.model, step, &self.overlap);
        let spans = spans.map_err(execute_error)?;
        self.waits = self.pipeline.waits().since(&before);
        self.model.end_step()?;
        // The losses must not be in the way of other ranks' last exchanges.
        self.world.barrier()?;
        Ok((self.outcome(batches)?, spans))
    }

    /// Sums gradients over ranks, updates weights and router biases.
    pub fn update(&mut self, step: u64, lr: f64, outcome: &mut StepOutcome, counts: &[u64]) -> Result<()> {
        outcome.grad_norm = self.optimizer.reduce(&mut self.model, &self.world)?;
        if outcome.grad_norm.is_finite() {
            self.update_biases(counts)?;
            self.optimizer.update(&mut self.model, step, lr, outcome.grad_norm)?;
        }
        Ok(())
    }

    /// Tokens sent to each expert of each layer in this step, over all ranks: `[layers and modules, experts]`.
    pub fn expert_counts(&self) -> Result<Vec<u64>> {
        let config = &self.model.config;
        let experts = config.n_routed_experts;
        let mut counts = vec![0; (config.num_hidden_layers + config.num_nextn_predict_layers) * experts];
        for (_, report) in &self.model.report.routers {
            let layer = &mut counts[report.layer * experts..(report.layer + 1) * experts];
            layer.iter_mut().zip(&report.counts).for_each(|(sum, n)| *sum += n);
        }
        self.world.all_reduce_sum(&mut counts)?;
        Ok(counts)
    }

    fn update_biases(&mut self, counts: &[u64]) -> Result<()> {
        let experts = self.model.config.n_routed_experts.max(1);
        for (layer, counts) in counts.chunks_exact(experts).enumerate() {
            let range = self.model.store.layout().find(&bias_name(layer)).map(|p| p.range());
            if let Some(range) = range {
                balance::update_bias(&mut self.model.store.weights[range], counts, self.recipe.bias_gamma)?;
            }
        }
        Ok(())
    }

    /// The losses of all ranks' chunks, summed in an order that no layout changes.
    fn outcome(&self, batches: &[MicroBatch]) -> Result<StepOutcome> {
        // (depth, or number of depths + layer; micro-batch; sequence; sum of losses)
        let depths = 1 + self.model.config.num_nextn_predict_layers;
        let mut entries: Vec<f64> = Vec::new();
        for (&micro_batch, report) in &self.model.report.tails {
            let first = self.model.chunks[micro_batch].first_sequence;
            for (depth, sums) in report.loss_sums.iter().enumerate() {
                for (i, &sum) in sums.iter().enumerate() {
                    entries.extend([depth as f64, micro_batch as f64, (first + i) as f64, sum]);
                }
            }
        }
        for (micro_batch, router) in &self.model.report.routers {
            let first = self.model.chunks[*micro_batch].first_sequence;
            for (i, &loss) in router.balance.iter().enumerate() {
                entries.extend([(depths + router.layer) as f64, *micro_batch as f64, (first + i) as f64, loss]);
            }
        }
        let all = self.world.all_gather_v(&entries)?;
        let mut entries: Vec<[f64; 4]> = all.iter().flat_map(|e| e.as_chunks::<4>().0.iter().copied()).collect();
        entries.sort_by(|a, b| a[..3].partial_cmp(&b[..3]).unwrap_or(std::cmp::Ordering::Equal));

        let chunk = &self.model.chunks[0];
        let (count, sequences) = (batches.len() as f64, batches[0].sequences as f64);
        let targets = |depth: usize| (chunk.targets_per_sequence(depth) as f64 * sequences).max(1.0);
        let mut micro_losses = vec![0.0; batches.len()];
        let mut sums = vec![0.0; depths];
        let mut balance_loss = 0.0;
        for [kind, micro_batch, _, sum] in entries {
            let kind = kind as usize;
            if kind == 0 {
                micro_losses[micro_batch as usize] += sum / targets(0);
            }
            match sums.get_mut(kind) {
                Some(total) => *total += sum,
                None => balance_loss += sum / (count * sequences),
            }
        }
        let mean = |depth: usize| sums[depth] / (count * targets(depth));
        let main_loss = mean(0);
        let modules = self.model.stages.values().filter_map(|s| s.tail.as_ref()).map(|t| t.modules.len()).max().unwrap_or(0);
        let mut modules = [modules as u64];
        self.world.all_reduce(&mut modules, u64::max)?;
        let mtp_losses: Vec<f64> = (1..=modules[0] as usize).map(mean).collect();
        let mtp: f64 = mtp_losses.iter().map(|l| l * self.recipe.mtp_lambda / mtp_losses.len() as f64).sum();
        let loss = main_loss + mtp + balance_loss;
        Ok(StepOutcome { micro_losses, loss, main_loss, mtp_losses, balance_loss, max_load: 1.0, grad_norm: f64::NAN })
    }

    /// The first half of a step: forward and backward of all micro-batches, and the load of the experts.
    pub fn forward_backward(&mut self, step: u64, batches: &[MicroBatch]) -> Result<(StepOutcome, Vec<Span>, Vec<u64>)> {
        let (mut outcome, spans) = self.run(step, batches)?;
        let counts = self.expert_counts()?;
        outcome.max_load = max_load(&counts, self.model.config.n_routed_experts);
        Ok((outcome, spans, counts))
    }

    /// A whole step: forward, backward, update. Nothing is updated when the loss or the gradient is not finite.
    pub fn step(&mut self, step: u64, lr: f64, batches: &[MicroBatch]) -> Result<(StepOutcome, Vec<Span>)> {
        let (mut outcome, spans, counts) = self.forward_backward(step, batches)?;
        if outcome.loss.is_finite() {
            self.update(step, lr, &mut outcome, &counts)?;
        }
        Ok((outcome, spans))
    }

    /// Whether every weight of every rank is finite.
    pub fn weights_are_finite(&self) -> Result<bool> {
        let mut bad = [u64::from(!self.model.store.weights.iter().all(|w| w.is_finite()))];
        self.world.all_reduce(&mut bad, u64::max)?;
        Ok(bad[0] == 0)
    }

    /// The measured times of all pipeline ranks of this rank's pipeline.
    pub fn timeline(&self, spans: &[Span]) -> Result<dualpipe::Timeline> {
        Ok(dualpipe::gather(&self.schedule, &self.pipeline, spans)?)
    }
}

/// Largest load of an expert over the mean of its layer, over the layers that had any; 1 where there is none.
pub fn max_load(counts: &[u64], experts: usize) -> f64 {
    let layers = counts.chunks_exact(experts.max(1)).filter(|l| l.iter().any(|&n| n > 0));
    let load = |l: &[u64]| {
        let (max, sum) = (l.iter().copied().max().unwrap_or(0), l.iter().sum::<u64>());
        max as f64 * l.len() as f64 / sum as f64
    };
    layers.map(load).fold(1.0, f64::max)
}

fn execute_error(error: ExecuteError<Error>) -> Error {
    match error {
        ExecuteError::Stage { error, .. } => error,
        other => Error::Piece { piece: "dualpipe", message: other.to_string() },
    }
}
