//! Every row and every sum, for several layouts and routings.

use crate::cases::{Kind, Rng, check_combine, check_dispatch, config, tokens, write_expert_rows, write_tokens};
use crate::{emulated, seeds};
use moe_dispatch::gpu::Arch;
use moe_dispatch::gpu::exchange::{Copies, ExchangeConfig, ExchangeKernels, Group};
use proptest::prelude::*;
use v3_gpu::{Device, EmulatorChecks, EmulatorConfig};

/// Dispatch and combine for each kind of routing, one after the other in the same memory.
pub fn exchange(
    config: ExchangeConfig,
    devices: &[Device],
    kinds: &[Kind],
    rng: &mut Rng,
    load: impl Fn(&Device) -> moe_dispatch::Result<ExchangeKernels>,
) {
    let rows = config.ranks * config.max_tokens * config.top_k;
    let mut group = Group::with_kernels(config, devices, rows, load).unwrap();
    for (round, &kind) in kinds.iter().enumerate() {
        let all = tokens(&config, kind, rng);
        write_tokens(&mut group, &all);
        group.dispatch().unwrap();
        check_dispatch(&group, &all);
        write_expert_rows(&mut group, &all, rng);
        let weighted = round % 2 == 0;
        group.combine(weighted).unwrap();
        check_combine(&group, &all, weighted);
    }
}

fn emulate(config: ExchangeConfig, devices: &[Device], kinds: &[Kind], seed: u64) {
    exchange(config, devices, kinds, &mut Rng(seed), ExchangeKernels::load);
}

fn on_devices(nodes: u32, per_node: u32, kinds: &[Kind]) {
    for seed in 0..seeds() {
        let config = config(nodes, per_node, nodes * per_node * 4, 3, 10);
        emulate(config, &emulated(nodes * per_node, seed), kinds, seed);
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

/// Eight ranks in one launch: block -> rank, channel, half.
#[test]
fn several_ranks_on_one_device() {
    for (nodes, per_node) in [(1, 4), (2, 2), (4, 2), (1, 1)] {
        let mut config = config(nodes, per_node, nodes * per_node * 2, 2, 7);
        config.sms = 4;
        let device = emulated(1, 3).remove(0);
        emulate(config, &vec![device; config.ranks as usize], &[Kind::Random, Kind::Random], 3);
    }
}

/// Two devices of three ranks each, one of them with its ranks out of order.
#[test]
fn several_ranks_on_each_of_two_devices() {
    let config = config(3, 2, 24, 3, 6);
    let two = emulated(2, 5);
    let devices: Vec<Device> = [0, 1, 1, 0, 0, 1].iter().map(|&d: &usize| two[d].clone()).collect();
    emulate(config, &devices, &[Kind::Random, Kind::Skewed], 5);
}

/// Rows of one vector and of several turns of a warp, rings of one slot, one warp a role and many, as many experts as there may be.
#[test]
fn sizes_at_their_ends() {
    let run = |change: &dyn Fn(&mut ExchangeConfig), (nodes, per_node, experts, top_k, tokens): (u32, u32, u32, u32, u32)| {
        let mut config = config(nodes, per_node, experts, top_k, tokens);
        change(&mut config);
        config.check().unwrap();
        emulate(config, &emulated(nodes * per_node, 7), &[Kind::Random, Kind::Random], 7);
    };
    run(&|c| (c.row_bytes, c.columns, c.slots, c.warps) = (16, 8, 1, 2), (2, 2, 4, 2, 5));
    run(&|c| (c.row_bytes, c.columns, c.slots, c.warps) = (2064, 1032, 2, 16), (2, 1, 8, 4, 4));
    run(&|c| (c.sms, c.slots) = (6, 8), (1, 2, 512, 16, 9));
    run(&|c| c.sms = 8, (2, 1, 4, 1, 1));
    // More sources than warps.
    run(&|c| (c.warps, c.slots) = (2, 1), (4, 4, 32, 4, 3));
    // A node that is no power of two has the whole tree.
    run(&|_| (), (1, 3, 12, 3, 5));
}

/// As many ranks, nodes and ranks of a node as there may be; eight ranks on each device. Without detectors: so many flags that are
/// polled cost them too much, and what there is to detect is in smaller groups as well.
#[test]
fn groups_at_their_ends() {
    for (nodes, per_node) in [(8, 8), (32, 2), (2, 32)] {
        let mut config = config(nodes, per_node, 64, 4, 2);
        (config.row_bytes, config.columns, config.warps) = (32, 16, 4);
        let quick = EmulatorConfig { devices: 8, checks: EmulatorChecks::NONE, ..EmulatorConfig::default() };
        let eight = Device::emulated(&quick).unwrap();
        let devices: Vec<Device> = (0..64).map(|rank| eight[rank / 8].clone()).collect();
        emulate(config, &devices, &[Kind::Random], 1);
    }
}

/// Launches one behind the other, with nothing reset and nothing read back in between: what a graph holds.
#[test]
fn repeated_launches_of_the_same_parameters() {
    for seed in 0..seeds() {
        let config = config(2, 2, 16, 3, 9);
        let devices = emulated(4, seed);
        let mut group = Group::new(config, &devices, config.ranks * config.max_tokens * config.top_k).unwrap();
        let mut rng = Rng(100 + seed);
        let kinds = [Kind::Random, Kind::Skewed, Kind::Empty, Kind::Sparse, Kind::Random];
        let mut last = Vec::new();
        for kind in kinds {
            last = tokens(&config, kind, &mut rng);
            // Copies are queued like launches; the host does not wait.
            write_tokens(&mut group, &last);
            group.dispatch().unwrap();
            write_expert_rows(&mut group, &last, &mut rng);
            group.combine(true).unwrap();
        }
        check_dispatch(&group, &last);
        check_combine(&group, &last, true);
        // And a dispatch again without new tokens.
        group.dispatch().unwrap();
        group.dispatch().unwrap();
        group.combine(false).unwrap();
        check_dispatch(&group, &last);
        check_combine(&group, &last, false);
    }
}

/// Each launch with as many multiprocessors as it likes, on the same memory.
#[test]
fn budgets_change_from_launch_to_launch() {
    for seed in 0..seeds() {
        let mut config = config(2, 2, 16, 3, 11);
        config.sms = 8;
        let mut group = Group::new(config, &emulated(4, seed), config.ranks * config.max_tokens * config.top_k).unwrap();
        let mut rng = Rng(40 + seed);
        for sms in [8, 2, 2, 6, 2, 8, 4, 6] {
            group.set_sms(sms).unwrap();
            let all = tokens(&config, Kind::Random, &mut rng);
            write_tokens(&mut group, &all);
            group.dispatch().unwrap();
            write_expert_rows(&mut group, &all, &mut rng);
            group.combine(true).unwrap();
            check_dispatch(&group, &all);
            check_combine(&group, &all, true);
        }
    }
}

/// What crosses between nodes is a row for each distinct pair of a token and another node.
#[test]
fn a_token_crosses_once_for_each_node() {
    let config = config(4, 2, 32, 6, 12);
    let mut group = Group::new(config, &emulated(8, 1), 1).unwrap();
    let all = tokens(&config, Kind::Random, &mut Rng(11));
    write_tokens(&mut group, &all);
    group.dispatch().unwrap();
    let experts_of_node = (config.local_experts() * config.ranks_per_node) as i32;
    let channels = config.channels() as usize;
    let mut crossed = 0;
    for (rank, tokens) in all.iter().enumerate() {
        let counts = group.stream(rank).unwrap().download(group.member(rank).unwrap().home_counts()).unwrap();
        for node in 0..config.nodes() as usize {
            let wants = |chosen: &&[i32]| chosen.iter().any(|&e| e >= 0 && (e / experts_of_node) as usize == node);
            let expected = tokens.experts.chunks(config.top_k as usize).filter(wants).count();
            let got: u32 = counts[node * channels..(node + 1) * channels].iter().sum();
            assert_eq!(got as usize, expected, "rank {rank}, node {node}");
            if node != rank / config.ranks_per_node as usize {
                crossed += expected;
            }
        }
    }
    // What gateways count is the same.
    let mut passed = 0;
    for rank in 0..config.ranks as usize {
        let counts = group.stream(rank).unwrap().download(group.member(rank).unwrap().forward_counts()).unwrap();
        let per_node = config.ranks_per_node as usize;
        let of_node =
            |origin: usize| -> u32 { (0..channels).map(|channel| counts[(origin * channels + channel) * (1 + per_node)]).sum() };
        let others = (0..config.nodes() as usize).filter(|&origin| origin != rank / per_node);
        passed += others.map(of_node).sum::<u32>() as usize;
    }
    assert_eq!((passed, crossed > 0), (crossed, true));
}

/// Every text of the kernels; rows of less than a piece of a bulk copy, of two, and of three and a bit.
#[test]
fn every_text_of_the_kernels() {
    for (arch, copies) in [(Arch::Sm80, Copies::Vectors), (Arch::Sm90a, Copies::Vectors), (Arch::Sm90a, Copies::Bulk)] {
        for (row_bytes, seed) in [(256, 0), (8192, 1), (12304, 2)] {
            let mut config = config(2, 2, 16, 3, 5);
            config.row_bytes = row_bytes;
            let load = |device: &Device| ExchangeKernels::load_for(device, arch, copies);
            exchange(config, &emulated(4, seed), &[Kind::Random, Kind::Random], &mut Rng(seed), load);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn any_group_and_routing(
        (nodes, per_node) in prop_oneof![Just((1, 1)), Just((1, 3)), Just((2, 1)), Just((3, 2)), Just((2, 2)), Just((5, 1)), Just((1, 5))],
        shift in 0u32..4,
        top_k in 1u32..9,
        tokens in 1u32..14,
        (row_vectors, column_vectors) in (1u32..40, 1u32..40),
        (channels, slots_log, warps) in (1u32..3, 0u32..4, 2u32..7),
        one_device in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let ranks = nodes * per_node;
        let experts = ranks << shift;
        let mut config = config(nodes, per_node, experts, top_k.min(experts), tokens);
        (config.row_bytes, config.columns) = (row_vectors * 16, column_vectors * 8);
        (config.sms, config.slots, config.warps) = (channels * 2, 1 << slots_log, warps);
        let devices = if one_device { vec![emulated(1, seed).remove(0); ranks as usize] } else { emulated(ranks, seed) };
        let kind = [Kind::Random, Kind::Skewed, Kind::Sparse, Kind::Empty];
        let kinds = [kind[(seed % 4) as usize], kind[(seed / 4 % 4) as usize]];
        emulate(config, &devices, &kinds, seed);
    }
}
