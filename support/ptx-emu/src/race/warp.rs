//! State of running blocks and warps.

use std::sync::Arc;

use super::Launch;
use super::clock::{Clock, Span, Time, joined};
use super::location::Published;
use super::types::{AgentId, Scope};
use super::view::{Knowledge, View};

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

/// What strong reads have shown to some lanes, which only a fence makes theirs.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub mask: u32,
    /// The narrowest scope that includes both sides.
    pub level: Scope,
    /// Only a `fence.sc` makes it theirs.
    pub sc_only: bool,
    pub knowledge: Knowledge,
    /// Operations that the same wait showed complete.
    pub agents: Vec<AgentId>,
    /// Where it was read: an acquire operation there serves as well as a fence.
    pub from: Option<Place>,
}

/// The first warp of the block that owns the shared memory (all ones for global memory), and the address.
pub(super) type Place = (u32, u64);
/// A state of a location: address, stamp.
pub(super) type Version = (u64, u64);

#[derive(Debug)]
pub(super) struct WarpState {
    /// Its number.
    pub uid: u32,
    /// Lanes that exist.
    pub live: u32,
    /// Disjoint, together `live`.
    pub groups: Vec<Group>,
    /// What the lanes' release fences cover: the lanes, what a later strong write of theirs publishes.
    pub fences: Vec<(u32, Published)>,
    pub pending: Vec<Pending>,
    /// What lanes have read last, which need not be looked at again.
    pub polled: [(Version, u32); 4],
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
    pub fn new(launch: &Launch, first: u32, cluster: Arc<[Span]>) -> Self {
        let warps = (0..launch.warps_per_block)
            .map(|w| {
                let threads = (launch.threads_per_block - 32 * w).min(32);
                let live = u32::MAX >> (32 - threads);
                let group = Group { mask: live, clock: Arc::clone(&launch.base), block_time: 0, warp_time: 0 };
                WarpState {
                    uid: first + w,
                    live,
                    groups: vec![group],
                    fences: Vec::new(),
                    pending: Vec::new(),
                    polled: Default::default(),
                }
            })
            .collect();
        Block { generation: 0, first, warps, cluster, device: launch.device }
    }

    /// Frees what an ended block holds.
    pub fn clear(&mut self) {
        self.warps = Vec::new();
        self.cluster = Arc::from([]);
    }

    pub fn warp_count(&self) -> u32 {
        self.warps.len() as u32
    }

    /// A group as one who accesses memory.
    pub fn view<'a>(&'a self, warp: &'a WarpState, group: &'a Group) -> View<'a> {
        group.view(self.first, self.warp_count(), warp.uid, &self.cluster, self.device)
    }
}

impl WarpState {
    /// `mask` limited to lanes that exist, and all ones if it has them all.
    pub fn all_or(&self, mask: u32) -> u32 {
        let mask = mask & self.live;
        if mask == self.live { u32::MAX } else { mask }
    }

    /// What the lanes of `mask` know at `time`, one for each group that has some of them.
    pub fn knowledge(&self, first: u32, warps: u32, mask: u32, time: Time) -> impl Iterator<Item = (u32, Knowledge)> {
        self.groups.iter().filter(move |g| g.mask & mask != 0).map(move |g| {
            let lanes = g.mask & mask;
            let knowledge = Knowledge {
                clock: Arc::clone(&g.clock),
                first,
                warps,
                block_time: g.block_time,
                uid: self.uid,
                warp_time: g.warp_time,
                mask: self.all_or(lanes),
                time,
                init_only: false,
            };
            (lanes, knowledge)
        })
    }

    /// The lanes of `new.mask` know this from now on.
    pub fn set(&mut self, new: Group) {
        if new.mask == self.live {
            self.groups.clear();
            self.groups.push(new);
            return;
        }
        for g in &mut self.groups {
            g.mask &= !new.mask;
        }
        self.groups.retain(|g| g.mask != 0);
        let same =
            |g: &&mut Group| Arc::ptr_eq(&g.clock, &new.clock) && g.block_time == new.block_time && g.warp_time == new.warp_time;
        match self.groups.iter_mut().find(same) {
            Some(g) => g.mask |= new.mask,
            None => self.groups.push(new),
        }
    }

    /// The lanes of `mask` learn what `learn` gives each group for its clock (`None`: nothing new). `first`: the block's
    /// first warp.
    pub fn learn(&mut self, first: u32, mask: u32, mut learn: impl FnMut(&Group) -> Option<Arc<Clock>>) {
        let mut changed = Vec::new();
        for g in self.groups.iter().filter(|g| g.mask & mask != 0) {
            if let Some(clock) = learn(g) {
                let block_time = g.block_time.max(clock.block_time(first));
                let warp_time = g.warp_time.max(block_time).max(clock.warp_time(self.uid));
                changed.push(Group { mask: g.mask & mask, clock, block_time, warp_time });
            }
        }
        for g in changed {
            self.set(g);
        }
    }

    /// Remembers what a strong read has shown.
    pub fn pend(&mut self, new: Pending) {
        let k = &new.knowledge;
        let same = |p: &&mut Pending| {
            let q = &p.knowledge;
            (p.from, p.level, p.sc_only) == (new.from, new.level, new.sc_only)
                && (q.uid, q.mask, q.time) == (k.uid, k.mask, k.time)
                && Arc::ptr_eq(&q.clock, &k.clock)
        };
        // Lanes of one instruction read the same.
        if let Some(p) = self.pending.iter_mut().rev().take(PENDING_LOOKED_AT).find(same) {
            p.mask |= new.mask;
            return;
        }
        if self.pending.len() >= PENDING {
            self.join_pending();
        }
        self.pending.push(new);
    }

    /// Joins what the same fence makes known. An acquire operation on any location then stands for one on the location read:
    /// nothing is reported for it that should not be.
    fn join_pending(&mut self) {
        let mut joined: Vec<((u32, Scope, bool), Clock)> = Vec::new();
        let mut kept = Vec::new();
        for p in self.pending.drain(..) {
            if p.from.is_none() {
                kept.push(p);
                continue;
            }
            let sort = (p.mask, p.level, p.sc_only);
            let i = joined.iter().position(|j| j.0 == sort).unwrap_or_else(|| {
                joined.push((sort, Clock::default()));
                joined.len() - 1
            });
            p.knowledge.add_to(&mut joined[i].1);
        }
        self.pending = kept;
        self.pending.extend(joined.into_iter().map(|((mask, level, sc_only), clock)| Pending {
            mask,
            level,
            sc_only,
            knowledge: Knowledge::of_clock(Arc::new(clock)),
            agents: Vec::new(),
            from: Some(ANYWHERE),
        }));
    }
}

/// Entries of [`WarpState::pending`] at which they are joined, and among how many of the latest to look for an equal one.
const PENDING: usize = 512;
const PENDING_LOOKED_AT: usize = 16;
/// Stands for any location in [`Pending::from`].
pub(super) const ANYWHERE: Place = (0, u64::MAX);

impl Group {
    /// The group as one who accesses memory.
    pub fn view<'a>(&'a self, first: u32, warps: u32, uid: u32, cluster: &'a [Span], device: u32) -> View<'a> {
        View {
            clock: &self.clock,
            first,
            warps,
            block_time: self.block_time,
            uid,
            warp_time: self.warp_time,
            own_mask: u32::MAX,
            own_time: Time::MAX,
            cluster,
            device,
        }
    }
}

/// The clocks joined, those that are the same one counted once.
pub(super) fn join_distinct<'a>(clocks: impl Iterator<Item = &'a Arc<Clock>>) -> Option<Arc<Clock>> {
    let mut result: Option<Arc<Clock>> = None;
    let mut last: Option<&Arc<Clock>> = None;
    for c in clocks {
        if last.is_some_and(|l| Arc::ptr_eq(l, c)) {
            continue;
        }
        last = Some(c);
        result = Some(match result {
            None => Arc::clone(c),
            Some(r) => joined(&r, c),
        });
    }
    result
}
