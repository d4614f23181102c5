//! A world of ranks that are threads of this process.

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::comm::Comm;
use crate::error::{Error, RanksError};
use crate::link::LinkModel;
use crate::world::World;

/// What a world consists of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorldConfig {
    /// Number of ranks, at least 1.
    pub size: usize,
    /// Ranks per node, at least 1: rank r is on node r / `ranks_per_node`. The last node may hold fewer.
    pub ranks_per_node: usize,
    /// At most this many ranks (at least 1) run at a time, and beside them at most as many lanes; one that waits for a message gives its
    /// place to another. `None`: all.
    pub compute_slots: Option<usize>,
    /// What messages cost; `None`: nothing.
    pub link: Option<LinkModel>,
    /// What tells the time.
    pub clock: Clock,
    /// When every rank has waited this long for messages that nobody has sent, the world fails instead of hanging. Under the virtual
    /// clock it fails at once.
    pub stall_after: Duration,
}

impl WorldConfig {
    /// `size` ranks on one node, with neither limit nor link model.
    pub fn new(size: usize) -> Self {
        let stall_after = Duration::from_secs(30);
        WorldConfig { size, ranks_per_node: size.max(1), compute_slots: None, link: None, clock: Clock::Wall, stall_after }
    }

    /// The same with nodes of `ranks_per_node` ranks.
    pub fn ranks_per_node(self, ranks_per_node: usize) -> Self {
        WorldConfig { ranks_per_node, ..self }
    }

    /// The same with at most `slots` ranks running at a time.
    pub fn compute_slots(self, slots: usize) -> Self {
        WorldConfig { compute_slots: Some(slots), ..self }
    }

    /// The same with messages that take the time `link` says.
    pub fn link(self, link: LinkModel) -> Self {
        WorldConfig { link: Some(link), ..self }
    }

    /// The same under another clock.
    pub fn clock(self, clock: Clock) -> Self {
        WorldConfig { clock, ..self }
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let refuse = |what, expected: &str, got: String| Err(Error::Config { what, expected: expected.to_string(), got });
        if self.size == 0 {
            return refuse("number of ranks", "at least 1", "0".into());
        }
        if self.ranks_per_node == 0 {
            return refuse("ranks per node", "at least 1", "0".into());
        }
        if self.compute_slots == Some(0) {
            return refuse("compute slots", "at least 1", "0".into());
        }
        if let Some(link) = self.link {
            for bandwidth in [link.fast.bandwidth, link.slow.bandwidth] {
                if bandwidth.is_nan() || bandwidth <= 0.0 {
                    return refuse("link bandwidth", "more than 0 bytes a second", bandwidth.to_string());
                }
            }
        }
        Ok(())
    }
}

/// Runs `body` once per rank, each on its own thread, and returns what the ranks return, in the order of the ranks.
///
/// A rank that panics or returns an error ends the others: whatever they wait for in their [`Comm`] returns
/// [`Error::Aborted`] at once, as does the next operation of a rank that is computing ([`Comm::check`] asks without
/// communicating). The first failure is what this function returns, once all ranks have returned.
///
/// # Errors
/// The first failure, with its rank and what that rank was doing. A configuration that makes no sense is reported
/// as a failure of rank 0.
pub fn run_threads<R, E, F>(config: WorldConfig, body: F) -> Result<Vec<R>, RanksError>
where
    R: Send,
    E: Display,
    F: Fn(Comm) -> Result<R, E> + Sync,
{
    let start_error = |error: &dyn Display| RanksError { rank: 0, operation: "start".into(), message: error.to_string() };
    config.validate().map_err(|error| start_error(&error))?;
    let world = Arc::new(World::new(&config));
    let body = &body;
    let results: Vec<Option<R>> = std::thread::scope(|scope| {
        let mut threads = Vec::with_capacity(config.size);
        for rank in 0..config.size {
            let shared = Arc::clone(&world);
            let thread = std::thread::Builder::new()
                .name(format!("rank-{rank}"))
                .spawn_scoped(scope, move || run_rank(&shared, rank, body));
            match thread {
                Ok(thread) => threads.push(thread),
                // The ranks that run already are told, and end.
                Err(error) => world.end(&world.actor(rank), Some(format!("could not start a thread: {error}"))),
            }
        }
        threads.into_iter().map(|thread| thread.join().ok().flatten()).collect()
    });
    match world.failure() {
        None => Ok(results.into_iter().flatten().collect()),
        Some(failure) => Err(failure),
    }
}

/// Runs one rank on the calling thread and records how it ended.
pub(crate) fn run_rank<R, E: Display>(world: &Arc<World>, rank: usize, body: impl FnOnce(Comm) -> Result<R, E>) -> Option<R> {
    let actor = world.actor(rank);
    // Nothing that the closure can see survives the panic: the world keeps its own invariants under its lock.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        if world.enter(&actor).is_err() {
            return None;
        }
        Some(body(Comm::world(Arc::clone(world), rank)).map_err(|error| error.to_string()))
    }));
    let (result, failure) = match outcome {
        Ok(Some(Ok(result))) => (Some(result), None),
        Ok(Some(Err(message))) => (None, Some(message)),
        // The world had failed before this rank began.
        Ok(None) => (None, None),
        Err(panic) => (None, Some(panic_text(panic.as_ref()))),
    };
    world.end(&actor, failure);
    result
}

/// What a panic says.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string()).or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| "a panic without a message".to_string()))
}
