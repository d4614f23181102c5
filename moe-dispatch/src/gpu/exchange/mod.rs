//! Dispatch and combine between devices that reach each other's memory, in two hops (kernels/ep_dispatch.cu, kernels/ep_combine.cu).
//!
//! A token's row goes once to each node that has experts for it, to the *gateway* there: the rank at the same place in that node (on its own
//! node, the token's rank). The gateway passes it on to the ranks of its node that have the experts. On the way back a rank adds its experts'
//! rows for a token, the gateway those of its node, the token's rank those of the nodes. A rank of the group is a device, or one of several on a
//! device, which then share one launch.
//!
//! ```no_run
//! use moe_dispatch::Layout;
//! use moe_dispatch::gpu::exchange::{ExchangeConfig, Group};
//!
//! # fn main() -> moe_dispatch::Result<()> {
//! // 256 experts on 8 GPUs, 4 a node; top-8, up to 4096 tokens a rank, rows of 7168 E4M3 with 56 scales behind, 7168 columns back.
//! let layout = Layout::new(256, 8, 4)?;
//! let config = ExchangeConfig::new(&layout, 8, 4096, 7168 + 224, 7168)?;
//! let devices = (0..8).map(v3_gpu::Device::cuda).collect::<Result<Vec<_>, _>>()?;
//! let mut group = Group::new(ExchangeConfig { sms: 20, ..config }, &devices, 4096 * 8)?;
//! # let (rows, experts, weights) = (vec![0u8; 7392], vec![0i32, 1, 2, 3, 4, 5, 6, 7], vec![0.125f32; 8]);
//! for rank in 0..8 {
//!     // Or kernels write through the addresses of `group.member(rank)`.
//!     group.write_tokens(rank, &rows, &experts, &weights)?;
//! }
//! group.dispatch()?;
//! // ... on each rank: permute `out_rows` by `out_experts`, run the experts, give combine their rows and the map to them ...
//! group.combine(true)?;
//! group.synchronize()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Channels and roles
//!
//! A channel is two blocks, so two multiprocessors, of each rank, with a share of the tokens and with rings of its own. The warps of one block
//! send over the slow hop and receive, as many of each as [`warps_of_first`] says for the rows that there are; those of the other forward (in combine:
//! add and forward). Each ring slot holds one row and has two flags, released and acquired at system scope: full, where the reader spins, and free,
//! where the writer does. No warp waits for one ring while it could serve another, so rings cannot lock each other, however few slots they have.
//!
//! # No host in between
//!
//! Everything has the size of the worst case and stands at a fixed address. A launch reads tokens, routings and the number of tokens from device
//! memory, synchronises with no host, allocates nothing and reads nothing back. Ring numbers and epochs live in the workspaces and
//! advance in the kernels; so launches can be captured in a graph and repeated.
//!
//! # What comes out of dispatch
//!
//! For each source rank and channel a segment of [`tokens_per_channel`](ExchangeConfig::tokens_per_channel) places, filled from the front in the order
//! of the source's tokens; `out_counts` says how far. A row is there once, however many of the rank's experts want it, with its choices: the
//! number of each of *this rank's* experts, or -1. Places behind the counts have -1 throughout. So the output is a batch of
//! [`places`](ExchangeConfig::places) tokens with choices masked out, in a fixed order, and permutation into expert-major order takes it as it is.
//! Combine wants of that permutation the expert row of each choice (`map`).
//!
//! # Numbers
//!
//! Sums are f32 in the tree of [`Plan::combine`](crate::Plan::combine) (a leaf is round(weight * row)); the row that a rank sends, the row that
//! a gateway sends, and the result are each rounded once to bf16, and so are those that stay on their rank or node.
//!
//! # What is refused
//!
//! Replicas, experts out of order, blocks of experts that are no power of two, and nodes that are not full or, if there are several, have no power of
//! two of ranks are [`Error::Unsupported`](crate::Error::Unsupported). An expert that does not exist or that a token names twice, a token too many, or a choice
//! without a row is left out, and [`Group::synchronize`] says so: a rank that stopped there would leave the others waiting for ever.

mod config;
mod group;
mod params;
mod roles;

pub use config::{ExchangeConfig, MAX_COMBINE_WARPS, MAX_EXPERTS, MAX_SIDE, MAX_SMS, MAX_TOP_K, MAX_WARPS, Workspace};
pub use group::{Copies, ExchangeKernels, Group, Member};
pub use params::{
    CombineOffsets, CombineParams, CombineRank, DispatchOffsets, DispatchParams, DispatchRank, MAX_HERE, MAX_RANKS, Shape,
};
pub use roles::warps_of_first;
