//! A SwiGLU feed-forward layer, forward and backward, in f32, bf16 and FP8, and how far the gradients are apart.
//!
//! `cargo run --release -p fp8-gemm --example ffn`

use fp8_gemm::linear::{Activation, Weight, dgrad, fprop, wgrad};
use fp8_gemm::quantize::{quantize_1x128, swiglu_quantize_1x128};
use fp8_gemm::{Precision, Result, ScalePolicy};
use v3_numerics::{MatMut, MatRef, ops};

const TOKENS: usize = 512;
const HIDDEN: usize = 256;
const INTER: usize = 384;

/// Reproducible values of a bell-like shape: the sum of four uniform ones.
fn values(len: usize, seed: u32, scale: f32) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| scale * (uniform() + uniform() + uniform() + uniform())).collect()
}

/// `y`, and the gradients of `x`, `gate_up` and `down`.
fn feed_forward(x: &[f32], gate_up: &[f32], down: &[f32], dy: &[f32], precision: Precision) -> Result<[Vec<f32>; 4]> {
    let gate_up = Weight::pack(gate_up, 2 * INTER, HIDDEN, precision)?;
    let down = Weight::pack(down, HIDDEN, INTER, precision)?;

    // Forward.
    let input = Activation::new(x, TOKENS, HIDDEN, precision)?;
    let mut pre = vec![0.0; TOKENS * 2 * INTER];
    fprop(&input, &gate_up, MatMut::new(&mut pre, TOKENS, 2 * INTER)?)?;
    let hidden = if precision == Precision::Fp8 {
        // SwiGLU and quantisation in one pass; the f32 product of gate and up is never stored.
        Activation::from_block_scaled(swiglu_quantize_1x128(MatRef::new(&pre, TOKENS, 2 * INTER)?, ScalePolicy::PowerOfTwo)?)?
    } else {
        let mut hidden = vec![0.0; TOKENS * INTER];
        ops::swiglu(&pre, INTER, &mut hidden)?;
        Activation::from_vec(hidden, TOKENS, INTER, precision)?
    };
    let mut y = vec![0.0; TOKENS * HIDDEN];
    fprop(&hidden, &down, MatMut::new(&mut y, TOKENS, HIDDEN)?)?;

    // Backward.
    let dy = MatRef::new(dy, TOKENS, HIDDEN)?;
    let mut d_down = vec![0.0; HIDDEN * INTER];
    wgrad(&hidden, dy, &mut d_down, precision)?;
    let mut d_hidden = vec![0.0; TOKENS * INTER];
    dgrad(dy, &down, MatMut::new(&mut d_hidden, TOKENS, INTER)?, false)?;
    let mut d_pre = vec![0.0; TOKENS * 2 * INTER];
    ops::swiglu_backward(&d_hidden, &pre, INTER, &mut d_pre)?;
    let d_pre = MatRef::new(&d_pre, TOKENS, 2 * INTER)?;
    let mut d_gate_up = vec![0.0; 2 * INTER * HIDDEN];
    wgrad(&input, d_pre, &mut d_gate_up, precision)?;
    let mut dx = vec![0.0; TOKENS * HIDDEN];
    dgrad(d_pre, &gate_up, MatMut::new(&mut dx, TOKENS, HIDDEN)?, false)?;

    println!(
        "{precision:>5}: weights {} bytes, kept activations {} bytes",
        gate_up.bytes() + down.bytes(),
        input.bytes() + hidden.bytes()
    );
    Ok([y, dx, d_gate_up, d_down])
}

/// The relative distance of two vectors.
fn distance(x: &[f32], y: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let apart: f64 = x.iter().zip(y).map(|(x, y)| square(x - y)).sum();
    (apart / y.iter().map(|y| square(*y)).sum::<f64>()).sqrt()
}

fn main() -> Result<()> {
    let x = values(TOKENS * HIDDEN, 1, 1.0);
    let gate_up = values(2 * INTER * HIDDEN, 2, 0.1);
    let down = values(HIDDEN * INTER, 3, 0.1);
    let dy = values(TOKENS * HIDDEN, 4, 0.01);

    let q = quantize_1x128(MatRef::new(&x, TOKENS, HIDDEN)?, ScalePolicy::F32);
    println!(
        "quantised 1x128: {} bytes instead of {}, off by {:.3} %",
        q.bytes(),
        4 * x.len(),
        100.0 * distance(&q.dequantize(), &x)
    );

    let exact = feed_forward(&x, &gate_up, &down, &dy, Precision::F32)?;
    for precision in [Precision::Bf16, Precision::Fp8] {
        let results = feed_forward(&x, &gate_up, &down, &dy, precision)?;
        for (name, (got, want)) in ["y", "dx", "d_gate_up", "d_down"].iter().zip(results.iter().zip(&exact)) {
            println!("       {name:<9} off by {:.3} %", 100.0 * distance(got, want));
        }
    }
    Ok(())
}
