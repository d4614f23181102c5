//! Training: what a run consists of, and how its ranks go through it.

pub mod finish;
pub mod metrics;
pub mod optimizer;
pub mod options;
pub mod ranks;
pub mod save;
pub mod step;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use dualpipe::{Overlap, Schedule, Timeline};
use ema_offload::{Ema, EmaConfig, State, Warmup};
use v3_ranks::{Comm, WorldConfig, run_threads};

pub use options::{Stored, TrainArgs, TrainOptions};
pub use ranks::Ranks;
pub use step::{Measured, MicroBatch, RankTrainer, Recipe, StepOutcome};

use self::metrics::{Console, StepMetrics};
use self::optimizer::OptimizerConfig;
use self::save::{Resume, Saver, TrainingState};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::overlap::{OverlapChoice, OverlapFigures};
use crate::params::{ParamLayout, ParamStore};
use crate::stage::ActivationBytes;
use crate::text::{Batches, Dataset};

/// Everything that is settled before the first step.
#[derive(Debug)]
pub struct Job {
    /// The options.
    pub options: TrainOptions,
    /// The model.
    pub config: Config,
    /// The data.
    pub data: Dataset,
    /// The plan of the pipeline.
    pub schedule: Schedule,
    /// Which rank holds what.
    pub grid: Grid,
    /// Where every rank keeps its parameters.
    pub layouts: Vec<Arc<ParamLayout>>,
    /// The order of components.
    pub overlap: Overlap,
    /// What to go on from.
    pub resume: Option<Resume>,
    /// The run folder.
    pub out: PathBuf,
    /// Factors of the losses and of the router bias.
    pub recipe: Recipe,
}

/// Bytes that one rank held.
#[derive(Debug, Clone, Copy, Default)]
pub struct RankMemory {
    /// f32 values.
    pub weights: usize,
    /// The same again, packed for the GEMMs.
    pub packed: usize,
    /// f32 gradients.
    pub gradients: usize,
    /// Moments of the optimiser.
    pub moments: usize,
    /// The most that chunks kept between forward and backward.
    pub activations: ActivationBytes,
    /// Averages and snapshots under way.
    pub ema: usize,
}

/// What the moving average cost.
#[derive(Debug, Clone, Copy)]
pub struct EmaCost {
    /// Share of the time of the steps in which this rank's thread was blocked by it.
    pub blocked_share: f64,
    /// Median step with it, seconds.
    pub with: f64,
    /// Median step without, seconds; interleaved with the others.
    pub without: f64,
}

/// How a run ended.
#[derive(Debug)]
pub struct RunOutcome {
    /// The last step done.
    pub last_step: u64,
    /// What was not finite, if training had to stop: step, name, value.
    pub diverged: Option<(u64, &'static str, f64)>,
    /// The step of the checkpoint that is in the run folder.
    pub saved_step: Option<u64>,
    /// The last step's pipeline as executed.
    pub timeline: Option<Timeline>,
    /// What the last step's components took.
    pub overlap: OverlapFigures,
    /// By rank.
    pub memory: Vec<RankMemory>,
    /// What the average cost, on rank 0.
    pub ema_cost: Option<EmaCost>,
    /// Largest expert load over the mean, averaged over the last tenth of the steps.
    pub late_load: f64,
    /// Seconds in steps.
    pub train_seconds: f64,
    /// Tokens trained on.
    pub tokens: u64,
}

impl Job {
    /// Settles everything; nothing is written yet.
    pub fn new(args: &TrainArgs) -> Result<Self> {
        let resume = args.resume.as_deref().map(Resume::open).transpose()?;
        let options = TrainOptions::new(args, resume.as_ref().map(|r| &r.state.options))?;
        let mut config = match (&resume, &args.config) {
            (Some(resume), _) => resume.weights.config()?,
            (None, Some(path)) => Config::from_file(path)?,
            (None, None) => Config::default_training()?,
        };
        if !options.stored.mtp {
            config.num_nextn_predict_layers = 0;
        }
        let out = match (&args.resume, &args.out) {
            (Some(run), _) => run.clone(),
            (None, Some(out)) => out.clone(),
            (None, None) => PathBuf::from("runs").join(metrics::date_time()),
        };
        Self::with(options, config, resume, out)
    }

    /// The same from parts.
    pub fn with(mut options: TrainOptions, config: Config, resume: Option<Resume>, out: PathBuf) -> Result<Self> {
        config.validate()?;
        let s = &options.stored;
        if s.seq_len > config.max_position_embeddings {
            return Err(Error::option(
                "--seq-len",
                format!("at most max_position_embeddings = {}", config.max_position_embeddings),
                s.seq_len,
            ));
        }
        let tokenizer = crate::text::Tokenizer::Bytes;
        let window = s.seq_len + 1 + config.num_nextn_predict_layers;
        let data = match &s.data {
            Some(path) => Dataset::load(path, &tokenizer, config.vocab_size, window)?,
            None => Dataset::from_bytes(
                Path::new("data/kjv.txt"),
                crate::text::default_text().to_vec(),
                &tokenizer,
                config.vocab_size,
                window,
            )?,
        };
        if let Some(path) = &s.data {
            options.stored.data = Some(std::fs::canonicalize(path).map_err(Error::io("read", path))?);
        }
        let s = &options.stored;
        let schedule = crate::schedule_cmd::plan(options.kind, "--pipeline", s.pipeline, s.micro_batches)?;
        check_memory(&config, s)?;
        let grid = Grid::new(&config, &schedule, s.expert_parallel, config.num_nextn_predict_layers)?;
        if grid.size() > options::MAX_THREADS {
            let expected = format!("at most {} ranks in all", options::MAX_THREADS);
            let found = format!("{} of each of {} pipeline ranks", s.expert_parallel, s.pipeline);
            return Err(Error::option("--expert-parallel", expected, found));
        }
        let layouts = grid.layouts(&config, options.precision)?;
        if let Some(resume) = &resume {
            resume.check(&config, s.ema && resume.state.options.ema)?;
            let done = resume.state.step;
            // A run that was killed after its last step still wants its report.
            let whole = done == s.steps && out.join(finish::REPORT).exists();
            if done > s.steps || whole {
                return Err(Error::option("--steps", format!("more than the {done} done"), s.steps));
            }
        }
        let recipe = Recipe::for_steps(options.stored.steps);
        let overlap = options.overlap.resolve(&config, &grid, &schedule)?;
        Ok(Self { options, config, data, schedule, grid, layouts, overlap, resume, out, recipe })
    }

    /// The micro-batches of step `step`, from 1.
    pub fn micro_batches(&self, batches: &Batches<'_>, step: u64) -> Vec<MicroBatch> {
        let s = &self.options.stored;
        let batch = |i| MicroBatch {
            sequences: s.micro_batch,
            tokens: s.seq_len + 1,
            ids: batches.micro_batch(step - 1, s.micro_batches, i, s.micro_batch),
        };
        (0..s.micro_batches).map(batch).collect()
    }

    /// The windows that steps are made of.
    pub fn batches(&self) -> Result<Batches<'_>> {
        Batches::new(&self.data.train, self.options.stored.seed, self.options.stored.seq_len, 1)
    }

    /// Runs all steps on all ranks, which are threads of this process.
    pub fn run(&self) -> Result<RunOutcome> {
        let size = self.grid.size();
        let fresh = !self.out.exists();
        self.prepare_folder()?;
        let per_node = self.options.stored.ranks_per_node;
        let world = WorldConfig::new(size).ranks_per_node(if per_node == 0 { size } else { per_node });
        // The threads are a total: with fewer than ranks, that many ranks run at a time; with more, ranks share the rest.
        let world = world.compute_slots(self.options.threads.min(size));
        let world = self.options.link.map_or(world, |link| world.link(link));
        let outcomes = run_threads(world, |world| self.run_in(world));
        if outcomes.is_err() && fresh {
            self.remove_unused_folder();
        }
        let mut outcomes = outcomes?;
        let memory = outcomes.iter().map(|o| o.memory[0]).collect();
        let mut first = outcomes.swap_remove(0);
        first.memory = memory;
        Ok(first)
    }

    /// Runs all steps on one rank, with its share of the threads.
    pub(crate) fn run_in(&self, world: Comm) -> Result<RunOutcome> {
        let (rank, size) = (world.rank(), world.size());
        let threads = (self.options.threads / size + usize::from(rank < self.options.threads % size)).max(1);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(Error::piece("rayon"))?;
        pool.install(|| self.run_rank(world))
    }

    /// Makes the run folder ready; one rank does so.
    pub(crate) fn prepare_folder(&self) -> Result<()> {
        metrics::prepare_folder(&self.out, self.resume.as_ref().map(|r| r.state.step))
    }

    /// Removes a run folder that was made for nothing.
    pub(crate) fn remove_unused_folder(&self) {
        metrics::remove_unused_folder(&self.out);
    }

    /// The parameters of rank `rank`, initialised or loaded.
    pub fn store(&self, rank: usize) -> Result<ParamStore> {
        let mut store = ParamStore::zeroed(Arc::clone(&self.layouts[rank]));
        match &self.resume {
            Some(resume) => store.load(&resume.weights)?,
            None => store.initialise(self.options.stored.seed, self.config.initializer_range),
        }
        Ok(store)
    }

    /// The trainer of rank `world.rank()`.
    pub fn trainer(&self, world: Comm) -> Result<RankTrainer> {
        let store = self.store(world.rank())?;
        let o = &self.options;
        let optimizer = OptimizerConfig::report(o.precision != fp8_gemm::Precision::F32);
        let (recipe, schedule) = (self.recipe, &self.schedule);
        let mut trainer =
            RankTrainer::new(&self.config, &self.grid, schedule, world, store, o.precision, o.recompute, recipe, optimizer)?;
        trainer.set_overlap(self.overlap.clone())?;
        if let OverlapChoice::Tuned { costs: Some(path), .. } = &o.overlap {
            trainer.model.costs = Some(Arc::new(crate::overlap::read_costs(path)?));
        }
        Ok(trainer)
    }

    /// An average over about the last tenth of the run.
    fn ema_config(&self) -> EmaConfig {
        let horizon = (self.options.stored.steps as f64 / 10.0).clamp(10.0, 2000.0);
        EmaConfig { decay: 1.0 - 1.0 / horizon, warmup: Warmup::Ratio { offset: 10.0 }, ..EmaConfig::default() }
    }

    fn first_step(&self) -> u64 {
        self.resume.as_ref().map_or(0, |r| r.state.step) + 1
    }

    fn run_rank(&self, world: Comm) -> Result<RunOutcome> {
        let s = &self.options.stored;
        let mut trainer = self.trainer(world)?;
        let ema = self.average(&mut trainer)?;
        let batches = self.batches()?;
        let first = self.first_step();
        let mut console = (trainer.world.rank() == 0).then(|| Console::new(&self.out, s.steps, first)).transpose()?;
        let mut outcome = RunOutcome {
            last_step: first - 1,
            diverged: None,
            saved_step: self.resume.as_ref().map(|r| r.state.step),
            timeline: None,
            overlap: OverlapFigures::default(),
            memory: Vec::new(),
            ema_cost: None,
            late_load: 0.0,
            train_seconds: 0.0,
            tokens: 0,
        };
        let stop = self.options.stop_after.map_or(s.steps, |n| (first - 1 + n).min(s.steps));
        let step_tokens = (s.micro_batch * s.micro_batches * s.seq_len) as u64;
        let mut late_loads = Vec::new();
        // A checkpoint is written once the next step has shown that its weights still give a finite loss.
        let mut unproven = None;
        for step in first..=stop {
            let lr = self.options.lr_at(step);
            let begun = Instant::now();
            let (mut result, spans, counts) = trainer.forward_backward(step, &self.micro_batches(&batches, step))?;
            if !result.loss.is_finite() {
                outcome.diverged = Some((step, "loss", result.loss));
                break;
            }
            let computed = begun.elapsed();
            if let Some(done) = unproven.take() {
                self.save(&trainer, ema.as_ref(), done)?;
                outcome.saved_step = Some(done);
            }
            let begun = Instant::now();
            trainer.update(step, lr, &mut result, &counts)?;
            if !result.grad_norm.is_finite() {
                outcome.diverged = Some((step, "gradient norm", result.grad_norm));
                break;
            }
            if let Some(ema) = &ema {
                submit(ema, step, &trainer)?;
            }
            let seconds = (computed + begun.elapsed()).as_secs_f64();
            outcome.train_seconds += seconds;
            outcome.tokens += step_tokens;
            outcome.last_step = step;
            if step + s.steps.div_ceil(10) > s.steps {
                late_loads.push(result.max_load);
            }
            if let Some(console) = &mut console {
                console.step(&StepMetrics::new(step, &result, lr, step_tokens as f64 / seconds))?;
            }
            if step == stop {
                outcome.timeline = Some(trainer.timeline(&spans)?);
                outcome.overlap = trainer.overlap_figures()?;
            }
            if step == s.steps {
                if !trainer.weights_are_finite()? {
                    outcome.diverged = Some((step, "weight", f64::NAN));
                    break;
                }
                self.save(&trainer, ema.as_ref(), step)?;
                outcome.saved_step = Some(step);
            } else if step % s.save_every == 0 {
                unproven = Some(step);
            }
        }
        if let (Some(_), true) = (&ema, first > stop) {
            // Nothing was left to do but what follows the last step's checkpoint.
            self.save_average(&trainer, ema.as_ref())?;
        }
        if first > stop {
            // The last step once more, without an update, to be drawn.
            let (_, spans) = trainer.run(first, &self.micro_batches(&batches, stop))?;
            outcome.timeline = Some(trainer.timeline(&spans)?);
            outcome.overlap = trainer.overlap_figures()?;
        }
        outcome.late_load = late_loads.iter().sum::<f64>() / late_loads.len().max(1) as f64;
        if let Some(console) = console {
            console.finish();
        }
        let model = &trainer.model;
        outcome.memory = vec![RankMemory {
            weights: model.store.weights.len() * 4,
            packed: model.packed_bytes(),
            gradients: model.gradient_bytes(),
            moments: trainer.optimizer.bytes(),
            activations: model.peak,
            ema: ema.as_ref().map(Ema::stats).map_or(0, |s| s.average_bytes + s.staging_bytes),
        }];
        if let (Some(ema), None, None, true) = (&ema, outcome.diverged, self.options.stop_after, outcome.tokens > 0) {
            outcome.ema_cost = Some(self.ema_cost(&mut trainer, ema, outcome.train_seconds)?);
        }
        Ok(outcome)
    }

    fn average(&self, trainer: &mut RankTrainer) -> Result<Option<Ema>> {
        let s = &self.options.stored;
        let layout = Arc::clone(trainer.model.store.layout());
        let mut loaded = None;
        let mut updates = 0;
        if let Some(resume) = &self.resume {
            let with_average = s.ema && resume.state.options.ema;
            loaded = resume.load(&layout, &mut trainer.optimizer.shards, with_average)?;
            updates = resume.state.ema_updates;
        }
        if !s.ema {
            return Ok(None);
        }
        let ema = match loaded {
            Some(averages) => {
                let lens = averages.iter().map(Vec::len).collect();
                let state = State {
                    step: Some(self.first_step() - 1),
                    updates,
                    shard: ema_offload::Shard::WHOLE,
                    lens,
                    values: averages.concat(),
                };
                Ema::restore(state, self.ema_config())?
            }
            None => Ema::new(&own_shards(trainer), self.ema_config())?,
        };
        Ok(Some(ema))
    }

    fn save(&self, trainer: &RankTrainer, ema: Option<&Ema>, step: u64) -> Result<()> {
        let averages = ema.map(Ema::averaged).transpose()?;
        let ema_updates = ema.map_or(0, |ema| ema.progress().0);
        let state = TrainingState { format: 1, step, ema_updates, options: self.options.stored.clone() };
        self.saver(trainer, averages.as_deref()).save(&self.out.join("checkpoint"), Some(&state), false)?;
        self.save_average(trainer, ema)
    }

    fn save_average(&self, trainer: &RankTrainer, ema: Option<&Ema>) -> Result<()> {
        let Some(ema) = ema else { return Ok(()) };
        self.saver(trainer, Some(&ema.averaged()?)).save(&self.out.join("ema"), None, true)
    }

    fn saver<'a>(&'a self, trainer: &'a RankTrainer, averages: Option<&'a [Vec<f32>]>) -> Saver<'a> {
        Saver {
            config: &self.config,
            layouts: &self.layouts,
            world: &trainer.world,
            model: &trainer.model,
            shards: &trainer.optimizer.shards,
            averages,
        }
    }

    /// Steps after the last, with a learning rate of 0, with and without the average in turn. Nothing is saved after them.
    fn ema_cost(&self, trainer: &mut RankTrainer, ema: &Ema, train_seconds: f64) -> Result<EmaCost> {
        let stats = ema.stats();
        let blocked_share = (stats.blocked_seconds + stats.copy_seconds) / train_seconds.max(1e-9);
        let batches = self.batches()?;
        let mut times = [Vec::new(), Vec::new()];
        let last = self.options.stored.steps;
        for i in 0..10u64 {
            let with = i % 2 == 1;
            trainer.world.barrier()?;
            let begun = Instant::now();
            // The worker averages behind the step that follows the snapshot, so that step is the one it can slow down.
            if with {
                submit(ema, last + 1 + i, trainer)?;
            }
            trainer.step(last + 1 + i, 0.0, &self.micro_batches(&batches, last + 1))?;
            trainer.world.barrier()?;
            times[usize::from(with)].push(begun.elapsed().as_secs_f64());
            ema.flush()?;
        }
        let [without, with] = times.map(|mut t| {
            t.sort_by(f64::total_cmp);
            t[t.len() / 2]
        });
        Ok(EmaCost { blocked_share, with, without })
    }
}

/// Refuses a model or a batch that cannot be trained in this machine's memory, before anything is allocated or written. What is
/// counted is less than what is needed: of the model, weights (f32 and packed), gradients and moments; of the batch, its tokens on
/// every rank and the residual stream of one micro-batch.
fn check_memory(config: &Config, s: &Stored) -> Result<()> {
    let parameters = u128::from(config.parameter_count());
    if let Some((memory, need)) = crate::memory::exceeded(parameters * 14) {
        let expected = format!("a model that can be trained in {memory} of memory");
        return Err(Error::option("--config", expected, format!("{parameters} parameters, which need {need}")));
    }
    let [sequences, batches, tokens] = [s.micro_batch, s.micro_batches, s.seq_len + 1].map(|n| n as u128);
    let ids = batches.saturating_mul(s.pipeline as u128 * s.expert_parallel as u128 * 4);
    let layers = config.num_hidden_layers + config.num_nextn_predict_layers;
    let per_token = ids.saturating_add(4 * config.hidden_size as u128 * layers as u128);
    if let Some((memory, need)) = crate::memory::exceeded(sequences.saturating_mul(tokens).saturating_mul(per_token)) {
        let expected = format!("as many sequences as can be trained on in {memory} of memory");
        return Err(Error::option("--micro-batch", expected, format!("{sequences}, which need {need}")));
    }
    Ok(())
}

fn own_shards(trainer: &RankTrainer) -> Vec<&[f32]> {
    trainer.optimizer.shards.iter().map(|s| trainer.model.store.at(&s.own)).collect()
}

fn submit(ema: &Ema, step: u64, trainer: &RankTrainer) -> Result<()> {
    ema.submit(step, &own_shards(trainer))?;
    Ok(())
}
