//! Executes compiled PTX on the CPU, Hopper's asynchronous instructions included, and reports races, hangs and bad accesses.

mod alu;
pub mod ast;
mod cx;
mod decode;
mod detect;
mod error;
mod fault;
pub mod formats;
mod isa;
mod machine;
mod mem_ops;
mod memory;
pub mod parse;
mod program;
mod regs;
mod report;
mod rng;
mod sync;
pub mod tensor;
mod tensor_ops;
mod warp_ops;
#[doc(hidden)]
pub mod race;
