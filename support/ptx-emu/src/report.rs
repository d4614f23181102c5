//! What the emulator says when a kernel does something wrong.

use std::fmt;
use std::sync::Arc;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// An access outside of every allocation, of the block's shared memory, of a thread's local memory, or of freed memory.
    OutOfBounds,
    /// An address that is not a multiple of what the access needs.
    Misaligned,
    /// Memory that nothing wrote was read.
    UninitializedMemory,
    /// A register that nothing wrote was used.
    UninitializedRegister,
    /// Two accesses to the same bytes, one of them a write, that nothing orders.
    DataRace,
    /// Two strong accesses to the same bytes whose scopes do not include each other.
    InsufficientScope,
    /// Bytes written through the generic proxy are accessed by an asynchronous operation without a proxy fence between.
    MissingProxyFence,
    /// A register of an asynchronous matrix instruction was touched before the instruction was waited for.
    WgmmaRegisterInFlight,
    /// `wgmma.fence` is missing between writing registers and the matrix instruction that uses them.
    MissingWgmmaFence,
    /// A barrier or mbarrier used against its rules.
    BarrierMisuse,
    /// A collective instruction executed by other threads than it says, or with operands that must agree and do not.
    Divergence,
    /// An operand outside of what the instruction allows: a descriptor, a coordinate, a size.
    IllegalOperand,
    /// Every thread waits for what none of them can bring about.
    Deadlock,
    /// Threads run in circles: all state came back and nothing can change it.
    Livelock,
    /// The budget of instructions is used up.
    Budget,
    /// `trap`, or a failed device-side assertion.
    Trap,
    /// A block ended while others could still reach its shared memory, or with work in flight.
    EarlyExit,
    /// Something the emulator does not model, found only when executing.
    Unsupported,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::OutOfBounds => "out-of-bounds access",
            Kind::Misaligned => "misaligned access",
            Kind::UninitializedMemory => "read of memory that nothing wrote",
            Kind::UninitializedRegister => "use of a register that nothing wrote",
            Kind::DataRace => "data race",
            Kind::InsufficientScope => "data race: scopes do not include each other",
            Kind::MissingProxyFence => "missing proxy fence",
            Kind::WgmmaRegisterInFlight => "wgmma register touched in flight",
            Kind::MissingWgmmaFence => "missing wgmma.fence",
            Kind::BarrierMisuse => "barrier misuse",
            Kind::Divergence => "divergence",
            Kind::IllegalOperand => "illegal operand",
            Kind::Deadlock => "deadlock",
            Kind::Livelock => "livelock",
            Kind::Budget => "instruction budget used up",
            Kind::Trap => "trap",
            Kind::EarlyExit => "early exit",
            Kind::Unsupported => "unsupported",
        })
    }
}

/// Where in a program something happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Site {
    /// Kernel that was launched.
    pub kernel: Arc<str>,
    /// Function that the instruction stands in: the kernel or what it calls.
    pub function: Arc<str>,
    /// The opcode as written.
    pub instruction: Arc<str>,
    /// Line of the PTX text.
    pub ptx_line: u32,
    /// File and line of the source, where the PTX has `.loc` directives.
    pub source: Option<(Arc<str>, u32)>,
    /// Where the function that holds this source line was inlined into, innermost first: the last one is in `function`.
    pub inlined_at: Vec<(Arc<str>, u32)>,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at PTX line {}", self.instruction, self.ptx_line)?;
        if let Some((file, line)) = &self.source {
            write!(f, " ({file}:{line}")?;
            for (file, line) in &self.inlined_at {
                write!(f, ", inlined at {file}:{line}")?;
            }
            write!(f, ")")?;
        }
        if self.function != self.kernel {
            write!(f, " in {}", self.function)?;
        }
        Ok(())
    }
}

/// A thread of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ThreadId {
    /// Device it runs on.
    pub device: u32,
    /// `%ctaid`.
    pub block: [u32; 3],
    /// `%tid`.
    pub thread: [u32; 3],
}

impl fmt::Display for ThreadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([bx, by, bz], [x, y, z]) = (self.block, self.thread);
        write!(f, "block ({bx}, {by}, {bz}) thread ({x}, {y}, {z})")?;
        if self.device != 0 {
            write!(f, " device {}", self.device)?;
        }
        Ok(())
    }
}

/// One thing that a kernel did wrong: see [`Finding`] for what it says.
#[derive(Debug, Clone)]
pub struct Report(Box<Finding>);

impl From<Finding> for Report {
    fn from(finding: Finding) -> Report {
        Report(Box::new(finding))
    }
}

impl std::ops::Deref for Report {
    type Target = Finding;

    fn deref(&self) -> &Finding {
        &self.0
    }
}

impl std::ops::DerefMut for Report {
    fn deref_mut(&mut self) -> &mut Finding {
        &mut self.0
    }
}

/// What a [`Report`] says.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// Where. None when no single instruction is to blame.
    pub site: Option<Site>,
    /// Who. None when a whole launch is to blame.
    pub thread: Option<ThreadId>,
    /// What happened, in words.
    pub message: String,
    /// Further lines: the other side of a race; what each waiting warp waits for.
    pub details: Vec<String>,
    /// The seed that shows it.
    pub seed: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)?;
        if let Some(site) = &self.site {
            write!(f, "\n  in {}: {site}", site.kernel)?;
        }
        if let Some(thread) = &self.thread {
            write!(f, "\n  {thread}")?;
        }
        for line in &self.details {
            write!(f, "\n  {line}")?;
        }
        write!(f, "\n  seed {}", self.seed)
    }
}

impl std::error::Error for Report {}
