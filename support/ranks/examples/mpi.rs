//! Ranks that are processes: a sum over all of them, and what messages between the first two take.
//!
//! `cargo build --release -p v3-ranks --features mpi --example mpi && mpirun --bind-to none -np 4 target/release/examples/mpi`

use std::process::ExitCode;
use std::time::Instant;

use v3_ranks::{Comm, MpiConfig, Result, run_mpi};

fn main() -> ExitCode {
    match run_mpi(MpiConfig::default(), rank) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn rank(comm: Comm) -> Result<()> {
    let mut sum = [comm.rank() as f32];
    comm.all_reduce_sum(&mut sum)?;
    if comm.rank() == 0 {
        println!("{} ranks, the sum of their numbers is {}", comm.size(), sum[0]);
    }
    if comm.size() < 2 {
        return Ok(());
    }
    for bytes in [8usize, 64 << 10, 1 << 20, 16 << 20, 64 << 20] {
        let trips = (256 << 20) / bytes.max(256 << 10);
        let mut data = vec![0u8; bytes];
        comm.barrier()?;
        let mut times: Vec<f64> = Vec::with_capacity(trips);
        for _ in 0..trips {
            let began = Instant::now();
            match comm.rank() {
                0 => {
                    comm.send(1, 0, data)?;
                    data = comm.recv(1, 0)?;
                }
                1 => {
                    data = comm.recv(0, 0)?;
                    comm.send(0, 0, data)?;
                    data = Vec::new();
                }
                _ => {}
            }
            times.push(began.elapsed().as_secs_f64() / 2.0);
        }
        times.sort_by(f64::total_cmp);
        if comm.rank() == 0 {
            let median = times[trips / 2];
            println!("{bytes:>9} bytes: {:9.1} us one way, {:6.2} GB/s", median * 1e6, bytes as f64 / median * 1e-9);
        }
    }
    Ok(())
}
