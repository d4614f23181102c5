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
//! # What travels over which link, and when
//!
//! | | slow, between nodes | fast, inside a node |
//! |---|---|---|
//! | plan | once to each gateway: slots and weights of the tokens that go to its node | to each rank of the own node, and on from the gateway |
//! | dispatch, backward of combine | each row once for every *other node* among its experts | each row once for every rank there that has an expert of it ([`FanOut`]) |
//! | combine, backward of dispatch | from each gateway the sums of its node, one row where the node's experts are an aligned block | from each rank its sums, to the gateway or to a token of its own node |
//! | backward of combine, weights | one number for each choice | the same |
//!
//! The gateway of a rank in a node is the rank at the same place there. A row crosses the slow links once a node, however many experts it has on it: with routing limited
//! to m groups of experts and each group on one node, at most m times (m - 1 if its own node is among them). Rows leave in messages of
//! [`PlanOptions::chunk_rows`], to every destination in turn, each rank beginning with another, so that all ports are busy alike; what goes to the own node leaves at once
//! and waits for nobody. A gateway passes on what has arrived while the rest is under way, so that the fast hop adds the time of one message to the slow one and no more
//! as long as it is not the slower of the two; on the way back it adds what the ranks of its node send, message by message. With
//! [`PlanOptions::channels`] the tokens are cut into shares that do not wait for each other. Rows of a rank's own experts never travel.
//! [`Plan::traffic`] and [`Plan::combine_traffic`] count rows and bytes.
//!
//! # In flight
//!
//! [`Plan::dispatch_start`], [`Plan::combine_start`] and the backward passes return handles that own what they send. Each is a [task](v3_ranks::Task): a
//! [lane](v3_ranks::Lane) of the rank drives any number of them while the rank computes, and its ticket waits for the result.
//! [`Plan::start_dispatch`] plans and dispatches as one task, so that nothing has to be waited for in between.
//!
//! ```
//! use std::sync::Arc;
//! use moe_dispatch::{CombineOptions, Layout, Plan, PlanOptions, Routing, Rows};
//! use v3_ranks::{Comm, Lane, WorldConfig, run_threads};
//!
//! let layout = Layout::new(4, 2, 1)?;
//! run_threads(WorldConfig::new(2), |comm: Comm| -> moe_dispatch::Result<()> {
//!     let lane = Lane::spawn(&comm, "communication")?;
//!     let routing = Routing { tokens: 2, top_k: 2, indices: vec![0, 3, 1, 2], weights: vec![0.5; 4], scores: vec![] };
//!     let x = Rows { data: vec![1.0f32, 2.0, 3.0, 4.0], row_len: 2 };
//!     let ticket = lane.submit(Plan::start_dispatch(&comm, &layout, &routing, PlanOptions::default(), x)?);
//!     // ... compute something else ...
//!     let (plan, dispatched) = ticket.finish(&comm)?;
//!     let ticket = lane.submit(plan.combine_start(&comm, dispatched.rows.data, 2, CombineOptions::default())?);
//!     // ... and something else again ...
//!     assert_eq!(ticket.finish(&comm)?.rows, [1.0, 2.0, 3.0, 4.0]);
//!     Ok(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! All ranks *start* the same exchanges in the same order. On a lane, or polled together, they may end in any order; without one, `finish` drives that exchange
//! alone, so ranks that hold several finish them in the same order. Tags whose upper byte is 0x6d belong to this crate. The calls that wait ([`Plan::new`], [`Plan::dispatch`], ...) are a start and a finish.
//!
//! # Worst-case size
//!
//! With [`PlanOptions::capacity`] = n tokens a rank every row has a fixed place: local expert e has room for n rows from each rank, those from rank s beginning `s * n`
//! behind its offset. Then [`Plan::start_dispatch`] exchanges no counts: each message says which rows it brings, and they are laid out as they come. A
//! rank's expert rows take `slots_per_rank * round_up(ep_size * n, alignment)` rows of memory, whatever comes; [`Plan::source_counts`] says what is used.
//!
//! # Tuning
//!
//! [`tune`](tune::tune) measures channels and chunk sizes over any group, [`PlanOptions::tuned`] reads what it has stored: `cargo run -p moe-dispatch --example tune FILE`.
//!
//! # Numerical policy
//!
//! A token's expert rows are added in a fixed binary tree whose leaves are the *logical* experts; absent experts are skipped, never added as
//! zero. A leaf is round(weight * row), then the additions follow, all in f32 and none fused. A rank adds, and sends, only whole nodes of that tree, so the
//! result has the same bits for every number of ranks, ranks per node, placement and replica, number of threads, and instruction
//! set. When the experts of a rank (or of a node) are an aligned block of a power of two, all it sends for a token is one row.
//!
//! With [`Wire::Bf16`] sums are rounded to bf16 (nearest even) where they leave a rank and where they leave a node, whether they travel or not: the result depends on the
//! layout, not on where a token is at home, and equals [`reference::dispatch::combine_rounded`] bit for bit. Of a sum of k products p it is no farther from the exact
//! one than `((1 + 2^-8)^2 (1 + 2^-24)^k - 1)` times the sum of |p|; bf16 results add one more factor of `1 + 2^-8`.
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
//! 4096 tokens of 7168 bf16, top 8, on 1 and 2 threads of a 2-core virtual machine with AVX-512 (Sapphire Rapids class):
//!
//! | | against | 1 thread | 2 threads |
//! |---|---|---|---|
//! | permutation ([`cpu::Local`]) | a copy past the caches with the same reads and writes | 1.00 | 1.01 |
//! | combination ([`cpu::Local`]) | reading as fast as it goes | 0.92 | 0.93 |
//! | dispatch between 2 ranks of a process | filling memory past the caches | 0.38 | 0.73 |
//!
//! `cargo xtask bench moe-dispatch` measures them beside their ceilings, `cargo bench -p moe-dispatch` smaller shapes.

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

pub use combine::{Combine, CombineBackward, CombineBackwardRows, CombineGradients, CombineOptions, CombineRowGradients};
pub use combine::{Combined, WeightGradients, Wire};
pub use cpu::Element;
pub use dispatch::{Dispatch, Dispatched, Pairs, Payload, PlannedDispatch, Rows};
pub use error::{Error, Result};
pub use layout::{Layout, ReplicaChoice};
pub use plan::{FanOut, Plan, PlanOptions, Traffic};
pub use planning::Planning;
pub use router::Routing;
/// The process groups that [`Plan`] exchanges rows over.
pub use v3_ranks as ranks;
