//! Asynchronous operations.

use std::sync::Arc;

use super::access::{pieces, range};
use super::agents::{Agent, Observation, Part};
use super::check::Check;
use super::clock::joined;
use super::shadow::{Attr, Class, Record, Shadow, Shape};
use super::{Access, AccessKind, AgentId, AgentKind, Detector, Observe, Outcome, Proxy, Report, Sem, Space, Warp, misuse};

/// What an asynchronous operation does to ranges of bytes.
#[derive(Clone, Copy, Debug)]
pub struct AgentAccess {
    /// Where the ranges lie.
    pub space: Space,
    /// Read, write, or both (bulk reductions).
    pub kind: AccessKind,
    /// [`Sem::WEAK`] for copies; reductions are `.relaxed.gpu`.
    pub sem: Sem,
    /// Bytes of an element of a reduction.
    pub element: u32,
    /// Where in the program: returned in reports.
    pub site: u32,
}

impl Detector {
    /// An asynchronous operation is issued: it knows what all its issuers know now. `per_lane`: each lane has its own copy, which
    /// only that lane's wait completes (`cp.async`). `wgmma` is issued by four warps: its accesses must be ordered after
    /// the past of each, and it is complete when each has waited.
    ///
    /// # Errors
    /// A warp that does not run; numbers used up.
    pub fn agent_issue(&mut self, kind: AgentKind, proxy: Proxy, issuers: &[(Warp, u32)], per_lane: bool) -> Outcome<AgentId> {
        self.tick()?;
        if self.agents.crowded() {
            self.sweep_agents();
        }
        let parts = self.parts(issuers, per_lane)?;
        if parts.is_empty() {
            return misuse("an asynchronous operation without an issuer");
        }
        match self.agents.insert(kind, proxy, per_lane, parts) {
            Some(id) => Ok(id),
            None => Err(Box::new(Report::Exhausted("numbers for asynchronous operations"))),
        }
    }

    /// What these lanes know now. Lanes of a warp that issue one operation together do so after the past of all of them.
    fn parts(&self, issuers: &[(Warp, u32)], per_lane: bool) -> Outcome<Vec<Part>> {
        let mut parts = Vec::with_capacity(issuers.len());
        for &(warp, mask) in issuers {
            let b = self.block_index(warp.block)?;
            let block = &self.blocks[b];
            let Some(state) = block.warps.get(warp.index as usize) else {
                return misuse("no such warp in its block");
            };
            let part = |lanes, knowledge| Part { knowledge, cluster: Arc::clone(&block.cluster), device: block.device, lanes };
            let mut known = state.knowledge(block.first, block.warp_count(), mask, self.now);
            if per_lane {
                parts.extend(known.map(|(lanes, knowledge)| part(lanes, knowledge)));
            } else if let Some((_, mut all)) = known.next() {
                for (_, more) in known {
                    all.clock = joined(&all.clock, &more.clock);
                    all.block_time = all.block_time.max(more.block_time);
                    all.warp_time = all.warp_time.max(more.warp_time);
                }
                all.mask = state.all_or(mask);
                parts.push(part(mask & state.live, all));
            }
        }
        Ok(parts)
    }

    /// The same issuers add another operation to the agent: its later accesses know what they know now.
    ///
    /// # Errors
    /// An agent that does not exist, issuers that do not run; numbers used up.
    pub fn agent_reissue(&mut self, agent: AgentId, issuers: &[(Warp, u32)]) -> Outcome {
        self.tick()?;
        let Some(a) = self.agents.get(agent) else { return misuse("no such asynchronous operation") };
        let mut parts = self.parts(issuers, a.per_lane)?;
        let Some(a) = self.agents.get_mut(agent) else { return misuse("no such asynchronous operation") };
        for old in &a.parts {
            let again = parts.iter().filter(|p| p.knowledge.uid == old.knowledge.uid).fold(0, |m, p| m | p.lanes);
            if old.lanes & !again != 0 {
                parts.push(Part { lanes: old.lanes & !again, ..old.clone() });
            }
        }
        a.parts = parts;
        Ok(())
    }

    /// The agent reads or writes ranges of bytes (address, length).
    ///
    /// # Errors
    /// A race, or a missing proxy fence; an agent or block that does not exist; events beyond what can be numbered.
    pub fn agent_access(&mut self, agent: AgentId, access: &AgentAccess, ranges: &[(u64, u64)]) -> Outcome {
        let now = self.tick()?;
        let owner = self.owner(access.space)?;
        let Detector { shared, global, pool, agents, fences, launches, options, .. } = self;
        let Some(a) = agents.get_mut(agent) else { return misuse("no such asynchronous operation") };
        a.last = now;
        let Some(a) = agents.get(agent) else { return misuse("no such asynchronous operation") };
        let views: Vec<_> = a.parts.iter().map(|p| p.knowledge.view(&p.cluster, p.device)).collect();
        let mut check = Check::new(
            &views,
            u32::MAX,
            a.proxy,
            access.space,
            owner.map(|o| o.1),
            agents,
            fences,
            launches,
            options.issuer_proxy_fence,
        );
        check.rmw = access.kind == AccessKind::ReadWrite;
        check.whole = !a.per_lane;
        let class = if access.sem.strong() { Class::strong(access.sem.scope, access.element) } else { Class::WEAK };
        let attr = Attr::new(0xf, Shape::Whole, true, class, access.kind.writes());
        let x = Record { who: agent.slot, time: now, site: access.site, mask: 1, attr };
        let shadow = match owner {
            Some((slot, _)) => &mut shared[slot],
            None => &mut **global,
        };
        let mut outcome = Ok(());
        for &(address, len) in ranges {
            let one = range(shadow, pool, &mut check, &x, address, len);
            outcome = outcome.and(one);
        }
        outcome
    }

    /// The agent reads or writes lane by lane (`cp.async`): `access.sem` is ignored.
    ///
    /// # Errors
    /// As [`Detector::agent_access`].
    pub fn agent_access_lanes(&mut self, agent: AgentId, access: &Access<'_>) -> Outcome {
        let now = self.tick()?;
        let owner = self.owner(access.space)?;
        let Detector { shared, global, pool, agents, fences, launches, options, .. } = self;
        let Some(a) = agents.get_mut(agent) else { return misuse("no such asynchronous operation") };
        a.last = now;
        let Some(a) = agents.get(agent) else { return misuse("no such asynchronous operation") };
        let shadow = match owner {
            Some((slot, _)) => &mut shared[slot],
            None => &mut **global,
        };
        let attr = Attr::new(0xf, Shape::Whole, true, Class::WEAK, access.kind.writes());
        let mut found = None;
        for part in &a.parts {
            let views = [part.knowledge.view(&part.cluster, part.device)];
            let mut lanes = access.mask & part.lanes;
            let mut check = Check::new(
                &views,
                lanes,
                a.proxy,
                access.space,
                owner.map(|o| o.1),
                agents,
                fences,
                launches,
                options.issuer_proxy_fence,
            );
            while lanes != 0 {
                let lane = lanes.trailing_zeros();
                lanes &= lanes - 1;
                let x = Record { who: agent.slot, time: now, site: access.site, mask: 1 << lane, attr };
                let address = access.addresses[(lane & 31) as usize];
                pieces(address, u64::from(access.size), |at, bytes| {
                    let (page, side) = shadow.page(Shadow::page_of(at), pool);
                    let x = Record { attr: x.attr.with_bytes(bytes), ..x };
                    check.visit(&mut page[Shadow::word_of(at)], side, &x, at, false);
                });
            }
            found = found.or(check.found);
        }
        match found {
            None => Ok(()),
            Some(race) => Err(Box::new(Report::Race(race))),
        }
    }

    /// Those of these lanes that issued the agent have waited for it: their group, or `wgmma`'s, is complete, as far as it is theirs.
    ///
    /// # Errors
    /// An agent or warp that does not exist; events beyond what can be numbered.
    pub fn agent_observe(&mut self, agent: AgentId, warp: Warp, mask: u32, what: Observe) -> Outcome {
        let now = self.tick()?;
        let uid = self.warp_state(warp)?.uid;
        let Some(a) = self.agents.get(agent) else { return misuse("no such asynchronous operation") };
        let lanes = a.parts.iter().filter(|p| p.knowledge.uid == uid).fold(0, |m, p| m | p.lanes);
        if lanes & mask == 0 {
            return misuse("a wait for an asynchronous operation of others");
        }
        let (part, mask) = (Some(uid), lanes & mask);
        self.observe(agent, part, what, warp, mask, now)
    }

    /// Remembers an observation, unless it tells nothing new.
    pub(super) fn observe(
        &mut self,
        agent: AgentId,
        part: Option<u32>,
        what: Observe,
        warp: Warp,
        mask: u32,
        now: super::clock::Time,
    ) -> Outcome {
        let b = self.block_index(warp.block)?;
        let Detector { blocks, agents, .. } = self;
        let block = &blocks[b];
        let Some(state) = block.warps.get(warp.index as usize) else {
            return misuse("no such warp in its block");
        };
        // An agent that nothing names any more needs no observers.
        let Some(a) = agents.get_mut(agent) else { return Ok(()) };
        let mask = mask & state.live;
        let known = |o: &Observation, a: &Agent| {
            o.part == part
                && (o.what == Observe::All || what == Observe::Reads)
                && o.time >= a.last
                && if o.uid == state.uid && mask & !o.mask == 0 {
                    true
                } else {
                    // Others' observation serves if every group of these lanes knows of it.
                    !(a.per_lane && part.is_some() || a.proxy == Proxy::Generic)
                        && state
                            .groups
                            .iter()
                            .filter(|g| g.mask & mask != 0)
                            .all(|g| block.view(state, g).knows_any(o.uid, o.mask, o.time, 0))
                }
        };
        if !a.observations.iter().any(|o| known(o, a)) {
            a.observations.push(Observation { part, what, uid: state.uid, mask, time: now });
        }
        Ok(())
    }

    /// The caller will not name the agent again. (Objects on which it has completed may.)
    pub fn agent_retire(&mut self, agent: AgentId) {
        self.agents.retire(agent);
    }

    /// Frees agents that no record names.
    pub(super) fn sweep_agents(&mut self) {
        let Detector { shared, global, agents, .. } = self;
        let mut cells = 0;
        for shadow in shared.iter().chain([&**global]) {
            cells += shadow.len() * Shadow::words();
            shadow.agents(|slot| agents.mark(slot));
        }
        agents.sweep(cells);
    }
}
