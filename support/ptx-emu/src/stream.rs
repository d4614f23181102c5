//! Streams: what is queued, what runs, what is over. Nothing here executes instructions.

use crate::config::Config;
use crate::error::LaunchError;
use crate::machine::{Env, Launch, Prerequisite};
use crate::memory::MemoryError;
use crate::program::Program;
use crate::report::{Finding, Kind, Report};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a host thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// All streams.
    All,
    /// One.
    Stream(usize),
    /// An event's latest record.
    Event(usize),
}

/// What can be queued.
#[derive(Debug)]
pub enum Command {
    /// A kernel.
    Launch { launch: Box<Launch>, programmatic: bool },
    /// A copy between addresses.
    Copy { to: u64, from: u64, bytes: u64 },
    /// A copy from the host.
    Write { to: u64, bytes: Box<[u8]> },
    /// Filling.
    Fill { to: u64, value: u8, bytes: u64 },
    /// Freeing.
    Free { address: u64 },
    /// An event: this record of it.
    Record { event: usize, version: u64 },
    /// Waiting for a record of an event.
    Wait { event: usize, version: u64 },
}

#[derive(Debug)]
struct Stream {
    device: u32,
    queue: VecDeque<Command>,
    /// Launches that run, oldest first.
    running: Vec<Arc<Launch>>,
    /// Launches that are over and that what comes next in this stream comes after.
    knows: BTreeSet<u64>,
    /// The latest launches, as far back as programmatic launches reach: the next one, if it is programmatic too, comes after them only
    /// where it waits for them, even if they happen to be over.
    chain: Vec<Prerequisite>,
}

/// Launches of a chain that are over and this far back count as known.
const LONGEST_CHAIN: usize = 32;

impl Stream {
    /// Nothing runs, and what comes next comes after all of it.
    fn settle(&mut self) {
        self.knows.extend(self.chain.drain(..).map(|l| l.id));
    }
}

#[derive(Debug, Default)]
struct Event {
    recorded: u64,
    done: u64,
    knows: BTreeSet<u64>,
}

/// A launch that runs.
#[derive(Debug)]
struct Running {
    launch: Arc<Launch>,
    stream: usize,
    /// Clusters not handed out yet begin here.
    next: u64,
    total: u64,
    done: u64,
    /// What a block takes of a multiprocessor.
    share: f64,
}

/// A cluster to run.
pub struct Assignment {
    /// Its launch.
    pub launch: Arc<Launch>,
    /// Its number in the launch.
    pub cluster: u64,
    /// The first multiprocessor it runs on.
    pub sm: u32,
}

/// All streams of a machine.
#[derive(Debug)]
pub struct State {
    streams: Vec<Stream>,
    events: Vec<Event>,
    running: Vec<Running>,
    next_launch: u64,
    turn: usize,
    sm: u32,
    /// Share of each device's multiprocessors in use.
    resident: Vec<f64>,
    sm_count: u32,
    programs: Vec<(u32, Arc<Program>)>,
    next_site: u32,
    host_knows: BTreeSet<u64>,
    /// Host threads that wait.
    pub waiting: usize,
    /// What stopped the machine.
    pub failed: Option<Report>,
    /// Warp instructions.
    pub executed: u64,
    /// Thread instructions.
    pub thread_instructions: u64,
    /// Launches that ended since the detectors were last told.
    pub ended: Vec<u64>,
}

impl State {
    /// Nothing queued.
    pub fn new(config: &Config) -> State {
        State {
            streams: vec![],
            events: vec![],
            running: vec![],
            next_launch: 0,
            turn: 0,
            sm: 0,
            resident: vec![0.0; config.devices as usize],
            sm_count: config.sm_count,
            programs: vec![],
            next_site: 0,
            host_knows: BTreeSet::new(),
            waiting: 0,
            failed: None,
            executed: 0,
            thread_instructions: 0,
            ended: vec![],
        }
    }

    /// Gives a program's instructions numbers of their own; the same ones each time.
    pub fn register(&mut self, program: &Arc<Program>) -> u32 {
        if let Some((base, _)) = self.programs.iter().find(|(_, p)| Arc::ptr_eq(p, program)) {
            return *base;
        }
        let base = self.next_site;
        let length: usize = program.functions.iter().map(|f| f.code.len()).sum();
        self.next_site = self.next_site.saturating_add(length as u32);
        self.programs.push((base, Arc::clone(program)));
        base
    }

    /// The program, function and instruction of a number.
    pub fn site(&self, site: u32) -> Option<(Arc<Program>, u32, u32)> {
        let (base, program) = self.programs.iter().rev().find(|(base, _)| *base <= site)?;
        let at = site - base;
        let function = program.functions.iter().rposition(|f| f.code_base <= at && !f.code.is_empty())?;
        Some((Arc::clone(program), function as u32, at - program.functions[function].code_base))
    }

    /// A new stream.
    pub fn add_stream(&mut self, device: u32) -> usize {
        self.streams.push(Stream { device, queue: VecDeque::new(), running: vec![], knows: BTreeSet::new(), chain: vec![] });
        self.streams.len() - 1
    }

    /// A new event.
    pub fn add_event(&mut self) -> usize {
        self.events.push(Event::default());
        self.events.len() - 1
    }

    /// The device of a stream.
    pub fn device_of(&self, stream: usize) -> Result<u32, LaunchError> {
        self.streams.get(stream).map(|s| s.device).ok_or(LaunchError::Stream { what: "it belongs to another machine" })
    }

    /// Queues a command.
    pub fn enqueue(&mut self, stream: usize, command: Command) -> Result<(), LaunchError> {
        if let Some(report) = &self.failed {
            return Err(LaunchError::Stopped(report.to_string()));
        }
        let known = self.host_knows.clone();
        let stream = self.streams.get_mut(stream).ok_or(LaunchError::Stream { what: "it belongs to another machine" })?;
        stream.knows.extend(known);
        stream.queue.push_back(command);
        Ok(())
    }

    /// Queues a record of an event.
    pub fn record(&mut self, stream: usize, event: usize) -> Result<(), LaunchError> {
        let Some(e) = self.events.get_mut(event) else {
            return Err(LaunchError::Event { what: "it belongs to another machine" });
        };
        e.recorded += 1;
        let version = e.recorded;
        self.enqueue(stream, Command::Record { event, version })
    }

    /// Queues waiting for an event.
    pub fn wait_event(&mut self, stream: usize, event: usize) -> Result<(), LaunchError> {
        let Some(e) = self.events.get(event) else {
            return Err(LaunchError::Event { what: "it belongs to another machine" });
        };
        let version = e.recorded;
        self.enqueue(stream, Command::Wait { event, version })
    }

    /// Whether an event's latest record is reached.
    pub fn event_done(&self, event: usize) -> bool {
        self.events.get(event).is_none_or(|e| e.done >= e.recorded)
    }

    /// Whether what a host thread waits for has come.
    pub fn over(&self, waiting: Waiting) -> bool {
        let empty = |s: &Stream| s.queue.is_empty() && s.running.is_empty();
        match waiting {
            Waiting::All => self.streams.iter().all(empty),
            Waiting::Stream(i) => self.streams.get(i).is_none_or(empty),
            Waiting::Event(i) => self.event_done(i),
        }
    }

    /// The host has waited for this: what it queues from now on comes after. True when everything is over.
    pub fn host_waited(&mut self, waiting: Waiting) -> bool {
        match waiting {
            Waiting::All => {}
            Waiting::Stream(i) => {
                if let Some(stream) = self.streams.get_mut(i) {
                    stream.settle();
                    self.host_knows.extend(&stream.knows);
                }
            }
            Waiting::Event(i) => {
                if let Some(event) = self.events.get(i) {
                    self.host_knows.extend(&event.knows);
                }
            }
        }
        let idle = self.over(Waiting::All);
        if idle && waiting == Waiting::All {
            self.host_knows.clear();
            for stream in &mut self.streams {
                stream.knows.clear();
                stream.chain.clear();
            }
            self.events.iter_mut().for_each(|e| e.knows.clear());
            return true;
        }
        false
    }

    /// Carries out what can be carried out without running a kernel, and starts kernels whose turn has come.
    pub fn pump(&mut self, env: &Env) -> Result<(), MemoryError> {
        let mut again = true;
        while again {
            again = false;
            for i in 0..self.streams.len() {
                while self.step(i, env)? {
                    again = true;
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, i: usize, env: &Env) -> Result<bool, MemoryError> {
        let stream = &mut self.streams[i];
        let Some(front) = stream.queue.front() else { return Ok(false) };
        match front {
            Command::Launch { programmatic, .. } => {
                let may_start = match stream.running.last() {
                    None => true,
                    Some(last) => *programmatic && last.released.load(Ordering::Acquire) >= last.blocks(),
                };
                if !may_start {
                    return Ok(false);
                }
            }
            _ if !stream.running.is_empty() => return Ok(false),
            Command::Wait { event, version } if self.events[*event].done < *version => return Ok(false),
            _ => {}
        }
        let Some(command) = stream.queue.pop_front() else { return Ok(false) };
        if !matches!(command, Command::Launch { programmatic: true, .. }) {
            stream.settle();
        }
        match command {
            Command::Launch { mut launch, .. } => {
                launch.id = self.next_launch;
                self.next_launch += 1;
                while stream.chain.len() > LONGEST_CHAIN && stream.chain[0].finished.load(Ordering::Acquire) {
                    let oldest = stream.chain.remove(0);
                    stream.knows.insert(oldest.id);
                }
                launch.prerequisites = stream.chain.clone();
                stream.chain.push(Prerequisite { id: launch.id, finished: Arc::clone(&launch.finished) });
                launch.after = stream.knows.iter().copied().collect();
                let launch: Arc<Launch> = Arc::from(launch);
                stream.running.push(Arc::clone(&launch));
                let total = launch.blocks() / u64::from(launch.cluster_size());
                let shared = launch.shared_size - crate::cx::SHARED_START;
                let fit = crate::machine::blocks_per_sm(launch.threads(), shared).max(1);
                self.running.push(Running { launch, stream: i, next: 0, total, done: 0, share: 1.0 / f64::from(fit) });
            }
            Command::Copy { to, from, bytes } => env.memory.copy(to, from, bytes)?,
            Command::Write { to, bytes } => env.memory.write(to, &bytes)?,
            Command::Fill { to, value, bytes } => env.memory.fill(to, value, bytes)?,
            Command::Free { address } => env.memory.free(address)?,
            Command::Record { event, version } => {
                let knows = stream.knows.clone();
                let event = &mut self.events[event];
                event.done = event.done.max(version);
                event.knows = knows;
            }
            Command::Wait { event, .. } => {
                let knows = self.events[event].knows.clone();
                self.streams[i].knows.extend(knows);
            }
        }
        Ok(true)
    }

    /// Whether a cluster could be handed out or a running one is.
    pub fn busy(&self) -> bool {
        !self.running.is_empty()
    }

    /// Blocks that wait for room on their device: (kernel, blocks).
    pub fn not_started(&self) -> Vec<(Arc<str>, u64)> {
        let size = |r: &Running| u64::from(r.launch.cluster_size());
        self.running.iter().filter(|r| r.next < r.total).map(|r| (r.launch.name(), (r.total - r.next) * size(r))).collect()
    }

    /// Whether [`State::assign`] would hand out a cluster.
    pub fn can_assign(&self) -> bool {
        self.running.iter().any(|r| r.next < r.total && self.has_room(r))
    }

    fn has_room(&self, running: &Running) -> bool {
        let needs = running.share * f64::from(running.launch.cluster_size());
        self.resident[running.launch.device as usize] + needs <= f64::from(self.sm_count) + 1e-9
            || self.resident[running.launch.device as usize] == 0.0
    }

    /// The next cluster to run, of the launches in turn; None when there is none or no room on its device.
    pub fn assign(&mut self) -> Option<Assignment> {
        let n = self.running.len();
        for i in 0..n {
            let at = (self.turn + i) % n;
            if self.running[at].next >= self.running[at].total || !self.has_room(&self.running[at]) {
                continue;
            }
            self.turn = at + 1;
            let running = &mut self.running[at];
            let cluster = running.next;
            running.next += 1;
            let needs = running.share * f64::from(running.launch.cluster_size());
            self.resident[running.launch.device as usize] += needs;
            let sm = self.sm;
            self.sm = (self.sm + 1) % self.sm_count;
            return Some(Assignment { launch: Arc::clone(&self.running[at].launch), cluster, sm });
        }
        None
    }

    /// A cluster is done.
    pub fn finish(&mut self, launch: &Arc<Launch>) {
        let Some(at) = self.running.iter().position(|r| Arc::ptr_eq(&r.launch, launch)) else { return };
        let running = &mut self.running[at];
        running.done += 1;
        let device = &mut self.resident[launch.device as usize];
        *device -= running.share * f64::from(launch.cluster_size());
        if device.abs() < 1e-6 {
            *device = 0.0;
        }
        if running.done == running.total {
            launch.finished.store(true, Ordering::Release);
            let stream = &mut self.streams[running.stream];
            stream.running.retain(|l| !Arc::ptr_eq(l, launch));
            self.ended.push(launch.id);
            self.running.remove(at);
        }
    }

    /// Stops the machine.
    pub fn fail(&mut self, report: Report) {
        self.running.clear();
        for stream in &mut self.streams {
            stream.queue.clear();
            stream.running.clear();
        }
        for event in &mut self.events {
            event.done = event.recorded;
        }
        self.failed.get_or_insert(report);
    }

    /// What host threads wait for cannot come: streams that wait for events that nothing records.
    pub fn stuck(&self, seed: u64) -> Option<Report> {
        let (i, _) = self.streams.iter().enumerate().find(|(_, s)| !s.queue.is_empty())?;
        Some(Report::from(Finding {
            kind: Kind::Deadlock,
            site: None,
            thread: None,
            message: format!("stream {i} waits for an event that nothing in any stream records any more"),
            details: vec![],
            seed,
        }))
    }
}
