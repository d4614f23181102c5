//! Barriers, fences and synchronisation objects.

use std::sync::Arc;

use super::clock::{Clock, Lanes, Memo, Time, joined};
use super::location::Published;
use super::types::Observe;
use super::view::{Knowledge, View};
use super::warp::{ANYWHERE, Block, Group, Pending, Place, WarpState, join_distinct};
use super::{BlockId, Detector, FenceOrder, LaunchId, Outcome, ProxyFence, Scope, SyncVar, Warp, misuse};

impl SyncVar {
    /// Adds what is released.
    pub(super) fn add(&mut self, knowledge: &Knowledge) {
        let clock =
            self.clock.get_or_insert_with(|| if knowledge.init_only { Arc::default() } else { Arc::clone(&knowledge.clock) });
        knowledge.add_to(Arc::make_mut(clock));
        self.memo = None;
    }

    /// What a group of a block that starts at warp `first` knows after it has learnt this; `None`: nothing new.
    fn learnt_by(&mut self, group: &Group, view: &View<'_>) -> Option<Arc<Clock>> {
        let clock = self.clock.as_ref()?;
        if let Some(memo) = &self.memo
            && memo.block == view.first
            && memo.block_time == group.block_time
            && Arc::ptr_eq(&memo.before, &group.clock)
        {
            return Some(Arc::clone(&memo.after));
        }
        let after = learnt(group, view, clock)?;
        self.memo = Some(Memo {
            block: view.first,
            block_time: group.block_time,
            before: Arc::clone(&group.clock),
            after: Arc::clone(&after),
        });
        Some(after)
    }
}

/// The group's clock with what `clock` adds; `None`: nothing.
pub(super) fn learnt(group: &Group, view: &View<'_>, clock: &Arc<Clock>) -> Option<Arc<Clock>> {
    if view.covers(clock) {
        return None;
    }
    let mut new = joined(&group.clock, clock);
    if new.has_old(view.first, view.warps, group.block_time) {
        Arc::make_mut(&mut new).prune(view.first, view.warps, group.block_time);
    }
    Some(new)
}

impl Detector {
    fn block_and_warp(&mut self, warp: Warp) -> Outcome<(&mut Block, usize)> {
        let b = self.block_index(warp.block)?;
        let block = &mut self.blocks[b];
        if (warp.index as usize) < block.warps.len() {
            Ok((block, warp.index as usize))
        } else {
            misuse("no such warp in its block")
        }
    }

    /// A barrier of threads of one block completes: what any of `members` did, and what was released into `arrived` by threads
    /// that do not wait, is now known to all of `members` (warp index in the block, lanes; each warp once).
    ///
    /// # Errors
    /// A block or warp that does not run; events beyond what can be numbered.
    pub fn barrier(&mut self, block: BlockId, members: &[(u32, u32)], arrived: Option<&SyncVar>) -> Outcome {
        let now = self.tick()?;
        let b = self.block_index(block)?;
        let block = &mut self.blocks[b];
        let (first, count) = (block.first, block.warp_count());
        let mut whole_warps = 0;
        for &(w, mask) in members {
            match block.warps.get(w as usize) {
                Some(warp) if mask & warp.live == warp.live => whole_warps |= 1u32 << w,
                Some(_) => {}
                None => return misuse("no such warp in its block"),
            }
        }
        let clocks = members
            .iter()
            .flat_map(|&(w, mask)| block.warps[w as usize].groups.iter().filter(move |g| g.mask & mask != 0))
            .map(|g| &g.clock)
            .chain(arrived.and_then(|a| a.clock.as_ref()));
        let Some(mut clock) = join_distinct(clocks) else { return Ok(()) };
        if whole_warps.count_ones() == count {
            if clock.has_old(first, count, now) {
                Arc::make_mut(&mut clock).prune(first, count, now);
            }
            for warp in &mut block.warps {
                let mask = warp.live;
                let new = Group { mask, clock: Arc::clone(&clock), block_time: now, warp_time: now };
                warp.set(new);
            }
            return Ok(());
        }
        let mut block_time = clock.block_time(first);
        let joined = Arc::make_mut(&mut clock);
        for &(w, mask) in members {
            let warp = &block.warps[w as usize];
            for g in warp.groups.iter().filter(|g| g.mask & mask != 0) {
                block_time = block_time.max(g.block_time);
                if g.warp_time > g.block_time && mask & warp.live != warp.live {
                    joined.add_lanes(Lanes { warp: warp.uid, mask: u32::MAX, time: g.warp_time });
                }
            }
            joined.add_lanes(Lanes { warp: warp.uid, mask: warp.all_or(mask), time: now });
        }
        joined.prune(first, count, block_time);
        for &(w, mask) in members {
            let warp = &mut block.warps[w as usize];
            let mask = mask & warp.live;
            let warp_time = clock.warp_time(warp.uid).max(block_time);
            warp.set(Group { mask, clock: Arc::clone(&clock), block_time, warp_time });
        }
        Ok(())
    }

    /// `bar.warp.sync` with these lanes completes.
    ///
    /// # Errors
    /// As [`Detector::barrier`].
    pub fn warp_barrier(&mut self, warp: Warp, mask: u32) -> Outcome {
        let now = self.tick()?;
        let (block, w) = self.block_and_warp(warp)?;
        let (first, count) = (block.first, block.warp_count());
        let state = &mut block.warps[w];
        let mask = mask & state.live;
        let concerned = || state.groups.iter().filter(|g| g.mask & mask != 0);
        let Some(mut clock) = join_distinct(concerned().map(|g| &g.clock)) else { return Ok(()) };
        let block_time = concerned().map(|g| g.block_time).fold(clock.block_time(first), Time::max);
        let mut warp_time = concerned().map(|g| g.warp_time).fold(block_time, Time::max);
        if mask == state.live {
            warp_time = now;
        } else {
            let joined = Arc::make_mut(&mut clock);
            joined.add_lanes(Lanes { warp: state.uid, mask, time: now });
            joined.prune(first, count, block_time);
            warp_time = warp_time.max(joined.warp_time(state.uid));
        }
        state.set(Group { mask, clock, block_time, warp_time });
        Ok(())
    }

    /// Releases all that these lanes did and know.
    ///
    /// # Errors
    /// As [`Detector::barrier`].
    pub fn release(&mut self, warp: Warp, mask: u32, into: &mut SyncVar) -> Outcome {
        let now = self.tick()?;
        let (block, w) = self.block_and_warp(warp)?;
        for (_, knowledge) in block.warps[w].knowledge(block.first, block.warp_count(), mask, now) {
            into.add(&knowledge);
        }
        Ok(())
    }

    /// Releases what these lanes' earlier release fences (`fence.acq_rel`, `fence.mbarrier_init`) cover, and no more: a `.relaxed`
    /// arrival.
    ///
    /// # Errors
    /// As [`Detector::barrier`].
    pub fn release_relaxed(&mut self, warp: Warp, mask: u32, into: &mut SyncVar) -> Outcome {
        self.tick()?;
        let (block, w) = self.block_and_warp(warp)?;
        let narrowest = if block.cluster.len() > 1 { Scope::Cluster } else { Scope::Cta };
        let state = &block.warps[w];
        for (lanes, fence) in state.fences.iter().filter(|f| f.0 & mask != 0 && f.1.scope >= narrowest) {
            into.add(&Knowledge { mask: state.all_or(lanes & mask), ..fence.knowledge.clone() });
        }
        Ok(())
    }

    /// These lanes learn what was released, and observe the asynchronous operations that completed on the object.
    ///
    /// # Errors
    /// As [`Detector::barrier`].
    pub fn acquire(&mut self, warp: Warp, mask: u32, from: &mut SyncVar) -> Outcome {
        let now = self.tick()?;
        let (block, w) = self.block_and_warp(warp)?;
        let (cluster, device) = (Arc::clone(&block.cluster), block.device);
        let (first, count) = (block.first, block.warp_count());
        let state = &mut block.warps[w];
        let (uid, mask) = (state.uid, mask & state.live);
        state.learn(first, mask, |g| from.learnt_by(g, &g.view(first, count, uid, &cluster, device)));
        let agents = std::mem::take(&mut from.agents);
        for &id in &agents {
            self.observe(id, None, Observe::All, warp, mask, now)?;
        }
        from.agents = agents;
        Ok(())
    }

    /// The same for a `.relaxed` wait: these lanes learn it with their next acquire fence.
    ///
    /// # Errors
    /// As [`Detector::barrier`].
    pub fn acquire_relaxed(&mut self, warp: Warp, mask: u32, from: &SyncVar) -> Outcome {
        self.tick()?;
        let (block, w) = self.block_and_warp(warp)?;
        let state = &mut block.warps[w];
        let mask = mask & state.live;
        let knowledge = Knowledge::of_clock(from.clock.clone().unwrap_or_default());
        state.pend(Pending { mask, level: Scope::Cta, sc_only: false, knowledge, agents: from.agents.clone(), from: None });
        Ok(())
    }

    /// A fence at a scope.
    ///
    /// # Errors
    /// As [`Detector::barrier`].
    pub fn fence(&mut self, warp: Warp, mask: u32, order: FenceOrder, scope: Scope) -> Outcome {
        let now = self.tick()?;
        self.block_and_warp(warp)?;
        if order != FenceOrder::Release {
            self.acquire_pending(warp, mask, scope, order == FenceOrder::Sc, None, now)?;
        }
        if order != FenceOrder::Acquire {
            let (block, w) = self.block_and_warp(warp)?;
            let (first, count) = (block.first, block.warp_count());
            let state = &mut block.warps[w];
            for old in state.fences.iter_mut().filter(|f| f.1.scope <= scope && !f.1.knowledge.init_only) {
                old.0 &= !mask;
            }
            state.fences.retain(|f| f.0 != 0);
            let new: Vec<_> = state
                .knowledge(first, count, mask, now)
                .map(|(lanes, knowledge)| (lanes, Published { scope, operation: false, sc_only: false, knowledge }))
                .collect();
            if order == FenceOrder::Sc {
                let mut known = new.iter().map(|(lanes, p)| (*lanes, &p.knowledge));
                let fenced: Vec<_> = known
                    .by_ref()
                    .map(|(lanes, k)| {
                        let mut own = Clock::default();
                        k.add_to(&mut own);
                        let mut clock = Clock::clone(&k.clock);
                        clock.fence_sc(scope, own);
                        (lanes, Arc::new(clock))
                    })
                    .collect();
                for (lanes, clock) in fenced {
                    state.learn(first, lanes, |_| Some(Arc::clone(&clock)));
                }
            }
            state.fences.extend(new);
        }
        Ok(())
    }

    /// What these lanes' strong reads have shown becomes theirs, as far as the scopes reach; `sc`: by a `fence.sc`; `address`: only
    /// what was read there.
    pub(super) fn acquire_pending(
        &mut self,
        warp: Warp,
        mask: u32,
        scope: Scope,
        sc: bool,
        address: Option<Place>,
        now: Time,
    ) -> Outcome {
        let Some(block) = self.blocks.get_mut(warp.block.slot as usize) else { return Ok(()) };
        let (cluster, device) = (Arc::clone(&block.cluster), block.device);
        let (first, count) = (block.first, block.warp_count());
        let Some(state) = block.warps.get_mut(warp.index as usize) else { return Ok(()) };
        if state.pending.is_empty() {
            return Ok(());
        }
        let uid = state.uid;
        let mut observed = Vec::new();
        let mut pending = std::mem::take(&mut state.pending);
        let here = |p: &Pending| match (address, p.from) {
            (None, _) | (Some(_), Some(ANYWHERE)) => true,
            (a, from) => a == from,
        };
        for p in pending.iter_mut().filter(|p| p.mask & mask != 0 && p.level <= scope && (sc || !p.sc_only) && here(p)) {
            let lanes = p.mask & mask;
            p.mask &= !mask;
            let k = &p.knowledge;
            state.learn(first, lanes, |g| {
                let view = g.view(first, count, uid, &cluster, device);
                learn_knowledge(g, &view, k)
            });
            observed.extend(p.agents.iter().map(|&id| (id, lanes)));
        }
        pending.retain(|p| p.mask != 0);
        state.pending = pending;
        for (id, lanes) in observed {
            self.observe(id, None, Observe::All, warp, lanes, now)?;
        }
        Ok(())
    }

    /// `fence.mbarrier_init.release.cluster`: releases initialisations of mbarriers only.
    ///
    /// # Errors
    /// As [`Detector::barrier`].
    pub fn fence_mbarrier_init(&mut self, warp: Warp, mask: u32) -> Outcome {
        let now = self.tick()?;
        let (block, w) = self.block_and_warp(warp)?;
        let (first, count) = (block.first, block.warp_count());
        let state = &mut block.warps[w];
        for old in state.fences.iter_mut().filter(|f| f.1.knowledge.init_only) {
            old.0 &= !mask;
        }
        state.fences.retain(|f| f.0 != 0);
        let new: Vec<_> = state
            .knowledge(first, count, mask, now)
            .map(|(lanes, k)| {
                let knowledge = Knowledge { init_only: true, ..k };
                (lanes, Published { scope: Scope::Cluster, operation: false, sc_only: false, knowledge })
            })
            .collect();
        state.fences.extend(new);
        Ok(())
    }

    /// `fence.proxy.async`.
    ///
    /// # Errors
    /// As [`Detector::barrier`].
    pub fn fence_proxy_async(&mut self, warp: Warp, mask: u32, covers: ProxyFence) -> Outcome {
        let now = self.tick()?;
        let (block, w) = self.block_and_warp(warp)?;
        let state: &WarpState = &block.warps[w];
        let (uid, mask) = (state.uid, state.all_or(mask));
        self.fences.add(uid, mask, covers.0, now);
        Ok(())
    }

    /// These lanes wait for the end of a launch that theirs did not wait for as a whole (`griddepcontrol.wait`).
    ///
    /// # Errors
    /// A launch that still runs; and as [`Detector::barrier`].
    pub fn launch_wait(&mut self, warp: Warp, mask: u32, launch: LaunchId) -> Outcome {
        self.tick()?;
        let mut clock = Clock::default();
        self.learn_launch(&mut clock, launch)?;
        let clock = Arc::new(clock);
        let (block, w) = self.block_and_warp(warp)?;
        let first = block.first;
        block.warps[w].learn(first, mask, |g| Some(joined(&g.clock, &clock)));
        Ok(())
    }
}

/// The group's clock with what `k` adds; `None`: nothing new.
pub(super) fn learn_knowledge(group: &Group, view: &View<'_>, k: &Knowledge) -> Option<Arc<Clock>> {
    if k.mask != 0 && !k.init_only && view.uncovered(k.uid, k.mask, k.time, 0) == 0 {
        return None;
    }
    let mut clock = if k.init_only { Clock::default() } else { Clock::clone(&k.clock) };
    k.add_to(&mut clock);
    learnt(group, view, &Arc::new(clock))
}
