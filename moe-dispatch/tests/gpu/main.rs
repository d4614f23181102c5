//! Router, permute and unpermute on a device against the CPU's and the reference: on the emulator, which also reports what they do wrong, and on a GPU where
//! there is one. Outputs are poisoned before. `V3_EMU_SEEDS` raises the number of orders in which the emulator runs each case (2).

mod exchange;
mod permute;
mod router;
mod unpermute;

use proptest::prelude::*;
use v3_gpu::{Device, EmulatorConfig, Error};
use v3_testkit::Rng;

/// The emulator under each seed, and the first GPU; if there is none that is noted under the test's name.
fn devices(test: &str) -> Vec<Device> {
    let seeds = std::env::var("V3_EMU_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let emulated = |seed| Device::emulated(&EmulatorConfig { seed, ..EmulatorConfig::default() }).unwrap().remove(0);
    let mut all: Vec<Device> = (0..seeds).map(emulated).collect();
    match Device::cuda(0) {
        Ok(device) => all.push(device),
        Err(Error::NoDevice { reason, .. } | Error::Unsupported { what: reason }) => {
            v3_testkit::skip::skip(&format!("{test} (cuda)"), &reason);
        }
        Err(e) => panic!("{e}"),
    }
    all
}

/// One emulated device.
fn emulator() -> Device {
    Device::emulated(&EmulatorConfig::default()).unwrap().remove(0)
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 20, ..ProptestConfig::default() }
}

/// How tokens choose.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// Any experts, some choices masked out.
    Random,
    /// The first `top_k` experts, all of them: the others have no tokens.
    First,
    /// Half of the tokens choose nothing, as places behind the rows of a dispatch do.
    Sparse,
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Random), Just(Kind::First), Just(Kind::Sparse)]
}

/// `[tokens, top_k]` experts, different within a token, or -1.
fn experts(rng: &mut Rng, tokens: usize, top_k: usize, num_experts: usize, kind: Kind) -> Vec<i32> {
    let mut all = Vec::with_capacity(tokens * top_k);
    for token in 0..tokens {
        let mut deck: Vec<i32> = (0..num_experts as i32).collect();
        for choice in 0..top_k {
            if choice >= deck.len() || kind == Kind::Sparse && token % 2 == 1 {
                all.push(-1);
                continue;
            }
            if kind != Kind::First {
                let other = choice + rng.below(deck.len() - choice);
                deck.swap(choice, other);
            }
            all.push(if kind != Kind::First && rng.below(6) == 0 { -1 } else { deck[choice] });
        }
    }
    all
}
