//! Executes compiled PTX on the CPU, Hopper's asynchronous instructions included, and reports races, hangs and bad accesses.

pub mod ast;
pub mod formats;
