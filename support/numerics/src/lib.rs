//! Number formats, CPU dispatch, f32 matrix multiply and the small operations of a transformer layer.
//!
//! What the kernels of this workspace stand on. Nothing here knows what a transformer is.
//!
//! | module | what |
//! |---|---|
//! | [`formats`], [`e5m6`], [`convert`] | [`E4M3`], [`E5M2`], the 12-bit E5M6, [`bf16`]; single values and whole slices |
//! | [`view`] | [`MatRef`], [`MatMut`]: borrowed matrices with strides |
//! | [`cpu`], [`simd`] | which instruction set; vectors of 16 f32 over AVX-512, AVX2 + FMA, or plain Rust |
//! | [`par`] | loops on the caller's thread pool |
//! | [`gemm`] | f32 matrix product, packed weights, groups |
//! | [`ops`] | RMSNorm, SwiGLU, embedding, softmax, AdamW, norms and clipping, with their backwards |
//! | [`mod@reference`] | the same operations in f64, one obvious loop each: the oracle of the tests |
//!
//! # One result
//!
//! Every operation states one order of its floating-point operations and keeps it: **the bits do not depend on the instruction set,
//! on the number of threads, on strides, on packing, nor on how many other rows there are**. That is what makes
//! speculative decoding equal plain decoding, expert parallelism equal one rank, and a bug reproducible on another machine.
//! Fused multiply-adds are used everywhere, and where the hardware has none they are computed in software: right, and slow.
//!
//! # Example
//!
//! ```
//! use v3_numerics::{MatMut, MatRef, gemm, ops};
//!
//! // y = x W^T of normalised rows, with weights stored [out, in] and packed once.
//! let (tokens, inputs, outputs) = (5, 64, 32);
//! let x: Vec<f32> = (0..tokens * inputs).map(|i| (i % 7) as f32).collect();
//! let w: Vec<f32> = (0..outputs * inputs).map(|i| (i % 5) as f32 - 2.0).collect();
//! let packed = gemm::PackedB::new(MatRef::new(&w, outputs, inputs)?.t());
//!
//! let (mut normed, mut rstd) = (vec![0.0; x.len()], vec![0.0; tokens]);
//! ops::rms_norm(&x, &vec![1.0; inputs], 1e-6, &mut normed, &mut rstd)?;
//! let mut y = vec![0.0; tokens * outputs];
//! gemm::gemm_packed(MatRef::new(&normed, tokens, inputs)?, &packed, MatMut::new(&mut y, tokens, outputs)?, false)?;
//!
//! // A row alone gives the same bits as the row in a batch.
//! let mut last = vec![0.0; outputs];
//! let row = MatRef::new(&normed[4 * inputs..], 1, inputs)?;
//! gemm::gemm_packed(row, &packed, MatMut::new(&mut last, 1, outputs)?, false)?;
//! assert_eq!(last, y[4 * outputs..]);
//! # Ok::<(), v3_numerics::Error>(())
//! ```
//!
//! # Features and environment
//!
//! - `rayon` (default): loops run on the rayon pool that the calling thread belongs to. Without it everything runs on the calling thread.
//! - `V3_ISA=portable|avx2|avx512|avx512bf16` lowers the instruction set that is used; [`cpu::with_isa`] does so for one call.
//!
//! # Errors
//!
//! What a caller can get wrong is an [`Error`], found before anything is written. Only indexing outside of a view panics, as
//! indexing outside of a slice does.

pub mod convert;
pub mod cpu;
pub mod e5m6;
mod error;
pub mod formats;
pub mod gemm;
pub mod ops;
pub mod par;
pub mod reference;
mod scratch;
pub mod simd;
pub mod view;

pub use error::{Error, Result};
pub use formats::{E4M3, E5M2};
pub use half::bf16;
pub use view::{MatMut, MatRef};
