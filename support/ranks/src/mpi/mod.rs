//! Ranks that are processes, over MPI: one engine thread calls MPI, the rest is the [`World`] that threads use.

mod engine;
mod plain;
mod raw;
mod wire;

use std::fmt::Display;
use std::io::Write;
use std::net::UdpSocket;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::engine::{Engine, Options, Port};
pub use self::plain::mpi_all_to_all_v;
use self::raw::{Fault, Mpi};
use crate::comm::Comm;
use crate::error::{Error, RanksError};
use crate::heartbeat::{self, Address, Heartbeat, Notice, Status, Watch, Watched};
use crate::threads::WorldConfig;
use crate::transport::{World, run_process};

/// What a world of processes consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MpiConfig {
    /// The number of ranks that the program needs; another number of processes is an error. `None`: as many as there are.
    pub size: Option<usize>,
    /// Ranks per node, at least 1: rank r is on node r / `ranks_per_node`. `None`: all are on one.
    pub ranks_per_node: Option<usize>,
    /// Longer vectors are sent in parts of so many bytes: 1 to 2^31 - 1, which is the most that a message of MPI holds. The same on
    /// all ranks.
    pub chunk_bytes: usize,
    /// How ranks watch each other.
    pub heartbeat: Heartbeat,
    /// When all ranks have waited this long for messages that nobody has sent, the job ends instead of hanging.
    pub stall_after: Duration,
}

impl Default for MpiConfig {
    /// Any number of ranks on one node, parts of 1 GiB.
    fn default() -> Self {
        MpiConfig {
            size: None,
            ranks_per_node: None,
            chunk_bytes: 1 << 30,
            heartbeat: Heartbeat::default(),
            stall_after: Duration::from_secs(30),
        }
    }
}

impl MpiConfig {
    fn validate(&self) -> Result<(), Error> {
        let refuse = |what, expected: &str, got: String| Err(Error::Config { what, expected: expected.to_string(), got });
        if self.ranks_per_node == Some(0) {
            return refuse("ranks per node", "at least 1", "0".into());
        }
        if self.chunk_bytes == 0 || i32::try_from(self.chunk_bytes).is_err() {
            return refuse("bytes of a part of a message", "1 to 2^31 - 1", self.chunk_bytes.to_string());
        }
        match self.heartbeat.problem() {
            Some((what, expected, got)) => refuse(what, expected, format!("{got:?}")),
            None => Ok(()),
        }
    }
}

/// Status with which the job ends when a rank fails.
const FAILED: i32 = 1;

/// What the thread of MPI knows once MPI runs.
struct Started {
    rank: usize,
    size: usize,
    job: u64,
    addresses: Vec<Address>,
    /// When rank 0's clock stood at 0, on this process's clock.
    start: Instant,
}

/// Runs `body` as this process's rank of the job that `mpirun` has started, on the calling thread, and returns what it returns
/// once every rank has ended. A process can do so once. Without `mpirun` the world has one rank.
///
/// A rank whose `body` panics or returns an error prints its rank, what it was doing and its message on stderr, and ends the
/// whole job with MPI_Abort: then this function does not return. An error of MPI fails whatever the rank waits for, and its
/// next operation. A rank that gives no sign of life for [`Heartbeat::timeout`] is reported by every other one, each with what it
/// was waiting for itself, and the job ends; a rank that computes for long is not taken for such a one.
///
/// # Errors
/// Before `body` has begun: a configuration that makes no sense, another number of processes than [`MpiConfig::size`] (on every rank, and MPI
/// has been ended in good order), MPI that cannot be started.
pub fn run_mpi<R, E, F>(config: MpiConfig, body: F) -> Result<R, RanksError>
where
    E: Display,
    F: FnOnce(Comm) -> Result<R, E>,
{
    static BEGUN: AtomicBool = AtomicBool::new(false);
    let refuse = |rank: usize, error: &dyn Display| RanksError { rank, operation: "start".into(), message: error.to_string() };
    config.validate().map_err(|error| refuse(0, &error))?;
    if BEGUN.swap(true, Ordering::AcqRel) {
        return Err(refuse(0, &"a process can be a rank of MPI only once"));
    }
    let (socket, address) = heartbeat::open().map_err(|error| refuse(0, &format!("a socket for the heartbeat: {error}")))?;
    let port = Arc::new(Port::new());
    let (tell, started) = channel();
    let (hand_over, world) = channel();
    let engine = {
        let port = Arc::clone(&port);
        let run = move || mpi_thread(&port, &address, config, &tell, &world);
        std::thread::Builder::new().name("mpi".into()).spawn(run).map_err(|error| refuse(0, &error))?
    };
    let started = match started.recv() {
        Ok(Ok(started)) => started,
        Ok(Err(fault)) => return Err(refuse(0, &fault)),
        Err(_) => return Err(refuse(0, &"the thread of MPI has ended")),
    };
    let (rank, size) = (started.rank, started.size);
    if let Some(expected) = config.size.filter(|&expected| expected != size) {
        // Without a world the thread ends MPI.
        drop(hand_over);
        let _ = engine.join();
        let expected = format!("{expected} ranks");
        return Err(refuse(rank, &Error::Config { what: "processes of the job", expected, got: size.to_string() }));
    }
    let job = Job { rank, port, heartbeat: config.heartbeat };
    match job.run(config, started, socket, &hand_over, engine, body) {
        Ok(result) => Ok(result),
        Err(failure) => job.die(&failure.to_string()),
    }
}

/// Starts MPI, exchanges what the ranks need to know of each other, and serves as the engine of the world that it is handed.
fn mpi_thread(
    port: &Arc<Port>,
    address: &Address,
    config: MpiConfig,
    tell: &Sender<Result<Started, Fault>>,
    world: &Receiver<Arc<World>>,
) -> Result<(), Fault> {
    let begin = || -> Result<(Mpi, Started), Fault> {
        let mpi = Mpi::start()?;
        let nonce = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
        let own = format!("{nonce}|{}|{}", config.chunk_bytes, address.encode());
        let texts = mpi.all_gather(own.as_bytes())?;
        let read = |text: &Vec<u8>| {
            let mut parts = std::str::from_utf8(text).ok()?.splitn(3, '|');
            let (nonce, chunk) = (parts.next()?.parse::<u64>().ok()?, parts.next()?.parse::<usize>().ok()?);
            (chunk == config.chunk_bytes).then_some((nonce, Address::decode(parts.next()?)?))
        };
        let all: Option<Vec<(u64, Address)>> = texts.iter().map(read).collect();
        let all = all.filter(|all| !all.is_empty()).ok_or_else(|| Fault {
            call: "MPI_Allgatherv",
            code: 0,
            text: "ranks with another program or another size of parts".into(),
        })?;
        let start = mpi.common_start()?;
        let (rank, size, job) = (mpi.rank, mpi.size, all[0].0);
        Ok((mpi, Started { rank, size, job, start, addresses: all.into_iter().map(|(_, address)| address).collect() }))
    };
    let (mpi, started) = match begin() {
        Ok(begun) => begun,
        Err(fault) => {
            let _ = tell.send(Err(fault.clone()));
            return Err(fault);
        }
    };
    let _ = tell.send(Ok(started));
    match world.recv() {
        Ok(world) => {
            let rank = mpi.rank;
            let engine = Engine::new(mpi, Arc::clone(port), Arc::clone(&world), Options { chunk_bytes: config.chunk_bytes });
            // Whoever waits for a message is told even of a mistake in the engine itself.
            catch_unwind(AssertUnwindSafe(|| engine.run())).unwrap_or_else(|panic| {
                world.fail(rank, "the messages between processes", "the thread of MPI panicked");
                resume_unwind(panic)
            })
        }
        Err(_) => mpi.finish(),
    }
}

/// A running rank.
struct Job {
    rank: usize,
    port: Arc<Port>,
    heartbeat: Heartbeat,
}

impl Job {
    fn run<R, E: Display>(
        &self,
        config: MpiConfig,
        started: Started,
        socket: UdpSocket,
        hand_over: &Sender<Arc<World>>,
        engine: JoinHandle<Result<(), Fault>>,
        body: impl FnOnce(Comm) -> Result<R, E>,
    ) -> Result<R, RanksError> {
        let (rank, size) = (self.rank, started.size);
        let failed = |operation: &str, message: String| RanksError { rank, operation: operation.into(), message };
        let world_config = WorldConfig::new(size).ranks_per_node(config.ranks_per_node.unwrap_or(size));
        let world = World::process_since(&world_config, rank, Arc::clone(&self.port) as _, started.start)
            .map_err(|error| failed("start", error.to_string()))?;
        hand_over.send(Arc::clone(&world)).map_err(|_| failed("start", "the thread of MPI has ended".into()))?;

        let Started { job, addresses, .. } = started;
        let watched = Watched { me: rank, addresses, job, heartbeat: config.heartbeat, stall_after: config.stall_after };
        let ended = Arc::new(AtomicBool::new(false));
        let status = {
            let (world, port, ended) = (Arc::clone(&world), Arc::clone(&self.port), Arc::clone(&ended));
            move || {
                let ended = ended.load(Ordering::Acquire);
                let (sent, received) = port.counts();
                Status { waits: ended || world.waits(rank).1, sent, received, ended }
            }
        };
        let notice = {
            let job = Job { rank, port: Arc::clone(&self.port), heartbeat: self.heartbeat };
            let world = Arc::clone(&world);
            move |notice: Notice| job.report(&world, &notice)
        };
        let watch = Watch::start(socket, watched, status, notice);
        let watch = watch.map_err(|error| failed("start", format!("a thread for the heartbeat: {error}")))?;

        plain::set_port(Some(Arc::clone(&self.port)));
        let result = run_process(&world, rank, body);
        plain::set_port(None);
        let result = result?;
        ended.store(true, Ordering::Release);
        match engine.join() {
            Ok(Ok(())) => {}
            Ok(Err(fault)) => return Err(failed("the end", fault.to_string())),
            Err(_) => return Err(failed("the end", "the thread of MPI panicked".into())),
        }
        watch.stop();
        Ok(result)
    }

    /// Says what the heartbeat has found and what this rank is doing, and ends the job.
    fn report(&self, world: &World, notice: &Notice) {
        let found = match notice {
            Notice::Silent { rank, since, ever: true } => {
                format!("rank {rank} has given no sign of life for {:.1} s", since.as_secs_f64())
            }
            Notice::Silent { rank, since, ever: false } => {
                format!("no sign of life of rank {rank} has come in the first {:.1} s", since.as_secs_f64())
            }
            Notice::Reported { rank, by } => format!("rank {rank} has given no sign of life, says rank {by}"),
            Notice::Stalled => "every rank waits for a message and none is under way".to_string(),
        };
        say(&format!("rank {}: {found}; meanwhile {}", self.rank, world.pending(self.rank)));
        // The others are to say so, too, before the job ends.
        std::thread::sleep((self.heartbeat.period * 2).clamp(Duration::from_millis(500), Duration::from_secs(2)));
        self.end()
    }

    fn die(&self, message: &str) -> ! {
        say(message);
        self.end()
    }

    fn end(&self) -> ! {
        self.port.abort(FAILED);
        // The engine ends the process. Should it be stuck, the process ends without MPI, and mpirun ends the others.
        std::thread::sleep(Duration::from_secs(2));
        std::process::exit(FAILED)
    }
}

/// One line on stderr, in one piece. That stderr is closed changes nothing.
fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Transport;

    /// A process can start MPI only once, so there is one test that does.
    #[test]
    fn an_error_of_mpi_is_returned_by_the_operations_of_the_rank() {
        let port = Arc::new(Port::new());
        // MPI knows of one rank, the world of two: what is sent to the second is an error of MPI.
        let world = World::process(&WorldConfig::new(2), 0, Arc::clone(&port) as _).unwrap();
        let engine = {
            let (port, world) = (Arc::clone(&port), Arc::clone(&world));
            std::thread::spawn(move || {
                let mpi = Mpi::start().unwrap();
                assert_eq!((mpi.rank, mpi.size), (0, 1));
                assert!(Mpi::start().is_err_and(|fault| fault.text.contains("initialised before")));
                Engine::new(mpi, port, world, Options { chunk_bytes: 1 << 20 }).run()
            })
        };
        let failed = run_process(&world, 0, |comm| {
            comm.send(0, 1, vec![7u8; 10_000])?;
            assert_eq!(comm.recv::<u8>(0, 1)?, vec![7u8; 10_000], "a message to itself needs no MPI");
            comm.send(1, 1, vec![1u8])?;
            let waiting = comm.recv::<u8>(1, 1);
            let sending = comm.send(1, 1, vec![1u8]);
            assert!(sending.is_err());
            waiting
        });
        let failed = failed.unwrap_err();
        assert!(failed.message.contains("MPI_Isend: MPI_ERR_RANK"), "{failed}");
        // The rank is still here to deal with it; it says that it ends.
        port.ended(0, None);
        let fault = engine.join().unwrap().unwrap_err();
        assert_eq!(fault.call, "MPI_Isend");
        assert_ne!(fault.code, 0);
    }

    #[test]
    fn configurations_that_make_no_sense_are_refused() {
        let fine = MpiConfig::default();
        assert_eq!(fine.validate(), Ok(()));
        let bad = [
            MpiConfig { ranks_per_node: Some(0), ..fine },
            MpiConfig { chunk_bytes: 0, ..fine },
            MpiConfig { chunk_bytes: 1 << 31, ..fine },
            MpiConfig { heartbeat: Heartbeat { period: Duration::from_secs(20), timeout: Duration::from_secs(60) }, ..fine },
        ];
        for config in bad {
            let error = run_mpi(config, |_| Ok::<_, Error>(())).unwrap_err();
            assert_eq!((error.rank, error.operation.as_str()), (0, "start"), "{error}");
        }
    }
}
