//! Finds channels and chunk size for the ranks of this process and stores them: `tune FILE`.
//!
//! 4 ranks on 2 nodes, threads of this process with links of two speeds; a program over other transports calls the same `tune` on its own group.

use std::time::Duration;

use moe_dispatch::router::{RouterConfig, route};
use moe_dispatch::tune::{TuneOptions, tune};
use moe_dispatch::{Layout, PlanOptions};
use v3_ranks::{Comm, Link, LinkModel, WorldConfig, run_threads};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1);
    let (fast, slow) = (3.2e9, 1e9);
    let link = |micros, bandwidth| Link { latency: Duration::from_micros(micros), bandwidth };
    let links = LinkModel { fast: link(5, fast), slow: link(20, slow) };
    let config = RouterConfig::new(32, 8);
    let tokens = 256;
    let tuned = run_threads(WorldConfig::new(4).ranks_per_node(2).link(links), |comm: Comm| -> moe_dispatch::Result<_> {
        let layout = Layout::new(32, 4, 2)?;
        let logits: Vec<f32> = (0..tokens * 32).map(|i| ((i * 37 + comm.rank() * 11) % 101) as f32 / 50.0 - 1.0).collect();
        let routing = route(&config, &logits, &[])?;
        let options = TuneOptions { row_len: 512, ..TuneOptions::default() };
        tune(&comm, &layout, &routing, PlanOptions::default(), &options)
    })?;
    if let Some(tuned) = tuned.first() {
        print!("{tuned}");
        if let Some(file) = &file {
            tuned.write(file)?;
        }
    }
    Ok(())
}
