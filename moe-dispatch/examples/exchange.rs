//! 16 experts on 8 ranks of 2 nodes, 4 experts a token from at most 2 groups: what one layer sends.

use moe_dispatch::router::{RouterConfig, route};
use moe_dispatch::{Layout, Plan};
use v3_ranks::{Comm, RanksError, WorldConfig, run_threads};

fn main() -> Result<(), RanksError> {
    let config = RouterConfig { n_group: 4, topk_group: 2, ..RouterConfig::new(16, 4) };
    let (tokens, d) = (64, 32);
    let reports = run_threads(WorldConfig::new(8).ranks_per_node(4), |comm: Comm| -> moe_dispatch::Result<String> {
        let layout = Layout::new(16, 8, 4)?;
        let logits: Vec<f32> = (0..tokens * 16).map(|i| ((i * 37 + comm.rank() * 11) % 101) as f32 / 50.0 - 1.0).collect();
        let x: Vec<f32> = (0..tokens * d).map(|i| (i % 13) as f32).collect();
        let routing = route(&config, &logits, &[0.0; 16])?;
        let plan = Plan::new(&comm, &layout, &routing)?;
        let rows = plan.dispatch(&comm, &x, d)?;
        let y = plan.combine(&comm, &rows, d, true)?;
        // The experts here return what they get, and weights add up to 1.
        let error = y.iter().zip(&x).map(|(y, x)| (y - x).abs()).fold(0.0, f32::max);
        let sent = plan.traffic();
        Ok(format!(
            "rank {}: {} expert rows, sent {} rows to the other node and {} inside its own; largest difference {error:.1e}",
            comm.rank(),
            plan.expert_rows(),
            sent.slow_rows,
            sent.fast_rows
        ))
    })?;
    for report in reports {
        println!("{report}");
    }
    Ok(())
}
