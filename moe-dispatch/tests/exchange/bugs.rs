//! Mistakes that a GPU hides, each of them reported as what it is, where it is.

use crate::cases::{Kind, Rng, check_dispatch, config, tokens, write_tokens};
use crate::{emulated, seeds};
use moe_dispatch::gpu::Arch;
use moe_dispatch::gpu::exchange::{Copies, ExchangeConfig, ExchangeKernels, Group};
use v3_gpu::Device;

const COMBINE: &str = include_str!("../../ptx/ep_combine.sm_80.ptx");

/// A dispatch with another text of the kernel; the report of what went wrong.
fn dispatch(text: &str, config: ExchangeConfig, devices: &[Device], seed: u64) -> Result<(), String> {
    let all = tokens(&config, Kind::Random, &mut Rng(seed));
    // SAFETY: what they do wrong the emulator reports.
    let load = |device: &Device| unsafe { ExchangeKernels::from_ptx(device, Arch::Sm80, Copies::Vectors, text, COMBINE) };
    let mut group = Group::with_kernels(config, devices, 1, load).unwrap();
    write_tokens(&mut group, &all);
    group.dispatch().unwrap();
    group.synchronize().map_err(|e| e.to_string())?;
    check_dispatch(&group, &all);
    Ok(())
}

fn sizes() -> ExchangeConfig {
    let mut config = config(2, 2, 16, 3, 12);
    config.slots = 2;
    config
}

/// The places of a source where it has a text, as reports name them.
fn places(file: &str, source: &str, text: &str) -> Vec<String> {
    let found = source.lines().zip(1..).filter(|(line, _)| line.contains(text));
    let places: Vec<String> = found.map(|(_, number)| format!("moe-dispatch/kernels/{file}:{number},")).collect();
    assert!(!places.is_empty(), "{file} has no {text}");
    places
}

/// Every seed reports it: as what, and at one of some places.
fn reported(text: &str, kind: &str, at: &[String]) {
    for seed in 0..seeds().max(4) {
        let report = dispatch(text, sizes(), &emulated(4, seed), seed).expect_err("it must be reported");
        assert!(report.contains(kind), "{kind}, seed {seed}: {report}");
        assert!(at.iter().any(|place| report.contains(place)), "{at:?}, seed {seed}: {report}");
    }
}

const COMMON: &str = include_str!("../../kernels/ep_common.cuh");
const DISPATCH: &str = include_str!("../../kernels/ep_dispatch.cuh");

/// Where rows and their headers are stored into rings.
fn stores() -> Vec<String> {
    let texts = ["reinterpret_cast<uint32_t*>(to)[word] =", "header[word] = x;", "copy<true>(", "copy<false>("];
    texts.iter().flat_map(|text| places("ep_dispatch.cuh", DISPATCH, text)).collect()
}

#[test]
fn without_a_mistake_nothing_is_reported() {
    for seed in 0..seeds() {
        dispatch(include_str!("../ptx/ep_dispatch_bugs.sm_80.ptx"), sizes(), &emulated(4, seed), seed).unwrap();
    }
}

#[test]
fn a_flag_at_gpu_scope() {
    let text = include_str!("../ptx/ep_dispatch_bugs-gpu_scope.sm_80.ptx");
    let at = places("ep_common.cuh", COMMON, "ptx::st_release_gpu_global(flag, value)");
    reported(text, "scope does not include the other thread", &at);
    // Nothing is wrong with it as long as the other side is the same device.
    for seed in 0..seeds() {
        let device = emulated(1, seed).remove(0);
        dispatch(text, sizes(), &vec![device; 4], seed).unwrap();
    }
}

#[test]
fn a_flag_at_block_scope() {
    let text = include_str!("../ptx/ep_dispatch_bugs-cta_scope.sm_80.ptx");
    let at = places("ep_common.cuh", COMMON, "ptx::st_release_cta_global(flag, value)");
    reported(text, "scope does not include the other thread", &at);
    for seed in 0..seeds() {
        let device = emulated(1, seed).remove(0);
        let report = dispatch(text, sizes(), &vec![device; 4], seed).expect_err("the other side is another block");
        assert!(at.iter().any(|place| report.contains(place)), "{report}");
    }
}

#[test]
fn a_payload_behind_its_flag() {
    reported(include_str!("../ptx/ep_dispatch_bugs-flag_first.sm_80.ptx"), "data race: ", &stores());
}

#[test]
fn a_slot_reused_early() {
    reported(include_str!("../ptx/ep_dispatch_bugs-early_reuse.sm_80.ptx"), "data race: ", &stores());
}
