//! Who knows what: the side of a check that accesses now.

use std::sync::Arc;

use super::INIT_ONLY;
use super::clock::{Clock, Lanes, Span, Time};
use super::types::Scope;

/// What some lanes of a warp knew at a time, their own past included.
#[derive(Clone, Debug)]
pub(super) struct Knowledge {
    pub clock: Arc<Clock>,
    /// Warps of the block.
    pub first: u32,
    pub warps: u32,
    /// All of the block, up to this time.
    pub block_time: Time,
    /// The warp.
    pub uid: u32,
    /// All of the warp, up to this time.
    pub warp_time: Time,
    /// The lanes; all ones for all that exist.
    pub mask: u32,
    pub time: Time,
    /// Stands for initialisations of mbarriers by the lanes, and for nothing else.
    pub init_only: bool,
}

impl Knowledge {
    /// What a clock says, of nobody's own.
    pub fn of_clock(clock: Arc<Clock>) -> Self {
        Knowledge { clock, first: 0, warps: 0, block_time: 0, uid: 0, warp_time: 0, mask: 0, time: 0, init_only: false }
    }

    /// Adds all this to a clock.
    pub fn add_to(&self, clock: &mut Clock) {
        if self.init_only {
            clock.add_lanes(Lanes { warp: self.uid | INIT_ONLY, mask: self.mask, time: self.time });
            return;
        }
        clock.join(&self.clock);
        if self.block_time != 0 {
            clock.add_block(Span { first: self.first, len: self.warps, time: self.block_time });
        }
        if self.warp_time > self.block_time {
            clock.add_lanes(Lanes { warp: self.uid, mask: u32::MAX, time: self.warp_time });
        }
        clock.add_lanes(Lanes { warp: self.uid, mask: self.mask, time: self.time });
    }

    /// As a view of an asynchronous operation that these lanes issued at that time.
    pub fn view<'a>(&'a self, cluster: &'a [Span], device: u32) -> View<'a> {
        View {
            clock: &self.clock,
            first: self.first,
            warps: self.warps,
            block_time: self.block_time,
            uid: self.uid,
            warp_time: self.warp_time,
            own_mask: self.mask,
            own_time: self.time,
            cluster,
            device,
        }
    }

    /// Whether this includes those lanes' past.
    pub fn covers_lanes(&self, uid: u32, mask: u32, time: Time) -> bool {
        self.view(&[], 0).uncovered(uid, mask, time, u32::MAX) == 0
    }
}

/// One who accesses memory, and what it knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub clock: &'a Clock,
    pub first: u32,
    pub warps: u32,
    pub block_time: Time,
    pub uid: u32,
    pub warp_time: Time,
    /// Lanes that know their own past, up to `own_time`: for a thread without end, for an asynchronous operation until its
    /// issue.
    pub own_mask: u32,
    pub own_time: Time,
    /// Warps of the blocks of the cluster.
    pub cluster: &'a [Span],
    pub device: u32,
}

impl View<'_> {
    /// The time up to which every lane of a warp is known.
    pub fn warp_known(&self, who: u32) -> Time {
        let mut time = self.clock.warp_time(who);
        if who.wrapping_sub(self.first) < self.warps {
            time = time.max(self.block_time);
            if who == self.uid {
                time = time.max(self.warp_time);
            }
        }
        time
    }

    /// Which of a warp's lanes are not known up to `time`. `own`: the accessing lanes, which know their own past.
    pub fn uncovered(&self, who: u32, lanes: u32, time: Time, own: u32) -> u32 {
        if time <= self.warp_known(who) {
            return 0;
        }
        let mut missing = lanes;
        for e in self.clock.lanes_of(who) {
            if e.time >= time {
                missing &= !e.mask;
            }
        }
        if who == self.uid && time <= self.own_time {
            missing &= !(self.own_mask & own);
        }
        missing
    }

    /// Whether all that a clock has seen is known.
    pub fn covers(&self, clock: &Clock) -> bool {
        self.clock.covers_ended(clock)
            && clock.blocks.iter().all(|s| s.first == self.first && s.time <= self.block_time || self.clock.covers_block(s))
            && clock.lanes.iter().all(|e| self.uncovered(e.warp, e.mask, e.time, 0) == 0)
            && self.clock.covers_sc(clock)
    }

    /// Whether one of a warp's lanes is known up to `time`.
    pub fn knows_any(&self, who: u32, lanes: u32, time: Time, own: u32) -> bool {
        lanes != 0 && self.uncovered(who, lanes, time, own) != lanes
    }

    /// Whether initialisations of mbarriers by these lanes are known up to `time` through `fence.mbarrier_init`.
    pub fn knows_init(&self, who: u32, lanes: u32, time: Time) -> bool {
        let mut missing = lanes;
        for e in self.clock.lanes_of(who | INIT_ONLY) {
            if e.time >= time {
                missing &= !e.mask;
            }
        }
        missing == 0
    }

    /// The narrowest scope that has both this one and a thread of that warp; `device` tells the warp's device.
    pub fn level(&self, who: u32, device: impl FnOnce(u32) -> Option<u32>) -> Scope {
        if who.wrapping_sub(self.first) < self.warps {
            Scope::Cta
        } else if self.cluster.iter().any(|s| who.wrapping_sub(s.first) < s.len) {
            Scope::Cluster
        } else if device(who) == Some(self.device) {
            Scope::Gpu
        } else {
            Scope::Sys
        }
    }
}
