//! What the kernels are given: the structs of kernels/ep_*.cuh, byte for byte.

use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;
use v3_gpu::DevicePtr;

/// Most ranks of a group.
pub const MAX_RANKS: usize = 64;
/// Most ranks of one launch.
pub const MAX_HERE: usize = 8;

/// What all ranks agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Shape {
    /// Of the group: nodes times ranks per node.
    pub ranks: u32,
    /// At most 32.
    pub ranks_per_node: u32,
    /// At most 32.
    pub nodes: u32,
    /// Of this launch, at most [`MAX_HERE`].
    pub ranks_here: u32,
    /// Pairs of blocks for each rank.
    pub channels: u32,
    /// max_tokens / channels, rounded up.
    pub tokens_per_channel: u32,
    /// Of a rank.
    pub max_tokens: u32,
    /// Of a ring, a power of two.
    pub slots: u32,
    /// Experts of a token, at most 16.
    pub top_k: u32,
    /// Base-2 logarithm of the experts of a rank.
    pub expert_shift: u32,
    /// Of a row of payload, a multiple of 16. For combine: 2 bytes a column.
    pub row_bytes: u32,
    /// Of what goes before a row in dispatch, a multiple of 16.
    pub header_bytes: u32,
    /// Zero.
    pub reserved: [u32; 4],
}

/// The memory of one rank that dispatch uses, on its own device. C channels, N nodes, L ranks a node, R ranks, T tokens per channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct DispatchRank {
    /// `[tokens, row_bytes]`.
    pub rows: DevicePtr,
    /// i32 `[tokens, top_k]`; negative: no expert.
    pub experts: DevicePtr,
    /// f32 `[tokens, top_k]`.
    pub weights: DevicePtr,
    /// One u32, at most max_tokens.
    pub tokens: DevicePtr,
    /// `[R, C, T, row_bytes]`.
    pub out_rows: DevicePtr,
    /// i32 `[R, C, T, top_k]`: which of this rank's experts, or -1.
    pub out_experts: DevicePtr,
    /// f32 `[R, C, T, top_k]`, 0 where there is no expert.
    pub out_weights: DevicePtr,
    /// u32 `[R, C, T]`: the source's number of the token.
    pub out_tokens: DevicePtr,
    /// u32 `[R, C]`: how many rows came.
    pub out_counts: DevicePtr,
    /// i32 `[N, C, T, L]`: for each row that passed here, its position among the rows for each rank of the node, or -1.
    pub forward_positions: DevicePtr,
    /// u32 `[N, C, 1 + L]`: how many passed, and how many went to each rank.
    pub forward_counts: DevicePtr,
    /// i32 `[max_tokens, N]`: the position of a token among those for a node, or -1.
    pub home_positions: DevicePtr,
    /// u32 `[N, C]`: tokens for each node.
    pub home_counts: DevicePtr,
    /// u32 `[4]`, zero at first: what was wrong and left out, as 1 + the number of a token: an expert that does not exist, an expert named
    /// twice, more tokens than there is room for; as 1 + the number of a place: a choice without a row.
    pub status: DevicePtr,
    /// Its number.
    pub rank: u32,
    /// Zero.
    pub reserved: u32,
}

/// Where the parts of dispatch are in a workspace, in bytes from its beginning. See kernels/ep_dispatch.cuh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct DispatchOffsets {
    /// Rows of the slow hop.
    pub slow_rows: u64,
    /// Their flags.
    pub slow_full: u64,
    /// Flags of the rings in other nodes.
    pub slow_free: u64,
    /// Rows of the fast hop.
    pub fast_rows: u64,
    /// Their flags.
    pub fast_full: u64,
    /// Flags of the rings in this node.
    pub fast_free: u64,
    /// Counts of rows for this node.
    pub slow_count: u64,
    /// Counts of rows for this rank.
    pub fast_count: u64,
    /// Epochs and numbers.
    pub state: u64,
    /// The ranks of each token.
    pub masks: u64,
    /// Positions of each token.
    pub positions: u64,
    /// Tokens for each node.
    pub lists: u64,
    /// Experts of each token.
    pub experts: u64,
    /// Zero.
    pub reserved: u64,
}

/// Parameters of `ep_dispatch` (kernels/ep_dispatch.cu).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct DispatchParams {
    /// What all ranks agree on.
    pub shape: Shape,
    /// The same for all ranks.
    pub offsets: DispatchOffsets,
    /// Of all ranks.
    pub workspaces: [DevicePtr; MAX_RANKS],
    /// Those of this launch.
    pub ranks: [DispatchRank; MAX_HERE],
}

/// The memory of one rank that combine uses, on its own device. What dispatch wrote has its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct CombineRank {
    /// bf16 `[expert_row_count, columns]`.
    pub expert_rows: DevicePtr,
    /// i32 `[R, C, T, top_k]`: the expert row of each choice of each row that came, or -1.
    pub map: DevicePtr,
    /// See [`DispatchRank`].
    pub out_experts: DevicePtr,
    /// See [`DispatchRank`]; null for weights of 1.
    pub out_weights: DevicePtr,
    /// See [`DispatchRank`].
    pub out_counts: DevicePtr,
    /// See [`DispatchRank`].
    pub forward_positions: DevicePtr,
    /// See [`DispatchRank`].
    pub forward_counts: DevicePtr,
    /// See [`DispatchRank`].
    pub home_positions: DevicePtr,
    /// See [`DispatchRank`].
    pub home_counts: DevicePtr,
    /// See [`DispatchRank`].
    pub tokens: DevicePtr,
    /// bf16 `[tokens, columns]`.
    pub combined: DevicePtr,
    /// See [`DispatchRank`].
    pub status: DevicePtr,
    /// Rows of `expert_rows`.
    pub expert_row_count: u32,
    /// Its number.
    pub rank: u32,
}

/// Where the parts of combine are in a workspace, in bytes from its beginning. See kernels/ep_combine.cuh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct CombineOffsets {
    /// Rows of the fast hop.
    pub fast_rows: u64,
    /// Their flags.
    pub fast_full: u64,
    /// Flags of the rings in this node.
    pub fast_free: u64,
    /// Rows of the slow hop.
    pub slow_rows: u64,
    /// Their flags.
    pub slow_full: u64,
    /// Flags of the rings in other nodes.
    pub slow_free: u64,
    /// Numbers.
    pub state: u64,
    /// Zero.
    pub reserved: u64,
}

/// Parameters of `ep_combine` (kernels/ep_combine.cu).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct CombineParams {
    /// What all ranks agree on.
    pub shape: Shape,
    /// The same for all ranks.
    pub offsets: CombineOffsets,
    /// Of all ranks.
    pub workspaces: [DevicePtr; MAX_RANKS],
    /// Those of this launch.
    pub ranks: [CombineRank; MAX_HERE],
}

const _: () = {
    assert!(size_of::<Shape>() == 64);
    assert!(offset_of!(Shape, slots) == 28);
    assert!(offset_of!(Shape, header_bytes) == 44);
    assert!(size_of::<DispatchRank>() == 120);
    assert!(offset_of!(DispatchRank, out_rows) == 32);
    assert!(offset_of!(DispatchRank, out_counts) == 64);
    assert!(offset_of!(DispatchRank, home_counts) == 96);
    assert!(offset_of!(DispatchRank, rank) == 112);
    assert!(size_of::<DispatchOffsets>() == 112);
    assert!(offset_of!(DispatchOffsets, state) == 64);
    assert!(size_of::<DispatchParams>() == 1648);
    assert!(offset_of!(DispatchParams, offsets) == 64);
    assert!(offset_of!(DispatchParams, workspaces) == 176);
    assert!(offset_of!(DispatchParams, ranks) == 688);
    assert!(size_of::<CombineRank>() == 104);
    assert!(offset_of!(CombineRank, out_weights) == 24);
    assert!(offset_of!(CombineRank, tokens) == 72);
    assert!(offset_of!(CombineRank, expert_row_count) == 96);
    assert!(size_of::<CombineOffsets>() == 64);
    assert!(offset_of!(CombineOffsets, state) == 48);
    assert!(size_of::<CombineParams>() == 1472);
    assert!(offset_of!(CombineParams, workspaces) == 128);
    assert!(offset_of!(CombineParams, ranks) == 640);
};
