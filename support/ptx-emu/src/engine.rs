//! Runs clusters: which warp goes next, when asynchronous operations complete, and what it means when nothing goes on.
//!
//! One [`Engine`] belongs to one operating-system thread. With one thread (always, when detectors are on) everything that happens is a
//! function of the seed. Few clusters are active at a time, which keeps memory and caches small; as long as the
//! active ones do not end, more are started, up to what the device has room for, so that blocks which wait for one another meet.

use crate::ast::Loc;
use crate::config::Config;
use crate::cx::{Block, Cluster, Frame, Group, Wait, Warp};
use crate::detect::Detector;
use crate::fault::Fault;
use crate::interp::{self, Located, Surroundings, Turn};
use crate::machine::{Env, Inner, Launch};
use crate::memory::SharedMemory;
use crate::race;
use crate::regs::LANES;
use crate::report::{Finding, Kind, Report, Site, ThreadId};
use crate::rng::Rng;
use crate::stream::{Assignment, State, Waiting};
use crate::sync;
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

/// Instructions without any change that another thread could see, after which states are compared to find a livelock.
const SUSPICIOUS: u64 = 100_000;
/// Instructions of all active clusters after which one more is started.
const PATIENCE: u64 = 30_000;

/// Instructions without any visible change after which one more is started with every slice.
const POLLING: u64 = 3_000;

/// What one slice of work came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slice {
    /// Something was done.
    Worked,
    /// Nothing to run.
    Idle,
    /// Clusters are active and none can go on.
    Stuck,
}

struct Active {
    cluster: Box<Cluster>,
    /// Warps that have not ended.
    warps: usize,
    /// Digests of states seen since anything last changed, one set a warp, and whether the warp has come round.
    seen: Vec<HashSet<u64>>,
    circles: Vec<bool>,
}

/// A read of memory that nothing wrote. Whoever was to write it may come later, and then it is a race: the report waits for that.
struct Suspicion {
    report: Report,
    /// The launch: when it ends, nobody has come.
    launch: u64,
    /// The read: block, warp, function and instruction.
    read: ([u32; 3], u32, (u32, u32)),
}

/// Runs clusters on one operating-system thread.
pub struct Engine {
    active: Vec<Active>,
    rng: Rng,
    seed: u64,
    detector: Option<Box<Detector>>,
    window: usize,
    since_start: u64,
    turn: usize,
    progressed: u64,
    quiet: u64,
    /// Instructions not yet added to the machine's count: of warps, of threads.
    executed: (u64, u64),
    suspicion: Option<Suspicion>,
}

impl Engine {
    /// With nothing to run.
    pub fn new(config: &Config, seed: u64) -> Engine {
        let mut rng = Rng::new(seed);
        let window = if seed == 0 { 1 } else { 1 + rng.below(4) };
        Engine {
            active: vec![],
            rng,
            seed,
            detector: (config.checks.races && config.threads <= 1).then(Box::default),
            window,
            since_start: 0,
            turn: 0,
            progressed: 0,
            quiet: 0,
            executed: (0, 0),
            suspicion: None,
        }
    }

    /// Instructions of one turn of a warp.
    fn quantum(&mut self) -> u64 {
        if self.seed == 0 {
            return 256;
        }
        let most = 1usize << self.rng.below(8);
        1 + self.rng.below(most) as u64
    }

    /// Starts clusters and gives one of the active ones a turn.
    fn slice(&mut self, inner: &Inner) -> Result<Slice, Report> {
        let env = &inner.env;
        // Blocks that only poll may be waiting for some that have not started.
        let crowded =
            self.active.len() >= self.window && self.quiet < POLLING && self.since_start < PATIENCE * self.active.len() as u64;
        if !crowded || self.active.is_empty() {
            let mut state = lock_state(inner);
            self.tell_ended(&mut state)?;
            pump(&mut state, env, self.seed)?;
            if let Some(assignment) = state.assign() {
                drop(state);
                self.since_start = 0;
                self.start(env, assignment)?;
            }
        }
        if self.active.is_empty() {
            return Ok(Slice::Idle);
        }
        self.turn = if self.seed == 0 { (self.turn + 1) % self.active.len() } else { self.rng.below(self.active.len()) };
        let mut worked = self.turn_of(inner, self.turn)?;
        if !worked {
            // This one cannot go on: perhaps another can.
            for i in 0..self.active.len() {
                worked = self.turn_of(inner, i)?;
                if worked {
                    break;
                }
            }
        }
        if !worked {
            self.since_start = u64::MAX / 2; // time to start what else there is
            return Ok(Slice::Stuck);
        }
        self.livelock(inner)?;
        Ok(Slice::Worked)
    }

    /// Lets the race detector know which launches are over.
    fn tell_ended(&mut self, state: &mut State) -> Result<(), Report> {
        let Some(detector) = &mut self.detector else {
            state.ended.clear();
            return Ok(());
        };
        for id in state.ended.drain(..) {
            if let Some(&launch) = detector.launches.get(&id) {
                detector.race.launch_end(launch).map_err(|e| plain(e, self.seed))?;
            }
        }
        Ok(())
    }

    /// The host has waited for everything.
    fn host_sync(&mut self, state: &mut State) -> Result<(), Report> {
        self.tell_ended(state)?;
        if let Some(detector) = &mut self.detector {
            detector.race.host_sync().map_err(|e| plain(e, self.seed))?;
            detector.launches.clear();
            detector.started.clear();
        }
        Ok(())
    }

    fn start(&mut self, env: &Env, assignment: Assignment) -> Result<(), Report> {
        let Assignment { launch, cluster, sm } = assignment;
        let size = launch.cluster_size();
        let per: [u32; 3] = std::array::from_fn(|i| launch.grid[i] / launch.cluster[i]);
        let position = unravel(cluster, per);
        let indices: Vec<[u32; 3]> = (0..size)
            .map(|rank| {
                let inside = unravel(u64::from(rank), launch.cluster);
                std::array::from_fn(|i| position[i] * launch.cluster[i] + inside[i])
            })
            .collect();
        let races = match &mut self.detector {
            None => vec![None; size as usize],
            Some(detector) => {
                let begun = (|| {
                    let id = match detector.launches.get(&launch.id) {
                        Some(&id) => id,
                        None => {
                            let after: Vec<_> = launch.after.iter().filter_map(|l| detector.launches.get(l).copied()).collect();
                            let id = detector.race.launch_begin(launch.device, launch.blocks(), launch.threads(), &after)?;
                            detector.launches.insert(launch.id, id);
                            detector.started.insert(id, Arc::clone(&launch));
                            id
                        }
                    };
                    let linear: Vec<u64> = indices.iter().map(|&index| ravel(index, launch.grid)).collect();
                    detector.race.cluster_begin(id, &linear)
                })();
                begun.map_err(|e| plain(e, self.seed))?.into_iter().map(Some).collect()
            }
        };
        let track = env.config.checks.uninitialized;
        let shared = || {
            let mut shared = SharedMemory::new(launch.shared_size, track);
            if let Some((id, bytes)) = launch.program.reserved
                && launch.symbols[id as usize] != 0
            {
                shared.define(launch.symbols[id as usize], bytes); // the system zeroes it
            }
            shared
        };
        let blocks: Vec<Block> = indices
            .into_iter()
            .zip(races)
            .enumerate()
            .map(|(rank, (index, race))| Block {
                index,
                shared: shared(),
                view: Default::default(),
                sync: sync::BlockState::new((sm + rank as u32) % launch.sm_count),
                tensor: Default::default(),
                warps: warps(&launch),
                live_threads: launch.threads(),
                race,
            })
            .collect();
        let count: usize = blocks.iter().map(|b| b.warps.len()).sum();
        let cluster = Box::new(Cluster { launch, blocks, sync: Default::default() });
        self.active.push(Active { cluster, warps: count, seen: vec![HashSet::new(); count], circles: vec![false; count] });
        self.progressed = u64::MAX; // a new cluster is a change
        Ok(())
    }

    /// Gives every warp of an active cluster a turn; whether anything happened.
    fn turn_of(&mut self, inner: &Inner, at: usize) -> Result<bool, Report> {
        let env = &inner.env;
        let mut worked = false;
        let mut executed = 0;
        let blocks = self.active[at].cluster.blocks.len();
        let per_block = self.active[at].cluster.blocks[0].warps.len();
        let first = if self.seed == 0 { 0 } else { self.rng.below(blocks * per_block) };
        for i in 0..blocks * per_block {
            let flat = (first + i) % (blocks * per_block);
            let (rank, index) = (flat / per_block, flat % per_block);
            let Some(mut warp) = self.active[at].cluster.blocks[rank].warps[index].take() else { continue };
            let quantum = self.quantum();
            let shuffle = self.seed != 0;
            let active = &mut self.active[at];
            let mut around = Surroundings {
                env,
                cluster: &mut active.cluster,
                rank,
                detector: self.detector.as_deref_mut(),
                rng: &mut self.rng,
                shuffle,
            };
            let before = warp.thread_executed;
            let result = interp::run(&mut warp, &mut around, quantum);
            match result {
                Err(located) => {
                    let launch = Arc::clone(&self.active[at].cluster.launch);
                    let block = self.active[at].cluster.blocks[rank].index;
                    let (kind, read) = (located.fault.kind, (block, warp.index, located.at));
                    let report = self.report(inner, &launch, block, &warp, located);
                    if kind != Kind::UninitializedMemory || self.detector.is_none() {
                        return Err(report);
                    }
                    self.suspect(env, Suspicion { report, launch: launch.id, read })?;
                    self.active[at].cluster.blocks[rank].warps[index] = Some(warp);
                    worked = true;
                }
                Ok((turn, done)) => {
                    executed += done;
                    self.executed.1 += warp.thread_executed - before;
                    worked |= done > 0;
                    if turn == Turn::Done {
                        active.warps -= 1;
                        active.seen[flat].clear();
                        active.circles[flat] = false;
                        worked = true;
                    } else {
                        if self.quiet > SUSPICIOUS && turn == Turn::Ready {
                            let digest = digest(&warp);
                            let seen = &mut active.seen[flat];
                            if !seen.insert(digest) {
                                active.circles[flat] = true;
                            } else if seen.len() > 4096 {
                                seen.clear();
                            }
                        }
                        active.cluster.blocks[rank].warps[index] = Some(warp);
                    }
                }
            }
            // Asynchronous operations complete in between: at once without a seed, now and then with one.
            if self.seed == 0 || self.rng.one_in(3) {
                worked |= self.advance(inner, at)?;
            }
        }
        if !worked {
            worked = self.advance(inner, at)?;
        }
        let launch = Arc::clone(&self.active[at].cluster.launch);
        let total = launch.executed.fetch_add(executed, Ordering::Relaxed) + executed;
        self.executed.0 += executed;
        self.since_start += executed;
        self.quiet += executed;
        if total > env.config.budget {
            return Err(self.stopped(
                inner,
                Kind::Budget,
                format!("{} executed more than {} warp instructions", launch.name(), env.config.budget),
                Some(&launch),
            ));
        }
        if self.active[at].warps == 0 {
            while self.advance(inner, at)? {}
            let mut done = self.active.swap_remove(at);
            self.end(inner, &mut done.cluster)?;
            worked = true;
        }
        Ok(worked)
    }

    /// Lets a read of memory that nothing wrote pass, for now: the instruction is executed again, and all memory counts as written.
    fn suspect(&mut self, env: &Env, suspicion: Suspicion) -> Result<(), Report> {
        match &self.suspicion {
            // That did not help.
            Some(known) if known.launch == suspicion.launch && known.read == suspicion.read => return Err(suspicion.report),
            Some(_) => {}
            None => self.suspicion = Some(suspicion),
        }
        env.memory.define_all();
        for block in self.active.iter_mut().flat_map(|active| &mut active.cluster.blocks) {
            let size = block.shared.size();
            block.shared.define(0, size);
        }
        Ok(())
    }

    /// What to report when something goes wrong after a read of memory that nothing wrote: a race explains the read, the read explains all else.
    fn explained(&mut self, mut report: Report) -> Report {
        let Some(Suspicion { report: mut read, .. }) = self.suspicion.take() else { return report };
        if matches!(report.kind, Kind::DataRace | Kind::InsufficientScope | Kind::MissingProxyFence) {
            let at = read
                .site
                .iter()
                .map(|s| format!(", {s}"))
                .chain(read.thread.iter().map(|t| format!(", {t}")))
                .collect::<String>();
            report.details.push(format!("earlier: {}: {}{at}", read.kind, read.message));
            return report;
        }
        read.details.push(format!("later: {}: {}", report.kind, report.message));
        read
    }

    fn advance(&mut self, inner: &Inner, at: usize) -> Result<bool, Report> {
        let cluster = &mut *self.active[at].cluster;
        if sync::pending(&cluster.sync) == 0 {
            return Ok(false);
        }
        let launch = Arc::clone(&cluster.launch);
        let detector = self.detector.as_deref_mut();
        match sync::advance(&inner.env, &launch, &mut cluster.blocks, &mut cluster.sync, detector, &mut self.rng) {
            Ok(done) => {
                if done {
                    inner.env.progress();
                }
                Ok(done)
            }
            Err(fault) => {
                let mut report = self.words(inner, &launch, *fault);
                report.message = format!("{} (an asynchronous operation of kernel {})", report.message, launch.name());
                Err(report)
            }
        }
    }

    fn end(&mut self, inner: &Inner, cluster: &mut Cluster) -> Result<(), Report> {
        let launch = &cluster.launch;
        if let Some(what) = cluster.blocks.iter().find_map(|block| block.tensor.unfinished()) {
            return Err(self.stopped(inner, Kind::Divergence, what, Some(launch)));
        }
        if let Some(detector) = &mut self.detector {
            for block in &cluster.blocks {
                if let Some(race) = block.race {
                    detector.race.block_end(race).map_err(|e| plain(e, self.seed))?;
                }
            }
        }
        let mut state = lock_state(inner);
        state.finish(launch);
        let (warps, threads) = std::mem::take(&mut self.executed);
        state.executed += warps;
        state.thread_instructions += threads;
        self.tell_ended(&mut state)?;
        inner.env.progress();
        if launch.finished.load(Ordering::Acquire)
            && let Some(suspicion) = self.suspicion.take_if(|s| s.launch == launch.id)
        {
            return Err(suspicion.report);
        }
        Ok(())
    }

    /// Nothing has changed for long: finds out whether all warps run in circles.
    fn livelock(&mut self, inner: &Inner) -> Result<(), Report> {
        let now = inner.env.progressed();
        if now != self.progressed {
            self.progressed = now;
            if self.quiet > SUSPICIOUS {
                for active in &mut self.active {
                    active.seen.iter_mut().for_each(HashSet::clear);
                    active.circles.fill(false);
                }
            }
            self.quiet = 0;
            return Ok(());
        }
        if self.quiet <= SUSPICIOUS || inner.env.config.threads > 1 {
            return Ok(());
        }
        for active in &self.active {
            if sync::pending(&active.cluster.sync) > 0 {
                return Ok(());
            }
            let per_block = active.cluster.blocks[0].warps.len();
            for (rank, block) in active.cluster.blocks.iter().enumerate() {
                for (index, warp) in block.warps.iter().enumerate() {
                    let Some(warp) = warp else { continue };
                    let waits = warp.groups.iter().all(|g| waits(g, warp, rank, &active.cluster));
                    if !waits && !active.circles[rank * per_block + index] {
                        return Ok(());
                    }
                }
            }
        }
        let state = lock_state(inner);
        if state.can_assign() || state.waiting < inner.env.config.hosts {
            return Ok(());
        }
        drop(state);
        Err(self.stopped(
            inner,
            Kind::Livelock,
            "all running threads have come back to a state they were in before, and nothing can change what they read".into(),
            None,
        ))
    }

    /// A report on the whole of what is active: what each warp waits for.
    fn stopped(&self, inner: &Inner, kind: Kind, message: String, launch: Option<&Arc<Launch>>) -> Report {
        let mut details = vec![];
        let mut site = None;
        let mut thread = None;
        for active in &self.active {
            let cluster = &active.cluster;
            if launch.is_some_and(|l| !Arc::ptr_eq(l, &cluster.launch)) {
                continue;
            }
            for (rank, block) in cluster.blocks.iter().enumerate() {
                for warp in block.warps.iter().flatten() {
                    for group in &warp.groups {
                        let Some(frame) = group.frames.last() else { continue };
                        let place = place(&cluster.launch, frame.function, group.pc);
                        let what = match &group.wait {
                            Some(Wait::Converge(mask)) => {
                                format!("waits for lanes {:#010x} to come here", mask & warp.live & !group.mask)
                            }
                            Some(Wait::GridDependency) => "waits for the launches before it".into(),
                            Some(wait) => sync::describe(wait, warp, rank, &cluster.blocks, &cluster.sync),
                            None => match warp.polled {
                                Some((space, address)) => format!("runs; it last read {space:?} memory at {address:#x}"),
                                None => "runs".into(),
                            },
                        };
                        if details.len() < 64 {
                            let [x, y, z] = block.index;
                            details.push(format!(
                                "block ({x}, {y}, {z}) warp {} lanes {:#010x}: {what}; {place}",
                                warp.index, group.mask
                            ));
                        }
                        if site.is_none() {
                            site = Some(place);
                            thread = Some(thread_of(&cluster.launch, block.index, warp, group.mask.trailing_zeros() as usize));
                        }
                    }
                }
            }
        }
        for (kernel, blocks) in lock_state(inner).not_started() {
            details
                .push(format!("{blocks} blocks of {kernel} have not started: there is no room on the device before others end"));
        }
        Finding { kind, site, thread, message, details, seed: self.seed }.into()
    }

    /// A fault with its place.
    fn report(&self, inner: &Inner, launch: &Arc<Launch>, block: [u32; 3], warp: &Warp, located: Located) -> Report {
        let Located { fault, at: (function, pc), mask } = located;
        let lane = fault.lane.unwrap_or(mask.trailing_zeros() as usize);
        let mut report = self.words(inner, launch, *fault);
        if report.site.is_none() {
            report.site = Some(place(launch, function, pc));
            report.thread = Some(thread_of(launch, block, warp, lane));
        }
        report
    }

    /// The launch of one side of a race.
    fn launch_of(&self, party: &race::Party) -> Option<&Arc<Launch>> {
        match party.actor {
            race::Actor::Thread { launch, .. } | race::Actor::Agent { launch, .. } => {
                self.detector.as_ref()?.started.get(&launch)
            }
            race::Actor::Host => None,
        }
    }

    /// A fault in words; races name both of their sides.
    fn words(&self, inner: &Inner, launch: &Arc<Launch>, fault: Fault) -> Report {
        let mut report = Finding {
            kind: fault.kind,
            site: None,
            thread: None,
            message: fault.message,
            details: fault.other.into_iter().collect(),
            seed: self.seed,
        };
        if let Some(site) = fault.site {
            report.site =
                lock_state(inner).site(site).and_then(|(program, function, pc)| site_in(&program, launch.name(), function, pc));
            report.thread = fault.thread;
        }
        if let Some(found) = fault.race
            && let race::Report::Race(found) = *found
        {
            let state = lock_state(inner);
            let space = match found.space {
                race::Space::Global => "global",
                race::Space::Shared(_) => "shared",
            };
            let what = match found.kind {
                // The kind of the report says it.
                race::RaceKind::Unordered => String::new(),
                kind => format!("{kind}: "),
            };
            report.message = format!("{what}{} bytes of {space} memory at {:#x}", found.size, found.address);
            let of = |side| self.launch_of(side).unwrap_or(launch);
            let (second, site, thread) = party(&state, of(&found.second), &found.second);
            let (mut first, ..) = party(&state, of(&found.first), &found.first);
            if !Arc::ptr_eq(of(&found.first), of(&found.second)) {
                first.push_str(&format!(", in another launch, of {}", of(&found.first).name()));
            }
            report.site = site;
            report.thread = thread;
            report.details.push(format!("this: {second}"));
            report.details.push(format!("before: {first}"));
        }
        report.into()
    }
}

/// One side of a race in words, with its place and thread where it is a thread's own doing.
fn party(state: &State, launch: &Arc<Launch>, party: &race::Party) -> (String, Option<Site>, Option<ThreadId>) {
    let verb = if party.writes { "writes" } else { "reads" };
    let site = state.site(party.site).and_then(|(program, function, pc)| {
        let kernel = Arc::clone(&launch.program.functions[launch.kernel as usize].name);
        site_in(&program, kernel, function, pc)
    });
    let at = site.as_ref().map_or_else(String::new, |s| format!(", {s}"));
    let thread = |block: u64, warp: u32, lane: u32| ThreadId {
        device: launch.device,
        block: unravel(block, launch.grid),
        thread: unravel(u64::from(warp * LANES as u32 + lane), launch.block),
    };
    match party.actor {
        race::Actor::Thread { block, warp, lane, .. } => {
            let who = thread(block, warp, lane);
            (format!("{who} {verb}{at}"), site, Some(who))
        }
        race::Actor::Agent { kind, block, warp, lane, .. } => {
            let who = thread(block, warp, lane);
            (format!("an asynchronous operation ({kind:?}) of {who} {verb}{at}"), site, Some(who))
        }
        race::Actor::Host => (format!("the host {verb}"), None, None),
    }
}

fn site_in(program: &crate::program::Program, kernel: Arc<str>, function: u32, pc: u32) -> Option<Site> {
    let function = program.functions.get(function as usize)?;
    let instr = function.code.get(pc as usize)?;
    let named = |l: Loc| (program.files.get(&l.file).cloned().unwrap_or_else(|| Arc::from("?")), l.line);
    Some(Site {
        kernel,
        function: Arc::clone(&function.name),
        instruction: Arc::clone(&instr.text),
        ptx_line: instr.span.line,
        source: instr.loc.map(named),
        inlined_at: instr.inlined_at.iter().copied().map(named).collect(),
    })
}

fn place(launch: &Launch, function: u32, pc: u32) -> Site {
    let kernel = launch.name();
    site_in(&launch.program, Arc::clone(&kernel), function, pc).unwrap_or_else(|| {
        let name = launch.program.functions.get(function as usize).map_or_else(|| Arc::clone(&kernel), |f| Arc::clone(&f.name));
        Site { kernel, function: name, instruction: Arc::from("end"), ptx_line: 0, source: None, inlined_at: vec![] }
    })
}

fn thread_of(launch: &Launch, block: [u32; 3], warp: &Warp, lane: usize) -> ThreadId {
    let lane = lane.min(LANES - 1);
    ThreadId { device: launch.device, block, thread: std::array::from_fn(|i| warp.tid[i][lane]) }
}

/// What the race detector says of a call that is no access: it is used up, or misused.
fn plain(found: Box<race::Report>, seed: u64) -> Report {
    let fault: Box<Fault> = found.into();
    Finding { kind: fault.kind, site: None, thread: None, message: fault.message, details: vec![], seed }.into()
}

/// Whether a group waits and what it waits for has not come.
fn waits(group: &Group, warp: &Warp, rank: usize, cluster: &Cluster) -> bool {
    !interp::ready(group, warp, rank, cluster)
}

/// A digest of all that a warp's next steps depend on, memory aside.
fn digest(warp: &Warp) -> u64 {
    let mut hash = warp.local.digest(warp.regs.digest(0));
    for group in &warp.groups {
        for word in [u64::from(group.mask), u64::from(group.pc), group.frames.len() as u64] {
            hash = (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }
    hash
}

/// Coordinates of a linear index, x fastest.
pub fn unravel(index: u64, dims: [u32; 3]) -> [u32; 3] {
    let [x, y, _] = dims.map(|d| u64::from(d.max(1)));
    [(index % x) as u32, (index / x % y) as u32, (index / x / y) as u32]
}

/// The linear index of coordinates, x fastest.
fn ravel(index: [u32; 3], dims: [u32; 3]) -> u64 {
    let [x, y, _] = dims.map(u64::from);
    let [i, j, k] = index.map(u64::from);
    i + x * (j + y * k)
}

/// The warps of a block, at the kernel's first instruction.
fn warps(launch: &Launch) -> Vec<Option<Box<Warp>>> {
    let threads = launch.threads();
    let function = &launch.program.functions[launch.kernel as usize];
    (0..threads.div_ceil(LANES as u32))
        .map(|index| {
            let here = (threads - index * LANES as u32).min(LANES as u32);
            let mask = if here == LANES as u32 { u32::MAX } else { (1 << here) - 1 };
            let tid =
                |d: usize| std::array::from_fn(|lane| unravel(u64::from(index * LANES as u32 + lane as u32), launch.block)[d]);
            let mut warp = Box::new(Warp {
                index,
                live: mask,
                exists: mask,
                tid: [tid(0), tid(1), tid(2)],
                regs: Default::default(),
                groups: vec![],
                current: 0,
                symbols: Arc::clone(&launch.symbols),
                local: Default::default(),
                executed: 0,
                thread_executed: 0,
                sync: Default::default(),
                tensor: Default::default(),
                polled: None,
                exchange: Default::default(),
            });
            let frame = Frame { function: launch.kernel, return_pc: 0, base: 0, pred_base: 0, local_base: 0 };
            warp.regs.window(0, function.slots as usize, 0, function.preds as usize);
            warp.groups.push(Group { mask, pc: 0, frames: vec![frame], wait: None });
            Some(warp)
        })
        .collect()
}

fn lock_state(inner: &Inner) -> MutexGuard<'_, State> {
    inner.state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pump(state: &mut State, env: &Env, seed: u64) -> Result<(), Report> {
    state.pump(env).map_err(|e| {
        Finding {
            kind: Kind::OutOfBounds,
            site: None,
            thread: None,
            message: format!("a copy, fill or free in a stream: {e}"),
            details: vec![],
            seed,
        }
        .into()
    })
}

/// Runs the machine until what a host thread waits for has come.
pub fn drive(inner: &Inner, waiting: Waiting) -> Result<(), Report> {
    lock_state(inner).waiting += 1;
    let result = if inner.env.config.threads > 1 { drive_parallel(inner, waiting) } else { drive_alone(inner, waiting) };
    let mut state = lock_state(inner);
    state.waiting -= 1;
    if let Err(report) = &result {
        state.fail(report.clone());
    }
    result
}

fn drive_alone(inner: &Inner, waiting: Waiting) -> Result<(), Report> {
    loop {
        let mut engine = inner.engine.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut state = lock_state(inner);
            if let Some(report) = &state.failed {
                let report = report.clone();
                engine.active.clear();
                return Err(report);
            }
            pump(&mut state, &inner.env, engine.seed)?;
            if state.over(waiting) {
                if state.host_waited(waiting) {
                    engine.host_sync(&mut state)?;
                }
                return Ok(());
            }
        }
        let mut slice = Slice::Worked;
        for _ in 0..64 {
            slice = engine.slice(inner).map_err(|report| engine.explained(report))?;
            if slice != Slice::Worked {
                break;
            }
            if lock_state(inner).over(waiting) {
                break;
            }
        }
        if slice == Slice::Worked {
            continue;
        }
        let state = lock_state(inner);
        if state.over(waiting) || state.can_assign() {
            continue;
        }
        if state.waiting < inner.env.config.hosts {
            // Another host thread may still queue what this one waits for.
            drop(state);
            drop(engine);
            std::thread::yield_now();
            continue;
        }
        if slice == Slice::Stuck {
            drop(state);
            let report = engine.stopped(inner, Kind::Deadlock, "no thread can go on".into(), None);
            return Err(engine.explained(report));
        }
        if !state.busy()
            && let Some(report) = state.stuck(engine.seed)
        {
            return Err(report);
        }
    }
}

/// Runs everything that is queued on several operating-system threads, without detectors.
fn drive_parallel(inner: &Inner, waiting: Waiting) -> Result<(), Report> {
    if let Some(report) = &lock_state(inner).failed {
        return Err(report.clone());
    }
    let config = &inner.env.config;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let work = |worker: usize| -> Result<(), Report> {
        let mut engine = Engine::new(config, config.seed.wrapping_add(worker as u64));
        while !stop.load(Ordering::Relaxed) {
            match engine.slice(inner)? {
                Slice::Worked => {}
                Slice::Idle => {
                    let state = lock_state(inner);
                    if !state.busy() {
                        if state.over(Waiting::All) || state.over(waiting) {
                            break;
                        }
                        if state.waiting >= config.hosts
                            && let Some(report) = state.stuck(config.seed)
                        {
                            return Err(report);
                        }
                    }
                    drop(state);
                    std::thread::yield_now();
                }
                Slice::Stuck => {
                    let depends = engine.active.iter().any(|a| {
                        a.cluster
                            .blocks
                            .iter()
                            .flat_map(|b| b.warps.iter().flatten())
                            .any(|w| w.groups.iter().any(|g| g.wait == Some(Wait::GridDependency)))
                    });
                    if !depends && !lock_state(inner).can_assign() {
                        return Err(engine.stopped(inner, Kind::Deadlock, "no thread can go on".into(), None));
                    }
                    std::thread::yield_now();
                }
            }
        }
        Ok(())
    };
    let results: Vec<Result<(), Report>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..config.threads)
            .map(|worker| {
                let (work, stop) = (&work, &stop);
                scope.spawn(move || {
                    let result = work(worker);
                    if result.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    result
                })
            })
            .collect();
        handles.into_iter().filter_map(|h| h.join().ok()).collect()
    });
    results.into_iter().collect::<Result<Vec<_>, _>>()?;
    lock_state(inner).host_waited(waiting);
    Ok(())
}
