//! `v3 bench`: what the components of a model's chunks take on this machine, and what laying exchanges behind computation gains.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use dualpipe::{ComponentCost, ComponentCosts, Overlap, Ports};
use v3_ranks::{Comm, Link, LinkModel, WorldConfig, run_threads};

use crate::checkpoint::write_file_atomic;
use crate::error::{Error, Result};
use crate::report::Table;
use crate::schedule_cmd::print;
use crate::train::{Job, Measured, TrainArgs};

/// `v3 bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Measure what each component of a chunk takes, and write it for --overlap tuned
    Components(ComponentsArgs),
    /// Time steps of one pipeline rank and two expert-parallel ranks, forward and backward paired, with and without overlap
    Overlap(OverlapArgs),
}

#[derive(Debug, Args)]
struct Shape {
    /// A DeepSeek-V3 config.json. Default: the small model that v3 train trains
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Tokens of a sequence [default: 128]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seq_len: Option<usize>,
    /// Sequences of a micro-batch, over all expert-parallel ranks [default: 8]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    micro_batch: Option<usize>,
    /// Precision of the linear layers: f32, bf16 or fp8 [default: f32]
    #[arg(long, value_name = "NAME")]
    precision: Option<String>,
    /// Threads of all ranks together [default: all cores]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    threads: Option<usize>,
    /// What messages cost, such as slow=10us,50GB/s,fast=2us,160GB/s
    #[arg(long, value_name = "slow=LATENCY,BANDWIDTH,fast=LATENCY,BANDWIDTH")]
    link: Option<String>,
}

#[derive(Debug, Args)]
struct ComponentsArgs {
    #[command(flatten)]
    shape: Shape,
    /// Expert-parallel ranks [default: 2]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    expert_parallel: Option<usize>,
    /// Ranks on one node [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    ranks_per_node: Option<usize>,
    /// Times that each component is measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: usize,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct OverlapArgs {
    #[command(flatten)]
    shape: Shape,
    /// Steps of each kind, one after another in turn; the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: usize,
}

/// Runs `v3 bench`.
///
/// # Errors
/// Options that make no sense, files that cannot be read or written, and whatever the ranks say.
pub fn run(args: &BenchArgs) -> Result<()> {
    match &args.what {
        What::Components(args) => components(args),
        What::Overlap(args) => overlap(args),
    }
}

impl Shape {
    fn job(&self, schedule: &str, expert: usize, per_node: usize, micro_batches: usize) -> Result<Job> {
        let args = TrainArgs {
            config: self.config.clone(),
            steps: Some(1),
            seq_len: self.seq_len,
            micro_batch: self.micro_batch,
            micro_batches: Some(micro_batches),
            precision: self.precision.clone(),
            pipeline: Some(1),
            expert_parallel: Some(expert),
            ranks_per_node: Some(per_node),
            schedule: Some(schedule.into()),
            threads: self.threads,
            link: self.link.clone(),
            no_ema: true,
            ..TrainArgs::default()
        };
        Job::new(&args)
    }
}

/// Runs `body` on all ranks of a job, in threads, each with its share of the machine's.
fn on_ranks<R: Send>(job: &Job, link: Option<LinkModel>, body: impl Fn(Comm) -> Result<R> + Sync) -> Result<Vec<R>> {
    let (size, threads) = (job.grid.size(), job.options.threads);
    let world = WorldConfig::new(size).ranks_per_node(job.options.stored.ranks_per_node).compute_slots(threads.min(size));
    let world = link.map_or(world, |link| world.link(link));
    Ok(run_threads(world, |world| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads((threads / size).max(1)).build().map_err(Error::piece("rayon"))?;
        pool.install(|| body(world))
    })?)
}

/// For each component of a chunk its median over `repeats`, by rank. Exchanges are measured without a link.
fn measure(job: &Job, repeats: usize) -> Result<Vec<Vec<Measured>>> {
    let batches = job.batches()?;
    let batch = job.micro_batches(&batches, 1).swap_remove(0);
    on_ranks(job, None, |world| {
        let mut trainer = job.trainer(world)?;
        // The first pass also touches all memory.
        let mut all = (0..repeats + 1).map(|_| trainer.measure_components(0, &batch)).collect::<Result<Vec<_>>>()?;
        all.remove(0);
        let mut median = all[0].clone();
        for (index, component) in median.iter_mut().enumerate() {
            component.seconds = middle(all.iter().map(|pass| pass[index].seconds).collect());
        }
        Ok(median)
    })
}

fn middle(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(0.0)
}

fn positive(option: &str, value: usize) -> Result<usize> {
    if value == 0 { Err(Error::option(option, "1 or more", 0)) } else { Ok(value) }
}

fn components(args: &ComponentsArgs) -> Result<()> {
    let repeats = positive("--repeats", args.repeats)?;
    let job = args.shape.job("1f1b", args.expert_parallel.unwrap_or(2), args.ranks_per_node.unwrap_or(1), 1)?;
    let ranks = measure(&job, repeats)?;
    let link = job.options.link;
    let mut costs = ComponentCosts::new(if link.is_some() { Ports::Two } else { Ports::One });
    let over = |bytes: f64, link: Link| bytes / link.bandwidth;
    for (index, first) in ranks[0].iter().enumerate() {
        let mean = ranks.iter().map(|rank| rank[index].seconds).sum::<f64>() / ranks.len() as f64;
        let most = |bytes: &dyn Fn(&Measured) -> u64| ranks.iter().map(|rank| bytes(&rank[index])).max().unwrap_or(0) as f64;
        let cost = match (first.component.kind.communicates(), link) {
            (false, _) => ComponentCost::compute(mean),
            (true, None) => ComponentCost::communicate(mean, 0.0, 0.0),
            (true, Some(link)) => {
                let (slow, fast) = (most(&|m| m.slow_bytes), most(&|m| m.fast_bytes));
                let latency = if slow > 0.0 { link.slow.latency } else { link.fast.latency };
                ComponentCost::communicate(over(slow, link.slow), over(fast, link.fast), latency.as_secs_f64())
            }
        };
        costs.set(first.half, first.component.kind, Some(first.component.layer), cost);
    }
    let s = &job.options.stored;
    if let Some(link) = link {
        let bytes = s.micro_batch.div_ceil(s.expert_parallel) * s.seq_len * job.config.hidden_size * size_of::<f32>();
        costs.transfer = ComponentCost::communicate(over(bytes as f64, link.slow), 0.0, link.slow.latency.as_secs_f64());
    }
    write_file_atomic(&args.out, costs.to_string().as_bytes())?;
    let sum = |communicates: bool| {
        let part = ranks[0].iter().filter(|m| m.component.kind.communicates() == communicates);
        part.filter_map(|m| costs.get(m.half, &m.component))
            .map(|c| if communicates { c.alone() } else { c.compute })
            .sum::<f64>()
    };
    let mut table = Table::new();
    table.row("components", ranks[0].len().to_string());
    table.row("computing, one chunk", format!("{:.2} ms", sum(false) * 1e3));
    table.row("exchanges, one chunk", format!("{:.2} ms", sum(true) * 1e3));
    table.row("written to", args.out.display().to_string());
    print(&table.to_text())
}

/// Two runs without a link that are further apart than this make the figures void.
const STEADY: f64 = 0.10;

fn overlap(args: &OverlapArgs) -> Result<()> {
    let repeats = positive("--repeats", args.repeats)?;
    let job = args.shape.job("dualpipev", 2, 1, 8)?;
    let link = match job.options.link {
        Some(link) => link,
        None => {
            // Exchanges shall take as long as computation.
            let ranks = measure(&job, 3)?;
            let sum = |f: &dyn Fn(&Measured) -> f64| ranks[0].iter().map(f).sum::<f64>();
            let seconds = sum(&|m| if m.component.kind.communicates() { 0.0 } else { m.seconds });
            let slow = Link { latency: Duration::from_micros(10), bandwidth: sum(&|m| m.slow_bytes as f64) / seconds };
            LinkModel { slow, fast: Link::INSTANT }
        }
    };
    let kinds = [
        ("without a link", None, Overlap::Off),
        ("off", Some(link), Overlap::Off),
        ("default", Some(link), Overlap::Default),
        ("without a link, again", None, Overlap::Off),
    ];
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..repeats {
        for ((_, link, order), times) in kinds.iter().zip(&mut times) {
            times.push(step_seconds(&job, *link, order)?);
        }
    }
    let [free, off, default, again] = times.map(middle);
    let mut table = Table::new();
    table.row("link", link.to_string());
    for ((name, ..), seconds) in kinds.iter().zip([free, off, default, again]) {
        table.row(*name, format!("{:.1} ms a step", seconds * 1e3));
    }
    let apart = (free / again - 1.0).abs();
    if apart > STEADY {
        table.row("VOID", format!("two runs without a link are {:.0} % apart", 100.0 * apart));
    } else {
        let free = 0.5 * (free + again);
        table.row("exchanges hidden", format!("{:.1} %", 100.0 * (off - default) / (off - free)));
        table.row("off costs", format!("{:.2}x", off / default));
    }
    print(&table.to_text())
}

/// Seconds of the second of two steps.
fn step_seconds(job: &Job, link: Option<LinkModel>, order: &Overlap) -> Result<f64> {
    let batches = job.batches()?;
    let batches = job.micro_batches(&batches, 1);
    let seconds = on_ranks(job, link, |world| {
        let mut trainer = job.trainer(world)?;
        trainer.set_overlap(order.clone())?;
        trainer.run(1, &batches)?;
        trainer.world.barrier()?;
        let begun = Instant::now();
        trainer.run(2, &batches)?;
        trainer.world.barrier()?;
        Ok(begun.elapsed().as_secs_f64())
    })?;
    Ok(seconds.into_iter().fold(0.0, f64::max))
}
