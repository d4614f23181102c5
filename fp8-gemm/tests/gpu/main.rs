//! The GPU kernels against the reference: on the emulator, which also reports what they do wrong, and on a GPU where there is one.
//!
//! Outputs are poisoned before, and so is what lies beyond and between the rows of every operand. `V3_EMU_SEEDS` raises the number of orders
//! in which the emulator runs each case (2).

mod errors;
mod gemm;
mod gemm_order;
mod quantize;

use proptest::prelude::*;
use v3_gpu::{Device, EmulatorConfig, Error};

/// Orders of execution that each case is run in.
fn seeds() -> u64 {
    std::env::var("V3_EMU_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2)
}

fn emulator(config: EmulatorConfig) -> Device {
    Device::emulated(&config).unwrap().remove(0)
}

/// The emulator under each seed.
fn emulators() -> Vec<Device> {
    (0..seeds()).map(|seed| emulator(EmulatorConfig { seed, ..EmulatorConfig::default() })).collect()
}

/// The first GPU whose compute capability `fits`; if there is none that is noted under the test's name.
fn gpu(test: &str, fits: impl Fn((u32, u32)) -> bool) -> Option<Device> {
    let skip = |reason: &str| v3_testkit::skip::skip(&format!("{test} (cuda)"), reason);
    match Device::cuda(0) {
        Ok(device) => {
            let info = device.info().unwrap();
            if fits(info.compute_capability) {
                return Some(device);
            }
            skip(&format!("{} has compute capability {:?}", info.name, info.compute_capability));
        }
        Err(Error::NoDevice { reason, .. } | Error::Unsupported { what: reason }) => skip(&reason),
        Err(e) => panic!("{e}"),
    }
    None
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 20, ..ProptestConfig::default() }
}
