//! The lock of a world, and how its threads sleep and wake each other.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::state::State;

/// One that uses a `Comm`: a rank's own thread, or a lane of it.
#[derive(Debug)]
pub(crate) struct Actor {
    pub id: usize,
    pub rank: usize,
    /// How often it has been woken.
    calls: Mutex<u64>,
    wake: Condvar,
}

impl Actor {
    pub fn new(id: usize, rank: usize) -> Self {
        Actor { id, rank, calls: Mutex::new(0), wake: Condvar::new() }
    }

    fn calls(&self) -> MutexGuard<'_, u64> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        *self.calls() += 1;
        // Without a limit on ranks' threads several may use one actor.
        self.wake.notify_all();
    }
}

/// The lock. Whoever is to be woken is woken after it was released, so that nobody wakes up only to wait for it.
pub(crate) struct Guard<'a> {
    mutex: &'a Mutex<State>,
    /// Empty only inside `sleep` and `drop`.
    state: Option<MutexGuard<'a, State>>,
}

fn lock(mutex: &Mutex<State>) -> MutexGuard<'_, State> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Guard<'a> {
    pub fn new(mutex: &'a Mutex<State>) -> Self {
        Guard { mutex, state: Some(lock(mutex)) }
    }

    fn release(&mut self) {
        let Some(mut state) = self.state.take() else { return };
        let mut woken = std::mem::take(&mut state.woken);
        drop(state);
        for actor in woken.drain(..) {
            actor.wake();
        }
    }

    /// Releases the lock until the actor is woken, or `timeout` has passed; `true` in the latter case. It may wake without reason.
    pub fn sleep(&mut self, actor: &Actor, timeout: Option<Duration>) -> bool {
        // Read under the lock: whoever changes the state after this counts after this.
        let before = *actor.calls();
        self.release();
        let calls = actor.calls();
        let quiet = |calls: &mut u64| *calls == before;
        let timed_out = match timeout {
            None => {
                drop(actor.wake.wait_while(calls, quiet).unwrap_or_else(PoisonError::into_inner));
                false
            }
            Some(timeout) => {
                let waited = actor.wake.wait_timeout_while(calls, timeout, quiet).unwrap_or_else(PoisonError::into_inner);
                waited.1.timed_out()
            }
        };
        self.state = Some(lock(self.mutex));
        timed_out
    }
}

impl Deref for Guard<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        match &self.state {
            Some(state) => state,
            None => unreachable!("a guard holds its lock between calls"),
        }
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut State {
        match &mut self.state {
            Some(state) => state,
            None => unreachable!("a guard holds its lock between calls"),
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.release();
    }
}
