//! The router, dispatch and combine over in-process ranks, and expert placement.

use super::{AnyError, Operation, Unit, bytes, values};
use crate::ceilings::Ceiling;
use crate::streams;
use moe_dispatch::cpu::Local;
use moe_dispatch::placement::{PlacementInput, place};
use moe_dispatch::router::{RouterConfig, route, route_backward};
use moe_dispatch::{Layout, Plan, Routing};
use std::hint::black_box;
use std::sync::Mutex;
use std::time::Instant;
use v3_numerics::bf16;
use v3_ranks::{Comm, WorldConfig, run_threads};

/// Ranks that dispatch among each other; the threads are shared among them.
const RANKS: usize = 2;

/// The same in torch.
const TORCH: &str = include_str!("../peers/moe_dispatch.py");
/// Columns of the full model's rows.
const HIDDEN: usize = 7168;
/// Tokens of the operations on rows.
const TOKENS: usize = 4096;
/// Bytes of a row of bf16.
const ROW: usize = 2 * HIDDEN;

pub fn operations(threads: usize) -> Vec<Operation> {
    let config = RouterConfig::deepseek_v3();
    let (tokens, experts) = (4096, config.num_experts);
    let shape = format!("{tokens}x{experts}, top 8");
    let mut all = vec![
        Operation::new("route", &*shape, (tokens as f64, Unit::Count("tokens/s"), None), move || {
            let (logits, bias) = (values(tokens * experts, 1), values(experts, 2));
            Ok(move || route(&config, &logits, &bias).map(|r| drop(black_box(r))))
        })
        .beside_peer(TORCH, threads, "route"),
        Operation::new("route backward", &*shape, (tokens as f64, Unit::Count("tokens/s"), None), move || {
            let (logits, bias, dweights) = (values(tokens * experts, 1), values(experts, 2), values(tokens * config.top_k, 3));
            let routing = route(&config, &logits, &bias)?;
            Ok(move || route_backward(&config, &routing, &dweights).map(|d| drop(black_box(d))))
        }),
    ];
    all.extend(rows_of_bf16(threads));
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
    for (replicas, devices, nodes) in [(320, 64, 8), (288, 32, 4)] {
        let (layers, experts) = (58, 256);
        all.push(Operation::new(
            "place",
            format!("{layers}x{experts}, {replicas} on {devices} of {nodes}"),
            (layers as f64, Unit::Count("layers/s"), None),
            move || {
                let weight: Vec<f64> = values(layers * experts, 1).iter().map(|&x| f64::from(1.01 + x).powi(3)).collect();
                Ok(move || {
                    let input = PlacementInput {
                        num_groups: 8,
                        num_nodes: nodes,
                        ..PlacementInput::new(&weight, experts, replicas, devices)
                    };
                    place(&input).map(|p| drop(black_box(p)))
                })
            },
        ));
    }
    all
}

/// Rows of bf16 into expert-major order and back: on one rank, against memory and against torch, and between two ranks.
fn rows_of_bf16(threads: usize) -> Vec<Operation> {
    let shape = format!("{TOKENS}x{HIDDEN}, top 8");
    // A row is read once and written eight times.
    let permute = || {
        Operation::new("permute bf16", &*shape, bytes(9 * TOKENS * ROW, Ceiling::Copy), || {
            let (local, x) = (Local::new(&routing(0)?, 256)?, vec![bf16::ONE; TOKENS * HIDDEN]);
            let mut rows = vec![bf16::NEG_ONE; 8 * TOKENS * HIDDEN + SLACK];
            Ok(move || local.permute(&x, HIDDEN, from_line(&mut rows, 8 * TOKENS * HIDDEN)?).map_err(AnyError::from))
        })
    };
    let combine = || {
        Operation::new("combine bf16", &*shape, bytes(9 * TOKENS * ROW, Ceiling::Read), || {
            let (local, rows) = (Local::new(&routing(0)?, 256)?, vec![bf16::ONE; 8 * TOKENS * HIDDEN]);
            let mut y = vec![bf16::NEG_ONE; TOKENS * HIDDEN];
            Ok(move || local.combine(&rows, HIDDEN, true, &mut y))
        })
    };
    let exchange = format!("{RANKS} ranks, {TOKENS}x{HIDDEN}, top 8");
    // What arrives in expert-major order.
    let delivered = RANKS * 8 * TOKENS * ROW;
    vec![
        permute().beside("copy 1:8 past the caches", || {
            let (x, mut rows) = (streams::lines(TOKENS * ROW), streams::lines(8 * TOKENS * ROW));
            move || streams::spread(&x, ROW / streams::LINE, &mut rows)
        }),
        permute().beside_peer(TORCH, threads, "permute"),
        combine().beside("read in 8 places", || {
            let rows = streams::lines(9 * TOKENS * ROW);
            move || streams::read(&rows)
        }),
        combine().beside_peer(TORCH, threads, "combine"),
        Operation::timed("dispatch bf16", exchange, bytes(delivered, Ceiling::Copy), move || {
            let x = vec![bf16::ONE; TOKENS * HIDDEN];
            // A quarter more than the mean.
            let out: Vec<Mutex<Vec<bf16>>> = (0..RANKS).map(|_| Mutex::new(vec![bf16::NEG_ONE; 10 * TOKENS * HIDDEN])).collect();
            Ok(move || {
                over_ranks(threads, TOKENS, |comm, plan, _, _| {
                    let mut out = out[comm.rank()].lock().map_err(|_| "another run has failed")?;
                    let rows = from_line(&mut out, plan.expert_rows() * HIDDEN)?;
                    comm.barrier()?;
                    let start = Instant::now();
                    plan.dispatch_into(comm, &x, HIDDEN, rows)?;
                    comm.barrier()?;
                    Ok(start.elapsed().as_secs_f64())
                })
            })
        })
        .beside("fill past the caches", move || {
            let mut out = streams::lines(delivered);
            move || streams::fill(&mut out)
        }),
    ]
}

/// Values to spare for [`from_line`].
const SLACK: usize = streams::LINE;

/// `len` values that begin where a cache line does: so a large result is written fastest.
fn from_line(values: &mut [bf16], len: usize) -> Result<&mut [bf16], AnyError> {
    let start = values.as_ptr().align_offset(streams::LINE).min(values.len());
    values[start..].get_mut(..len).ok_or_else(|| "more rows than there is room for".into())
}

/// The choices of some tokens by the full model's router.
fn routing(rank: u64) -> Result<Routing, AnyError> {
    let config = RouterConfig::deepseek_v3();
    Ok(route(&config, &values(TOKENS * config.num_experts, 10 + rank), &[])?)
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
