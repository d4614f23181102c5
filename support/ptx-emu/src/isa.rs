//! Decoded instructions: what the decoder makes and the interpreter executes. Names are resolved to registers, offsets and symbols; each
//! family of instructions (`alu`, `mem`, ...) has its own decoder and its own executor.

use crate::ast::{Loc, Span, Type};
use std::sync::Arc;

/// Set in an entry of [`Instr::reads`] or [`Instr::writes`] that is a predicate, not a register.
pub const PRED_BIT: u32 = 1 << 31;

/// How a register is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Width {
    W8,
    W16,
    W32,
    W64,
    W128,
}

impl Width {
    /// Of a type as declared; None for predicates and opaque types.
    pub fn of(ty: Type) -> Option<Width> {
        use Type::*;
        Some(match ty {
            B8 | U8 | S8 => Width::W8,
            B16 | U16 | S16 | F16 | Bf16 | E4m3x2 | E5m2x2 => Width::W16,
            B32 | U32 | S32 | F16x2 | Bf16x2 | F32 | Tf32 => Width::W32,
            B64 | U64 | S64 | F64 => Width::W64,
            B128 => Width::W128,
            Pred | TexRef | SamplerRef | SurfRef => return None,
        })
    }

    /// In bits.
    pub fn bits(self) -> u32 {
        match self {
            Width::W8 => 8,
            Width::W16 => 16,
            Width::W32 => 32,
            Width::W64 => 64,
            Width::W128 => 128,
        }
    }

    /// Slots of the register file.
    pub fn slots(self) -> u32 {
        match self {
            Width::W64 => 2,
            Width::W128 => 4,
            _ => 1,
        }
    }
}

/// A register: its first slot in the window of its function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reg {
    /// First slot.
    pub slot: u32,
    /// As declared.
    pub width: Width,
}

/// A predicate as a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PredSrc {
    /// Index.
    pub index: u32,
    /// `!p`.
    pub negated: bool,
}

/// A source operand of up to 64 bits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Src {
    /// A register.
    Reg(Reg),
    /// The bits of a literal, already in the type of the operand.
    Imm(u64),
    /// A special register.
    Special(Special),
    /// The address of a variable of the module plus an offset: of `.global` and `.const` ones a global address, of `.shared` ones an offset in
    /// shared memory. Which it is depends on the launch.
    Symbol(u32, i64),
    /// The address of a `.local` or function-scope `.param` variable: an offset in the activation's part of local memory.
    Local(i64),
    /// The address of a kernel parameter: an offset in parameter memory.
    Param(i64),
    /// The handle of a function, for indirect calls.
    Function(u32),
}

/// The base of an address operand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Addr {
    /// What is added to `offset`.
    pub base: Src,
    /// In bytes.
    pub offset: i64,
}

/// Special registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are PTX's own
pub enum Special {
    TidX,
    TidY,
    TidZ,
    NtidX,
    NtidY,
    NtidZ,
    LaneId,
    WarpId,
    NWarpId,
    CtaIdX,
    CtaIdY,
    CtaIdZ,
    NctaIdX,
    NctaIdY,
    NctaIdZ,
    SmId,
    NSmId,
    GridId,
    LaneMaskEq,
    LaneMaskLe,
    LaneMaskLt,
    LaneMaskGe,
    LaneMaskGt,
    Clock,
    ClockHi,
    Clock64,
    GlobalTimer,
    GlobalTimerLo,
    GlobalTimerHi,
    DynamicSmemSize,
    TotalSmemSize,
    AggrSmemSize,
    ClusterIdX,
    ClusterIdY,
    ClusterIdZ,
    NClusterIdX,
    NClusterIdY,
    NClusterIdZ,
    ClusterCtaIdX,
    ClusterCtaIdY,
    ClusterCtaIdZ,
    ClusterNctaIdX,
    ClusterNctaIdY,
    ClusterNctaIdZ,
    ClusterCtaRank,
    ClusterNctaRank,
    IsExplicitCluster,
    CurrentGraphExec,
}

impl Special {
    /// By the name in PTX.
    pub fn by_name(name: &str) -> Option<Special> {
        use Special::*;
        Some(match name {
            "%tid.x" | "%tid" => TidX,
            "%tid.y" => TidY,
            "%tid.z" => TidZ,
            "%ntid.x" | "%ntid" => NtidX,
            "%ntid.y" => NtidY,
            "%ntid.z" => NtidZ,
            "%laneid" => LaneId,
            "%warpid" => WarpId,
            "%nwarpid" => NWarpId,
            "%ctaid.x" | "%ctaid" => CtaIdX,
            "%ctaid.y" => CtaIdY,
            "%ctaid.z" => CtaIdZ,
            "%nctaid.x" | "%nctaid" => NctaIdX,
            "%nctaid.y" => NctaIdY,
            "%nctaid.z" => NctaIdZ,
            "%smid" => SmId,
            "%nsmid" => NSmId,
            "%gridid" => GridId,
            "%lanemask_eq" => LaneMaskEq,
            "%lanemask_le" => LaneMaskLe,
            "%lanemask_lt" => LaneMaskLt,
            "%lanemask_ge" => LaneMaskGe,
            "%lanemask_gt" => LaneMaskGt,
            "%clock" => Clock,
            "%clock_hi" => ClockHi,
            "%clock64" => Clock64,
            "%globaltimer" => GlobalTimer,
            "%globaltimer_lo" => GlobalTimerLo,
            "%globaltimer_hi" => GlobalTimerHi,
            "%dynamic_smem_size" => DynamicSmemSize,
            "%total_smem_size" => TotalSmemSize,
            "%aggr_smem_size" => AggrSmemSize,
            "%clusterid.x" => ClusterIdX,
            "%clusterid.y" => ClusterIdY,
            "%clusterid.z" => ClusterIdZ,
            "%nclusterid.x" => NClusterIdX,
            "%nclusterid.y" => NClusterIdY,
            "%nclusterid.z" => NClusterIdZ,
            "%cluster_ctaid.x" => ClusterCtaIdX,
            "%cluster_ctaid.y" => ClusterCtaIdY,
            "%cluster_ctaid.z" => ClusterCtaIdZ,
            "%cluster_nctaid.x" => ClusterNctaIdX,
            "%cluster_nctaid.y" => ClusterNctaIdY,
            "%cluster_nctaid.z" => ClusterNctaIdZ,
            "%cluster_ctarank" => ClusterCtaRank,
            "%cluster_nctarank" => ClusterNctaRank,
            "%is_explicit_cluster" => IsExplicitCluster,
            "%current_graph_exec" => CurrentGraphExec,
            _ => return None,
        })
    }
}

/// A decoded instruction.
#[derive(Debug)]
pub struct Instr {
    /// What it does.
    pub op: Op,
    /// `@p`.
    pub guard: Option<PredSrc>,
    /// Registers (first slots) and predicates ([`PRED_BIT`]) it reads, the guard included: checked before it executes.
    pub reads: Box<[u32]>,
    /// Registers and predicates it writes: defined afterwards.
    pub writes: Box<[u32]>,
    /// It only moves values: what nothing wrote stays unwritten at its destination, and is reported where it is used.
    pub moves: bool,
    /// It marks what it writes as defined or not itself: a load of local memory, where bytes may be undefined.
    pub defines: bool,
    /// Where it stands in the PTX.
    pub span: Span,
    /// Where it comes from.
    pub loc: Option<Loc>,
    /// Where that was inlined into, innermost first.
    pub inlined_at: Arc<[Loc]>,
    /// The opcode as written, for reports.
    pub text: Arc<str>,
}

/// What an instruction does, by family.
#[derive(Debug)]
pub enum Op {
    /// Arithmetic, logic, conversions, moves.
    Alu(crate::alu::Alu),
    /// Shuffles, votes and other exchanges inside a warp.
    Warp(crate::warp_ops::WarpOp),
    /// Loads, stores, atomics, address conversions.
    Mem(crate::mem_ops::MemOp),
    /// Barriers, fences, asynchronous copies.
    Sync(crate::sync::SyncOp),
    /// Matrix instructions.
    Tensor(crate::tensor_ops::TensorOp),
    /// Branches, calls, exits.
    Control(Control),
}

/// Where control goes.
#[derive(Debug)]
pub enum Control {
    /// `bra` to an instruction of the same function.
    Branch {
        /// Index of the instruction.
        target: u32,
        /// `.uni`: all lanes take it or none.
        uniform: bool,
    },
    /// `brx.idx`.
    BranchTable {
        /// The index.
        index: Src,
        /// Instructions.
        targets: Box<[u32]>,
        /// `.uni`.
        uniform: bool,
    },
    /// `call`.
    Call {
        /// Which function.
        callee: Callee,
        /// Local-memory offsets (in the caller) and sizes of the arguments, in order; registers and literals are stored there first.
        args: Box<[CallArg]>,
        /// The same for what it returns.
        returns: Box<[CallArg]>,
    },
    /// `ret`
    Return,
    /// `exit`
    Exit,
    /// `trap`
    Trap,
    /// `brkpt`, `pmevent` and others that do nothing here.
    Nothing,
}

/// Whom a call calls.
#[derive(Debug)]
pub enum Callee {
    /// A function of the module.
    Direct(u32),
    /// A function handle.
    Indirect(Src),
    /// A function that the driver provides, such as `vprintf` and `__assertfail`.
    System(Arc<str>),
}

/// An argument of a call, or what it returns.
#[derive(Debug, Clone, Copy)]
pub enum CallArg {
    /// A `.param` variable of the caller.
    Local {
        /// Offset in the activation's local memory.
        offset: i64,
        /// In bytes.
        size: u32,
    },
    /// A register.
    Reg(Reg),
    /// A literal.
    Imm(u64),
}
