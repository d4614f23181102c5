//! Other implementations, run beside ours: a Python with the packages that a user would have, named with `--peers`.

use crate::ops::{AnyError, Run};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};

/// The Python that `--peers` names.
pub static PYTHON: OnceLock<PathBuf> = OnceLock::new();

/// A script that runs operations on request.
struct Peer {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    name: String,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Peer {
    fn start(script: &str, threads: usize) -> Result<Peer, AnyError> {
        let python = PYTHON.get().ok_or("no --peers PYTHON")?;
        let mut process = Command::new(python)
            .args(["-c", script, &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", python.display()))?;
        let pipes = process.stdin.take().zip(process.stdout.take());
        let (requests, answers) = pipes.ok_or("no pipes to the peer")?;
        let mut peer = Peer { process, requests, answers: BufReader::new(answers), name: String::new() };
        peer.name = peer.answer().map_err(|e| format!("{} does not run the peer: {e}", python.display()))?;
        Ok(peer)
    }

    fn answer(&mut self) -> Result<String, AnyError> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err("it has ended".into());
        }
        Ok(line.trim().to_string())
    }

    fn run(&mut self, operation: &str) -> Result<f64, AnyError> {
        writeln!(self.requests, "{operation}")?;
        self.requests.flush()?;
        Ok(self.answer()?.parse()?)
    }
}

/// The name of the peer and what runs one of its operations on so many threads.
pub fn start(script: &str, threads: usize, operation: &'static str) -> Result<(String, Run), AnyError> {
    let peer = Peer::start(script, threads)?;
    let name = peer.name.clone();
    let peer = Arc::new(Mutex::new(peer));
    Ok((name, Box::new(move || peer.lock().map_err(|_| "a run of the peer has failed")?.run(operation))))
}
