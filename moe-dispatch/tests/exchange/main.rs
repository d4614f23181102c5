//! Dispatch and combine between devices against the reference, on the emulator with all its detectors, and with several ranks on a GPU where
//! there is one. `V3_EMU_SEEDS` raises the number of orders in which the emulator runs each case (2).

mod bugs;
mod cases;
mod config;
mod exact;
mod gpu;
mod roles;

use v3_gpu::{Device, EmulatorConfig};

/// Orders of execution that each case is run in.
fn seeds() -> u64 {
    std::env::var("V3_EMU_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2)
}

/// The devices of an emulated machine.
fn emulated(devices: u32, seed: u64) -> Vec<Device> {
    Device::emulated(&EmulatorConfig { devices, seed, ..EmulatorConfig::default() }).unwrap()
}
