//! The table of asynchronous operations: what each knew at its issue, and who has seen it complete.

use std::sync::Arc;

use super::clock::{Span, Time};
use super::shadow::Record;
use super::types::{AgentId, AgentKind, Observe, Proxy};
use super::view::{Knowledge, View};

/// Issuers of an agent: lanes of a warp that knew the same.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub knowledge: Knowledge,
    pub cluster: Arc<[Span]>,
    pub device: u32,
    /// Lanes as given at the issue.
    pub lanes: u32,
}

/// Lanes that waited for an agent, by time `time`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation {
    /// The issuing warp whose part they waited for; `None`: for all of the agent, every lane's copy included.
    pub part: Option<u32>,
    pub what: Observe,
    pub uid: u32,
    pub mask: u32,
    pub time: Time,
}

#[derive(Clone, Debug)]
pub(super) struct Agent {
    generation: u32,
    used: bool,
    retired: bool,
    marked: bool,
    pub kind: AgentKind,
    pub proxy: Proxy,
    pub per_lane: bool,
    /// One for each group of issuing lanes that know the same.
    pub parts: Vec<Part>,
    /// Time of the last access.
    pub last: Time,
    pub observations: Vec<Observation>,
}

impl Agent {
    /// Whether the record of this agent's access is known to `view`'s lane (`own`).
    pub fn covered(&self, record: &Record, view: &View<'_>, own: u32) -> bool {
        self.parts.iter().all(|part| {
            if record.time <= view.clock.launch_time(part.knowledge.uid) {
                return true;
            }
            let mut missing = if self.per_lane { record.mask & part.lanes } else { 1 };
            for o in &self.observations {
                let concerns = o.part.is_none_or(|uid| uid == part.knowledge.uid)
                    && o.time >= record.time
                    && (o.what == Observe::All || !record.attr.write());
                if concerns {
                    if self.per_lane && o.part.is_some() {
                        let lanes = o.mask & missing;
                        missing &= !(lanes & !view.uncovered(o.uid, lanes, o.time, own));
                    } else if view.knows_any(o.uid, o.mask, o.time, own) {
                        missing = 0;
                    }
                }
            }
            missing == 0
        })
    }

    /// Up to which time all of the agent's accesses (its reads only, unless `writes`) are known to every lane in `group` of
    /// `view`.
    pub fn known(&self, view: &View<'_>, group: u32, writes: bool) -> Time {
        let mut known = Time::MAX;
        for part in &self.parts {
            let mut time = view.clock.launch_time(part.knowledge.uid);
            for o in &self.observations {
                let concerns =
                    o.part.is_none_or(|uid| uid == part.knowledge.uid) && o.time > time && (o.what == Observe::All || !writes);
                if !concerns {
                    continue;
                }
                let known = if self.per_lane && o.part.is_some() {
                    // Every lane must have waited for its own copy.
                    part.lanes & !o.mask == 0 && view.uncovered(o.uid, part.lanes, o.time, 0) == 0
                } else {
                    view.knows_any(o.uid, o.mask, o.time, 0)
                        || o.uid == view.uid && group & !o.mask == 0 && o.time <= view.own_time
                };
                if known {
                    time = o.time;
                }
            }
            known = known.min(time);
        }
        known
    }
}

/// All agents that something may still name.
#[derive(Clone, Debug, Default)]
pub(super) struct Agents {
    table: Vec<Agent>,
    free: Vec<u32>,
    /// Agents alive at which to look for ones that nothing names any more.
    threshold: usize,
}

/// Fewest agents worth a search for unused ones.
const FEW: usize = 4096;

impl Agents {
    pub fn len(&self) -> usize {
        self.table.len() - self.free.len()
    }

    /// Whether it is time to [`Agents::sweep`].
    pub fn crowded(&self) -> bool {
        self.len() >= self.threshold.max(FEW)
    }

    pub fn insert(&mut self, kind: AgentKind, proxy: Proxy, per_lane: bool, parts: Vec<Part>) -> Option<AgentId> {
        let mut agent = Agent {
            generation: 0,
            used: true,
            retired: false,
            marked: false,
            kind,
            proxy,
            per_lane,
            parts,
            last: 0,
            observations: Vec::new(),
        };
        match self.free.pop() {
            Some(slot) => {
                let old = &mut self.table[slot as usize];
                agent.generation = old.generation;
                *old = agent;
                Some(AgentId { slot, generation: old.generation })
            }
            None => {
                let slot = u32::try_from(self.table.len()).ok()?;
                self.table.push(agent);
                Some(AgentId { slot, generation: 0 })
            }
        }
    }

    /// The agent, unless it is gone.
    pub fn get(&self, id: AgentId) -> Option<&Agent> {
        self.table.get(id.slot as usize).filter(|a| a.used && a.generation == id.generation)
    }

    pub fn get_mut(&mut self, id: AgentId) -> Option<&mut Agent> {
        self.table.get_mut(id.slot as usize).filter(|a| a.used && a.generation == id.generation)
    }

    /// The agent that a record names.
    pub fn of_record(&self, slot: u32) -> Option<&Agent> {
        self.table.get(slot as usize).filter(|a| a.used)
    }

    pub fn retire(&mut self, id: AgentId) {
        if let Some(a) = self.get_mut(id) {
            a.retired = true;
        }
    }

    /// A record names this slot.
    pub fn mark(&mut self, slot: u32) {
        if let Some(a) = self.table.get_mut(slot as usize) {
            a.marked = true;
        }
    }

    /// Frees the retired agents that were not marked since the last sweep; `cells` is what finding the marks cost.
    pub fn sweep(&mut self, cells: usize) {
        for (slot, a) in self.table.iter_mut().enumerate() {
            if a.used && a.retired && !a.marked {
                a.used = false;
                a.parts = Vec::new();
                a.observations = Vec::new();
                // A slot whose generations are used up is never used again.
                if let Some(g) = a.generation.checked_add(1) {
                    a.generation = g;
                    self.free.push(slot as u32);
                }
            }
            a.marked = false;
        }
        self.threshold = (2 * self.len()).max(cells / 64);
    }

    /// Forgets all agents; identities given out stay invalid.
    pub fn clear(&mut self) {
        for a in &mut self.table {
            a.retired = true;
            a.marked = false;
        }
        self.sweep(0);
    }
}
