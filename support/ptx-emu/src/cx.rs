//! What an executor of instructions sees: its warp, its cluster, memory, and what the launch said.

use crate::ast::Space;
use crate::fault::{Exec, Fault};
use crate::isa::{Addr, Instr, PredSrc, Reg, Special, Src};
use crate::machine::{Env, Launch};
use crate::memory::SharedMemory;
use crate::regs::{LANES, Lanes32, Lanes64, Mask, RegFile, lanes};
use crate::report::Kind;
use crate::rng::Rng;
use std::sync::Arc;

/// Where the generic address space shows shared memory: a 32-bit shared address is added.
pub const SHARED_WINDOW: u64 = 0x7f10_0000_0000;
/// Where it shows the thread's local memory.
pub const LOCAL_WINDOW: u64 = 0x7f20_0000_0000;
/// Where it shows kernel parameters.
pub const PARAM_WINDOW: u64 = 0x7f30_0000_0000;
/// Bytes of each window.
pub const WINDOW: u64 = 1 << 32;
/// The first bytes of shared memory are never a variable, as on Hopper: a null shared address is out of bounds.
pub const SHARED_START: u32 = 1024;
/// A shared address of another block of the cluster carries its rank plus 1 from this bit on; 0 there is the block itself.
pub const SHARED_RANK_SHIFT: u32 = 24;

/// What an instruction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Done.
    Next,
    /// Done; another warp should run now (a failed poll, a sleep).
    Yield,
    /// Not done: to be executed again when the wait may be over. `Group::wait` holds it meanwhile, and is still there when the
    /// instruction runs again, so that it knows it has arrived before.
    Wait(Wait),
}

/// What a group of lanes waits for. The engine polls it: see [`crate::sync::satisfied`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// That the other lanes of the mask reach this instruction.
    Converge(Mask),
    /// A named barrier of the block, until its generation is no longer this.
    Barrier { id: u32, generation: u64 },
    /// `bar.warp.sync` of these lanes.
    WarpBarrier { members: Mask, generation: u64 },
    /// The cluster's barrier, until its generation is no longer this.
    ClusterBarrier { generation: u64 },
    /// An mbarrier of block `rank` of the cluster at this shared address: the phase of this parity.
    Mbarrier { rank: u32, address: u32, parity: bool },
    /// Launches this one depends on.
    GridDependency,
    /// That the block's pool has this many registers a thread for the warp (`setmaxnreg.inc`).
    Registers { count: u32 },
    /// A whole warpgroup's arrival at the matrix instruction of this number.
    Warpgroup { number: u64 },
}

/// Lanes that execute together.
#[derive(Debug, Clone)]
pub struct Group {
    /// Which.
    pub mask: Mask,
    /// Next instruction.
    pub pc: u32,
    /// Activations, the innermost last.
    pub frames: Vec<Frame>,
    /// Why it does not run.
    pub wait: Option<Wait>,
}

/// An activation of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Function.
    pub function: u32,
    /// Where the caller goes on.
    pub return_pc: u32,
    /// First slot of its registers.
    pub base: u32,
    /// First of its predicates.
    pub pred_base: u32,
    /// Its part of local memory begins here.
    pub local_base: u32,
}

/// A warp.
pub struct Warp {
    /// Number in the block.
    pub index: u32,
    /// Threads that exist and have not exited.
    pub live: Mask,
    /// Threads that exist.
    pub exists: Mask,
    /// `%tid` by lane.
    pub tid: [Lanes32; 3],
    /// Registers.
    pub regs: RegFile,
    /// Lanes by where they are.
    pub groups: Vec<Group>,
    /// The group that runs.
    pub current: usize,
    /// Addresses of symbols in this launch.
    pub symbols: Arc<[u64]>,
    /// Local memory: each lane's, one after the other, grown when it is touched.
    pub local: crate::memory::LocalMemory,
    /// Instructions executed.
    pub executed: u64,
    /// The same, times the lanes that were on.
    pub thread_executed: u64,
    /// What the warp-level instructions keep.
    pub sync: crate::sync::WarpState,
    /// What matrix instructions keep.
    pub tensor: crate::tensor_ops::WarpState,
    /// The address that the last load polled, for reports of livelocks.
    pub polled: Option<(Space, u64)>,
    /// What exchanges between lanes keep.
    pub exchange: crate::warp_ops::WarpState,
}

/// A block: its shared memory and what its threads share besides.
pub struct Block {
    /// `%ctaid`.
    pub index: [u32; 3],
    /// Shared memory.
    pub shared: SharedMemory,
    /// Global memory as this block sees it: the allocations at hand.
    pub view: crate::memory::View,
    /// Named barriers and the like.
    pub sync: crate::sync::BlockState,
    /// Warpgroup state.
    pub tensor: crate::tensor_ops::BlockState,
    /// Warps; the one that runs is absent.
    pub warps: Vec<Option<Box<Warp>>>,
    /// Threads that have not exited.
    pub live_threads: u32,
    /// What the race detector calls it, when it is on.
    pub race: Option<crate::race::BlockId>,
}

/// The blocks of a cluster (one block where there are no clusters).
pub struct Cluster {
    /// Its launch.
    pub launch: Arc<Launch>,
    /// By rank.
    pub blocks: Vec<Block>,
    /// Asynchronous operations in flight, the cluster's barrier.
    pub sync: crate::sync::ClusterState,
}

/// What an executor gets.
pub struct Cx<'a> {
    /// Memory, settings.
    pub env: &'a Env,
    /// The launch.
    pub launch: &'a Launch,
    /// All blocks of the cluster.
    pub blocks: &'a mut [Block],
    /// Asynchronous operations of the cluster and its barrier.
    pub cluster: &'a mut crate::sync::ClusterState,
    /// This block's rank.
    pub rank: usize,
    /// This warp.
    pub warp: &'a mut Warp,
    /// Lanes that execute: the group's whose guard holds.
    pub mask: Mask,
    /// What waited here before, if the instruction runs again.
    pub resumed: Option<Wait>,
    /// The instruction.
    pub instr: &'a Instr,
    /// Index of the site, for the race detector.
    pub site: u32,
    /// Detectors; None when they are off.
    pub detector: Option<&'a mut crate::detect::Detector>,
    /// Choices.
    pub rng: &'a mut Rng,
}

impl Cx<'_> {
    /// What the race detector calls this warp; None when it is off.
    pub fn race_warp(&self) -> Option<crate::race::Warp> {
        let block = self.blocks[self.rank].race?;
        Some(crate::race::Warp { block, index: self.warp.index })
    }

    /// 32-bit values of a source.
    #[inline]
    pub fn get32(&self, src: &Src) -> Lanes32 {
        match *src {
            Src::Reg(reg) => self.warp.regs.get32(reg),
            Src::Imm(bits) => [bits as u32; LANES],
            ref other => self.slow(other).map(|v| v as u32),
        }
    }

    /// 64-bit values of a source; narrower registers are zero-extended.
    #[inline]
    pub fn get64(&self, src: &Src) -> Lanes64 {
        match *src {
            Src::Reg(reg) => self.warp.regs.get64(reg),
            Src::Imm(bits) => [bits; LANES],
            ref other => self.slow(other),
        }
    }

    /// A 128-bit register: low and high halves.
    pub fn get128(&self, reg: Reg) -> (Lanes64, Lanes64) {
        (*self.warp.regs.r64(reg.slot), *self.warp.regs.r64(reg.slot + 2))
    }

    /// Writes a register in the executing lanes.
    #[inline]
    pub fn set32(&mut self, reg: Reg, values: &Lanes32) {
        self.warp.regs.set32(reg, values, self.mask);
    }

    /// Writes a register in the executing lanes.
    #[inline]
    pub fn set64(&mut self, reg: Reg, values: &Lanes64) {
        self.warp.regs.set64(reg, values, self.mask);
    }

    /// The lanes in which a predicate source holds.
    #[inline]
    pub fn pred(&self, src: PredSrc) -> Mask {
        let value = self.warp.regs.pred(src.index);
        if src.negated { !value } else { value }
    }

    /// Writes a predicate in the executing lanes.
    #[inline]
    pub fn set_pred(&mut self, index: u32, value: Mask) {
        self.warp.regs.set_pred(index, value, self.mask);
    }

    /// Addresses of an address operand.
    #[inline]
    pub fn address(&self, addr: &Addr) -> Lanes64 {
        let base = self.get64(&addr.base);
        if addr.offset == 0 { base } else { base.map(|a| a.wrapping_add(addr.offset as u64)) }
    }

    /// Values that are not in registers or literals.
    fn slow(&self, src: &Src) -> Lanes64 {
        match *src {
            Src::Reg(reg) => self.warp.regs.get64(reg),
            Src::Imm(bits) => [bits; LANES],
            Src::Special(special) => self.special(special),
            Src::Symbol(id, offset) => {
                [self.warp.symbols.get(id as usize).copied().unwrap_or(0).wrapping_add(offset as u64); LANES]
            }
            Src::Local(offset) => [u64::from(self.frame().local_base).wrapping_add(offset as u64); LANES],
            Src::Param(offset) => [offset as u64; LANES],
            Src::Function(id) => [crate::machine::FUNCTION_HANDLES + u64::from(id); LANES],
        }
    }

    /// The running activation.
    pub fn frame(&self) -> &Frame {
        let group = &self.warp.groups[self.warp.current];
        group.frames.last().expect("a group has an activation")
    }

    /// A special register.
    pub fn special(&self, special: Special) -> Lanes64 {
        let warp = &*self.warp;
        let launch = self.launch;
        let block = &self.blocks[self.rank];
        let same = |v: u32| [u64::from(v); LANES];
        let by_lane = |f: &dyn Fn(usize) -> u32| -> Lanes64 { std::array::from_fn(|i| u64::from(f(i))) };
        let cluster_id = |d: usize| block.index[d] / launch.cluster[d];
        let clock = warp.executed.wrapping_mul(4);
        use Special::*;
        match special {
            TidX => warp.tid[0].map(u64::from),
            TidY => warp.tid[1].map(u64::from),
            TidZ => warp.tid[2].map(u64::from),
            NtidX => same(launch.block[0]),
            NtidY => same(launch.block[1]),
            NtidZ => same(launch.block[2]),
            LaneId => by_lane(&|i| i as u32),
            WarpId => same(warp.index),
            NWarpId => same(block.warps.len() as u32),
            CtaIdX => same(block.index[0]),
            CtaIdY => same(block.index[1]),
            CtaIdZ => same(block.index[2]),
            NctaIdX => same(launch.grid[0]),
            NctaIdY => same(launch.grid[1]),
            NctaIdZ => same(launch.grid[2]),
            SmId => same(block.sync.sm),
            NSmId => same(launch.sm_count),
            GridId => [launch.id; LANES],
            LaneMaskEq => by_lane(&|i| 1 << i),
            LaneMaskLt => by_lane(&|i| (1 << i) - 1),
            LaneMaskLe => by_lane(&|i| u32::MAX >> (31 - i)),
            LaneMaskGt => by_lane(&|i| !(u32::MAX >> (31 - i))),
            LaneMaskGe => by_lane(&|i| u32::MAX << i),
            Clock | Clock64 => [clock; LANES],
            ClockHi => [clock >> 32; LANES],
            GlobalTimer => [self.env.timer(clock); LANES],
            GlobalTimerLo => [self.env.timer(clock) & 0xffff_ffff; LANES],
            GlobalTimerHi => [self.env.timer(clock) >> 32; LANES],
            DynamicSmemSize => same(launch.dynamic_shared),
            TotalSmemSize | AggrSmemSize => same(launch.shared_size),
            ClusterIdX => same(cluster_id(0)),
            ClusterIdY => same(cluster_id(1)),
            ClusterIdZ => same(cluster_id(2)),
            NClusterIdX => same(launch.grid[0] / launch.cluster[0]),
            NClusterIdY => same(launch.grid[1] / launch.cluster[1]),
            NClusterIdZ => same(launch.grid[2] / launch.cluster[2]),
            ClusterCtaIdX => same(block.index[0] % launch.cluster[0]),
            ClusterCtaIdY => same(block.index[1] % launch.cluster[1]),
            ClusterCtaIdZ => same(block.index[2] % launch.cluster[2]),
            ClusterNctaIdX => same(launch.cluster[0]),
            ClusterNctaIdY => same(launch.cluster[1]),
            ClusterNctaIdZ => same(launch.cluster[2]),
            ClusterCtaRank => same(self.rank as u32),
            ClusterNctaRank => same(self.blocks.len() as u32),
            IsExplicitCluster => same(u32::from(launch.explicit_cluster)),
            CurrentGraphExec => same(0),
        }
    }

    /// The value that all executing lanes must agree on; an error that names the operand where they do not.
    pub fn uniform(&self, values: &Lanes64, what: &str) -> Exec<u64> {
        let mut all = lanes(self.mask);
        let Some(first) = all.next() else { return Ok(0) };
        match all.find(|&i| values[i] != values[first]) {
            None => Ok(values[first]),
            Some(other) => Err(Fault::at(
                Kind::Divergence,
                other,
                format!(
                    "{what} must be the same in all lanes: {:#x} in lane {first}, {:#x} in lane {other}",
                    values[first], values[other]
                ),
            )),
        }
    }
}
