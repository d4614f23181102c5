//! Plan, dispatch, combine and their backward passes on one rank: tokens x columns x experts per token.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use moe_dispatch::{Layout, Plan, Routing};
use v3_ranks::Comm;
use v3_testkit::rng::Rng;

fn routing(tokens: usize, top_k: usize, experts: usize) -> Routing {
    let mut rng = Rng::new(1);
    let mut order: Vec<u32> = (0..experts as u32).collect();
    let mut indices = Vec::new();
    for _ in 0..tokens {
        rng.shuffle(&mut order);
        indices.extend_from_slice(&order[..top_k]);
    }
    Routing { tokens, top_k, indices, weights: rng.uniform_vec(tokens * top_k, 0.0, 1.0), scores: Vec::new() }
}

fn one_rank(criterion: &mut Criterion) {
    let comm = Comm::solo();
    for (tokens, d, top_k, experts) in [(2048, 256, 2, 8), (2048, 256, 8, 64), (128, 7168, 8, 256)] {
        let routing = routing(tokens, top_k, experts);
        let layout = Layout::new(experts, 1, 1).unwrap();
        let plan = Plan::new(&comm, &layout, &routing).unwrap();
        let x = Rng::new(2).normal_vec(tokens * d, 1.0);
        let rows = plan.dispatch(&comm, &x, d).unwrap();
        let mut out = vec![0f32; tokens * d];
        let mut expert_major = vec![0f32; rows.len()];
        let shape = format!("{tokens}x{d} top {top_k} of {experts}");
        let mut group = criterion.benchmark_group("moe");
        group.sample_size(20);
        group.bench_function(BenchmarkId::new("plan", &shape), |b| {
            b.iter(|| Plan::new(&comm, &layout, black_box(&routing)).unwrap())
        });
        // Every row is read once and written top_k times.
        group.throughput(Throughput::Bytes(4 * ((1 + top_k) * tokens * d) as u64));
        group.bench_function(BenchmarkId::new("dispatch", &shape), |b| {
            b.iter(|| plan.dispatch_into(&comm, black_box(&x), d, &mut expert_major).unwrap());
        });
        group.bench_function(BenchmarkId::new("combine", &shape), |b| {
            b.iter(|| plan.combine_into(&comm, black_box(&rows), d, true, &mut out).unwrap());
        });
        group.throughput(Throughput::Bytes(4 * ((1 + 2 * top_k) * tokens * d) as u64));
        group.bench_function(BenchmarkId::new("combine_backward", &shape), |b| {
            b.iter(|| plan.combine_backward_into(&comm, black_box(&x), &rows, d, &mut expert_major).unwrap());
        });
        group.finish();
    }
}

criterion_group!(benches, one_rank);
criterion_main!(benches);
