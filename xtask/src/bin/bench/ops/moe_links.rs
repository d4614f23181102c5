//! What dispatch costs on links of two speeds, by the virtual clock: a table, not an operation to repeat, since the same program gives the same times.

use std::io::Write;
use std::time::Duration;

use moe_dispatch::measure::{FanRanks, fan_routing, time_combine, time_dispatch};
use moe_dispatch::router::{RouterConfig, route};
use moe_dispatch::{FanOut, Layout, Plan, PlanOptions, Routing};
use v3_ranks::{Clock, Comm, Link, LinkModel, WorldConfig, run_threads};

use super::{AnyError, values};

const PER_NODE: usize = 4;
const ROW_LEN: usize = 4;
/// What a row stands for: 7168 bf16.
const ROW_BYTES: f64 = 2.0 * 7168.0;
const SLOW: f64 = 50e9;
const FAST: f64 = 160e9;

struct Cell {
    dispatch: f64,
    combine: f64,
    /// Bytes that all ranks send between nodes in one dispatch.
    slow_bytes: f64,
    /// The longest that any rank sends over one of its links in a dispatch.
    busiest: f64,
}

fn measure(
    chunk_rows: usize,
    fan_out: FanOut,
    layout: &Layout,
    routing: impl Fn(usize) -> Result<Routing, AnyError> + Sync,
) -> Result<Cell, AnyError> {
    // The rows are short, and the links slower by as much.
    let scale = (4 * ROW_LEN) as f64 / ROW_BYTES;
    let link = LinkModel {
        fast: Link { latency: Duration::from_micros(1), bandwidth: FAST * scale },
        slow: Link { latency: Duration::from_micros(5), bandwidth: SLOW * scale },
    };
    let world = WorldConfig::new(layout.ep_size()).ranks_per_node(PER_NODE).link(link).clock(Clock::Virtual);
    let options = PlanOptions { chunk_rows, fan_out, ..PlanOptions::default() };
    let parts = run_threads(world, |comm: Comm| -> Result<_, AnyError> {
        let plan = Plan::with_options(&comm, layout, &routing(comm.rank())?, options)?;
        let dispatch = time_dispatch(&comm, &plan, ROW_LEN)?;
        let combine = time_combine(&comm, &plan, ROW_LEN)?;
        Ok((dispatch, combine, plan.traffic()))
    })?;
    let port = |rows: u64, bandwidth: f64| rows as f64 * ROW_BYTES / bandwidth;
    let Some(&(dispatch, combine, _)) = parts.first() else { return Err("a world without ranks".into()) };
    Ok(Cell {
        dispatch,
        combine,
        slow_bytes: parts.iter().map(|part| part.2.slow_rows as f64 * ROW_BYTES).sum(),
        busiest: parts.iter().map(|(_, _, sent)| port(sent.slow_rows, SLOW).max(port(sent.fast_rows, FAST))).fold(0.0, f64::max),
    })
}

/// Prints the table.
pub fn table(out: &mut dyn Write, quick: bool) -> Result<(), AnyError> {
    let tokens = if quick { 256 } else { 2048 };
    let layout = Layout::new(5 * PER_NODE * 16, 5 * PER_NODE, PER_NODE)?;
    writeln!(out)?;
    writeln!(
        out,
        "moe-dispatch on a link model, virtual clock: 5 nodes x {PER_NODE} ranks, {tokens} tokens a rank of 7168 bf16, fast 160 GB/s 1 us, slow 50 GB/s 5 us"
    )?;
    let fans = [
        (FanOut::PerExpert, FanRanks::Others, "one copy for each expert, none of them on the gateway: knee at 3.2 experts"),
        (
            FanOut::PerExpert,
            FanRanks::All,
            "one copy for each expert, a quarter of them on the gateway itself: knee at 3.2 / 0.75 experts",
        ),
        (
            FanOut::PerRank,
            FanRanks::All,
            "one copy for each rank: a gateway of 4 ranks passes on at most 3, fewer than 3.2, so there is no knee",
        ),
    ];
    for (fan_out, ranks, title) in fans {
        writeln!(out, "{title}; us of dispatch (slow MB of all ranks), and against 1 expert a node")?;
        writeln!(out, "  remote nodes  1 expert a node      2                    3                    4                    5")?;
        for nodes in 1..=4usize {
            write!(out, "  {nodes:<13}")?;
            let mut base = None;
            for experts in 1..=5 {
                let fan = vec![experts; nodes];
                let cell = measure(tokens / 64, fan_out, &layout, |rank| Ok(fan_routing(&layout, rank, tokens, &fan, ranks)?))?;
                let base = *base.get_or_insert(cell.dispatch);
                let text = format!("{:.0} ({:.0}) {:.3}", cell.dispatch * 1e6, cell.slow_bytes / 1e6, cell.dispatch / base);
                write!(out, " {text:<20}")?;
            }
            writeln!(out)?;
        }
        let mut times = Vec::new();
        for fan in [[1; 4], [4, 3, 3, 3]] {
            times.push(
                measure(tokens / 64, fan_out, &layout, |rank| Ok(fan_routing(&layout, rank, tokens, &fan, ranks)?))?.dispatch,
            );
        }
        if let [four, thirteen] = times[..] {
            writeln!(out, "  13 experts on 4 nodes take {:.3} of the time of 4", thirteen / four)?;
        }
    }
    writeln!(out, "the router itself, top 8, at most 4 nodes a token; us, and against the busiest link of any rank")?;
    let published = RouterConfig::deepseek_v3();
    let five = RouterConfig { num_experts: 260, n_group: 5, topk_group: 4, ..published };
    for (name, nodes, config) in [("256 experts, 8 nodes", 8, published), ("260 experts, 5 nodes", 5, five)] {
        let layout = Layout::new(config.num_experts, nodes * PER_NODE, PER_NODE)?;
        for fan_out in [FanOut::PerExpert, FanOut::PerRank] {
            let cell = measure(tokens / 64, fan_out, &layout, |rank| {
                let logits = values(tokens * config.num_experts, 10 + rank as u64);
                Ok(route(&config, &logits, &[])?)
            })?;
            writeln!(
                out,
                "  {name}, {fan_out:?}: dispatch {:.0} ({:.3}), combine {:.0}, slow {:.0} MB",
                cell.dispatch * 1e6,
                cell.dispatch / cell.busiest,
                cell.combine * 1e6,
                cell.slow_bytes / 1e6
            )?;
        }
    }
    Ok(())
}
