//! Cases, and what their rows are.

use std::time::Duration;

use moe_dispatch::plan::MASKED;
use moe_dispatch::reference::dispatch as reference;
use moe_dispatch::{FanOut, Layout, Plan, PlanOptions, ReplicaChoice, Routing};
use proptest::prelude::*;
use v3_ranks::{Clock, Comm, Link, LinkModel, WorldConfig, run_threads};
use v3_testkit::rng::Rng;

#[derive(Debug, Clone)]
pub struct Case {
    pub layout: Layout,
    pub routings: Vec<Routing>,
    pub row_len: usize,
    pub options: PlanOptions,
    pub slots: Option<usize>,
    pub transport: Transport,
    pub seed: u64,
}

/// What carries the messages.
#[derive(Debug, Clone, Copy)]
pub enum Transport {
    Threads,
    /// Links of two speeds in virtual time.
    Simulated,
}

/// How experts are chosen.
#[derive(Debug, Clone, Copy)]
pub enum Load {
    Even,
    /// Every token takes the same experts.
    One,
    /// Half of the ranks have no tokens.
    Empty,
    /// Some choices are masked, for some tokens all of them.
    Masked,
}

pub fn routing(rng: &mut Rng, tokens: usize, top_k: usize, experts: usize, load: Load) -> Routing {
    let mut order: Vec<u32> = (0..experts as u32).collect();
    let (mut indices, mut weights) = (Vec::new(), Vec::new());
    for _ in 0..tokens {
        if !matches!(load, Load::One) {
            rng.shuffle(&mut order);
        }
        indices.extend_from_slice(&order[..top_k]);
        weights.extend(rng.uniform_vec(top_k, -1.0, 1.0));
    }
    if matches!(load, Load::Masked) {
        for (expert, weight) in indices.iter_mut().zip(&mut weights).filter(|_| rng.below(2) == 0) {
            (*expert, *weight) = (MASKED, f32::NAN);
        }
    }
    Routing { tokens, top_k, indices, weights, scores: Vec::new() }
}

pub fn cases() -> impl Strategy<Value = Case> {
    let load = prop_oneof![3 => Just(Load::Even), 1 => Just(Load::One), 1 => Just(Load::Empty), 1 => Just(Load::Masked)];
    let group = prop_oneof![Just(1usize), Just(2), Just(3), Just(4), Just(5), Just(8)].prop_flat_map(|n| (Just(n), 1..=n));
    let sizes = (1usize..5, 0usize..14, 1usize..9, prop_oneof![Just(1usize), Just(3), Just(16), Just(64), Just(67), Just(131)]);
    let options = (
        prop_oneof![Just(1usize), Just(4), Just(7)],
        prop_oneof![Just(1usize), Just(3), Just(4096)],
        prop_oneof![2 => Just(1usize), 1 => Just(2), 1 => Just(5)],
        any::<bool>(),
        prop::option::weighted(0.5, 0usize..3),
    );
    (group, sizes, options, load, 0u8..3, (prop::option::of(1usize..3), any::<bool>()), any::<u64>()).prop_map(
        |(
            (ep_size, ranks_per_node),
            (per_rank, tokens, k, row_len),
            (alignment, chunk_rows, channels, per_expert, capacity),
            load,
            place,
            (slots, simulated),
            seed,
        )| {
            let mut rng = Rng::new(seed);
            let layout = if place == 0 {
                Layout::new(per_rank * ep_size, ep_size, ranks_per_node).unwrap()
            } else {
                // Any placement, with replicas of some experts where there is room.
                let slots = per_rank * ep_size;
                let experts = 1 + rng.below(slots);
                let mut phy2log: Vec<u32> = (0..experts as u32).collect();
                phy2log.extend((experts..slots).map(|_| rng.below(experts) as u32));
                rng.shuffle(&mut phy2log);
                let choice = if place == 1 { ReplicaChoice::Spread } else { ReplicaChoice::Nearest };
                Layout::placed(experts, ep_size, ranks_per_node, &phy2log).unwrap().with_choice(choice)
            };
            let top_k = k.min(layout.num_experts());
            let routings = (0..ep_size)
                .map(|rank| {
                    let empty = matches!(load, Load::Empty) && rank % 2 == 0;
                    let tokens = if empty { 0 } else { (tokens + rng.below(3)).saturating_sub(1) };
                    routing(&mut rng, tokens, top_k, layout.num_experts(), load)
                })
                .collect();
            let routings: Vec<Routing> = routings;
            let most = routings.iter().map(|routing: &Routing| routing.tokens).max().unwrap_or(0);
            let fan_out = if per_expert { FanOut::PerExpert } else { FanOut::PerRank };
            let options = PlanOptions { alignment, chunk_rows, channels, fan_out, capacity: capacity.map(|more| most + more) };
            let transport = if simulated { Transport::Simulated } else { Transport::Threads };
            Case { layout, routings, row_len, options, slots, transport, seed }
        },
    )
}

/// A row that tells whose it is: every (source, token, choice, salt) has its own.
pub fn row(case: &Case, salt: u64, source: usize, token: usize, choice: usize) -> Vec<f32> {
    let id = ((salt * 64 + source as u64) * 64 + token as u64) * 64 + choice as u64;
    Rng::new(case.seed ^ id.wrapping_mul(0x9e37_79b9_7f4a_7c15)).normal_vec(case.row_len, 1.0)
}

pub fn rows(case: &Case, salt: u64, source: usize) -> Vec<f32> {
    (0..case.routings[source].tokens).flat_map(|token| row(case, salt, source, token, 0)).collect()
}

/// What the experts return: row by row as the reference orders them, NaN where nobody should read.
pub fn expert_outputs(case: &Case, salt: u64, rank: usize) -> Vec<f32> {
    let (order, _) = reference::expert_rows(&case.layout, &case.routings, &case.options).swap_remove(rank);
    let output = |entry: Option<reference::ExpertRow>| match entry {
        Some(at) => row(case, salt, at.source, at.token, at.choice),
        None => vec![f32::NAN; case.row_len],
    };
    order.into_iter().flat_map(output).collect()
}

pub fn world(case: &Case) -> WorldConfig {
    let config = WorldConfig::new(case.layout.ep_size()).ranks_per_node(case.layout.ranks_per_node());
    // Ranks that wait for each other in vain fail soon: nothing here takes long without a message.
    let config = WorldConfig { stall_after: Duration::from_secs(2), ..config };
    match case.transport {
        Transport::Threads => WorldConfig { compute_slots: case.slots, ..config },
        Transport::Simulated => {
            let fast = Link { latency: Duration::from_nanos(300), bandwidth: 3e8 };
            let slow = Link { latency: Duration::from_micros(2), bandwidth: 1e8 };
            config.clock(Clock::Virtual).link(LinkModel { fast, slow })
        }
    }
}

pub fn run<R: Send>(case: &Case, body: impl Fn(&Comm, &Plan) -> moe_dispatch::Result<R> + Sync) -> Vec<R> {
    run_threads(world(case), |comm: Comm| {
        let plan = Plan::with_options(&comm, &case.layout, &case.routings[comm.rank()], case.options)?;
        body(&comm, &plan)
    })
    .unwrap()
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
