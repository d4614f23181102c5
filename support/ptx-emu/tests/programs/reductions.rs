//! `reductions.cu`: sums by each method, extremes, histograms, counts.

use crate::SEEDS;
use crate::args;
use crate::common::*;
use ptx_emu::{Config, Shape};
use std::sync::Arc;
use v3_testkit::Rng;

const ARCHS: [&str; 2] = ["sm_80", "sm_90"];

/// Elements, blocks, threads of a block.
#[derive(Clone, Copy)]
struct Size {
    n: usize,
    blocks: u32,
    threads: u32,
}

const fn size(n: usize, blocks: u32, threads: u32) -> Size {
    Size { n, blocks, threads }
}

/// For kernels of 256 threads.
const SIZES_256: [Size; 5] = [size(1, 1, 256), size(255, 1, 256), size(1000, 3, 256), size(4099, 2, 256), size(513, 5, 256)];
/// For kernels of any number of warps.
const SIZES_ANY: [Size; 5] = [size(1, 1, 32), size(97, 2, 64), size(1000, 3, 96), size(4099, 2, 512), size(700, 1, 1024)];

/// Every size and architecture with a few seeds.
fn each(sizes: &[Size], run: impl Fn(&Text, Config, Size) -> Run + Sync) {
    let texts: Vec<Arc<Text>> = ARCHS.iter().map(|arch| text("reductions", arch)).collect();
    for &size in sizes {
        for text in &texts {
            passes(SEEDS, |config| run(text, config, size));
        }
    }
}

/// Small integers: their sums are exact in f32, in any order.
fn integers(n: usize) -> Vec<i32> {
    let mut rng = Rng::new(n as u64);
    (0..n).map(|_| rng.below(17) as i32 - 8).collect()
}

fn floats(x: &[i32]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

/// What each block of a grid that strides over x sums.
fn strided(x: &[i32], size: Size) -> Vec<f32> {
    let mut sums = vec![0; size.blocks as usize];
    for (i, x) in x.iter().enumerate() {
        sums[i / size.threads as usize % size.blocks as usize] += x;
    }
    floats(&sums)
}

#[test]
fn partial_sums() {
    for (kernel, sizes, shared) in [
        ("sum_interleaved", SIZES_256, 1024),
        ("sum_sequential", SIZES_256, 1024),
        ("sum_shuffle", SIZES_ANY, 0),
        ("sum_groups", SIZES_ANY, 0),
    ] {
        each(&sizes, |text, config, size| {
            let gpu = Gpu::new(text, config);
            let x = integers(size.n);
            let partial = gpu.room::<f32>(size.blocks as usize);
            let shape = Shape::new(size.blocks, size.threads).shared(shared);
            gpu.run(kernel, shape, &args![gpu.upload(&floats(&x)), partial, size.n as u32])?;
            gpu.expect(kernel, partial, &strided(&x, size))
        });
    }
}

#[test]
fn sum_of_vectors() {
    each(&SIZES_256, |text, config, size| {
        let gpu = Gpu::new(text, config);
        let x = integers(size.n);
        let partial = gpu.room::<f32>(size.blocks as usize);
        gpu.run("sum_vector", Shape::new(size.blocks, 256), &args![gpu.upload(&floats(&x)), partial, size.n as u32])?;
        // Fours stride over the blocks, what is left belongs to block 0.
        let mut sums = vec![0; size.blocks as usize];
        for (i, x) in x.iter().enumerate() {
            let block = if i / 4 < size.n / 4 { i / 4 / 256 % size.blocks as usize } else { 0 };
            sums[block] += x;
        }
        gpu.expect("partial", partial, &floats(&sums))
    });
}

#[test]
fn whole_sums() {
    each(&SIZES_256, |text, config, size| {
        let gpu = Gpu::new(text, config);
        let x = integers(size.n);
        let sum: i32 = x.iter().sum();
        let shape = Shape::new(size.blocks, 256);
        let doubles: Vec<f64> = x.iter().map(|&x| f64::from(x) / 4.0).collect();
        let out = gpu.zeros::<f64>(1);
        gpu.run("sum_double", shape, &args![gpu.upload(&doubles), out, size.n as u32])?;
        gpu.expect("sum_double", out, &[f64::from(sum) / 4.0])?;

        // Twice: the counter is ready again after a launch.
        let (partial, count, out) = (gpu.room::<f32>(size.blocks as usize), gpu.zeros::<u32>(1), gpu.room::<f32>(1));
        let args = args![gpu.upload(&floats(&x)), partial, count, out, size.n as u32];
        for _ in 0..2 {
            gpu.run("sum_last_block", shape, &args)?;
            gpu.expect("sum_last_block", out, &[sum as f32])?;
            gpu.expect("count", count, &[0u32])?;
        }
        Ok(())
    });
    each(&SIZES_ANY, |text, config, size| {
        let gpu = Gpu::new(text, config);
        let mut rng = Rng::new(size.n as u64);
        let x: Vec<u32> = (0..size.n).map(|_| rng.u32()).collect();
        let address = gpu.upload(&x);
        let sum: u64 = x.iter().map(|&x| u64::from(x)).sum();
        let shape = Shape::new(size.blocks, size.threads);
        let out = gpu.zeros::<u64>(1);
        gpu.run("sum_atomic", shape, &args![address, out, size.n as u32])?;
        gpu.expect("sum_atomic", out, &[sum])?;
        let out = gpu.upload(&[7u32]);
        gpu.run("sum_redux", shape.shared(4), &args![address, out, size.n as u32])?;
        gpu.expect("sum_redux", out, &[(sum as u32).wrapping_add(7)])
    });
}

#[test]
fn smallest_and_largest() {
    each(&SIZES_ANY, |text, config, size| {
        let gpu = Gpu::new(text, config);
        let mut rng = Rng::new(size.n as u64);
        let x: Vec<i32> = (0..size.n).map(|_| rng.u32() as i32).collect();
        let shape = Shape::new(size.blocks, size.threads);
        let out = gpu.upload(&[i32::MAX, i32::MIN]);
        gpu.run("extremes", shape, &args![gpu.upload(&x), out, size.n as u32])?;
        gpu.expect("extremes", out, &[*x.iter().min().unwrap(), *x.iter().max().unwrap()])
    });
}

#[test]
fn histograms() {
    for (kernel, sizes, shared) in [("histogram", SIZES_256, 1024), ("histogram_match", SIZES_ANY, 0)] {
        each(&sizes, |text, config, size| {
            let gpu = Gpu::new(text, config);
            let mut rng = Rng::new(size.n as u64);
            // Half of the values are among 4: many lanes of a warp agree.
            let x: Vec<u8> =
                (0..size.n).map(|_| if rng.below(2) == 0 { 250 + rng.below(4) as u8 } else { rng.u32() as u8 }).collect();
            let mut bins = vec![5u32; 256];
            let out = gpu.upload(&bins);
            x.iter().for_each(|&x| bins[x as usize] += 1);
            let shape = Shape::new(size.blocks, size.threads).shared(shared);
            gpu.run(kernel, shape, &args![gpu.upload(&x), out, size.n as u32])?;
            gpu.expect(kernel, out, &bins)
        });
    }
}

#[test]
fn counts() {
    each(&SIZES_ANY, |text, config, size| {
        let gpu = Gpu::new(text, config);
        let mut rng = Rng::new(size.n as u64);
        let mut x = rng.normal_vec(size.n, 1.0);
        x[size.n / 2] = f32::NAN;
        let out = gpu.zeros::<u32>(1);
        let shape = Shape::new(size.blocks, size.threads);
        gpu.run("count_if", shape, &args![gpu.upload(&x), 0.25f32, out, size.n as u32])?;
        gpu.expect("count_if", out, &[x.iter().filter(|&&x| x > 0.25).count() as u32])
    });
}
