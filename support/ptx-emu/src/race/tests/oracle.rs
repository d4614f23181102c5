//! The rules once more, with a full vector clock for each thread and every access remembered for each byte.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use super::*;

/// What a clock counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// A thread (the host is 0).
    Thread(usize),
    /// Its initialisations of mbarriers, as `fence.mbarrier_init` passes them on.
    Inits(usize),
    /// A launch that has ended.
    Launch(usize),
    /// An agent's operation as far as a key (issuing warp, lane, or everything) is concerned: all of it, or its reads.
    Agent(usize, Key),
    AgentReads(usize, Key),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    All,
    Warp(usize),
    Lane(u32),
}

/// 0 with what is known, 1 + scope with what was known before some `fence.sc` of that scope that is known.
pub type Clock = HashMap<(u8, Part), u32>;

pub fn join(into: &mut Clock, from: &Clock) {
    for (&k, &v) in from {
        let e = into.entry(k).or_insert(0);
        *e = (*e).max(v);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    Weak,
    Init,
    Mbarrier,
    Strong(Scope, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Thread(usize),
    Agent(usize, u32),
}

#[derive(Clone, Debug)]
pub struct Acc {
    pub who: Who,
    /// The thread, or the agent's first issuer.
    thread: usize,
    pub time: u32,
    pub write: bool,
    pub strength: Strength,
    proxy: Proxy,
    /// Accesses that come before for whoever knows this one, as far as the location is concerned.
    before: Rc<BTreeSet<usize>>,
    /// For an agent: those that may be taken to come before for whoever has seen it complete.
    agent_before: Rc<BTreeSet<usize>>,
}

#[derive(Clone, Debug)]
pub struct Release {
    scope: Scope,
    thread: usize,
    clock: Clock,
    /// Only those who execute a `fence.sc` learn it.
    sc_only: bool,
}

#[derive(Clone, Debug)]
pub struct Awaited {
    release: Release,
    agents: Vec<usize>,
    address: Option<(usize, u64)>,
}

#[derive(Clone, Debug, Default)]
pub struct Thread {
    pub block: usize,
    pub warp: usize,
    pub lane: u32,
    pub cluster: usize,
    pub device: usize,
    pub launch: usize,
    pub clock: Clock,
    pub fences: Vec<Release>,
    pub awaited: Vec<Awaited>,
}

#[derive(Clone, Debug)]
pub struct Agent {
    pub issuers: Vec<(usize, Vec<usize>)>,
    /// Each issuing thread's clock at the issue.
    clocks: BTreeMap<usize, Clock>,
    pub per_lane: bool,
    proxy: Proxy,
}

/// A published value: the access that wrote it, and the releases.
#[derive(Clone, Debug)]
struct Value {
    writer: usize,
    element: u32,
    releases: Vec<Release>,
}

#[derive(Clone, Debug, Default)]
pub struct Var {
    pub clock: Clock,
    pub agents: Vec<usize>,
}

#[derive(Clone, Debug, Default)]
pub struct Oracle {
    pub threads: Vec<Thread>,
    pub agents: Vec<Agent>,
    accesses: Vec<Rc<Acc>>,
    /// By space (0 global, 1 + block shared) and byte.
    bytes: HashMap<(usize, u64), Vec<usize>>,
    values: HashMap<(usize, u64), Value>,
    /// Latest release operation of a thread on a location.
    operations: HashMap<(usize, u64, usize), Release>,
    /// Time, thread and kinds.
    proxy_fences: Vec<(u32, usize, u8)>,
    /// Agent, key, thread, time.
    observations: Vec<(usize, Key, usize, u32)>,
}

/// A race found: what kind, with which access, on which byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub kind: RaceKind,
    pub first: Who,
    pub first_time: u32,
    pub byte: u64,
    /// Not to be reported, unless the detector sees it.
    pub soft: bool,
}

impl Found {
    fn new(kind: RaceKind, first: &Acc, byte: u64) -> Self {
        Found { kind, first: first.who, first_time: first.time, byte, soft: false }
    }
}

impl Oracle {
    fn level(&self, a: usize, b: usize) -> Scope {
        let (a, b) = (&self.threads[a], &self.threads[b]);
        if a.block == b.block {
            Scope::Cta
        } else if a.cluster == b.cluster {
            Scope::Cluster
        } else if a.device == b.device {
            Scope::Gpu
        } else {
            Scope::Sys
        }
    }

    /// What the thread's past up to `time` makes known.
    pub fn snapshot(&self, t: usize, time: u32) -> Clock {
        let mut clock = self.threads[t].clock.clone();
        clock.insert((0, Part::Thread(t)), time);
        clock
    }

    fn known(clock: &Clock, part: Part, time: u32) -> bool {
        clock.get(&(0, part)).is_some_and(|&t| t >= time)
    }

    /// Whether `o` is in the past of one with this clock; `me`: an access of the thread itself.
    fn direct(&self, o: &Acc, clock: &Clock, me: Option<usize>) -> bool {
        if clock.contains_key(&(0, Part::Launch(self.threads[o.thread].launch))) && o.thread != 0 {
            return true;
        }
        match o.who {
            Who::Thread(u) => {
                me == Some(u)
                    || Self::known(clock, Part::Thread(u), o.time)
                    || o.strength == Strength::Init && Self::known(clock, Part::Inits(u), o.time)
            }
            Who::Agent(g, lane) => {
                let seen = |key| {
                    Self::known(clock, Part::Agent(g, key), o.time)
                        || !o.write && Self::known(clock, Part::AgentReads(g, key), o.time)
                };
                let agent = &self.agents[g];
                seen(Key::All)
                    || if agent.per_lane { seen(Key::Lane(lane)) } else { agent.issuers.iter().all(|(w, _)| seen(Key::Warp(*w))) }
            }
        }
    }

    /// The clocks that `x`'s access is made with, and the thread whose program order counts.
    fn views(&self, who: Who) -> Vec<(Clock, Option<usize>)> {
        match who {
            Who::Thread(t) => vec![(self.threads[t].clock.clone(), Some(t))],
            Who::Agent(g, lane) => self.agents[g]
                .clocks
                .iter()
                .filter(|(t, _)| !self.agents[g].per_lane || self.threads[**t].lane == lane)
                .map(|(_, c)| (c.clone(), None))
                .collect(),
        }
    }

    /// `soft`: also through agents that have completed.
    fn ordered(&self, o: usize, who: Who, views: &[(Clock, Option<usize>)], at: (usize, u64), soft: bool) -> bool {
        let acc = &self.accesses[o];
        if let (Who::Agent(g, _), Who::Agent(h, _)) = (acc.who, who)
            && g == h
        {
            return true;
        }
        views.iter().all(|(clock, me)| {
            self.direct(acc, clock, *me)
                || self.bytes[&at].iter().any(|&q| {
                    let q = &self.accesses[q];
                    (q.before.contains(&o) || soft && q.agent_before.contains(&o)) && self.direct(q, clock, *me)
                })
        })
    }

    fn mismatch(&self, o: &Acc, x: &Acc) -> Option<RaceKind> {
        let (Strength::Strong(so, eo), Strength::Strong(sx, ex)) = (o.strength, x.strength) else {
            return Some(RaceKind::Unordered);
        };
        if eo != ex {
            Some(RaceKind::MixedSize)
        } else if so.min(sx) < self.level(o.thread, x.thread) {
            Some(RaceKind::InsufficientScope)
        } else if o.proxy != x.proxy {
            Some(RaceKind::Unordered)
        } else {
            None
        }
    }

    fn fenced(&self, writer: usize, after: u32, space: usize, views: &[(Clock, Option<usize>)]) -> bool {
        let bit = match space {
            0 => 1,
            s if s - 1 == self.threads[writer].block => 2,
            _ => 4,
        };
        self.proxy_fences.iter().any(|&(time, t, kinds)| {
            t == writer && time > after && kinds & bit != 0 && views.iter().all(|(c, _)| Self::known(c, Part::Thread(t), time))
        })
    }

    /// One access of a thread's lane or an agent to bytes in a row: the races, and the access is remembered.
    pub fn access(
        &mut self,
        who: Who,
        time: u32,
        space: usize,
        address: u64,
        size: u64,
        write: bool,
        rmw: bool,
        strength: Strength,
    ) -> Vec<Found> {
        let (thread, proxy) = match who {
            Who::Thread(t) => (t, Proxy::Generic),
            Who::Agent(g, _) => (self.agents[g].issuers[0].1[0], self.agents[g].proxy),
        };
        let mut x = Acc { who, thread, time, write, strength, proxy, before: Rc::default(), agent_before: Rc::default() };
        let views = self.views(who);
        let mut found = Vec::new();
        let mut before = BTreeSet::new();
        let mut agent_before = BTreeSet::new();
        let strong = matches!(strength, Strength::Strong(..));
        for byte in address..address + size {
            let Some(past) = self.bytes.get(&(space, byte)) else { continue };
            let last_write = past.iter().rev().find(|&&o| self.accesses[o].write).copied();
            for &o in past {
                let acc = &self.accesses[o];
                let conflict = acc.write || write;
                let same_event = acc.time == time && matches!((acc.who, who), (Who::Thread(_), Who::Thread(_)));
                if same_event && acc.who == who {
                    continue;
                }
                let both_strong = strong && matches!(acc.strength, Strength::Strong(..));
                if same_event && conflict && !both_strong {
                    if acc.strength == Strength::Weak && strength == Strength::Weak {
                        found.push(Found::new(RaceKind::SameInstruction, acc, byte));
                    }
                    continue;
                }
                let ordered = self.ordered(o, who, &views, (space, byte), false);
                let soft = !ordered && self.ordered(o, who, &views, (space, byte), true);
                let mut race = |kind| found.push(Found { soft, ..Found::new(kind, acc, byte) });
                let matching = both_strong && self.mismatch(acc, &x).is_none();
                if matching && (ordered || rmw && last_write == Some(o)) {
                    before.insert(o);
                    before.extend(acc.before.iter());
                }
                if matching && !write && last_write == Some(o) {
                    before.insert(o);
                    before.extend(acc.before.iter());
                }
                // Who has seen an agent complete may take what came before it, on the same bytes, to come before itself.
                if ordered && matches!(who, Who::Agent(..)) && strength == Strength::Weak && (write || !acc.write) {
                    agent_before.insert(o);
                    agent_before.extend(acc.before.iter());
                    agent_before.extend(acc.agent_before.iter());
                }
                if ordered {
                    let generic = matches!(acc.strength, Strength::Weak | Strength::Strong(..))
                        && acc.proxy == Proxy::Generic
                        && proxy == Proxy::Async
                        && strength != Strength::Mbarrier
                        && last_write == Some(o);
                    if generic && self.threads[acc.thread].launch == self.threads[thread].launch && acc.thread != 0 {
                        let ok = match acc.who {
                            Who::Thread(u) => self.fenced(u, acc.time, space, &views),
                            Who::Agent(g, lane) => self.fenced_copy(g, lane, acc.time, space, &views),
                        };
                        if !ok {
                            race(RaceKind::MissingProxyFence);
                        }
                    }
                    continue;
                }
                if !conflict {
                    continue;
                }
                match (acc.strength, strength) {
                    (Strength::Strong(..), Strength::Strong(..)) => {
                        if let Some(kind) = self.mismatch(acc, &x) {
                            race(kind);
                        }
                    }
                    (Strength::Mbarrier, Strength::Mbarrier) => {}
                    (Strength::Init, Strength::Mbarrier) => race(RaceKind::MbarrierInit),
                    _ => race(RaceKind::Unordered),
                }
            }
        }
        x.before = Rc::new(before);
        x.agent_before = Rc::new(agent_before);
        let id = self.accesses.len();
        self.accesses.push(Rc::new(x));
        for byte in address..address + size {
            self.bytes.entry((space, byte)).or_default().push(id);
        }
        found
    }

    /// Whether one who waited for a copy through the generic proxy fenced after it.
    fn fenced_copy(&self, g: usize, lane: u32, time: u32, space: usize, views: &[(Clock, Option<usize>)]) -> bool {
        self.observations.iter().any(|&(agent, key, t, at)| {
            agent == g
                && at >= time
                && match key {
                    Key::Lane(l) => l == lane,
                    _ => true,
                }
                && self.fenced(t, at, space, views)
        })
    }

    /// A strong access of one element by one lane.
    pub fn strong(
        &mut self,
        t: usize,
        time: u32,
        space: usize,
        address: u64,
        element: u32,
        kind: AccessKind,
        sem: Sem,
    ) -> Vec<Found> {
        let at = (space, address);
        let last = |o: &Self| {
            let past = o.bytes.get(&at)?;
            past.iter().rev().find(|&&a| o.accesses[a].write).copied()
        };
        let probe = Acc {
            who: Who::Thread(t),
            thread: t,
            time,
            write: kind.writes(),
            strength: Strength::Strong(sem.scope, element),
            proxy: Proxy::Generic,
            before: Rc::default(),
            agent_before: Rc::default(),
        };
        // The value read, if its write and this access are morally strong.
        let value = |o: &Self| {
            let writer = last(o)?;
            let value = o.values.get(&at)?;
            let linked = value.writer == writer && value.element == element && o.mismatch(&o.accesses[writer], &probe).is_none();
            linked.then(|| value.clone())
        };
        if kind.reads() {
            if sem.acquires() {
                self.acquire_awaited(t, sem.scope, false, Some(at), time);
            }
            if let Some(value) = value(self) {
                for r in value.releases {
                    if sem.acquires() && !r.sc_only && sem.scope.min(r.scope) >= self.level(t, r.thread) {
                        join(&mut self.threads[t].clock, &r.clock);
                    } else {
                        let awaited = Awaited { release: r, agents: Vec::new(), address: Some(at) };
                        self.threads[t].awaited.push(awaited);
                    }
                }
            }
        }
        let read = value(self);
        let rmw = kind == AccessKind::ReadWrite;
        let strength = Strength::Strong(sem.scope, element);
        let found = self.access(Who::Thread(t), time, space, address, u64::from(element), kind.writes(), rmw, strength);
        if kind.writes() {
            let mut releases = if rmw { read.map(|v| v.releases).unwrap_or_default() } else { Vec::new() };
            releases.extend(self.threads[t].fences.iter().cloned());
            for (i, scope) in (1..).zip([Scope::Cta, Scope::Cluster, Scope::Gpu, Scope::Sys]) {
                let of_scope = self.threads[t].clock.iter().filter(|(k, _)| k.0 == i);
                let clock: Clock = of_scope.map(|(k, &v)| ((0, k.1), v)).collect();
                if !clock.is_empty() {
                    releases.push(Release { scope, thread: t, clock, sc_only: true });
                }
            }
            if sem.releases() {
                let clock = self.snapshot(t, time);
                let release = Release { scope: sem.scope, thread: t, clock, sc_only: false };
                self.operations.insert((space, address, t), release);
            }
            releases.extend(self.operations.get(&(space, address, t)).cloned());
            let writer = self.accesses.len() - 1;
            self.values.insert(at, Value { writer, element, releases });
        }
        found
    }

    pub fn fence(&mut self, t: usize, order: FenceOrder, scope: Scope, time: u32) {
        if order != FenceOrder::Release {
            self.acquire_awaited(t, scope, order == FenceOrder::Sc, None, time);
        }
        if order != FenceOrder::Acquire {
            let clock = self.snapshot(t, time);
            if order == FenceOrder::Sc {
                for (&(_, part), &v) in clock.iter().filter(|(k, _)| k.0 == 0) {
                    let e = self.threads[t].clock.entry((1 + scope as u8, part)).or_insert(0);
                    *e = (*e).max(v);
                }
            }
            self.threads[t].fences.push(Release { scope, thread: t, clock, sc_only: false });
        }
    }

    pub fn fence_init(&mut self, t: usize, time: u32) {
        let clock = Clock::from([((0, Part::Inits(t)), time)]);
        self.threads[t].fences.push(Release { scope: Scope::Cluster, thread: t, clock, sc_only: false });
    }

    pub fn fence_proxy(&mut self, t: usize, kinds: u8, time: u32) {
        self.proxy_fences.push((time, t, kinds));
    }

    fn acquire_awaited(&mut self, t: usize, scope: Scope, sc: bool, address: Option<(usize, u64)>, time: u32) {
        let awaited = std::mem::take(&mut self.threads[t].awaited);
        let (now, later): (Vec<_>, Vec<_>) = awaited.into_iter().partition(|a| {
            (address.is_none() || a.address == address)
                && (sc || !a.release.sc_only)
                && scope.min(a.release.scope) >= self.level(t, a.release.thread)
        });
        self.threads[t].awaited = later;
        for a in now {
            join(&mut self.threads[t].clock, &a.release.clock);
            for g in a.agents {
                self.observe(g, Key::All, t, Observe::All, time);
            }
        }
    }

    pub fn release(&self, t: usize, var: &mut Var, time: u32) {
        join(&mut var.clock, &self.snapshot(t, time));
    }

    pub fn release_relaxed(&self, t: usize, var: &mut Var) {
        let alone = self.threads.iter().all(|o| o.cluster != self.threads[t].cluster || o.block == self.threads[t].block);
        for r in &self.threads[t].fences {
            if r.scope >= Scope::Cluster || alone {
                join(&mut var.clock, &r.clock);
            }
        }
    }

    pub fn acquire(&mut self, t: usize, var: &Var, time: u32) {
        join(&mut self.threads[t].clock, &var.clock);
        for &g in &var.agents {
            self.observe(g, Key::All, t, Observe::All, time);
        }
    }

    pub fn acquire_relaxed(&mut self, t: usize, var: &Var) {
        let release = Release { scope: Scope::Sys, thread: t, clock: var.clock.clone(), sc_only: false };
        self.threads[t].awaited.push(Awaited { release, agents: var.agents.clone(), address: None });
    }

    pub fn barrier(&mut self, members: &[usize], arrived: Option<&Var>, time: u32) {
        let mut all = arrived.map(|v| v.clock.clone()).unwrap_or_default();
        for &t in members {
            join(&mut all, &self.snapshot(t, time));
        }
        for &t in members {
            join(&mut self.threads[t].clock, &all);
        }
    }

    pub fn issue(&mut self, issuers: Vec<(usize, Vec<usize>)>, per_lane: bool, proxy: Proxy, time: u32) -> usize {
        self.agents.push(Agent { issuers, clocks: BTreeMap::new(), per_lane, proxy });
        let g = self.agents.len() - 1;
        self.reissue(g, time);
        g
    }

    pub fn reissue(&mut self, g: usize, time: u32) {
        for (_, threads) in self.agents[g].issuers.clone() {
            // Lanes of a warp issue together, but for copies of their own.
            let mut all = Clock::new();
            threads.iter().for_each(|&t| join(&mut all, &self.snapshot(t, time)));
            for &t in &threads {
                let clock = if self.agents[g].per_lane { self.snapshot(t, time) } else { all.clone() };
                self.agents[g].clocks.insert(t, clock);
            }
        }
    }

    /// A thread has seen the agent complete, as far as the key says.
    pub fn observe(&mut self, g: usize, key: Key, t: usize, what: Observe, time: u32) {
        let part = match what {
            Observe::All => Part::Agent(g, key),
            Observe::Reads => Part::AgentReads(g, key),
        };
        self.threads[t].clock.insert((0, part), time);
        if what == Observe::All {
            self.observations.push((g, key, t, time));
        }
    }

    /// The agent completes on an object.
    pub fn complete(&self, g: usize, var: &mut Var) {
        for clock in self.agents[g].clocks.values() {
            join(&mut var.clock, clock);
        }
        var.agents.push(g);
    }
}
