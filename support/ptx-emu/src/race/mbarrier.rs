//! Operations on mbarriers.

use super::check::Check;
use super::shadow::{Attr, Class, Record, Shadow, Shape};
use super::{AgentId, BlockId, Detector, MbarrierSync, Outcome, Proxy, Report, Space, Warp, misuse};

/// Bytes of an mbarrier object.
const SIZE: u64 = 8;

impl MbarrierSync {
    /// A freshly initialised object.
    pub fn new() -> Self {
        Self::default()
    }

    /// The running phase is complete; the next begins.
    pub fn complete_phase(&mut self) {
        self.completed = std::mem::take(&mut self.current);
    }
}

impl Detector {
    /// `mbarrier.init` of the object at an offset of `owner`'s shared memory: writes its 8 bytes.
    ///
    /// # Errors
    /// A race; a block or warp that does not run; events beyond what can be numbered.
    pub fn mbarrier_init(&mut self, warp: Warp, lane: u32, owner: BlockId, address: u64, site: u32) -> Outcome {
        if lane >= 32 {
            return misuse("no such lane in its warp");
        }
        self.mbarrier_op(warp, 1 << lane, owner, address, Class::MBARRIER_INIT, true, site)
    }

    /// `mbarrier.inval`: writes the 8 bytes, so that all operations on the object must happen before.
    ///
    /// # Errors
    /// As [`Detector::mbarrier_init`].
    pub fn mbarrier_inval(&mut self, warp: Warp, lane: u32, owner: BlockId, address: u64, site: u32) -> Outcome {
        if lane >= 32 {
            return misuse("no such lane in its warp");
        }
        self.mbarrier_op(warp, 1 << lane, owner, address, Class::WEAK, true, site)
    }

    /// `mbarrier.arrive` (any variant, `expect_tx` and `complete_tx` by a thread included) of these lanes on one object: releases
    /// into the running phase, at `.relaxed` what earlier fences cover. The scopes `.cta` and `.cluster` are not told apart. Report it
    /// before [`MbarrierSync::complete_phase`], if it completes the phase.
    ///
    /// # Errors
    /// A race: the initialisation is not visible to the lanes; and as [`Detector::mbarrier_init`].
    pub fn mbarrier_arrive(
        &mut self,
        state: &mut MbarrierSync,
        owner: BlockId,
        address: u64,
        warp: Warp,
        mask: u32,
        relaxed: bool,
        site: u32,
    ) -> Outcome {
        let outcome = self.mbarrier_op(warp, mask, owner, address, Class::MBARRIER, true, site);
        if relaxed {
            self.release_relaxed(warp, mask, &mut state.current)?;
        } else {
            self.release(warp, mask, &mut state.current)?;
        }
        outcome
    }

    /// An asynchronous operation completes on the running phase of an mbarrier (`complete_tx`, or the arrival of
    /// `cp.async.mbarrier.arrive`): who waits for the phase observes all that the operation did.
    ///
    /// # Errors
    /// A race: the initialisation is not visible to the operation's issuer; an agent or block that does not exist; events beyond
    /// what can be numbered.
    pub fn mbarrier_complete(
        &mut self,
        state: &mut MbarrierSync,
        owner: BlockId,
        address: u64,
        agent: AgentId,
        site: u32,
    ) -> Outcome {
        let now = self.tick()?;
        let slot = self.block_index(owner)?;
        let Detector { blocks, shared, pool, agents, fences, launches, options, .. } = self;
        let Some(a) = agents.get_mut(agent) else { return misuse("no such asynchronous operation") };
        a.last = now;
        let Some(a) = agents.get(agent) else { return misuse("no such asynchronous operation") };
        let views: Vec<_> = a.parts.iter().map(|p| p.knowledge.view(&p.cluster, p.device)).collect();
        let first = blocks[slot].first;
        let mut check = Check::new(
            &views,
            u32::MAX,
            Proxy::Generic,
            Space::Shared(owner),
            Some(first),
            agents,
            fences,
            launches,
            options.issuer_proxy_fence,
        );
        let x =
            Record { who: agent.slot, time: now, site, mask: 1, attr: Attr::new(0xf, Shape::Whole, true, Class::MBARRIER, true) };
        for at in [address & !3, (address & !3) + SIZE / 2] {
            let (page, side) = shared[slot].page(Shadow::page_of(at), pool);
            check.visit(&mut page[Shadow::word_of(at)], side, &x, at, false);
        }
        for part in &a.parts {
            state.current.add(&part.knowledge);
        }
        if !state.current.agents.contains(&agent) {
            state.current.agents.push(agent);
        }
        match check.found {
            None => Ok(()),
            Some(race) => Err(Box::new(Report::Race(race))),
        }
    }

    /// `test_wait` or `try_wait` of these lanes on one object; `passed`: it returned true, so that the lanes learn what the
    /// completed phase released (with `relaxed`, at their next acquire fence).
    ///
    /// # Errors
    /// As [`Detector::mbarrier_arrive`].
    pub fn mbarrier_wait(
        &mut self,
        state: &mut MbarrierSync,
        owner: BlockId,
        address: u64,
        warp: Warp,
        mask: u32,
        passed: bool,
        relaxed: bool,
        site: u32,
    ) -> Outcome {
        let outcome = self.mbarrier_op(warp, mask, owner, address, Class::MBARRIER, false, site);
        if passed && relaxed {
            self.acquire_relaxed(warp, mask, &state.completed)?;
        } else if passed {
            self.acquire(warp, mask, &mut state.completed)?;
        }
        outcome
    }

    /// Checks and records an operation on the object's bytes.
    fn mbarrier_op(
        &mut self,
        warp: Warp,
        mask: u32,
        owner: BlockId,
        address: u64,
        class: Class,
        write: bool,
        site: u32,
    ) -> Outcome {
        let now = self.tick()?;
        let b = self.block_index(warp.block)?;
        let slot = self.block_index(owner)?;
        let Detector { blocks, shared, pool, agents, fences, launches, options, .. } = self;
        let block = &blocks[b];
        let Some(state) = block.warps.get(warp.index as usize) else {
            return misuse("no such warp in its block");
        };
        let mut found = None;
        for group in state.groups.iter().filter(|g| g.mask & mask != 0) {
            let views = [block.view(state, group)];
            let lanes = group.mask & mask;
            let mut check = Check::new(
                &views,
                lanes,
                Proxy::Generic,
                Space::Shared(owner),
                Some(blocks[slot].first),
                agents,
                fences,
                launches,
                options.issuer_proxy_fence,
            );
            let attr = Attr::new(0xf, Shape::Whole, false, class, write);
            let x = Record { who: state.uid, time: now, site, mask: lanes, attr };
            for at in [address & !3, (address & !3) + SIZE / 2] {
                let (page, side) = shared[slot].page(Shadow::page_of(at), pool);
                check.visit_lanes(&mut page[Shadow::word_of(at)], side, &x, at);
            }
            found = found.or(check.found);
        }
        match found {
            None => Ok(()),
            Some(race) => Err(Box::new(Report::Race(race))),
        }
    }
}
