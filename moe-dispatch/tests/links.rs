//! What dispatch costs on links of two speeds, by the virtual clock: 5 nodes of 4 ranks, fast links 3.2 times as fast as slow ones. A token that has
//! several experts on a node crosses the slow link to it once: up to 3.2 experts a node take the time of one.

use std::time::Duration;

use moe_dispatch::measure::{FanRanks, fan_routing, time_combine, time_dispatch};
use moe_dispatch::router::{RouterConfig, route};
use moe_dispatch::{FanOut, Layout, Plan, PlanOptions, Routing};
use v3_ranks::{Clock, Comm, Link, LinkModel, WorldConfig, run_threads};
use v3_testkit::rng::Rng;

const NODES: usize = 5;
const PER_NODE: usize = 4;
const ROW_LEN: usize = 4;
const TOKENS: usize = 192;
/// Seconds in which a row crosses a slow link (7168 bf16 at 50 GB/s), and a fast one.
const SLOW_ROW: f64 = 2.0 * 7168.0 / 50e9;
const FAST_ROW: f64 = SLOW_ROW / 3.2;

fn world(ranks: usize) -> WorldConfig {
    let bandwidth = (4 * ROW_LEN) as f64 / SLOW_ROW;
    let link = LinkModel {
        fast: Link { latency: Duration::from_nanos(200), bandwidth: 3.2 * bandwidth },
        slow: Link { latency: Duration::from_nanos(1000), bandwidth },
    };
    WorldConfig::new(ranks).ranks_per_node(PER_NODE).link(link).clock(Clock::Virtual)
}

struct Measured {
    dispatch: f64,
    combine: Option<f64>,
    /// Bytes of one dispatch between nodes, and of one combine.
    slow_bytes: u64,
    combine_slow_bytes: u64,
    /// The longest that any rank sends over its slow link, and over its fast one, in a dispatch; and over its slow link in a combine.
    slow: f64,
    fast: f64,
    combine_slow: f64,
}

fn measure(fan_out: FanOut, combine: bool, layout: &Layout, routing: impl Fn(usize) -> Routing + Sync) -> Measured {
    let options = PlanOptions { chunk_rows: 6, fan_out, ..PlanOptions::default() };
    let parts = run_threads(world(layout.ep_size()), |comm: Comm| -> moe_dispatch::Result<_> {
        let plan = Plan::with_options(&comm, layout, &routing(comm.rank()), options)?;
        let dispatch = time_dispatch(&comm, &plan, ROW_LEN)?;
        let combine = if combine { Some(time_combine(&comm, &plan, ROW_LEN)?) } else { None };
        Ok((dispatch, combine, plan.traffic(), plan.combine_traffic()))
    })
    .unwrap();
    let longest = |seconds: &dyn Fn(usize) -> f64| (0..parts.len()).map(seconds).fold(0.0, f64::max);
    Measured {
        dispatch: parts[0].0,
        combine: parts[0].1,
        slow_bytes: parts.iter().map(|part| part.2.slow_bytes).sum(),
        combine_slow_bytes: parts.iter().map(|part| part.3.slow_bytes).sum(),
        slow: longest(&|rank| parts[rank].2.slow_rows as f64 * SLOW_ROW),
        fast: longest(&|rank| parts[rank].2.fast_rows as f64 * FAST_ROW),
        combine_slow: longest(&|rank| parts[rank].3.slow_rows as f64 * SLOW_ROW),
    }
}

fn layout() -> Layout {
    Layout::new(NODES * PER_NODE * 16, NODES * PER_NODE, PER_NODE).unwrap()
}

fn fan(layout: &Layout, fan_out: FanOut, ranks: FanRanks, experts: &[usize]) -> Measured {
    measure(fan_out, false, layout, |rank| fan_routing(layout, rank, TOKENS, experts, ranks).unwrap())
}

/// Every copy crosses a fast link, as when experts are counted: the knee is at 3.2 experts a node.
#[test]
fn up_to_3_experts_a_node_take_the_time_of_one() {
    let layout = layout();
    for nodes in 1..=4 {
        let cells: Vec<Measured> =
            (1..=5).map(|experts| fan(&layout, FanOut::PerExpert, FanRanks::Others, &vec![experts; nodes])).collect();
        let base = cells[0].dispatch;
        assert!(base < 1.06 * cells[0].slow + 5e-6, "{nodes} nodes: {base} for {}", cells[0].slow);
        for (cell, experts) in cells.iter().zip(1..) {
            assert_eq!(cell.slow_bytes, (layout.ep_size() * nodes * TOKENS * 4 * ROW_LEN) as u64);
            let ratio = cell.dispatch / base;
            match experts {
                1..=3 => assert!(ratio <= 1.05, "{nodes} nodes, {experts} experts: {ratio}"),
                // From the knee on the fast link sets the time.
                _ => {
                    let bound = (experts * nodes * TOKENS) as f64 * FAST_ROW;
                    assert!((cell.fast / bound - 1.0).abs() < 0.01, "{experts} experts: {} for {bound}", cell.fast);
                    assert!(cell.dispatch >= cell.fast && cell.dispatch < 1.06 * cell.fast + 5e-6, "{nodes}, {experts}");
                    assert!(ratio > 0.95 * experts as f64 / 3.2, "{nodes} nodes, {experts} experts: {ratio}");
                }
            }
        }
    }
    let (base, all) = ([1; 4], [4, 3, 3, 3]);
    let time = |experts: &[usize]| fan(&layout, FanOut::PerExpert, FanRanks::Others, experts).dispatch;
    let ratio = time(&all) / time(&base);
    assert!(ratio <= 1.1, "13 experts on 4 nodes: {ratio}");
}

/// Experts on all four ranks: a quarter of the copies cross no link, and the knee is later.
#[test]
fn experts_on_the_gateway_cost_no_fast_link() {
    let layout = layout();
    let time = |experts| fan(&layout, FanOut::PerExpert, FanRanks::All, &[experts; 4]).dispatch;
    let base = time(1);
    for (experts, ratio) in [(3, 1.0), (4, 1.0), (5, 5.0 * 0.75 / 3.2)] {
        let got = time(experts) / base;
        assert!((got / ratio - 1.0).abs() < 0.05, "{experts} experts: {got}");
    }
}

/// One copy for each rank: a gateway of four ranks passes on at most three, fewer than 3.2, and no number of experts costs anything.
#[test]
fn with_a_copy_for_each_rank_four_ranks_have_no_knee() {
    let layout = layout();
    let time = |experts| fan(&layout, FanOut::PerRank, FanRanks::All, &[experts; 4]).dispatch;
    let base = time(1);
    for experts in [3, 5, 12] {
        let ratio = time(experts) / base;
        assert!(ratio <= 1.05, "{experts} experts: {ratio}");
    }
}

/// The published router, 8 groups on 8 nodes of which a token keeps 4: the busiest port sets the time, of dispatch as of combine.
#[test]
fn real_routing_takes_the_time_of_the_busiest_port() {
    let config = RouterConfig::deepseek_v3();
    let layout = Layout::new(config.num_experts, 32, PER_NODE).unwrap();
    let routing = |rank: usize| {
        let logits = Rng::new(7 + rank as u64).normal_vec(TOKENS * config.num_experts, 1.0);
        route(&config, &logits, &[]).unwrap()
    };
    for fan_out in [FanOut::PerRank, FanOut::PerExpert] {
        let m = measure(fan_out, true, &layout, routing);
        let bound = m.slow.max(m.fast);
        assert!(m.dispatch >= bound && m.dispatch < 1.1 * bound, "{fan_out:?}: {} for {bound}", m.dispatch);
        // Nodes hold aligned blocks of 32 experts, so that as much comes back as went there.
        assert_eq!(m.combine_slow_bytes, m.slow_bytes);
        let combine = m.combine.unwrap();
        assert!(combine >= m.combine_slow && combine < 1.2 * m.combine_slow, "{combine} for {}", m.combine_slow);
    }
}
