//! What the ranks of one process do with the state they share: each operation under its lock, in its turn.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::clock::{Clock, Head, Phase};
use crate::error::{Error, RanksError, Result};
use crate::link::{Blocked, LinkKind, Ports, Traffic};
use crate::lock::{Actor, Guard};
use crate::state::{Check, Key, Letter, RankState, State, Wait, Want};
use crate::threads::WorldConfig;
use crate::transport::{Envelope, Transport};

/// What the ranks of this process share. Made by [`run_threads`](crate::run_threads), or by [`World::process`] where other
/// ranks are in other processes.
pub struct World {
    state: Mutex<State>,
    start: Instant,
    size: usize,
    pub(crate) ranks_per_node: usize,
    clock: Clock,
    stall_after: Duration,
    transport: Option<Arc<dyn Transport>>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "World({} ranks, {:?} clock)", self.size, self.clock)
    }
}

impl World {
    /// A world of ranks that are all threads of this process.
    pub(crate) fn new(config: &WorldConfig) -> Self {
        World::with(config, None, None)
    }

    /// A world of which only `rank` lives in this process; the others are reached over `transport`. Its clock is the wall
    /// clock, and messages take the time they take.
    ///
    /// # Errors
    /// When the configuration makes no sense, names a virtual clock or a link model, or has no such rank.
    pub fn process(config: &WorldConfig, rank: usize, transport: Arc<dyn Transport>) -> Result<Arc<World>> {
        World::process_since(config, rank, transport, Instant::now())
    }

    /// The same with a clock that stood at 0 at `start`, which is to be the same moment in all processes.
    pub(crate) fn process_since(
        config: &WorldConfig,
        rank: usize,
        transport: Arc<dyn Transport>,
        start: Instant,
    ) -> Result<Arc<World>> {
        config.validate()?;
        let refuse = |what, expected: &str, got: String| Err(Error::Config { what, expected: expected.to_string(), got });
        if rank >= config.size {
            return refuse("rank of this process", &format!("below {}", config.size), rank.to_string());
        }
        if config.clock == Clock::Virtual {
            return refuse("clock", "the wall clock for ranks in several processes", "a virtual clock".into());
        }
        if let Some(link) = config.link {
            return refuse("link model", "none for ranks in several processes", link.to_string());
        }
        Ok(Arc::new(World { start, ..World::with(config, Some(rank), Some(transport)) }))
    }

    /// Whether a thread of a rank waits for something, and whether all of them do.
    #[cfg(feature = "mpi")]
    pub(crate) fn waits(&self, rank: usize) -> (bool, bool) {
        let state = self.lock();
        let mut actors = state.actors.iter().filter(|actor| actor.rank == rank && actor.phase != Phase::Ended).peekable();
        let one = actors.peek().is_some();
        let stuck = |actor: &crate::state::ActorState| actor.waits.iter().any(|wait| matches!(wait.want, Want::Message(_)));
        let (mut any, mut all) = (false, one);
        for actor in actors {
            any |= stuck(actor);
            all &= !actor.waits.is_empty();
        }
        (any, any && all)
    }

    fn with(config: &WorldConfig, only: Option<usize>, transport: Option<Arc<dyn Transport>>) -> Self {
        let ports = config.link.map(|model| Ports::new(model, config.size));
        let mut state = State::new(config.size, config.compute_slots, ports);
        for rank in 0..config.size {
            let here = only.is_none_or(|only| only == rank);
            state.add_rank(here);
            // Remote ranks have an actor too, which never acts, so that actor r is rank r's own thread.
            state.add_actor(rank, None, 0.0, here);
        }
        World {
            state: Mutex::new(state),
            start: Instant::now(),
            size: config.size,
            ranks_per_node: config.ranks_per_node,
            clock: config.clock,
            stall_after: config.stall_after,
            transport,
        }
    }

    pub(crate) fn lock(&self) -> Guard<'_> {
        Guard::new(&self.state)
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn is_virtual(&self) -> bool {
        self.clock == Clock::Virtual
    }

    /// Seconds of the world's clock, as `actor` sees it.
    pub(crate) fn now(&self, state: &State, actor: &Actor) -> f64 {
        if self.is_virtual() { state.actors[actor.id].time } else { self.start.elapsed().as_secs_f64() }
    }

    pub(crate) fn is_here(&self, rank: usize) -> bool {
        self.lock().ranks.get(rank).is_some_and(|rank| rank.here)
    }

    /// The actor of a rank's own thread.
    pub(crate) fn actor(&self, rank: usize) -> Arc<Actor> {
        Arc::clone(&self.lock().actors[rank].handle)
    }

    pub(crate) fn node(&self, rank: usize) -> usize {
        rank / self.ranks_per_node
    }

    pub(crate) fn link_kind(&self, a: usize, b: usize) -> LinkKind {
        if a == b {
            LinkKind::Local
        } else if self.node(a) == self.node(b) {
            LinkKind::Fast
        } else {
            LinkKind::Slow
        }
    }

    /// One number for a group, the same for all of its members in all processes.
    pub(crate) fn group(&self, parent: u64, ranks: &[usize], id: u64) -> Result<u64> {
        let number = group_number(parent, ranks, id);
        let mut state = self.lock();
        let known = state.groups.entry(number).or_insert_with(|| (parent, ranks.to_vec(), id));
        // 64 bits: with n groups the chance is about n^2 / 2^65. It is noticed, not suffered.
        if (known.0, known.1.as_slice(), known.2) != (parent, ranks, id) || number == 0 {
            return Err(Error::Group { first: format!("{:?}", known.1), second: format!("{ranks:?}") });
        }
        Ok(number)
    }

    pub(crate) fn next_sequence(&self, actor: &Actor, group: u64) -> u64 {
        let mut state = self.look(actor);
        let next = state.ranks[actor.rank].sequences.entry(group).or_insert(0);
        let sequence = *next;
        *next = next.wrapping_add(1);
        sequence
    }

    pub(crate) fn traffic(&self, actor: &Actor) -> Traffic {
        self.look(actor).ranks[actor.rank].traffic
    }

    pub(crate) fn blocked(&self, actor: &Actor) -> Blocked {
        self.look(actor).ranks[actor.rank].blocked
    }

    pub(crate) fn count_rows(&self, rank: usize, kind: LinkKind, rows: u64) {
        self.lock().ranks[rank].traffic.of_mut(kind).rows += rows;
    }

    pub(crate) fn set_label(&self, rank: usize, label: Option<String>) {
        self.lock().ranks[rank].label = label;
    }

    pub(crate) fn set_failed_in(&self, actor: &Actor, operation: &'static str) {
        self.lock().actors[actor.id].failed_in = Some(operation);
    }

    pub(crate) fn check(&self, actor: &Actor) -> Result<()> {
        self.lock().admit(actor)
    }

    /// Moves the virtual time of `actor`; under the wall clock nothing happens.
    pub(crate) fn advance(&self, actor: &Actor, seconds: f64) -> Result<()> {
        let refuse = |got: f64| Error::Shape {
            what: "seconds to advance by",
            expected: "a finite number that is not negative".into(),
            got: got.to_string(),
        };
        if !(seconds >= 0.0 && seconds.is_finite()) {
            return Err(refuse(seconds));
        }
        let mut state = self.lock();
        state.admit(actor)?;
        if self.is_virtual() {
            let time = state.actors[actor.id].time + seconds;
            if !time.is_finite() {
                return Err(refuse(seconds));
            }
            state.actors[actor.id].time = time;
            state.set_turn(actor.id, Some(time));
            state.dispatch();
        }
        Ok(())
    }

    /// Under the virtual clock, waits until no other actor can act before this one.
    fn turn<'a>(&'a self, mut state: Guard<'a>, actor: &Actor) -> Guard<'a> {
        if !self.is_virtual() || state.admit(actor).is_err() || state.actors[actor.id].turn.is_none() {
            return state;
        }
        state.actors[actor.id].phase = Phase::Parked;
        state.dispatch();
        if state.actors[actor.id].phase == Phase::Computing {
            return state;
        }
        state.release_slot(actor.id);
        while state.actors[actor.id].phase != Phase::Computing && state.admit(actor).is_ok() {
            state.sleep(actor, None);
        }
        state.actors[actor.id].phase = Phase::Computing;
        self.acquire_slot(state, actor)
    }

    /// The lock, when it is this actor's turn to act.
    pub(crate) fn lock_in_turn(&self, actor: &Actor) -> Result<Guard<'_>> {
        let state = self.turn(self.lock(), actor);
        state.admit(actor)?;
        Ok(state)
    }

    /// The lock, when it is this actor's turn to act, or when the world has failed.
    pub(crate) fn look(&self, actor: &Actor) -> Guard<'_> {
        self.turn(self.lock(), actor)
    }

    /// Sends a message: into the mailbox of `dst`, or to the transport.
    pub(crate) fn post(
        &self,
        actor: &Actor,
        dst: usize,
        operation: &'static str,
        mut envelope: Envelope,
        rows: u64,
    ) -> Result<()> {
        let src = actor.rank;
        let kind = self.link_kind(src, dst);
        let bytes = envelope.payload.bytes().len() as u64;
        let mut guard = self.lock_in_turn(actor)?;
        let state = &mut *guard;
        let now = self.now(state, actor);
        envelope.origin = state.actors[actor.id].origin.unwrap_or(now);
        state.begin(actor, operation);
        let traffic = state.ranks[src].traffic.of_mut(kind);
        traffic.messages += 1;
        traffic.bytes += bytes;
        traffic.rows += rows;
        if let (false, Some(transport)) = (state.ranks[dst].here, &self.transport) {
            // The transport may take its time, and may deliver a message meanwhile.
            drop(guard);
            return transport.send(dst, envelope).inspect_err(|_| self.set_failed_in(actor, operation));
        }
        let key = Key { group: envelope.group, src, tag: envelope.tag };
        match &mut state.ports {
            Some(ports) if kind != LinkKind::Local => {
                let time = ports.leave(now, src, kind, bytes);
                let sequence = state.ranks[src].sent;
                state.ranks[src].sent += 1;
                state.put(dst, key, Letter { envelope, arrival: None });
                let head = Head { time, src, sequence, dst, key, kind, bytes };
                if self.is_virtual() {
                    state.agenda.heads.push(head);
                } else {
                    state.under_way[dst].push(head);
                    state.notify(dst, Want::Message(key));
                }
            }
            _ => {
                state.put(dst, key, Letter { envelope, arrival: Some(now) });
                state.happened(dst, Want::Message(key), now);
            }
        }
        Ok(())
    }

    /// Puts a message from a rank of another process into the mailbox of `dst`.
    ///
    /// # Errors
    /// When `dst` is not in this process, or the world has no such ranks.
    pub fn deliver(&self, dst: usize, envelope: Envelope) -> Result<()> {
        let mut state = self.lock();
        let src = envelope.src;
        if src >= self.size || !state.ranks.get(dst).is_some_and(|rank| rank.here) {
            return Err(Error::Shape {
                what: "message from another process",
                expected: format!("ranks below {}, the receiver in this process", self.size),
                got: format!("from rank {src} to rank {dst}"),
            });
        }
        let key = Key { group: envelope.group, src, tag: envelope.tag };
        let now = self.start.elapsed().as_secs_f64();
        state.put(dst, key, Letter { envelope, arrival: Some(now) });
        state.happened(dst, Want::Message(key), now);
        Ok(())
    }

    /// Blocks `actor` until `check` finds what it waits for, giving its compute slot away.
    pub(crate) fn wait<R>(
        &self,
        actor: &Actor,
        operation: &'static str,
        wants: &[Want],
        mut check: impl FnMut(&mut State, f64) -> Check<R>,
    ) -> Result<R> {
        let (id, rank) = (actor.id, actor.rank);
        let mut state = self.lock_in_turn(actor)?;
        state.begin(actor, operation);
        let began = self.now(&state, actor);
        if !self.is_virtual() {
            state.serve_until(rank, began);
        }
        match check(&mut state, began) {
            Check::Ready(value, _) => return Ok(value),
            Check::Never(error) => {
                state.actors[actor.id].failed_in = Some(operation);
                return Err(error);
            }
            Check::At(_) | Check::UnderWay | Check::Nothing => {}
        }
        state.actors[id].waits.extend(wants.iter().map(|&want| Wait { want, operation }));
        state.release_slot(id);
        let outcome = loop {
            if let Err(error) = state.admit(actor) {
                break Err(error);
            }
            let now = self.now(&state, actor);
            if !self.is_virtual() {
                state.serve_until(rank, now);
            }
            let mut at = None;
            let mut stall = false;
            match check(&mut state, now) {
                Check::Ready(value, origin) => break Ok((value, origin)),
                Check::Never(error) => break Err(error),
                Check::At(time) => at = Some(time),
                Check::UnderWay => at = state.under_way[rank].peek().map(|head| head.time),
                // A lane without a task holds nobody up, and waits as long as it takes.
                Check::Nothing => stall = wants.iter().any(|want| !matches!(want, Want::Submission(_))),
            }
            if self.is_virtual() {
                state.actors[id].phase = Phase::Waiting;
                state.set_turn(id, at.map(|at| at.max(now)));
                state.dispatch();
                while state.actors[id].phase == Phase::Waiting && state.admit(actor).is_ok() {
                    state.sleep(actor, None);
                }
                state.actors[id].phase = Phase::Computing;
                if let Some(waits) = state.actors[id].stalled.take() {
                    break Err(Error::Stalled { waits });
                }
            } else {
                // A message under way may be behind others, so the first head on the way to this rank wakes it too.
                let first = state.under_way[rank].peek().map(|head| head.time);
                let at = match (at, first) {
                    (Some(at), Some(first)) => Some(at.min(first)),
                    (at, _) => at,
                };
                let timeout = at.map_or(self.stall_after, |at| seconds(at - now));
                let progress = state.progress;
                let timed_out = state.sleep(actor, Some(timeout));
                if stall && timed_out && state.progress == progress && state.all_wait() {
                    break Err(Error::Stalled { waits: state.describe_waits() });
                }
            }
        };
        let ended = self.now(&state, actor);
        let mine = &mut state.actors[id];
        if mine.waits.len() == wants.len() {
            mine.waits.clear();
        } else {
            // Another thread that uses the same actor waits as well.
            for want in wants {
                if let Some(at) = mine.waits.iter().position(|wait| wait.want == *want) {
                    mine.waits.swap_remove(at);
                }
            }
        }
        if let Ok((_, Some(origin))) = &outcome {
            mine.waited.add(began, *origin, ended);
        }
        if mine.lane == 0 {
            state.ranks[rank].blocked.messages += seconds(ended - began);
        }
        if let Err(error) = &outcome
            && !matches!(error, Error::Closed { .. })
        {
            state.actors[actor.id].failed_in = Some(operation);
        }
        let state = self.acquire_slot(state, actor);
        let (value, _) = outcome?;
        state.admit(actor)?;
        Ok(value)
    }

    /// Takes the next message for `key`, giving the compute slot away while there is none.
    pub(crate) fn take(&self, actor: &Actor, key: Key, operation: &'static str) -> Result<Envelope> {
        let rank = actor.rank;
        let id = actor.id;
        self.wait(actor, operation, &[Want::Message(key)], |state, now| match state.take(rank, key, now) {
            Check::Ready(envelope, origin) => {
                state.learn_origin(id, origin);
                Check::Ready(envelope, origin)
            }
            Check::Nothing if state.never_comes(key) => Check::Never(Error::Ended { rank, operation, source_rank: key.src }),
            other => other,
        })
    }

    /// Takes the next message for `key` if it has arrived.
    pub(crate) fn try_take(&self, actor: &Actor, key: Key, operation: &'static str) -> Result<Option<Envelope>> {
        let rank = actor.rank;
        let mut state = self.lock_in_turn(actor)?;
        state.begin(actor, operation);
        let now = self.now(&state, actor);
        if !self.is_virtual() {
            state.serve_until(rank, now);
        }
        match state.take(rank, key, now) {
            Check::Ready(envelope, origin) => {
                state.learn_origin(actor.id, origin);
                Ok(Some(envelope))
            }
            Check::Nothing if state.never_comes(key) => {
                state.actors[actor.id].failed_in = Some(operation);
                Err(Error::Ended { rank, operation, source_rank: key.src })
            }
            _ => Ok(None),
        }
    }

    /// Waits until a message for one of `keys` has arrived, and says for which.
    pub(crate) fn wait_any(&self, actor: &Actor, keys: &[Key], operation: &'static str) -> Result<usize> {
        let rank = actor.rank;
        let wants: Vec<Want> = keys.iter().map(|&key| Want::Message(key)).collect();
        self.wait(actor, operation, &wants, |state, now| match state.first_arrival(rank, keys, now) {
            Check::Nothing if keys.iter().all(|&key| state.never_comes(key)) => match keys.first() {
                Some(key) => Check::Never(Error::Ended { rank, operation, source_rank: key.src }),
                None => Check::Nothing,
            },
            found => found,
        })
    }

    /// Waits for a compute slot; returns without one only when the actor may not go on.
    fn acquire_slot<'a>(&'a self, mut state: Guard<'a>, actor: &Actor) -> Guard<'a> {
        let id = actor.id;
        if !state.limited || state.actors[id].holds_slot || state.admit(actor).is_err() {
            return state;
        }
        let pool = state.actors[id].slot_pool();
        if state.free_slots[pool] > 0 {
            state.free_slots[pool] -= 1;
            state.actors[id].holds_slot = true;
            return state;
        }
        let began = Instant::now();
        state.slot_queue[pool].push_back(id);
        while !state.actors[id].holds_slot && state.admit(actor).is_ok() {
            state.sleep(actor, None);
        }
        if !state.actors[id].holds_slot {
            state.slot_queue[pool].retain(|&queued| queued != id);
        }
        state.ranks[actor.rank].blocked.slots += began.elapsed();
        state
    }

    /// The first slot of an actor, taken before its function runs.
    pub(crate) fn enter(&self, actor: &Actor) -> Result<()> {
        let state = self.acquire_slot(self.lock(), actor);
        state.admit(actor)
    }

    /// Gives the compute slot away while `wait` runs.
    pub(crate) fn without_slot<R>(&self, actor: &Actor, wait: impl FnOnce() -> R) -> Result<R> {
        self.lock().release_slot(actor.id);
        let result = wait();
        self.enter(actor)?;
        Ok(result)
    }

    /// Records that a rank of this process has returned (`None`), or why it failed.
    pub(crate) fn end(&self, actor: &Actor, failure: Option<String>) {
        let rank = actor.rank;
        let mut state = self.lock();
        if failure.is_none() {
            // Others see the end in its place among the events.
            state = self.turn(state, actor);
        }
        if let Some(message) = failure {
            state.fail_own(actor, message);
        }
        let time = state.actors[actor.id].time;
        let inboxes = state.end_rank(rank, time);
        let failure = state.failure.clone();
        drop(state);
        // Tasks are foreign code: they are dropped without the lock.
        drop(inboxes);
        if let Some(transport) = &self.transport {
            transport.ended(rank, failure.as_ref());
        }
    }

    /// Records that a rank of another process has returned: nothing more will come from it.
    pub fn ended(&self, rank: usize) {
        let mut state = self.lock();
        if state.ranks.get(rank).is_some_and(|rank| !rank.here) {
            state.end_rank(rank, 0.0);
        }
    }

    /// Ends the world: whatever its ranks wait for returns [`Error::Aborted`] with this failure, unless there was one before.
    pub fn fail(&self, rank: usize, operation: impl Into<String>, message: impl Into<String>) {
        self.lock().fail(RanksError { rank, operation: operation.into(), message: message.into() });
    }

    /// The first failure.
    pub fn failure(&self) -> Option<RanksError> {
        self.lock().failure.clone()
    }

    /// What a rank of this process does at the moment, for messages: what its threads wait for, or the operation it began last.
    pub fn pending(&self, rank: usize) -> String {
        let state = self.lock();
        let waits = state.waits_of(rank);
        if !waits.is_empty() {
            return waits.join(", ");
        }
        match state.ranks.get(rank) {
            Some(RankState { label: Some(label), .. }) => format!("rank {rank} in {label}"),
            Some(known) => format!("rank {rank} in its own work after {}", known.operation),
            None => format!("no rank {rank}"),
        }
    }
}

/// A hash of what makes a group (FNV-1a over the words, then mixed), the same in every process.
fn group_number(parent: u64, ranks: &[usize], id: u64) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let words = [parent, id, ranks.len() as u64].into_iter().chain(ranks.iter().map(|&rank| rank as u64));
    for byte in words.flat_map(u64::to_le_bytes) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

/// A time span that may be absurdly long.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX / 4)
}
