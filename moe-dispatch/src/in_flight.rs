//! Exchanges in flight: what they wait for, and how they are brought to their end.

use v3_ranks::{Comm, Step, Task, run_task};

use crate::error::{Error, Result};

/// Messages that an exchange waits for: (rank, tag).
pub(crate) type Pending = Vec<(usize, u64)>;

struct Polled<F>(F);

impl<T: Send, F: FnMut(&Comm) -> Result<Step<T>> + Send> Task for Polled<F> {
    type Output = T;
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<T>> {
        self.0(comm)
    }
}

/// Polls until the end, asleep in between.
pub(crate) fn drive<T: Send>(comm: &Comm, poll: impl FnMut(&Comm) -> Result<Step<T>> + Send) -> Result<T> {
    run_task(comm, Polled(poll))
}

/// An error for what was polled after its end.
pub(crate) fn finished(what: &'static str) -> Error {
    Error::Config { what, reason: "it was asked for again after it was done".into() }
}
