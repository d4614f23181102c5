//! The state that the ranks of one process share: mailboxes, compute slots, ports, counters, and the first failure.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::link::{Blocked, LinkKind, Ports, Traffic};
use crate::threads::WorldConfig;

/// What a message is matched by, beside its receiver.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub group: u64,
    pub src: usize,
    pub tag: Tag,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Tag {
    User(u64),
    Collective,
}

pub(crate) struct Message {
    pub payload: Box<dyn Any + Send>,
    pub type_name: &'static str,
    pub operation: &'static str,
    ready_at: Option<Instant>,
}

/// What a rank is blocked on.
#[derive(Clone, Copy)]
struct Wait {
    key: Key,
    operation: &'static str,
}

#[derive(Default)]
struct RankState {
    mail: HashMap<Key, VecDeque<Message>>,
    waits: Vec<Wait>,
    holds_slot: bool,
    ended: bool,
    /// The operation last begun.
    operation: &'static str,
    /// The operation that returned an error of its own making.
    failed_in: Option<&'static str>,
    label: Option<String>,
    traffic: Traffic,
    blocked: Blocked,
}

struct State {
    ranks: Vec<RankState>,
    groups: HashMap<(u64, Vec<usize>, u64), u64>,
    failure: Option<Error>,
    /// Messages delivered or received and ranks ended so far: while it stands still nothing happens.
    progress: u64,
    free_slots: usize,
    slot_queue: VecDeque<usize>,
    ports: Option<Ports>,
}

pub(crate) struct World {
    state: Mutex<State>,
    wake: Vec<Condvar>,
    start: Instant,
    pub ranks_per_node: usize,
    limited: bool,
    stall_after: Duration,
}

impl World {
    pub fn new(config: &WorldConfig) -> Self {
        let ranks = (0..config.size).map(|_| RankState { operation: "start", ..RankState::default() }).collect();
        World {
            state: Mutex::new(State {
                ranks,
                groups: HashMap::new(),
                failure: None,
                progress: 0,
                free_slots: config.compute_slots.unwrap_or(0),
                slot_queue: VecDeque::new(),
                ports: config.link.map(|model| Ports::new(model, config.size)),
            }),
            wake: (0..config.size).map(|_| Condvar::new()).collect(),
            start: Instant::now(),
            ranks_per_node: config.ranks_per_node,
            limited: config.compute_slots.is_some_and(|slots| slots < config.size),
            stall_after: config.stall_after,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn size(&self) -> usize {
        self.wake.len()
    }

    pub fn node(&self, rank: usize) -> usize {
        rank / self.ranks_per_node
    }

    pub fn link_kind(&self, a: usize, b: usize) -> LinkKind {
        if a == b {
            LinkKind::Local
        } else if self.node(a) == self.node(b) {
            LinkKind::Fast
        } else {
            LinkKind::Slow
        }
    }

    /// One number for a group, the same for all of its members.
    pub fn group(&self, parent: u64, ranks: &[usize], id: u64) -> u64 {
        let mut state = self.lock();
        let next = state.groups.len() as u64 + 1;
        *state.groups.entry((parent, ranks.to_vec(), id)).or_insert(next)
    }

    pub fn traffic(&self, rank: usize) -> Traffic {
        self.lock().ranks[rank].traffic
    }

    pub fn blocked(&self, rank: usize) -> Blocked {
        self.lock().ranks[rank].blocked
    }

    pub fn count_rows(&self, rank: usize, kind: LinkKind, rows: u64) {
        self.lock().ranks[rank].traffic.of_mut(kind).rows += rows;
    }

    pub fn set_label(&self, rank: usize, label: Option<String>) {
        self.lock().ranks[rank].label = label;
    }

    pub fn set_failed_in(&self, rank: usize, operation: &'static str) {
        self.lock().ranks[rank].failed_in = Some(operation);
    }

    pub fn check(&self) -> Result<()> {
        self.lock().failure.clone().map_or(Ok(()), Err)
    }

    /// Puts a message into the mailbox of `dst`.
    pub fn post(
        &self,
        dst: usize,
        key: Key,
        operation: &'static str,
        payload: Box<dyn Any + Send>,
        type_name: &'static str,
        bytes: u64,
        rows: u64,
    ) -> Result<()> {
        let kind = self.link_kind(key.src, dst);
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        let sender = &mut state.ranks[key.src];
        sender.operation = operation;
        let traffic = sender.traffic.of_mut(kind);
        traffic.messages += 1;
        traffic.bytes += bytes;
        traffic.rows += rows;
        let ready_at = match (&mut state.ports, kind) {
            (None, _) | (_, LinkKind::Local) => None,
            (Some(ports), _) => {
                let arrived = ports.schedule(self.start.elapsed(), key.src, dst, kind, bytes);
                self.start.checked_add(arrived)
            }
        };
        let receiver = &mut state.ranks[dst];
        receiver.mail.entry(key).or_default().push_back(Message { payload, type_name, operation, ready_at });
        state.progress += 1;
        let wanted = receiver.waits.iter().any(|wait| wait.key == key);
        drop(guard);
        if wanted {
            self.wake[dst].notify_all();
        }
        Ok(())
    }

    /// Takes the next message for `key` if it has arrived.
    pub fn try_take(&self, me: usize, key: Key, operation: &'static str) -> Result<Option<Message>> {
        let mut state = self.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        state.ranks[me].operation = operation;
        match state.take(me, key) {
            Taken::Message(message) => Ok(Some(message)),
            Taken::At(_) => Ok(None),
            Taken::Nothing if state.ranks[key.src].ended => {
                state.ranks[me].failed_in = Some(operation);
                Err(Error::Ended { rank: me, operation, source_rank: key.src })
            }
            Taken::Nothing => Ok(None),
        }
    }

    /// Takes the next message for `key`, giving the compute slot away while there is none.
    pub fn take(&self, me: usize, key: Key, operation: &'static str) -> Result<Message> {
        let mut state = self.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        state.ranks[me].operation = operation;
        if let Taken::Message(message) = state.take(me, key) {
            return Ok(message);
        }
        let began = Instant::now();
        state.ranks[me].waits.push(Wait { key, operation });
        self.release_slot(&mut state, me);
        let outcome = loop {
            if let Some(failure) = &state.failure {
                break Err(failure.clone());
            }
            let (timeout, stall) = match state.take(me, key) {
                Taken::Message(message) => break Ok(message),
                Taken::At(ready_at) => (ready_at.saturating_duration_since(Instant::now()), false),
                Taken::Nothing if state.ranks[key.src].ended => {
                    break Err(Error::Ended { rank: me, operation, source_rank: key.src });
                }
                Taken::Nothing => (self.stall_after, true),
            };
            let progress = state.progress;
            let (guard, waited) = self.wake[me].wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner);
            state = guard;
            if stall && waited.timed_out() && state.progress == progress && state.all_wait() {
                break Err(Error::Stalled { waits: state.describe_waits() });
            }
        };
        let mine = &mut state.ranks[me];
        if let Some(at) = mine.waits.iter().position(|wait| wait.key == key) {
            mine.waits.swap_remove(at);
        }
        mine.blocked.messages += began.elapsed();
        if outcome.is_err() {
            mine.failed_in = Some(operation);
        }
        let state = self.acquire_slot(state, me);
        if let (Ok(_), Some(failure)) = (&outcome, &state.failure) {
            return Err(failure.clone());
        }
        outcome
    }

    fn release_slot(&self, state: &mut State, me: usize) {
        if !self.limited || !state.ranks[me].holds_slot {
            return;
        }
        state.ranks[me].holds_slot = false;
        while let Some(next) = state.slot_queue.pop_front() {
            if !state.ranks[next].holds_slot {
                state.ranks[next].holds_slot = true;
                self.wake[next].notify_all();
                return;
            }
        }
        state.free_slots += 1;
    }

    /// Waits for a compute slot; returns without one only when the world has failed.
    fn acquire_slot<'a>(&'a self, mut state: MutexGuard<'a, State>, me: usize) -> MutexGuard<'a, State> {
        if !self.limited || state.ranks[me].holds_slot || state.failure.is_some() {
            return state;
        }
        if state.free_slots > 0 {
            state.free_slots -= 1;
            state.ranks[me].holds_slot = true;
            return state;
        }
        let began = Instant::now();
        state.slot_queue.push_back(me);
        while !state.ranks[me].holds_slot && state.failure.is_none() {
            state = self.wake[me].wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.ranks[me].blocked.slots += began.elapsed();
        state
    }

    /// The first slot of a rank, taken before its function runs.
    pub fn enter(&self, me: usize) -> Result<()> {
        let state = self.acquire_slot(self.lock(), me);
        state.failure.clone().map_or(Ok(()), Err)
    }

    /// Gives the compute slot away while `wait` runs.
    pub fn without_slot<R>(&self, me: usize, wait: impl FnOnce() -> R) -> Result<R> {
        self.release_slot(&mut self.lock(), me);
        let result = wait();
        self.enter(me)?;
        Ok(result)
    }

    /// Records that a rank has returned (`None`), or why it failed.
    pub fn end(&self, me: usize, failure: Option<String>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.ranks[me].ended = true;
        state.progress += 1;
        if let (Some(message), None) = (failure, &state.failure) {
            let mine = &state.ranks[me];
            let operation = match (&mine.label, mine.failed_in) {
                (Some(label), _) => label.clone(),
                (None, Some(operation)) => operation.to_string(),
                (None, None) => format!("its own work after {}", mine.operation),
            };
            state.failure = Some(Error::Aborted { rank: me, operation, message });
        }
        self.release_slot(state, me);
        drop(guard);
        for wake in &self.wake {
            wake.notify_all();
        }
    }

    pub fn failure(&self) -> Option<Error> {
        self.lock().failure.clone()
    }
}

enum Taken {
    Message(Message),
    At(Instant),
    Nothing,
}

impl State {
    fn take(&mut self, me: usize, key: Key) -> Taken {
        let mail = &mut self.ranks[me].mail;
        let Some(queue) = mail.get_mut(&key) else { return Taken::Nothing };
        let Some(first) = queue.front() else { return Taken::Nothing };
        if let Some(ready_at) = first.ready_at
            && ready_at > Instant::now()
        {
            return Taken::At(ready_at);
        }
        let Some(message) = queue.pop_front() else { return Taken::Nothing };
        // User tags may all be different: an empty queue must not stay behind.
        if queue.is_empty() && matches!(key.tag, Tag::User(_)) {
            mail.remove(&key);
        }
        self.progress += 1;
        Taken::Message(message)
    }

    /// Whether every rank that still runs waits for a message that nobody has sent.
    fn all_wait(&self) -> bool {
        self.ranks.iter().filter(|rank| !rank.ended).all(|rank| {
            let sent = |wait: &Wait| rank.mail.get(&wait.key).is_some_and(|queue| !queue.is_empty());
            !rank.waits.is_empty() && !rank.waits.iter().any(sent)
        })
    }

    fn describe_waits(&self) -> String {
        let mut parts = Vec::new();
        for (rank, state) in self.ranks.iter().enumerate() {
            for Wait { key, operation } in &state.waits {
                let tag = match key.tag {
                    Tag::User(tag) => format!(" (tag {tag})"),
                    Tag::Collective => String::new(),
                };
                parts.push(format!("rank {rank} in {operation} for rank {}{tag}", key.src));
            }
        }
        parts.join(", ")
    }
}
