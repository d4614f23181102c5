//! What callers of the detector name and what it reports.

use std::fmt;

use super::SyncVar;

/// A launch (or another piece of stream-ordered work, such as a copy) known to the detector. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaunchId(pub(super) u64);

/// A block that runs now. Stale after [`Detector::block_end`](super::Detector::block_end).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

/// A warp of a running block: `index` counts from 0 inside the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Warp {
    /// The block.
    pub block: BlockId,
    /// Index of the warp inside the block.
    pub index: u32,
}

/// An asynchronous operation (or a group of them with one completion): see [`Detector::agent_issue`](super::Detector::agent_issue).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AgentId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

/// Where an address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Global memory: one address space for all devices and the host's mapped memory.
    Global,
    /// Shared memory of one block (perhaps another one of the cluster); addresses are offsets into it.
    Shared(BlockId),
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessKind {
    /// Loads.
    Read,
    /// Stores.
    Write,
    /// Atomics and reductions.
    ReadWrite,
}

impl AccessKind {
    pub(super) fn writes(self) -> bool {
        self != Self::Read
    }

    pub(super) fn reads(self) -> bool {
        self != Self::Write
    }
}

/// Scope of a strong operation, narrowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Scope {
    /// Threads of the block.
    Cta = 0,
    /// Threads of the cluster.
    Cluster = 1,
    /// Threads of the device.
    Gpu = 2,
    /// All threads, the host's included.
    Sys = 3,
}

/// Memory order of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// `.weak`, and every access without a qualifier.
    Weak,
    /// `.relaxed`; also `.volatile` and `.mmio` (at scope `.sys`).
    Relaxed,
    /// `.acquire`.
    Acquire,
    /// `.release`.
    Release,
    /// `.acq_rel`.
    AcqRel,
}

/// Memory order with its scope (the scope of a weak access is ignored).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sem {
    /// The order.
    pub order: Order,
    /// The scope.
    pub scope: Scope,
}

impl Sem {
    /// Plain loads and stores.
    pub const WEAK: Sem = Sem { order: Order::Weak, scope: Scope::Cta };
    /// `ld.volatile`, `st.volatile`: as `.relaxed.sys` (PTX ISA 9.0, section 9.7.9.8).
    pub const VOLATILE: Sem = Sem { order: Order::Relaxed, scope: Scope::Sys };

    /// An order at a scope.
    pub const fn new(order: Order, scope: Scope) -> Sem {
        Sem { order, scope }
    }

    pub(super) fn strong(self) -> bool {
        self.order != Order::Weak
    }

    pub(super) fn acquires(self) -> bool {
        matches!(self.order, Order::Acquire | Order::AcqRel)
    }

    pub(super) fn releases(self) -> bool {
        matches!(self.order, Order::Release | Order::AcqRel)
    }
}

/// Order of a `fence` (`membar` is `Sc`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FenceOrder {
    /// `fence.acquire`.
    Acquire,
    /// `fence.release`.
    Release,
    /// `fence.acq_rel`.
    AcqRel,
    /// `fence.sc` and `membar`. Beyond `AcqRel`: who reads a value written after others' fences of this kind, and then fences
    /// like this, comes after what came before those. The order among such fences alone depends on the schedule: no
    /// program is called free of races because of it.
    Sc,
}

/// Which memory a `fence.proxy.async` covers; a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProxyFence(pub(super) u8);

impl ProxyFence {
    /// `fence.proxy.async.global`.
    pub const GLOBAL: ProxyFence = ProxyFence(1);
    /// `fence.proxy.async.shared::cta`: the shared memory of the executing block.
    pub const SHARED_CTA: ProxyFence = ProxyFence(2);
    /// `fence.proxy.async.shared::cluster`: the shared memory of the cluster.
    pub const SHARED_CLUSTER: ProxyFence = ProxyFence(6);
    /// `fence.proxy.async` without a state space.
    pub const ALL: ProxyFence = ProxyFence(7);

    /// Both sets together.
    pub const fn union(self, other: ProxyFence) -> ProxyFence {
        ProxyFence(self.0 | other.0)
    }
}

/// Proxy through which an asynchronous operation accesses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proxy {
    /// `cp.async` (not bulk), `st.async`.
    Generic,
    /// TMA, bulk copies and bulk reductions, `wgmma`.
    Async,
}

/// What kind of asynchronous operation an agent is; for reports only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AgentKind {
    /// `cp.async`.
    CpAsync,
    /// `cp.async.bulk`, `cp.reduce.async.bulk` without a tensor map.
    Bulk,
    /// `cp.async.bulk.tensor`, `cp.reduce.async.bulk.tensor`.
    Tensor,
    /// `wgmma.mma_async`.
    Wgmma,
    /// `st.async`, `red.async`.
    Store,
}

/// What an observer of an agent's completion learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Observe {
    /// `cp.async.bulk.wait_group.read`: only that the sources have been read.
    Reads,
    /// Everything the agent did.
    All,
}

/// One memory instruction of one warp.
#[derive(Clone, Copy)]
pub struct Access<'a> {
    /// Where all the addresses lie (an instruction on generic addresses is split by space).
    pub space: Space,
    /// Read, write or both.
    pub kind: AccessKind,
    /// Order and scope.
    pub sem: Sem,
    /// Lanes that take part.
    pub mask: u32,
    /// First byte of each lane.
    pub addresses: &'a [u64; 32],
    /// Bytes a lane accesses, all elements of a vector together.
    pub size: u32,
    /// Bytes of one element: strong accesses of different element sizes are not morally strong.
    pub element: u32,
    /// Where in the program: returned in reports.
    pub site: u32,
    /// Whether two lanes write equal values to the bytes that they share; called only for lanes of this instruction that
    /// overlap. `None`: the values differ.
    pub agree: Option<&'a dyn Fn(u32, u32) -> bool>,
}

/// What is wrong between the two accesses of a [`Race`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RaceKind {
    /// Conflicting accesses that nothing orders, at least one of them weak.
    Unordered,
    /// Both are strong, but a scope does not include the other thread.
    InsufficientScope,
    /// Both are strong, but they overlap only in part.
    MixedSize,
    /// Lanes of one instruction write different values to the same bytes.
    SameInstruction,
    /// Ordered, but between the generic and the asynchronous proxy without the writer's `fence.proxy.async` in between.
    MissingProxyFence,
    /// An mbarrier is used where its initialisation is not yet visible.
    MbarrierInit,
}

impl fmt::Display for RaceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RaceKind::Unordered => "data race",
            RaceKind::InsufficientScope => "data race: scope does not include the other thread",
            RaceKind::MixedSize => "data race: strong accesses that overlap only in part",
            RaceKind::SameInstruction => "lanes of one instruction write different values to the same bytes",
            RaceKind::MissingProxyFence => "no fence.proxy.async between the generic write and the asynchronous access",
            RaceKind::MbarrierInit => "mbarrier used before its initialisation is visible",
        })
    }
}

/// Who made an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Actor {
    /// A thread: `block` is the linear index in the grid, `warp` the index in the block.
    Thread {
        /// The launch.
        launch: LaunchId,
        /// Linear index of the block in the grid.
        block: u64,
        /// Index of the warp in the block.
        warp: u32,
        /// Lane.
        lane: u32,
    },
    /// An asynchronous operation that such a thread issued.
    Agent {
        /// What it is.
        kind: AgentKind,
        /// The launch of the issuer.
        launch: LaunchId,
        /// Linear index of the issuer's block in the grid.
        block: u64,
        /// Index of the issuer's warp in its block.
        warp: u32,
        /// The issuer's lane (the lowest when a whole warp issues).
        lane: u32,
    },
    /// The host.
    Host,
}

/// One side of a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Party {
    /// Who.
    pub actor: Actor,
    /// The site the caller gave.
    pub site: u32,
    /// Whether this side writes.
    pub writes: bool,
    /// Time of the access on the detector's clock.
    pub time: u32,
}

/// Two accesses that must not happen like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Race {
    /// What is wrong.
    pub kind: RaceKind,
    /// The memory.
    pub space: Space,
    /// First byte found in conflict.
    pub address: u64,
    /// Bytes in conflict from there, inside one aligned 4-byte word.
    pub size: u32,
    /// The earlier access.
    pub first: Party,
    /// The later access.
    pub second: Party,
}

/// Why a call of the detector did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Report {
    /// A race. The access was recorded; execution can go on.
    Race(Race),
    /// A counter of the detector is used up: the run has more events than it can number. Names what.
    Exhausted(&'static str),
    /// The caller named something that does not exist (any more).
    Misuse(&'static str),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Report::Race(r) => write!(f, "{} at address {:#x}", r.kind, r.address),
            Report::Exhausted(what) => write!(f, "race detector: out of {what}"),
            Report::Misuse(what) => write!(f, "race detector misused: {what}"),
        }
    }
}

impl std::error::Error for Report {}

/// Result of the detector's calls. The first problem of a call is returned, the state is that after the whole call.
pub type Outcome<T = ()> = Result<T, Box<Report>>;

/// Clocks of one mbarrier: what its arrivals of the running phase release, and what the last completed phase released.
#[derive(Clone, Debug, Default)]
pub struct MbarrierSync {
    pub(super) current: SyncVar,
    pub(super) completed: SyncVar,
}

/// Counters of the detector, for tests and reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Events so far (since the last time the detector forgot the past).
    pub events: u32,
    /// Shadow pages in use.
    pub pages: usize,
    /// Agents alive.
    pub agents: usize,
    /// Words with more than one write and one read on record.
    pub spilled_words: usize,
    /// Words whose bytes have different histories.
    pub split_words: usize,
    /// Records dropped because a word had more unordered accesses than are kept: a race with one of them is missed.
    pub dropped_records: u64,
}
