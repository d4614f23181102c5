//! `scan.cu`: prefix sums.

use crate::SEEDS;
use crate::args;
use crate::common::*;
use ptx_emu::{Config, Shape};
use v3_testkit::Rng;

fn numbers(n: usize) -> Vec<u32> {
    let mut rng = Rng::new(n as u64 + 1);
    (0..n).map(|_| rng.u32()).collect()
}

/// x[0] + .. + x[i], modulo 2^32.
fn inclusive(x: &[u32]) -> Vec<u32> {
    let sums = x.iter().scan(0u32, |sum, &x| {
        *sum = sum.wrapping_add(x);
        Some(*sum)
    });
    sums.collect()
}

fn each(sizes: &[usize], run: impl Fn(&Text, Config, usize) -> Run + Sync) {
    for arch in ["sm_80", "sm_90"] {
        let text = text("scan", arch);
        for &n in sizes {
            passes(SEEDS, |config| run(&text, config, n));
        }
    }
}

#[test]
fn one_block() {
    each(&[1, 2, 31, 257, 500, 512], |text, config, n| {
        let gpu = Gpu::new(text, config);
        let x = numbers(n);
        let (from, y) = (gpu.upload(&x), gpu.room::<u32>(n));
        gpu.run("scan_block", Shape::new(1, 512).shared(4096), &args![from, y, n as u32])?;
        gpu.expect("scan_block", y, &inclusive(&x))?;
        gpu.run("scan_exclusive_tree", Shape::new(1, 256).shared(2048), &args![from, y, n as u32])?;
        let exclusive: Vec<u32> = inclusive(&x).iter().zip(&x).map(|(sum, x)| sum.wrapping_sub(*x)).collect();
        gpu.expect("scan_exclusive_tree", y, &exclusive)
    });
}

#[test]
fn blocks_that_wait_for_those_before_them() {
    // 40 tiles: a block looks back over more than one window of 32, with few and with all blocks resident.
    for sm_count in [1, 132] {
        each(&[1, 1024, 1025, 5000, 40 * 1024 - 3], |text, config, n| {
            let gpu = Gpu::new(text, Config { sm_count, ..config });
            let x = numbers(n);
            let blocks = n.div_ceil(1024);
            let (y, state, ticket) = (gpu.room::<u32>(n), gpu.zeros::<u64>(blocks), gpu.zeros::<u32>(1));
            gpu.run("scan_lookback", Shape::new(blocks as u32, 256), &args![gpu.upload(&x), y, state, ticket, n as u32])?;
            gpu.expect("scan_lookback", y, &inclusive(&x))
        });
    }
}

#[test]
fn segments_of_a_warp() {
    each(&[1, 33, 255, 1000], |text, config, n| {
        let gpu = Gpu::new(text, config);
        let mut rng = Rng::new(n as u64);
        let x: Vec<f32> = (0..n).map(|_| rng.below(100) as f32).collect();
        let flags: Vec<u32> = (0..n).map(|_| u32::from(rng.below(5) == 0)).collect();
        let y = gpu.room::<f32>(n);
        let shape = Shape::new(n.div_ceil(256) as u32, 256);
        gpu.run("scan_segments", shape, &args![gpu.upload(&x), gpu.upload(&flags), y, n as u32])?;
        let mut expected = x.clone();
        for i in 1..n {
            if i % 32 != 0 && flags[i] == 0 {
                expected[i] += expected[i - 1];
            }
        }
        gpu.expect("scan_segments", y, &expected)
    });
}
