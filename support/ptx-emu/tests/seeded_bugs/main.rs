//! Kernels with one mistake each, and the same kernels without it (`tests/kernels`, compiled by nvcc). Each mistake must be reported as what it
//! is, where it is, with every seed; the correct twins must give their results without a report. `V3_EMU_SEEDS` raises the number of seeds.

#[path = "../common/mod.rs"]
mod common;

mod asynchronous;
mod attention;
mod clusters;
mod devices;
mod gemm;
mod memory;
mod sync;
