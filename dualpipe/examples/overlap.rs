//! How much communication hides behind computation, on paper: four layers of attention and experts a chunk, communication of 0.8 and
//! 1.0 of the computation, one pair and a whole step of DualPipe with 32 micro-batches.
//!
//! ```sh
//! cargo run --release -p dualpipe --example overlap
//! ```

#[path = "../tests/common/mod.rs"]
mod common;

use common::{moe_costs, moe_layers};
use dualpipe::{
    Arrangement, Component, ComponentCost, ComponentCosts, Half, Kind, Overlap, Pairing, Ports, Schedule, Tuning,
    simulate_components, simulate_steady, tune, tune_pair,
};

/// Attention and MLP, each forward, backward for inputs, and for weights.
const SHAPES: [(&str, [f64; 3], [f64; 3]); 3] =
    [("all equal", [1.0; 3], [1.0; 3]), ("MLP 1.5x", [1.0; 3], [1.5; 3]), ("MLP 2x", [1.0; 3], [2.0; 3])];
const RATIOS: [f64; 2] = [0.8, 1.0];

/// Communication of `ratio`, and transfers between pipeline ranks of a tenth of one dispatch.
fn costs(attention: [f64; 3], mlp: [f64; 3], ratio: f64) -> ComponentCosts {
    let mut costs = moe_costs(attention, mlp, ratio, Ports::Two);
    let layer: f64 = attention.iter().chain(&mlp).sum();
    costs.transfer = ComponentCost::communicate(0.1 * ratio * layer / 4.0, 0.0, 0.0);
    costs
}

fn four_layers(half: Half, stage: usize) -> Vec<Component> {
    moe_layers(half, 4 * stage..4 * stage + 4)
}

fn main() -> Result<(), dualpipe::Error> {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let pairing = Pairing::new(four_layers(Half::Forward, 0), four_layers(Half::Backward, 0))?;
    println!("steady pairs: share of their communication that is hidden (off: 0 %), and time over the lower bound");
    println!("| components | ratio | default | tuned | default / bound | tuned / bound |");
    println!("|---|---|---|---|---|---|");
    let mut best = None;
    for (name, attention, mlp) in SHAPES {
        for ratio in RATIOS {
            let costs = costs(attention, mlp, ratio).of(&pairing)?;
            let default = simulate_steady(&pairing, &costs, &Arrangement::default(&pairing))?;
            let tuned = tune_pair(&pairing, &costs, Tuning::default())?;
            let over = |time: f64| format!("{:.3}", time / tuned.bound);
            println!(
                "| {name} | {ratio} | {} | {} | {} | {} |",
                percent(default.hidden()),
                percent(tuned.steady.hidden()),
                over(default.makespan),
                over(tuned.steady.makespan)
            );
            best = Some(tuned.arrangement.describe(&pairing));
        }
    }
    println!("\nthe last of these, tuned:\n{}", best.unwrap_or_default());

    println!("whole steps of DualPipe, 32 micro-batches, MLP 1.5x: time over that without communication");
    println!("| ranks | ratio | off | default | tuned | off / tuned | pairs hide (default) | pairs hide (tuned) |");
    println!("|---|---|---|---|---|---|---|---|");
    let (_, attention, mlp) = SHAPES[1];
    for ranks in [2, 4, 8] {
        let schedule = Schedule::new(Kind::DualPipe, ranks, 32)?;
        for ratio in RATIOS {
            let costs = costs(attention, mlp, ratio);
            let arrangements = tune(&schedule, four_layers, &costs, Tuning::default())?;
            let free = moe_costs(attention, mlp, 0.0, Ports::Two);
            let none = simulate_components(&schedule, four_layers, &free, &Overlap::Off)?.timeline.makespan();
            let run = |overlap: Overlap| simulate_components(&schedule, four_layers, &costs, &overlap);
            let (off, default, tuned) = (run(Overlap::Off)?, run(Overlap::Default)?, run(Overlap::Tuned(arrangements))?);
            println!(
                "| {ranks} | {ratio} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {} |",
                off.timeline.makespan() / none,
                default.timeline.makespan() / none,
                tuned.timeline.makespan() / none,
                off.timeline.makespan() / tuned.timeline.makespan(),
                percent(default.hidden_in_pairs()),
                percent(tuned.hidden_in_pairs())
            );
        }
    }
    Ok(())
}
