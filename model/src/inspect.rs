//! A checkpoint on one rank, looked at: logits, gradients, and how well it predicts a text.

use std::path::Path;
use std::sync::Arc;

use dualpipe::Stage;
use fp8_gemm::Precision;
use v3_ranks::Comm;

use crate::checkpoint::{Checkpoint, NamedTensor, TensorData, read_tensors, write_tensors};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::layers::linear::Packing;
use crate::layers::tail::Chunk;
use crate::layers::{Recompute, Settings};
use crate::params::ParamStore;
use crate::stage::RankModel;
use crate::text::{Tokens, eval_windows};

/// Loads a checkpoint whole onto one rank, with its multi-token-prediction modules when `with_mtp`.
pub fn load(dir: &Path, precision: Precision, packing: Packing, with_mtp: bool) -> Result<RankModel> {
    let checkpoint = Checkpoint::open(dir)?;
    let mut config = checkpoint.config()?;
    if !with_mtp {
        config.num_nextn_predict_layers = 0;
    }
    checkpoint.check_all(&config)?;
    let grid = Grid::single(&config, config.num_nextn_predict_layers);
    let layout = grid.layouts(&config, precision)?.swap_remove(0);
    let mut store = ParamStore::zeroed(Arc::clone(&layout));
    store.load(&checkpoint)?;
    check_copies(&checkpoint, &config, &store)?;
    let settings = Settings::new(&config, precision, Recompute::default(), 1, 1)?;
    RankModel::new(&config, &grid, 0, settings, store, Comm::solo(), 0.0, packing)
}

/// Modules share the main model's embedding and head; a checkpoint whose copies differ cannot be loaded that way.
fn check_copies(checkpoint: &Checkpoint, config: &Config, store: &ParamStore) -> Result<()> {
    for spec in config.tensors() {
        let Some(source) = spec.copy_of.filter(|_| checkpoint.contains(&spec.name)) else { continue };
        let main = store.param(source)?;
        if checkpoint.tensor_f32(&spec.name, &spec.shape)? != store.at(&main.range()) {
            return Err(Error::tensor(
                checkpoint.path(),
                &spec.name,
                format!("the values of {source}, which modules share"),
                "other values",
            ));
        }
    }
    Ok(())
}

fn chunk(ids: Vec<u32>, sequences: usize, tokens: usize, rows: usize) -> Chunk {
    Chunk { sequences, tokens, rows, ids, global_sequences: sequences, first_sequence: 0, micro_batches: 1 }
}

/// `v3 logits`: writes `logits` `[B, T, V]` and, with a module, `mtp_logits` `[B, T - 1, V]` (`mtp_logits.2` and so on for
/// deeper modules) for the `input_ids` `[B, T]` of `ids`.
pub fn logits(dir: &Path, ids: &Path, out: &Path, precision: Precision) -> Result<()> {
    let config = Checkpoint::open(dir)?.config()?;
    let (ids, batch, length) = read_tensors(ids)?.token_ids("input_ids", config.vocab_size)?;
    check_length(length, &config)?;
    let mut model = load(dir, precision, Packing::Inference, true)?;
    model.begin_step(vec![chunk(ids, batch, length, length)]);
    model.forward(0, 0, None)?;
    let all = tail_logits(&model)?;
    let vocab = config.vocab_size;
    let names: Vec<String> = (0..all.len())
        .map(|k| match k {
            0 => "logits".into(),
            1 => "mtp_logits".into(),
            k => format!("mtp_logits.{k}"),
        })
        .collect();
    let shapes: Vec<[usize; 3]> = (0..all.len()).map(|k| [batch, length.saturating_sub(k), vocab]).collect();
    let tensors: Vec<NamedTensor<'_>> =
        (0..all.len()).map(|k| NamedTensor { name: &names[k], shape: &shapes[k], data: TensorData::F32(&all[k]) }).collect();
    write_tensors(out, &tensors)
}

/// Logits of every row and depth of the only micro-batch.
fn tail_logits(model: &RankModel) -> Result<Vec<Vec<f32>>> {
    let env = model.settings.env(&model.store, model.expert_group());
    let tail = model.stages.get(&0).and_then(|s| s.tail.as_ref());
    match (tail, model.saved(0, 0).and_then(|s| s.tail.as_ref())) {
        (Some(tail), Some(saved)) => tail.logits(&env, saved),
        _ => Err(crate::layers::out_of_order("logits")),
    }
}

fn check_length(length: usize, config: &Config) -> Result<()> {
    if length > config.max_position_embeddings {
        let expected = format!("at most max_position_embeddings = {} tokens", config.max_position_embeddings);
        return Err(Error::option("--ids", expected, length));
    }
    Ok(())
}

/// The loss of next-token prediction over `input_ids`, and the gradient of every trained parameter of the main model.
pub struct Gradients {
    /// Mean cross entropy of the logits before each token but the first.
    pub loss: f32,
    /// The model, whose gradient buffer is filled.
    pub model: RankModel,
}

/// Forward and backward of one batch on one rank.
pub fn gradients(dir: &Path, ids: &Path, precision: Precision, recompute: Recompute) -> Result<Gradients> {
    let config = Checkpoint::open(dir)?.config()?;
    let path = ids;
    let (ids, batch, length) = read_tensors(path)?.token_ids("input_ids", config.vocab_size)?;
    check_length(length, &config)?;
    if length < 2 {
        return Err(Error::tensor(path, "input_ids", "at least 2 tokens in a sequence", length));
    }
    let mut model = load(dir, precision, Packing::Training, false)?;
    model.settings.recompute = recompute;
    model.begin_step(vec![chunk(ids, batch, length, length - 1)]);
    model.forward(0, 0, None)?;
    model.backward_input(0, 0, None)?;
    model.backward_weight(0, 0)?;
    let sum: f64 = model.report.tails.values().flat_map(|t| &t.loss_sums[0]).sum();
    Ok(Gradients { loss: (sum / (batch * (length - 1)) as f64) as f32, model })
}

/// `v3 grad`: writes `loss` and `grad.<name>`.
pub fn grad(dir: &Path, ids: &Path, out: &Path, precision: Precision) -> Result<()> {
    let Gradients { loss, model } = gradients(dir, ids, precision, Recompute::default())?;
    let layout = model.store.layout();
    let trained: Vec<_> = layout.params().iter().filter(|p| p.is_trained()).map(|p| (format!("grad.{}", p.name), p)).collect();
    let loss = [loss];
    let mut tensors = vec![NamedTensor { name: "loss", shape: &[], data: TensorData::F32(&loss) }];
    tensors.extend(trained.iter().map(|(name, p)| NamedTensor {
        name,
        shape: &p.shape,
        data: TensorData::F32(&model.grads[p.range()]),
    }));
    write_tensors(out, &tensors)
}

/// How well a model predicts a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Tokens predicted: all but the first.
    pub tokens: usize,
    /// Mean cross entropy of a token, nats.
    pub loss: f64,
    /// Bits per byte of the text.
    pub bits_per_byte: f64,
    /// Share of positions where the first module's most likely token is the main model's: what greedy drafting would keep.
    pub mtp_acceptance: Option<f64>,
}

impl Evaluation {
    /// Of a token.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// Windows that one forward pass takes together.
const EVAL_BATCH: usize = 16;

/// Predicts every token but the first from at most `seq_len` tokens before it. `bytes` is what the tokens stand for.
pub fn evaluate(model: &mut RankModel, tokens: &Tokens, bytes: usize, seq_len: usize) -> Result<Evaluation> {
    let windows = eval_windows(tokens.len(), seq_len);
    let (mut sum, mut count, mut matches, mut drafts) = (0.0, 0usize, 0usize, 0usize);
    for same_length in windows.chunk_by(|a, b| a.len() == b.len()) {
        for batch in same_length.chunks(EVAL_BATCH) {
            let length = batch[0].len();
            let ids = batch.iter().flat_map(|w| tokens.slice(w.clone())).collect();
            model.begin_step(vec![chunk(ids, batch.len(), length, length - 1)]);
            model.forward(0, 0, None)?;
            model.discard(0, 0);
            let Some(report) = model.report.tails.get(&0) else {
                return Err(crate::layers::out_of_order("evaluation"));
            };
            sum += report.loss_sums[0].iter().sum::<f64>();
            count += batch.len() * (length - 1);
            if let Some(draft) = report.argmax.get(1).filter(|_| length > 2) {
                // Row t of the module predicts what row t + 1 of the main model does.
                let main = report.argmax[0].chunks_exact(length - 1);
                for (main, draft) in main.zip(draft.chunks_exact(length - 2)) {
                    matches += main[1..].iter().zip(draft).filter(|(a, b)| a == b).count();
                    drafts += draft.len();
                }
            }
        }
    }
    let scored = bytes as f64 * count as f64 / tokens.len() as f64;
    Ok(Evaluation {
        tokens: count,
        loss: sum / count as f64,
        bits_per_byte: sum / std::f64::consts::LN_2 / scored,
        mtp_acceptance: (drafts > 0).then(|| matches as f64 / drafts as f64),
    })
}
