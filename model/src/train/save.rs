//! What a run can be resumed from: the checkpoint in published form, and beside it the moments, the averages and the options.
//!
//! Everything goes into one directory that appears under its name complete or not at all. Rank 0 writes; the others send it
//! each tensor, or their shard of it, when its turn comes, so that no rank ever holds the model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use v3_ranks::Comm;

use super::optimizer::{Shard, shards_of};
use crate::checkpoint::{Checkpoint, CheckpointWriter, Dtype, WriteSpec};
use crate::config::{Config, TensorKind, TensorSpec};
use crate::error::{Error, Result};
use crate::params::{Param, ParamLayout};
use crate::stage::RankModel;

/// The directory of the training state inside a checkpoint.
pub const STATE_DIR: &str = "training";
/// The file with the step and the options inside that directory.
pub const STATE_FILE: &str = "state.json";

/// What resuming needs beside tensors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrainingState {
    /// Version of this form.
    pub format: u32,
    /// The last step whose update is in the weights.
    pub step: u64,
    /// Updates that the averages have seen.
    pub ema_updates: u64,
    /// The options of the run.
    pub options: super::Stored,
}

/// Largest file of a checkpoint.
pub const MAX_SHARD_BYTES: u64 = 4 << 30;

const WEIGHT_TAG: u64 = 1 << 40;
const STATE_TAG: u64 = 2 << 40;
const KINDS: [&str; 3] = ["m", "v", "ema"];

/// Ranges of a parameter that each holder keeps moments of: holder, range inside the parameter.
fn pieces(layouts: &[Arc<ParamLayout>], param: &Param) -> Vec<(usize, std::ops::Range<usize>)> {
    let piece = |&holder: &usize| {
        let local = layouts[holder].find(&param.name)?;
        let own = shards_of(&layouts[holder], holder).into_iter().find(|(bucket, _)| bucket.contains(&local.offset))?.1;
        let range = local.offset.max(own.start)..(local.offset + local.len).min(own.end);
        (!range.is_empty()).then(|| (holder, range.start - local.offset..range.end - local.offset))
    };
    param.holders.iter().filter_map(piece).collect()
}

/// Where a rank's moments or averages of a parameter are: which shard, and where in it.
fn locate(shards: &[Shard], param: &Param, range: &std::ops::Range<usize>) -> Option<(usize, std::ops::Range<usize>)> {
    let start = param.offset + range.start;
    let index = shards.iter().position(|s| s.own.contains(&start))?;
    let local = start - shards[index].own.start;
    Some((index, local..local + range.len()))
}

/// What is saved. Every rank calls this with its own model and shards; `averages` are its shards of the moving average.
pub struct Saver<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Where every rank keeps its parameters.
    pub layouts: &'a [Arc<ParamLayout>],
    /// All ranks.
    pub world: &'a Comm,
    /// This rank's model.
    pub model: &'a RankModel,
    /// This rank's shards.
    pub shards: &'a [Shard],
    /// This rank's shards of the average, if there is one.
    pub averages: Option<&'a [Vec<f32>]>,
}

/// The parameter as its first holder lays it out.
fn first_holder<'l>(layouts: &'l [Arc<ParamLayout>], name: &str) -> Option<&'l Param> {
    layouts.iter().find_map(|l| l.find(name))
}

impl Saver<'_> {
    fn tensors(&self) -> Vec<TensorSpec> {
        let held = |s: &TensorSpec| first_holder(self.layouts, s.copy_of.unwrap_or(&s.name)).is_some();
        self.config.tensors().into_iter().filter(held).collect()
    }

    /// Sends rank 0 the values of `name`, which `values` gives on the rank that holds them; returns them on rank 0.
    fn collect(
        &self,
        tag: u64,
        pieces: &[(usize, std::ops::Range<usize>)],
        values: impl Fn(&std::ops::Range<usize>) -> Vec<f32>,
    ) -> Result<Vec<Vec<f32>>> {
        let me = self.world.rank();
        let mut parts = Vec::new();
        for (holder, range) in pieces {
            if *holder == me && me == 0 {
                parts.push(values(range));
            } else if *holder == me {
                self.world.send(0, tag, values(range))?;
            } else if me == 0 {
                parts.push(self.world.recv(*holder, tag)?);
            }
        }
        Ok(parts)
    }

    fn values(&self, which: usize, param: &Param, range: &std::ops::Range<usize>) -> Vec<f32> {
        match locate(self.shards, param, range) {
            None => Vec::new(),
            Some((shard, at)) if which < 2 => self.shards[shard].moments.values(which, at),
            Some((shard, at)) => self.averages.map_or(Vec::new(), |a| a[shard][at].to_vec()),
        }
    }

    /// Writes a checkpoint directory. With `averaged`, the moving average instead of the weights, and nothing for resuming.
    pub fn save(&self, target: &Path, state: Option<&TrainingState>, averaged: bool) -> Result<()> {
        let written = self.write(target, state, averaged);
        // A rank that could not write must not leave the others waiting for their turn.
        self.world.barrier()?;
        written
    }

    fn write(&self, target: &Path, state: Option<&TrainingState>, averaged: bool) -> Result<()> {
        let specs = self.tensors();
        let mut writer = match self.world.rank() {
            0 => {
                let specs: Vec<_> = specs.iter().map(|s| write_spec(&s.name, &s.shape)).collect();
                let writer = CheckpointWriter::create(target, &specs, MAX_SHARD_BYTES)?;
                let mut config = self.config.clone();
                config.set_storage("float32", false);
                writer.write_config(&config)?;
                Some(writer)
            }
            _ => None,
        };
        for (i, spec) in specs.iter().enumerate() {
            let source = spec.copy_of.unwrap_or(&spec.name);
            let Some(param) = first_holder(self.layouts, source) else { continue };
            let own = self.model.store.layout().find(source);
            let tag = WEIGHT_TAG + i as u64;
            let parts = if averaged && param.is_trained() {
                self.collect(tag, &pieces(self.layouts, param), |r| own.map_or(Vec::new(), |p| self.values(2, p, r)))?
            } else {
                let all = [(param.holders[0], 0..param.len)];
                self.collect(tag, &all, |_| own.map_or(Vec::new(), |p| self.model.store.at(&p.range()).to_vec()))?
            };
            if let Some(writer) = &mut writer {
                parts.iter().try_for_each(|part| writer.write_f32(&spec.name, part))?;
            }
        }
        if let Some(state) = state {
            self.write_state(&specs, writer.as_ref().map(CheckpointWriter::staging_path), state)?;
        }
        writer.map_or(Ok(()), CheckpointWriter::finish)
    }

    fn write_state(&self, specs: &[TensorSpec], staging: Option<&Path>, state: &TrainingState) -> Result<()> {
        let kinds = if self.averages.is_some() { 3 } else { 2 };
        let trained: Vec<&Param> = specs
            .iter()
            .filter(|s| s.copy_of.is_none())
            .filter_map(|s| first_holder(self.layouts, &s.name))
            .filter(|p| p.is_trained())
            .collect();
        let mut writer = match staging {
            Some(staging) => {
                let spec = |p: &&Param| {
                    KINDS[..kinds].iter().map(|k| write_spec(&format!("{k}.{}", p.name), &p.shape)).collect::<Vec<_>>()
                };
                let specs: Vec<_> = trained.iter().flat_map(spec).collect();
                let writer = CheckpointWriter::create(&staging.join(STATE_DIR), &specs, MAX_SHARD_BYTES)?;
                let json = serde_json::to_string_pretty(state).map_err(Error::piece("serde_json"))?;
                writer.write_file(STATE_FILE, json.as_bytes())?;
                Some(writer)
            }
            None => None,
        };
        for (i, param) in trained.iter().enumerate() {
            let own = self.model.store.layout().find(&param.name);
            for (which, kind) in KINDS[..kinds].iter().enumerate() {
                let tag = STATE_TAG + (i * KINDS.len() + which) as u64;
                let values = |r: &std::ops::Range<usize>| own.map_or(Vec::new(), |p| self.values(which, p, r));
                let parts = self.collect(tag, &pieces(self.layouts, param), values)?;
                if let Some(writer) = &mut writer {
                    parts.iter().try_for_each(|part| writer.write_f32(&format!("{kind}.{}", param.name), part))?;
                }
            }
        }
        writer.map_or(Ok(()), CheckpointWriter::finish)
    }
}

fn write_spec(name: &str, shape: &[usize]) -> WriteSpec {
    WriteSpec { name: name.to_owned(), dtype: Dtype::F32, shape: shape.to_vec() }
}

/// An opened checkpoint that training can go on from.
#[derive(Debug)]
pub struct Resume {
    /// Weights.
    pub weights: Checkpoint,
    /// Moments and averages.
    pub tensors: Checkpoint,
    /// Step and options.
    pub state: TrainingState,
}

impl Resume {
    /// Opens the checkpoint of a run folder.
    pub fn open(run: &Path) -> Result<Self> {
        let dir: PathBuf = run.join("checkpoint");
        crate::checkpoint::recover(&dir)?;
        let weights = Checkpoint::open(&dir)?;
        let path = dir.join(STATE_DIR).join(STATE_FILE);
        let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let state: TrainingState =
            serde_json::from_str(&text).map_err(|e| Error::file(&path, "the state of a training run", e))?;
        if state.format != 1 {
            return Err(Error::file(&path, "format 1", state.format));
        }
        Ok(Self { weights, tensors: Checkpoint::open(&dir.join(STATE_DIR))?, state })
    }

    /// Checks that everything that a run with this configuration goes on from is there, before anything is written.
    pub fn check(&self, config: &Config, with_average: bool) -> Result<()> {
        self.weights.check_all(config)?;
        for spec in config.tensors() {
            if spec.copy_of.is_some() || spec.kind == TensorKind::RouterBias {
                continue;
            }
            for kind in &KINDS[..if with_average { 3 } else { 2 }] {
                self.tensors.check(&format!("{kind}.{}", spec.name), &spec.shape)?;
            }
        }
        Ok(())
    }

    /// Fills a rank's moments, and returns its shards of the averages if the run keeps them.
    pub fn load(&self, layout: &ParamLayout, shards: &mut [Shard], with_average: bool) -> Result<Option<Vec<Vec<f32>>>> {
        let mut averages: Vec<Vec<f32>> = shards.iter().map(|s| vec![0.0; s.own.len()]).collect();
        for param in layout.params().iter().filter(|p| p.is_trained()) {
            for (index, shard) in shards.iter_mut().enumerate() {
                let range = param.offset.max(shard.own.start)..(param.offset + param.len).min(shard.own.end);
                if range.is_empty() {
                    continue;
                }
                let (inside, at) = (range.start - param.offset..range.end - param.offset, range.start - shard.own.start);
                for (which, kind) in KINDS.iter().enumerate().take(if with_average { 3 } else { 2 }) {
                    let values = self.tensors.tensor_f32(&format!("{kind}.{}", param.name), &param.shape)?;
                    match which {
                        2 => averages[index][at..at + inside.len()].copy_from_slice(&values[inside.clone()]),
                        _ => shard.moments.set(which, at, &values[inside.clone()]),
                    }
                }
            }
        }
        Ok(with_average.then_some(averages))
    }
}
