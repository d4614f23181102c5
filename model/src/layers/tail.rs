//! What follows the last block: the final norm, the output head with its loss, and the multi-token-prediction modules.
//!
//! A module of depth k reads, at position t, the hidden state that depth k - 1 produced there (of the main model for k = 1),
//! *after its final norm*, and the embedding of token t + k; its output predicts token t + k + 1 through the main model's own
//! head. Embedding and head are the main model's, not copies.

use std::ops::Range;

use fp8_gemm::Precision;
use fp8_gemm::linear::Activation;
use mtp::{GradScale, Head, MergeNorms, MergeSaved};
use v3_numerics::view::{MatMut, MatRef};
use v3_numerics::{gemm, ops};

use super::block::{self, Block};
use super::linear::{Linear, Packing};
use super::moe::RouterReport;
use super::{Env, Rows};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::params::ParamStore;

/// Name of the embedding.
pub const EMBED: &str = "model.embed_tokens.weight";
/// Name of the output head.
pub const HEAD: &str = "lm_head.weight";
/// Name of the main model's final norm.
pub const NORM: &str = "model.norm.weight";

/// The token ids of one chunk of one rank, and how its losses are weighted.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Sequences of this rank.
    pub sequences: usize,
    /// Tokens known of each sequence.
    pub tokens: usize,
    /// Rows computed of each sequence: `tokens - 1` when training (the last token is only a target), else `tokens`.
    pub rows: usize,
    /// `[sequences, tokens]`.
    pub ids: Vec<u32>,
    /// Sequences of the whole micro-batch, over all expert-parallel ranks.
    pub global_sequences: usize,
    /// Index of this rank's first sequence among them.
    pub first_sequence: usize,
    /// Micro-batches of the step.
    pub micro_batches: usize,
}

impl Chunk {
    /// The rows that depth `k` computes.
    pub fn rows_of(&self, k: usize) -> Rows {
        let scale = 1.0 / (self.global_sequences * self.micro_batches).max(1) as f32;
        Rows::uniform(self.sequences, self.rows.saturating_sub(k), k as u32, scale)
    }

    /// The tokens that the rows of depth `k` embed: the token at a row's own position.
    pub fn inputs(&self, k: usize) -> Vec<u32> {
        self.ids.chunks_exact(self.tokens).flat_map(|ids| ids[k.min(self.rows)..self.rows].iter().copied()).collect()
    }

    /// The tokens that the rows of depth `k` predict; -1 past the end.
    pub fn targets(&self, k: usize) -> Vec<i64> {
        let rows = self.rows.saturating_sub(k);
        let target = |ids: &[u32], t: usize| ids.get(t + k + 1).map_or(-1, |&id| i64::from(id));
        self.ids.chunks_exact(self.tokens).flat_map(|ids| (0..rows).map(move |t| target(ids, t))).collect()
    }

    /// Targets of depth `k` in one sequence.
    pub fn targets_per_sequence(&self, k: usize) -> usize {
        self.rows.saturating_sub(k).min(self.tokens.saturating_sub(k + 1))
    }

    /// Weight of one token's loss at depth `k` in the loss of the step; `weight` is the depth's own.
    pub fn token_scale(&self, k: usize, weight: f64) -> f32 {
        let tokens = (self.global_sequences * self.targets_per_sequence(k) * self.micro_batches).max(1);
        (weight / tokens as f64) as f32
    }

    /// The first rows of each sequence of `x`: the rows of depth `k` out of those of depth `k - 1`.
    fn narrow(&self, x: &[f32], k: usize, hidden: usize) -> Vec<f32> {
        let (from, to) = (self.rows.saturating_sub(k - 1) * hidden, self.rows.saturating_sub(k) * hidden);
        if from == 0 { Vec::new() } else { x.chunks_exact(from).flat_map(|s| s[..to].iter().copied()).collect() }
    }

    /// The transpose of [`Chunk::narrow`]: adds `dx` to the first rows of each sequence of `dwide`.
    fn widen_add(&self, dx: &[f32], k: usize, hidden: usize, dwide: &mut [f32]) -> Result<()> {
        let (wide, narrow) = (self.rows.saturating_sub(k - 1) * hidden, self.rows.saturating_sub(k) * hidden);
        if narrow > 0 {
            for (to, from) in dwide.chunks_exact_mut(wide).zip(dx.chunks_exact(narrow)) {
                ops::add_assign(&mut to[..narrow], from)?;
            }
        }
        Ok(())
    }
}

/// One multi-token-prediction module.
#[derive(Debug)]
pub struct Module {
    /// `enorm`: norm of the embedding.
    pub enorm: Range<usize>,
    /// `hnorm`: norm of the hidden state.
    pub hnorm: Range<usize>,
    /// `eh_proj`.
    pub proj: Linear,
    /// Its block.
    pub block: Block,
    /// `shared_head.norm`.
    pub norm: Range<usize>,
}

/// Final norm, head and modules.
#[derive(Debug)]
pub struct Tail {
    /// Final norm of the main model.
    pub norm: Range<usize>,
    /// Output head.
    pub head: Range<usize>,
    /// Embedding, when there are modules.
    pub embed: Option<Range<usize>>,
    /// The modules, depth 1 first.
    pub modules: Vec<Module>,
    /// Weight of each depth's mean loss in the loss: 1, then lambda / D for each module.
    pub weights: Vec<f64>,
}

/// The tensors beside its block of the module whose layer index is `layer`, in memory order.
pub fn module_tensor_names(layer: usize) -> Vec<String> {
    ["eh_proj.weight", "enorm.weight", "hnorm.weight", "shared_head.norm.weight"]
        .map(|n| format!("model.layers.{layer}.{n}"))
        .into()
}

/// One head: what its rows were, and what the loss found.
#[derive(Debug)]
struct HeadSaved {
    x: Vec<f32>,
    rstd: Vec<f32>,
    h: Vec<f32>,
    lse: Vec<f32>,
    targets: Vec<i64>,
    scale: f32,
    dh: Vec<f32>,
}

#[derive(Debug)]
struct ModuleSaved {
    rows: Rows,
    emb: Vec<f32>,
    prev: Vec<f32>,
    rstds: [Vec<f32>; 2],
    merged: Activation,
    block: block::Saved,
    head: HeadSaved,
    dproj: Vec<f32>,
    dmerged: Vec<f32>,
    demb: Vec<f32>,
}

/// What the forward leaves for the backward.
#[derive(Debug)]
pub struct Saved {
    main: HeadSaved,
    modules: Vec<ModuleSaved>,
}

/// What the heads found for one chunk.
#[derive(Debug, Clone, Default)]
pub struct TailReport {
    /// `[depth][sequence]`: the sum of the losses of the sequence's tokens, depth 0 being the main model.
    pub loss_sums: Vec<Vec<f64>>,
    /// `[depth]`: for each row, the most likely token.
    pub argmax: Vec<Vec<u32>>,
    /// Reports of the modules' routers.
    pub routers: Vec<RouterReport>,
}

impl Tail {
    /// Packs the weights, with `modules` modules.
    pub fn new(
        config: &Config,
        modules: usize,
        weights: Vec<f64>,
        experts: Range<usize>,
        store: &ParamStore,
        precision: Precision,
        packing: Packing,
    ) -> Result<Self> {
        let module = |k: usize| -> Result<Module> {
            let layer = config.num_hidden_layers + k;
            let range = |n: &str| Ok::<_, Error>(store.param(&format!("model.layers.{layer}.{n}.weight"))?.range());
            Ok(Module {
                enorm: range("enorm")?,
                hnorm: range("hnorm")?,
                proj: Linear::new(store, &[format!("model.layers.{layer}.eh_proj.weight")], precision, packing)?,
                block: Block::new(config, layer, experts.clone(), store, precision, packing)?,
                norm: range("shared_head.norm")?,
            })
        };
        Ok(Self {
            norm: store.param(NORM)?.range(),
            head: store.param(HEAD)?.range(),
            embed: if modules > 0 { Some(store.param(EMBED)?.range()) } else { None },
            modules: (0..modules).map(module).collect::<Result<_>>()?,
            weights,
        })
    }

    /// Packs the current values again.
    pub fn pack(&mut self, store: &ParamStore) -> Result<()> {
        for module in &mut self.modules {
            module.proj.pack(store, Packing::Training)?;
            module.block.pack(store)?;
        }
        Ok(())
    }

    /// Bytes of packed weights.
    pub fn bytes(&self) -> usize {
        self.modules.iter().map(|m| m.proj.bytes() + m.block.bytes()).sum()
    }

    fn head<'a>(&self, env: &Env<'a>, h: &'a [f32], targets: &'a [i64]) -> Head<'a> {
        let w = env.store.at(&self.head);
        Head { h, w, targets, hidden: env.hidden, vocab: w.len() / env.hidden }
    }

    fn head_forward(
        &self,
        env: &Env<'_>,
        chunk: &Chunk,
        k: usize,
        norm: &Range<usize>,
        x: Vec<f32>,
        report: &mut TailReport,
    ) -> Result<HeadSaved> {
        let (mut h, mut rstd) = (vec![0.0; x.len()], vec![0.0; x.len() / env.hidden]);
        ops::rms_norm(&x, env.store.at(norm), env.eps, &mut h, &mut rstd)?;
        let targets = chunk.targets(k);
        let out = mtp::head_forward(&self.head(env, &h, &targets))?;
        let rows = chunk.rows.saturating_sub(k);
        let sum = |losses: &[f32]| losses.iter().map(|&l| f64::from(l)).sum::<f64>();
        let sums = if rows == 0 { vec![0.0; chunk.sequences] } else { out.loss.chunks_exact(rows).map(sum).collect() };
        report.loss_sums.push(sums);
        report.argmax.push(out.argmax);
        let scale = chunk.token_scale(k, self.weights.get(k).copied().unwrap_or(0.0));
        Ok(HeadSaved { x, rstd, h, lse: out.lse, targets, scale, dh: Vec::new() })
    }

    /// Forward of one chunk: the losses of all depths.
    pub fn forward(&self, env: &Env<'_>, chunk: &Chunk, x: Vec<f32>) -> Result<(Saved, TailReport)> {
        let mut report = TailReport::default();
        let main = self.head_forward(env, chunk, 0, &self.norm, x, &mut report)?;
        let mut saved = Saved { main, modules: Vec::new() };
        for (i, module) in self.modules.iter().enumerate() {
            let k = i + 1;
            let before = saved.modules.last().map_or(&saved.main.h, |m: &ModuleSaved| &m.head.h);
            let prev = chunk.narrow(before, k, env.hidden);
            let rows = chunk.rows_of(k);
            let mut emb = vec![0.0; rows.len() * env.hidden];
            let table = env.store.at(self.embed.as_ref().ok_or_else(|| super::out_of_order("embedding"))?);
            ops::embedding_gather(&chunk.inputs(k), table, env.hidden, &mut emb)?;
            let (merged, rstds) = module.merge(env, &emb, &prev)?;
            let merged = env.activation(merged, rows.len(), 2 * env.hidden)?;
            let y = module.proj.forward(&merged)?;
            let (x, block, router) = module.block.forward(env, &rows, y)?;
            report.routers.extend(router);
            let head = self.head_forward(env, chunk, k, &module.norm, x, &mut report)?;
            let (dproj, dmerged, demb) = Default::default();
            saved.modules.push(ModuleSaved { rows, emb, prev, rstds, merged, block, head, dproj, dmerged, demb });
        }
        Ok((saved, report))
    }

    /// Logits of every row and depth, `[depth][rows, vocabulary]`, from what a forward kept.
    pub fn logits(&self, env: &Env<'_>, saved: &Saved) -> Result<Vec<Vec<f32>>> {
        std::iter::once(&saved.main).chain(saved.modules.iter().map(|m| &m.head)).map(|s| self.project(env, &s.h)).collect()
    }

    /// Logits `[rows, vocabulary]` of rows after their final norm. In f32 whatever the precision of the linear layers.
    pub fn project(&self, env: &Env<'_>, h: &[f32]) -> Result<Vec<f32>> {
        let w = env.store.at(&self.head);
        let (m, vocab) = (h.len() / env.hidden, w.len() / env.hidden);
        let mut logits = vec![0.0; m * vocab];
        let w = MatRef::new(w, vocab, env.hidden)?;
        gemm::gemm(MatRef::new(h, m, env.hidden)?, w.t(), MatMut::new(&mut logits, m, vocab)?, false)?;
        Ok(logits)
    }

    fn head_backward_input(&self, env: &Env<'_>, norm: &Range<usize>, saved: &mut HeadSaved, more: &[f32]) -> Result<Vec<f32>> {
        let mut dh = vec![0.0; saved.h.len()];
        let head = self.head(env, &saved.h, &saved.targets);
        mtp::head_backward_input(&head, &saved.lse, GradScale::Uniform(saved.scale), &mut dh)?;
        if !more.is_empty() {
            ops::add_assign(&mut dh, more)?;
        }
        let mut dx = vec![0.0; dh.len()];
        ops::rms_norm_backward_input(&dh, &saved.x, env.store.at(norm), &saved.rstd, &mut dx)?;
        saved.dh = dh;
        Ok(dx)
    }

    /// Backward for inputs: the gradient of the last block's output.
    pub fn backward_input(&self, env: &Env<'_>, chunk: &Chunk, saved: &mut Saved) -> Result<Vec<f32>> {
        // The gradient that a deeper module sends to the hidden state it read.
        let mut more: Vec<f32> = Vec::new();
        for (i, module) in self.modules.iter().enumerate().rev() {
            let k = i + 1;
            let s = &mut saved.modules[i];
            let dx = self.head_backward_input(env, &module.norm, &mut s.head, &more)?;
            let dproj = module.block.backward_input(env, &s.rows, &mut s.block, dx)?;
            let m = s.rows.len();
            let mut dmerged = vec![0.0; m * 2 * env.hidden];
            module.proj.backward_input(&dproj, MatMut::new(&mut dmerged, m, 2 * env.hidden)?, false)?;
            let [mut demb, mut dprev] = [vec![0.0; s.emb.len()], vec![0.0; s.prev.len()]];
            mtp::merge_backward_input(&module.norms(env), &s.merge(), &dmerged, &mut demb, &mut dprev)?;
            more = vec![0.0; chunk.sequences * chunk.rows.saturating_sub(i) * env.hidden];
            chunk.widen_add(&dprev, k, env.hidden, &mut more)?;
            (s.dproj, s.dmerged, s.demb) = (dproj, dmerged, demb);
        }
        self.head_backward_input(env, &self.norm, &mut saved.main, &more)
    }

    fn head_backward_weight(&self, env: &Env<'_>, norm: &Range<usize>, s: &HeadSaved, grads: &mut [f32]) -> Result<()> {
        ops::rms_norm_backward_weight(&env.factor(&s.dh), &env.factor(&s.x), &s.rstd, &mut grads[norm.clone()])?;
        if env.magnitudes {
            // A token's logit gradients are scale * (p - 1 at the target): at most 2 * scale in sum of absolute values.
            let largest = |row: &[f32]| row.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let bound: f32 = s.h.chunks_exact(env.hidden).map(|row| 2.0 * s.scale * largest(row)).sum();
            grads[self.head.clone()].iter_mut().for_each(|g| *g += bound);
            return Ok(());
        }
        let head = self.head(env, &s.h, &s.targets);
        Ok(mtp::head_backward_weight(&head, &s.lse, GradScale::Uniform(s.scale), &mut grads[self.head.clone()])?)
    }

    /// Backward for weights.
    pub fn backward_weight(&self, env: &Env<'_>, chunk: &Chunk, saved: Saved, grads: &mut [f32]) -> Result<()> {
        self.head_backward_weight(env, &self.norm, &saved.main, grads)?;
        for (i, (module, s)) in self.modules.iter().zip(saved.modules).enumerate() {
            self.head_backward_weight(env, &module.norm, &s.head, grads)?;
            module.proj.backward_weight(env, &s.merged, &s.dproj, grads)?;
            let [mut denorm, mut dhnorm] = [vec![0.0; env.hidden], vec![0.0; env.hidden]];
            let (emb, prev) = (env.factor(&s.emb), env.factor(&s.prev));
            let merge = MergeSaved { emb: &emb, h: &prev, rstd_emb: &s.rstds[0], rstd_h: &s.rstds[1] };
            mtp::merge_backward_weight(&merge, &env.factor(&s.dmerged), &mut denorm, &mut dhnorm)?;
            ops::add_assign(&mut grads[module.enorm.clone()], &denorm)?;
            ops::add_assign(&mut grads[module.hnorm.clone()], &dhnorm)?;
            if let Some(embed) = &self.embed {
                ops::embedding_scatter_add(&chunk.inputs(i + 1), &env.factor(&s.demb), env.hidden, &mut grads[embed.clone()])?;
            }
            module.block.backward_weight(env, s.block, grads)?;
        }
        Ok(())
    }
}

impl Module {
    fn norms<'a>(&self, env: &Env<'a>) -> MergeNorms<'a> {
        MergeNorms { enorm: env.store.at(&self.enorm), hnorm: env.store.at(&self.hnorm), eps: env.eps }
    }

    /// `[RMSNorm(embedding) | RMSNorm(hidden)]`, `[rows, 2 * hidden]`, and the reciprocal deviations of both.
    pub fn merge(&self, env: &Env<'_>, emb: &[f32], prev: &[f32]) -> Result<(Vec<f32>, [Vec<f32>; 2])> {
        let rows = emb.len() / env.hidden;
        let mut merged = vec![0.0; 2 * emb.len()];
        let [mut e, mut h] = [vec![0.0; rows], vec![0.0; rows]];
        mtp::merge_forward(&self.norms(env), emb, prev, &mut merged, &mut e, &mut h)?;
        Ok((merged, [e, h]))
    }
}

impl ModuleSaved {
    fn merge(&self) -> MergeSaved<'_> {
        MergeSaved { emb: &self.emb, h: &self.prev, rstd_emb: &self.rstds[0], rstd_h: &self.rstds[1] }
    }
}

impl HeadSaved {
    fn bytes(&self) -> usize {
        [&self.x, &self.rstd, &self.h, &self.lse, &self.dh].iter().map(|v| v.len() * 4).sum::<usize>() + self.targets.len() * 8
    }
}

impl Saved {
    /// Bytes kept.
    pub fn bytes(&self) -> usize {
        let module = |m: &ModuleSaved| {
            let f32s = m.emb.len() + m.prev.len() + m.dproj.len() + m.dmerged.len() + m.demb.len() + 2 * m.rows.len();
            let (a, b) = m.block.bytes();
            f32s * 4 + a + b + m.merged.bytes() + m.head.bytes()
        };
        self.main.bytes() + self.modules.iter().map(module).sum::<usize>()
    }
}
