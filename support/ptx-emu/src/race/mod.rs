//! Data-race detection by happens-before, for the PTX memory model (PTX ISA 9.0, chapter 8).
//!
//! The interpreter runs all warps in one OS thread, one warp instruction at a time, and tells the [`Detector`] of every memory
//! access and every synchronisation as it happens. A conflict between two accesses that nothing orders is reported
//! whatever the order they happened to run in.
//!
//! # How to call it
//!
//! ```
//! use ptx_emu::race::{Access, AccessKind, Detector, Sem, Space, Warp};
//! let mut d = Detector::new();
//! let launch = d.launch_begin(0, 1, 64, &[])?; // device, blocks, threads a block, launches it is ordered after
//! let block = d.cluster_begin(launch, &[0])?[0]; // linear block indices of one cluster
//! let (w0, w1) = (Warp { block, index: 0 }, Warp { block, index: 1 });
//! let addresses: [u64; 32] = std::array::from_fn(|lane| 4 * lane as u64);
//! let write = Access {
//!     space: Space::Shared(block),
//!     kind: AccessKind::Write,
//!     sem: Sem::WEAK,
//!     mask: u32::MAX,
//!     addresses: &addresses,
//!     size: 4,
//!     element: 4,
//!     site: 1,
//!     agree: None,
//! };
//! d.access(w0, &write)?;
//! let read = Access { kind: AccessKind::Read, site: 2, ..write };
//! assert!(d.access(w1, &read).is_err()); // no barrier
//! d.block_end(block)?;
//! d.launch_end(launch)?;
//! # Ok::<(), Box<ptx_emu::race::Report>>(())
//! ```
//!
//! Order of calls for one instruction: an access with acquire or release semantics is one call of [`Detector::access`]; fences,
//! barriers and mbarrier operations have their own calls. A blocked thread does nothing; report a barrier when it completes.
//!
//! | PTX | call |
//! |---|---|
//! | `ld`, `st`, `atom`, `red` of any order | [`Detector::access`] |
//! | `fence.{acq_rel,sc,acquire,release}`, `membar` | [`Detector::fence`] |
//! | `fence.proxy.async` | [`Detector::fence_proxy_async`] |
//! | `fence.mbarrier_init` | [`Detector::fence_mbarrier_init`] |
//! | `bar.sync`, `bar.red`, `barrier.sync` | [`Detector::barrier`] with the waiting threads, when it completes |
//! | `bar.arrive` | [`Detector::release`] into the barrier's [`SyncVar`], which is then given to [`Detector::barrier`] |
//! | `bar.warp.sync` | [`Detector::warp_barrier`] |
//! | `barrier.cluster.arrive` | [`Detector::release`] (`.relaxed`: [`Detector::release_relaxed`]) into the phase's [`SyncVar`] |
//! | `barrier.cluster.wait` | [`Detector::acquire`] |
//! | `mbarrier.*` | `mbarrier_*`, with one [`MbarrierSync`] an object |
//! | `cp.async` | an agent with [`Proxy::Generic`], `per_lane`; [`Detector::agent_observe`] at `cp.async.wait_group` |
//! | bulk copies, TMA | an agent with [`Proxy::Async`]; mbarrier or `agent_observe` at `cp.async.bulk.wait_group` |
//! | `wgmma.mma_async` | an agent issued by the four warps; `agent_observe` of each at `wgmma.wait_group` |
//! | `griddepcontrol.wait` | [`Detector::launch_wait`] |

mod access;
mod agent;
mod agents;
mod check;
mod clock;
mod fences;
mod location;
mod mbarrier;
mod shadow;
mod strong;
mod sync;
mod types;
mod view;
mod warp;

pub use agent::AgentAccess;
pub use clock::SyncVar;
pub use types::*;

use std::sync::Arc;

use agents::Agents;
use clock::{Clock, Span, Time, joined};
use fences::Fences;
use shadow::{Pool, Shadow};
use warp::{Block, WarpState};

/// Number of the pseudo warp whose lane 0 is the host.
const HOST: u32 = 0;
/// Warps are numbered below this; a number with this bit stands for the same warp's mbarrier initialisations alone.
const INIT_ONLY: u32 = 1 << 31;

/// Options of a [`Detector`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Accept a `fence.proxy.async` by the thread that issues the asynchronous operation in place of the writer's.
    pub issuer_proxy_fence: bool,
}

/// One launch that the past may still name.
#[derive(Debug)]
struct Launch {
    id: LaunchId,
    /// Number of its first warp.
    first: u32,
    warps: u32,
    warps_per_block: u32,
    threads_per_block: u32,
    blocks: u64,
    device: u32,
    /// What its threads know from the start.
    base: Arc<Clock>,
    /// What its finished blocks had seen.
    seen: Arc<Clock>,
    running_blocks: u64,
    /// Whether it has ended.
    end: bool,
}

/// The race detector of one context: all devices, streams and the host. See the module's documentation.
#[derive(Debug)]
pub struct Detector {
    options: Options,
    now: Time,
    next_warp: u32,
    next_launch: u64,
    /// Launches that records may name, by first warp (so by id, too).
    launches: Vec<Launch>,
    blocks: Vec<Block>,
    free_blocks: Vec<u32>,
    /// Shadow of each block's shared memory, by its slot.
    shared: Vec<Shadow>,
    global: Box<Shadow>,
    pool: Pool,
    agents: Agents,
    fences: Fences,
    /// What the host has waited for.
    host: Arc<Clock>,
}

fn misuse<T>(what: &'static str) -> Outcome<T> {
    Err(Box::new(Report::Misuse(what)))
}

impl Default for Detector {
    fn default() -> Self {
        Self::new()
    }
}

impl Detector {
    /// A detector that has seen nothing.
    pub fn new() -> Self {
        Self::with_options(Options::default())
    }

    /// A detector with options.
    pub fn with_options(options: Options) -> Self {
        Detector {
            options,
            now: 0,
            next_warp: HOST + 1,
            next_launch: 0,
            launches: Vec::new(),
            blocks: Vec::new(),
            free_blocks: Vec::new(),
            shared: Vec::new(),
            global: Box::new(Shadow::new(true)),
            pool: Pool::default(),
            agents: Agents::default(),
            fences: Fences::default(),
            host: Arc::default(),
        }
    }

    /// The time of the next event.
    fn tick(&mut self) -> Outcome<Time> {
        match self.now.checked_add(1) {
            Some(t) => {
                self.now = t;
                Ok(t)
            }
            None => Err(Box::new(Report::Exhausted("times for events"))),
        }
    }

    /// Begins a launch of `blocks` blocks of `threads_per_block` threads on a device. It knows all that the host has waited for
    /// and all of the launches `after` (which have ended): the earlier work of its stream, and what the stream waited for.
    /// Copies and fills in stream order are launches of one thread.
    pub fn launch_begin(&mut self, device: u32, blocks: u64, threads_per_block: u32, after: &[LaunchId]) -> Outcome<LaunchId> {
        let mut base = Clock::clone(&self.host);
        for &id in after {
            self.learn_launch(&mut base, id)?;
        }
        if !self.launches.is_empty() && self.launches.iter().all(|l| l.end && self.host.launch_time(l.first) == Time::MAX) {
            // Nothing runs, and the host, and so whatever begins from now on, knows all of the past.
            self.forget();
            base = Clock::default();
        }
        let now = self.tick()?;
        let warps_per_block = threads_per_block.div_ceil(32);
        if blocks == 0 || threads_per_block == 0 || threads_per_block > 32 * 32 {
            return misuse("a launch without blocks, or with a number of threads a block outside 1..=1024");
        }
        let warps = u64::from(warps_per_block).checked_mul(blocks).and_then(|n| u32::try_from(n).ok());
        let next = warps.and_then(|n| self.next_warp.checked_add(n)).filter(|&n| n < INIT_ONLY);
        let (Some(warps), Some(next)) = (warps, next) else {
            return Err(Box::new(Report::Exhausted("numbers for warps")));
        };
        base.host = now;
        let base = Arc::new(base);
        let id = LaunchId(self.next_launch);
        self.next_launch += 1;
        let launch = Launch {
            id,
            first: self.next_warp,
            warps,
            warps_per_block,
            threads_per_block,
            blocks,
            device,
            seen: Arc::clone(&base),
            base,
            running_blocks: 0,
            end: false,
        };
        self.next_warp = next;
        self.launches.push(launch);
        Ok(id)
    }

    /// Adds to `clock` what is known once launch `id` has ended.
    fn learn_launch(&self, clock: &mut Clock, id: LaunchId) -> Outcome {
        match self.launches.binary_search_by_key(&id, |l| l.id) {
            Ok(i) => {
                let launch = &self.launches[i];
                if !launch.end {
                    return misuse("ordered after a launch that still runs");
                }
                clock.join(&launch.seen);
                clock.add_ended(launch.first, launch.first + launch.warps);
                Ok(())
            }
            // Forgotten launches are in the past of everything.
            Err(_) if id.0 < self.next_launch => Ok(()),
            Err(_) => misuse("no such launch"),
        }
    }

    fn launch_index(&self, id: LaunchId) -> Outcome<usize> {
        match self.launches.binary_search_by_key(&id, |l| l.id) {
            Ok(i) => Ok(i),
            Err(_) => misuse("no such launch"),
        }
    }

    /// Ends a launch: all its blocks have ended, and all its asynchronous operations are complete.
    pub fn launch_end(&mut self, launch: LaunchId) -> Outcome {
        self.tick()?;
        let i = self.launch_index(launch)?;
        let launch = &mut self.launches[i];
        if launch.running_blocks != 0 || launch.end {
            return misuse("end of a launch whose blocks run, or that has ended");
        }
        launch.end = true;
        Ok(())
    }

    /// The host has waited for these launches to end: all later launches are ordered after them.
    pub fn host_wait(&mut self, launches: &[LaunchId]) -> Outcome {
        self.tick()?;
        let mut clock = Clock::clone(&self.host);
        for &id in launches {
            self.learn_launch(&mut clock, id)?;
        }
        self.host = Arc::new(clock);
        Ok(())
    }

    /// The host has waited for everything; no launch runs. The detector forgets the past: nothing later can race with it.
    pub fn host_sync(&mut self) -> Outcome {
        if self.launches.iter().any(|l| !l.end) {
            return misuse("the host waits for everything while a launch runs");
        }
        self.forget();
        Ok(())
    }

    fn forget(&mut self) {
        self.global.clear(&mut self.pool);
        self.agents.clear();
        self.fences.clear();
        self.launches.clear();
        self.host = Arc::default();
        self.now = 0;
        self.next_warp = HOST + 1;
    }

    /// Begins the blocks of one cluster (a single block without clusters), by their linear index in the grid.
    pub fn cluster_begin(&mut self, launch: LaunchId, indices: &[u64]) -> Outcome<Vec<BlockId>> {
        let l = self.launch_index(launch)?;
        let launch = &mut self.launches[l];
        if launch.end || indices.iter().any(|&i| i >= launch.blocks) {
            return misuse("a block outside its launch, or of a launch that has ended");
        }
        let n = launch.warps_per_block;
        // The number of warps of a launch fits, so that of a part of it does.
        let cluster: Arc<[Span]> =
            indices.iter().map(|&i| Span { first: launch.first + i as u32 * n, len: n, time: 0 }).collect();
        launch.running_blocks += indices.len() as u64;
        let mut ids = Vec::with_capacity(indices.len());
        for k in 0..indices.len() {
            let block = Block::new(launch, cluster[k].first, Arc::clone(&cluster));
            let slot = match self.free_blocks.pop() {
                Some(slot) => {
                    let old = &mut self.blocks[slot as usize];
                    let generation = old.generation;
                    *old = Block { generation, ..block };
                    slot
                }
                None => {
                    self.blocks.push(block);
                    self.shared.push(Shadow::new(false));
                    (self.blocks.len() - 1) as u32
                }
            };
            ids.push(BlockId { slot, generation: self.blocks[slot as usize].generation });
        }
        Ok(ids)
    }

    /// Ends a block: all its threads have exited. Its shared memory is gone.
    pub fn block_end(&mut self, block: BlockId) -> Outcome {
        self.tick()?;
        let b = self.block_index(block)?;
        let Some(l) = self.launch_of(self.blocks[b].first) else {
            return misuse("a block without a launch");
        };
        let launch = &mut self.launches[l];
        launch.running_blocks -= 1;
        let ended = &mut self.blocks[b];
        let mut last = Arc::clone(&launch.base);
        for group in ended.warps.iter().flat_map(|w| &w.groups) {
            if !Arc::ptr_eq(&group.clock, &last) {
                last = Arc::clone(&group.clock);
                // What it knows of its own launch, everybody after the launch knows.
                if let Some(of_others) = group.clock.without(launch.first, launch.warps) {
                    launch.seen = joined(&launch.seen, &Arc::new(of_others));
                }
            }
        }
        for warp in &ended.warps {
            self.fences.end(warp.uid);
        }
        ended.clear();
        self.shared[b].clear(&mut self.pool);
        match ended.generation.checked_add(1) {
            Some(g) => {
                ended.generation = g;
                self.free_blocks.push(block.slot);
                Ok(())
            }
            None => Err(Box::new(Report::Exhausted("numbers for blocks"))),
        }
    }

    fn block_index(&self, block: BlockId) -> Outcome<usize> {
        match self.blocks.get(block.slot as usize) {
            Some(b) if b.generation == block.generation => Ok(block.slot as usize),
            _ => misuse("no such block, or it has ended"),
        }
    }

    fn warp_state(&mut self, warp: Warp) -> Outcome<&mut WarpState> {
        let b = self.block_index(warp.block)?;
        match self.blocks[b].warps.get_mut(warp.index as usize) {
            Some(w) => Ok(w),
            None => misuse("no such warp in its block"),
        }
    }

    /// The launch that a warp's number belongs to.
    fn launch_of(&self, warp: u32) -> Option<usize> {
        let i = self.launches.partition_point(|l| l.first <= warp).checked_sub(1)?;
        (warp - self.launches[i].first < self.launches[i].warps).then_some(i)
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        let all = || self.shared.iter().chain([&*self.global]);
        Stats {
            events: self.now,
            pages: all().map(Shadow::len).sum(),
            agents: self.agents.len(),
            spilled_words: all().map(|s| s.side.lists.len()).sum(),
            split_words: all().map(|s| s.side.splits.len()).sum(),
            dropped_records: all().map(|s| s.side.dropped).sum(),
        }
    }
}

#[cfg(test)]
mod tests;
