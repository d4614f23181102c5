//! The plan of one layer's dispatch: who sends which rows where, and in which order what comes back is added.

pub(crate) mod block;
mod build;
pub(crate) mod merge;

use std::sync::atomic::{AtomicU64, Ordering};

use v3_ranks::Comm;

use crate::cpu::RowMap;
use crate::error::{Error, Result};
use crate::layout::Layout;
pub(crate) use crate::plan::build::{Parts, Placed};
use crate::plan::merge::Merge;
use crate::planning::check_member;

/// An index of [`Routing`](crate::Routing) that stands for no expert: the choice is masked, its weight is not looked at, and the gradient of its weight is 0.
/// It is -1 as a signed number. A token may have any number of masked choices; with all of them masked its combined row is 0.
pub const MASKED: u32 = u32::MAX;

/// How many copies of a row travel inside a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FanOut {
    /// One for each rank of the node that has experts of the token: the least traffic.
    #[default]
    PerRank,
    /// One for each expert of the token that is on another rank than the one the row leaves from.
    PerExpert,
}

/// What a plan may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanOptions {
    /// Each expert's rows begin at a multiple of this, and zero rows fill the gap; at least 1, which means no padding.
    pub alignment: usize,
    /// Rows per message, at least 1: a gateway passes on the first message while the second is still under way.
    pub chunk_rows: usize,
    /// Shares of the tokens, 1 to 256, each with an order of its own: a message of one never waits for one of another.
    pub channels: usize,
    /// Copies inside a node.
    pub fan_out: FanOut,
    /// `Some(n)`: no rank ever has more than n tokens, and the place of every row follows from n alone (see [`Plan::offsets`]).
    pub capacity: Option<usize>,
}

impl Default for PlanOptions {
    fn default() -> Self {
        PlanOptions { alignment: 1, chunk_rows: 128, channels: 1, fan_out: FanOut::PerRank, capacity: None }
    }
}

impl PlanOptions {
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |reason: &str| Err(Error::Config { what: "plan options", reason: reason.into() });
        if self.alignment == 0 || self.chunk_rows == 0 {
            return refuse("alignment and chunk rows are at least 1");
        }
        if !(1..=MAX_CHANNELS).contains(&self.channels) {
            return refuse("channels are 1 to 256");
        }
        Ok(())
    }
}

/// Rows and bytes that a rank has sent, by the link they took. Rows that stay on their rank are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Rows between nodes.
    pub slow_rows: u64,
    /// Their bytes.
    pub slow_bytes: u64,
    /// Rows inside nodes.
    pub fast_rows: u64,
    /// Their bytes.
    pub fast_bytes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters([AtomicU64; 4]);

impl Counters {
    pub fn add(&self, slow: bool, rows: usize, bytes: usize) {
        let at = if slow { 0 } else { 2 };
        // Sums of integers: the order does not matter.
        self.0[at].fetch_add(rows as u64, Ordering::Relaxed);
        self.0[at + 1].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn read(&self) -> Traffic {
        let [slow_rows, slow_bytes, fast_rows, fast_bytes] = [0, 1, 2, 3].map(|i| self.0[i].load(Ordering::Relaxed));
        Traffic { slow_rows, slow_bytes, fast_rows, fast_bytes }
    }
}

/// The kind of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Plan = 1,
    Rows = 2,
    Sums = 3,
    Gradients = 4,
    OnePass = 5,
}

const MAX_CHANNELS: usize = 256;
const MAX_RANKS: usize = 1 << 20;

/// The tag of a message about the tokens of one rank, in the exchange that has number `sequence` in its group. Tags of this form belong to this crate.
pub(crate) fn tag(kind: Kind, sequence: u64, channel: usize, source: usize) -> u64 {
    // 2^24 exchanges are never in flight at a time.
    0x6d << 56 | (kind as u64) << 52 | (channel as u64) << 44 | (sequence & 0xff_ffff) << 20 | source as u64
}

/// Rows to send: which of the rows of a buffer, to whom. A row may be listed several times, one after the other.
#[derive(Debug)]
pub(crate) struct Send {
    pub to: usize,
    pub slow: bool,
    pub rows: Vec<u32>,
    /// Those of channel c: `channels[c]..channels[c + 1]`.
    pub channels: Vec<u32>,
}

/// Rows of one source that come in, and that this rank passes on if it is their gateway.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub source: usize,
    pub from: usize,
    /// Rows of channel c: `channels[c]..channels[c + 1]`.
    pub channels: Vec<u32>,
    pub forward: Vec<Send>,
    /// Where the rows belong in expert-major order.
    pub delivery: RowMap,
}

/// Who sends which rows where, for one routing; used by dispatch, by combine and by both of their backward passes.
///
/// Building it is a collective operation, as is each use: every rank of the group starts the same ones in the same order.
#[derive(Debug)]
pub struct Plan {
    pub(crate) layout: Layout,
    pub(crate) options: PlanOptions,
    pub(crate) me: usize,
    pub(crate) tokens: usize,
    pub(crate) top_k: usize,
    /// Rows of this rank's tokens to other nodes' gateways, then to ranks of its own node.
    pub(crate) sends: Vec<Send>,
    /// Rows from others: those to pass on first.
    pub(crate) inbound: Vec<Inbound>,
    /// This rank's own tokens.
    pub(crate) own: RowMap,
    pub(crate) expert_rows: usize,
    /// Expert-major rows that belong to no token.
    pub(crate) padding: Vec<std::ops::Range<usize>>,
    pub(crate) row_weights: Vec<f32>,
    offsets: Vec<usize>,
    counts: Vec<usize>,
    /// Rows of each local expert from each source.
    source_counts: Vec<u32>,
    /// Sums for the tokens of other ranks, in the order in which they are sent.
    pub(crate) outgoing: Vec<Merge>,
    /// Sums for this rank's tokens.
    pub(crate) home: Merge,
    /// Where the gradient of each weight of `home.gradients` belongs in `[T, k]`.
    pub(crate) choice: Vec<u32>,
    max_nodes_per_token: usize,
    pub(crate) dispatched: Counters,
    pub(crate) combined: Counters,
}

impl Plan {
    /// The layout that the plan was made for.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The options that the plan was made with.
    pub fn options(&self) -> PlanOptions {
        self.options
    }

    /// Tokens of this rank, T.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Experts per token, k, masked ones included.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Expert-major rows on this rank, R, padding included.
    pub fn expert_rows(&self) -> usize {
        self.expert_rows
    }

    /// Where the rows of each local expert begin, and R at the end: [local experts + 1], multiples of the alignment.
    ///
    /// With a [`capacity`](PlanOptions::capacity) they depend on nothing but the options: each local expert has room for `capacity` rows from each
    /// rank, those from rank s beginning `s * capacity` rows behind its offset, and what is not used is zero. R is then
    /// `slots_per_rank * round_up(ep_size * capacity, alignment)`.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Rows of each local expert, padding not counted.
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// Rows of each local expert from each rank: [local experts, ranks], padding not counted.
    pub fn source_counts(&self) -> &[u32] {
        &self.source_counts
    }

    /// The weight of each expert-major row `[R]`; 0 for padding.
    pub fn row_weights(&self) -> &[f32] {
        &self.row_weights
    }

    /// Rows that this rank sends to other nodes in one dispatch: the number of distinct pairs of one of its tokens and another node.
    pub fn slow_rows(&self) -> usize {
        self.sends.iter().filter(|send| send.slow).map(|send| send.rows.len()).sum()
    }

    /// Rows that this rank sends to other nodes in one combine, as a gateway. Where the experts of every node are an aligned block of a power of two,
    /// their sum over all ranks is that of [`slow_rows`](Plan::slow_rows).
    pub fn combine_slow_rows(&self) -> usize {
        self.outgoing.iter().filter(|merge| merge.slow).map(|merge| merge.program.rows()).sum()
    }

    /// The most nodes that one of this rank's tokens goes to, its own included.
    pub fn max_nodes_per_token(&self) -> usize {
        self.max_nodes_per_token
    }

    /// Bytes of memory that the plan holds.
    pub fn bytes(&self) -> usize {
        let send = |send: &Send| size_of_val(send.rows.as_slice());
        self.sends.iter().map(send).sum::<usize>()
            + self.inbound.iter().flat_map(|inbound| &inbound.forward).map(send).sum::<usize>()
            + self.inbound.iter().map(|inbound| inbound.delivery.bytes()).sum::<usize>()
            + self.own.bytes()
            + self.outgoing.iter().map(Merge::bytes).sum::<usize>()
            + self.home.bytes()
            + size_of_val(self.row_weights.as_slice())
            + size_of_val(self.source_counts.as_slice())
            + size_of_val(self.choice.as_slice())
    }

    /// What this rank has sent so far from tokens to experts: in [`dispatch`](Plan::dispatch) and
    /// [`combine_backward`](Plan::combine_backward), rows that it passed on as a gateway included.
    pub fn traffic(&self) -> Traffic {
        self.dispatched.read()
    }

    /// What this rank has sent so far from experts to tokens: in [`combine`](Plan::combine) and
    /// [`dispatch_backward`](Plan::dispatch_backward).
    pub fn combine_traffic(&self) -> Traffic {
        self.combined.read()
    }

    pub(crate) fn check_group(&self, comm: &Comm) -> Result<()> {
        check_member(comm, &self.layout, self.me)
    }
}
