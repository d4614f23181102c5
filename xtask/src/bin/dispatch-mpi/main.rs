//! Dispatch over MPI against what a program would do that has only MPI: pack every (token, expert) row by destination,
//! `MPI_Alltoallv`, unpack by expert. Both run in the same processes, in turn, and must deliver the same bytes.
//!
//! `cargo run --release -p xtask --features mpi --bin dispatch-mpi [-- TOKENS HIDDEN ROUNDS]` starts itself under `mpirun` with 2 and with 4
//! ranks. Tokens are those of all ranks together. `-- check` compares dispatch and combine of all kinds with what threads give instead, on
//! 2, 4 and 8 ranks.

mod check;
mod peer;

use std::error::Error;
use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::time::Instant;

use moe_dispatch::{FanOut, Layout, Plan, PlanOptions, Routing};
use v3_ranks::{Comm, MpiConfig, RanksError, run_mpi};

use peer::Peer;

type Outcome<T> = Result<T, Box<dyn Error>>;

const EXPERTS: usize = 256;
const TOP_K: usize = 8;

#[derive(Clone, Copy)]
struct Shape {
    tokens: usize,
    hidden: usize,
    rounds: usize,
}

fn main() -> ExitCode {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let number = |at: usize, default: usize| numbers.get(at).copied().filter(|&n| n > 0).unwrap_or(default);
    let shape = Shape { tokens: number(0, 4096), hidden: number(1, 7168), rounds: number(2, 9) };
    let check = std::env::args().any(|arg| arg == "check");
    let done = match (std::env::var_os("OMPI_COMM_WORLD_SIZE"), check) {
        // Parts so short that most messages have several.
        (Some(_), true) => run_mpi(MpiConfig { chunk_bytes: 4096, ..MpiConfig::default() }, |comm| check::run(&comm)),
        (Some(_), false) => run_mpi(MpiConfig::default(), |comm| rank(&comm, shape)),
        (None, true) => jobs(&[2, 4, 8], &["check".into()]),
        (None, false) => jobs(&[2, 4], &[shape.tokens, shape.hidden, shape.rounds].map(|n| n.to_string())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts one job after the other.
fn jobs(sizes: &[usize], args: &[String]) -> Result<(), RanksError> {
    let failed = |message: String| RanksError { rank: 0, operation: "mpirun".into(), message };
    let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    for ranks in sizes {
        let status = Command::new("mpirun")
            .args(["-np", &ranks.to_string(), "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"])
            .arg(&program)
            .args(args)
            .envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")])
            .status()
            .map_err(|error| failed(error.to_string()))?;
        if !status.success() {
            return Err(failed(format!("{ranks} ranks: {status}")));
        }
    }
    Ok(())
}

/// Numbers that look random, from a number (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Each token goes to distinct experts, all equally likely.
fn routing(tokens: usize, rank: usize) -> Routing {
    let mut numbers = Numbers(rank as u64 + 1);
    let mut indices = Vec::with_capacity(tokens * TOP_K);
    for _ in 0..tokens {
        let first = indices.len();
        while indices.len() < first + TOP_K {
            let expert = (numbers.next() % EXPERTS as u64) as u32;
            if !indices[first..].contains(&expert) {
                indices.push(expert);
            }
        }
    }
    Routing { tokens, top_k: TOP_K, indices, weights: vec![1.0; tokens * TOP_K], scores: Vec::new() }
}

fn rank(comm: &Comm, shape: Shape) -> Outcome<()> {
    let (me, size) = (comm.rank(), comm.size());
    // One thread a rank: the ranks are what runs side by side.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build()?;
    let Shape { hidden, rounds, .. } = shape;
    let tokens = shape.tokens / size;
    let routing = routing(tokens, me);
    let mut numbers = Numbers(1000 + me as u64);
    let rows: Vec<u16> = (0..tokens * hidden).map(|_| numbers.next() as u16).collect();

    let layout = Layout::new(EXPERTS, size, size)?;
    let plan = |fan_out| Plan::with_options(comm, &layout, &routing, PlanOptions { fan_out, ..PlanOptions::default() });
    let (per_rank, per_expert) = (plan(FanOut::PerRank)?, plan(FanOut::PerExpert)?);
    let mut peer = Peer::new(comm, &routing, EXPERTS, hidden)?;

    let mut out = vec![0u16; per_rank.expert_rows() * hidden];
    let mut theirs = vec![1u16; out.len()];
    let names = ["pack, MPI_Alltoallv, unpack", "dispatch, a row per rank", "dispatch, a row per expert", "MPI_Alltoallv alone"];
    let mut times = vec![Vec::new(); names.len()];
    for round in 0..rounds + 2 {
        for (which, times) in times.iter_mut().enumerate() {
            comm.barrier()?;
            let began = Instant::now();
            match which {
                0 => peer.run(&rows, &mut theirs)?,
                1 => pool.install(|| per_rank.dispatch_into(comm, &rows, hidden, &mut out))?,
                2 => pool.install(|| per_expert.dispatch_into(comm, &rows, hidden, &mut out))?,
                _ => peer.exchange()?,
            }
            let mut seconds = [began.elapsed().as_secs_f64()];
            black_box((&out, &theirs));
            comm.all_reduce(&mut seconds, f64::max)?;
            // The first rounds touch the memory for the first time.
            if round >= 2 {
                times.push(seconds[0]);
            }
            if which == 1 || which == 2 {
                if out != theirs {
                    return Err(format!("{}: other rows than the peer's", names[which]).into());
                }
                out.fill(0);
            }
        }
    }
    let sent = [per_rank.traffic(), per_expert.traffic()].map(|traffic| traffic.fast_rows / (rounds as u64 + 2));
    let mut rows = [peer.rows_to_others() as u64, sent[0], sent[1]];
    comm.all_reduce_sum(&mut rows)?;
    if me > 0 {
        return Ok(());
    }
    let delivered = (tokens * size * TOP_K * hidden * 2) as f64;
    println!("{size} ranks, {} tokens, hidden {hidden}, top-{TOP_K} of {EXPERTS} experts, bf16, {rounds} rounds", tokens * size);
    let median = |times: &[f64]| {
        let mut times = times.to_vec();
        times.sort_by(f64::total_cmp);
        (times[times.len() / 2], times[0])
    };
    let base = median(&times[0]).0;
    for (which, name) in names.iter().enumerate() {
        let (middle, best) = median(&times[which]);
        let moved = [rows[0], rows[1], rows[2], rows[0]][which];
        println!(
            "  {name:<28} {:7.1} ms (best {:6.1}), {:5.2} GB/s delivered, {moved} rows between ranks, {:.2}x",
            middle * 1e3,
            best * 1e3,
            delivered / middle * 1e-9,
            base / middle
        );
    }
    Ok(())
}
