//! The options of a training run: as typed, as stored with a checkpoint, and with every default filled in.

use std::path::PathBuf;

use clap::Args;
use dualpipe::Kind;
use fp8_gemm::Precision;
use serde::{Deserialize, Serialize};
use v3_ranks::LinkModel;

use crate::error::{Error, Result};
use crate::layers::Recompute;
use crate::overlap::OverlapChoice;

/// `v3 train`: what can be typed.
#[derive(Debug, Clone, Default, Args)]
pub struct TrainArgs {
    /// Text to train on; the last 5 % is held out. Default: the text that comes with the program
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// A DeepSeek-V3 config.json. Default: a small model that trains in minutes on two cores
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Steps of the whole run [default: 300]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub steps: Option<u64>,
    /// Tokens of a sequence [default: 128]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub seq_len: Option<usize>,
    /// Sequences of a micro-batch, over all expert-parallel ranks [default: 8]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub micro_batch: Option<usize>,
    /// Micro-batches of a step [default: 4, or what the schedule needs]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub micro_batches: Option<usize>,
    /// Peak learning rate [default: 0.003]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    pub lr: Option<f64>,
    /// Seed of initial weights and of the order of the data [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Precision of the linear layers: f32, bf16 or fp8 [default: f32]
    #[arg(long, value_name = "NAME")]
    pub precision: Option<String>,
    /// Pipeline ranks [default: 2]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub pipeline: Option<usize>,
    /// Expert-parallel ranks of each pipeline rank [default: 2]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub expert_parallel: Option<usize>,
    /// Ranks on one node; messages between nodes count as slow [default: all]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub ranks_per_node: Option<usize>,
    /// Where ranks run: threads of this process, or mpi, one process each, as many as mpirun has started [default: threads]
    #[arg(long, value_name = "NAME")]
    pub ranks: Option<String>,
    /// With --ranks mpi, seconds between two signs of life of a rank [default: 1, or a tenth of the time-out]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub heartbeat_period: Option<f64>,
    /// With --ranks mpi, seconds of silence after which a rank is taken to have stopped [default: 60]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub heartbeat_timeout: Option<f64>,
    /// gpipe, 1f1b, zb-h1, zb-v, dualpipe or dualpipev [default: dualpipe, or 1f1b on one pipeline rank]
    #[arg(long, value_name = "NAME")]
    pub schedule: Option<String>,
    /// How the exchanges of one chunk are laid behind the computation of another: off, default (the order of the DeepSeek-V3
    /// report) or tuned (searched from --costs) [default: off]
    #[arg(long, value_name = "NAME")]
    pub overlap: Option<String>,
    /// With --overlap tuned, what components cost, as v3 bench components writes it
    #[arg(long, value_name = "FILE")]
    pub costs: Option<PathBuf>,
    /// With --overlap tuned, where the orders found are kept: read if it is there, else written
    #[arg(long, value_name = "FILE")]
    pub arrangements: Option<PathBuf>,
    /// What messages cost, slow ones between nodes and fast ones inside, such as slow=10us,50GB/s,fast=2us,160GB/s
    /// [default: nothing beside their copies]
    #[arg(long, value_name = "slow=LATENCY,BANDWIDTH,fast=LATENCY,BANDWIDTH")]
    pub link: Option<String>,
    /// Threads of all ranks together [default: all cores]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub threads: Option<usize>,
    /// Train without the moving average of the weights
    #[arg(long)]
    pub no_ema: bool,
    /// Train without multi-token prediction
    #[arg(long)]
    pub no_mtp: bool,
    /// What the backward computes again: a list of norm, mla-up, swiglu, or all [default: none]
    #[arg(long, value_name = "LIST")]
    pub recompute: Option<String>,
    /// Run folder [default: runs/DATE-TIME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on from the checkpoint of a run folder; options given again replace the stored ones
    #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "config"])]
    pub resume: Option<PathBuf>,
    /// Steps between checkpoints; the last step always makes one [default: 100]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub save_every: Option<u64>,
}

/// The options that a checkpoint keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// `None`: the text that comes with the program.
    pub data: Option<PathBuf>,
    /// Steps of the whole run.
    pub steps: u64,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Sequences of a micro-batch.
    pub micro_batch: usize,
    /// Micro-batches of a step.
    pub micro_batches: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Seed.
    pub seed: u64,
    /// Precision of the linear layers.
    pub precision: String,
    /// Pipeline ranks.
    pub pipeline: usize,
    /// Expert-parallel ranks of each.
    pub expert_parallel: usize,
    /// Ranks on one node; 0 for all.
    pub ranks_per_node: usize,
    /// Name of the schedule.
    pub schedule: String,
    /// Whether the average is kept.
    pub ema: bool,
    /// Whether the modules are trained.
    pub mtp: bool,
    /// What is computed again.
    pub recompute: String,
    /// Steps between checkpoints.
    pub save_every: u64,
}

/// Checked options.
#[derive(Debug, Clone)]
pub struct TrainOptions {
    /// What a checkpoint keeps.
    pub stored: Stored,
    /// Parsed.
    pub precision: Precision,
    /// Parsed.
    pub kind: Kind,
    /// Parsed.
    pub recompute: Recompute,
    /// How exchanges are laid behind computation.
    pub overlap: OverlapChoice,
    /// What messages cost.
    pub link: Option<LinkModel>,
    /// Threads of all ranks together.
    pub threads: usize,
    /// Steps to run now before stopping as if killed; for tests.
    pub stop_after: Option<u64>,
}

/// Most threads, and most ranks; each rank is a thread.
pub(super) const MAX_THREADS: usize = 1024;

fn positive(option: &str, value: usize) -> Result<usize> {
    if value == 0 { Err(Error::option(option, "1 or more", 0)) } else { Ok(value) }
}

fn parse_link(text: &str) -> Result<LinkModel> {
    text.parse().map_err(|error: v3_ranks::Error| match error {
        v3_ranks::Error::Config { expected, .. } => Error::option("--link", expected, text),
        other => Error::option("--link", other, text),
    })
}

impl TrainOptions {
    /// Fills in what `args` leaves open, from `stored` (the options of the run being resumed) or the defaults.
    pub fn new(args: &TrainArgs, stored: Option<&Stored>) -> Result<Self> {
        let pipeline = positive("--pipeline", args.pipeline.or(stored.map(|s| s.pipeline)).unwrap_or(2))?;
        let schedule = args.schedule.clone().or(stored.filter(|_| args.pipeline.is_none()).map(|s| s.schedule.clone()));
        let schedule = schedule.unwrap_or_else(|| if pipeline == 1 { "1f1b".into() } else { "dualpipe".into() });
        let kind: Kind = schedule
            .parse()
            .map_err(|_| Error::option("--schedule", "gpipe, 1f1b, zb-h1, zb-v, dualpipe or dualpipev", &schedule))?;
        let needed = match kind {
            Kind::DualPipe | Kind::DualPipeV => 2 * pipeline,
            _ => pipeline,
        };
        let micro_batches = args.micro_batches.or(stored.map(|s| s.micro_batches)).unwrap_or(needed.max(4));
        let lr = args.lr.or(stored.map(|s| s.lr)).unwrap_or(3e-3);
        if !((0.0..=f64::from(f32::MAX)).contains(&lr)) {
            return Err(Error::option("--lr", "a finite number, 0 or more", lr));
        }
        let precision = args.precision.clone().or(stored.map(|s| s.precision.clone())).unwrap_or_else(|| "f32".into());
        let recompute = args.recompute.clone().or(stored.map(|s| s.recompute.clone())).unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let ranks_per_node = match args.ranks_per_node {
            Some(n) => positive("--ranks-per-node", n)?,
            None => stored.map_or(0, |s| s.ranks_per_node),
        };
        let steps = args.steps.or(stored.map(|s| s.steps)).unwrap_or(300);
        let stored = Stored {
            data: args.data.clone().or(stored.and_then(|s| s.data.clone())),
            steps: positive("--steps", usize::try_from(steps).unwrap_or(usize::MAX))? as u64,
            seq_len: positive("--seq-len", args.seq_len.or(stored.map(|s| s.seq_len)).unwrap_or(128))?,
            micro_batch: positive("--micro-batch", args.micro_batch.or(stored.map(|s| s.micro_batch)).unwrap_or(8))?,
            micro_batches: positive("--micro-batches", micro_batches)?,
            lr,
            seed: args.seed.or(stored.map(|s| s.seed)).unwrap_or(1),
            pipeline,
            expert_parallel: positive(
                "--expert-parallel",
                args.expert_parallel.or(stored.map(|s| s.expert_parallel)).unwrap_or(2),
            )?,
            ranks_per_node,
            schedule,
            ema: !args.no_ema && stored.is_none_or(|s| s.ema),
            mtp: !args.no_mtp && stored.is_none_or(|s| s.mtp),
            save_every: match args.save_every.or(stored.map(|s| s.save_every)).unwrap_or(100) {
                0 => return Err(Error::option("--save-every", "1 or more", 0)),
                n => n,
            },
            precision,
            recompute,
        };
        let precision =
            stored.precision.parse().map_err(|_| Error::option("--precision", "f32, bf16 or fp8", &stored.precision))?;
        let threads = positive("--threads", args.threads.unwrap_or(cores))?;
        if threads > MAX_THREADS {
            return Err(Error::option("--threads", format!("at most {MAX_THREADS}"), threads));
        }
        let overlap = OverlapChoice::new(args.overlap.as_deref(), args.costs.as_deref(), args.arrangements.as_deref())?;
        let link = args.link.as_deref().map(parse_link).transpose()?;
        if link.is_some() && args.ranks.as_deref() == Some("mpi") {
            return Err(Error::option(
                "--link",
                "--ranks threads beside it: the links of processes are what they are",
                "--ranks mpi",
            ));
        }
        Ok(Self { recompute: stored.recompute.parse()?, stored, precision, kind, overlap, link, threads, stop_after: None })
    }

    /// Learning rate of step `step` (from 1): linear warm-up over the first twentieth, then half a cosine down to a tenth.
    pub fn lr_at(&self, step: u64) -> f64 {
        let (steps, step) = (self.stored.steps as f64, step as f64);
        let warm_up = (steps / 20.0).clamp(1.0, 2000.0);
        if step <= warm_up {
            return self.stored.lr * step / warm_up;
        }
        let t = (step - warm_up) / (steps - warm_up).max(1.0);
        self.stored.lr * (0.1 + 0.9 * 0.5 * (1.0 + (std::f64::consts::PI * t.min(1.0)).cos()))
    }
}
