//! Where the ranks of a run live: threads of one process, or processes that `mpirun` has started.

use super::options::TrainArgs;
use crate::error::{Error, Result};

/// Where ranks live.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ranks {
    /// In threads of this process.
    Threads,
    /// Each in a process of its own, over MPI.
    #[cfg(feature = "mpi")]
    Mpi(v3_ranks::Heartbeat),
}

impl Ranks {
    /// What the options ask for.
    pub fn new(args: &TrainArgs) -> Result<Self> {
        let kind = args.ranks.as_deref().unwrap_or("threads");
        let times = [("--heartbeat-period", args.heartbeat_period), ("--heartbeat-timeout", args.heartbeat_timeout)];
        match kind {
            "threads" => match times.iter().find_map(|(option, value)| value.map(|value| (*option, value))) {
                Some((option, value)) => Err(Error::option(option, "--ranks mpi beside it", value)),
                None => Ok(Ranks::Threads),
            },
            #[cfg(feature = "mpi")]
            "mpi" => mpi::heartbeat(args).map(Ranks::Mpi),
            #[cfg(not(feature = "mpi"))]
            "mpi" => Err(Error::option("--ranks", "threads, because this program was built without its feature mpi", kind)),
            _ => Err(Error::option("--ranks", "threads or mpi", kind)),
        }
    }
}

#[cfg(feature = "mpi")]
pub use mpi::{Ended, run};

#[cfg(feature = "mpi")]
mod mpi {
    use std::time::Duration;

    use v3_ranks::{Comm, Heartbeat, MpiConfig, run_mpi};

    use super::super::{Job, RankMemory, RunOutcome};
    use super::{Error, Result, TrainArgs};
    use crate::stage::ActivationBytes;

    pub(super) fn heartbeat(args: &TrainArgs) -> Result<Heartbeat> {
        let seconds = |option: &str, value: Option<f64>| -> Result<Option<Duration>> {
            let Some(value) = value else { return Ok(None) };
            let duration = Duration::try_from_secs_f64(value).ok().filter(|d| *d >= Duration::from_millis(1));
            duration.map(Some).ok_or_else(|| Error::option(option, "0.001 seconds or more", value))
        };
        let standard = Heartbeat::default();
        let timeout = seconds("--heartbeat-timeout", args.heartbeat_timeout)?.unwrap_or(standard.timeout);
        let period = seconds("--heartbeat-period", args.heartbeat_period)?.unwrap_or(standard.period.min(timeout / 10));
        if period.checked_mul(4).is_none_or(|four| timeout < four) {
            let expected = format!("at least four periods of {} s", period.as_secs_f64());
            return Err(Error::option("--heartbeat-timeout", expected, timeout.as_secs_f64()));
        }
        Ok(Heartbeat { period, timeout })
    }

    /// How a run over MPI has ended for this process.
    #[derive(Debug)]
    pub enum Ended {
        /// This is rank 0, which has the outcome of all.
        Done(Box<(Job, RunOutcome)>),
        /// Another rank has the outcome, or says what was refused.
        Elsewhere {
            /// Whether something was refused.
            refused: bool,
        },
    }

    enum Mine {
        Ended(Ended),
        /// This rank is the one to say what is refused.
        Refused(Error),
    }

    /// Trains as one rank of the job that `mpirun` has started. What is refused before the first step comes from one rank only. When a
    /// rank fails later, it says so itself, the job ends, and this function does not return.
    pub fn run(args: &TrainArgs, heartbeat: Heartbeat) -> Result<Ended> {
        let job = Job::new(args);
        let per_node = job.as_ref().map_or(0, |job| job.options.stored.ranks_per_node);
        let config = MpiConfig { ranks_per_node: (per_node > 0).then_some(per_node), heartbeat, ..MpiConfig::default() };
        let mine = run_mpi(config, move |world| -> Result<Mine> {
            let rank = world.rank();
            let fresh = job.as_ref().is_ok_and(|job| !job.out.exists());
            let job = job.and_then(|job| {
                check_size(&job, world.size())?;
                if rank == 0 {
                    job.prepare_folder()?;
                }
                Ok(job)
            });
            let fine = world.all_gather_v(&[u8::from(job.is_ok())])?;
            let refused = fine.iter().position(|fine| fine.first() != Some(&1));
            match (job, refused) {
                (Ok(job), None) => {
                    let outcome = run_rank(&job, &world);
                    if outcome.is_err() && rank == 0 && fresh {
                        job.remove_unused_folder();
                    }
                    let outcome = outcome?;
                    Ok(Mine::Ended(if rank == 0 {
                        Ended::Done(Box::new((job, outcome)))
                    } else {
                        Ended::Elsewhere { refused: false }
                    }))
                }
                (Err(error), Some(speaker)) if rank == speaker => Ok(Mine::Refused(error)),
                (job, _) => {
                    if let (Ok(job), true) = (job, rank == 0 && fresh) {
                        job.remove_unused_folder();
                    }
                    Ok(Mine::Ended(Ended::Elsewhere { refused: true }))
                }
            }
        });
        match mine.map_err(Error::piece("v3-ranks"))? {
            Mine::Ended(ended) => Ok(ended),
            Mine::Refused(error) => Err(error),
        }
    }

    fn check_size(job: &Job, processes: usize) -> Result<()> {
        let s = &job.options.stored;
        if job.grid.size() == processes {
            return Ok(());
        }
        let wanted = format!("{}, pipeline {} times expert-parallel {}", job.grid.size(), s.pipeline, s.expert_parallel);
        Err(Error::option("mpirun -np", wanted, processes))
    }

    fn run_rank(job: &Job, world: &Comm) -> Result<RunOutcome> {
        let mut outcome = job.run_in(world.clone())?;
        let own: Vec<u64> = outcome.memory.iter().flat_map(words).collect();
        outcome.memory = world.all_gather_v(&own)?.iter().filter_map(|words| memory(words)).collect();
        Ok(outcome)
    }

    fn words(m: &RankMemory) -> [u64; 8] {
        let a = &m.activations;
        [m.weights, m.packed, m.gradients, m.moments, a.attention, a.ffn, a.tail, m.ema].map(|bytes| bytes as u64)
    }

    fn memory(words: &[u64]) -> Option<RankMemory> {
        let words: [u64; 8] = words.try_into().ok()?;
        let [weights, packed, gradients, moments, attention, ffn, tail, ema] = words.map(|bytes| bytes as usize);
        let activations = ActivationBytes { attention, ffn, tail };
        Some(RankMemory { weights, packed, gradients, moments, activations, ema })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(args: &TrainArgs) -> String {
        Ranks::new(args).expect_err("refused").to_string()
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        assert_eq!(Ranks::new(&TrainArgs::default()).expect("the default"), Ranks::Threads);
        let named = |name: &str| TrainArgs { ranks: Some(name.into()), ..TrainArgs::default() };
        assert_eq!(Ranks::new(&named("threads")).expect("threads"), Ranks::Threads);
        assert_eq!(refused(&named("nccl")), "--ranks: expected threads or mpi, found nccl");
        let beats = TrainArgs { heartbeat_timeout: Some(5.0), ..TrainArgs::default() };
        assert_eq!(refused(&beats), "--heartbeat-timeout: expected --ranks mpi beside it, found 5");
        #[cfg(not(feature = "mpi"))]
        assert!(refused(&named("mpi")).contains("built without its feature mpi"));
    }

    #[cfg(feature = "mpi")]
    #[test]
    fn the_period_follows_a_short_time_out() {
        use std::time::Duration;
        let beats = |period, timeout| {
            let args = TrainArgs {
                ranks: Some("mpi".into()),
                heartbeat_period: period,
                heartbeat_timeout: timeout,
                ..TrainArgs::default()
            };
            Ranks::new(&args)
        };
        let ranks = |period: f64, timeout: f64| {
            Ranks::Mpi(v3_ranks::Heartbeat { period: Duration::from_secs_f64(period), timeout: Duration::from_secs_f64(timeout) })
        };
        assert_eq!(beats(None, None).expect("the default"), ranks(1.0, 60.0));
        assert_eq!(beats(None, Some(5.0)).expect("short"), ranks(0.5, 5.0));
        assert_eq!(beats(Some(0.25), Some(1.0)).expect("four periods"), ranks(0.25, 1.0));
        for (period, timeout) in [(Some(0.3), Some(1.0)), (Some(0.0), None), (Some(f64::NAN), None), (None, Some(1e300))] {
            assert!(beats(period, timeout).is_err(), "{period:?} {timeout:?}");
        }
    }
}
