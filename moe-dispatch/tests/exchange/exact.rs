//! Every row and every sum, for several layouts and routings.

use crate::cases::{Kind, Rng, check_combine, check_dispatch, config, tokens, write_expert_rows, write_tokens};
use crate::{emulated, seeds};
use moe_dispatch::gpu::exchange::{ExchangeConfig, Group};
use v3_gpu::Device;

/// Dispatch and combine, `rounds` times over with other tokens in the same memory.
fn exchange(config: ExchangeConfig, devices: &[Device], kinds: &[Kind], seed: u64) {
    let mut rng = Rng(seed);
    let rows = config.ranks * config.max_tokens * config.top_k;
    let mut group = Group::new(config, devices, rows).unwrap();
    for (round, &kind) in kinds.iter().enumerate() {
        let all = tokens(&config, kind, &mut rng);
        write_tokens(&mut group, &all);
        group.dispatch().unwrap();
        check_dispatch(&group, &all);
        write_expert_rows(&mut group, &all, &mut rng);
        let weighted = round % 2 == 0;
        group.combine(weighted).unwrap();
        check_combine(&group, &all, weighted);
    }
}

fn on_devices(nodes: u32, per_node: u32, kinds: &[Kind]) {
    for seed in 0..seeds() {
        let config = config(nodes, per_node, nodes * per_node * 4, 3, 10);
        exchange(config, &emulated(nodes * per_node, seed), kinds, seed);
    }
}

#[test]
fn one_node_of_four_devices() {
    on_devices(1, 4, &[Kind::Random, Kind::Skewed, Kind::Empty]);
}

#[test]
fn two_nodes_of_two_devices() {
    on_devices(2, 2, &[Kind::Random, Kind::Sparse, Kind::Skewed]);
}

#[test]
fn four_nodes_of_two_devices() {
    on_devices(4, 2, &[Kind::Random, Kind::Skewed]);
}
