//! Communication behind computation, under the virtual clock: what pairs hide, what a step exposes, and that no order of components
//! changes a bit.

mod common;

use std::sync::Arc;
use std::time::Duration;

use dualpipe::{Action, Arrangements, ComponentCost, ComponentCosts, ComponentKind, Half, Overlap, Pairing, Ports, Step, Tuning};
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
    /// Seconds of this rank's pairs, from the first wait to the end of each.
    pairs: f64,
    makespan: f64,
    losses: Vec<u64>,
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
        let (outcome, spans) = trainer.run(1, &batches)?;
        let lists = |half, stage| components::list(&job.config, &job.grid, half, stage);
        let (rank, _) = job.grid.coordinates(trainer.world.rank());
        let figures = OverlapFigures::new(&job.schedule, rank, lists, &trainer.model.records, Some(costs));
        let pairs = spans.iter().filter(|s| matches!(s.step, Step::Pair(..))).map(|s| s.end - s.start + s.wait).sum();
        let bits = [outcome.loss].iter().chain(&outcome.micro_losses).map(|l| l.to_bits()).collect();
        Ok(Seen {
            figures,
            waits: trainer.waits,
            pairs,
            makespan: trainer.timeline(&spans)?.makespan(),
            losses: bits,
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

/// The share of the exchanges that steady-state pairs must hide, by the ratio of exchanges to computation.
const HIDDEN: [(f64, f64); 2] = [(0.8, 0.95), (1.0, 0.90)];

/// The order found for rank 0's first pair, with the lower bound of its time.
fn print_best(job: &Job, costs: &ComponentCosts, tuned: &Arrangements) {
    let pair = job.schedule.steps(0).iter().find(|step| matches!(step, Step::Pair(..))).expect("a pair");
    let stage = |action: Action| job.schedule.stage_of(0, action.direction).expect("a stage");
    let stages: Vec<usize> = pair.actions().map(stage).collect();
    let list = |half, stage| components::list(&job.config, &job.grid, half, stage);
    let pairing = Pairing::new(list(Half::Forward, stages[0]), list(Half::Backward, stages[1])).expect("a pairing");
    let arrangement = tuned.get(&pairing).expect("an arrangement");
    let costs = costs.of(&pairing).expect("costs");
    let steady = dualpipe::simulate_steady(&pairing, &costs, arrangement).expect("a simulation");
    let bound = dualpipe::pair_bound(&pairing, &costs).expect("a bound");
    let (makespan, hidden) = (steady.makespan * 1e3, 100.0 * steady.hidden());
    println!("best order found: {makespan:.3} ms a pair, bound {:.3} ms, hides {hidden:.2} %", bound * 1e3);
    println!("{}", arrangement.describe(&pairing));
}

fn check(pipeline: usize) {
    for expert in [2, 4] {
        let job = job(pipeline, expert);
        let lists = |half, stage| components::list(&job.config, &job.grid, half, stage);
        for (ratio, least) in HIDDEN {
            let name = format!("PP {pipeline} x EP {expert}, exchanges {ratio} of computation");
            let (link, costs) = setting(&job, ratio);
            let costs = Arc::new(costs);
            let tuning = Tuning { tries: 20_000, ..Tuning::default() };
            let tuned = dualpipe::tune(&job.schedule, lists, &costs, tuning).expect("arrangements");
            print_best(&job, &costs, &tuned);
            let off = run(&job, link, &costs, &Overlap::Off);
            for (order, overlap) in [("default", Overlap::Default), ("tuned", Overlap::Tuned(tuned.clone()))] {
                let seen = run(&job, link, &costs, &overlap);
                for (rank, (a, b)) in off.iter().zip(&seen).enumerate() {
                    assert_eq!((&a.losses, a.gradients), (&b.losses, b.gradients), "{name}, {order}, rank {rank}");
                }
                let sum = |f: &dyn Fn(&Seen) -> f64| seen.iter().map(f).sum::<f64>();
                let pairs = sum(&|s| s.figures.pairs.communication);
                let hidden = 1.0 - sum(&|s| s.figures.pairs.exposed) / pairs;
                let exposed = sum(&|s| s.figures.pairs.exposed + s.figures.alone.exposed);
                let plan = dualpipe::simulate_components(&job.schedule, lists, &costs, &overlap).expect("a plan");
                let alone = plan.ranks.iter().map(|r| r.alone.exposed).sum::<f64>() * expert as f64;
                let step = off[0].makespan / seen[0].makespan;
                let pair = off.iter().map(|s| s.pairs).sum::<f64>() / sum(&|s| s.pairs);
                println!(
                    "{name}, {order}: pairs hide {:.2} % (plan {:.2} %); exposed {exposed:.4} s, unpaired by the plan {alone:.4} s; \
                     bubble {:.4} s; off costs a pair {pair:.2}x, the step {step:.2}x ({:.4} s, plan {:.4} s)",
                    100.0 * hidden,
                    100.0 * plan.hidden_in_pairs(),
                    sum(&|s| s.waits.bubble),
                    seen[0].makespan,
                    plan.timeline.makespan(),
                );
                assert!(hidden >= least, "{name}, {order}: pairs hide {hidden}");
                let bound = alone + 0.05 * pairs;
                assert!(exposed <= bound, "{name}, {order}: the step exposes {exposed} s, of which the plan explains {alone} s");
                assert!(pair >= 1.6, "{name}, {order}: off costs a pair {pair}x");
            }
        }
    }
}

#[test]
fn two_pipeline_ranks_hide_their_exchanges() {
    check(2);
}

#[test]
fn four_pipeline_ranks_hide_their_exchanges() {
    check(4);
}

#[test]
fn eight_pipeline_ranks_hide_their_exchanges() {
    check(8);
}

/// Random orders, a different one for each step; dense layers, modules and late weights among what they order.
#[test]
fn no_order_changes_a_bit() {
    for (schedule, pipeline) in [("dualpipe", 2), ("zb-v", 2), ("dualpipev", 1)] {
        let args = TrainArgs { pipeline: Some(pipeline), schedule: Some(schedule.into()), ..common::args() };
        let orders = [Overlap::Off, Overlap::Default, Overlap::Random(1), Overlap::Random(2), Overlap::Random(3)];
        let results = orders.map(|overlap| {
            let mut job = common::job(&args, &common::config(), common::folder("unused"));
            job.overlap = overlap;
            common::run_step(&job, 1)
        });
        for (found, order) in results.iter().zip(["off", "default", "random 1", "random 2", "random 3"]) {
            let losses = |o: &v3_model::train::StepOutcome| (o.loss.to_bits(), o.main_loss.to_bits());
            assert_eq!(losses(&found.0), losses(&results[0].0), "{schedule}, {order}");
            for (name, values) in &results[0].1 {
                let same = values.iter().zip(&found.1[name]).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{schedule}, {order}: {name}");
            }
        }
    }
}
