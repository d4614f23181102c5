//! How much of the communication of a pair of chunks the orders hide, on paper: four layers of attention and experts, with
//! communication of 0.8 and 1.0 of the computation.
//!
//! ```sh
//! cargo run --release -p dualpipe --example overlap
//! ```

#[path = "../tests/common/mod.rs"]
mod common;

use common::{moe_costs, moe_layers};
use dualpipe::{Arrangement, ComponentCost, Half, Pairing, Ports, Tuning, pair_bound, simulate_pair, simulate_steady, tune_pair};

fn main() -> Result<(), dualpipe::Error> {
    let pairing = Pairing::new(moe_layers(Half::Forward, 0..4), moe_layers(Half::Backward, 0..4))?;
    let shapes = [
        ("all components equal", [1.0; 3], [1.0; 3]),
        ("MLP twice attention", [1.0; 3], [2.0; 3]),
        ("attention twice MLP", [2.0; 3], [1.0; 3]),
        ("inputs of attention dear", [1.0, 1.8, 0.6], [1.2, 1.2, 1.2]),
    ];
    println!("share of communication hidden: off is 0 %");
    println!(
        "{:<26} {:>5} {:>9} {:>8} {:>8} {:>8}  steady: {:>8} {:>8}",
        "", "ratio", "transfer", "default", "tuned", "bound", "default", "tuned"
    );
    for (name, attention, mlp) in shapes {
        for ratio in [0.8, 1.0] {
            for transfer in [0.0, 0.25] {
                let mut costs = moe_costs(attention, mlp, ratio, Ports::Two);
                let computing: f64 = attention.iter().chain(&mlp).sum();
                costs.transfer = ComponentCost::communicate(transfer * ratio * computing / 4.0, 0.0, 0.0);
                let costs = costs.of(&pairing)?;
                let order = Arrangement::default(&pairing);
                let default = simulate_pair(&pairing, &costs, &order)?;
                let default_steady = simulate_steady(&pairing, &costs, &order)?;
                let tuned = tune_pair(&pairing, &costs, Tuning::default())?;
                let best = 1.0 - (pair_bound(&pairing, &costs)? - default.computing) / default.communication;
                let percent = |share: f64| format!("{:.1} %", 100.0 * share);
                println!(
                    "{name:<26} {ratio:>5} {transfer:>9} {:>8} {:>8} {:>8}          {:>8} {:>8}",
                    percent(default.hidden()),
                    percent(tuned.alone.hidden()),
                    percent(best.min(1.0)),
                    percent(default_steady.hidden()),
                    percent(tuned.steady.hidden())
                );
            }
        }
    }
    Ok(())
}
