//! Starts jobs and judges them.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// Names the case to a rank.
pub const CASE: &str = "V3_RANKS_MPI_CASE";

/// How a job is to end.
enum End {
    /// With status 0, each rank having said `ok RANK`.
    Good,
    /// With another status, within so many seconds, each rank that still runs having said these texts; `{}` stands for its rank.
    Bad { within: u64, survivors: &'static [&'static str], lost: &'static [usize] },
    /// As `Bad`, but only these texts need to be there, said by whomever.
    Said { within: u64, texts: &'static [&'static str] },
}

struct Case {
    name: &'static str,
    ranks: &'static [usize],
    end: fn() -> End,
}

const ALL: &[usize] = &[2, 4, 8];

const CASES: &[Case] = &[
    Case { name: "messages", ranks: ALL, end: || End::Good },
    Case { name: "collectives", ranks: ALL, end: || End::Good },
    Case { name: "as-threads", ranks: ALL, end: || End::Good },
    Case { name: "lanes", ranks: ALL, end: || End::Good },
    Case { name: "own-errors", ranks: ALL, end: || End::Good },
    Case { name: "progress", ranks: &[2, 4], end: || End::Good },
    Case { name: "idle", ranks: &[2], end: || End::Good },
    Case { name: "clock", ranks: &[4], end: || End::Good },
    Case { name: "huge", ranks: &[2], end: || End::Good },
    Case { name: "wrong-size", ranks: &[2], end: || End::Good },
    Case { name: "slow", ranks: ALL, end: || End::Good },
    Case {
        name: "error",
        ranks: ALL,
        end: || End::Said { within: 10, texts: &["rank 1 failed in its own work after recv: a message of its own"] },
    },
    Case {
        name: "error-of-ranks",
        ranks: &[4],
        end: || End::Said {
            within: 10,
            texts: &["rank 1 failed in recv: rank 1 received from rank 0: expected elements of type u64, got u8"],
        },
    },
    Case {
        name: "panic",
        ranks: ALL,
        end: || End::Said { within: 10, texts: &["rank 1 failed in step 7: panicked: out of cheese"] },
    },
    Case { name: "killed", ranks: ALL, end: || End::Said { within: 10, texts: &["signal 9"] } },
    Case {
        name: "stopped",
        ranks: ALL,
        end: || End::Bad {
            within: 15,
            survivors: &["rank {}: ", "rank 1 has given no sign of life", "meanwhile rank {} in recv for rank 1 (tag 5)"],
            lost: &[1],
        },
    },
    Case {
        name: "stalled",
        ranks: &[4],
        end: || End::Bad {
            within: 12,
            survivors: &["rank {}: every rank waits for a message and none is under way; meanwhile rank {} in recv for rank"],
            lost: &[],
        },
    },
];

/// Runs the cases whose names contain `part`.
pub fn run(part: Option<String>) -> ExitCode {
    if let Err(error) = Command::new("mpirun").arg("--version").output() {
        eprintln!("mpirun, which the feature mpi wants: {error}");
        return ExitCode::FAILURE;
    }
    let mut failed = 0;
    for case in CASES.iter().filter(|case| part.as_ref().is_none_or(|part| case.name.contains(part.as_str()))) {
        for &ranks in case.ranks {
            let began = Instant::now();
            let verdict = judge(case, ranks);
            let seconds = began.elapsed().as_secs_f64();
            match verdict {
                Ok(note) => println!("{} on {ranks} ranks: ok, {seconds:.1} s{note}", case.name),
                Err(why) => {
                    println!("{} on {ranks} ranks: FAILED after {seconds:.1} s: {why}", case.name);
                    failed += 1;
                }
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn judge(case: &Case, ranks: usize) -> Result<String, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let began = Instant::now();
    let output = Command::new("timeout")
        .args(["-k", "5", "60", "mpirun", "-np", &ranks.to_string()])
        .args(["--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"])
        .arg(program)
        .env(CASE, case.name)
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .output()
        .map_err(|error| error.to_string())?;
    let took = began.elapsed();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let wrong = |why: String| Err(format!("{why}; {}; output:\n{text}", output.status));
    if output.status.code() == Some(124) {
        return wrong("it ran out of time".into());
    }
    let lines = |wanted: &str| text.lines().filter(|line| line.contains(wanted)).count();
    let checks: Vec<String> = match (case.end)() {
        End::Good => {
            if !output.status.success() {
                return wrong("it failed".into());
            }
            (0..ranks).map(|rank| format!("ok {rank}.")).collect()
        }
        End::Said { within, texts } => {
            bad_end(&output.status, took, within).or_else(|why| wrong(why).map(|_: String| ()))?;
            texts.iter().map(|text| text.to_string()).collect()
        }
        End::Bad { within, survivors, lost } => {
            bad_end(&output.status, took, within).or_else(|why| wrong(why).map(|_: String| ()))?;
            // All texts of a rank are in one line.
            for rank in (0..ranks).filter(|rank| !lost.contains(rank)) {
                let wanted: Vec<String> = survivors.iter().map(|text| text.replace("{}", &rank.to_string())).collect();
                if !text.lines().any(|line| wanted.iter().all(|wanted| line.contains(wanted.as_str()))) {
                    return wrong(format!("no line of rank {rank} with {wanted:?}"));
                }
            }
            Vec::new()
        }
    };
    for wanted in &checks {
        if lines(wanted) == 0 {
            return wrong(format!("'{wanted}' is missing"));
        }
    }
    let left: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("pid ")).filter(|pid| runs(pid)).collect();
    if !left.is_empty() {
        return wrong(format!("processes are left: {left:?}"));
    }
    Ok(text.lines().filter_map(|line| line.strip_prefix("note ")).map(|note| format!(", {note}")).collect())
}

fn bad_end(status: &std::process::ExitStatus, took: Duration, within: u64) -> Result<(), String> {
    if status.success() {
        Err("it succeeded".into())
    } else if took > Duration::from_secs(within) {
        Err(format!("it took {:.1} s", took.as_secs_f64()))
    } else {
        Ok(())
    }
}

/// Whether a process is there and no zombie.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}
