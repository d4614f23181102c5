//! The end of a run: what the model learned, what the pipeline did, in pictures and in one table.

use std::path::Path;

use dualpipe::{ActionKind, Costs, Panel, Step, TimeUnit, Timeline};
use fp8_gemm::Precision;
use mtp::Sampler;

use super::{Job, RankMemory, RunOutcome, metrics};
use crate::checkpoint::write_file_atomic;
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, Generated, Generator};
use crate::inspect::{self, Evaluation};
use crate::layers::linear::Packing;
use crate::order2::Order2;
use crate::overlap::{Figures, OverlapFigures};
use crate::report::{self, Figure, Series, Table};
use crate::text::Tokenizer;

/// Name of the report, the last file that a run writes.
pub const REPORT: &str = "report.html";

/// Bytes of the held-out text that the sample continues, and tokens it adds.
const PROMPT: usize = 64;
const SAMPLE: usize = 160;

/// Writes loss.svg, timeline.svg, trace.json and report.html into the run folder; returns the table.
pub fn finish(job: &Job, outcome: &RunOutcome) -> Result<String> {
    let out = &job.out;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(job.options.threads).build().map_err(Error::piece("rayon"))?;
    let (table, samples) = pool.install(|| summarise(job, outcome))?;
    let lines = metrics::read(out)?;
    let points = |f: &dyn Fn(&metrics::StepMetrics) -> Option<f64>| -> Vec<(f64, f64)> {
        lines.iter().filter_map(|m| f(m).map(|y| (m.step as f64, y))).collect()
    };
    let (main, mtp) = (points(&|m| Some(m.main_loss)), points(&|m| m.mtp_loss));
    let mut series = vec![Series { name: "next token", points: &main }];
    if !mtp.is_empty() {
        series.push(Series { name: "multi-token prediction", points: &mtp });
    }
    let loss = report::loss_svg(&series)?;
    write(out, "loss.svg", &loss)?;
    let mut figures = vec![Figure { title: "Loss", svg: &loss, caption: "Cross entropy of each step's tokens, in nats." }];
    let pipeline = outcome.timeline.as_ref().map(|t| pictures(job, t)).transpose()?;
    if let Some((svg, trace)) = &pipeline {
        write(out, "timeline.svg", svg)?;
        write(out, "trace.json", trace)?;
        let caption = "The last step as executed, and below it the same plan simulated with the mean time of each kind of work.";
        figures.push(Figure { title: "Pipeline", svg, caption });
    }
    let samples: Vec<(&str, &str)> = samples.iter().map(|(t, s)| (*t, s.as_str())).collect();
    write(out, REPORT, &report::html_page("Training run", &table, &figures, &samples))?;
    Ok(table.to_text())
}

fn write(out: &Path, name: &str, text: &str) -> Result<()> {
    write_file_atomic(&out.join(name), text.as_bytes())
}

fn pictures(job: &Job, measured: &Timeline) -> Result<(String, String)> {
    let simulated = dualpipe::simulate(&job.schedule, &measured.mean_costs())?.with_unit(TimeUnit::Seconds);
    let panels =
        [Panel { title: "Measured".into(), timeline: measured }, Panel { title: "Simulated".into(), timeline: &simulated }];
    Ok((dualpipe::svg_measured_above_simulated(measured, &simulated), dualpipe::chrome_trace(&panels)))
}

/// Mean seconds of each kind of work over all ranks of a measured timeline: what the formula takes.
pub fn pooled_costs(timeline: &Timeline) -> Costs {
    let mean = |pick: &dyn Fn(&Step) -> bool| {
        let times: Vec<f64> = timeline.spans().iter().flatten().filter(|s| pick(&s.step)).map(|s| s.end - s.start).collect();
        (!times.is_empty()).then(|| times.iter().sum::<f64>() / times.len() as f64)
    };
    let one = |kind: ActionKind| mean(&|step| matches!(step, Step::One(a) if a.kind == kind));
    let (f, w) = (one(ActionKind::F).unwrap_or(0.0), one(ActionKind::W));
    let b = one(ActionKind::B).or_else(|| Some(one(ActionKind::I)? + w?)).unwrap_or(0.0);
    let fb = mean(&|step| matches!(step, Step::Pair(..))).unwrap_or(f + b);
    Costs { f, b, w: w.unwrap_or(b / 2.0), fb, p2p: 0.0 }
}

type Samples = Vec<(&'static str, String)>;

fn summarise(job: &Job, outcome: &RunOutcome) -> Result<(Table, Samples)> {
    let s = &job.options.stored;
    let mut table = Table::new();
    table.heading("Held-out text, bits per byte");
    let order2 = Order2::fit(job.data.train_bytes()).bits_per_byte(job.data.held_out_bytes());
    let evaluate = |dir: &Path| -> Result<Evaluation> {
        let mut model = inspect::load(dir, job.options.precision, Packing::Inference, s.mtp)?;
        inspect::evaluate(&mut model, &job.data.held_out, job.data.held_out_bytes().len(), s.seq_len)
    };
    let model = evaluate(&job.out.join("checkpoint"))?;
    table.row("this model", format!("{:.3}", model.bits_per_byte));
    if s.ema {
        table.row("its moving average", format!("{:.3}", evaluate(&job.out.join("ema"))?.bits_per_byte));
    }
    table.row("order-2 byte model (Witten-Bell)", format!("{order2:.3}"));

    table.heading("Training");
    table.row("steps, tokens", format!("{}, {}", outcome.last_step, outcome.tokens));
    let speed = outcome.tokens as f64 / outcome.train_seconds.max(1e-9);
    table.row("tokens/s", format!("{speed:.0} ({}, {} threads, cpu)", job.options.precision, job.options.threads));
    if job.config.n_routed_experts > 0 && outcome.tokens > 0 {
        table.row("largest expert load / mean", format!("{:.2} (mean of the last tenth of the steps)", outcome.late_load));
    }
    if let Some(timeline) = &outcome.timeline {
        pipeline_rows(job, timeline, &mut table);
        overlap_rows(job, &outcome.overlap, &mut table);
    }
    match &outcome.ema_cost {
        Some(c) => {
            table.row("average: training blocked", format!("{:.2} % of the step time", 100.0 * c.blocked_share));
            let change = 100.0 * (c.with / c.without - 1.0);
            table.row(
                "average: step with, without",
                format!("{:.1} ms, {:.1} ms ({change:+.1} %)", c.with * 1e3, c.without * 1e3),
            );
        }
        None => drop(table.row("average", if s.ema { "not measured" } else { "not kept" })),
    }

    table.heading("Memory per rank: weights f32 + packed, gradients, moments,");
    table.heading("activations at their peak (attention, ffn, tail), average");
    for (rank, m) in outcome.memory.iter().enumerate() {
        table.row(format!("rank {rank}"), memory_row(m));
    }

    let samples = sample_rows(job, &mut table)?;
    Ok((table, samples))
}

fn pipeline_rows(job: &Job, timeline: &Timeline, table: &mut Table) {
    let s = &job.options.stored;
    let ms = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
    let name = format!("bubble, {} on {} ranks", s.schedule, s.pipeline);
    let share = 100.0 * timeline.bubble() / timeline.makespan().max(1e-12);
    let mut measured = format!("{} measured ({share:.0} % of {})", ms(timeline.bubble()), ms(timeline.makespan()));
    if job.options.threads < job.grid.size() {
        measured += &format!(", {} ranks sharing {} threads", job.grid.size(), job.options.threads);
    }
    table.row(name, measured);
    let costs = pooled_costs(timeline);
    match dualpipe::formula::bubble(job.options.kind, s.pipeline, s.micro_batches, &costs) {
        Some(bubble) => table.row("bubble by formula", format!("{} from the measured F, B, W", ms(bubble))),
        // Measured times scatter, and a pair may take longer than its halves: then the formula gives bounds.
        None => match dualpipe::formula::bubble_bounds(&job.schedule, &costs) {
            Ok((low, high)) => table.row("bubble by formula", format!("{} to {} from the measured F, B, W", ms(low), ms(high))),
            Err(e) => table.row("bubble by formula", e.to_string()),
        },
    };
}

/// What the waits for exchanges took in the last step, beside the computation of the same components.
fn overlap_rows(job: &Job, figures: &OverlapFigures, table: &mut Table) {
    if job.config.n_routed_experts == 0 || job.options.stored.expert_parallel < 2 {
        return;
    }
    let order = job.options.overlap.name();
    let row = |f: &Figures| {
        let ms = |seconds: f64| format!("{:.2}", seconds * 1e3 / f.steps.max(1.0));
        format!("{} + {} ms beside {} computing", ms(f.exposed), ms(f.bubble), ms(f.computing))
    };
    if figures.pairs.steps > 0.0 {
        table.row(format!("exposed + late, pair, {order}"), row(&figures.pairs));
        if let Some(hidden) = figures.pairs.hidden() {
            table.row("hidden in pairs", format!("{:.1} % of what --costs say of exchanges", 100.0 * hidden));
        }
    }
    table.row(format!("exposed + late, alone, {order}"), row(&figures.alone));
}

fn memory_row(m: &RankMemory) -> String {
    let mb = |bytes: usize| {
        let digits = usize::from(bytes < 10_000_000);
        format!("{:.digits$}", bytes as f64 / 1e6)
    };
    format!(
        "{}+{}, {}, {}, {} ({}, {}, {}), {} MB",
        mb(m.weights),
        mb(m.packed),
        mb(m.gradients),
        mb(m.moments),
        mb(m.activations.total()),
        mb(m.activations.attention),
        mb(m.activations.ffn),
        mb(m.activations.tail),
        mb(m.ema)
    )
}

fn sample_rows(job: &Job, table: &mut Table) -> Result<Samples> {
    let generator = Generator::load(&job.out.join("checkpoint"), Precision::F32)?;
    let limit = job.config.max_position_embeddings;
    let prompt = job.data.held_out.slice(0..PROMPT.min(limit.div_ceil(2)).min(job.data.held_out.len()));
    let room = limit.saturating_sub(prompt.len());
    let run = |speculate: bool| -> Result<Generated> {
        let sampler = Sampler::new(0.0, 0, 1.0)?;
        let options = GenerateOptions { max_new_tokens: SAMPLE.min(room), sampler, seed: 0, speculate };
        generator.generate(&prompt, &options, |_| Ok(true))
    };
    let plain = run(false)?;
    let rate = |g: &Generated| format!("{:.0} tokens/s", g.tokens.len() as f64 / g.seconds.max(1e-9));
    table.heading("Greedy sample, linear layers in f32");
    table.row("plain", rate(&plain));
    let tokenizer = Tokenizer::Bytes;
    if job.options.stored.mtp {
        let speculative = run(true)?;
        let same = if speculative.tokens == plain.tokens { "the same tokens" } else { "OTHER TOKENS" };
        table.row("speculative", format!("{}, {same}", rate(&speculative)));
        let accepted = speculative.acceptance.rate().map_or("none drafted".into(), |r| format!("{:.1} %", 100.0 * r));
        table.row("drafts accepted", accepted);
    }
    let text = tokenizer.decode(&plain.tokens)?;
    let prompt = tokenizer.decode(&prompt)?;
    table.row("prompt", prompt.replace('\n', " "));
    table.row("continuation", text.replace('\n', " "));
    Ok(vec![("Greedy sample", format!("{prompt}|{text}"))])
}
