//! Rows travel to their experts: once to each other node, from there to the ranks of the node, and into expert-major order.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use bytemuck::allocation::try_zeroed_vec;
use v3_ranks::{Comm, Step, Task, run_task};

use crate::cpu::{RowMap, gather_rows, stock};
use crate::error::{Error, Result};
use crate::exchange::{Arrived, Exchange, Mover};
use crate::in_flight::{drive, finished};
use crate::layout::Layout;
use crate::one_pass::OnePass;
use crate::plan::{Plan, PlanOptions};
use crate::planning::Planning;
use crate::router::Routing;

mod sealed {
    use std::ops::Range;

    use bytemuck::Pod;

    use crate::cpu::RowMap;
    use crate::error::Result;

    /// How rows are checked, packed and laid out.
    pub trait Rows: Sized + Send {
        type Element: Pod + Send + Sync;
        fn check(&self, rows: usize) -> Result<()>;
        /// Elements of a row in a message.
        fn message_row(&self) -> usize;
        /// Rows of the same kind, all zero.
        fn zeros(&self, rows: usize) -> Result<Self>;
        fn pack(&self, list: &[u32]) -> Result<Vec<Self::Element>>;
        fn scatter_own(&self, range: Range<usize>, map: &RowMap, out: &mut Self) -> Result<()>;
        fn scatter(message: &[Self::Element], first: usize, map: &RowMap, out: &mut Self) -> Result<()>;
        /// The same by the bytes: of a row, of some rows behind `message`, and of rows that begin with the first of `map`.
        fn row_bytes(&self) -> usize;
        fn pack_bytes(&self, list: &[u32], message: &mut Vec<u8>);
        fn scatter_bytes(message: &[u8], map: &RowMap, out: &mut Self) -> Result<()>;
    }
}

/// Rows that travel: [`Rows`] or [`Pairs`].
pub trait Payload: sealed::Rows {}

impl<T: Pod + Send + Sync> Payload for Rows<T> {}
impl<T: Pod + Send + Sync, U: Pod + Send + Sync> Payload for Pairs<T, U> {}

/// Rows of one part: `[rows, row_len]` of any plain type, such as f32 or bf16.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rows<T> {
    /// The rows, one after the other.
    pub data: Vec<T>,
    /// Elements of a row.
    pub row_len: usize,
}

/// Rows of two parts, such as E4M3 values `[rows, row_len]` and their scales `[rows, side_len]`. Both travel in one message, and a row counts once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pairs<T, U> {
    /// The first parts, one after the other.
    pub data: Vec<T>,
    /// Elements of a first part.
    pub row_len: usize,
    /// The second parts, one after the other.
    pub side: Vec<U>,
    /// Elements of a second part.
    pub side_len: usize,
}

impl<T: Pod + Send + Sync> sealed::Rows for Rows<T> {
    type Element = T;

    fn check(&self, rows: usize) -> Result<()> {
        check_len("rows", self.data.len(), rows, self.row_len)
    }

    fn message_row(&self) -> usize {
        self.row_len
    }

    fn zeros(&self, rows: usize) -> Result<Self> {
        Ok(Rows { data: zero_rows(rows, self.row_len)?, row_len: self.row_len })
    }

    fn pack(&self, list: &[u32]) -> Result<Vec<T>> {
        pack(&self.data, self.row_len, list)
    }

    fn scatter_own(&self, range: Range<usize>, map: &RowMap, out: &mut Self) -> Result<()> {
        scatter_own(&self.data, self.row_len, range, map, &mut out.data)
    }

    fn scatter(message: &[T], first: usize, map: &RowMap, out: &mut Self) -> Result<()> {
        map.scatter(first, message, out.row_len, &mut out.data)
    }

    fn row_bytes(&self) -> usize {
        self.row_len.saturating_mul(size_of::<T>())
    }

    fn pack_bytes(&self, list: &[u32], message: &mut Vec<u8>) {
        for &row in list {
            message.extend_from_slice(bytemuck::cast_slice(&self.data[row as usize * self.row_len..][..self.row_len]));
        }
    }

    fn scatter_bytes(message: &[u8], map: &RowMap, out: &mut Self) -> Result<()> {
        map.scatter(0, message, out.row_bytes(), bytemuck::cast_slice_mut::<T, u8>(&mut out.data))
    }
}

impl<T: Pod + Send + Sync, U: Pod + Send + Sync> sealed::Rows for Pairs<T, U> {
    type Element = u8;

    fn check(&self, rows: usize) -> Result<()> {
        check_len("rows", self.data.len(), rows, self.row_len)?;
        check_len("side rows", self.side.len(), rows, self.side_len)
    }

    fn message_row(&self) -> usize {
        // Lengths without rows may be anything.
        self.row_len.saturating_mul(size_of::<T>()).saturating_add(self.side_len.saturating_mul(size_of::<U>()))
    }

    fn zeros(&self, rows: usize) -> Result<Self> {
        let (row_len, side_len) = (self.row_len, self.side_len);
        Ok(Pairs { data: zero_rows(rows, row_len)?, row_len, side: zero_rows(rows, side_len)?, side_len })
    }

    fn pack(&self, list: &[u32]) -> Result<Vec<u8>> {
        Ok(pack_pairs((&self.data, self.row_len), (&self.side, self.side_len), list))
    }

    fn scatter_own(&self, range: Range<usize>, map: &RowMap, out: &mut Self) -> Result<()> {
        scatter_own(&self.data, self.row_len, range.clone(), map, &mut out.data)?;
        scatter_own(&self.side, self.side_len, range, map, &mut out.side)
    }

    fn scatter(message: &[u8], first: usize, map: &RowMap, out: &mut Self) -> Result<()> {
        scatter_pairs(message, first, map, (&mut out.data, out.row_len), (&mut out.side, out.side_len))
    }

    fn row_bytes(&self) -> usize {
        self.message_row()
    }

    fn pack_bytes(&self, list: &[u32], message: &mut Vec<u8>) {
        append_pairs((&self.data, self.row_len), (&self.side, self.side_len), list, message);
    }

    fn scatter_bytes(message: &[u8], map: &RowMap, out: &mut Self) -> Result<()> {
        <Self as sealed::Rows>::scatter(message, 0, map, out)
    }
}

/// Copies of some rows, as a message.
pub(crate) fn pack<T: Pod + Send + Sync>(rows: &[T], row_len: usize, list: &[u32]) -> Result<Vec<T>> {
    let mut message = stock::take(list.len() * row_len);
    gather_rows(list, rows, row_len, &mut message)?;
    Ok(message)
}

/// [`pack`] of rows of two parts: row by row the bytes of one and then those of the other, so that a gateway need not know of them.
fn pack_pairs<T: Pod, U: Pod>(rows: (&[T], usize), side: (&[U], usize), list: &[u32]) -> Vec<u8> {
    let mut message = Vec::with_capacity(list.len() * (rows.1 * size_of::<T>() + side.1 * size_of::<U>()));
    append_pairs(rows, side, list, &mut message);
    message
}

fn append_pairs<T: Pod, U: Pod>(
    (rows, len): (&[T], usize),
    (side, side_len): (&[U], usize),
    list: &[u32],
    message: &mut Vec<u8>,
) {
    for &row in list {
        message.extend_from_slice(bytemuck::cast_slice(&rows[row as usize * len..][..len]));
        message.extend_from_slice(bytemuck::cast_slice(&side[row as usize * side_len..][..side_len]));
    }
}

fn scatter_own<T: Pod + Send + Sync>(rows: &[T], row_len: usize, range: Range<usize>, map: &RowMap, out: &mut [T]) -> Result<()> {
    map.scatter(range.start, &rows[range.start * row_len..range.end * row_len], row_len, out)
}

/// Lays out rows as [`pack_pairs`] makes them.
fn scatter_pairs<T: Pod, U: Pod>(
    message: &[u8],
    first: usize,
    map: &RowMap,
    (out, row_len): (&mut [T], usize),
    (side, side_len): (&mut [U], usize),
) -> Result<()> {
    let (row_bytes, side_bytes) = (row_len * size_of::<T>(), side_len * size_of::<U>());
    let (mut rows, mut sides) = (Vec::with_capacity(message.len()), Vec::with_capacity(message.len()));
    for row in message.chunks_exact((row_bytes + side_bytes).max(1)) {
        let (row, side) = row.split_at(row_bytes);
        rows.extend_from_slice(row);
        sides.extend_from_slice(side);
    }
    map.scatter(first, &rows, row_bytes, bytemuck::cast_slice_mut::<T, u8>(out))?;
    map.scatter(first, &sides, side_bytes, bytemuck::cast_slice_mut::<U, u8>(side))
}

/// Sends a payload and lays out what comes.
struct Owned<'a, P> {
    sent: &'a P,
    rows: &'a mut P,
}

impl<P: Payload> Mover<P::Element> for Owned<'_, P> {
    fn pack(&self, rows: &[u32]) -> Result<Vec<P::Element>> {
        self.sent.pack(rows)
    }

    fn deliver(&mut self, rows: Arrived<'_, P::Element>, first: usize, map: &RowMap) -> Result<()> {
        match rows {
            Arrived::Own(range) => self.sent.scatter_own(range, map, self.rows),
            Arrived::Message(message) => P::scatter(message, first, map, self.rows),
        }
    }
}

/// What a dispatch comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatched<P> {
    /// The rows of this rank's experts, `[R, ..]`: see [`Plan::dispatch`].
    pub rows: P,
    /// What was sent, handed back.
    pub sent: P,
}

/// A dispatch in flight: [`Plan::dispatch_start`]. Nothing leaves before it is polled for the first time.
#[derive(Debug)]
pub struct Dispatch<P> {
    plan: Arc<Plan>,
    exchange: Exchange,
    /// What is sent and what has come; `None` when it has been handed out.
    payload: Option<(P, P)>,
}

impl<P: Payload> Task for Dispatch<P> {
    type Output = Dispatched<P>;
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<Dispatched<P>>> {
        let Some((sent, rows)) = &mut self.payload else { return Err(finished("a dispatch")) };
        Ok(match self.exchange.poll(comm, &self.plan, &mut Owned { sent, rows })? {
            Step::Waiting(messages) => Step::Waiting(messages),
            Step::Done(()) => {
                let (sent, rows) = self.payload.take().ok_or_else(|| finished("a dispatch"))?;
                Step::Done(Dispatched { rows, sent })
            }
        })
    }
}

impl<P: Payload> Dispatch<P> {
    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Waits for the rows of this rank's experts.
    ///
    /// # Errors
    /// When other ranks send rows of another length, or another rank has failed.
    pub fn finish(self, comm: &Comm) -> Result<Dispatched<P>> {
        run_task(comm, self)
    }
}

/// A plan and its first dispatch in flight, as one: [`Plan::start_dispatch`].
#[derive(Debug)]
pub struct PlannedDispatch<P> {
    state: State<P>,
}

#[derive(Debug)]
enum State<P> {
    Planning { planning: Box<Planning>, exchange: Exchange, sent: P },
    OnePass(Box<OnePass<P>>),
    Dispatching(Dispatch<P>),
    Finished,
}

impl<P: Payload> Task for PlannedDispatch<P> {
    type Output = (Arc<Plan>, Dispatched<P>);
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<Self::Output>> {
        loop {
            match std::mem::replace(&mut self.state, State::Finished) {
                State::Planning { mut planning, mut exchange, sent } => {
                    let step = planning.advance(comm)?;
                    // What this rank sends follows from its own routing: it leaves behind the plan's messages.
                    if let Some(parts) = planning.parts() {
                        let mover = Sender(&sent);
                        while exchange.send_chunks(comm, &parts.sends, &parts.options, &parts.counters, &mover)? {}
                    }
                    match step {
                        Step::Waiting(messages) => {
                            self.state = State::Planning { planning, exchange, sent };
                            return Ok(Step::Waiting(messages));
                        }
                        Step::Done(plan) => {
                            let rows = sent.zeros(plan.expert_rows())?;
                            let dispatch = Dispatch { plan: Arc::new(plan), exchange, payload: Some((sent, rows)) };
                            self.state = State::Dispatching(dispatch);
                        }
                    }
                }
                State::Dispatching(mut dispatch) => {
                    return Ok(match dispatch.poll(comm)? {
                        Step::Done(dispatched) => Step::Done((dispatch.plan, dispatched)),
                        Step::Waiting(messages) => {
                            self.state = State::Dispatching(dispatch);
                            Step::Waiting(messages)
                        }
                    });
                }
                State::OnePass(mut pass) => {
                    let step = pass.poll(comm)?;
                    if matches!(step, Step::Waiting(_)) {
                        self.state = State::OnePass(pass);
                    }
                    return Ok(step);
                }
                State::Finished => return Err(finished("a dispatch")),
            }
        }
    }
}

impl<P: Payload> PlannedDispatch<P> {
    /// Waits for the plan and the rows of this rank's experts.
    ///
    /// # Errors
    /// As [`Plan::with_options`] and [`Dispatch::finish`].
    pub fn finish(self, comm: &Comm) -> Result<(Arc<Plan>, Dispatched<P>)> {
        run_task(comm, self)
    }
}

/// Only sends.
struct Sender<'a, P>(&'a P);

impl<P: Payload> Mover<P::Element> for Sender<'_, P> {
    fn pack(&self, rows: &[u32]) -> Result<Vec<P::Element>> {
        self.0.pack(rows)
    }

    fn deliver(&mut self, _: Arrived<'_, P::Element>, _: usize, _: &RowMap) -> Result<()> {
        Ok(())
    }
}

/// Borrowed rows of one part.
struct Borrowed<'a, T> {
    sent: &'a [T],
    rows: &'a mut [T],
    row_len: usize,
}

impl<T: Pod + Send + Sync> Mover<T> for Borrowed<'_, T> {
    fn pack(&self, rows: &[u32]) -> Result<Vec<T>> {
        pack(self.sent, self.row_len, rows)
    }

    fn deliver(&mut self, rows: Arrived<'_, T>, first: usize, map: &RowMap) -> Result<()> {
        match rows {
            Arrived::Own(range) => scatter_own(self.sent, self.row_len, range, map, self.rows),
            Arrived::Message(message) => map.scatter(first, message, self.row_len, self.rows),
        }
    }
}

/// Borrowed rows of two parts.
struct BorrowedPairs<'a, T, U> {
    sent: (&'a [T], &'a [U]),
    rows: (&'a mut [T], &'a mut [U]),
    row_len: (usize, usize),
}

impl<T: Pod + Send + Sync, U: Pod + Send + Sync> Mover<u8> for BorrowedPairs<'_, T, U> {
    fn pack(&self, rows: &[u32]) -> Result<Vec<u8>> {
        Ok(pack_pairs((self.sent.0, self.row_len.0), (self.sent.1, self.row_len.1), rows))
    }

    fn deliver(&mut self, rows: Arrived<'_, u8>, first: usize, map: &RowMap) -> Result<()> {
        let (row_len, side_len) = self.row_len;
        match rows {
            Arrived::Own(range) => {
                scatter_own(self.sent.0, row_len, range.clone(), map, self.rows.0)?;
                scatter_own(self.sent.1, side_len, range, map, self.rows.1)
            }
            Arrived::Message(bytes) => {
                let (rows, side) = &mut self.rows;
                scatter_pairs(bytes, first, map, (rows, row_len), (side, side_len))
            }
        }
    }
}

impl Plan {
    /// Brings this rank's rows `[T, row_len]` to their experts and returns the rows of this rank's experts `[R, row_len]`, expert by expert
    /// (see [`offsets`](Plan::offsets)), those of one expert by source rank, then by token. Padding rows are zero. The elements may be anything:
    /// f32, bf16, E4M3, bytes.
    ///
    /// # Errors
    /// When `rows` has another length than T rows, other ranks have another `row_len`, or another rank has failed.
    pub fn dispatch<T: Pod + Send + Sync>(&self, comm: &Comm, rows: &[T], row_len: usize) -> Result<Vec<T>> {
        check_len("rows", rows.len(), self.tokens, row_len)?;
        let mut out = zero_rows(self.expert_rows(), row_len)?;
        self.dispatch_to(comm, rows, row_len, &mut out)?;
        Ok(out)
    }

    /// [`dispatch`](Plan::dispatch) into memory of the caller, `[R, row_len]`.
    ///
    /// # Errors
    /// As [`dispatch`](Plan::dispatch), and when `out` has another length than R rows.
    pub fn dispatch_into<T: Pod + Send + Sync>(&self, comm: &Comm, rows: &[T], row_len: usize, out: &mut [T]) -> Result<()> {
        check_len("dispatched rows", out.len(), self.expert_rows(), row_len)?;
        for padding in &self.padding {
            out[padding.start * row_len..padding.end * row_len].fill(T::zeroed());
        }
        self.dispatch_to(comm, rows, row_len, out)
    }

    fn dispatch_to<T: Pod + Send + Sync>(&self, comm: &Comm, rows: &[T], row_len: usize, out: &mut [T]) -> Result<()> {
        check_len("rows", rows.len(), self.tokens, row_len)?;
        self.check_group(comm)?;
        let mut exchange = Exchange::new(comm.next_sequence(), row_len);
        let mut mover = Borrowed { sent: rows, rows: out, row_len };
        drive(comm, |comm| exchange.poll(comm, self, &mut mover))
    }

    /// [`dispatch`](Plan::dispatch) of rows in two parts, such as E4M3 values and their scales, both in the same messages. Each row counts
    /// once in [`traffic`](Plan::traffic), with the bytes of both parts.
    ///
    /// # Errors
    /// As [`dispatch`](Plan::dispatch), for either part.
    pub fn dispatch_pair<T: Pod + Send + Sync, U: Pod + Send + Sync>(
        &self,
        comm: &Comm,
        (rows, row_len): (&[T], usize),
        (side, side_len): (&[U], usize),
    ) -> Result<(Vec<T>, Vec<U>)> {
        check_len("rows", rows.len(), self.tokens, row_len)?;
        check_len("side rows", side.len(), self.tokens, side_len)?;
        self.check_group(comm)?;
        let mut out = zero_rows(self.expert_rows(), row_len)?;
        let mut side_out = zero_rows(self.expert_rows(), side_len)?;
        let mut exchange = Exchange::new(comm.next_sequence(), row_len * size_of::<T>() + side_len * size_of::<U>());
        let mut mover = BorrowedPairs { sent: (rows, side), rows: (&mut out, &mut side_out), row_len: (row_len, side_len) };
        drive(comm, |comm| exchange.poll(comm, self, &mut mover))?;
        Ok((out, side_out))
    }

    /// [`dispatch`](Plan::dispatch) or [`dispatch_pair`](Plan::dispatch_pair) in flight, as a [task](v3_ranks::Task) that owns what it sends.
    /// Any number of exchanges of any plans of a group may be in flight, and may end in any order; all ranks start them in the same order.
    ///
    /// # Errors
    /// When `rows` is not T rows, or the group is not the plan's.
    pub fn dispatch_start<P: Payload>(self: &Arc<Self>, comm: &Comm, rows: P) -> Result<Dispatch<P>> {
        rows.check(self.tokens)?;
        self.check_group(comm)?;
        let exchange = Exchange::new(comm.next_sequence(), rows.message_row());
        let out = rows.zeros(self.expert_rows())?;
        Ok(Dispatch { plan: Arc::clone(self), exchange, payload: Some((rows, out)) })
    }

    /// [`start`](Plan::start) and [`dispatch_start`](Plan::dispatch_start) in one: this rank's rows leave right behind what it tells others of its routing,
    /// without waiting for theirs, so that nothing has to be waited for in between.
    ///
    /// With a [`capacity`](PlanOptions::capacity) there is no exchange of routing or counts at all: each message says itself how many rows it brings and where
    /// they belong, and rows are put into their fixed places as they come. Then the plan is what has been learned on the way. It costs memory for the
    /// worst case, `slots_per_rank * ep_size * capacity` rows on each rank, whatever comes.
    ///
    /// # Errors
    /// As [`with_options`](Plan::with_options), as far as it concerns this rank's arguments, and when `rows` is not one row for each token.
    pub fn start_dispatch<P: Payload>(
        comm: &Comm,
        layout: &Layout,
        routing: &Routing,
        options: PlanOptions,
        rows: P,
    ) -> Result<PlannedDispatch<P>> {
        rows.check(routing.tokens)?;
        if options.capacity.is_some() {
            let pass = OnePass::new(comm, layout, routing, options, rows)?;
            return Ok(PlannedDispatch { state: State::OnePass(Box::new(pass)) });
        }
        let planning = Planning::new(comm, layout, routing, options)?;
        let exchange = Exchange::new(comm.next_sequence(), rows.message_row());
        Ok(PlannedDispatch { state: State::Planning { planning: Box::new(planning), exchange, sent: rows } })
    }
}

/// Memory for rows of a length that the caller has chosen.
pub(crate) fn zero_rows<T: Pod>(rows: usize, row_len: usize) -> Result<Vec<T>> {
    let memory = rows.checked_mul(row_len).and_then(|len| try_zeroed_vec(len).ok());
    memory.ok_or_else(|| Error::Unsupported { what: format!("{rows} rows of {row_len} elements: they do not fit into memory") })
}

pub(crate) fn check_len(what: &'static str, len: usize, rows: usize, row_len: usize) -> Result<()> {
    if rows.checked_mul(row_len) == Some(len) {
        return Ok(());
    }
    Err(Error::Shape { what, expected: format!("{rows} rows of {row_len}"), got: format!("{len} elements") })
}
