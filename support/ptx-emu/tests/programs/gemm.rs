//! Matrix products: `mma_gemm.cu`, `wmma_gemm.cu`, `fp8_gemm_bugs.cu` without a bug, `attention.cu` without one.

use crate::args;
use crate::common::attention::Problem;
use crate::common::fp8_gemm::Product;
use crate::common::*;
use bytemuck::Pod;
use half::{bf16, f16};
use ptx_emu::{Config, Shape};
use v3_testkit::Rng;

/// Small integers, and their product A B^T with B [n, k].
struct Matrices {
    a: Vec<i32>,
    b: Vec<i32>,
    c: Vec<i32>,
}

fn matrices(m: usize, n: usize, k: usize, largest: i32) -> Matrices {
    let mut rng = Rng::new((m * 100 + n * 10 + k) as u64);
    let mut matrix = |n: usize| -> Vec<i32> { (0..n).map(|_| rng.below(2 * largest as usize + 1) as i32 - largest).collect() };
    let (a, b) = (matrix(m * k), matrix(n * k));
    let mut c = vec![0; m * n];
    for (at, c) in c.iter_mut().enumerate() {
        let (row, column) = (at / n * k, at % n * k);
        *c = (0..k).map(|l| a[row + l] * b[column + l]).sum();
    }
    Matrices { a, b, c }
}

fn all<T>(x: &[i32], f: impl Fn(i32) -> T) -> Vec<T> {
    x.iter().map(|&x| f(x)).collect()
}

fn bits16(x: i32) -> u16 {
    f16::from_f32(x as f32).to_bits()
}

/// One kernel with one size, on two architectures.
fn product<In: Pod, Out: Pod + PartialEq + std::fmt::Debug>(
    kernel: &str,
    [m, n, k]: [usize; 3],
    largest: i32,
    input: impl Fn(i32) -> In + Sync,
    output: impl Fn(i32) -> Out + Sync,
) {
    let Matrices { a, mut b, c } = matrices(m, n, k, largest);
    if kernel.ends_with("_nn") {
        b = (0..k * n).map(|at| b[at % n * k + at / n]).collect();
    }
    for arch in ["sm_80", "sm_90a"] {
        let text = text("mma_gemm", arch);
        passes(2, |config| {
            let gpu = Gpu::new(&text, config);
            let out = gpu.room::<Out>(m * n);
            let shape = Shape { grid: [n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1], ..Shape::new(1, 128) };
            let args = args![gpu.upload(&all(&a, &input)), gpu.upload(&all(&b, &input)), out, m as u32, n as u32, k as u32];
            gpu.run(kernel, shape, &args)?;
            gpu.expect(kernel, out, &all(&c, &output))
        });
    }
}

#[test]
fn products_of_bf16() {
    for size in [[1, 1, 8], [65, 70, 40], [64, 128, 72]] {
        product("mma_gemm_bf16_nt", size, 9, |x| bf16::from_f32(x as f32).to_bits(), |x| x as f32);
    }
}

#[test]
fn products_of_f16() {
    // c is rounded to f16 once, from an exact sum.
    for size in [[1, 8, 8], [66, 72, 48]] {
        product("mma_gemm_f16_nn", size, 20, bits16, bits16);
    }
    // Sums in f16: exact below 2048.
    for size in [[3, 5, 8], [70, 65, 56]] {
        product("mma_gemm_f16_sums", size, 5, bits16, bits16);
    }
}

#[test]
fn products_of_s8() {
    for size in [[1, 1, 16], [67, 66, 80]] {
        product("mma_gemm_s8", size, 127, |x| x as i8, |x| x);
    }
}

#[test]
fn products_by_wmma() {
    let text = text("wmma_gemm", "sm_80");
    for [m, n, k] in [[64, 64, 16], [64, 128, 48]] {
        let Matrices { a, b, c } = matrices(m, n, k, 30);
        passes(2, |config| {
            let gpu = Gpu::new(&text, config);
            let out = gpu.room::<f32>(m * n);
            let shape = Shape { grid: [n as u32 / 64, m as u32 / 64, 1], ..Shape::new(1, 128) };
            let args = args![gpu.upload(&all(&a, bits16)), gpu.upload(&all(&b, bits16)), out, m as u32, n as u32, k as u32];
            gpu.run("wmma_gemm_f16", shape, &args)?;
            gpu.expect("c", out, &all(&c, |x| x as f32))
        });
    }
}

#[test]
fn products_of_fp8() {
    let text = text("fp8_gemm_bugs", "sm_90a");
    for (m, n, k, blocks) in [(1, 8, 16, 1), (64, 64, 128, 2), (100, 72, 400, 3), (129, 136, 272, 2)] {
        passes(2, |config| fp8_gemm::run(&text, config, Product { m, n, k, blocks }));
    }
}

#[test]
fn attention_of_a_few_heads() {
    let text = text("attention", "sm_80");
    let shapes = [(2, 1, 1, false), (1, 65, 64, false), (2, 33, 200, true), (1, 130, 70, true)];
    for (heads, queries, keys, causal) in shapes {
        passes(2, |config: Config| attention::run(&text, config, Problem { heads, queries, keys, causal }));
    }
}
