//! The model as one rank holds it: its stages' weights, its gradients, and what its chunks keep between forward and backward.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use v3_numerics::ops;
use v3_ranks::Comm;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::layers::block::{self, Block};
use crate::layers::linear::Packing;
use crate::layers::moe::{self, RouterReport};
use crate::layers::tail::{self, Chunk, Tail, TailReport};
use crate::layers::{Rows, Settings};
use crate::params::ParamStore;

/// One stage's weights.
#[derive(Debug)]
pub struct StageWeights {
    /// The embedding, on the first stage.
    pub embed: Option<Range<usize>>,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// Norm, head and modules, on the last stage.
    pub tail: Option<Tail>,
}

/// What a chunk keeps on one stage.
#[derive(Debug)]
pub struct Saved {
    /// Of each block.
    pub blocks: Vec<block::Saved>,
    /// Of the tail.
    pub tail: Option<tail::Saved>,
    dinput: Vec<f32>,
}

/// Bytes of activations by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ActivationBytes {
    /// Kept by attention halves.
    pub attention: usize,
    /// Kept by feed-forward halves.
    pub ffn: usize,
    /// Kept by norm, head and modules.
    pub tail: usize,
}

impl ActivationBytes {
    /// All of them.
    pub fn total(&self) -> usize {
        self.attention + self.ffn + self.tail
    }
}

/// What the chunks of a step reported on this rank.
#[derive(Debug, Default)]
pub struct StepReport {
    /// By micro-batch.
    pub tails: BTreeMap<usize, TailReport>,
    /// Micro-batch and report of each block's router.
    pub routers: Vec<(usize, RouterReport)>,
}

/// The model of one rank.
#[derive(Debug)]
pub struct RankModel {
    /// The configuration.
    pub config: Config,
    /// Tables and settings.
    pub settings: Settings,
    /// Parameters.
    pub store: ParamStore,
    /// Gradients, in the layout of the parameters; empty for inference.
    pub grads: Vec<f32>,
    /// The stages, by index.
    pub stages: BTreeMap<usize, StageWeights>,
    /// The chunk of each micro-batch of the current step.
    pub chunks: Vec<Chunk>,
    /// What the chunks of this step reported.
    pub report: StepReport,
    /// The largest sum of kept bytes so far, split by kind at that moment.
    pub peak: ActivationBytes,
    ep: Comm,
    saved: HashMap<(usize, usize), Saved>,
    kept: HashMap<(usize, usize), ActivationBytes>,
}

impl RankModel {
    /// The model of world rank `rank`, whose parameters `store` are already loaded or initialised.
    pub fn new(
        config: &Config,
        grid: &Grid,
        rank: usize,
        settings: Settings,
        store: ParamStore,
        ep: Comm,
        mtp_lambda: f64,
        packing: Packing,
    ) -> Result<Self> {
        let (p, e) = grid.coordinates(rank);
        let experts = moe::local_experts(config, e, grid.expert);
        let precision = settings.precision;
        let mut stages = BTreeMap::new();
        for &stage in &grid.stages_of[p] {
            let blocks = grid.layers[stage]
                .clone()
                .map(|layer| Block::new(config, layer, experts.clone(), &store, precision, packing))
                .collect::<Result<_>>()?;
            let mut weights = vec![1.0];
            weights.extend((0..grid.modules).map(|_| mtp_lambda / grid.modules as f64));
            let last = stage + 1 == grid.layers.len();
            let tail = last.then(|| Tail::new(config, grid.modules, weights, experts.clone(), &store, precision, packing));
            let embed = if stage == 0 { Some(store.param(tail::EMBED)?.range()) } else { None };
            stages.insert(stage, StageWeights { embed, blocks, tail: tail.transpose()? });
        }
        let grads = if packing == Packing::Training { vec![0.0; store.weights.len()] } else { Vec::new() };
        Ok(Self {
            config: config.clone(),
            settings,
            store,
            grads,
            stages,
            chunks: Vec::new(),
            report: StepReport::default(),
            peak: ActivationBytes::default(),
            ep,
            saved: HashMap::new(),
            kept: HashMap::new(),
        })
    }

    /// Packs the weights again after an update.
    pub fn pack(&mut self) -> Result<()> {
        for stage in self.stages.values_mut() {
            stage.blocks.iter_mut().try_for_each(|b| b.pack(&self.store))?;
            stage.tail.iter_mut().try_for_each(|t| t.pack(&self.store))?;
        }
        Ok(())
    }

    /// Bytes of packed weights.
    pub fn packed_bytes(&self) -> usize {
        let stage = |s: &StageWeights| s.blocks.iter().map(Block::bytes).sum::<usize>() + s.tail.as_ref().map_or(0, Tail::bytes);
        self.stages.values().map(stage).sum()
    }

    /// Starts a step: its chunks, by micro-batch. Gradients are cleared.
    pub fn begin_step(&mut self, chunks: Vec<Chunk>) {
        self.chunks = chunks;
        self.grads.fill(0.0);
        self.report = StepReport::default();
        self.saved.clear();
        self.kept.clear();
    }

    /// The expert-parallel group.
    pub fn expert_group(&self) -> &Comm {
        &self.ep
    }

    /// What a chunk keeps on a stage, until its backward for weights.
    pub fn saved(&self, stage: usize, micro_batch: usize) -> Option<&Saved> {
        self.saved.get(&(stage, micro_batch))
    }

    /// Drops what a chunk kept on a stage: for forward passes without a backward.
    pub fn discard(&mut self, stage: usize, micro_batch: usize) -> Option<Saved> {
        self.kept.remove(&(stage, micro_batch));
        self.saved.remove(&(stage, micro_batch))
    }

    fn weights(&self, stage: usize) -> Result<&StageWeights> {
        self.stages.get(&stage).ok_or_else(|| missing(stage))
    }

    fn chunk(&self, micro_batch: usize) -> Result<&Chunk> {
        let found = self.chunks.get(micro_batch);
        found.ok_or_else(|| Error::Piece { piece: "v3-model", message: format!("no micro-batch {micro_batch} in this step") })
    }

    fn account(&mut self, key: (usize, usize)) {
        let Some(saved) = self.saved.get(&key) else {
            self.kept.remove(&key);
            return;
        };
        let mut bytes = ActivationBytes { tail: saved.tail.as_ref().map_or(0, tail::Saved::bytes), ..Default::default() };
        for (attention, ffn) in saved.blocks.iter().map(block::Saved::bytes) {
            bytes.attention += attention;
            bytes.ffn += ffn;
        }
        bytes.ffn += saved.dinput.len() * 4;
        self.kept.insert(key, bytes);
        let sum = self.kept.values().fold(ActivationBytes::default(), |a, b| ActivationBytes {
            attention: a.attention + b.attention,
            ffn: a.ffn + b.ffn,
            tail: a.tail + b.tail,
        });
        if sum.total() > self.peak.total() {
            self.peak = sum;
        }
    }
}

fn missing(stage: usize) -> Error {
    Error::Piece { piece: "v3-model", message: format!("stage {stage} is not on this rank") }
}

impl dualpipe::Stage for RankModel {
    type Error = Error;

    fn forward(&mut self, stage: usize, micro_batch: usize, input: Option<Vec<f32>>) -> Result<Option<Vec<f32>>> {
        let weights = self.weights(stage)?;
        let chunk = self.chunk(micro_batch)?;
        let env = self.settings.env(&self.store, &self.ep);
        let rows: Rows = chunk.rows_of(0);
        let mut x = match (&weights.embed, input) {
            (Some(embed), None) => {
                let mut x = vec![0.0; rows.len() * env.hidden];
                ops::embedding_gather(&chunk.inputs(0), self.store.at(embed), env.hidden, &mut x)?;
                x
            }
            (None, Some(x)) => x,
            _ => return Err(crate::layers::out_of_order("stage")),
        };
        let mut saved = Saved { blocks: Vec::with_capacity(weights.blocks.len()), tail: None, dinput: Vec::new() };
        let mut routers = Vec::new();
        for block in &weights.blocks {
            let (y, s, router) = block.forward(&env, &rows, x)?;
            saved.blocks.push(s);
            routers.extend(router);
            x = y;
        }
        let mut output = None;
        let mut tail_report = None;
        match &weights.tail {
            Some(tail) => {
                let (s, report) = tail.forward(&env, chunk, x)?;
                saved.tail = Some(s);
                tail_report = Some(report);
            }
            None => output = Some(x),
        }
        if let Some(mut report) = tail_report {
            routers.append(&mut report.routers);
            self.report.tails.insert(micro_batch, report);
        }
        self.report.routers.extend(routers.into_iter().map(|r| (micro_batch, r)));
        self.saved.insert((stage, micro_batch), saved);
        self.account((stage, micro_batch));
        Ok(output)
    }

    fn backward_input(&mut self, stage: usize, micro_batch: usize, grad: Option<Vec<f32>>) -> Result<Option<Vec<f32>>> {
        let key = (stage, micro_batch);
        let mut saved = self.saved.remove(&key).ok_or_else(|| crate::layers::out_of_order("stage"))?;
        let weights = self.weights(stage)?;
        let chunk = self.chunk(micro_batch)?;
        let env = self.settings.env(&self.store, &self.ep);
        let rows = chunk.rows_of(0);
        let mut dx = match (&weights.tail, &mut saved.tail, grad) {
            (Some(tail), Some(s), None) => tail.backward_input(&env, chunk, s)?,
            (None, None, Some(grad)) => grad,
            _ => return Err(crate::layers::out_of_order("stage")),
        };
        for (block, s) in weights.blocks.iter().zip(&mut saved.blocks).rev() {
            dx = block.backward_input(&env, &rows, s, dx)?;
        }
        let output = if weights.embed.is_some() {
            saved.dinput = dx;
            None
        } else {
            Some(dx)
        };
        self.saved.insert(key, saved);
        self.account(key);
        Ok(output)
    }

    fn backward_weight(&mut self, stage: usize, micro_batch: usize) -> Result<()> {
        let key = (stage, micro_batch);
        let saved = self.saved.remove(&key).ok_or_else(|| crate::layers::out_of_order("stage"))?;
        let Self { settings, store, grads, stages, chunks, ep, .. } = self;
        let env = settings.env(store, ep);
        let weights = stages.get(&stage).ok_or_else(|| missing(stage))?;
        let chunk = chunks.get(micro_batch).ok_or_else(|| crate::layers::out_of_order("stage"))?;
        if let (Some(tail), Some(s)) = (&weights.tail, saved.tail) {
            tail.backward_weight(&env, chunk, s, grads)?;
        }
        for (block, s) in weights.blocks.iter().zip(saved.blocks).rev() {
            block.backward_weight(&env, s, grads)?;
        }
        if let Some(embed) = &weights.embed {
            ops::embedding_scatter_add(&chunk.inputs(0), &env.factor(&saved.dinput), env.hidden, &mut grads[embed.clone()])?;
        }
        self.account(key);
        Ok(())
    }
}
