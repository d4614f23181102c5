//! Four ranks on two nodes: an all-to-all, a sum, and what crossed the links.

use v3_ranks::{Comm, RanksError, WorldConfig, run_threads};

fn main() -> Result<(), RanksError> {
    let reports = run_threads(WorldConfig::new(4).ranks_per_node(2), |comm: Comm| -> v3_ranks::Result<String> {
        let rows = (0..comm.size()).map(|dst| vec![comm.rank() as f32; dst]).collect();
        let received: usize = comm.all_to_all_v(rows)?.iter().map(Vec::len).sum();
        let mut total = [received as u64];
        comm.all_reduce_sum(&mut total)?;
        let sent = comm.traffic();
        Ok(format!(
            "rank {} on node {}: {received} of {} values, {} bytes sent inside the node, {} to the other",
            comm.rank(),
            comm.node(),
            total[0],
            sent.fast.bytes,
            sent.slow.bytes
        ))
    })?;
    for report in reports {
        println!("{report}");
    }
    Ok(())
}
