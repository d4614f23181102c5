//! The way from experts to tokens: each rank adds what it has of a token and sends the sums towards the token's rank, chunk by chunk; gateways
//! add what the ranks of their node send.

use v3_ranks::{Comm, Step};

use crate::cpu::{Element, Received, SumRows, stock, sum_rows};
use crate::error::{Error, Result};
use crate::in_flight::Pending;
use crate::plan::merge::Merge;
use crate::plan::{Kind, Plan, tag};

/// What one input has sent of one channel: chunks of `chunk_rows` rows, the last one shorter.
#[derive(Debug)]
struct Stream<W> {
    chunks: Vec<Vec<W>>,
    arrived: usize,
}

/// One channel of one merge.
#[derive(Debug)]
struct Lane<W> {
    channel: usize,
    /// The next row of the program.
    next: usize,
    end: usize,
    inputs: Vec<Stream<W>>,
}

/// How far one exchange of sums has come; `W` is what travels.
#[derive(Debug)]
pub(crate) struct Sums<W> {
    sequence: u64,
    row_len: usize,
    weighted: bool,
    /// For each merge of the plan, this rank's own the last, its channels.
    lanes: Option<Vec<Vec<Lane<W>>>>,
}

fn lanes<W>(plan: &Plan, merge: &Merge) -> Vec<Lane<W>> {
    let lane = |channel: usize| Lane {
        channel,
        next: merge.channels[channel] as usize,
        end: merge.channels[channel + 1] as usize,
        inputs: merge.inputs.iter().map(|_| Stream { chunks: Vec::new(), arrived: 0 }).collect(),
    };
    (0..plan.options.channels).map(lane).filter(|lane: &Lane<W>| lane.next < lane.end).collect()
}

impl<W: Element> Sums<W> {
    pub fn new(sequence: u64, row_len: usize, weighted: bool) -> Self {
        Sums { sequence, row_len, weighted, lanes: None }
    }

    /// Goes as far as it can. `own` are this rank's expert rows, `out` its tokens' results.
    pub fn poll<E: Element>(&mut self, comm: &Comm, plan: &Plan, own: &[E], out: &mut [E]) -> Result<Step<()>> {
        plan.check_group(comm)?;
        if self.row_len == 0 {
            return Ok(Step::Done(()));
        }
        let mut all = self
            .lanes
            .take()
            .unwrap_or_else(|| plan.outgoing.iter().chain([&plan.home]).map(|merge| lanes(plan, merge)).collect());
        loop {
            let mut waiting = Pending::new();
            for (merge, lanes) in plan.outgoing.iter().chain([&plan.home]).zip(&mut all) {
                for lane in lanes {
                    self.receive(comm, plan, merge, lane, &mut waiting)?;
                }
            }
            // What leaves the node, or is on its way out of it, first; then what stays in it; this rank's own results while others' are under way.
            let my_node = plan.layout.node(plan.me);
            let mut progress = false;
            for far in [true, false] {
                for (merge, lanes) in plan.outgoing.iter().zip(&mut all) {
                    if (progress && !far) || (plan.layout.node(merge.source) != my_node) != far {
                        continue;
                    }
                    for lane in lanes {
                        progress |= self.send_chunk(comm, plan, merge, lane, own)?;
                    }
                }
            }
            if !progress && let Some(lanes) = all.last_mut() {
                for lane in lanes {
                    progress |= self.add_home(plan, lane, own, out);
                }
            }
            if progress {
                continue;
            }
            for lane in all.iter_mut().flat_map(|lanes| lanes.extract_if(.., |lane| lane.next == lane.end)) {
                lane.inputs.into_iter().flat_map(|input| input.chunks).for_each(stock::give);
            }
            if all.iter().all(Vec::is_empty) {
                return Ok(Step::Done(()));
            }
            self.lanes = Some(all);
            return Ok(Step::Waiting(waiting));
        }
    }

    /// Takes what has come for one channel of a merge; what is still to come is added to `waiting`.
    fn receive(&self, comm: &Comm, plan: &Plan, merge: &Merge, lane: &mut Lane<W>, waiting: &mut Pending) -> Result<()> {
        let tag = tag(Kind::Sums, self.sequence, lane.channel, merge.source);
        for (input, stream) in merge.inputs.iter().zip(&mut lane.inputs) {
            let rows = (input.channels[lane.channel + 1] - input.channels[lane.channel]) as usize;
            while stream.arrived < rows {
                let Some(chunk) = comm.try_recv::<W>(input.from, tag)? else {
                    waiting.push((input.from, tag));
                    break;
                };
                let expected = (rows - stream.arrived).min(plan.options.chunk_rows);
                if chunk.len() != expected * self.row_len {
                    return Err(Error::Shape {
                        what: "sums of another rank",
                        expected: format!("{expected} rows of {} from rank {}", self.row_len, input.from),
                        got: format!("{} elements", chunk.len()),
                    });
                }
                stream.arrived += expected;
                stream.chunks.push(chunk);
            }
        }
        Ok(())
    }

    /// The rows up to which a channel's sums, of `most` rows at most, can be formed with what has come.
    fn ready(&self, merge: &Merge, lane: &Lane<W>, most: usize) -> usize {
        let end = lane.end.min(lane.next.saturating_add(most));
        let has_come = |row: &usize| {
            merge.program.row(*row).iter().all(|term| match (term.buffer as usize).checked_sub(1) {
                None => true,
                Some(input) => {
                    let first = merge.inputs[input].channels[lane.channel];
                    ((term.row - first) as usize) < lane.inputs[input].arrived
                }
            })
        };
        if merge.inputs.is_empty() {
            return end;
        }
        (lane.next..end).take_while(has_come).last().map_or(lane.next, |last| last + 1)
    }

    fn add<E: Element, O: Element>(&self, plan: &Plan, merge: &Merge, lane: &Lane<W>, end: usize, own: &[E], out: &mut [O]) {
        let received: Vec<Received<'_, W>> = merge
            .inputs
            .iter()
            .zip(&lane.inputs)
            .map(|(input, stream)| Received { first: input.channels[lane.channel], chunks: &stream.chunks })
            .collect();
        let (program, chunk_rows) = (&merge.program, plan.options.chunk_rows);
        let sums = SumRows { program, own, received: &received, chunk_rows, row_len: self.row_len, weighted: self.weighted };
        sum_rows(&sums, lane.next..end, out);
    }

    fn send_chunk<E: Element>(&self, comm: &Comm, plan: &Plan, merge: &Merge, lane: &mut Lane<W>, own: &[E]) -> Result<bool> {
        let whole = plan.options.chunk_rows.min(lane.end - lane.next);
        let end = self.ready(merge, lane, whole);
        let rows = end - lane.next;
        if rows == 0 || rows < whole {
            return Ok(false);
        }
        let mut sums = stock::take::<W>(rows * self.row_len);
        self.add(plan, merge, lane, end, own, &mut sums);
        lane.next = end;
        plan.combined.add(merge.slow, rows, size_of_val(sums.as_slice()));
        comm.send_rows(merge.to, tag(Kind::Sums, self.sequence, lane.channel, merge.source), sums, rows)?;
        Ok(true)
    }

    fn add_home<E: Element>(&self, plan: &Plan, lane: &mut Lane<W>, own: &[E], out: &mut [E]) -> bool {
        let end = self.ready(&plan.home, lane, usize::MAX);
        if end == lane.next {
            return false;
        }
        self.add(plan, &plan.home, lane, end, own, &mut out[lane.next * self.row_len..end * self.row_len]);
        lane.next = end;
        true
    }
}

/// What each input has sent.
type Inputs = Vec<Option<Vec<f32>>>;

/// The gradients of weights on their way home: one number for each choice.
#[derive(Debug)]
pub(crate) struct Gradients {
    sequence: u64,
    /// For each merge of the plan, this rank's own the last; `None` for merges that are done.
    received: Option<Vec<Option<Inputs>>>,
    /// This rank's own, which may be complete before what it passes on is.
    d_weights: Vec<f32>,
}

impl Gradients {
    pub fn new(sequence: u64) -> Self {
        Gradients { sequence, received: None, d_weights: Vec::new() }
    }

    /// Goes as far as it can; the result is [T, k].
    pub fn poll(&mut self, comm: &Comm, plan: &Plan, products: &[f32]) -> Result<Step<Vec<f32>>> {
        let merges = || plan.outgoing.iter().chain([&plan.home]);
        let mut all =
            self.received.take().unwrap_or_else(|| merges().map(|m| Some(vec![None; m.gradient_inputs.len()])).collect());
        let mut waiting = Pending::new();
        for (merge, slot) in merges().zip(&mut all) {
            let Some(mut received) = slot.take() else { continue };
            let tag = tag(Kind::Gradients, self.sequence, 0, merge.source);
            let mut missing = false;
            for (&(from, count), values) in merge.gradient_inputs.iter().zip(&mut received).filter(|(_, values)| values.is_none())
            {
                *values = comm.try_recv::<f32>(from, tag)?;
                match values {
                    None => {
                        missing = true;
                        waiting.push((from, tag));
                    }
                    Some(values) if values.len() != count => {
                        let expected = format!("{count} from rank {from}");
                        return Err(Error::Shape { what: "gradients of weights", expected, got: values.len().to_string() });
                    }
                    Some(_) => {}
                }
            }
            if missing {
                *slot = Some(received);
                continue;
            }
            let received: Vec<&[f32]> = received.iter().map(|values| values.as_deref().unwrap_or(&[])).collect();
            let value = |&(buffer, at): &(u32, u32)| match buffer {
                0 => products[at as usize],
                _ => received[buffer as usize - 1][at as usize],
            };
            let gradients: Vec<f32> = merge.gradients.iter().map(value).collect();
            if merge.source != plan.me {
                if !gradients.is_empty() {
                    comm.send(merge.to, tag, gradients)?;
                }
                continue;
            }
            self.d_weights = vec![0.0; plan.tokens * plan.top_k];
            for (gradient, &at) in gradients.into_iter().zip(&plan.choice) {
                self.d_weights[at as usize] = gradient;
            }
        }
        if waiting.is_empty() {
            return Ok(Step::Done(std::mem::take(&mut self.d_weights)));
        }
        self.received = Some(all);
        Ok(Step::Waiting(waiting))
    }
}
