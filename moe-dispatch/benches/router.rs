//! The router at the sizes of DeepSeek-V3 and of a small model, and the placement of one layer's experts.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use moe_dispatch::balance::sequence_balance_loss;
use moe_dispatch::placement::{PlacementInput, place};
use moe_dispatch::router::{RouterConfig, route, route_backward};
use v3_testkit::Rng;

const TOKENS: usize = 2048;

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("router");
    group.sample_size(20);
    let small = RouterConfig { n_group: 2, topk_group: 1, ..RouterConfig::new(8, 2) };
    for (name, cfg) in [("8_experts", small), ("256_experts", RouterConfig::deepseek_v3())] {
        let (e, k) = (cfg.num_experts, cfg.top_k);
        let mut rng = Rng::new(1);
        let logits = rng.normal_vec(TOKENS * e, 1.0);
        let bias = rng.normal_vec(e, 0.01);
        let dweights = rng.normal_vec(TOKENS * k, 1.0);
        let routing = route(&cfg, &logits, &bias).unwrap();
        group.throughput(Throughput::Elements(TOKENS as u64));
        group.bench_function(format!("route/{name}"), |b| b.iter(|| route(&cfg, &logits, &bias).unwrap()));
        group.bench_function(format!("backward/{name}"), |b| b.iter(|| route_backward(&cfg, &routing, &dweights).unwrap()));
        group.bench_function(format!("balance_loss/{name}"), |b| {
            b.iter(|| sequence_balance_loss(&cfg, &routing, &[TOKENS / 2; 2], 1e-4).unwrap());
        });
    }
    group.finish();

    let mut group = c.benchmark_group("placement");
    group.sample_size(10);
    let mut rng = Rng::new(2);
    let weight: Vec<f64> = (0..256).map(|_| 1000.0 * f64::from(rng.uniform()).powi(3)).collect();
    let hierarchical = PlacementInput { num_groups: 8, num_nodes: 4, ..PlacementInput::new(&weight, 256, 288, 32) };
    let global = PlacementInput::new(&weight, 256, 288, 144);
    for (name, input) in [("288_slots_4_nodes", hierarchical), ("288_slots_144_devices", global)] {
        group.bench_function(name, |b| b.iter(|| place(&input).unwrap()));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
