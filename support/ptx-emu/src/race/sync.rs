//! Barriers, fences and synchronisation objects.

use super::{AgentId, BlockId, Detector, FenceOrder, LaunchId, MbarrierSync, Outcome, ProxyFence, SyncVar, Warp};

impl Detector {
    /// A barrier of threads of one block completes: what any of `members` did, and what was released into `arrived` by threads
    /// that do not wait, is now known to all of `members` (warp index in the block, lanes).
    pub fn barrier(&mut self, block: BlockId, members: &[(u32, u32)], arrived: Option<&SyncVar>) -> Outcome {
        self.tick()?;
        self.block_index(block)?;
        let _ = (members, arrived);
        Ok(())
    }

    /// `bar.warp.sync` with these lanes completes.
    pub fn warp_barrier(&mut self, warp: Warp, mask: u32) -> Outcome {
        self.tick()?;
        self.warp_state(warp)?;
        let _ = mask;
        Ok(())
    }

    /// Releases all that these lanes did and know.
    pub fn release(&mut self, warp: Warp, mask: u32, into: &mut SyncVar) -> Outcome {
        self.tick()?;
        self.warp_state(warp)?;
        let _ = (mask, into);
        Ok(())
    }

    /// Releases what these lanes' earlier release fences (`fence.acq_rel`, `fence.mbarrier_init`) cover, and no more: a `.relaxed` arrival.
    pub fn release_relaxed(&mut self, warp: Warp, mask: u32, into: &mut SyncVar) -> Outcome {
        self.tick()?;
        self.warp_state(warp)?;
        let _ = (mask, into);
        Ok(())
    }

    /// These lanes learn what was released, and observe the asynchronous operations that completed on the object.
    pub fn acquire(&mut self, warp: Warp, mask: u32, from: &mut SyncVar) -> Outcome {
        self.tick()?;
        self.warp_state(warp)?;
        let _ = (mask, from);
        Ok(())
    }

    /// A fence at a scope.
    pub fn fence(&mut self, warp: Warp, mask: u32, order: FenceOrder, scope: super::Scope) -> Outcome {
        self.tick()?;
        self.warp_state(warp)?;
        let _ = (mask, order, scope);
        Ok(())
    }

    /// `fence.mbarrier_init.release.cluster`: releases initialisations of mbarriers only.
    pub fn fence_mbarrier_init(&mut self, warp: Warp, mask: u32) -> Outcome {
        self.tick()?;
        self.warp_state(warp)?;
        let _ = mask;
        Ok(())
    }

    /// `fence.proxy.async`.
    pub fn fence_proxy_async(&mut self, warp: Warp, mask: u32, covers: ProxyFence) -> Outcome {
        self.tick()?;
        self.warp_state(warp)?;
        let _ = (mask, covers);
        Ok(())
    }

    /// These lanes wait for the end of a launch that theirs did not wait for as a whole (`griddepcontrol.wait`).
    pub fn launch_wait(&mut self, warp: Warp, mask: u32, launch: LaunchId) -> Outcome {
        self.tick()?;
        self.warp_state(warp)?;
        let _ = (mask, launch);
        Ok(())
    }

    /// `mbarrier.init` of the object at an offset of `owner`'s shared memory.
    pub fn mbarrier_init(&mut self, warp: Warp, lane: u32, owner: BlockId, address: u64, site: u32) -> Outcome {
        self.tick()?;
        self.warp_state(warp)?;
        let _ = (lane, owner, address, site);
        Ok(())
    }

    /// `mbarrier.inval`.
    pub fn mbarrier_inval(&mut self, warp: Warp, lane: u32, owner: BlockId, address: u64, site: u32) -> Outcome {
        self.mbarrier_init(warp, lane, owner, address, site)
    }

    /// `mbarrier.arrive` (any variant, `expect_tx` and `complete_tx` by a thread included): releases into the running phase, unless `.relaxed`.
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
        let _ = (owner, address, site);
        if relaxed { self.release_relaxed(warp, mask, &mut state.current) } else { self.release(warp, mask, &mut state.current) }
    }

    /// An asynchronous operation completes on the running phase of an mbarrier (`complete_tx`, or the arrival of `cp.async.mbarrier.arrive`).
    pub fn mbarrier_complete(&mut self, state: &mut MbarrierSync, owner: BlockId, address: u64, agent: AgentId) -> Outcome {
        self.tick()?;
        let _ = (state, owner, address, agent);
        Ok(())
    }

    /// `test_wait` or `try_wait`; `passed`: it returned true, so that these lanes learn what the completed phase released. `.relaxed`
    /// waits pass `false`.
    pub fn mbarrier_wait(
        &mut self,
        state: &mut MbarrierSync,
        owner: BlockId,
        address: u64,
        warp: Warp,
        mask: u32,
        passed: bool,
        site: u32,
    ) -> Outcome {
        let _ = (owner, address, site);
        if passed { self.acquire(warp, mask, &mut state.completed) } else { Ok(()) }
    }
}

impl MbarrierSync {
    /// The running phase is complete; the next begins.
    pub fn complete_phase(&mut self) {
        self.completed = std::mem::take(&mut self.current);
    }

    /// A freshly initialised object.
    pub fn new() -> Self {
        Self::default()
    }
}
