//! Linear layers in each precision, and the quantisers.

use super::{Operation, bytes, f32_flops, narrow_flops, values};
use crate::ceilings::Ceiling;
use fp8_gemm::linear::{Activation, Weight, dgrad, fprop, fprop_grouped, wgrad};
use fp8_gemm::quantize::{quantize_1x128, quantize_128x128, retile_128x1, swiglu_quantize_1x128};
use fp8_gemm::{Precision, ScalePolicy};
use std::hint::black_box;
use v3_numerics::{MatMut, MatRef};

/// Projections of the real model for 128 and for 4096 tokens, a square, and the small model's.
const PRODUCTS: [(usize, usize, usize); 5] =
    [(128, 2112, 7168), (128, 7168, 2048), (4096, 2112, 1024), (1024, 1024, 1024), (2048, 256, 256)];

/// Copies of a weight that decoding walks through, so that none is still in a core's cache.
const COLD: usize = 8;

pub fn operations(_threads: usize) -> Vec<Operation> {
    let mut all = vec![];
    for precision in [Precision::F32, Precision::Bf16, Precision::Fp8] {
        for (m, n, k) in PRODUCTS {
            all.push(product(precision, m, n, k));
        }
        let (m, n, k) = (2048, 1024, 1024);
        all.push(of(precision, ["dgrad f32", "dgrad bf16", "dgrad fp8"], m, n, k, move || {
            let (w, dy, mut dx) = (Weight::pack(&values(n * k, 1), n, k, precision)?, values(m * n, 2), vec![0.0; m * k]);
            Ok(move || dgrad(MatRef::new(&dy, m, n)?, &w, MatMut::new(&mut dx, m, k)?, false))
        }));
        all.push(of(precision, ["wgrad f32", "wgrad bf16", "wgrad fp8"], m, n, k, move || {
            let (x, dy, mut dw) = (Activation::new(&values(m * k, 1), m, k, precision)?, values(m * n, 2), vec![0.0; n * k]);
            Ok(move || wgrad(&x, MatRef::new(&dy, m, n)?, &mut dw, precision))
        }));
        all.push(experts(precision));
    }
    for precision in [Precision::Bf16, Precision::Fp8] {
        all.push(decode(precision));
    }
    all.extend(quantisers());
    all
}

fn of<F>(
    precision: Precision,
    names: [&'static str; 3],
    m: usize,
    n: usize,
    k: usize,
    setup: impl FnOnce() -> Result<F, super::AnyError> + Send + 'static,
) -> Operation
where
    F: FnMut() -> fp8_gemm::Result<()> + Send + 'static,
{
    let flops = 2.0 * (m * n * k) as f64;
    let (name, work) = match precision {
        Precision::F32 => (names[0], f32_flops(flops)),
        Precision::Bf16 => (names[1], narrow_flops(flops)),
        Precision::Fp8 => (names[2], narrow_flops(flops)),
    };
    Operation::new(name, format!("{m}x{n}x{k}"), work, setup)
}

fn product(precision: Precision, m: usize, n: usize, k: usize) -> Operation {
    of(precision, ["fprop f32", "fprop bf16", "fprop fp8"], m, n, k, move || {
        let w = Weight::pack_inference(&values(n * k, 1), n, k, precision)?;
        let (x, mut y) = (Activation::new(&values(m * k, 2), m, k, precision)?, vec![0.0; m * n]);
        Ok(move || fprop(&x, &w, MatMut::new(&mut y, m, n)?))
    })
}

fn experts(precision: Precision) -> Operation {
    let (groups, m, n, k) = (8, 2048, 1024, 1024);
    of(precision, ["fprop f32, 8 experts", "fprop bf16, 8 experts", "fprop fp8, 8 experts"], m, n, k, move || {
        let weights = (0..groups).map(|g| Weight::pack_inference(&values(n * k, g as u64), n, k, precision));
        let weights = weights.collect::<fp8_gemm::Result<Vec<_>>>()?;
        // Uneven, as routing is: shares of 1 to 8.
        let offsets: Vec<usize> = (0..=groups).map(|g| m * g * (g + 1) / (groups * (groups + 1))).collect();
        let (x, mut y) = (Activation::new(&values(m * k, 9), m, k, precision)?, vec![0.0; m * n]);
        Ok(move || fprop_grouped(&x, &offsets, &weights, MatMut::new(&mut y, m, n)?))
    })
}

fn decode(precision: Precision) -> Operation {
    let (n, k) = (2112, 7168);
    let (name, size) =
        if precision == Precision::Fp8 { ("decode fp8, cold weights", 1) } else { ("decode bf16, cold weights", 2) };
    Operation::new(name, format!("1x{n}x{k}"), bytes(size * n * k, Ceiling::Read), move || {
        let w = values(n * k, 1);
        let weights = (0..COLD).map(|_| Weight::pack_inference(&w, n, k, precision)).collect::<fp8_gemm::Result<Vec<_>>>()?;
        let (x, mut y) = (Activation::new(&values(k, 2), 1, k, precision)?, vec![0.0; n]);
        let mut next = 0;
        Ok(move || {
            next = (next + 1) % COLD;
            fprop(&x, &weights[next], MatMut::new(&mut y, 1, n)?)
        })
    })
}

fn quantisers() -> Vec<Operation> {
    let (rows, cols) = (4096, 7168);
    let shape = format!("{rows}x{cols}");
    // Each f32 is read, a byte written, and a scale for every 128 or 16384 of them.
    let work = |out_of: usize| bytes(rows * cols * 5 + rows * cols / out_of * 4, Ceiling::Copy);
    let half = cols / 2;
    vec![
        Operation::new("quantise 1x128", &*shape, work(128), move || {
            let x = values(rows * cols, 1);
            Ok(move || MatRef::new(&x, rows, cols).map(|x| drop(black_box(quantize_1x128(x, ScalePolicy::F32)))))
        }),
        Operation::new("quantise 128x128", &*shape, work(128 * 128), move || {
            let x = values(rows * cols, 1);
            Ok(move || MatRef::new(&x, rows, cols).map(|x| drop(black_box(quantize_128x128(x, ScalePolicy::F32)))))
        }),
        Operation::new("swiglu and quantise 1x128", format!("{rows}x{half}"), bytes(rows * half * 9, Ceiling::Copy), move || {
            let x = values(rows * cols, 1);
            Ok(move || -> Result<(), super::AnyError> {
                black_box(swiglu_quantize_1x128(MatRef::new(&x, rows, cols)?, ScalePolicy::F32)?);
                Ok(())
            })
        }),
        Operation::new("retile 1x128 to 128x1", &*shape, bytes(rows * cols * 2, Ceiling::Copy), move || {
            let x = quantize_1x128(MatRef::new(&values(rows * cols, 1), rows, cols)?, ScalePolicy::PowerOfTwo);
            Ok(move || -> Result<(), super::AnyError> {
                black_box(retile_128x1(&x, ScalePolicy::PowerOfTwo));
                Ok(())
            })
        }),
    ]
}
