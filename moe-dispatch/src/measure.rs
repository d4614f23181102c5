//! How long exchanges take: by the machine's clock, or by the virtual clock of a link model.
//!
//! [`time_dispatch`] and [`time_combine`] time one exchange of all ranks of a group, from a common beginning to the end of the last rank. [`fan_routing`]
//! makes the routings of the claim that such times are held against: a token that goes to several experts of a node crosses the slow
//! link to that node once, so that more experts cost nothing as long as the fast links inside the node keep up.

use v3_ranks::Comm;

use crate::combine::CombineOptions;
use crate::dispatch::zero_rows;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::plan::Plan;
use crate::router::Routing;

/// Virtual seconds between measurements: longer than anything that still is under way.
const PAUSE: f64 = 1.0;

/// Brings all ranks to the same time and returns it.
fn align(comm: &Comm) -> Result<f64> {
    comm.barrier()?;
    if !comm.is_virtual() {
        return Ok(comm.now());
    }
    let mut latest = [comm.now()];
    comm.all_reduce(&mut latest, f64::max)?;
    let start = latest[0] + PAUSE;
    comm.advance(start - comm.now())?;
    Ok(start)
}

fn timed<T>(comm: &Comm, exchange: impl FnOnce() -> Result<T>) -> Result<f64> {
    let start = align(comm)?;
    exchange()?;
    let mut seconds = [comm.now() - start];
    comm.all_reduce(&mut seconds, f64::max)?;
    Ok(seconds[0])
}

/// Seconds of one dispatch of f32 rows of `row_len`, the same on all ranks. Under the virtual clock the computation inside it takes no time.
///
/// # Errors
/// As [`Plan::dispatch`].
pub fn time_dispatch(comm: &Comm, plan: &Plan, row_len: usize) -> Result<f64> {
    let rows = zero_rows::<f32>(plan.tokens(), row_len)?;
    let mut out = zero_rows::<f32>(plan.expert_rows(), row_len)?;
    timed(comm, || plan.dispatch_into(comm, &rows, row_len, &mut out))
}

/// Seconds of one weighted combine of f32 rows of `row_len`, as [`time_dispatch`].
///
/// # Errors
/// As [`Plan::combine`].
pub fn time_combine(comm: &Comm, plan: &Plan, row_len: usize) -> Result<f64> {
    let rows = zero_rows::<f32>(plan.expert_rows(), row_len)?;
    timed(comm, || plan.combine_with(comm, &rows, row_len, CombineOptions::default()))
}

/// On which ranks of a node the experts of [`fan_routing`] are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FanRanks {
    /// On all of them in turn: one copy in `ranks_per_node` stays on the gateway and crosses no link.
    All,
    /// On those that are not the gateway: every copy crosses a fast link, as in a count of experts.
    Others,
}

/// `tokens` tokens of rank `source`, each with `experts[i]` experts on the i-th of some other nodes. All nodes and ranks are used evenly. The slots of a rank must hold different experts.
///
/// # Errors
/// When there are fewer other nodes than `experts` has entries, ranks hold too few experts, or no rank is left.
pub fn fan_routing(layout: &Layout, source: usize, tokens: usize, experts: &[usize], ranks: FanRanks) -> Result<Routing> {
    let refuse = |reason: String| Err(Error::Config { what: "fan routing", reason });
    let (nodes, home) = (layout.nodes(), layout.node(source));
    if experts.len() >= nodes {
        return refuse(format!("{} other nodes are wanted, there are {}", experts.len(), nodes - 1));
    }
    let top_k: usize = experts.iter().sum();
    let mut indices = Vec::with_capacity(tokens * top_k);
    // How many copies have gone to each node: the next goes to another rank, whatever the token.
    let mut copies = vec![source; nodes];
    for token in 0..tokens {
        for (i, &count) in experts.iter().enumerate() {
            let node = (home + 1 + (token + i) % (nodes - 1)) % nodes;
            let all = layout.ranks_of_node(node);
            let gateway = layout.gateway(source, node);
            let targets: Vec<usize> = match ranks {
                FanRanks::All => all.collect(),
                FanRanks::Others => all.filter(|&rank| rank != gateway).collect(),
            };
            if targets.is_empty() || count > layout.slots_per_rank() * targets.len() {
                return refuse(format!("{count} experts on {} ranks of {} each", targets.len(), layout.slots_per_rank()));
            }
            for expert in 0..count {
                let rank = targets[copies[node] % targets.len()];
                copies[node] += 1;
                let local = layout.local_experts(rank);
                // Two experts of the token on one rank are `targets.len()` turns apart.
                indices.push(local[(token + expert / targets.len()) % local.len()]);
            }
        }
    }
    Ok(Routing { tokens, top_k, weights: vec![1.0; indices.len()], indices, scores: Vec::new() })
}
