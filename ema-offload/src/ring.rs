//! The protocol between the thread that takes snapshots and the one that averages them.
//!
//! A fixed number of buffers goes round: free -> filled by the submitter -> queued -> averaged by the worker -> free. A
//! buffer is *moved* along, under one lock, so that it is always owned by exactly one side and filling or reading it needs
//! no lock. The submitter waits when none is free, the worker when none is queued, and both wake when the other fails or
//! closes. Nothing here knows what a buffer holds.
//!
//! The primitives come from `super::sync`, so that the same text can be compiled with those of a model checker
//! (`tests/loom.rs`).

use super::sync::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::PoisonError;

/// Why no more work is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    /// [`Ring::close`] was called.
    Closed,
    /// [`Ring::fail`] was called, with this message.
    Failed(String),
}

/// Buffers `B` that carry jobs `J` from one thread to another, in order.
pub struct Ring<B, J> {
    state: Mutex<State<B, J>>,
    /// Signalled when a buffer becomes free, or on a stop: submitters wait here.
    freed: Condvar,
    /// Signalled when a job is queued, or on a stop: the worker waits here.
    queued: Condvar,
    /// Signalled when nothing is in flight any more, or on a stop: `wait_idle` waits here.
    idle: Condvar,
}

struct State<B, J> {
    free: Vec<B>,
    queue: VecDeque<(B, J)>,
    /// Buffers that are neither free nor being filled: queued, or with the worker.
    in_flight: usize,
    most_in_flight: usize,
    /// Submitters in `acquire` without a buffer.
    waiting: usize,
    stopped: Option<Stopped>,
}

impl<B, J> Ring<B, J> {
    /// A ring of these buffers, all free.
    pub fn new(buffers: Vec<B>) -> Self {
        let state = State { free: buffers, queue: VecDeque::new(), in_flight: 0, most_in_flight: 0, waiting: 0, stopped: None };
        Self { state: Mutex::new(state), freed: Condvar::new(), queued: Condvar::new(), idle: Condvar::new() }
    }

    /// Every critical section leaves the state sound, so a panic elsewhere while the lock was held does not matter.
    fn lock(&self) -> MutexGuard<'_, State<B, J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Submitter: a free buffer, and whether it had to be waited for.
    pub fn acquire(&self) -> Result<(B, bool), Stopped> {
        let mut state = self.lock();
        let mut waited = false;
        loop {
            if let Some(stopped) = &state.stopped {
                return Err(stopped.clone());
            }
            if let Some(buffer) = state.free.pop() {
                return Ok((buffer, waited));
            }
            waited = true;
            state.waiting += 1;
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
    }

    /// Submitter: gives a buffer back without a job.
    pub fn put_back(&self, buffer: B) {
        self.lock().free.push(buffer);
        self.freed.notify_one();
    }

    /// Submitter: queues a filled buffer. After a stop the buffer is dropped.
    pub fn publish(&self, buffer: B, job: J) -> Result<(), Stopped> {
        let mut state = self.lock();
        if let Some(stopped) = &state.stopped {
            return Err(stopped.clone());
        }
        state.queue.push_back((buffer, job));
        state.in_flight += 1;
        state.most_in_flight = state.most_in_flight.max(state.in_flight);
        drop(state);
        self.queued.notify_one();
        Ok(())
    }

    /// Worker: the oldest job, or `None` after a stop.
    pub fn take(&self) -> Option<(B, J)> {
        let mut state = self.lock();
        loop {
            if state.stopped.is_some() {
                return None;
            }
            if let Some(entry) = state.queue.pop_front() {
                return Some(entry);
            }
            state = self.queued.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Worker: a job is finished and its buffer free again.
    pub fn done(&self, buffer: B) {
        let mut state = self.lock();
        state.free.push(buffer);
        state.in_flight -= 1;
        let idle = state.in_flight == 0;
        drop(state);
        self.freed.notify_one();
        if idle {
            self.idle.notify_all();
        }
    }

    /// Waits until everything published is done.
    pub fn wait_idle(&self) -> Result<(), Stopped> {
        let mut state = self.lock();
        loop {
            if let Some(stopped) = &state.stopped {
                return Err(stopped.clone());
            }
            if state.in_flight == 0 {
                return Ok(());
            }
            state = self.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the ring: everybody who waits, or comes later, is told. Queued jobs are dropped.
    pub fn close(&self) {
        self.stop(Stopped::Closed);
    }

    /// Ends the ring with a message.
    pub fn fail(&self, message: String) {
        self.stop(Stopped::Failed(message));
    }

    fn stop(&self, why: Stopped) {
        let mut state = self.lock();
        state.stopped.get_or_insert(why);
        state.queue.clear();
        drop(state);
        self.freed.notify_all();
        self.queued.notify_all();
        self.idle.notify_all();
    }

    /// How full it is.
    pub fn load(&self) -> Load {
        let state = self.lock();
        Load { in_flight: state.in_flight, most_in_flight: state.most_in_flight, waiting: state.waiting }
    }
}

/// How full a ring is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Buffers queued or with the worker.
    pub in_flight: usize,
    /// The most there ever were.
    pub most_in_flight: usize,
    /// Submitters waiting for a buffer.
    pub waiting: usize,
}
