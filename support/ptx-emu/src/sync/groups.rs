//! Groups of asynchronous copies: `commit_group` and `wait_group` of `cp.async` (PTX ISA 9.0, section 9.7.9.25.3) and of `cp.async.bulk` (9.7.9.25.4).
//!
//! Each thread has groups of its own. A group has a number, counted up by the commits of its thread; an operation issued now is in the
//! group that will be committed next.

use super::ClusterState;
use super::io::world;
use super::queue::{Body, Family, Operation, Until};
use crate::cx::Cx;
use crate::detect::Detector;
use crate::fault::Exec;
use crate::race::{AgentId, Observe};
use crate::regs::{LANES, Mask, lanes};

/// Operations of one group that nobody has waited for.
#[derive(Debug)]
pub struct Open {
    /// Threads that issued them and have not waited.
    pub lanes: Mask,
    /// Threads that waited for their reads (`wait_group.read`).
    pub read: Mask,
    /// Number of the group.
    pub group: u32,
    /// What the race detector calls them.
    pub agent: Option<AgentId>,
    /// More operations of these threads may be added.
    pub growing: bool,
    /// The instruction's name.
    pub what: &'static str,
}

/// The groups of a warp's threads.
#[derive(Debug, Default)]
pub struct Groups {
    /// Groups that each thread has committed.
    committed: [u32; LANES],
    /// What has been issued and not waited for.
    pub open: Vec<Open>,
}

/// Groups that are kept although an mbarrier stands for them: a thread may still wait for them as a group.
const MOST_OPEN: usize = 64;

impl Groups {
    /// Lanes by the number of the group that they issue into.
    pub fn split(&self, mask: Mask) -> Vec<(u32, Mask)> {
        let mut list: Vec<(u32, Mask)> = vec![];
        for lane in lanes(mask) {
            let group = self.committed[lane];
            match list.iter_mut().find(|g| g.0 == group) {
                Some(found) => found.1 |= 1 << lane,
                None => list.push((group, 1 << lane)),
            }
        }
        list
    }

    /// An open group of just these lanes that takes more operations.
    pub fn growing(&mut self, group: u32, mask: Mask) -> Option<&mut Open> {
        self.open.iter_mut().find(|o| o.growing && o.group == group && o.lanes == mask)
    }

    /// Commits.
    pub fn commit(&mut self, mask: Mask) {
        for lane in lanes(mask) {
            self.committed[lane] = self.committed[lane].wrapping_add(1);
        }
    }

    /// Nothing is added any more to what these lanes issued; what an mbarrier will stand for is not kept forever.
    pub fn seal(&mut self, mask: Mask) -> Vec<AgentId> {
        let mut agents = vec![];
        for open in self.open.iter_mut().filter(|o| o.lanes & mask != 0) {
            open.growing = false;
            agents.extend(open.agent);
        }
        agents
    }
}

/// Which groups a wait is for.
#[derive(Debug, Clone, Copy)]
pub struct WaitGroup {
    /// Copies or bulk copies.
    pub family: Family,
    /// Groups, the latest, that may remain.
    pub remain: u32,
    /// Only their reads are waited for.
    pub read: bool,
}

fn groups<'a>(cx: &'a mut Cx<'_>, family: Family) -> &'a mut Groups {
    match family {
        Family::Copies => &mut cx.warp.sync.copies,
        Family::Bulk => &mut cx.warp.sync.bulk,
    }
}

/// Commits the executing threads' operations as a group.
pub fn commit(cx: &mut Cx<'_>, family: Family) {
    let mask = cx.mask;
    groups(cx, family).commit(mask);
}

/// Waits: carries on what must be done, and lets the detector know who has seen it.
pub fn wait(cx: &mut Cx<'_>, op: WaitGroup) -> Exec {
    let mask = cx.mask;
    let own = (cx.rank, cx.warp.index);
    let race = cx.race_warp();
    let state = groups(cx, op.family);
    let limit: [u32; LANES] = std::array::from_fn(|lane| state.committed[lane].saturating_sub(op.remain));
    let mut open = std::mem::take(&mut state.open);
    let waited = |group: u32, of: Mask| lanes(of & mask).filter(|&l| group < limit[l]).fold(0, |m: Mask, l| m | 1 << l);
    let wanted = |operation: &Operation| {
        operation.family == op.family
            && matches!(operation.body, Body::Lanes { .. } | Body::Store { .. })
            && waited(operation.group, operation.lanes) != 0
    };
    let (mut world, queue) = world(cx);
    let until = if op.read { Until::Read } else { Until::Done };
    let mut result = queue.force(&mut world, own, until, wanted);
    for entry in &mut open {
        let lanes = waited(entry.group, entry.lanes);
        if lanes == 0 {
            continue;
        }
        entry.read |= lanes;
        let what = if op.read { Observe::Reads } else { Observe::All };
        if let (Some(detector), Some(race), Some(agent)) = (world.detector.as_deref_mut(), race, entry.agent)
            && let Err(report) = detector.race.agent_observe(agent, race, lanes, what)
        {
            result = result.and(Err(report.into()));
        }
        if !op.read {
            entry.lanes &= !lanes;
            entry.growing = false;
            if entry.lanes == 0
                && let (Some(detector), Some(agent)) = (world.detector.as_deref_mut(), entry.agent)
            {
                detector.race.agent_retire(agent);
            }
        }
    }
    open.retain(|entry| entry.lanes != 0);
    groups(cx, op.family).open = open;
    result
}

/// Forgets the oldest of the copies that mbarriers stand for, unless an arrival of this warp is still to tell of them.
pub fn prune(groups: &mut Groups, cluster: &ClusterState, detector: &mut Detector, own: (usize, u32)) {
    let arriving = |o: &Operation| matches!(o.body, Body::Arrive { .. }) && (o.rank, o.warp) == own;
    if groups.open.len() <= MOST_OPEN || cluster.queue.iter().any(arriving) {
        return;
    }
    for old in groups.open.drain(..MOST_OPEN / 2) {
        if let Some(agent) = old.agent {
            detector.race.agent_retire(agent);
        }
    }
}
