//! Mixture of experts across ranks: routing, load balance, dispatch and combine, expert placement.
//!
//! In a mixture-of-experts layer a router sends each token to k of E expert networks, and the weighted sum of their outputs is the
//! token's result. With the experts spread over many ranks every layer becomes two all-to-all exchanges of uneven size, on
//! links of very different speed. This crate is that layer without the networks themselves, in the form that DeepSeek-V3 uses:
//!
//! - [`router`]: sigmoid or softmax affinities, group-limited selection with a bias, weights, and the backward pass;
//! - [`balance`]: the bias update that balances load without an auxiliary loss, the sequence-wise loss, load metrics;
//! - [`Plan`]: who sends which rows where; [`dispatch`](Plan::dispatch), [`combine`](Plan::combine), and the backward pass
//!   of each, which is the other's transpose;
//! - [`placement`]: which device holds which experts, and how many replicas of each.
//!
//! ```
//! use moe_dispatch::router::{RouterConfig, route};
//! use moe_dispatch::{Layout, Plan};
//! use v3_ranks::{Comm, WorldConfig, run_threads};
//!
//! // 8 experts on 4 ranks, 2 ranks a node, 2 experts a token.
//! let (config, layout) = (RouterConfig::new(8, 2), Layout::new(8, 4, 2)?);
//! run_threads(WorldConfig::new(4).ranks_per_node(2), |comm: Comm| -> moe_dispatch::Result<()> {
//!     // Three tokens of 16 columns on every rank.
//!     let (tokens, d) = (3, 16);
//!     let logits: Vec<f32> = (0..tokens * 8).map(|i| ((i * 7 + comm.rank()) % 11) as f32).collect();
//!     let x = vec![1.0f32; tokens * d];
//!     let routing = route(&config, &logits, &[0.0; 8])?;
//!
//!     let plan = Plan::new(&comm, &layout, &routing)?;
//!     let mut rows = plan.dispatch(&comm, &x, d)?;
//!     for local in 0..layout.slots_per_rank() {
//!         let own = &mut rows[plan.offsets()[local] * d..plan.offsets()[local + 1] * d];
//!         own.iter_mut().for_each(|x| *x *= 2.0); // the expert
//!     }
//!     let y = plan.combine(&comm, &rows, d, true)?;
//!     // The weights of a token add up to 1.
//!     assert!(y.iter().all(|y| (y - 2.0).abs() < 1e-6));
//!     Ok(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Shapes
//!
//! | | |
//! |---|---|
//! | rows of a rank's tokens | [T, d], T may differ between ranks and may be 0 |
//! | routing | indices and weights [T, k], logical expert ids, different within a token |
//! | expert-major rows of a rank | [R, d]: local expert by local expert, `offsets()` [local experts + 1]; inside an expert by source rank, then by token |
//! | combined rows | [T, d] |
//!
//! # The two hops
//!
//! A row crosses the slow links once per distinct node among its experts, however many experts it has there: it goes to a gateway, the rank at
//! the same place in that node, which passes it on over the fast links to each rank that needs it. With routing limited to m groups of experts and each
//! group on one node, a token crosses at most m times (m - 1 if its own node is among them). A gateway passes on what has arrived
//! ([`PlanOptions::chunk_rows`] at a time) while the rest is under way. On the way back a gateway adds what its node's ranks send
//! before it crosses the slow link. [`Plan::traffic`] and [`Plan::combine_traffic`] count rows and bytes.
//!
//! # Numerical policy
//!
//! A token's expert rows are added in a fixed binary tree whose leaves are the *logical* experts; absent experts are skipped, never added as
//! zero. A leaf is round(weight * row), then the additions follow, all in f32 and none fused. A rank adds, and sends, only whole nodes of that tree, so the
//! result has the same bits for every number of ranks, ranks per node, placement and replica, number of threads, and instruction
//! set. When the experts of a rank (or of a node) are an aligned block of a power of two, all it sends for a token is one row.
//!
//! # Features
//!
//! - `rayon` (default): loops over rows use the pool of the calling thread.
//! - `gpu`: kernels for GPUs with their host code, the module `gpu`: dispatch and combine between devices. Pure Rust: neither toolkit nor
//!   driver is needed, and on the emulator of `v3-gpu` they run anywhere.
//! - `cuda`: GPUs through the CUDA driver, which is loaded when it is first called.
//! - `nvcc`: compiles the kernels with CUDA's nvcc instead of embedding the PTX that comes along.
//!
//! # Speed
//!
//! On one rank nothing is sent: dispatch is one permutation of the rows, combine reads each expert row once and writes each result once.
//! Best of 60 runs, 2048 tokens of 256 f32 on one thread of a 2-core virtual machine with AVX-512 (Sapphire Rapids class), in microseconds:
//!
//! | | plan | dispatch | combine | its backward | in place |
//! |---|---|---|---|---|---|
//! | top 2 of 8 | 95 | 290 | 220 | 440 | 280 |
//! | top 8 of 64 | 350 | 1110 | 650 | 1750 | 1070 |
//!
//! Combine of top 8 reads 26 GB/s. `cargo bench -p moe-dispatch` measures it here.

pub mod balance;
mod combine;
pub mod cpu;
mod dispatch;
pub mod error;
mod exchange;
#[cfg(feature = "gpu")]
pub mod gpu;
mod in_flight;
mod kernels;
pub mod layout;
pub mod measure;
mod one_pass;
pub mod placement;
pub mod plan;
mod planning;
pub mod reference;
pub mod router;
mod sums;
mod tree;
pub mod tune;

pub use combine::{Combine, CombineBackward, CombineGradients, CombineOptions, Combined, Wire};
pub use cpu::Element;
pub use dispatch::{Dispatch, Dispatched, Pairs, Payload, PlannedDispatch, Rows};
pub use error::{Error, Result};
pub use layout::{Layout, ReplicaChoice};
pub use plan::{FanOut, Plan, PlanOptions, Traffic};
pub use planning::Planning;
pub use router::Routing;
/// The process groups that [`Plan`] exchanges rows over.
pub use v3_ranks as ranks;
