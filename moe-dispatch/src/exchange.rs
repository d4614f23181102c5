//! The way from tokens to experts: each rank's rows to the gateways of other nodes and the ranks of its own, chunk by chunk, and on from a gateway
//! as they come.

use std::ops::Range;

use bytemuck::Pod;
use v3_ranks::{Comm, Step};

use crate::cpu::{RowMap, stock};
use crate::error::{Error, Result};
use crate::in_flight::Pending;
use crate::plan::{Counters, Kind, Plan, PlanOptions, Send, tag};

/// What an exchange sends, and what it does with rows that have come.
pub(crate) trait Mover<E> {
    /// A message of some of this rank's rows.
    fn pack(&self, rows: &[u32]) -> Result<Vec<E>>;
    /// Puts this rank's own rows, or rows that have come, where they belong: they are row `first` of `map` and those that follow.
    fn deliver(&mut self, rows: Arrived<'_, E>, first: usize, map: &RowMap) -> Result<()>;
}

/// Rows to deliver.
pub(crate) enum Arrived<'a, E> {
    /// Some of this rank's own.
    Own(Range<usize>),
    /// As another rank packed them.
    Message(&'a [E]),
}

/// Rows of one source and channel, on their way to this rank.
#[derive(Debug)]
struct Stream {
    inbound: usize,
    channel: usize,
    arrived: usize,
    /// Rows passed on to each rank.
    forwarded: Vec<usize>,
}

/// How far one exchange has come.
#[derive(Debug)]
pub(crate) struct Exchange {
    sequence: u64,
    /// Elements of a row in a message.
    row_len: usize,
    /// The next chunk of every list to send.
    chunk: usize,
    sent: bool,
    /// Own rows delivered.
    own: usize,
    streams: Option<Vec<Stream>>,
}

fn part(send: &Send, channel: usize) -> &[u32] {
    &send.rows[send.channels[channel] as usize..send.channels[channel + 1] as usize]
}

/// Some of the rows of a list: those of one message.
fn chunk_of<'a>(rows: &'a [u32], chunk: usize, options: &PlanOptions) -> &'a [u32] {
    let rest = rows.get(chunk.saturating_mul(options.chunk_rows)..).unwrap_or(&[]);
    &rest[..rest.len().min(options.chunk_rows)]
}

impl Exchange {
    pub fn new(sequence: u64, row_len: usize) -> Self {
        Exchange { sequence, row_len, chunk: 0, sent: false, own: 0, streams: None }
    }

    /// Sends the next chunk of every destination and channel in turn; false when there are no more.
    pub fn send_chunks<E: Pod + std::marker::Send>(
        &mut self,
        comm: &Comm,
        sends: &[Send],
        options: &PlanOptions,
        counters: &Counters,
        mover: &impl Mover<E>,
    ) -> Result<bool> {
        if self.sent || self.row_len == 0 {
            return Ok(false);
        }
        let mut more = false;
        for channel in 0..options.channels {
            for send in sends {
                let rows = part(send, channel);
                let rows = chunk_of(rows, self.chunk, options);
                if rows.is_empty() {
                    continue;
                }
                more = true;
                let message = mover.pack(rows)?;
                counters.add(send.slow, rows.len(), size_of_val(message.as_slice()));
                comm.send_rows(send.to, tag(Kind::Rows, self.sequence, channel, comm.rank()), message, rows.len())?;
            }
        }
        self.chunk += 1;
        self.sent = !more;
        Ok(more)
    }

    /// Goes as far as it can.
    pub fn poll<E: Pod + std::marker::Send>(&mut self, comm: &Comm, plan: &Plan, mover: &mut impl Mover<E>) -> Result<Step<()>> {
        plan.check_group(comm)?;
        if self.row_len == 0 {
            return Ok(Step::Done(()));
        }
        let mut streams = self.streams.take().unwrap_or_else(|| {
            let mut streams = Vec::new();
            for (inbound, from) in plan.inbound.iter().enumerate() {
                let channels = (0..plan.options.channels).filter(|&c| from.channels[c] < from.channels[c + 1]);
                let forwarded = vec![0; from.forward.len()];
                streams.extend(channels.map(|channel| Stream { inbound, channel, arrived: 0, forwarded: forwarded.clone() }));
            }
            streams
        });
        // Own rows to lay out at a time.
        let piece = plan.options.chunk_rows.max(plan.tokens.div_ceil(8));
        loop {
            // Own rows that the next messages hold are laid out first, but for the first messages: read from memory while their copies are
            // written, and packed from the caches.
            if !self.sent && self.chunk > 0 {
                let lists = plan.sends.iter().flat_map(|send| (0..plan.options.channels).map(|channel| part(send, channel)));
                let next = lists.filter_map(|rows| chunk_of(rows, self.chunk, &plan.options).last().map(|&row| row as usize + 1));
                let end = next.max().unwrap_or(0).min(self.own + piece).min(plan.tokens);
                if self.own < end {
                    mover.deliver(Arrived::Own(self.own..end), self.own, &plan.own)?;
                    self.own = end;
                }
            }
            let mut progress = self.send_chunks(comm, &plan.sends, &plan.options, &plan.dispatched, mover)?;
            let mut failed = None;
            streams.retain_mut(|stream| {
                if failed.is_some() {
                    return true;
                }
                match self.receive(comm, plan, stream, mover) {
                    Ok((some, open)) => {
                        progress |= some;
                        open
                    }
                    Err(error) => {
                        failed = Some(error);
                        true
                    }
                }
            });
            if let Some(error) = failed {
                return Err(error);
            }
            if progress {
                continue;
            }
            if self.own < plan.tokens {
                // Rows that are here already fill the time in which others travel; a group of one has nothing else to do.
                let piece = if streams.is_empty() { plan.tokens } else { piece };
                let range = self.own..(self.own + piece).min(plan.tokens);
                self.own = range.end;
                mover.deliver(Arrived::Own(range.clone()), range.start, &plan.own)?;
                continue;
            }
            if streams.is_empty() {
                return Ok(Step::Done(()));
            }
            let wait = |stream: &Stream| {
                let inbound = &plan.inbound[stream.inbound];
                (inbound.from, tag(Kind::Rows, self.sequence, stream.channel, inbound.source))
            };
            let waiting: Pending = streams.iter().map(wait).collect();
            self.streams = Some(streams);
            return Ok(Step::Waiting(waiting));
        }
    }

    /// Takes what has come of a stream, passes it on and delivers it: whether something had come, and whether more will.
    fn receive<E: Pod + std::marker::Send>(
        &self,
        comm: &Comm,
        plan: &Plan,
        stream: &mut Stream,
        mover: &mut impl Mover<E>,
    ) -> Result<(bool, bool)> {
        let inbound = &plan.inbound[stream.inbound];
        let (channel, row_len) = (stream.channel, self.row_len);
        let (begin, end) = (inbound.channels[channel] as usize, inbound.channels[channel + 1] as usize);
        let tag = tag(Kind::Rows, self.sequence, channel, inbound.source);
        let mut some = false;
        while begin + stream.arrived < end {
            let Some(chunk) = comm.try_recv::<E>(inbound.from, tag)? else { return Ok((some, true)) };
            some = true;
            let first = begin + stream.arrived;
            let rows = chunk.len() / row_len;
            if rows == 0 || !chunk.len().is_multiple_of(row_len) || rows > end - first {
                return Err(Error::Shape {
                    what: "rows of another rank",
                    expected: format!("rows of {row_len} from rank {}", inbound.source),
                    got: format!("{} elements", chunk.len()),
                });
            }
            stream.arrived += rows;
            let longest = plan.options.chunk_rows;
            let (first_row, end_row) = (first as u32, (first + rows) as u32);
            for (send, done) in inbound.forward.iter().zip(&mut stream.forwarded) {
                let list = &part(send, channel)[*done..];
                let list = &list[..list.partition_point(|&row| row < end_row)];
                *done += list.len();
                for list in list.chunks(longest) {
                    let mut message = stock::take::<E>(list.len() * row_len);
                    for (to, &row) in message.chunks_exact_mut(row_len).zip(list) {
                        to.copy_from_slice(&chunk[(row - first_row) as usize * row_len..][..row_len]);
                    }
                    plan.dispatched.add(send.slow, list.len(), size_of_val(message.as_slice()));
                    comm.send_rows(send.to, tag, message, list.len())?;
                }
            }
            mover.deliver(Arrived::Message(&chunk), first, &inbound.delivery)?;
            stock::give(chunk);
        }
        Ok((some, false))
    }
}
