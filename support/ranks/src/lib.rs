//! Process groups: ranks that are threads of one process, with messages, collectives in a fixed order, links that cost time, and a clock
//! that may be simulated.
//!
//! A program for many ranks is one function of a [`Comm`]. [`run_threads`] runs it once per rank; [`Comm::solo`] is a world of one on
//! the calling thread.
//!
//! ```
//! use v3_ranks::{Comm, WorldConfig, run_threads};
//!
//! let sums = run_threads(WorldConfig::new(4).ranks_per_node(2), |comm: Comm| -> v3_ranks::Result<f32> {
//!     // A ring: everybody sends its number to the next rank.
//!     let (me, size) = (comm.rank(), comm.size());
//!     comm.send((me + 1) % size, 0, vec![me as f32])?;
//!     let mut numbers: Vec<f32> = comm.recv((me + size - 1) % size, 0)?;
//!     comm.all_reduce_sum(&mut numbers)?;
//!     Ok(numbers[0])
//! })?;
//! assert_eq!(sums, [6.0; 4]);
//! # Ok::<(), v3_ranks::RanksError>(())
//! ```
//!
//! # What is promised
//!
//! - **Order.** Messages are matched by group, source and tag, and equals stay in order. Sums are formed in the order of the ranks,
//!   ((x0 + x1) + x2) + ..., whatever the timing: the same bits on every rank and in every run.
//! - **No copies.** A vector that is sent is handed over, not copied; a type the receiver did not ask for is an error.
//! - **Nothing hangs.** A rank that panics or returns an error ends the others: whatever they wait for (a message, a collective, a
//!   compute slot) returns [`Error::Aborted`] with the first failure's rank and message, and [`run_threads`] returns it as
//!   [`RanksError`]. Waiting for a rank that has returned is an error, and so is a circle of waits (after
//!   [`WorldConfig::stall_after`]; under the virtual clock at once).
//! - **A total of threads.** With [`WorldConfig::compute_slots`] no more than that many ranks run at a time, and beside them no
//!   more than that many lanes: one that waits gives its slot to the one that has waited longest.
//! - **Links.** Ranks live on nodes of [`WorldConfig::ranks_per_node`]; a [`LinkModel`] delays each message by latency and
//!   bandwidth of the link it takes, fast inside a node, slow between nodes, so that hiding communication behind work
//!   can be measured on one machine. [`Comm::traffic`] counts messages, bytes and rows per kind of link, [`Comm::blocked`] the time a
//!   rank stood still, [`Comm::waits`] how much of it was for what had been sent.
//!
//! # Communication behind computation
//!
//! [`Comm::send`] never waits. What takes several steps of sending and receiving is a [`Task`]: it goes as far as it can and says what it
//! waits for. [`run_task`] runs one to its end; a [`Lane`], a thread of the rank, drives any number of them while the rank computes,
//! and the rank asks for a result with [`Ticket::finish`] when it needs it. Tags made of [`Comm::next_sequence`] keep exchanges apart.
//!
//! A wait from `c` to `a` for something first given to be sent at `s` (its *origin*) splits into `a - max(c, s)` seconds **exposed** and
//! `min(s, a) - c` seconds of **bubble**, each at least 0 ([`Waits`]): communication that nothing hid, and another rank being late. What is
//! sent while working on a task has for origin the latest of the task's submission and the origins of what it has received, so that
//! a message forwarded over several hops counts from where it began.
//!
//! # Two clocks
//!
//! Under the wall clock links delay messages for real. Under the virtual clock ([`Clock::Virtual`]) a world is a discrete-event simulation:
//! every *actor* (a rank's own thread, a lane) has a time, which [`Comm::advance`] moves by the cost of a piece of work, and which waiting sets
//! to the arrival of what is waited for. Times are exact for any number of ranks on any machine, and the same in every run, to the bit.
//!
//! ```
//! use v3_ranks::{Clock, Comm, WorldConfig, run_threads};
//!
//! let link = "slow=10us,50GB/s,fast=2us,160GB/s".parse()?;
//! let times = run_threads(WorldConfig::new(2).ranks_per_node(1).link(link).clock(Clock::Virtual), |comm: Comm| -> v3_ranks::Result<f64> {
//!     if comm.rank() == 0 {
//!         comm.advance(1e-3)?;
//!         comm.send(1, 0, vec![0u8; 5_000_000])?;
//!     } else {
//!         comm.recv::<u8>(0, 0)?;
//!     }
//!     Ok(comm.now())
//! })?;
//! // A millisecond of work, 10 us of latency, 100 us of bytes.
//! assert!((times[1] - 1.11e-3).abs() < 1e-15);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Actors act (send, look into a mailbox, submit) in the order of their times, then ranks, then lanes; the head of a message reaches its
//! receive port as an event of its own, after all actors of the same time. An actor that wants to act sleeps until every other one has a later
//! time or waits; work between two acts runs in parallel. What follows from that: one thread per actor; what a rank does outside of
//! its [`Comm`] takes no time; a loop that only asks ([`Comm::try_recv`], [`Ticket::is_done`]) never ends, as asking takes no time either;
//! [`Comm::blocking`] must not wait for what another rank does.
//!
//! # How
//!
//! One lock guards mailboxes, slots, ports, counters, the order of events and the first failure; one condition variable per actor wakes
//! whoever waits, after the lock was released. The lock is held for a few look-ups, never for a copy. A blocked actor sleeps: nothing spins.
//!
//! With the feature `mpi`, `run_mpi` runs the same function as one process per rank: what leaves the process goes through an engine
//! thread that alone calls MPI, what arrives comes into the same mailboxes, and a heartbeat tells a stopped rank from a slow one.

mod clock;
mod comm;
mod error;
#[cfg(any(feature = "mpi", test))]
mod heartbeat;
mod lane;
mod link;
mod lock;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
pub mod nccl;
mod state;
mod threads;
pub mod transport;
mod world;

pub use clock::{Clock, Waits};
pub use comm::{Comm, Sum};
pub use error::{Error, RanksError, Result};
#[cfg(feature = "mpi")]
pub use heartbeat::Heartbeat;
pub use lane::{Lane, Step, Task, Ticket, run_task};
pub use link::{Blocked, Link, LinkKind, LinkModel, LinkTraffic, Traffic};
#[cfg(feature = "mpi")]
pub use mpi::{MpiConfig, mpi_all_to_all_v, run_mpi};
pub use threads::{WorldConfig, run_threads};
