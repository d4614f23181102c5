//! Plans, dispatches, combines and their backward passes between processes against the same between threads, bit for bit.

use std::sync::Arc;

use half::bf16;
use moe_dispatch::{CombineOptions, FanOut, Layout, Pairs, Plan, PlanOptions, Routing, Rows, Wire};
use v3_ranks::{Comm, Lane, WorldConfig, run_threads};

use crate::{Numbers, Outcome};

/// How often everything is done with other sizes.
const ROUNDS: u64 = 24;

/// One exchange of everything: what there is and how it is laid out follow from the number alone.
pub fn run(comm: &Comm) -> Outcome<()> {
    for round in 0..ROUNDS {
        let here = program(comm, round).map_err(|error| format!("round {round}: {error}"))?;
        let threads = run_threads(WorldConfig::new(comm.size()), |comm| program(&comm, round))?;
        if threads.get(comm.rank()) != Some(&here) {
            return Err(format!("round {round}: not what threads give").into());
        }
    }
    if comm.rank() == 0 {
        println!("{} ranks: {ROUNDS} rounds of dispatch and combine, the same bits as between threads", comm.size());
    }
    Ok(())
}

fn floats(numbers: &mut Numbers, len: usize) -> Vec<f32> {
    (0..len).map(|_| (numbers.next() as i32 as f32) * 2f32.powi((numbers.next() % 20) as i32 - 40)).collect()
}

fn program(comm: &Comm, round: u64) -> Outcome<Vec<u8>> {
    let (me, size) = (comm.rank(), comm.size());
    // What all ranks must agree on.
    let mut shared = Numbers(round);
    let mut pick = |list: &[usize]| list[(shared.next() % list.len() as u64) as usize];
    let (experts, row_len) = (size * pick(&[2, 4, 8]), pick(&[1, 24, 500]));
    let top_k = pick(&[1, 2, 4]).min(experts);
    let per_node = [1, 2, size][pick(&[0, 1, 2])];
    let options = PlanOptions {
        alignment: pick(&[1, 8]),
        chunk_rows: pick(&[1, 5, 64]),
        channels: pick(&[1, 3]),
        fan_out: [FanOut::PerRank, FanOut::PerExpert][pick(&[0, 1])],
        capacity: [None, Some(100)][pick(&[0, 1])],
    };
    let crowded = pick(&[0, 1]) == 1;
    // What each rank has: some have no tokens, and some rounds send all to the first experts.
    let mut own = Numbers(round * 1000 + me as u64 + 1);
    let tokens = [0, 1, 17, 100][(own.next() % 4) as usize];
    let mut indices: Vec<u32> = Vec::with_capacity(tokens * top_k);
    for _ in 0..tokens {
        let first = indices.len();
        while indices.len() < first + top_k {
            let expert = if crowded { (indices.len() - first) as u32 } else { (own.next() % experts as u64) as u32 };
            if !indices[first..].contains(&expert) {
                indices.push(expert);
            }
        }
    }
    let weights = floats(&mut own, tokens * top_k);
    let routing = Routing { tokens, top_k, indices, weights, scores: Vec::new() };
    let layout = Layout::new(experts, size, per_node)?;
    let plan = Arc::new(Plan::with_options(comm, &layout, &routing, options)?);

    let mut seen: Vec<u8> = Vec::new();
    let rows = floats(&mut own, tokens * row_len);
    let narrow: Vec<bf16> = rows.iter().map(|&x| bf16::from_f32(x)).collect();
    let values: Vec<u8> = (0..tokens * row_len).map(|_| own.next() as u8).collect();
    let scales = floats(&mut own, tokens * 2);

    // Three payloads in flight at a time on a lane, taken in another order.
    let lane = Lane::spawn(comm, "exchange")?;
    let wide = lane.submit(plan.dispatch_start(comm, Rows { data: rows.clone(), row_len })?);
    let half_wide = lane.submit(plan.dispatch_start(comm, Rows { data: narrow, row_len })?);
    let quantised = lane.submit(plan.dispatch_start(comm, Pairs { data: values, row_len, side: scales, side_len: 2 })?);
    let quantised = quantised.finish(comm)?.rows;
    seen.extend(&quantised.data);
    seen.extend(bytemuck::cast_slice::<f32, u8>(&quantised.side));
    let narrow = half_wide.finish(comm)?.rows.data;
    seen.extend(bytemuck::cast_slice::<bf16, u8>(&narrow));
    let wide = wide.finish(comm)?.rows.data;
    seen.extend(bytemuck::cast_slice::<f32, u8>(&wide));

    // A plan and its first dispatch as one task.
    let fused = Plan::start_dispatch(comm, &layout, &routing, options, Rows { data: rows, row_len })?.finish(comm)?;
    if fused.1.rows.data != wide {
        return Err("planned and dispatched at once: other rows".into());
    }

    for wire in [Wire::F32, Wire::Bf16] {
        for weighted in [false, true] {
            let first = lane.submit(plan.combine_start(comm, wide.clone(), row_len, CombineOptions { weighted, wire })?);
            let second = plan.combine_with(comm, &narrow, row_len, CombineOptions { weighted, wire })?;
            seen.extend(bytemuck::cast_slice::<bf16, u8>(&second));
            seen.extend(bytemuck::cast_slice::<f32, u8>(&first.finish(comm)?.rows));
        }
        let dy = floats(&mut own, tokens * row_len);
        let gradients = lane.submit(plan.combine_backward_start(comm, dy, wide.clone(), row_len, wire)?).finish(comm)?;
        seen.extend(bytemuck::cast_slice::<f32, u8>(&gradients.d_expert_rows));
        seen.extend(bytemuck::cast_slice::<f32, u8>(&gradients.d_weights));
    }
    Ok(seen)
}
