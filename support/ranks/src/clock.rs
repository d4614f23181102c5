//! The two clocks of a world, and the order in which ranks act under the virtual one.

use std::cmp::Ordering;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;

use crate::link::LinkKind;
use crate::state::{Key, State, Wait, Want};

/// What tells the time in a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clock {
    /// The machine's time: a link delays messages as long as it says, and a rank that waits costs no processor time.
    #[default]
    Wall,
    /// Simulated time. Each actor (a rank's own thread, a [`Lane`](crate::Lane)) has a time, which moves by
    /// [`Comm::advance`](crate::Comm::advance) and by waiting; nothing is delayed for real. The same program gives the same times, to
    /// the bit, on any machine.
    Virtual,
}

/// How long an actor has waited for messages and tasks, by what there was to wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Waits {
    /// Seconds of waiting for something that had already been given to be sent: communication that nothing hid.
    pub exposed: f64,
    /// Seconds of waiting for something that nobody had sent yet: another rank was late.
    pub bubble: f64,
}

impl Waits {
    /// Exposed time and bubble together, in seconds.
    pub fn total(&self) -> f64 {
        self.exposed + self.bubble
    }

    /// What was added since `earlier`, a snapshot of the same actor.
    pub fn since(&self, earlier: &Waits) -> Waits {
        Waits { exposed: self.exposed - earlier.exposed, bubble: self.bubble - earlier.bubble }
    }

    /// Adds a wait from `began` to `ended` for something first given to be sent at `origin`.
    pub(crate) fn add(&mut self, began: f64, origin: f64, ended: f64) {
        self.exposed += (ended - began.max(origin)).max(0.0);
        self.bubble += (origin.min(ended) - began).max(0.0);
    }
}

impl std::ops::Add for Waits {
    type Output = Waits;

    fn add(self, other: Waits) -> Waits {
        Waits { exposed: self.exposed + other.exposed, bubble: self.bubble + other.bubble }
    }
}

/// Where an actor stands in virtual time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its thread runs; nobody may act at a later time than its own until it does.
    Computing,
    /// It wants to act at its own time.
    Parked,
    /// It waits for something, or for the time at which it arrives.
    Waiting,
    /// Its thread has ended.
    Ended,
}

/// The place of an actor in the order of events. Times are finite and not negative, so that their bits are in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    time: u64,
    rank: usize,
    lane: usize,
    actor: usize,
}

impl Turn {
    pub fn time(&self) -> f64 {
        f64::from_bits(self.time)
    }
}

/// The head of a message that reaches a receive port.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Head {
    pub time: f64,
    pub src: usize,
    /// Counts the messages of `src`.
    pub sequence: u64,
    pub dst: usize,
    pub key: Key,
    pub kind: LinkKind,
    pub bytes: u64,
}

impl Eq for Head {}

impl Ord for Head {
    /// The greatest is the one to be served first: least time, then sender, then sequence.
    fn cmp(&self, other: &Self) -> Ordering {
        let order = other.time.total_cmp(&self.time);
        order.then(other.src.cmp(&self.src)).then(other.sequence.cmp(&self.sequence))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The events to come under the virtual clock.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    /// Actors that compute, want to act, or wait for something whose arrival is known.
    turns: BTreeSet<Turn>,
    /// Messages that have not reached their port.
    pub heads: BinaryHeap<Head>,
}

impl State {
    /// Puts an actor at `time` into the order of events, or takes it out.
    pub fn set_turn(&mut self, id: usize, time: Option<f64>) {
        let actor = &mut self.actors[id];
        if let Some(old) = actor.turn.take() {
            self.agenda.turns.remove(&old);
        }
        if let Some(time) = time {
            let turn = Turn { time: time.to_bits(), rank: actor.rank, lane: actor.lane, actor: id };
            actor.turn = Some(turn);
            self.agenda.turns.insert(turn);
        }
    }

    /// What actor `id` waits for has happened, or is known to happen, at time `at`.
    pub fn due(&mut self, id: usize, at: f64) {
        let actor = &self.actors[id];
        if actor.phase == Phase::Waiting {
            let at = at.max(actor.time);
            if actor.turn.is_none_or(|turn| at < turn.time()) {
                self.set_turn(id, Some(at));
            }
        } else {
            self.woken.push(Arc::clone(&actor.handle));
        }
    }

    /// Serves the heads that come before every actor, then lets the first actor act.
    ///
    /// At equal times actors come before heads, so that what is sent at a time takes part in the order of heads of that time.
    pub fn dispatch(&mut self) {
        loop {
            let first = self.agenda.turns.first().copied();
            if let Some(head) = self.agenda.heads.peek()
                && first.is_none_or(|turn| head.time < turn.time())
            {
                let head = *head;
                self.agenda.heads.pop();
                self.serve(&head);
                continue;
            }
            match first {
                Some(turn) => {
                    let actor = &mut self.actors[turn.actor];
                    if actor.phase != Phase::Computing {
                        actor.time = turn.time();
                        actor.phase = Phase::Computing;
                        self.woken.push(Arc::clone(&actor.handle));
                    }
                }
                None => self.detect_stall(),
            }
            return;
        }
    }

    /// Nothing can happen any more: if somebody waits, the first of them is told.
    fn detect_stall(&mut self) {
        let stuck = |wait: &Wait| !matches!(wait.want, Want::Submission(_));
        let waiting = self.actors.iter().filter(|actor| actor.phase == Phase::Waiting && actor.waits.iter().any(stuck));
        let Some(id) = waiting.min_by_key(|actor| (actor.rank, actor.lane)).map(|actor| actor.handle.id) else { return };
        let text = self.describe_waits();
        let actor = &mut self.actors[id];
        actor.stalled = Some(text);
        actor.phase = Phase::Computing;
        self.woken.push(Arc::clone(&actor.handle));
        let time = actor.time;
        self.set_turn(id, Some(time));
    }
}
