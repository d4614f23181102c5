//! What an exchange is: its sizes, and where things are in a workspace.

use super::params::{CombineOffsets, DispatchOffsets, MAX_RANKS, Shape};
use crate::error::{Error, Result};
use crate::layout::Layout;

/// Most experts of a token.
pub const MAX_TOP_K: u32 = 16;
/// Most ranks of a node, and most nodes.
pub const MAX_SIDE: u32 = 32;
/// Most experts of a rank.
pub const MAX_EXPERTS: u32 = 256;
/// Most warps of a block of dispatch.
pub const MAX_WARPS: u32 = 16;
/// Most warps of a block of combine.
pub const MAX_COMBINE_WARPS: u32 = 8;
/// Most multiprocessors of a rank.
pub const MAX_SMS: u32 = 256;

/// The sizes of an exchange: the same on all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExchangeConfig {
    /// Ranks of the group: 1 to 64, a multiple of `ranks_per_node`.
    pub ranks: u32,
    /// 1 to 32; at most 32 nodes.
    pub ranks_per_node: u32,
    /// Logical experts: `ranks` times a power of two up to 256. Rank r holds the r-th block of them.
    pub num_experts: u32,
    /// Experts of a token: 1 to 16.
    pub top_k: u32,
    /// Most tokens of a rank, at least 1.
    pub max_tokens: u32,
    /// Bytes of a dispatched row, a multiple of 16: bf16, or E4M3 and its scales behind, or whatever the experts take.
    pub row_bytes: u32,
    /// bf16 columns of a combined row, a multiple of 8.
    pub columns: u32,
    /// Multiprocessors that a rank uses: an even number from 2 to 256, two for each channel.
    pub sms: u32,
    /// Rows that a ring holds: a power of two, at least 1.
    pub slots: u32,
    /// Warps of a block: 2 to 16. Combine takes at most 8.
    pub warps: u32,
}

/// Where everything is in the workspace of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workspace {
    /// Parts of dispatch.
    pub dispatch: DispatchOffsets,
    /// Parts of combine.
    pub combine: CombineOffsets,
    /// All of it, in bytes.
    pub bytes: u64,
}

fn refuse<T>(what: &'static str, reason: String) -> Result<T> {
    Err(Error::Config { what, reason })
}

impl ExchangeConfig {
    /// Sizes for a layout, with 20 multiprocessors, 16 slots and 16 warps, which are there to be changed.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for layouts whose experts do not lie in order, each once, in blocks of a power of two; [`Error::Config`] for sizes
    /// outside their ranges.
    pub fn new(layout: &Layout, top_k: u32, max_tokens: u32, row_bytes: u32, columns: u32) -> Result<ExchangeConfig> {
        if layout.phy2log().len() != layout.num_experts() || !layout.phy2log().iter().zip(0..).all(|(&e, slot)| e == slot) {
            let what = "replicas or another order of experts in the exchange between devices".to_string();
            return Err(Error::Unsupported { what });
        }
        let size = |what, value: usize| u32::try_from(value).or_else(|_| refuse(what, format!("{value} is too many")));
        let config = ExchangeConfig {
            ranks: size("number of ranks", layout.ep_size())?,
            ranks_per_node: size("ranks per node", layout.ranks_per_node().min(layout.ep_size()))?,
            num_experts: size("number of experts", layout.num_experts())?,
            top_k,
            max_tokens,
            row_bytes,
            columns,
            sms: 20,
            slots: 16,
            warps: 16,
        };
        config.check()?;
        Ok(config)
    }

    /// Refuses what the kernels cannot do.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for experts that are no power of two on each rank, and nodes that are not full; [`Error::Config`] for sizes outside
    /// their ranges.
    pub fn check(&self) -> Result<()> {
        let within = |what, value: u32, least: u32, most: u32| match (least..=most).contains(&value) {
            true => Ok(()),
            false => refuse(what, format!("expected {least} to {most}, got {value}")),
        };
        within("number of ranks", self.ranks, 1, MAX_RANKS as u32)?;
        within("ranks per node", self.ranks_per_node, 1, MAX_SIDE)?;
        if !self.ranks.is_multiple_of(self.ranks_per_node) {
            let what = format!("{} ranks in nodes of {} in the exchange between devices", self.ranks, self.ranks_per_node);
            return Err(Error::Unsupported { what });
        }
        within("number of nodes", self.ranks / self.ranks_per_node, 1, MAX_SIDE)?;
        let experts = self.num_experts / self.ranks;
        if experts * self.ranks != self.num_experts || !experts.is_power_of_two() || experts > MAX_EXPERTS {
            let what = format!(
                "{} experts on {} ranks in the exchange between devices: a rank holds a power of two up to {MAX_EXPERTS}",
                self.num_experts, self.ranks
            );
            return Err(Error::Unsupported { what });
        }
        if !self.ranks_per_node.is_power_of_two() && self.ranks > self.ranks_per_node {
            // The experts of a node would not be a whole part of the tree: more than one row would have to cross.
            let what = format!("several nodes of {} ranks in the exchange between devices: a power of two", self.ranks_per_node);
            return Err(Error::Unsupported { what });
        }
        within("experts of a token", self.top_k, 1, MAX_TOP_K.min(self.num_experts))?;
        within("tokens of a rank", self.max_tokens, 1, 1 << 20)?;
        within("bytes of a row", self.row_bytes, 16, 1 << 20)?;
        within("columns of a combined row", self.columns, 8, 1 << 19)?;
        if !self.row_bytes.is_multiple_of(16) || !self.columns.is_multiple_of(8) {
            return refuse("rows", format!("{} bytes and {} columns: multiples of 16 and 8", self.row_bytes, self.columns));
        }
        within("multiprocessors", self.sms, 2, MAX_SMS)?;
        if !self.sms.is_multiple_of(2) {
            return refuse("multiprocessors", format!("a channel takes two, got {}", self.sms));
        }
        within("slots of a ring", self.slots, 1, 1 << 16)?;
        if !self.slots.is_power_of_two() {
            return refuse("slots of a ring", format!("expected a power of two, got {}", self.slots));
        }
        within("warps of a block", self.warps, 2, MAX_WARPS)
    }

    /// Nodes.
    pub fn nodes(&self) -> u32 {
        self.ranks / self.ranks_per_node.max(1)
    }

    /// Channels of a rank.
    pub fn channels(&self) -> u32 {
        self.sms / 2
    }

    /// Tokens of a rank that a channel deals with.
    pub fn tokens_per_channel(&self) -> u32 {
        self.max_tokens.div_ceil(self.channels().max(1))
    }

    /// Places for rows in a rank's output: ranks times channels times tokens of a channel.
    pub fn places(&self) -> usize {
        self.ranks as usize * self.channels() as usize * self.tokens_per_channel() as usize
    }

    /// Experts of a rank.
    pub fn local_experts(&self) -> u32 {
        self.num_experts / self.ranks.max(1)
    }

    /// What the kernels are told, for a launch with `ranks_here` ranks and rows of `row_bytes`.
    pub(crate) fn shape(&self, ranks_here: u32, row_bytes: u32) -> Shape {
        Shape {
            ranks: self.ranks,
            ranks_per_node: self.ranks_per_node,
            nodes: self.nodes(),
            ranks_here,
            channels: self.channels(),
            tokens_per_channel: self.tokens_per_channel(),
            max_tokens: self.max_tokens,
            slots: self.slots,
            top_k: self.top_k,
            expert_shift: self.local_experts().trailing_zeros(),
            row_bytes,
            header_bytes: self.header_bytes(),
            reserved: [0; 4],
        }
    }

    /// The token, its positions, experts and weights.
    fn header_bytes(&self) -> u32 {
        (4 * (1 + self.ranks_per_node + 2 * self.top_k)).next_multiple_of(16)
    }

    /// Tokens that tables have room for: those of every channel, whatever part of the channels a launch has.
    pub(crate) fn room(&self) -> u64 {
        u64::from(self.max_tokens) + u64::from(self.channels())
    }

    /// Where everything is in a workspace. It serves this configuration, and the same with fewer multiprocessors.
    ///
    /// # Errors
    /// As [`ExchangeConfig::check`].
    pub fn workspace(&self) -> Result<Workspace> {
        self.check()?;
        let [c, n, l, r] = [self.channels(), self.nodes(), self.ranks_per_node, self.ranks].map(u64::from);
        let (k, tokens) = (u64::from(self.slots), self.room());
        // Every factor is bounded by `check`: at most 2^7 * 2^6 * 2^16 * 2^21 bytes.
        let slot = u64::from(self.header_bytes()) + u64::from(self.row_bytes);
        let combined = u64::from(self.columns) * 2;
        let mut end = 0u64;
        let mut take = |bytes: u64| {
            let begin = end;
            end = (begin + bytes).next_multiple_of(256);
            begin
        };
        let dispatch = DispatchOffsets {
            slow_rows: take(c * n * k * slot),
            slow_full: take(c * n * k * 4),
            slow_free: take(c * n * k * 4),
            fast_rows: take(c * r * k * slot),
            fast_full: take(c * r * k * 4),
            fast_free: take(c * r * k * 4),
            slow_count: take(c * 2 * n * (1 + l) * 8),
            fast_count: take(c * 2 * r * 8),
            state: take(c * (2 + 2 * n + 2 * r) * 4),
            masks: take(2 * tokens * 8),
            positions: take(r * tokens * 4),
            lists: take(n * tokens * 4),
            experts: take(2 * tokens * u64::from(self.top_k) * 4),
            reserved: 0,
        };
        let combine = CombineOffsets {
            fast_rows: take(c * r * k * combined),
            fast_full: take(c * r * k * 4),
            fast_free: take(c * r * k * 4),
            slow_rows: take(c * n * k * combined),
            slow_full: take(c * n * k * 4),
            slow_free: take(c * n * k * 4),
            state: take(c * (2 * r + 2 * n) * 4),
            reserved: 0,
        };
        Ok(Workspace { dispatch, combine, bytes: end })
    }
}
