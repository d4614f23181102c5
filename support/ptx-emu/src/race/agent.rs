//! Asynchronous operations.

use super::{Access, AccessKind, AgentId, AgentKind, Detector, Observe, Outcome, Proxy, Space, Warp};

impl Detector {
    /// An asynchronous operation is issued: it knows what all its issuers know now. `per_lane`: each lane has its own copy, which
    /// only that lane's wait completes (`cp.async`). `wgmma` is issued by four warps: its accesses must be ordered after
    /// the past of each, and it is complete when each has waited.
    pub fn agent_issue(&mut self, kind: AgentKind, proxy: Proxy, issuers: &[(Warp, u32)], per_lane: bool) -> Outcome<AgentId> {
        self.tick()?;
        let _ = (kind, proxy, issuers, per_lane);
        Ok(AgentId { slot: 0, generation: 0 })
    }

    /// The same issuers add another operation to the agent: its later accesses know what they know now.
    pub fn agent_reissue(&mut self, agent: AgentId) -> Outcome {
        self.tick()?;
        let _ = agent;
        Ok(())
    }

    /// The agent reads or writes `len` bytes in a row.
    pub fn agent_access(&mut self, agent: AgentId, space: Space, address: u64, len: u64, kind: AccessKind, site: u32) -> Outcome {
        self.tick()?;
        let _ = (agent, space, address, len, kind, site);
        Ok(())
    }

    /// The agent reads or writes lane by lane (`cp.async`): `access.sem` is ignored.
    pub fn agent_access_lanes(&mut self, agent: AgentId, access: &Access<'_>) -> Outcome {
        self.tick()?;
        let _ = (agent, access);
        Ok(())
    }

    /// These lanes have waited for the agent: their group, or `wgmma`'s, is complete.
    pub fn agent_observe(&mut self, agent: AgentId, warp: Warp, mask: u32, what: Observe) -> Outcome {
        self.tick()?;
        self.warp_state(warp)?;
        let _ = (agent, mask, what);
        Ok(())
    }

    /// The caller will not name the agent again.
    pub fn agent_retire(&mut self, agent: AgentId) {
        let _ = agent;
    }
}
