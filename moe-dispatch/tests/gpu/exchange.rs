//! From a dispatch between devices to its combine, on the devices alone: permutation takes what the one gives and writes what the other wants.

use crate::{Kind, experts};
use moe_dispatch::gpu::exchange::{ExchangeConfig, Group};
use moe_dispatch::gpu::permute::{PermuteKernels, PermuteLayoutParams, PermuteParams, RowLayout};
use moe_dispatch::reference::dispatch::combine_rounded;
use moe_dispatch::{Layout, Routing};
use v3_gpu::{Device, EmulatorConfig};
use v3_numerics::bf16;
use v3_testkit::Rng;

#[test]
fn between_dispatch_and_combine_nothing_is_read_back() {
    let (ranks, num_experts, top_k, most, d) = (2usize, 16usize, 3usize, 11usize, 256usize);
    let layout = Layout::new(num_experts, ranks, 1).unwrap();
    let config = ExchangeConfig::new(&layout, top_k as u32, most as u32, 2 * d as u32, d as u32).unwrap();
    let config = ExchangeConfig { sms: 2, slots: 4, warps: 3, ..config };
    let choices = config.places() * top_k;
    let devices = Device::emulated(&EmulatorConfig { devices: ranks as u32, ..EmulatorConfig::default() }).unwrap();
    let kernels: Vec<PermuteKernels> = devices.iter().map(|device| PermuteKernels::load(device).unwrap()).collect();
    let mut group = Group::new(config, &devices, choices as u32).unwrap();
    let mut layouts: Vec<RowLayout> = (0..ranks)
        .map(|rank| {
            let stream = group.stream(rank).unwrap();
            RowLayout::with_capacity(stream, config.places(), top_k, num_experts / ranks, 1, choices).unwrap()
        })
        .collect();
    // The second time with other tokens over what the first one left.
    for (seed, kind) in [(1, Kind::Random), (2, Kind::Sparse)] {
        let mut rng = Rng::new(seed);
        let tokens: Vec<(Vec<i32>, Vec<f32>, Vec<bf16>)> = (0..ranks)
            .map(|rank| {
                let count = most - rank * 4;
                let rows = rng.normal_vec(count * d, 1.0).into_iter().map(bf16::from_f32).collect();
                (experts(&mut rng, count, top_k, num_experts, kind), rng.normal_vec(count * top_k, 1.0), rows)
            })
            .collect();
        for (rank, (experts, weights, rows)) in tokens.iter().enumerate() {
            group.write_tokens(rank, bytemuck::cast_slice(rows), experts, weights).unwrap();
        }
        group.dispatch().unwrap();
        for rank in 0..ranks {
            let (stream, member) = (group.stream(rank).unwrap(), group.member(rank).unwrap());
            let of_rank = &layouts[rank];
            let params = PermuteLayoutParams { map: member.map().ptr(), ..of_rank.params(member.out_experts().ptr()) };
            // The experts: each gives a row back as it is.
            let moves = PermuteParams {
                rows: member.out_rows().ptr(),
                map: member.map().ptr(),
                out: member.expert_rows().ptr(),
                row_stride: 2 * d as u64,
                out_stride: 2 * d as u64,
                tokens: config.places() as u32,
                top_k: top_k as u32,
                width: 2 * d as u32,
                capacity: choices as u32,
                ..bytemuck::Zeroable::zeroed()
            };
            // SAFETY: the group's buffers have at least so many places and expert rows; all is queued on the group's stream of this rank.
            unsafe {
                kernels[rank].lay_out_raw(stream, &params).unwrap();
                kernels[rank].permute_raw(stream, &moves).unwrap();
            }
        }
        group.combine(true).unwrap();
        group.synchronize().unwrap();
        for (rank, (experts, weights, rows)) in tokens.iter().enumerate() {
            let stream = group.stream(rank).unwrap();
            layouts[rank].check(stream).unwrap();
            let routing = Routing {
                tokens: experts.len() / top_k,
                top_k,
                indices: experts.iter().map(|&e| e as u32).collect(),
                weights: weights.clone(),
                scores: vec![],
            };
            let row = |token: usize, _: usize| rows[token * d..(token + 1) * d].iter().map(|x| x.to_f32()).collect();
            let expected = combine_rounded(&layout, rank, &routing, d, true, row);
            let got = stream.download(group.member(rank).unwrap().combined()).unwrap();
            for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                assert_eq!(got.to_bits(), bf16::from_f32(*expected).to_bits(), "rank {rank}, token {}, column {}", i / d, i % d);
            }
        }
    }
}
