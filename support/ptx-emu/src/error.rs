//! The errors of this crate.

/// A PTX text that is malformed, or that uses what the parser does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct ParseError {
    /// Line, counted from 1.
    pub line: u32,
    /// Column in bytes, counted from 1; at most one past the last byte of the line.
    pub column: u32,
    /// What was found and what was expected instead.
    pub message: String,
}

/// A call of the host that cannot be carried out. Nothing was queued or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum LaunchError {
    #[error("device {device} does not exist: there are {devices}")]
    Device { device: u32, devices: u32 },
    #[error("the module has no kernel named {name}")]
    NoKernel { name: String },
    #[error("{name} is declared extern and defined nowhere")]
    Extern { name: String },
    #[error("a grid of {grid:?} blocks: each must be at least 1, x at most 2^31-1, y and z at most 65535")]
    Grid { grid: [u32; 3] },
    #[error("a block of {block:?} threads: the kernel takes 1 to {most}, z at most 64")]
    Threads { block: [u32; 3], most: u64 },
    #[error("a block of {block:?} threads where the kernel requires {required:?}")]
    Block { block: [u32; 3], required: [u32; 3] },
    #[error("clusters of {cluster:?} blocks in a grid of {grid:?}: {what}")]
    Cluster { cluster: [u32; 3], grid: [u32; 3], what: &'static str },
    #[error("{fixed} bytes of static and {dynamic} of dynamic shared memory, more than the {most} of a block")]
    Shared { fixed: u32, dynamic: u32, most: u32 },
    #[error("{kernel} takes {expected} arguments, got {got}")]
    ArgumentCount { kernel: String, expected: usize, got: usize },
    #[error("argument {index} of {kernel} has {expected} bytes, got {got}")]
    ArgumentSize { kernel: String, index: usize, expected: u32, got: usize },
    #[error("stream: {what}")]
    Stream { what: &'static str },
    #[error("event: {what}")]
    Event { what: &'static str },
    #[error(transparent)]
    Memory(#[from] crate::memory::MemoryError),
    #[error("the machine has stopped: {0}")]
    Stopped(String),
}
