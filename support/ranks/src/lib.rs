//! Process groups: ranks that are threads of one process, with messages, collectives in a fixed order, and links that cost time.
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
//!   [`WorldConfig::stall_after`]).
//! - **A total of threads.** With [`WorldConfig::compute_slots`] no more than that many ranks run at a time: a rank that waits gives
//!   its slot to the one that has waited longest.
//! - **Links.** Ranks live on nodes of [`WorldConfig::ranks_per_node`]; a [`LinkModel`] delays each message by latency and
//!   bandwidth of the link it takes, fast inside a node, slow between nodes, so that hiding communication behind work
//!   can be measured on one machine. [`Comm::traffic`] counts messages, bytes and rows per kind of link, [`Comm::blocked`] the time a rank stood still.
//!
//! # How
//!
//! One lock guards mailboxes, slots, ports, counters and the first failure; one condition variable per rank wakes whoever waits. The
//! lock is held for a hash look-up and a push or pop, never for a copy. A blocked rank sleeps: nothing spins.
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
