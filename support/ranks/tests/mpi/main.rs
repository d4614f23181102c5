//! Ranks over MPI. This program is both sides of the tests: without arguments it starts itself under `mpirun`, case by case, each under
//! a hard time-out, and looks at status, output and time; as a rank of such a job it runs the case that it is told.
//!
//! `cargo test -p v3-ranks --features mpi --test mpi [-- PART OF A NAME]`

mod cases;
mod driver;

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::var(driver::CASE) {
        Ok(case) => cases::run(&case),
        Err(_) => driver::run(std::env::args().nth(1).filter(|arg| !arg.starts_with('-'))),
    }
}
