//! The one thread that calls MPI: it sends what the rank's threads put into its queue, and puts what arrives into their mailboxes.
//!
//! A message is a head and, unless it is short, its elements in parts of at most [`Options::chunk_bytes`]. Heads go under one tag and are found
//! by matched probes; parts go under another, straight out of the vector that was sent and straight into the one that will
//! be received. Receives of parts are begun in the order of the heads, which is the order of the sends, so that MPI matches
//! them without numbers (MPI 3.1, section 3.5: messages do not overtake).
//!
//! With nothing to do the thread sleeps, up to a millisecond at a time, and a message to send wakes it at once. While
//! elements are under way, or a thread of the rank waits, it first yields for a while instead.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::raw::{Fault, Mpi, Request};
use super::wire::{self, Announced, Head};
use crate::error::{Error, RanksError};
use crate::transport::{Arriving, Envelope, Payload, Tag, Transport, World};

const HEAD_TAG: i32 = 1;
const PART_TAG: i32 = 2;

/// Elements up to this many bytes travel in the head, which then stays below the 4 KiB that Open MPI sends eagerly in shared memory.
const INLINE: usize = 3 << 10;

/// What the engine may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Most bytes of one message of MPI, at least 1 and at most `i32::MAX`.
    pub chunk_bytes: usize,
}

/// What [`Port::call`] hands over.
pub(crate) type Call = Box<dyn FnOnce(&Mpi) + Send>;

enum Order {
    Send {
        dst: usize,
        head: Vec<u8>,
        payload: Option<Payload>,
    },
    /// A call made on the engine's thread.
    Call(Call),
    /// Nothing more will be sent.
    End,
    /// Ends the job with this status.
    Abort(i32),
}

#[derive(Default)]
struct Queue {
    orders: VecDeque<Order>,
    /// Why nothing can be sent any more.
    closed: Option<String>,
}

/// The side of the engine that the rank's threads see.
pub(crate) struct Port {
    queue: Mutex<Queue>,
    wake: Condvar,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Port {
    pub fn new() -> Self {
        Port { queue: Mutex::default(), wake: Condvar::new(), sent: AtomicU64::new(0), received: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, order: Order) {
        self.lock().orders.push_back(order);
        self.wake.notify_one();
    }

    /// Messages handed over so far, and messages delivered.
    pub fn counts(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Acquire), self.received.load(Ordering::Acquire))
    }

    /// Has the engine's thread make a call, or drop it when MPI has failed or ended.
    pub fn call(&self, call: Call) {
        let mut queue = self.lock();
        if queue.closed.is_none() {
            queue.orders.push_back(Order::Call(call));
        }
        drop(queue);
        self.wake.notify_one();
    }

    /// Ends the job; returns before it has.
    pub fn abort(&self, status: i32) {
        let mut queue = self.lock();
        queue.orders.push_front(Order::Abort(status));
        drop(queue);
        self.wake.notify_one();
    }
}

impl Transport for Port {
    fn send(&self, dst: usize, envelope: Envelope) -> Result<(), Error> {
        let (rank, destination) = (envelope.src, dst);
        let refuse = |message: String| Error::Transport { rank, destination, message };
        let (head, whole) = wire::encode(&envelope, INLINE).map_err(|error| refuse(error.to_string()))?;
        let payload = (!whole).then_some(envelope.payload);
        let mut queue = self.lock();
        if let Some(message) = &queue.closed {
            return Err(refuse(message.clone()));
        }
        self.sent.fetch_add(1, Ordering::AcqRel);
        queue.orders.push_back(Order::Send { dst, head, payload });
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    fn ended(&self, _rank: usize, failure: Option<&RanksError>) {
        // A failure ends the job, which tells the others.
        if failure.is_none() {
            self.order(Order::End);
        }
    }
}

/// A message that another rank has begun to send, in the order of that rank's messages.
enum Stage {
    /// The head is being received.
    Head(Vec<u8>),
    /// The head is there, its turn has not come.
    Waits(Vec<u8>),
    /// The elements are being received, in so many more parts.
    Elements {
        announced: Announced,
        memory: Arriving,
        left: usize,
    },
    /// It waits for earlier ones of the same kind.
    Ready(Envelope),
    Ended,
    Delivered,
}

impl Stage {
    /// What orders it among the messages of its sender.
    fn key(&self) -> Option<(u64, Tag)> {
        match self {
            Stage::Elements { announced, .. } => Some((announced.group, announced.tag)),
            Stage::Ready(envelope) => Some((envelope.group, envelope.tag)),
            Stage::Head(_) | Stage::Waits(_) | Stage::Ended | Stage::Delivered => None,
        }
    }
}

#[derive(Default)]
struct Source {
    /// Number of the first of `stages`, counted from the first message.
    first: u64,
    stages: VecDeque<Stage>,
    ended: bool,
}

/// What a request belongs to.
#[derive(Clone, Copy)]
enum Owner {
    Send(u64),
    Receive { source: usize, number: u64 },
}

/// Keeps what is being sent where it is.
struct Sending {
    left: usize,
    _head: Vec<u8>,
    _payload: Option<Payload>,
}

/// The engine's own state; it lives on the thread that has initialised MPI.
pub(crate) struct Engine {
    mpi: Mpi,
    port: Arc<Port>,
    world: Arc<World>,
    options: Options,
    requests: Vec<Request>,
    lens: Vec<Option<usize>>,
    owners: Vec<Owner>,
    sending: HashMap<u64, Sending>,
    next_send: u64,
    sources: Vec<Source>,
    ending: bool,
}

impl Engine {
    pub fn new(mpi: Mpi, port: Arc<Port>, world: Arc<World>, options: Options) -> Self {
        let mut sources: Vec<Source> = (0..mpi.size).map(|_| Source::default()).collect();
        sources[mpi.rank].ended = true;
        Engine {
            mpi,
            port,
            world,
            options,
            requests: Vec::new(),
            lens: Vec::new(),
            owners: Vec::new(),
            sending: HashMap::new(),
            next_send: 0,
            sources,
            ending: false,
        }
    }

    /// Runs until every rank has ended, then ends MPI. After an error it only waits to be told how to end.
    pub fn run(mut self) -> Result<(), Fault> {
        match self.work() {
            Ok(()) => {
                let mut queue = self.port.lock();
                queue.closed = Some("MPI has ended".into());
                let late = std::mem::take(&mut queue.orders);
                drop(queue);
                drop(late);
                self.mpi.finish()
            }
            Err(fault) => {
                let rank = self.mpi.rank;
                self.port.lock().closed = Some(fault.to_string());
                self.world.fail(rank, "the messages between processes", fault.to_string());
                let aborted = self.wait_for_the_end();
                // Requests may be under way still: what they read and write stays.
                std::mem::forget(self);
                aborted.and(Err(fault))
            }
        }
    }

    fn wait_for_the_end(&mut self) -> Result<(), Fault> {
        while !self.ending {
            let mut queue = self.port.lock();
            let order = match queue.orders.pop_front() {
                Some(order) => order,
                None => {
                    drop(self.port.wake.wait(queue).unwrap_or_else(PoisonError::into_inner));
                    continue;
                }
            };
            drop(queue);
            match order {
                Order::Abort(status) => self.mpi.abort(status)?,
                Order::End => self.ending = true,
                Order::Send { .. } | Order::Call(_) => {}
            }
        }
        Ok(())
    }

    fn work(&mut self) -> Result<(), Fault> {
        let mut idle = Idle::new();
        loop {
            let mut busy = false;
            let orders = std::mem::take(&mut self.port.lock().orders);
            for order in orders {
                busy = true;
                match order {
                    Order::Send { dst, head, payload } => self.begin(dst, head, payload)?,
                    Order::Call(call) => call(&self.mpi),
                    Order::End => {
                        self.ending = true;
                        let (rank, size) = (self.mpi.rank, self.mpi.size);
                        for dst in (0..size).filter(|&dst| dst != rank) {
                            self.begin(dst, wire::encode_ended(), None)?;
                        }
                    }
                    Order::Abort(status) => self.mpi.abort(status)?,
                }
            }
            while let Some(matched) = self.mpi.improbe(HEAD_TAG)? {
                busy = true;
                let (source, len) = (matched.source, matched.len);
                let mut head = vec![0; len];
                // SAFETY: the vector keeps its memory when it is moved into the stage, where nobody touches it before the
                // request is complete; after an error the stages are leaked.
                let request = unsafe { self.mpi.imrecv(matched, head.as_mut_ptr())? };
                let from = &mut self.sources[source];
                let number = from.first + from.stages.len() as u64;
                from.stages.push_back(Stage::Head(head));
                self.watch(request, Some(len), Owner::Receive { source, number });
            }
            if !self.requests.is_empty() {
                busy |= self.collect()?;
            }
            if self.ending && self.requests.is_empty() && self.sources.iter().all(|s| s.ended && s.stages.is_empty()) {
                return Ok(());
            }
            if busy {
                idle.busy();
            } else {
                let waits = self.ending || self.world.waits(self.mpi.rank).0;
                idle.pause(&self.port, waits, !self.requests.is_empty());
            }
        }
    }

    fn watch(&mut self, request: Request, len: Option<usize>, owner: Owner) {
        self.requests.push(request);
        self.lens.push(len);
        self.owners.push(owner);
    }

    fn begin(&mut self, dst: usize, head: Vec<u8>, payload: Option<Payload>) -> Result<(), Fault> {
        let number = self.next_send;
        self.next_send += 1;
        let chunk = self.options.chunk_bytes;
        let parts = payload.as_ref().map_or(0, |payload| payload.bytes().len().div_ceil(chunk));
        // What is sent is kept before the first request is made of it, so that an error leaks it with the rest.
        let kept = self.sending.entry(number).or_insert(Sending { left: 1 + parts, _head: head, _payload: payload });
        // SAFETY: head and payload lie still until `collect` has seen all requests of this number complete; both are vectors,
        // whose elements stay where they are when the map moves its values.
        unsafe {
            let mut requests = vec![self.mpi.isend(&kept._head, dst, HEAD_TAG)?];
            for part in kept._payload.iter().flat_map(|payload| payload.bytes().chunks(chunk)) {
                requests.push(self.mpi.isend(part, dst, PART_TAG)?);
            }
            for request in requests {
                self.watch(request, None, Owner::Send(number));
            }
        }
        Ok(())
    }

    /// Deals with requests that have completed; says whether there were any.
    fn collect(&mut self) -> Result<bool, Fault> {
        let mut done = self.mpi.test_some(&mut self.requests, &self.lens)?;
        if done.is_empty() {
            return Ok(false);
        }
        done.sort_unstable_by(|a, b| b.cmp(a));
        let mut received: Vec<(usize, u64)> = Vec::new();
        for index in done {
            self.requests.swap_remove(index);
            self.lens.swap_remove(index);
            match self.owners.swap_remove(index) {
                Owner::Send(number) => {
                    if let Some(sending) = self.sending.get_mut(&number) {
                        sending.left -= 1;
                        if sending.left == 0 {
                            self.sending.remove(&number);
                        }
                    }
                }
                Owner::Receive { source, number } => received.push((source, number)),
            }
        }
        for &(source, number) in &received {
            let from = &mut self.sources[source];
            let at = (number - from.first) as usize;
            let Some(stage) = from.stages.get_mut(at) else { continue };
            *stage = match std::mem::replace(stage, Stage::Delivered) {
                Stage::Head(head) => Stage::Waits(head),
                Stage::Elements { announced, memory, left: 1 } => {
                    // SAFETY: all parts, which together are all bytes, have come in full.
                    Stage::Ready(announced.complete(source, unsafe { memory.arrived() }))
                }
                Stage::Elements { announced, memory, left } => Stage::Elements { announced, memory, left: left - 1 },
                other => other,
            };
        }
        received.dedup_by_key(|(source, _)| *source);
        for (source, _) in received {
            self.advance(source)?;
        }
        Ok(true)
    }

    /// Begins to receive the elements of messages whose heads are there, and delivers what is complete, in the order of the sender.
    fn advance(&mut self, source: usize) -> Result<(), Fault> {
        for at in 0..self.sources[source].stages.len() {
            let stage = &mut self.sources[source].stages[at];
            let Stage::Waits(head) = stage else {
                if matches!(stage, Stage::Head(_)) {
                    break;
                }
                continue;
            };
            *stage = match wire::decode(head, source).map_err(foreign)? {
                Head::Whole(envelope) => Stage::Ready(envelope),
                Head::Ended => Stage::Ended,
                Head::Follows(announced) => {
                    let memory = Arriving::new(announced.align, announced.bytes).map_err(foreign)?;
                    let left = announced.bytes.div_ceil(self.options.chunk_bytes);
                    *stage = Stage::Elements { announced, memory, left };
                    self.receive_parts(source, at)?;
                    continue;
                }
            };
        }
        self.deliver(source)
    }

    fn receive_parts(&mut self, source: usize, at: usize) -> Result<(), Fault> {
        let from = &mut self.sources[source];
        let number = from.first + at as u64;
        let Some(Stage::Elements { memory, .. }) = from.stages.get_mut(at) else { return Ok(()) };
        let (start, bytes, chunk) = (memory.start(), memory.len(), self.options.chunk_bytes);
        let mut requests = Vec::new();
        for offset in (0..bytes).step_by(chunk) {
            let len = chunk.min(bytes - offset);
            // SAFETY: the part lies inside the memory, which stays where it is, untouched, until all parts have come; after an
            // error the stages are leaked.
            let request = unsafe { self.mpi.irecv(start.add(offset), len, source, PART_TAG)? };
            requests.push((request, len));
        }
        for (request, len) in requests {
            self.watch(request, Some(len), Owner::Receive { source, number });
        }
        Ok(())
    }

    fn deliver(&mut self, source: usize) -> Result<(), Fault> {
        let from = &mut self.sources[source];
        let mut held: Vec<(u64, Tag)> = Vec::new();
        for at in 0..from.stages.len() {
            let stage = &mut from.stages[at];
            let key = stage.key();
            match stage {
                Stage::Head(_) | Stage::Waits(_) => break,
                Stage::Delivered => {}
                Stage::Elements { .. } => held.extend(key),
                Stage::Ready(_) if key.is_some_and(|key| held.contains(&key)) => {}
                Stage::Ready(_) => {
                    if let Stage::Ready(envelope) = std::mem::replace(stage, Stage::Delivered) {
                        self.world.deliver(self.mpi.rank, envelope).map_err(foreign)?;
                        self.port.received.fetch_add(1, Ordering::AcqRel);
                    }
                }
                // Everything before it has been delivered once nothing is held.
                Stage::Ended if held.is_empty() => {
                    *stage = Stage::Delivered;
                    from.ended = true;
                    self.world.ended(source);
                }
                Stage::Ended => {}
            }
        }
        while matches!(from.stages.front(), Some(Stage::Delivered)) {
            from.stages.pop_front();
            from.first += 1;
        }
        Ok(())
    }
}

/// What came is not what this program sends.
fn foreign(error: Error) -> Fault {
    Fault { call: "receiving", code: 0, text: error.to_string() }
}

/// How long to rest when nothing happens: an eighth of the time for which nothing has happened, so that what comes is late by no
/// more than that. Sleeps that only doubled would let two ranks that answer each other wait for each other's sleeps for ever.
struct Idle {
    since: Option<Instant>,
}

impl Idle {
    const SHORTEST: Duration = Duration::from_micros(20);
    const LONGEST: Duration = Duration::from_millis(1);
    /// Yields for so long while somebody waits, and while elements are under way, which move only when MPI is called.
    const WAITED_FOR: Duration = Duration::from_micros(200);
    const UNDER_WAY: Duration = Duration::from_millis(20);

    fn new() -> Self {
        Idle { since: None }
    }

    fn busy(&mut self) {
        self.since = None;
    }

    fn pause(&mut self, port: &Port, waited_for: bool, under_way: bool) {
        let idle = self.since.get_or_insert_with(Instant::now).elapsed();
        let yields = match (under_way, waited_for) {
            (true, _) => Self::UNDER_WAY,
            (false, true) => Self::WAITED_FOR,
            (false, false) => Duration::ZERO,
        };
        if idle < yields {
            std::thread::yield_now();
            return;
        }
        let queue = port.lock();
        if queue.orders.is_empty() {
            let sleep = (idle / 8).clamp(Self::SHORTEST, Self::LONGEST);
            drop(port.wake.wait_timeout(queue, sleep).unwrap_or_else(PoisonError::into_inner));
        }
    }
}
