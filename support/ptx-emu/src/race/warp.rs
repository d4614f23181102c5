//! State of running blocks and warps.

use std::sync::Arc;

use super::Launch;
use super::clock::{Clock, Span, Time};

/// Lanes of a warp that know the same.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub mask: u32,
    /// What they have seen of others.
    pub clock: Arc<Clock>,
    /// All threads of the own block, up to this time. Kept outside the clock: a block barrier changes only this.
    pub block_time: Time,
    /// All lanes of the own warp, up to this time; at least `block_time`.
    pub warp_time: Time,
}

#[derive(Debug)]
pub(super) struct WarpState {
    /// Its number.
    pub uid: u32,
    /// Lanes that exist.
    pub live: u32,
    /// Disjoint, together `live`.
    pub groups: Vec<Group>,
}

#[derive(Debug)]
pub(super) struct Block {
    pub generation: u32,
    /// Number of the first warp.
    pub first: u32,
    pub warps: Vec<WarpState>,
    /// The warps of each block of its cluster.
    pub cluster: Arc<[Span]>,
    pub device: u32,
}

impl Block {
    pub fn new(launch: &Launch, _index: u64, first: u32, cluster: Arc<[Span]>) -> Self {
        let warps = (0..launch.warps_per_block)
            .map(|w| {
                let threads = (launch.threads_per_block - 32 * w).min(32);
                let live = u32::MAX >> (32 - threads);
                let group = Group { mask: live, clock: Arc::clone(&launch.base), block_time: 0, warp_time: 0 };
                WarpState { uid: first + w, live, groups: vec![group] }
            })
            .collect();
        Block { generation: 0, first, warps, cluster, device: launch.device }
    }

    /// Frees what an ended block holds.
    pub fn clear(&mut self) {
        self.warps = Vec::new();
        self.cluster = Arc::from([]);
    }
}
