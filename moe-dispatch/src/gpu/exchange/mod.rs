//! Dispatch and combine between devices that reach each other's memory, in two hops (kernels/ep_dispatch.cu, kernels/ep_combine.cu).
//!
//! A token's row goes once to each node that has experts for it, to the *gateway* there: the rank at the same place in that node (on its own
//! node, the token's rank). The gateway passes it on to the ranks of its node that have the experts. On the way back a rank adds its experts'
//! rows for a token, the gateway those of its node, the token's rank those of the nodes. A rank of the group is a device, or one of several on a
//! device, which then share one launch.
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
