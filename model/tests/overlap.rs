//! Communication behind computation, under the virtual clock: what pairs hide, what a step exposes, and that no order of components
//! changes a bit.

mod common;

use std::sync::Arc;
use std::time::Duration;

use dualpipe::{ComponentCost, ComponentCosts, ComponentKind, Half, Overlap, Pairing, Ports, Step, Tuning};
use v3_model::overlap::OverlapFigures;
use v3_model::train::{Job, TrainArgs, TrainOptions};
use v3_model::{Config, components};
use v3_ranks::{Clock, Link, LinkModel, Waits, WorldConfig, run_threads};

/// MoE layers of a stage's chunk.
const LAYERS: usize = 4;
const MICRO_BATCHES: usize = 32;
/// Seconds of every computing component of a layer.
const UNIT: f64 = 1e-3;

fn config(pipeline: usize) -> Config {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/overlap.json");
    let mut config = Config::from_file(&path).expect("a configuration");
    config.num_hidden_layers = LAYERS * pipeline;
    config
}

fn job(pipeline: usize, expert: usize) -> Job {
    let args = TrainArgs {
        steps: Some(1),
        seq_len: Some(4),
        micro_batch: Some(expert),
        micro_batches: Some(MICRO_BATCHES),
        pipeline: Some(pipeline),
        expert_parallel: Some(expert),
        schedule: Some(if pipeline == 1 { "dualpipev" } else { "dualpipe" }.into()),
        ranks_per_node: Some(1),
        no_ema: true,
        threads: Some(1),
        ..TrainArgs::default()
    };
    let stages = if pipeline == 1 { 2 } else { pipeline };
    let options = TrainOptions::new(&args, None).expect("valid options");
    let mut job = Job::with(options, config(stages), None, common::folder("unused")).expect("a job");
    // Each pipeline on a node of its own: the slow links carry the exchanges of experts, and nothing else.
    job.grid.pipelines_together = true;
    job.layouts = job.grid.layouts(&job.config, job.options.precision).expect("layouts");
    job
}

/// What one rank saw of a step.
struct Seen {
    figures: OverlapFigures,
    waits: Waits,
    makespan: f64,
    loss: u64,
    gradients: u64,
}

fn hash(values: &[f32]) -> u64 {
    values.iter().fold(0xcbf2_9ce4_8422_2325, |h, v| (h ^ u64::from(v.to_bits())).wrapping_mul(0x100_0000_01b3))
}

fn run(job: &Job, link: LinkModel, costs: &Arc<ComponentCosts>, overlap: &Overlap) -> Vec<Seen> {
    let world = WorldConfig::new(job.grid.size()).ranks_per_node(job.grid.pipeline).clock(Clock::Virtual).link(link);
    let batches = common::first_step(job);
    run_threads(world, |world| -> v3_model::Result<Seen> {
        let mut trainer = job.trainer(world)?;
        trainer.set_overlap(overlap.clone())?;
        trainer.model.costs = Some(Arc::clone(costs));
        trainer.world.barrier()?;
        let before = trainer.world.waits();
        let (outcome, spans) = trainer.run(1, &batches)?;
        let lists = |half, stage| components::list(&job.config, &job.grid, half, stage);
        let (rank, _) = job.grid.coordinates(trainer.world.rank());
        let records = &trainer.model.records;
        let figures = OverlapFigures::new(&job.schedule, rank, lists, records, Some(costs));
        let exposed = spans.len() as f64;
        let _ = exposed;
        let timeline = trainer.timeline(&spans)?;
        Ok(Seen {
            figures,
            waits: trainer.world.waits().since(&before),
            makespan: timeline.makespan(),
            loss: outcome.loss.to_bits(),
            gradients: hash(&trainer.model.grads),
        })
    })
    .expect("no rank fails")
}

/// Bytes that a rank sends in the exchanges of one layer: dispatch, combine and their backwards.
fn exchange_bytes(expert: usize) -> [f64; 4] {
    let mut job = job(1, expert);
    job.overlap = Overlap::Off;
    let batches = common::first_step(&job);
    let measured = run_threads(WorldConfig::new(expert).ranks_per_node(1), |world| -> v3_model::Result<_> {
        job.trainer(world)?.measure_components(0, &batches[0])
    })
    .expect("no rank fails");
    KINDS.map(|(half, kind)| {
        let of = |list: &Vec<v3_model::train::Measured>| {
            list.iter().find(|m| (m.half, m.component.kind) == (half, kind)).map_or(0.0, |m| m.slow_bytes as f64)
        };
        measured.iter().map(of).fold(0.0, f64::max)
    })
}

const KINDS: [(Half, ComponentKind); 4] = [
    (Half::Forward, ComponentKind::Dispatch),
    (Half::Forward, ComponentKind::Combine),
    (Half::Backward, ComponentKind::CombineBackward),
    (Half::Backward, ComponentKind::DispatchBackward),
];

/// Computing components of a layer take one unit each, what is outside of the layers nothing. The slow link is such that the
/// exchanges of a pair take `ratio` of its computation.
fn setting(job: &Job, ratio: f64) -> (LinkModel, ComponentCosts) {
    let bytes = exchange_bytes(job.grid.expert);
    let computation = 6.0 * UNIT;
    let bandwidth = bytes.iter().sum::<f64>() / (ratio * computation);
    let latency = Duration::from_micros(1);
    let link = LinkModel { slow: Link { latency, bandwidth }, fast: Link { latency, bandwidth: 3.2 * bandwidth } };
    let mut costs = ComponentCosts::new(Ports::Two);
    for half in [Half::Forward, Half::Backward] {
        for kind in ComponentKind::ALL.into_iter().filter(|kind| !kind.communicates()) {
            let outside = matches!(kind, ComponentKind::Enter | ComponentKind::Leave);
            costs.set(half, kind, None, ComponentCost::compute(if outside { 0.0 } else { UNIT }));
            costs.set(half, kind, Some(job.config.num_hidden_layers), ComponentCost::compute(0.0));
        }
    }
    for ((half, kind), bytes) in KINDS.into_iter().zip(bytes) {
        costs.set(half, kind, None, ComponentCost::communicate(bytes / bandwidth, 0.0, latency.as_secs_f64()));
    }
    let rows = job.options.stored.seq_len * job.config.hidden_size * size_of::<f32>();
    costs.transfer = ComponentCost::communicate(0.0, rows as f64 / (3.2 * bandwidth), latency.as_secs_f64());
    (link, costs)
}

#[test]
fn explore() {
    for pipeline in [2, 4, 8] {
        for expert in [2, 4] {
            let job = job(pipeline, expert);
            for ratio in [0.8, 1.0] {
                let (link, costs) = setting(&job, ratio);
                let costs = Arc::new(costs);
                let lists = |half, stage| components::list(&job.config, &job.grid, half, stage);
                let begun = std::time::Instant::now();
                let tuned = dualpipe::tune(&job.schedule, lists, &costs, Tuning::default()).expect("arrangements");
                let took = begun.elapsed();
                let mut off = 0.0;
                for (name, overlap) in [("off", Overlap::Off), ("default", Overlap::Default), ("tuned", Overlap::Tuned(tuned))] {
                    let begun = std::time::Instant::now();
                    let seen = run(&job, link, &costs, &overlap);
                    let wall = begun.elapsed();
                    let sum = |f: &dyn Fn(&Seen) -> f64| seen.iter().map(f).sum::<f64>();
                    let comm = sum(&|s| s.figures.pairs.communication);
                    let hidden = 1.0 - sum(&|s| s.figures.pairs.exposed) / comm;
                    let alone = sum(&|s| s.figures.alone.communication);
                    let exposed = sum(&|s| s.waits.exposed);
                    let plan = dualpipe::simulate_components(&job.schedule, lists, &costs, &overlap).expect("plan");
                    let plan_alone: f64 = plan.ranks.iter().map(|r| r.alone.exposed).sum::<f64>() * expert as f64;
                    if name == "off" {
                        off = seen[0].makespan;
                    }
                    println!(
                        "pp {pipeline} ep {expert} ratio {ratio} {name}: hidden {:.3} (plan {:.3}), exposed {:.4} pairs {:.4} alone {:.4} of alone comm {:.4} plan alone {:.4}; makespan {:.4} plan {:.4} x{:.3}; bubble {:.4} pairbubble {:.4}; wall {wall:?} tune {took:?}",
                        hidden,
                        plan.hidden_in_pairs(),
                        exposed,
                        sum(&|s| s.figures.pairs.exposed),
                        sum(&|s| s.figures.alone.exposed),
                        alone,
                        plan_alone,
                        seen[0].makespan,
                        plan.timeline.makespan(),
                        off / seen[0].makespan,
                        sum(&|s| s.waits.bubble),
                        sum(&|s| s.figures.pairs.bubble)
                    );
                }
            }
        }
    }
}
