//! Planning and dispatching in one pass, when every row has a place that depends on nothing but the options: each message carries the routing of its rows.
//!
//! A message is four words (experts a token, rows, bytes of a row, whether it is the last of its channel), then the slots and the bits of the weights of
//! its rows, `[rows, k]` each, then the rows. Every rank sends at least one to each gateway and each rank of its node, and a gateway to each rank of its
//! own, for each channel.

use std::sync::Arc;

use v3_ranks::{Comm, Step};

use crate::cpu::RowMap;
use crate::dispatch::{Dispatched, Payload};
use crate::error::{Error, Result};
use crate::in_flight::{Pending, finished};
use crate::layout::Layout;
use crate::plan::block::{Block, check_slots, present};
use crate::plan::{FanOut, Kind, Parts, Placed, Plan, PlanOptions, Send, tag};
use crate::planning::{check_member, check_ranks};
use crate::router::Routing;

const HEADER: usize = 16;

/// Rows of one source and channel on their way to this rank.
#[derive(Debug)]
struct Stream {
    source: usize,
    from: usize,
    channel: usize,
    ended: bool,
    /// What has come of the routing.
    slots: Vec<u32>,
    weights: Vec<f32>,
    /// Rows that wait for those of earlier channels, which come before them.
    held: Vec<(Vec<u32>, Vec<u8>)>,
}

/// A plan and its first dispatch under way.
#[derive(Debug)]
pub(crate) struct OnePass<P> {
    sequence: u64,
    /// `None` when the result has been handed out.
    work: Option<(Parts, P, P)>,
    row_bytes: usize,
    result_rows: usize,
    /// The next place of each local slot and source.
    next: Vec<usize>,
    /// And how many it may still take.
    room: Vec<usize>,
    sent: bool,
    streams: Vec<Stream>,
}

/// The rows of a message and their routing.
struct Message<'a> {
    last: bool,
    slots: Vec<u32>,
    weights: Vec<f32>,
    rows: &'a [u8],
}

fn encode(block: &Block, row_bytes: usize, last: bool, copies: usize) -> Vec<u8> {
    let top_k = if block.rows() == 0 { 0 } else { block.slots.len() / block.rows() };
    let mut message = Vec::with_capacity(HEADER + 8 * block.slots.len() + copies * row_bytes);
    for word in [top_k as u32, block.rows() as u32, row_bytes as u32, u32::from(last)] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    message.extend_from_slice(bytemuck::cast_slice(&block.slots));
    message.extend_from_slice(bytemuck::cast_slice(&block.weights));
    message
}

fn decode<'a>(message: &'a [u8], parts: &Parts, row_bytes: usize) -> Result<Message<'a>> {
    let refuse = |expected: String, got: String| Err(Error::Shape { what: "rows of another rank", expected, got });
    let word = |bytes: &[u8; 4]| u32::from_ne_bytes(*bytes);
    let Some((header, rest)) = message.split_first_chunk::<HEADER>() else {
        return refuse(format!("{HEADER} bytes at least"), message.len().to_string());
    };
    let [top_k, rows, their_bytes, last] = [0, 1, 2, 3].map(|i| word(&[0, 1, 2, 3].map(|j| header[4 * i + j])));
    let rows = rows as usize;
    if rows > 0 && top_k as usize != parts.top_k || their_bytes as usize != row_bytes || last > 1 {
        let expected = format!("rows of {row_bytes} bytes for {} experts a token", parts.top_k);
        return refuse(expected, format!("{their_bytes} bytes for {top_k}"));
    }
    let entries = rows.checked_mul(4 * parts.top_k).filter(|n| n.checked_mul(2).is_some_and(|n| n <= rest.len()));
    let Some(entries) = entries else { return refuse(format!("the routing of {rows} rows"), format!("{} bytes", rest.len())) };
    let words = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(word).collect::<Vec<u32>>();
    let slots = words(&rest[..entries]);
    let weights = words(&rest[entries..2 * entries]).into_iter().map(f32::from_bits).collect();
    check_slots(&slots, parts.top_k, parts.layout.phy2log().len())?;
    Ok(Message { last: last == 1, slots, weights, rows: &rest[2 * entries..] })
}

/// A list in which rows follow their copies, without these.
fn distinct(list: &[u32]) -> Vec<u32> {
    let mut rows = list.to_vec();
    rows.dedup();
    rows
}

impl<P: Payload> OnePass<P> {
    pub fn new(comm: &Comm, layout: &Layout, routing: &Routing, options: PlanOptions, sent: P) -> Result<Self> {
        check_ranks(comm, layout)?;
        let row_bytes = sent.row_bytes();
        if row_bytes > u32::MAX as usize {
            return Err(Error::Unsupported { what: format!("rows of {row_bytes} bytes") });
        }
        let parts = Parts::new(layout, comm.rank(), routing, options)?;
        // With a capacity the places do not depend on the counts.
        let nothing = vec![0; layout.slots_per_rank() * layout.ep_size()];
        let placed = Placed::new(&nothing, layout.ep_size(), &options)?;
        let mut streams = Vec::new();
        for (source, from) in parts.sources() {
            streams.extend((0..options.channels).map(|channel| Stream {
                source,
                from,
                channel,
                ended: false,
                slots: Vec::new(),
                weights: Vec::new(),
                held: Vec::new(),
            }));
        }
        Ok(OnePass {
            sequence: comm.next_sequence(),
            row_bytes,
            result_rows: placed.rows,
            room: vec![options.capacity.unwrap_or(0); placed.first.len()],
            next: placed.first,
            sent: false,
            streams,
            work: Some((parts, sent.zeros(placed.rows)?, sent)),
        })
    }

    pub fn poll(&mut self, comm: &Comm) -> Result<Step<(Arc<Plan>, Dispatched<P>)>> {
        let Some((mut parts, mut out, sent)) = self.work.take() else { return Err(finished("a dispatch")) };
        check_member(comm, &parts.layout, parts.me)?;
        if !self.sent {
            self.sent = true;
            self.send(comm, &parts, &sent)?;
            // This rank's own rows, all of them at once.
            let map = self.places(&parts, parts.me, &parts.mine.slots, false)?;
            sent.scatter_own(0..parts.tokens, &map, &mut out)?;
        }
        let mut waiting = Pending::new();
        for at in 0..self.streams.len() {
            while !self.streams[at].ended {
                let stream = &self.streams[at];
                let tag = tag(Kind::OnePass, self.sequence, stream.channel, stream.source);
                let Some(message) = comm.try_recv::<u8>(stream.from, tag)? else {
                    waiting.push((stream.from, tag));
                    break;
                };
                self.receive(comm, &parts, at, &message, &mut out)?;
            }
        }
        if !waiting.is_empty() {
            self.work = Some((parts, out, sent));
            return Ok(Step::Waiting(waiting));
        }
        for streams in self.streams.chunk_by(|a, b| a.source == b.source) {
            let mut block = Block { channels: vec![0], ..Block::default() };
            for stream in streams {
                block.slots.extend_from_slice(&stream.slots);
                block.weights.extend_from_slice(&stream.weights);
                block.channels.push((block.slots.len() / parts.top_k) as u32);
            }
            parts.learn_block(streams[0].source, block);
        }
        let plan = parts.build()?;
        Ok(Step::Done((Arc::new(plan), Dispatched { rows: out, sent })))
    }

    /// All of this rank's rows, chunk by chunk, to every destination in turn.
    fn send(&self, comm: &Comm, parts: &Parts, sent: &P) -> Result<()> {
        let options = &parts.options;
        // (send, channel, rows), channel by channel; the first chunk leaves even if it is empty.
        let mut lists: Vec<(&Send, usize, Vec<u32>)> = Vec::new();
        for channel in 0..options.channels {
            for send in &parts.sends {
                let rows = &send.rows[send.channels[channel] as usize..send.channels[channel + 1] as usize];
                lists.push((send, channel, distinct(rows)));
            }
        }
        let mut begin = 0;
        while !lists.is_empty() {
            for (send, channel, rows) in &lists {
                let end = (begin + options.chunk_rows).min(rows.len());
                let chunk = &rows[begin..end];
                let block = parts.mine.pick(chunk, parts.top_k);
                let list = match (send.slow, options.fan_out) {
                    (false, FanOut::PerExpert) => parts.copies(&parts.mine, chunk, send.to),
                    _ => chunk.to_vec(),
                };
                let mut message = encode(&block, self.row_bytes, end == rows.len(), list.len());
                sent.pack_bytes(&list, &mut message);
                self.post(comm, parts, (send.to, send.slow), (*channel, parts.me), message, list.len())?;
            }
            begin += options.chunk_rows;
            lists.retain(|(_, _, rows)| begin < rows.len());
        }
        Ok(())
    }

    fn post(
        &self,
        comm: &Comm,
        parts: &Parts,
        (to, slow): (usize, bool),
        (channel, source): (usize, usize),
        message: Vec<u8>,
        rows: usize,
    ) -> Result<()> {
        parts.counters.add(slow, rows, message.len());
        comm.send_rows(to, tag(Kind::OnePass, self.sequence, channel, source), message, rows)?;
        Ok(())
    }

    /// Passes on what has come, and puts it in its place when everything before it has come.
    fn receive(&mut self, comm: &Comm, parts: &Parts, at: usize, message: &[u8], out: &mut P) -> Result<()> {
        let (source, channel) = (self.streams[at].source, self.streams[at].channel);
        let Message { last, slots, weights, rows } = decode(message, parts, self.row_bytes)?;
        let count = slots.len() / parts.top_k;
        let gateway = parts.is_gateway(source);
        let expected = match (gateway, parts.options.fan_out) {
            (false, FanOut::PerExpert) => slots.iter().filter(|&&slot| parts.is_local(slot)).count(),
            _ => count,
        };
        if rows.len() != expected * self.row_bytes {
            let (expected, got) = (format!("{expected} rows of {} bytes", self.row_bytes), format!("{} bytes", rows.len()));
            return Err(Error::Shape { what: "rows of another rank", expected, got });
        }
        if gateway {
            let block = Block { slots: slots.clone(), weights: weights.clone(), channels: vec![0, count as u32] };
            for Send { to, slow, rows: list, .. } in parts.fan_out(&block) {
                if list.is_empty() && !last {
                    continue;
                }
                let mut message = encode(&block.pick(&distinct(&list), parts.top_k), self.row_bytes, last, list.len());
                for &row in &list {
                    message.extend_from_slice(&rows[row as usize * self.row_bytes..][..self.row_bytes]);
                }
                self.post(comm, parts, (to, slow), (channel, source), message, list.len())?;
            }
        }
        let single = !gateway && parts.options.fan_out == FanOut::PerExpert;
        let stream = &mut self.streams[at];
        stream.ended = last;
        stream.slots.extend_from_slice(&slots);
        stream.weights.extend_from_slice(&weights);
        // The streams of a source follow each other, channel by channel; rows of the earlier ones come first.
        let first = at - channel;
        if !self.streams[first..at].iter().all(|stream| stream.ended) {
            self.streams[at].held.push((slots, rows.to_vec()));
            return Ok(());
        }
        let map = self.places(parts, source, &slots, single)?;
        P::scatter_bytes(rows, &map, out)?;
        let mut later = at;
        while self.streams[later].ended && later + 1 < first + parts.options.channels {
            later += 1;
            for (slots, rows) in std::mem::take(&mut self.streams[later].held) {
                let map = self.places(parts, source, &slots, single)?;
                P::scatter_bytes(&rows, &map, out)?;
            }
        }
        Ok(())
    }

    /// The places of the next rows of a source; `single`: one row for each entry that is here.
    fn places(&mut self, parts: &Parts, source: usize, slots: &[u32], single: bool) -> Result<RowMap> {
        let (layout, ranks) = (&parts.layout, parts.layout.ep_size());
        let first_slot = parts.me * layout.slots_per_rank();
        let (mut starts, mut places) = (vec![0], Vec::new());
        for slots in slots.chunks_exact(parts.top_k) {
            for &slot in present(slots).iter().filter(|&&slot| parts.is_local(slot)) {
                let at = (slot as usize - first_slot) * ranks + source;
                let Some(room) = self.room[at].checked_sub(1) else {
                    let expected = format!("at most {} rows of a rank for one expert", parts.options.capacity.unwrap_or(0));
                    return Err(Error::Shape { what: "rows of another rank", expected, got: "more".into() });
                };
                self.room[at] = room;
                places.push(self.next[at] as u32);
                self.next[at] += 1;
                if single {
                    starts.push(places.len() as u32);
                }
            }
            if !single {
                starts.push(places.len() as u32);
            }
        }
        // SAFETY: places are counted up and never past their room, in parts of the result that do not overlap; `starts` counts them.
        Ok(unsafe { RowMap::new_unchecked(starts, places, self.result_rows) })
    }
}
