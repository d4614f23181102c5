//! What is refused, by name.

use crate::cases::{Kind, Rng, Tokens, check_dispatch, config, tokens, write_tokens};
use crate::emulated;
use moe_dispatch::gpu::Arch;
use moe_dispatch::gpu::exchange::{Copies, ExchangeConfig, ExchangeKernels, Group};
use moe_dispatch::{Error, Layout};
use v3_numerics::bf16;

#[test]
fn architectures() {
    assert_eq!(Arch::of((9, 0)).unwrap(), Arch::Sm90a);
    assert_eq!(Arch::of((8, 6)).unwrap(), Arch::Sm80);
    assert_eq!(Arch::of((10, 0)).unwrap(), Arch::Sm80);
    assert!(Arch::of((7, 5)).unwrap_err().to_string().contains("7.5"));
    assert!(Arch::Sm80.runs_on((9, 0)) && !Arch::Sm90a.runs_on((10, 0)));
}

#[test]
fn bulk_copies_want_hopper() {
    let device = emulated(1, 0).remove(0);
    assert!(matches!(ExchangeKernels::load_for(&device, Arch::Sm80, Copies::Bulk), Err(Error::Unsupported { .. })));
    let kernels = ExchangeKernels::load_for(&device, Arch::Sm90a, Copies::Bulk).unwrap();
    assert_eq!((kernels.arch(), kernels.copies()), (Arch::Sm90a, Copies::Bulk));
    let kernels = ExchangeKernels::load(&device).unwrap();
    assert_eq!((kernels.arch(), kernels.copies()), (Arch::Sm90a, Copies::Vectors));
}

#[test]
fn layouts() {
    let refused = |layout: &Layout| match ExchangeConfig::new(layout, 2, 16, 256, 128) {
        Err(Error::Unsupported { what }) => what,
        other => panic!("{other:?}"),
    };
    // Replicas; another order; no power of two of experts; a node that is not full; nodes of three.
    assert!(refused(&Layout::placed(4, 2, 2, &[0, 1, 2, 2, 3, 0]).unwrap()).contains("replicas"));
    assert!(refused(&Layout::placed(4, 2, 2, &[1, 0, 2, 3]).unwrap()).contains("order"));
    assert!(refused(&Layout::new(6, 2, 2).unwrap()).contains("6 experts on 2 ranks"));
    assert!(refused(&Layout::new(12, 3, 2).unwrap()).contains("3 ranks in nodes of 2"));
    assert!(refused(&Layout::new(12, 6, 3).unwrap()).contains("nodes of 3 ranks"));
    assert!(refused(&Layout::new(1024, 2, 2).unwrap()).contains("1024 experts on 2 ranks"));
    ExchangeConfig::new(&Layout::new(12, 3, 3).unwrap(), 2, 16, 256, 128).unwrap();
    // One node may be said to have more ranks than there are.
    ExchangeConfig::new(&Layout::new(8, 2, 8).unwrap(), 2, 16, 256, 128).unwrap();
}

#[test]
fn sizes() {
    let refused = |change: &dyn Fn(&mut ExchangeConfig)| {
        let mut config = config(2, 2, 16, 3, 10);
        change(&mut config);
        match config.workspace() {
            Err(Error::Config { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(&|c| c.ranks = 0), "number of ranks");
    assert_eq!(refused(&|c| (c.ranks, c.num_experts) = (128, 128)), "number of ranks");
    assert_eq!(refused(&|c| (c.ranks, c.ranks_per_node, c.num_experts) = (64, 1, 64)), "number of nodes");
    assert_eq!(refused(&|c| c.ranks_per_node = 0), "ranks per node");
    assert_eq!(refused(&|c| c.top_k = 0), "experts of a token");
    assert_eq!(refused(&|c| c.top_k = 17), "experts of a token");
    assert_eq!(refused(&|c| c.max_tokens = 0), "tokens of a rank");
    assert_eq!(refused(&|c| c.row_bytes = 0), "bytes of a row");
    assert_eq!(refused(&|c| c.row_bytes = 40), "rows");
    assert_eq!(refused(&|c| c.columns = 12), "rows");
    assert_eq!(refused(&|c| c.sms = 3), "multiprocessors");
    assert_eq!(refused(&|c| c.sms = 0), "multiprocessors");
    assert_eq!(refused(&|c| c.slots = 3), "slots of a ring");
    assert_eq!(refused(&|c| c.warps = 1), "warps of a block");
    assert_eq!(refused(&|c| c.warps = 17), "warps of a block");
}

#[test]
fn groups() {
    let config = config(1, 2, 8, 2, 4);
    let devices = emulated(2, 0);
    let what = |result: Result<Group, Error>| match result {
        Err(Error::Config { what, .. } | Error::Shape { what, .. }) => what.to_string(),
        Err(Error::Unsupported { what }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(what(Group::new(config, &devices[..1], 8)), "devices of the ranks");
    let many = crate::cases::config(3, 4, 48, 2, 4);
    assert_eq!(what(Group::new(many, &vec![devices[0].clone(); 12], 8)), "ranks of one device");
    let mut group = Group::new(config, &devices, 8).unwrap();
    let shape = |result: Result<(), Error>| match result {
        Err(Error::Shape { what, .. } | Error::Config { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(shape(group.combine(true)), "combine");
    assert_eq!(shape(group.write_tokens(2, &[], &[], &[])), "rank");
    assert_eq!(shape(group.write_tokens(0, &[0; 256], &[1, 2], &[1.0])), "tokens");
    assert_eq!(shape(group.write_tokens(0, &[0; 5 * 256], &[1; 10], &[1.0; 10])), "tokens");
    assert_eq!(shape(group.write_tokens(0, &[0; 255], &[1, 2], &[1.0; 2])), "tokens");
    assert_eq!(shape(group.write_expert_rows(0, &[bf16::ZERO; 9 * 128], &vec![-1; config.places() * 2])), "expert rows");
    assert_eq!(shape(group.write_expert_rows(0, &[bf16::ZERO; 100], &vec![-1; config.places() * 2])), "expert rows");
    assert_eq!(shape(group.write_expert_rows(0, &[], &[-1])), "expert rows");
    for (sms, kept) in [(4, false), (1, false), (0, false), (2, true)] {
        assert_eq!(group.set_sms(sms).is_ok(), kept, "{sms} multiprocessors");
    }
    // Tokens that were not dispatched are not combined.
    write_tokens(&mut group, &tokens(&config, Kind::Random, &mut Rng(1)));
    group.dispatch().unwrap();
    write_tokens(&mut group, &tokens(&config, Kind::Random, &mut Rng(1)));
    assert_eq!(shape(group.combine(true)), "combine");
}

/// Blocks that wait for each other must all be there.
#[test]
fn more_blocks_than_a_device_holds() {
    let mut config = config(2, 4, 16, 2, 4);
    (config.sms, config.warps) = (256, 16);
    let mut group = Group::new(config, &vec![emulated(1, 0).remove(0); 8], 8).unwrap();
    match group.dispatch() {
        Err(Error::Gpu(v3_gpu::Error::Launch { message, .. })) => assert!(message.starts_with("2048 cooperative"), "{message}"),
        other => panic!("{other:?}"),
    }
}

/// What is wrong in a routing or a map is left out and said, and nobody waits for it.
#[test]
fn mistakes_of_the_caller() {
    let mut group = Group::new(config(1, 2, 8, 2, 4), &emulated(2, 0), 2).unwrap();
    let wrong = |result: Result<(), Error>| match result {
        Err(e @ Error::Shape { .. }) => e.to_string(),
        other => panic!("{other:?}"),
    };
    let row: Vec<u8> = (0..256).map(|i| i as u8).collect();
    for (experts, kept, said) in [
        ([1, 8], [1, -1], "routing indices: expected experts below 8, got token 0 of rank 1"),
        ([i32::MAX, 2], [-1, 2], "routing indices: expected experts below 8, got token 0 of rank 1"),
        ([3, 3], [3, -1], "routing indices: expected different experts for a token, got token 0 of rank 1"),
    ] {
        group.write_tokens(0, &[], &[], &[]).unwrap();
        group.write_tokens(1, &row, &experts, &[1.0; 2]).unwrap();
        group.dispatch().unwrap();
        assert_eq!(wrong(group.synchronize()), said);
        group.synchronize().unwrap();
        let kept = Tokens { rows: row.clone(), experts: kept.to_vec(), weights: vec![1.0; 2] };
        check_dispatch(&group, &[Tokens::default(), kept]);
    }
    // Rank 0 has expert 3: its place for the first token of rank 1.
    let (places, top_k) = (group.config().places(), 2);
    let place = places / 2;
    for (at, is_wrong) in [(-1, true), (2, true), (i32::MAX, true), (1, false)] {
        let mut map = vec![-1; places * top_k];
        map[place * top_k] = at;
        group.write_expert_rows(0, &[bf16::ONE; 2 * 128], &map).unwrap();
        group.combine(true).unwrap();
        match is_wrong {
            true => assert_eq!(
                wrong(group.synchronize()),
                format!("map of expert rows: expected a row for each choice, got place {place} of rank 0")
            ),
            false => group.synchronize().unwrap(),
        }
        let combined = group.stream(1).unwrap().download(group.member(1).unwrap().combined()).unwrap();
        assert!(combined[..128].iter().all(|&x| x == if is_wrong { bf16::ZERO } else { bf16::ONE }));
    }
}

/// More tokens than there is room for, which only what writes through the address could say.
#[test]
fn too_many_tokens() {
    let mut group = Group::new(config(1, 2, 8, 2, 4), &emulated(2, 0), 2).unwrap();
    let full = Tokens { rows: vec![7; 4 * 256], experts: vec![0, 5, 1, 6, 2, 7, 3, 4], weights: vec![0.5; 8] };
    group.write_tokens(0, &full.rows, &full.experts, &full.weights).unwrap();
    group.write_tokens(1, &[], &[], &[]).unwrap();
    let stream = group.stream(0).unwrap();
    // SAFETY: four live bytes, which nothing else uses meanwhile.
    unsafe { stream.fill_raw(group.member(0).unwrap().tokens().ptr(), 0xff, 4) }.unwrap();
    group.dispatch().unwrap();
    let said = group.synchronize().unwrap_err().to_string();
    assert_eq!(said, "number of tokens: expected at most 4, got more than 4 of rank 0");
    check_dispatch(&group, &[full, Tokens::default()]);
}
