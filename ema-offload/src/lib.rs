//! Exponential moving average of model weights in host memory, updated behind the training step.
//!
//! The average of the weights over the last thousands of steps often evaluates like a model whose learning rate has already
//! decayed, so one wants it during training; but kept beside the weights it costs their size again in device memory, and a
//! pass over all of it per step. DeepSeek-V3 keeps it in host memory and updates it asynchronously. This crate is that:
//!
//! ```
//! use ema_offload::{Ema, EmaConfig, Warmup};
//!
//! let mut weights = vec![vec![0.0f32; 1000], vec![1.0; 10]];
//! let initial: Vec<&[f32]> = weights.iter().map(|t| t.as_slice()).collect();
//! let config = EmaConfig { decay: 0.99, warmup: Warmup::Ratio { offset: 10.0 }, ..EmaConfig::default() };
//! let ema = Ema::new(&initial, config)?;
//! for step in 1..=100 {
//!     weights.iter_mut().flatten().for_each(|w| *w += 0.01); // the optimiser
//!     let tensors: Vec<&[f32]> = weights.iter().map(|t| t.as_slice()).collect();
//!     ema.submit(step, &tensors)?; // copies, and returns; the worker does the rest
//! }
//! let averages = ema.averaged()?; // waits for the worker
//! assert!(averages[0][0] > 0.0 && averages[0][0] < weights[0][0]);
//! # Ok::<(), ema_offload::Error>(())
//! ```
//!
//! # The protocol
//!
//! - **Who copies:** the thread that calls [`Ema::submit`] (with the other threads of its rayon pool, feature `rayon`) copies
//!   the weights into a staging buffer. The worker thread, one per [`Ema`], does all the arithmetic.
//! - **When the optimiser may overwrite the weights:** as soon as `submit` returns.
//! - **How many snapshots may be in flight:** [`EmaConfig::max_in_flight`], the number of staging buffers. When all are
//!   queued or being averaged, `submit` waits for one, and the time is counted in [`Stats::blocked_seconds`]. No step is
//!   ever left out for lack of a buffer.
//! - Snapshots are averaged in the order of submission. [`Ema::averaged`], [`Ema::state`] and the swaps see everything
//!   submitted before.
//! - A panic of the worker is an [`Error::Worker`] from then on; dropping the `Ema` joins the worker.
//!
//! A buffer is moved from owner to owner under one lock, so nothing is shared while it is written; `tests/loom.rs` runs the
//! protocol through its interleavings.
//!
//! # What is computed
//!
//! For each element, `average = fma(rate, weight - average, average)` in f32: the difference is rounded, the product and the
//! sum together once. `rate = 1 - decay` ([`EmaConfig::rate`]), with an optional [`Warmup`]. The result is bit for bit that
//! of the synchronous [reference](mod@reference), on every instruction set, for any timing. bf16 weights are converted exactly on the way.
//!
//! # Memory and speed
//!
//! Host memory: 4 bytes a parameter for the average, and for each staging buffer 4 (f32) or 2 (bf16). An update moves 12
//! or 10 bytes a parameter, a snapshot 8 or 4. Both are bound by memory; see the README for figures. With [`Shard`]s, ranks
//! that hold the same weights divide the work.
//!
//! # Features
//!
//! `rayon` (default): snapshots are copied by all threads of the caller's pool. Nothing else changes.

mod config;
mod ema;
mod error;
mod kernel;
pub mod reference;
mod ring;
mod state;

/// The primitives of `ring`: those of a model checker take their place in `tests/loom.rs`.
mod sync {
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
}

pub use config::{EmaConfig, Shard, Warmup};
pub use ema::{Ema, Stats, Submission, Update};
pub use error::{Error, Result};
pub use half::bf16;
pub use kernel::{Element, lerp};
pub use state::State;
