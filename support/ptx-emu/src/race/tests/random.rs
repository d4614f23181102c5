//! Random traces, the detector against the uncompressed model.

use super::oracle::{Found, Key, Oracle, Part, Strength, Thread, Var, Who};
use super::*;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Lanes of the first warp that access memory; the second warp has the first two only.
const LANES: [u32; 5] = [0, 1, 2, 3, 31];
const THREADS: u32 = 34;
/// Weak data below, then words of strong accesses.
const DATA: u64 = 24;
const STRONG: [(u64, u32); 5] = [(32, 4), (36, 4), (40, 8), (48, 2), (50, 2)];
const BAR: u64 = 64;

struct BlockOf {
    id: BlockId,
    launch: usize,
    live: bool,
    /// Thread of each warp and lane.
    threads: [Vec<(u32, usize)>; 2],
    bar: MbarrierSync,
    var: [Var; 2],
}

struct LaunchOf {
    id: LaunchId,
    ended: bool,
    /// What its threads had seen, for those ordered after it.
    seen: oracle::Clock,
}

struct AgentOf {
    id: AgentId,
    issuers: Vec<(usize, usize, u32)>,
    per_lane: bool,
    done: bool,
}

struct Trace {
    rng: Rng,
    d: Detector,
    o: Oracle,
    blocks: Vec<BlockOf>,
    launches: Vec<LaunchOf>,
    agents: Vec<AgentOf>,
    vars: Vec<(SyncVar, Var)>,
    /// Scope of each strong location, when fixed.
    scopes: Option<[Scope; 5]>,
    /// Accesses made.
    made: usize,
    host: oracle::Clock,
}

/// How a trace ended.
enum End {
    Race,
}

impl Trace {
    fn new(seed: u64, fixed_scopes: bool) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..4 {
            rng.next();
        }
        let mut d = Detector::new();
        d.global.side.reads_kept = 1000;
        let mut o = Oracle::default();
        // The host.
        o.threads.push(Thread {
            block: usize::MAX,
            cluster: usize::MAX,
            device: usize::MAX,
            launch: usize::MAX,
            ..Thread::default()
        });
        let all = [Scope::Cta, Scope::Cluster, Scope::Gpu, Scope::Sys];
        let scopes = fixed_scopes.then(|| std::array::from_fn(|_| if rng.one_in(4) { rng.pick(&all) } else { Scope::Sys }));
        let vars = (0..3).map(|_| Default::default()).collect();
        let mut t = Trace {
            rng,
            d,
            o,
            blocks: Vec::new(),
            launches: Vec::new(),
            agents: Vec::new(),
            vars,
            scopes,
            made: 0,
            host: oracle::Clock::new(),
        };
        t.launch(0, 2, 2, &[]);
        t.launch(0, 1, 1, &[]);
        t.launch(1, 1, 1, &[]);
        t
    }

    fn launch(&mut self, device: usize, blocks: u64, cluster: u64, after: &[usize]) {
        let ids: Vec<LaunchId> = after.iter().map(|&l| self.launches[l].id).collect();
        let id = self.d.launch_begin(device as u32, blocks, THREADS, &ids).unwrap();
        let now = self.d.now;
        let mut clock = self.host.clone();
        for &l in after {
            oracle::join(&mut clock, &self.launches[l].seen);
            clock.insert((0, Part::Launch(l)), u32::MAX);
        }
        clock.insert((0, Part::Thread(0)), now);
        let launch = self.launches.len();
        self.launches.push(LaunchOf { id, ended: false, seen: clock.clone() });
        for c in 0..blocks / cluster {
            let members: Vec<u64> = (c * cluster..(c + 1) * cluster).collect();
            let first = self.blocks.len();
            for b in self.d.cluster_begin(id, &members).unwrap() {
                self.d.shared[b.slot as usize].side.reads_kept = 1000;
                let block = self.blocks.len();
                let mut threads = [Vec::new(), Vec::new()];
                for (warp, lanes) in [&LANES[..], &LANES[..2]].into_iter().enumerate() {
                    for &lane in lanes {
                        threads[warp].push((lane, self.o.threads.len()));
                        self.o.threads.push(Thread {
                            block,
                            warp,
                            lane,
                            cluster: first,
                            device,
                            launch,
                            clock: clock.clone(),
                            ..Thread::default()
                        });
                    }
                }
                let block = BlockOf { id: b, launch, live: true, threads, bar: MbarrierSync::new(), var: Default::default() };
                self.blocks.push(block);
            }
        }
    }

    fn end_launch(&mut self, l: usize) {
        for b in 0..self.blocks.len() {
            if self.blocks[b].launch == l && self.blocks[b].live {
                self.blocks[b].live = false;
                self.d.block_end(self.blocks[b].id).unwrap();
            }
        }
        self.d.launch_end(self.launches[l].id).unwrap();
        let mut seen = self.launches[l].seen.clone();
        for t in self.o.threads.iter().filter(|t| t.launch == l) {
            oracle::join(&mut seen, &t.clock);
        }
        self.launches[l].seen = seen;
        self.launches[l].ended = true;
        let blocks = &self.blocks;
        for a in &mut self.agents {
            a.done |= a.issuers.iter().any(|i| !blocks[i.0].live);
        }
    }

    fn block(&mut self) -> usize {
        let live: Vec<usize> = (0..self.blocks.len()).filter(|&b| self.blocks[b].live).collect();
        self.rng.pick(&live)
    }

    /// A warp and some of its lanes: the mask (perhaps of all its lanes) and the threads that count.
    fn who(&mut self) -> (usize, usize, u32, Vec<(u32, usize)>) {
        let b = self.block();
        let w = usize::from(self.rng.one_in(3));
        let threads = self.blocks[b].threads[w].clone();
        match self.rng.below(4) {
            0 => {
                let one = self.rng.pick(&threads);
                (b, w, 1 << one.0, vec![one])
            }
            1 => {
                let some: Vec<_> = threads.iter().copied().filter(|_| !self.rng.one_in(3)).collect();
                if some.is_empty() {
                    return self.who();
                }
                (b, w, some.iter().fold(0, |m, t| m | 1 << t.0), some)
            }
            _ => (b, w, ALL, threads),
        }
    }

    fn warp(&self, b: usize, w: usize) -> Warp {
        Warp { block: self.blocks[b].id, index: w as u32 }
    }

    /// A live block of the same cluster.
    fn near(&mut self, b: usize) -> usize {
        let cluster = |o: usize| self.o.threads[self.blocks[o].threads[0][0].1].cluster;
        let all: Vec<usize> = (0..self.blocks.len()).filter(|&o| self.blocks[o].live && cluster(o) == cluster(b)).collect();
        self.rng.pick(&all)
    }

    /// A space that a block may access, and its number in the model.
    fn space(&mut self, b: usize) -> (Space, usize) {
        let owner = match self.rng.below(5) {
            0 | 1 => return (Space::Global, 0),
            2 => self.near(b),
            _ => b,
        };
        (Space::Shared(self.blocks[owner].id), 1 + owner)
    }

    fn var(&mut self) -> usize {
        self.rng.below(self.vars.len())
    }

    /// Whether a step that races is to be left out, to go further.
    fn leave_out(&mut self, found: &[Found]) -> bool {
        !found.is_empty() && !self.rng.one_in(60)
    }

    /// Compares what both say of one step.
    fn compare(&mut self, outcome: Outcome, found: &[Found], what: &str) -> Option<End> {
        self.made += 1;
        let exact = self.scopes.is_some();
        match outcome {
            Ok(()) => {
                let missed = found.iter().any(|f| !f.soft);
                assert!(!missed || !exact, "{what}: not seen: {found:?}");
                if missed { Some(End::Race) } else { None }
            }
            Err(report) => {
                let Report::Race(race) = *report else { panic!("{what}: {report}") };
                let matches = found.iter().any(|f| {
                    f.kind == race.kind
                        && f.first_time == race.first.time
                        && matches!(
                            (f.first, race.first.actor),
                            (Who::Agent(..), Actor::Agent { .. }) | (Who::Thread(_), Actor::Thread { .. } | Actor::Host)
                        )
                });
                assert!(matches, "{what}: {race:?} is none of {found:?}");
                // Lanes of one instruction have no first and second.
                if let Actor::Thread { lane, .. } = race.first.actor
                    && race.kind != RaceKind::SameInstruction
                {
                    let named = found.iter().any(|f| {
                        f.first_time == race.first.time && matches!(f.first, Who::Thread(t) if self.o.threads[t].lane == lane)
                    });
                    assert!(named, "{what}: lane {lane}: {race:?} is none of {found:?}");
                }
                Some(End::Race)
            }
        }
    }

    fn weak(&mut self) -> Option<End> {
        let (b, w, mask, threads) = self.who();
        // Lanes that the model does not follow do not access.
        let mask = threads.iter().fold(0, |m, t| m | 1 << t.0) & mask;
        let (space, number) = self.space(b);
        let size = self.rng.pick(&[1u64, 1, 2, 2, 4, 4, 4, 8, 16]);
        let stride = self.rng.pick(&[0, size, size, size, 4, 8]).max(if size > 4 { size } else { 0 });
        let stride = if self.rng.one_in(6) { 0 } else { stride };
        let region = if self.rng.one_in(12) { BAR + 8 } else { DATA };
        let base = self.rng.below((region / size) as usize) as u64 * size;
        // Lane 31 goes on after lane 3.
        let place = |lane: u32| base + stride * u64::from(lane.min(4));
        let base_addresses: [u64; 32] = std::array::from_fn(|l| place(l as u32));
        let kind = if self.rng.one_in(2) { AccessKind::Read } else { AccessKind::Write };
        let saved = self.o.clone();
        let time = self.d.now + 1;
        let mut found = Vec::new();
        for &(lane, t) in &threads {
            let at = base_addresses[lane as usize];
            found.extend(self.o.access(Who::Thread(t), time, number, at, size, kind.writes(), false, Strength::Weak));
        }
        if self.leave_out(&found) {
            self.o = saved;
            return None;
        }
        let access = Access {
            space,
            kind,
            sem: Sem::WEAK,
            mask,
            addresses: &base_addresses,
            size: size as u32,
            element: size as u32,
            site: 0,
            agree: None,
        };
        let outcome = self.d.access(self.warp(b, w), &access);
        let what = format!("block {b} warp {w} mask {mask:#x} {kind:?} {space:?} {base}+{stride} size {size} time {time}");
        self.compare(outcome, &found, &what)
    }

    fn strong(&mut self) -> Option<End> {
        let (b, w, mask, threads) = self.who();
        let mask = threads.iter().fold(0, |m, t| m | 1 << t.0) & mask;
        let (space, number) = self.space(b);
        let which = self.rng.below(STRONG.len());
        let (address, element) = STRONG[which];
        let element = if self.scopes.is_none() && self.rng.one_in(8) { 4.min(element) } else { element };
        let kind = self.rng.pick(&[AccessKind::Read, AccessKind::Write, AccessKind::ReadWrite]);
        let order = self.rng.pick(match kind {
            AccessKind::Read => &[Order::Relaxed, Order::Acquire][..],
            AccessKind::Write => &[Order::Relaxed, Order::Release],
            AccessKind::ReadWrite => &[Order::Relaxed, Order::Acquire, Order::Release, Order::AcqRel],
        });
        let all = [Scope::Cta, Scope::Cluster, Scope::Gpu, Scope::Sys];
        let scope = match &self.scopes {
            Some(s) => s[which],
            None => self.rng.pick(&all),
        };
        let sem = Sem::new(order, scope);
        let saved = self.o.clone();
        let time = self.d.now + 1;
        let mut found = Vec::new();
        for &(_, t) in &threads {
            found.extend(self.o.strong(t, time, number, address, element, kind, sem));
        }
        if self.leave_out(&found) {
            self.o = saved;
            return None;
        }
        let access = Access { space, kind, sem, mask, addresses: &[address; 32], size: element, element, site: 0, agree: None };
        let outcome = self.d.access(self.warp(b, w), &access);
        let what = format!("block {b} warp {w} mask {mask:#x} {kind:?} {sem:?} {space:?} {address} time {time}");
        self.compare(outcome, &found, &what)
    }

    fn fence(&mut self) {
        let (b, w, mask, threads) = self.who();
        let warp = self.warp(b, w);
        let scope = self.rng.pick(&[Scope::Cta, Scope::Cluster, Scope::Gpu, Scope::Sys, Scope::Sys]);
        let order = self.rng.pick(&[FenceOrder::Acquire, FenceOrder::Release, FenceOrder::AcqRel, FenceOrder::Sc]);
        self.d.fence(warp, mask, order, scope).unwrap();
        let now = self.d.now;
        for (_, t) in threads {
            self.o.fence(t, order, scope, now);
        }
    }

    fn proxy_fence(&mut self) {
        let (b, w, mask, threads) = self.who();
        let kinds = self.rng.pick(&[
            ProxyFence::ALL,
            ProxyFence::ALL,
            ProxyFence::GLOBAL,
            ProxyFence::SHARED_CTA,
            ProxyFence::SHARED_CLUSTER,
        ]);
        self.d.fence_proxy_async(self.warp(b, w), mask, kinds).unwrap();
        for (_, t) in threads {
            self.o.fence_proxy(t, kinds.0, self.d.now);
        }
    }

    fn barrier(&mut self) {
        let b = self.block();
        let mut members: Vec<(u32, u32)> = vec![(0, ALL), (1, ALL)];
        let mut threads: Vec<usize> = self.blocks[b].threads.iter().flatten().map(|t| t.1).collect();
        let mut var = None;
        match self.rng.below(5) {
            0 => {
                // Not all lanes: the others have exited, as it were.
                let some: Vec<_> = self.blocks[b].threads[0].iter().copied().filter(|_| !self.rng.one_in(3)).collect();
                members[0].1 = some.iter().fold(0, |m, t| m | 1 << t.0);
                threads.retain(|&t| self.o.threads[t].warp == 1 || some.iter().any(|s| s.1 == t));
                members.retain(|m| m.1 != 0);
            }
            1 => {
                let gone = self.rng.below(2);
                members.remove(gone);
                threads.retain(|&t| self.o.threads[t].warp != gone);
                var = Some(self.var());
            }
            _ => {}
        }
        let arrived = var.map(|v| self.vars[v].0.clone());
        self.d.barrier(self.blocks[b].id, &members, arrived.as_ref()).unwrap();
        self.o.barrier(&threads, var.map(|v| &self.vars[v].1), self.d.now);
    }

    fn warp_barrier(&mut self) {
        let (b, w, mask, threads) = self.who();
        self.d.warp_barrier(self.warp(b, w), mask).unwrap();
        let threads: Vec<usize> = threads.iter().map(|t| t.1).collect();
        self.o.barrier(&threads, None, self.d.now);
    }

    fn release(&mut self) {
        let (b, w, mask, threads) = self.who();
        let (warp, v) = (self.warp(b, w), self.var());
        let relaxed = self.rng.one_in(4);
        if self.rng.one_in(4) {
            self.vars[v] = Default::default();
        }
        let (sync, var) = &mut self.vars[v];
        if relaxed {
            self.d.release_relaxed(warp, mask, sync).unwrap();
        } else {
            self.d.release(warp, mask, sync).unwrap();
        }
        for (_, t) in threads {
            if relaxed {
                self.o.release_relaxed(t, var);
            } else {
                self.o.release(t, var, self.d.now);
            }
        }
    }

    fn acquire(&mut self) {
        let (b, w, mask, threads) = self.who();
        let (warp, v) = (self.warp(b, w), self.var());
        let relaxed = self.rng.one_in(4);
        let (sync, var) = &mut self.vars[v];
        if relaxed {
            self.d.acquire_relaxed(warp, mask, sync).unwrap();
        } else {
            self.d.acquire(warp, mask, sync).unwrap();
        }
        for (_, t) in threads {
            if relaxed {
                self.o.acquire_relaxed(t, var);
            } else {
                self.o.acquire(t, var, self.d.now);
            }
        }
    }

    fn mbarrier(&mut self) -> Option<End> {
        let (b, w, mask, threads) = self.who();
        // Only lanes that the model follows.
        let mask = mask & threads.iter().fold(0, |m, t| m | 1 << t.0);
        let owner = if self.rng.one_in(3) { self.near(b) } else { b };
        let warp = self.warp(b, w);
        let id = self.blocks[owner].id;
        let saved = self.o.clone();
        let time = self.d.now + 1;
        let space = 1 + owner;
        let op = self.rng.below(12);
        let strength = match op {
            0 => Strength::Init,
            1 => Strength::Weak,
            _ => Strength::Mbarrier,
        };
        let one = [self.rng.pick(&threads)];
        let who = if op < 2 { &one[..] } else { &threads[..] };
        let write = op < 7;
        let mut found = Vec::new();
        for &(_, t) in who {
            found.extend(self.o.access(Who::Thread(t), time, space, BAR, 8, write, false, strength));
        }
        if self.leave_out(&found) {
            self.o = saved;
            return None;
        }
        let bar = &mut self.blocks[owner].bar;
        let relaxed = op == 6;
        let passed = op > 8;
        let outcome = match op {
            0 => self.d.mbarrier_init(warp, one[0].0, id, BAR, 0),
            1 => self.d.mbarrier_inval(warp, one[0].0, id, BAR, 0),
            2..=6 => self.d.mbarrier_arrive(bar, id, BAR, warp, mask, relaxed, 0),
            _ => self.d.mbarrier_wait(bar, id, BAR, warp, mask, passed, op == 9, 0),
        };
        let now = self.d.now;
        for &(_, t) in &threads {
            match op {
                2..=5 => self.o.release(t, &mut self.blocks[owner].var[0], now),
                6 => self.o.release_relaxed(t, &mut self.blocks[owner].var[0]),
                9 => self.o.acquire_relaxed(t, &self.blocks[owner].var[1]),
                10.. => self.o.acquire(t, &self.blocks[owner].var[1], now),
                _ => {}
            }
        }
        if (2..=6).contains(&op) && self.rng.one_in(2) {
            self.complete_phase(owner);
        }
        self.compare(outcome, &found, &format!("mbarrier {op} of block {owner} by block {b} warp {w} mask {mask:#x} time {time}"))
    }

    fn complete_phase(&mut self, owner: usize) {
        let block = &mut self.blocks[owner];
        block.bar.complete_phase();
        block.var[1] = std::mem::take(&mut block.var[0]);
    }

    fn init_fence(&mut self) {
        let (b, w, mask, threads) = self.who();
        self.d.fence_mbarrier_init(self.warp(b, w), mask).unwrap();
        for (_, t) in threads {
            self.o.fence_init(t, self.d.now);
        }
    }

    fn issue(&mut self) {
        let (b, w, mask, threads) = self.who();
        // Only lanes that the model follows issue.
        let mask = mask & threads.iter().fold(0, |m, t| m | 1 << t.0);
        let per_lane = self.rng.one_in(3);
        let proxy = if self.rng.one_in(3) { Proxy::Generic } else { Proxy::Async };
        let mut issuers = vec![(b, w, mask)];
        let mut model = vec![(b * 2 + w, threads.iter().map(|t| t.1).collect())];
        if !per_lane && self.rng.one_in(3) {
            let v = 1 - w;
            let other = self.blocks[b].threads[v].clone();
            issuers.push((b, v, other.iter().fold(0, |m, t| m | 1 << t.0)));
            model.push((b * 2 + v, other.iter().map(|t| t.1).collect()));
        }
        let named: Vec<(Warp, u32)> = issuers.iter().map(|i| (self.warp(i.0, i.1), i.2)).collect();
        let id = self.d.agent_issue(AgentKind::Bulk, proxy, &named, per_lane).unwrap();
        self.o.issue(model, per_lane, proxy, self.d.now);
        self.agents.push(AgentOf { id, issuers, per_lane, done: false });
    }

    fn agent(&mut self) -> Option<usize> {
        let live: Vec<usize> = (0..self.agents.len()).filter(|&g| !self.agents[g].done).collect();
        if live.is_empty() {
            return None;
        }
        Some(self.rng.pick(&live))
    }

    fn agent_access(&mut self) -> Option<End> {
        let g = self.agent()?;
        let (b, _, mask) = self.agents[g].issuers[0];
        let (space, number) = self.space(b);
        let kind = if self.rng.one_in(2) { AccessKind::Read } else { AccessKind::Write };
        let saved = self.o.clone();
        let time = self.d.now + 1;
        let mut found = Vec::new();
        let id = self.agents[g].id;
        if self.agents[g].per_lane {
            let size = self.rng.pick(&[4u64, 8, 16]);
            let base = self.rng.below((DATA / size) as usize) as u64 * size;
            let addresses: [u64; 32] = std::array::from_fn(|l| base + size * (l as u64).min(4));
            for lane in LANES.into_iter().filter(|l| mask >> l & 1 != 0) {
                let who = Who::Agent(g, lane);
                let at = addresses[lane as usize];
                found.extend(self.o.access(who, time, number, at, size, kind.writes(), false, Strength::Weak));
            }
            if self.leave_out(&found) {
                self.o = saved;
                return None;
            }
            let access = Access {
                space,
                kind,
                sem: Sem::WEAK,
                mask,
                addresses: &addresses,
                size: size as u32,
                element: size as u32,
                site: 0,
                agree: None,
            };
            let outcome = self.d.agent_access_lanes(id, &access);
            return self.compare(
                outcome,
                &found,
                &format!("lanes of agent {g} {kind:?} {space:?} {base} size {size} time {time}"),
            );
        }
        let len = 1 + self.rng.below(20) as u64;
        let address = self.rng.below(DATA as usize) as u64;
        found.extend(self.o.access(Who::Agent(g, 0), time, number, address, len, kind.writes(), false, Strength::Weak));
        if self.leave_out(&found) {
            self.o = saved;
            return None;
        }
        let access = AgentAccess { space, kind, sem: Sem::WEAK, element: 1, site: 0 };
        let outcome = self.d.agent_access(id, &access, &[(address, len)]);
        self.compare(outcome, &found, &format!("agent {g} {kind:?} {space:?} {address}..+{len} time {time}"))
    }

    fn agent_step(&mut self) -> Option<End> {
        let g = self.agent()?;
        let id = self.agents[g].id;
        match self.rng.below(8) {
            0 => {
                let issuers: Vec<_> = self.agents[g].issuers.iter().map(|i| (self.warp(i.0, i.1), i.2)).collect();
                self.d.agent_reissue(id, &issuers).unwrap();
                self.o.reissue(g, self.d.now);
            }
            1..=4 => {
                let what = if self.rng.one_in(3) { Observe::Reads } else { Observe::All };
                let per_lane = self.agents[g].per_lane;
                for (b, w, mask) in self.agents[g].issuers.clone() {
                    if self.rng.one_in(4) {
                        continue;
                    }
                    let waiting = if self.rng.one_in(3) { ALL } else { 1 << LANES[self.rng.below(5)] };
                    if waiting & mask == 0 {
                        continue;
                    }
                    self.d.agent_observe(id, self.warp(b, w), waiting, what).unwrap();
                    for (lane, t) in self.blocks[b].threads[w].clone() {
                        if (waiting & mask) >> lane & 1 != 0 {
                            let key = if per_lane { Key::Lane(lane) } else { Key::Warp(b * 2 + w) };
                            self.o.observe(g, key, t, what, self.d.now);
                        }
                    }
                }
            }
            5 | 6 => {
                let (b, _, _) = self.agents[g].issuers[0];
                let owner = self.near(b);
                if self.agents[g].per_lane {
                    return None;
                }
                let saved = self.o.clone();
                let time = self.d.now + 1;
                let found = self.o.access(Who::Agent(g, 0), time, 1 + owner, BAR, 8, true, false, Strength::Mbarrier);
                if self.leave_out(&found) {
                    self.o = saved;
                    return None;
                }
                let id_of_owner = self.blocks[owner].id;
                let outcome = self.d.mbarrier_complete(&mut self.blocks[owner].bar, id_of_owner, BAR, id, 0);
                self.o.complete(g, &mut self.blocks[owner].var[0]);
                if self.rng.one_in(2) {
                    self.complete_phase(owner);
                }
                return self.compare(outcome, &found, &format!("agent {g} on the mbarrier of {owner} time {time}"));
            }
            _ => {
                self.agents[g].done = true;
                self.d.agent_retire(id);
                if self.rng.one_in(4) {
                    self.d.sweep_agents();
                }
            }
        }
        None
    }

    fn launches(&mut self) {
        let running: Vec<usize> = (0..self.launches.len()).filter(|&l| !self.launches[l].ended).collect();
        let ended: Vec<usize> = (0..self.launches.len()).filter(|&l| self.launches[l].ended).collect();
        match self.rng.below(4) {
            0 if running.len() > 1 => {
                let l = self.rng.pick(&running);
                self.end_launch(l);
            }
            1 | 2 if self.launches.len() < 6 => {
                let after: Vec<usize> = ended.into_iter().filter(|_| self.rng.one_in(2)).collect();
                let device = self.rng.below(2);
                let blocks = 1 + self.rng.below(2) as u64;
                self.launch(device, blocks, blocks, &after);
            }
            3 if !ended.is_empty() => {
                let l = self.rng.pick(&ended);
                self.d.host_wait(&[self.launches[l].id]).unwrap();
                let seen = self.launches[l].seen.clone();
                oracle::join(&mut self.host, &seen);
                self.host.insert((0, Part::Launch(l)), u32::MAX);
            }
            _ => {
                // A dependent launch waits.
                if let Some(&l) = ended.first() {
                    let (b, w, mask, threads) = self.who();
                    self.d.launch_wait(self.warp(b, w), mask, self.launches[l].id).unwrap();
                    for (_, t) in threads {
                        let seen = self.launches[l].seen.clone();
                        oracle::join(&mut self.o.threads[t].clock, &seen);
                        self.o.threads[t].clock.insert((0, Part::Launch(l)), u32::MAX);
                    }
                }
            }
        }
    }

    fn host(&mut self) -> Option<End> {
        let kind = if self.rng.one_in(2) { AccessKind::Read } else { AccessKind::Write };
        let (address, len) = (self.rng.below(24) as u64, 1 + self.rng.below(8) as u64);
        let saved = self.o.clone();
        let time = self.d.now + 1;
        self.o.threads[0].clock = self.host.clone();
        let found = self.o.access(Who::Thread(0), time, 0, address, len, kind.writes(), false, Strength::Weak);
        if self.leave_out(&found) {
            self.o = saved;
            return None;
        }
        let outcome = self.d.host_access(address, len, kind, 0);
        self.compare(outcome, &found, &format!("host {kind:?} {address}..+{len} time {time}"))
    }

    fn step(&mut self) -> Option<End> {
        match self.rng.below(40) {
            0..=13 => self.weak(),
            14..=19 => self.strong(),
            20 | 21 => self.mbarrier(),
            22..=24 => self.agent_access(),
            25 | 26 => self.agent_step(),
            27 => self.host(),
            other => {
                match other {
                    28 | 29 => self.fence(),
                    30 => self.proxy_fence(),
                    31 | 32 => self.barrier(),
                    33 => self.warp_barrier(),
                    34 => self.release(),
                    35 => self.acquire(),
                    36 => self.init_fence(),
                    37 | 38 => self.issue(),
                    _ => self.launches(),
                }
                None
            }
        }
    }
}

/// Runs traces; how many ended in a race, and how many accesses were made in all.
fn run(seeds: std::ops::Range<u64>, steps: usize, fixed_scopes: bool) -> (usize, usize) {
    let (mut races, mut made) = (0, 0);
    for seed in seeds {
        let mut t = Trace::new(seed, fixed_scopes);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..steps {
                if let Some(End::Race) = t.step() {
                    return true;
                }
            }
            false
        }));
        match result {
            Ok(race) => races += usize::from(race),
            Err(why) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(why);
            }
        }
        made += t.made;
        assert_eq!(t.d.stats().dropped_records, 0);
    }
    (races, made)
}

#[test]
fn the_detector_says_what_the_uncompressed_model_says() {
    let (races, made) = run(0..1500, 250, true);
    // Both verdicts occur often.
    assert!(races > 600 && races < 1400, "{races}");
    assert!(made > 50_000, "{made}");
}

#[test]
fn nothing_is_reported_that_is_not_a_race_when_scopes_are_mixed() {
    let (races, made) = run(10_000..10_700, 250, false);
    assert!(races > 100 && races < 690, "{races}");
    assert!(made > 15_000, "{made}");
}
