//! The router, dispatch and combine over in-process ranks, and expert placement.

use super::{AnyError, Operation, Unit, bytes, values};
use crate::ceilings::Ceiling;
use moe_dispatch::placement::{PlacementInput, place};
use moe_dispatch::router::{RouterConfig, route, route_backward};
use moe_dispatch::{Layout, Plan};
use std::hint::black_box;
use std::time::Instant;
use v3_ranks::{Comm, WorldConfig, run_threads};

/// Ranks that dispatch among each other; the threads are shared among them.
const RANKS: usize = 2;

pub fn operations(threads: usize) -> Vec<Operation> {
    let config = RouterConfig::deepseek_v3();
    let (tokens, experts) = (4096, config.num_experts);
    let shape = format!("{tokens}x{experts}, top 8");
    let mut all = vec![
        Operation::new("route", &*shape, (tokens as f64, Unit::Count("tokens/s"), None), move || {
            let (logits, bias) = (values(tokens * experts, 1), values(experts, 2));
            Ok(move || route(&config, &logits, &bias).map(|r| drop(black_box(r))))
        }),
        Operation::new("route backward", &*shape, (tokens as f64, Unit::Count("tokens/s"), None), move || {
            let (logits, bias, dweights) = (values(tokens * experts, 1), values(experts, 2), values(tokens * config.top_k, 3));
            let routing = route(&config, &logits, &bias)?;
            Ok(move || route_backward(&config, &routing, &dweights).map(|d| drop(black_box(d))))
        }),
    ];
    let d = 7168;
    let tokens = 256;
    let rows = RANKS * tokens * config.top_k;
    let shape = format!("{RANKS} ranks, {tokens}x{d}, top 8");
    all.push(Operation::timed("plan", &*shape, ((RANKS * tokens) as f64, Unit::Count("tokens/s"), None), move || {
        Ok(move || over_ranks(threads, tokens, |_, _, _, planned| Ok(planned)))
    }));
    // Each expert-major row is read once and written once at least.
    all.push(Operation::timed("dispatch f32", &*shape, bytes(2 * 4 * rows * d, Ceiling::Copy), move || {
        let x = values(tokens * d, 1);
        Ok(move || {
            over_ranks(threads, tokens, |comm, plan, _, _| {
                comm.barrier()?;
                let start = Instant::now();
                black_box(plan.dispatch(comm, &x, d)?);
                comm.barrier()?;
                Ok(start.elapsed().as_secs_f64())
            })
        })
    }));
    all.push(Operation::timed("combine f32", &*shape, bytes(4 * (rows + RANKS * tokens) * d, Ceiling::Copy), move || {
        let x = values(tokens * d, 1);
        Ok(move || {
            over_ranks(threads, tokens, |comm, plan, _, _| {
                let expert_rows = plan.dispatch(comm, &x, d)?;
                comm.barrier()?;
                let start = Instant::now();
                black_box(plan.combine(comm, &expert_rows, d, true)?);
                comm.barrier()?;
                Ok(start.elapsed().as_secs_f64())
            })
        })
    }));
    let (layers, experts, replicas, devices) = (4, 256, 288, 32);
    all.push(Operation::new(
        "place",
        format!("{experts} experts, {replicas} slots, {devices} devices"),
        (layers as f64, Unit::Count("layers/s"), None),
        move || {
            let weight: Vec<f64> = values(layers * experts, 1).iter().map(|&x| f64::from(1.01 + x).powi(3)).collect();
            Ok(move || {
                let input =
                    PlacementInput { num_groups: 8, num_nodes: 4, ..PlacementInput::new(&weight, experts, replicas, devices) };
                place(&input).map(|p| drop(black_box(p)))
            })
        },
    ));
    all
}

/// Runs `f` on every rank of a world with `threads` places to compute, and returns the longest of the times that they give. It is
/// given the group, the plan, the number of tokens and how long the plan took.
fn over_ranks(
    threads: usize,
    tokens: usize,
    f: impl Fn(&Comm, &Plan, usize, f64) -> Result<f64, AnyError> + Sync,
) -> Result<f64, AnyError> {
    let config = RouterConfig::deepseek_v3();
    let world = WorldConfig::new(RANKS).compute_slots(threads.min(RANKS));
    let body = |comm: Comm| -> Result<f64, AnyError> {
        // One thread a rank: the ranks are what runs side by side.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build()?;
        let logits = values(tokens * config.num_experts, 10 + comm.rank() as u64);
        let routing = pool.install(|| route(&config, &logits, &[]))?;
        let layout = Layout::new(config.num_experts, RANKS, 1)?;
        comm.barrier()?;
        let start = Instant::now();
        let plan = Plan::new(&comm, &layout, &routing)?;
        f(&comm, &plan, tokens, start.elapsed().as_secs_f64())
    };
    let times = run_threads(world, body)?;
    Ok(times.into_iter().fold(0.0, f64::max))
}
