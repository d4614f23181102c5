//! Project tasks: `cargo xtask tidy`, `cargo xtask bench`, `cargo xtask fp8-loss`.

mod fp8_loss;
mod manifest;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use xtask::args::Failure;

const USAGE: &str = "\
usage: cargo xtask TASK

tasks:
  tidy                                     check what the compiler does not: who depends on whom, the shape of a piece, file lengths
  bench [PIECE] [--json FILE] [--threads 1,2] [--quick]
                                           measure every operation of every piece, or of one
  fp8-loss [--steps 300] [--seeds 3]       train the default model in f32, bf16 and fp8 and compare the losses
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let task = args.next();
    let rest: Vec<String> = args.collect();
    let result = match task.as_deref() {
        Some("tidy") => tidy::run(&rest),
        Some("bench") => bench(&rest),
        Some("fp8-loss") => fp8_loss::run(&rest),
        Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            Ok(())
        }
        Some(other) => Err(Failure::usage(format!("unknown task '{other}': expected tidy, bench or fp8-loss"))),
        None => Err(Failure::usage("no task given: expected tidy, bench or fp8-loss".into())),
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

/// The cargo that runs this program.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The root of the workspace.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
