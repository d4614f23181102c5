//! When which lanes executed `fence.proxy.async`.

use std::collections::HashMap;

use super::clock::Time;

#[derive(Clone, Copy, Debug)]
struct Fence {
    time: Time,
    /// All ones for all lanes that exist.
    mask: u32,
    kinds: u8,
}

/// The proxy fences of all warps, oldest first. Those of ended blocks stay while global memory may still name their writes.
#[derive(Clone, Debug, Default)]
pub(super) struct Fences {
    of_warp: HashMap<u32, Vec<Fence>>,
}

/// The kind that covers global memory.
const GLOBAL: u8 = 1;

impl Fences {
    pub fn add(&mut self, warp: u32, mask: u32, kinds: u8, time: Time) {
        self.of_warp.entry(warp).or_default().push(Fence { time, mask, kinds });
    }

    /// A block has ended: fences of its shared memory no longer matter.
    pub fn end(&mut self, warp: u32) {
        if let Some(fences) = self.of_warp.get_mut(&warp) {
            fences.retain(|f| f.kinds & GLOBAL != 0);
            if fences.is_empty() {
                self.of_warp.remove(&warp);
            }
        }
    }

    pub fn clear(&mut self) {
        self.of_warp.clear();
    }

    /// Time of the latest fence by all of `lanes` together of a kind in `bit`, not later than `known`; 0 if none.
    pub fn latest(&self, warp: u32, lanes: u32, bit: u8, known: Time) -> Time {
        let Some(fences) = self.of_warp.get(&warp) else { return 0 };
        let from = fences.partition_point(|f| f.time <= known);
        fences[..from].iter().rev().find(|f| f.kinds & bit != 0 && lanes & !f.mask == 0).map_or(0, |f| f.time)
    }

    /// Whether `lane` executed such a fence after `after` at a time for which `known` holds.
    pub fn after(&self, warp: u32, lane: u32, bit: u8, after: Time, mut known: impl FnMut(Time) -> bool) -> bool {
        let Some(fences) = self.of_warp.get(&warp) else { return false };
        let from = fences.partition_point(|f| f.time <= after);
        // The earliest fence that serves is the most likely to be known.
        fences[from..].iter().find(|f| f.kinds & bit != 0 && f.mask >> lane & 1 != 0).is_some_and(|f| known(f.time))
    }
}
