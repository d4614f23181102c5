//! Tests of the detector: each rule by itself, and random traces against an uncompressed model.

mod asynchronous;
mod directed;
mod memory_order;
mod oracle;
mod random;
mod scale;

use super::*;

/// All lanes.
pub(super) const ALL: u32 = u32::MAX;

/// A detector with one launch of blocks on device 0.
pub(super) struct Bench {
    pub d: Detector,
    pub launch: LaunchId,
    pub blocks: Vec<BlockId>,
    site: u32,
}

pub(super) fn kind(outcome: Outcome) -> Option<RaceKind> {
    match outcome.map_err(|r| *r) {
        Ok(()) => None,
        Err(Report::Race(r)) => Some(r.kind),
        Err(other) => panic!("{other}"),
    }
}

/// The race that must have been found.
pub(super) fn race(outcome: Outcome) -> Race {
    match outcome.map_err(|r| *r) {
        Err(Report::Race(r)) => r,
        other => panic!("{other:?}"),
    }
}

pub(super) fn misused(outcome: Outcome) -> bool {
    matches!(outcome.map_err(|r| *r), Err(Report::Misuse(_)))
}

impl Bench {
    /// Blocks of `threads` threads, each a cluster of its own.
    pub fn new(blocks: u64, threads: u32) -> Self {
        Self::of_clusters(blocks, threads, 1)
    }

    pub fn of_clusters(blocks: u64, threads: u32, cluster: u64) -> Self {
        let mut d = Detector::new();
        let launch = d.launch_begin(0, blocks, threads, &[]).unwrap();
        let mut ids = Vec::new();
        for c in 0..blocks / cluster {
            let members: Vec<u64> = (c * cluster..(c + 1) * cluster).collect();
            ids.extend(d.cluster_begin(launch, &members).unwrap());
        }
        Bench { d, launch, blocks: ids, site: 0 }
    }

    pub fn warp(&self, block: usize, index: u32) -> Warp {
        Warp { block: self.blocks[block], index }
    }

    pub fn shared(&self, block: usize) -> Space {
        Space::Shared(self.blocks[block])
    }

    /// An access of `size` bytes a lane at `base + stride * lane`.
    pub fn strided(
        &mut self,
        warp: Warp,
        mask: u32,
        kind: AccessKind,
        sem: Sem,
        space: Space,
        base: u64,
        stride: u64,
        size: u32,
    ) -> Outcome {
        self.site += 1;
        let addresses = std::array::from_fn(|lane| base + stride * lane as u64);
        let access =
            Access { space, kind, sem, mask, addresses: &addresses, size, element: size.min(16), site: self.site, agree: None };
        self.d.access(warp, &access)
    }

    /// Each lane its own 4-byte word, in a row from `base`.
    pub fn read(&mut self, warp: Warp, mask: u32, space: Space, base: u64) -> Outcome {
        self.strided(warp, mask, AccessKind::Read, Sem::WEAK, space, base, 4, 4)
    }

    pub fn write(&mut self, warp: Warp, mask: u32, space: Space, base: u64) -> Outcome {
        self.strided(warp, mask, AccessKind::Write, Sem::WEAK, space, base, 4, 4)
    }

    /// One lane, one word of global memory.
    pub fn one(&mut self, warp: Warp, lane: u32, kind: AccessKind, sem: Sem, address: u64) -> Outcome {
        self.strided(warp, 1 << lane, kind, sem, Space::Global, address, 0, 4)
    }

    pub fn barrier(&mut self, block: usize) {
        let b = self.blocks[block];
        let warps = self.d.blocks[b.slot as usize].warp_count();
        let members: Vec<_> = (0..warps).map(|w| (w, ALL)).collect();
        self.d.barrier(b, &members, None).unwrap();
    }
}
