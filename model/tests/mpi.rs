//! Training across processes: the same bits as with threads, what is refused, and ranks that are killed or stopped.
//!
//! The tests start `mpirun` themselves, each under a hard time-out, and one after the other.

mod files;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use files::Dir;
use serde_json::{Value, json};

/// One job at a time: ranks that compete for few processors only take longer.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A model of four layers that takes steps in milliseconds, and a text.
fn workplace() -> Dir {
    let dir = Dir::new();
    let config = json!({
        "model_type": "deepseek_v3", "vocab_size": 256, "hidden_size": 24, "intermediate_size": 40, "moe_intermediate_size": 12,
        "num_hidden_layers": 4, "num_nextn_predict_layers": 1, "num_attention_heads": 3, "q_lora_rank": 20, "kv_lora_rank": 16,
        "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "n_routed_experts": 8, "n_shared_experts": 1,
        "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "norm_topk_prob": true, "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 1, "max_position_embeddings": 64, "initializer_range": 0.08
    });
    std::fs::write(dir.join("c.json"), config.to_string()).expect("written");
    let text: String = (0..4000u32).map(|i| char::from(b' ' + (i * i % 89) as u8)).collect();
    std::fs::write(dir.join("text"), text).expect("written");
    dir
}

const TRAIN: [&str; 13] =
    ["train", "--config", "c.json", "--data", "text", "--seq-len", "12", "--micro-batch", "4", "--lr", "0.01", "--threads", "2"];

/// `mpirun -np RANKS v3 ARGS`, which can be told from other jobs by a variable.
fn mpirun(dir: &Path, ranks: usize, args: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["-k", "5", "60", "mpirun", "-np", &ranks.to_string(), "--oversubscribe", "--bind-to", "none"])
        .args(["--mca", "mpi_yield_when_idle", "1"])
        .arg(env!("CARGO_BIN_EXE_v3"))
        .args(args)
        .envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")])
        .env("V3_TEST_JOB", dir)
        .current_dir(dir);
    command
}

fn output(command: &mut Command) -> (Output, String) {
    let output = command.output().expect("started");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, text)
}

fn succeeds(command: &mut Command) -> String {
    let (output, text) = output(command);
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

fn with_threads(dir: &Dir, args: &[&str]) {
    succeeds(Command::new(env!("CARGO_BIN_EXE_v3")).args(args).current_dir(&dir.0));
}

/// The lines of metrics.jsonl without what depends on the clock.
fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let strip = |mut line: Value| {
        line.as_object_mut().expect("an object").remove("tokens_per_s");
        line
    };
    lines.map(strip).collect()
}

fn assert_same(a: &Path, b: &Path) {
    assert_eq!(metrics(a), metrics(b));
    for file in ["checkpoint/model.safetensors", "checkpoint/training/model.safetensors", "ema/model.safetensors"] {
        assert!(std::fs::read(a.join(file)).expect("a file") == std::fs::read(b.join(file)).expect("a file"), "{file} differs");
    }
}

#[test]
fn processes_give_the_bits_of_threads() {
    let _alone = alone();
    let dir = workplace();
    for (ranks, grid) in [
        (2, ["--pipeline", "1", "--expert-parallel", "2", "--overlap", "off"]),
        (2, ["--pipeline", "2", "--expert-parallel", "1", "--overlap", "off"]),
        (4, ["--pipeline", "2", "--expert-parallel", "2", "--overlap", "off"]),
        (4, ["--pipeline", "2", "--expert-parallel", "2", "--overlap", "default"]),
        (8, ["--pipeline", "2", "--expert-parallel", "4", "--overlap", "default"]),
    ] {
        let args = [&TRAIN[..], &grid, &["--steps", "5", "--save-every", "2"]].concat();
        // Threads do without overlap: it does not change the bits either.
        let plain: Vec<&str> = args.iter().map(|&arg| if arg == "default" { "off" } else { arg }).collect();
        with_threads(&dir, &[&plain[..], &["--out", "threads"]].concat());
        let text = succeeds(&mut mpirun(&dir.0, ranks, &[&args[..], &["--out", "processes", "--ranks", "mpi"]].concat()));
        assert_same(&dir.join("threads"), &dir.join("processes"));
        assert_eq!(metrics(&dir.join("threads")).len(), 5);
        // Rank 0 alone speaks, and it has the figures of all.
        assert_eq!(text.matches("run folder: processes").count(), 1, "{text}");
        assert!((0..ranks).all(|rank| text.contains(&format!("rank {rank} "))), "{text}");
        for run in ["threads", "processes"] {
            std::fs::remove_dir_all(dir.join(run)).expect("removed");
        }
    }
}

#[test]
fn what_is_refused_is_said_once() {
    let _alone = alone();
    let dir = workplace();
    std::fs::create_dir(dir.join("full")).expect("made");
    std::fs::write(dir.join("full/file"), "").expect("written");
    let link = "slow=1us,1GB/s,fast=1us,1GB/s";
    let cases: [(&[&str], &str); 6] = [
        (&["--pipeline", "2", "--expert-parallel", "1", "--link", link], "error: --link: expected --ranks threads beside it"),
        (
            &["--pipeline", "2", "--expert-parallel", "2"],
            "error: mpirun -np: expected 4, pipeline 2 times expert-parallel 2, found 2",
        ),
        (&["--pipeline", "2", "--expert-parallel", "1", "--out", "full"], "error: --out: expected a new or empty folder"),
        (&["--pipeline", "2", "--expert-parallel", "1", "--steps", "0"], "error: --steps: expected 1 or more, found 0"),
        (&["--heartbeat-timeout", "-1"], "error: --heartbeat-timeout: expected 0.001 seconds or more, found -1"),
        (&["--heartbeat-timeout", "2", "--heartbeat-period", "1"], "error: --heartbeat-timeout: expected at least four periods"),
    ];
    for (args, sentence) in cases {
        let args = [&TRAIN[..], &["--ranks", "mpi"], args].concat();
        let (output, text) = output(&mut mpirun(&dir.0, 2, &args));
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        // What is wrong with the options themselves is found before the ranks know of each other.
        let times = text.matches(sentence).count();
        assert!(times == 1 || (times == 2 && sentence.contains("heartbeat")), "{args:?}: {times} times: {text}");
    }
    assert_eq!(dir.names(), ["c.json", "full", "text"]);
}

/// The processes of the job in `dir`, by rank.
fn ranks(dir: &Path) -> Vec<(usize, u32)> {
    let job = format!("V3_TEST_JOB={}", dir.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("Linux").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let variables: Vec<String> = environment.split(|&b| b == 0).map(|v| String::from_utf8_lossy(v).into_owned()).collect();
        let rank = variables.iter().find_map(|v| v.strip_prefix("OMPI_COMM_WORLD_RANK=")?.parse::<usize>().ok());
        if let (Some(rank), true) = (rank, variables.contains(&job)) {
            found.push((rank, pid));
        }
    }
    found.sort_unstable();
    found
}

/// Starts a run that saves after every step, and sends `signal` to rank `rank` once `steps` steps are done. Returns what came of it.
fn struck(dir: &Dir, args: &[&str], steps: usize, rank: usize, signal: &str) -> (Output, Duration) {
    let mut child: Child = mpirun(&dir.0, 4, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    let began = Instant::now();
    while metrics(&dir.join("run")).len() < steps {
        assert!(began.elapsed() < Duration::from_secs(40), "no {steps} steps");
        assert_eq!(child.try_wait().expect("asked"), None, "it ended by itself");
        std::thread::sleep(Duration::from_millis(2));
    }
    let (_, pid) = *ranks(&dir.0).iter().find(|(r, _)| *r == rank).expect("the rank runs");
    let struck = Instant::now();
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill").success());
    let output = child.wait_with_output().expect("waited for");
    let took = struck.elapsed();
    assert_eq!(ranks(&dir.0), [], "processes are left");
    (output, took)
}

const GRID: [&str; 8] = ["--pipeline", "2", "--expert-parallel", "2", "--save-every", "1", "--out", "run"];

#[test]
fn a_killed_rank_ends_the_job_and_leaves_no_half_checkpoint() {
    let _alone = alone();
    let dir = workplace();
    let args = [&TRAIN[..], &GRID, &["--steps", "400"]].concat();
    with_threads(&dir, &[&TRAIN[..], &GRID[..6], &["--steps", "12", "--out", "whole"]].concat());
    for rank in 0..4 {
        let (output, took) = struck(&dir, &[&args[..], &["--ranks", "mpi"]].concat(), 3 + rank, rank, "-KILL");
        assert!(!output.status.success());
        assert!(took < Duration::from_secs(10), "{took:?}");
        // What is called a checkpoint is one: evaluation and training take it.
        let run = dir.join("run");
        if run.join("checkpoint").exists() || run.join(".checkpoint.ready").exists() {
            let resume = ["train", "--resume", "run", "--threads", "2", "--save-every", "1", "--steps", "401"];
            let (more, text) = self::output(
                Command::new("timeout").args(["-k", "1", "2"]).arg(env!("CARGO_BIN_EXE_v3")).args(resume).current_dir(&dir.0),
            );
            // It is either still training when its time is over, or done.
            assert!(matches!(more.status.code(), Some(124 | 0)), "{} {text}", more.status);
            let eval = ["eval", "run/checkpoint", "--data", "text"];
            succeeds(Command::new(env!("CARGO_BIN_EXE_v3")).args(eval).current_dir(&dir.0));
        }
        std::fs::remove_dir_all(run).expect("removed");
    }
}

#[test]
fn a_rank_that_fails_says_what_it_was_doing_and_ends_the_job() {
    let _alone = alone();
    let dir = workplace();
    let grid = ["--pipeline", "2", "--expert-parallel", "2", "--save-every", "200", "--out", "run"];
    let args = [&TRAIN[..], &grid, &["--steps", "100000", "--ranks", "mpi"]].concat();
    let mut child = mpirun(&dir.0, 4, &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    let began = Instant::now();
    while metrics(&dir.join("run")).is_empty() {
        assert!(began.elapsed() < Duration::from_secs(40), "no step");
        assert_eq!(child.try_wait().expect("asked"), None, "it ended by itself");
        std::thread::sleep(Duration::from_millis(2));
    }
    // Rank 0 cannot save into a file; the others wait for it.
    std::fs::write(dir.join("run/checkpoint"), "").expect("written");
    let output = child.wait_with_output().expect("waited for");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let said =
        |line: &str| line.starts_with("rank 0 failed in ") && line.contains("run/checkpoint: expected a directory or nothing");
    assert!(text.lines().any(said), "{text}");
    assert_eq!(ranks(&dir.0), [], "processes are left");
}

#[test]
fn a_stopped_rank_is_reported_by_the_others_and_the_job_ends() {
    let _alone = alone();
    let dir = workplace();
    let beats = ["--ranks", "mpi", "--heartbeat-timeout", "5", "--heartbeat-period", "0.5"];
    let args = [&TRAIN[..], &GRID, &["--steps", "100000"], &beats].concat();
    let (output, took) = struck(&dir, &args, 3, 2, "-STOP");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(15), "{took:?} {text}");
    for rank in [0, 1, 3] {
        let said = |line: &str| {
            line.contains(&format!("rank {rank}: rank 2 has given no sign of life"))
                && line.contains(&format!("meanwhile rank {rank} in "))
        };
        assert!(text.lines().any(said), "rank {rank}: {text}");
    }
    assert!(!text.contains("rank 2:"), "{text}");
}
