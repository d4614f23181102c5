//! "Skipped" is not "passed".
//!
//! A test that needs what this machine lacks calls [`skip`], which prints one line, `SKIPPED <name>: <reason>`, to standard error,
//! remembers it for [`skipped`], and appends it to the file that the environment variable `V3_SKIP_LOG` names, if any, so that a
//! continuous-integration run can list, or refuse, what was not run.

use std::io::Write;
use std::sync::Mutex;

static SKIPPED: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// Notes that `name` was not run, and why. Each name is noted once a process.
pub fn skip(name: &str, reason: &str) {
    let mut list = SKIPPED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if list.iter().any(|(n, _)| n == name) {
        return;
    }
    list.push((name.to_string(), reason.to_string()));
    let line = format!("SKIPPED {name}: {reason}\n");
    // Straight to the descriptor: the test harness would swallow what `eprintln` prints in a test that passes.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Ok(path) = std::env::var("V3_SKIP_LOG") {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        if let Err(error) = log.and_then(|mut file| file.write_all(line.as_bytes())) {
            eprintln!("cannot write {path}: {error}");
        }
    }
}

/// What this process has skipped so far: names and reasons.
pub fn skipped() -> Vec<(String, String)> {
    SKIPPED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
}
