//! The model as one rank holds it: its stages' weights, its gradients, and what its chunks keep between forward and backward.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use dualpipe::{Component, ComponentCosts, ComponentKind, Half, StageComponents, Work};
use v3_ranks::{Comm, Lane};

use crate::components::{self, BackwardFlight, ForwardFlight, Record};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::layers::Settings;
use crate::layers::block::{self, Block};
use crate::layers::linear::Packing;
use crate::layers::moe::{self, RouterReport};
use crate::layers::tail::{self, Chunk, Tail, TailReport};
use crate::params::ParamStore;

/// One stage's weights.
#[derive(Debug)]
pub struct StageWeights {
    /// Number of the first block's layer in the model.
    pub first_layer: usize,
    /// The components of a forward and of a backward; see [`crate::components`].
    pub components: [Vec<Component>; 2],
    /// The embedding, on the first stage.
    pub embed: Option<Range<usize>>,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// Norm, head and modules, on the last stage.
    pub tail: Option<Tail>,
}

/// What a chunk keeps on one stage.
#[derive(Debug, Default)]
pub struct Saved {
    /// Of each block.
    pub blocks: Vec<block::Saved>,
    /// Of the tail.
    pub tail: Option<tail::Saved>,
    pub(crate) dinput: Vec<f32>,
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
    /// Where the modules' gradient of the embedding is summed while another stage of this rank sums its own: chunks of different
    /// stages may do their weights in any order. Empty where one stage has both, or there are no modules.
    pub(crate) module_embed: Vec<f32>,
    /// What the components of this step took.
    pub records: Vec<Record>,
    /// What each computing component takes, for a world under the virtual clock.
    pub costs: Option<Arc<ComponentCosts>>,
    /// Where exchanges run while the rank computes; without it they run where they are waited for.
    pub lane: Option<Lane>,
    pub(crate) ep: Comm,
    /// By stage and micro-batch, as the next three.
    pub(crate) saved: HashMap<(usize, usize), Saved>,
    pub(crate) forwards: HashMap<(usize, usize), ForwardFlight>,
    pub(crate) backwards: HashMap<(usize, usize), BackwardFlight>,
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
            let components = [Half::Forward, Half::Backward].map(|half| components::list(config, grid, half, stage));
            let first_layer = grid.layers[stage].start;
            stages.insert(stage, StageWeights { first_layer, components, embed, blocks, tail: tail.transpose()? });
        }
        let grads = if packing == Packing::Training { vec![0.0; store.weights.len()] } else { Vec::new() };
        let tails = stages.iter().filter_map(|(&stage, weights)| Some((stage, weights.tail.as_ref()?.embed.as_ref()?)));
        let apart = tails.filter(|(stage, _)| *stage != 0 && stages.contains_key(&0)).map(|(_, embed)| embed.len());
        let apart = if grads.is_empty() { 0 } else { apart.sum() };
        Ok(Self {
            config: config.clone(),
            settings,
            store,
            grads,
            stages,
            chunks: Vec::new(),
            report: StepReport::default(),
            peak: ActivationBytes::default(),
            module_embed: vec![0.0; apart],
            records: Vec::new(),
            costs: None,
            lane: None,
            ep,
            saved: HashMap::new(),
            forwards: HashMap::new(),
            backwards: HashMap::new(),
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
        self.module_embed.fill(0.0);
        self.report = StepReport::default();
        self.records.clear();
        self.saved.clear();
        self.forwards.clear();
        self.backwards.clear();
        self.kept.clear();
    }

    /// Bytes of gradients.
    pub fn gradient_bytes(&self) -> usize {
        (self.grads.len() + self.module_embed.len()) * 4
    }

    /// Ends a step, all of whose chunks are done: gradients are whole.
    pub fn end_step(&mut self) -> Result<()> {
        let embed = self.stages.values().find_map(|stage| stage.embed.clone());
        if let Some(embed) = embed.filter(|_| !self.module_embed.is_empty()) {
            v3_numerics::ops::add_assign(&mut self.grads[embed], &self.module_embed)?;
            self.module_embed.fill(0.0);
        }
        Ok(())
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

    /// Counts what a chunk keeps now.
    pub(crate) fn account(&mut self, key: (usize, usize)) {
        let Some(saved) = self.saved.get(&key) else {
            self.kept.remove(&key);
            return;
        };
        let mut bytes = ActivationBytes { tail: saved.tail.as_ref().map_or(0, tail::Saved::bytes), ..Default::default() };
        for (attention, ffn) in saved.blocks.iter().map(block::Saved::bytes) {
            bytes.attention += attention;
            bytes.ffn += ffn;
        }
        bytes.ffn += saved.dinput.len() * 4 + self.forwards.get(&key).map_or(0, ForwardFlight::bytes);
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

impl dualpipe::Stage for RankModel {
    type Error = Error;

    fn forward(&mut self, stage: usize, micro_batch: usize, input: Option<Vec<f32>>) -> Result<Option<Vec<f32>>> {
        self.begin(Half::Forward, Work { stage, micro_batch, input })?;
        self.run_all(Half::Forward, stage, micro_batch, |_| true)?;
        let result = self.result(Half::Forward, stage, micro_batch)?;
        self.end(Half::Forward, stage, micro_batch)?;
        Ok(result)
    }

    fn backward_input(&mut self, stage: usize, micro_batch: usize, grad: Option<Vec<f32>>) -> Result<Option<Vec<f32>>> {
        self.begin(Half::Backward, Work { stage, micro_batch, input: grad })?;
        self.run_all(Half::Backward, stage, micro_batch, |kind| !kind.is_weight())?;
        self.result(Half::Backward, stage, micro_batch)
    }

    fn backward_weight(&mut self, stage: usize, micro_batch: usize) -> Result<()> {
        self.run_all(Half::Backward, stage, micro_batch, ComponentKind::is_weight)?;
        self.end(Half::Backward, stage, micro_batch)
    }

    fn by_components(&mut self) -> Option<&mut dyn StageComponents<Error = Error>> {
        Some(self)
    }
}
