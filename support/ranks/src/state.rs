//! The state that the ranks of one process share: mailboxes, compute slots, ports, counters, and the first failure.

use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use crate::clock::{Agenda, Head, Phase, Turn, Waits};
use crate::error::{Error, RanksError, Result};
use crate::lane::Submitted;
use crate::link::{Blocked, Ports, Traffic};
use crate::lock::Actor;
use crate::transport::{Envelope, Tag};

/// What a message is matched by, beside its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub group: u64,
    pub src: usize,
    pub tag: Tag,
}

/// A message in a mailbox.
pub(crate) struct Letter {
    pub envelope: Envelope,
    /// When it can be received; `None` until its head has passed the receive port.
    pub arrival: Option<f64>,
}

/// What an actor is blocked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Message(Key),
    /// The end of a task (its ticket, and the actor that is its lane).
    Ticket(u64, usize),
    /// A task for a lane (its actor).
    Submission(usize),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Wait {
    pub want: Want,
    pub operation: &'static str,
}

pub(crate) struct ActorState {
    pub handle: Arc<Actor>,
    pub rank: usize,
    /// 0 for the rank's own thread; lanes count from 1.
    pub lane: usize,
    pub name: Option<Arc<str>>,
    /// Virtual time.
    pub time: f64,
    pub phase: Phase,
    pub turn: Option<Turn>,
    pub waits: Vec<Wait>,
    pub waited: Waits,
    /// The operation that returned an error of its own making, until another begins.
    pub failed_in: Option<&'static str>,
    /// Why it was woken although nothing happened.
    pub stalled: Option<String>,
    /// When the task it works on, or what that has received, was first given to be sent.
    pub origin: Option<f64>,
    pub inbox: VecDeque<Submitted>,
    pub holds_slot: bool,
    pub closed: bool,
}

#[derive(Default)]
pub(crate) struct RankState {
    pub mail: HashMap<Key, VecDeque<Letter>>,
    /// Actors that have not ended.
    pub actors: Vec<usize>,
    pub lanes: usize,
    /// Whether it runs in this process.
    pub here: bool,
    pub ended: bool,
    /// The operation last begun.
    pub operation: &'static str,
    pub label: Option<String>,
    pub traffic: Traffic,
    pub blocked: Blocked,
    /// Messages sent over links.
    pub sent: u64,
    /// What [`Comm::next_sequence`](crate::Comm::next_sequence) has counted, by group.
    pub sequences: HashMap<u64, u64>,
}

pub(crate) struct State {
    pub ranks: Vec<RankState>,
    pub actors: Vec<ActorState>,
    pub agenda: Agenda,
    /// Actors to wake when the lock is released.
    pub woken: Vec<Arc<Actor>>,
    /// Under the wall clock: messages under way to each rank.
    pub under_way: Vec<BinaryHeap<Head>>,
    pub groups: HashMap<u64, (u64, Vec<usize>, u64)>,
    /// Tasks that are done: when, and their origin.
    pub tickets: HashMap<u64, Option<(f64, f64)>>,
    pub next_ticket: u64,
    pub failure: Option<RanksError>,
    /// Messages delivered or received and ranks ended so far: while it stands still nothing happens.
    pub progress: u64,
    pub limited: bool,
    /// Compute slots that nobody holds: of ranks' own threads, and of lanes.
    pub free_slots: [usize; 2],
    pub slot_queue: [VecDeque<usize>; 2],
    pub ports: Option<Ports>,
}

/// What a blocked actor finds when it looks.
pub(crate) enum Check<R> {
    /// It is there; it was first given to be sent at the origin, if that is to be accounted for.
    Ready(R, Option<f64>),
    /// It will be there at this time.
    At(f64),
    /// It is under way.
    UnderWay,
    Nothing,
    /// It will never be there.
    Never(Error),
}

impl ActorState {
    /// Ranks' own threads and lanes have slots apart, or a lane would stand still while its rank computes.
    pub fn slot_pool(&self) -> usize {
        usize::from(self.lane > 0)
    }
}

impl State {
    /// The state of a world without ranks, for `size` of them.
    pub fn new(size: usize, compute_slots: Option<usize>, ports: Option<Ports>) -> Self {
        State {
            ranks: Vec::with_capacity(size),
            actors: Vec::with_capacity(size),
            agenda: Agenda::default(),
            woken: Vec::new(),
            under_way: vec![BinaryHeap::new(); size],
            groups: HashMap::new(),
            tickets: HashMap::new(),
            next_ticket: 0,
            failure: None,
            progress: 0,
            limited: compute_slots.is_some(),
            free_slots: [compute_slots.unwrap_or(0); 2],
            slot_queue: [VecDeque::new(), VecDeque::new()],
            ports,
        }
    }

    /// Adds the state of a rank; its own thread is the first actor added to it.
    pub fn add_rank(&mut self, here: bool) {
        self.ranks.push(RankState { operation: "start", here, ..RankState::default() });
    }

    pub fn add_actor(&mut self, rank: usize, name: Option<Arc<str>>, time: f64, here: bool) -> Arc<Actor> {
        let id = self.actors.len();
        let handle = Arc::new(Actor::new(id, rank));
        let lane = self.ranks[rank].lanes;
        self.ranks[rank].lanes += 1;
        self.actors.push(ActorState {
            handle: Arc::clone(&handle),
            rank,
            lane,
            name,
            time,
            phase: if here { Phase::Computing } else { Phase::Ended },
            turn: None,
            waits: Vec::new(),
            waited: Waits::default(),
            failed_in: None,
            stalled: None,
            origin: None,
            inbox: VecDeque::new(),
            holds_slot: false,
            closed: false,
        });
        if here {
            self.ranks[rank].actors.push(id);
            self.set_turn(id, Some(time));
        }
        handle
    }

    /// Whether an actor may go on: the world has not failed, and the actor was not closed.
    pub fn admit(&self, actor: &Actor) -> Result<()> {
        if let Some(RanksError { rank, operation, message }) = &self.failure {
            return Err(Error::Aborted { rank: *rank, operation: operation.clone(), message: message.clone() });
        }
        if self.is_closed(actor.id) { Err(self.closed(actor.id)) } else { Ok(()) }
    }

    pub fn is_closed(&self, lane: usize) -> bool {
        self.actors[lane].closed
    }

    /// What is said about a lane that was dropped.
    pub fn closed(&self, lane: usize) -> Error {
        let lane = &self.actors[lane];
        Error::Closed { rank: lane.rank, lane: lane.name.as_deref().unwrap_or_default().to_string() }
    }

    pub fn put(&mut self, dst: usize, key: Key, letter: Letter) {
        self.ranks[dst].mail.entry(key).or_default().push_back(letter);
        self.progress += 1;
    }

    /// Lets the actors of a rank that wait for `want` know that it happens at time `at`.
    pub fn happened(&mut self, rank: usize, want: Want, at: f64) {
        for i in 0..self.ranks[rank].actors.len() {
            let id = self.ranks[rank].actors[i];
            if self.actors[id].waits.iter().any(|wait| wait.want == want) {
                self.due(id, at);
            }
        }
    }

    /// Wakes the actors of a rank that wait for `want`, so that they look again (wall clock).
    pub fn notify(&mut self, rank: usize, want: Want) {
        for i in 0..self.ranks[rank].actors.len() {
            let id = self.ranks[rank].actors[i];
            if self.actors[id].waits.iter().any(|wait| wait.want == want) {
                self.woken.push(Arc::clone(&self.actors[id].handle));
            }
        }
    }

    /// Lets a head into its receive port.
    pub fn serve(&mut self, head: &Head) {
        let Some(ports) = &mut self.ports else { return };
        let Some(queue) = self.ranks[head.dst].mail.get_mut(&head.key) else { return };
        let Some(letter) = queue.iter_mut().find(|letter| letter.arrival.is_none()) else { return };
        let arrival = ports.enter(head.time, head.dst, head.kind, head.bytes);
        letter.arrival = Some(arrival);
        self.happened(head.dst, Want::Message(head.key), arrival);
    }

    /// Lets in what has reached the ports of a rank by `now` (wall clock).
    pub fn serve_until(&mut self, rank: usize, now: f64) {
        while let Some(head) = self.under_way[rank].peek().copied()
            && head.time <= now
        {
            self.under_way[rank].pop();
            self.serve(&head);
        }
    }

    pub fn take(&mut self, rank: usize, key: Key, now: f64) -> Check<Envelope> {
        let mail = &mut self.ranks[rank].mail;
        let Some(queue) = mail.get_mut(&key) else { return Check::Nothing };
        match queue.front() {
            None => return Check::Nothing,
            Some(Letter { arrival: None, .. }) => return Check::UnderWay,
            Some(Letter { arrival: Some(at), .. }) if *at > now => return Check::At(*at),
            Some(_) => {}
        }
        let Some(Letter { envelope, .. }) = queue.pop_front() else { return Check::Nothing };
        // User tags may all be different: an empty queue must not stay behind.
        if queue.is_empty() && matches!(key.tag, Tag::User(_)) {
            mail.remove(&key);
        }
        self.progress += 1;
        let origin = envelope.origin;
        Check::Ready(envelope, Some(origin))
    }

    /// Which of `keys` has, or will have, a message first.
    pub fn first_arrival(&self, rank: usize, keys: &[Key], now: f64) -> Check<usize> {
        let mail = &self.ranks[rank].mail;
        let mut first: Option<(f64, usize, f64)> = None;
        let mut under_way = false;
        for (i, key) in keys.iter().enumerate() {
            let Some(letter) = mail.get(key).and_then(VecDeque::front) else { continue };
            match letter.arrival {
                None => under_way = true,
                Some(at) if first.is_none_or(|(best, _, _)| at < best) => first = Some((at, i, letter.envelope.origin)),
                Some(_) => {}
            }
        }
        match first {
            Some((at, i, origin)) if at <= now => Check::Ready(i, Some(origin)),
            Some((at, _, _)) => Check::At(at),
            None if under_way => Check::UnderWay,
            None => Check::Nothing,
        }
    }

    /// Whether the sender has ended without sending a message for `key`, given that there is none.
    pub fn never_comes(&self, key: Key) -> bool {
        self.ranks[key.src].ended
    }

    /// A message first given to be sent at `origin` was taken while working on a task.
    pub fn learn_origin(&mut self, id: usize, origin: Option<f64>) {
        if let (Some(task), Some(origin)) = (&mut self.actors[id].origin, origin) {
            *task = task.max(origin);
        }
    }

    pub fn new_ticket(&mut self) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.tickets.insert(ticket, None);
        ticket
    }

    pub fn made_progress(&mut self) {
        self.progress += 1;
    }

    pub fn release_slot(&mut self, id: usize) {
        if !self.limited || !self.actors[id].holds_slot {
            return;
        }
        self.actors[id].holds_slot = false;
        let pool = self.actors[id].slot_pool();
        while let Some(next) = self.slot_queue[pool].pop_front() {
            let next = &mut self.actors[next];
            if !next.holds_slot && next.phase != Phase::Ended {
                next.holds_slot = true;
                self.woken.push(Arc::clone(&next.handle));
                return;
            }
        }
        self.free_slots[pool] += 1;
    }

    /// An actor begins an operation.
    pub fn begin(&mut self, actor: &Actor, operation: &'static str) {
        self.ranks[actor.rank].operation = operation;
        // An error before this one was its caller's to handle, and is not what a later failure is about.
        self.actors[actor.id].failed_in = None;
    }

    /// A rank of this process failed in what it, or a lane of it, did.
    pub fn fail_own(&mut self, actor: &Actor, message: String) {
        let (mine, acting) = (&self.ranks[actor.rank], &self.actors[actor.id]);
        let operation = match (&mine.label, acting.failed_in) {
            (Some(label), _) => label.clone(),
            (None, Some(operation)) => operation.to_string(),
            // What the rank itself did last says nothing of its lane.
            (None, None) if acting.lane > 0 => "a task".to_string(),
            (None, None) => format!("its own work after {}", mine.operation),
        };
        let operation = match &acting.name {
            Some(lane) => format!("{operation} (lane {lane})"),
            None => operation,
        };
        self.fail(RanksError { rank: actor.rank, operation, message });
    }

    pub fn fail(&mut self, failure: RanksError) {
        self.failure.get_or_insert(failure);
        self.woken.extend(self.actors.iter().map(|actor| Arc::clone(&actor.handle)));
    }

    /// Records the end of a rank's own thread at virtual time `time`, and closes its lanes. Returns the tasks that were still to be begun.
    pub fn end_rank(&mut self, rank: usize, time: f64) -> Vec<VecDeque<Submitted>> {
        self.ranks[rank].ended = true;
        self.progress += 1;
        let lanes: Vec<usize> = self.ranks[rank].actors.iter().copied().filter(|&id| self.actors[id].lane > 0).collect();
        let inboxes = lanes.into_iter().map(|id| self.close(id)).collect();
        for id in 0..self.actors.len() {
            let from = |wait: &Wait| matches!(wait.want, Want::Message(key) if key.src == rank);
            if self.actors[id].waits.iter().any(from) {
                self.due(id, time);
            }
        }
        // Last, as it looks for what happens next.
        self.end_actor(rank);
        inboxes
    }

    /// Ends a lane: whatever it waits for returns [`Error::Closed`]. Returns the tasks that were still to be begun.
    pub fn close(&mut self, id: usize) -> VecDeque<Submitted> {
        let lane = &mut self.actors[id];
        lane.closed = true;
        self.woken.push(Arc::clone(&lane.handle));
        let (rank, inbox) = (lane.rank, std::mem::take(&mut lane.inbox));
        for waiting in self.ranks[rank].actors.clone() {
            let for_task = |wait: &Wait| matches!(wait.want, Want::Ticket(_, lane) if lane == id);
            if self.actors[waiting].waits.iter().any(for_task) {
                self.due(waiting, self.actors[waiting].time);
            }
        }
        inbox
    }

    /// The thread of an actor has ended.
    pub fn end_actor(&mut self, id: usize) {
        self.release_slot(id);
        self.set_turn(id, None);
        let rank = self.actors[id].rank;
        self.actors[id].phase = Phase::Ended;
        self.ranks[rank].actors.retain(|&actor| actor != id);
        self.dispatch();
    }

    /// The waits of all actors of a rank.
    pub fn waited(&self, rank: usize) -> Waits {
        let mine = self.actors.iter().filter(|actor| actor.rank == rank);
        mine.fold(Waits::default(), |sum, actor| sum + actor.waited)
    }

    /// Whether every rank that still runs is in this process and waits for a message that nobody has sent.
    pub fn all_wait(&self) -> bool {
        let here = self.ranks.iter().all(|rank| rank.here || rank.ended);
        here && self.actors.iter().filter(|actor| actor.phase != Phase::Ended).all(|actor| {
            let met = |wait: &Wait| match &wait.want {
                Want::Message(key) => self.ranks[actor.rank].mail.get(key).is_some_and(|queue| !queue.is_empty()),
                Want::Ticket(ticket, _) => self.tickets.get(ticket).is_some_and(Option::is_some),
                Want::Submission(_) => !actor.inbox.is_empty(),
            };
            !actor.waits.is_empty() && !actor.waits.iter().any(met)
        })
    }

    pub fn describe_waits(&self) -> String {
        let waits: Vec<String> = (0..self.ranks.len()).flat_map(|rank| self.waits_of(rank)).collect();
        waits.join(", ")
    }

    pub fn waits_of(&self, rank: usize) -> Vec<String> {
        let mut parts = Vec::new();
        for actor in self.actors.iter().filter(|actor| actor.rank == rank) {
            let lane = actor.name.as_ref().map(|name| format!(" lane {name}")).unwrap_or_default();
            for Wait { want, operation } in &actor.waits {
                let what = match want {
                    Want::Message(Key { src, tag: Tag::User(tag), .. }) => format!("rank {src} (tag {tag})"),
                    Want::Message(Key { src, tag: Tag::Collective, .. }) => format!("rank {src}"),
                    Want::Ticket(_, lane) => format!("a task of lane {}", self.actors[*lane].name.as_deref().unwrap_or_default()),
                    // A lane without a task is not what holds anybody up.
                    Want::Submission(_) => continue,
                };
                parts.push(format!("rank {rank}{lane} in {operation} for {what}"));
            }
        }
        parts
    }
}
