//! An exchange hidden behind work, in virtual time; then what simulating a message costs in real time.

use std::time::{Duration, Instant};

use v3_ranks::{Clock, Comm, Error, Lane, LinkModel, RanksError, Result, Step, Task, WorldConfig, run_threads};

/// Sends to every other rank, and takes what they send.
struct Exchange {
    bytes: usize,
    tag: u64,
    sent: bool,
    missing: Vec<usize>,
}

impl Task for Exchange {
    type Output = ();
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<()>> {
        if !std::mem::replace(&mut self.sent, true) {
            // In pairs, so that they do not all come to one port at a time (the number of ranks is a power of 2).
            self.missing = (1..comm.size()).map(|step| comm.rank() ^ step).collect();
            for &dst in &self.missing {
                comm.send(dst, self.tag, vec![0u8; self.bytes])?;
            }
        }
        let mut still = Vec::new();
        for &src in &self.missing {
            if comm.try_recv::<u8>(src, self.tag)?.is_none() {
                still.push((src, self.tag));
            }
        }
        self.missing = still.iter().map(|&(src, _)| src).collect();
        Ok(if still.is_empty() { Step::Done(()) } else { Step::Waiting(still) })
    }
}

fn main() -> std::result::Result<(), RanksError> {
    let start_error = |error: Error| RanksError { rank: 0, operation: "start".into(), message: error.to_string() };
    let link: LinkModel = "slow=10us,50GB/s,fast=2us,160GB/s".parse().map_err(start_error)?;
    let config = WorldConfig::new(8).ranks_per_node(4).link(link).clock(Clock::Virtual);
    println!("8 ranks on 2 nodes, {link}; each sends 1 MB to each other rank");
    for work in [0.0, 50e-6, 100e-6, 200e-6] {
        let got = run_threads(config, |comm: Comm| -> Result<_> {
            let lane = Lane::spawn(&comm, "exchange")?;
            let tag = comm.next_sequence();
            let ticket = lane.submit(Exchange { bytes: 1_000_000, tag, sent: false, missing: Vec::new() });
            comm.advance(work)?;
            ticket.finish(&comm)?;
            Ok((comm.now(), comm.waits().exposed))
        })?;
        let (end, exposed) = got.iter().fold((0.0f64, 0.0f64), |(a, b), &(end, exposed)| (a.max(end), b.max(exposed)));
        println!("  {:>5.0} us of work: done after {:>5.1} us, {:>5.1} us of it exposed", work * 1e6, end * 1e6, exposed * 1e6);
    }
    println!("real time of a message (send and receive), nanoseconds:");
    for ranks in [2, 8, 64] {
        let rounds = 40_000 / (ranks * (ranks - 1)) + 1;
        let mut times = [Duration::MAX; 3];
        for _ in 0..3 {
            let wall = WorldConfig::new(ranks).ranks_per_node(4);
            for (time, config) in times.iter_mut().zip([wall, wall.clock(Clock::Virtual), wall.clock(Clock::Virtual).link(link)])
            {
                let began = Instant::now();
                run_threads(config, |comm: Comm| -> Result<()> {
                    for _ in 0..rounds {
                        comm.advance(1e-6)?;
                        comm.all_to_all_v(vec![vec![0u8; 8]; ranks])?;
                    }
                    Ok(())
                })?;
                *time = (*time).min(began.elapsed());
            }
        }
        let [wall, simulated, linked] = times.map(|time| time.as_nanos() / (rounds * ranks * (ranks - 1)) as u128);
        println!(
            "  all-to-all of {ranks:>2} ranks: wall clock {wall}, virtual clock {simulated}, virtual clock with links {linked}"
        );
    }
    Ok(())
}
