//! Programs in plain CUDA C++ as people write them (`tests/kernels`, compiled by nvcc), run on the emulator with all detectors and compared with
//! the CPU, under several seeds and with sizes that divide nothing. `V3_EMU_SEEDS` raises the number of seeds.

#[path = "../common/mod.rs"]
mod common;

mod gemm;
mod reductions;
mod scan;
mod sort;
mod two_devices;

/// How many seeds a program is run with for each size.
const SEEDS: u64 = 4;
