#![doc = include_str!("../README.md")]

mod alu;
pub mod ast;
mod config;
mod cx;
mod decode;
mod detect;
mod engine;
mod error;
mod fault;
pub mod formats;
mod interp;
mod isa;
mod machine;
mod mem_ops;
mod memory;
pub mod parse;
mod printf;
mod program;
#[doc(hidden)]
pub mod race;
mod regs;
mod report;
mod rng;
mod stream;
mod sync;
pub mod tensor;
mod tensor_ops;
pub mod tma;
mod warp_ops;

pub use config::{Checks, Config, Fp8Accumulation};
pub use error::{LaunchError, ParseError};
pub use machine::{Arg, EventId, Loaded, MOST_SHARED, Machine, Module, Shape, StreamId, blocks_per_sm, explore};
pub use memory::{AllocOptions, AllocationInfo, Memory, MemoryError, Usage};
pub use report::{Finding, Kind, Report, Site, ThreadId};
