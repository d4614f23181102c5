//! Project tasks: `cargo xtask help` lists them.

mod bindings;
mod bundle;
mod cuda;
mod explore;
mod fp8_loss;
mod manifest;
mod ptx;
mod python;
mod tidy;

use std::process::ExitCode;
use xtask::args::Failure;
use xtask::workspace::cargo;

const USAGE: &str = "\
usage: cargo xtask TASK

tasks:
  setup                                    the pinned CUDA toolkit into target/cuda; only what compiles kernels needs it
  ptx [--check] [--jobs N] [CRATE|FILE.cu ...]
                                           kernels/*.cu to ptx/*.ptx, registers and spills; --check: nothing is written, stale files fail
  bindings [--check]                       what support/gpu knows of the CUDA driver, from cuda.h and cust_raw; --check: stale files fail
  gpu-bundle [--out DIR]                   test programs and PTX in one folder, for a machine with a GPU and nothing else
  explore [--seeds 200] [CRATE ...]        emulator tests under many schedules
  tidy                                     check what the compiler does not: who depends on whom, the shape of a piece, file lengths
  bench [PIECE] [--json FILE] [--threads 1,2] [--peers PYTHON] [--quick]
                                           measure every operation of every piece, or of one; --peers: beside torch, in a Python that has it
  fp8-loss [--steps 300] [--seeds 3]       train the default model in f32, bf16 and fp8 and compare the losses
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let task = args.next();
    let rest: Vec<String> = args.collect();
    let result = match task.as_deref() {
        Some("setup") => cuda::setup::run(&rest),
        Some("ptx") => ptx::run(&rest),
        Some("bindings") => bindings::run(&rest),
        Some("gpu-bundle") => bundle::run(&rest),
        Some("explore") => explore::run(&rest),
        Some("tidy") => tidy::run(&rest),
        Some("bench") => bench(&rest),
        Some("fp8-loss") => fp8_loss::run(&rest),
        Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            Ok(())
        }
        Some(other) => Err(Failure::usage(format!("unknown task '{other}': `cargo xtask help` lists them"))),
        None => Err(Failure::usage("no task given: `cargo xtask help` lists them".into())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("xtask: {}", failure.message);
            }
            ExitCode::from(failure.status)
        }
    }
}

/// Hands over to the measuring program, which is built with optimisation and needs all pieces.
fn bench(args: &[String]) -> Result<(), Failure> {
    let status = cargo()
        .args(["run", "--release", "--quiet", "--package", "xtask", "--features", "bench", "--bin", "bench", "--"])
        .args(args)
        .status()
        .map_err(|e| Failure::task(format!("cannot start cargo: {e}")))?;
    match status.code() {
        Some(0) => Ok(()),
        code => {
            Err(Failure { status: code.map_or(1, |c| c.clamp(1, 255) as u8), message: "the benchmark did not finish".into() })
        }
    }
}
