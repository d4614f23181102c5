//! Fine-grained FP8, bf16 and f32 matrix multiplication with 128-wide promotion, grouped by expert.
//!
//! DeepSeek-V3 was trained with most of its linear layers in FP8. What made that work is fine-grained scaling: activations and
//! gradients in E4M3 with one scale for each 128 values of a row (1x128), weights with one for each 128 by 128 values, and partial sums
//! that are promoted to f32 every 128 along k. This crate is that arithmetic for CPUs: the quantisers, the products of a linear
//! layer and of its gradients, dense and grouped by expert, and the same products in bf16 and f32.
//!
//! On a CPU "FP8" means operands that are exactly E4M3, products and sums in f32: what 14-bit accumulators of some tensor cores lose is not
//! imitated. It saves memory, a byte a value, and shows what training in FP8 does to a model; it does not save time against bf16.
//!
//! # Example
//!
//! ```
//! use fp8_gemm::linear::{Activation, Weight, dgrad, fprop, wgrad};
//! use fp8_gemm::Precision;
//! use v3_numerics::{MatMut, MatRef};
//!
//! let (tokens, out_features, in_features) = (3, 4, 256);
//! let x = vec![0.5; tokens * in_features];
//! let w = vec![0.25; out_features * in_features]; // [out, in], as published
//! let dy = vec![1.0; tokens * out_features];
//!
//! let weight = Weight::pack(&w, out_features, in_features, Precision::Fp8)?;
//! let input = Activation::new(&x, tokens, in_features, Precision::Fp8)?;
//!
//! let mut y = vec![0.0; tokens * out_features];
//! fprop(&input, &weight, MatMut::new(&mut y, tokens, out_features)?)?; // y = x W^T
//! assert!((y[0] - 32.0).abs() < 1e-4);
//!
//! let dy = MatRef::new(&dy, tokens, out_features)?;
//! let mut dx = vec![0.0; tokens * in_features];
//! dgrad(dy, &weight, MatMut::new(&mut dx, tokens, in_features)?, false)?; // dx = dy W
//! assert!((dx[0] - 1.0).abs() < 1e-6);
//!
//! let mut dw = vec![0.0; out_features * in_features];
//! wgrad(&input, dy, &mut dw, Precision::Fp8)?; // dw += dy^T x
//! assert!((dw[0] - 1.5).abs() < 1e-6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is here
//!
//! | | |
//! |---|---|
//! | [`linear`] | the three products of a linear layer in a [`Precision`], dense and by expert: what a model uses |
//! | [`gemm`] | products of any two [`Operand`]s (NT, NN, TN by transposing views), packed, M-grouped contiguous and masked, K-grouped; f32 or bf16 output, accumulation |
//! | [`quantize`] | 1x128, 128x1, 128x128, transposed along tokens, fused with SwiGLU; re-tiling; back to f32 |
//! | [`BlockScaled`] | a matrix of E4M3 with its scales, and views of it; UE8M0 scales |
//! | [`E5m6Rows`] | 12-bit rows, for activations that are kept for the weight gradient |
//! | `gpu` (feature `gpu`) | quantisers and the FP8 product as GPU kernels, and their host side |
//! | [`mod@reference`] | all of it again, obvious and slow: what the tests compare with, bit by bit |
//!
//! # Numbers
//!
//! Scales follow one of three rules ([`ScalePolicy`]): `max(amax, 1e-4) / 448`; the power of two above that; or TransformerEngine's. The order of
//! summation of every product is stated in [`gemm`] and is the same on every instruction set, for every number of threads and
//! rows, packed or not, grouped or not. **A row's result depends on that row and the weights alone**, to the bit.
//!
//! # Backends
//!
//! On CPUs one backend, `f32-fma`: bf16 and E4M3 operands are decoded to f32 in blocks that stay in the caches, and multiplied by f32 multiply-adds on AVX-512,
//! AVX2 or plain Rust ([`v3_numerics::cpu::Isa`]; `V3_ISA` lowers it). A product of two bf16 or two E4M3 values is exact in f32, so
//! the bits agree between instruction sets. Processors whose bf16 dot product runs at twice the rate of f32 would gain from it; it sums
//! pairs in another order and would be a backend of its own name.
//!
//! The kernels of the module `gpu` run on the back ends of `v3-gpu`, which have names of their own: `cuda` (feature `cuda`) and `emulator`, which executes
//! the kernels' PTX on the CPU and is what the tests use. Feature `nvcc` compiles the kernels instead of embedding the PTX that comes along.
//!
//! # Measured
//!
//! One thread of a 2-core virtual machine of the Sapphire Rapids class (AVX-512), whose f32 multiply-adds reach 240 GFLOP/s;
//! 2026-11-23, medians of `cargo xtask bench fp8-gemm`. GFLOP/s, rounding, quantising, decoding and re-tiling of the activations
//! and gradients included, weights prepared:
//!
//! | | f32 | bf16 | fp8 |
//! |---|---|---|---|
//! | fprop, 2048 x 256 x 256 | 198 | 194 | 186 |
//! | dgrad, 2048 x 1024 x 1024 | 179 | 181 | 170 |
//! | wgrad, 2048 x 1024 x 1024 | 180 | 162 | 140 |
//!
//! # Threads
//!
//! Work goes to the rayon pool of the caller (feature `rayon`, on by default) or stays on the calling thread; nothing here builds a pool. Small products
//! stay on the calling thread in any case.

mod cpu;
mod driver;
mod error;
pub mod gemm;
#[cfg(feature = "gpu")]
pub mod gpu;
mod kept;
pub mod linear;
mod operand;
mod packed;
mod precision;
pub mod quantize;
pub mod reference;
mod scaled;
mod source;

pub use error::{Error, Result};
pub use kept::E5m6Rows;
pub use operand::{Operand, Output};
pub use packed::Packed;
pub use precision::Precision;
pub use scaled::{BLOCK, Block, BlockScaled, BlockScaledRef, E4M3_MAX, Scale, ScalePolicy};
pub use v3_numerics::{MatMut, MatRef};
