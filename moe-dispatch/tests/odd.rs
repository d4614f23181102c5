//! Arguments that nobody means, and groups that are not the plan's: errors that say so, before anything has been sent.

use std::sync::Arc;
use std::time::Duration;

use moe_dispatch::tune::{TuneOptions, tune};
use moe_dispatch::{CombineOptions, Layout, Plan, PlanOptions, Result, Routing, Rows};
use v3_ranks::{Comm, Lane, WorldConfig, run_threads};

/// Token t has the experts t, t + 1, ..
fn routing(tokens: usize, top_k: usize, experts: usize) -> Routing {
    let indices = (0..tokens).flat_map(|token| (0..top_k).map(move |i| ((token + i) % experts) as u32)).collect();
    Routing { tokens, top_k, indices, weights: vec![0.5; tokens * top_k], scores: vec![] }
}

fn refused<T>(result: Result<T>, part: &str) {
    match result {
        Ok(_) => panic!("not refused: {part}"),
        Err(error) => assert!(error.to_string().contains(part), "{error}"),
    }
}

#[test]
fn rows_that_cannot_be_are_errors_and_cost_no_memory() {
    let layout = Layout::new(4, 2, 1).unwrap();
    run_threads(WorldConfig::new(2), |comm: Comm| -> Result<()> {
        // Rank 1 has no tokens, so that any length of a row fits its data, and room for some rows of rank 0.
        let routing = routing(3 * (1 - comm.rank()), 2, 4);
        let plan = Arc::new(Plan::new(&comm, &layout, &routing)?);
        for row_len in [usize::MAX, 1 << 60] {
            let part = if comm.rank() == 0 { "3 rows of" } else { "they do not fit into memory" };
            refused(plan.dispatch::<f32>(&comm, &[], row_len), part);
            refused(plan.dispatch_pair::<f32, u8>(&comm, (&[], row_len), (&[], 0)), part);
            refused(plan.dispatch_start(&comm, Rows::<f32> { data: vec![], row_len }), part);
            refused(plan.combine(&comm, &[], row_len, true), "expert rows");
            refused(plan.combine_start::<f32>(&comm, vec![], row_len, CombineOptions::default()), "expert rows");
        }
        // The ranks go on.
        comm.barrier()?;
        Ok(())
    })
    .unwrap();
    let solo = Layout::new(4, 1, 1).unwrap();
    let worst = PlanOptions { capacity: Some(3), ..PlanOptions::default() };
    // 2^63 bytes or more, whatever the machine.
    let rows = Rows::<u64> { data: vec![], row_len: u32::MAX as usize / 8 };
    let large = PlanOptions { capacity: Some((1 << 30) - 1), ..worst };
    refused(Plan::start_dispatch(&Comm::solo(), &solo, &routing(0, 2, 4), large, rows), "they do not fit into memory");
    let rows = Rows::<u64> { data: vec![], row_len: usize::MAX };
    refused(Plan::start_dispatch(&Comm::solo(), &solo, &routing(0, 2, 4), worst, rows), "rows of 18446744073709551615 bytes");
    for capacity in [usize::MAX, usize::MAX - 1] {
        let options = PlanOptions { capacity: Some(capacity), ..worst };
        refused(Plan::with_options(&Comm::solo(), &solo, &routing(3, 2, 4), options), "more than 2^32 - 2 expert rows");
    }
    for top_k in [0, 1 << 24, usize::MAX] {
        let routing = Routing { tokens: 0, top_k, indices: vec![], weights: vec![], scores: vec![] };
        refused(Plan::new(&Comm::solo(), &solo, &routing), "at least one a token, fewer than 2^24");
    }
    for experts in [2, 1 << 60, usize::MAX] {
        refused(Layout::placed(experts, 1, 1, &[0]), &format!("1 slots cannot hold {experts} experts"));
    }
}

#[test]
fn nodes_larger_than_the_world_are_one_node() {
    let (small, large) = (Layout::new(8, 4, 4).unwrap(), Layout::new(8, 4, usize::MAX).unwrap());
    run_threads(WorldConfig::new(4), |comm: Comm| -> Result<()> {
        let routing = routing(5, 3, 8);
        let x: Vec<f32> = (0..10).map(|i| (i + 100 * comm.rank()) as f32).collect();
        let results = [&small, &large].map(|layout| -> Result<_> {
            let plan = Plan::new(&comm, layout, &routing)?;
            let rows = plan.dispatch(&comm, &x, 2)?;
            let y = plan.combine(&comm, &rows, 2, true)?;
            Ok((rows, y, plan.traffic(), plan.combine_traffic()))
        });
        let [small, large] = results;
        assert_eq!(small?, large?);
        Ok(())
    })
    .unwrap();
}

#[test]
fn an_exchange_on_a_lane_of_another_group_says_so() {
    let layout = Layout::new(4, 2, 1).unwrap();
    let config = WorldConfig { stall_after: Duration::from_secs(600), ..WorldConfig::new(4) };
    for capacity in [None, Some(3)] {
        let error = run_threads(config, |comm: Comm| -> Result<()> {
            let pair = comm.subgroup(if comm.rank() < 2 { &[0, 1] } else { &[2, 3] }, 0)?;
            let lane = Lane::spawn(&comm, "world")?;
            let options = PlanOptions { capacity, ..PlanOptions::default() };
            let rows = Rows { data: vec![1.0f32; 3], row_len: 1 };
            lane.submit(Plan::start_dispatch(&pair, &layout, &routing(3, 2, 4), options, rows)?).finish(&comm).map(drop)?;
            Ok(())
        })
        .unwrap_err();
        let (rank, place) = (error.rank, error.rank % 2);
        assert_eq!(error.message, format!("group of the plan: expected rank {place} of 2, got rank {rank} of 4"));
    }
    let error = run_threads(config, |comm: Comm| -> Result<()> {
        let pair = comm.subgroup(if comm.rank() < 2 { &[0, 1] } else { &[2, 3] }, 0)?;
        let plan = Arc::new(Plan::new(&pair, &layout, &routing(3, 2, 4))?);
        let rows = vec![1.0f32; plan.expert_rows()];
        plan.combine_start(&pair, rows, 1, CombineOptions::default())?.finish(&comm).map(drop)
    })
    .unwrap_err();
    assert!(error.message.starts_with("group of the plan: expected rank"), "{error}");
}

#[test]
fn tuning_rows_without_or_beyond_memory_is_refused() {
    let layout = Layout::new(4, 1, 1).unwrap();
    let options = TuneOptions { channels: vec![1], chunk_rows: vec![8], repeats: 1, row_len: 4 };
    let comm = Comm::solo();
    for row_len in [0, usize::MAX] {
        let options = TuneOptions { row_len, ..options.clone() };
        refused(tune(&comm, &layout, &routing(3, 2, 4), PlanOptions::default(), &options), "cannot be measured");
    }
    let options = TuneOptions { row_len: 1 << 60, ..options };
    refused(tune(&comm, &layout, &routing(3, 2, 4), PlanOptions::default(), &options), "they do not fit into memory");
}
