//! How the average is made.

use crate::error::{Error, Result};
use std::ops::Range;

/// The decay of the first updates, when an average that starts from barely trained weights should forget them quickly.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Warmup {
    /// The same decay from the first update on.
    #[default]
    None,
    /// `min(decay, (1 + t) / (offset + t))` for the update `t` = 0, 1, ...; larger than 1. An offset of 10 is common; 2 makes
    /// the plain mean of the initial weights and all submitted ones until `decay` is reached.
    Ratio {
        /// How slowly the decay rises.
        offset: f64,
    },
}

/// The part of the parameters that this instance averages: all tensors, laid end to end, are cut into `ranks` runs whose
/// lengths differ by at most one, and this is run number `rank`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Which run, below `ranks`.
    pub rank: usize,
    /// How many runs.
    pub ranks: usize,
}

impl Shard {
    /// Everything.
    pub const WHOLE: Shard = Shard { rank: 0, ranks: 1 };

    /// The run of `total` parameters.
    pub fn range(self, total: usize) -> Range<usize> {
        let cut = |i: usize| (total as u128 * i as u128 / self.ranks.max(1) as u128) as usize;
        cut(self.rank)..cut(self.rank + 1)
    }
}

/// The parameters of an [`Ema`](crate::Ema).
#[derive(Debug, Clone, PartialEq)]
pub struct EmaConfig {
    /// The share of the old average that an update keeps: at least 0, below 1.
    pub decay: f64,
    /// The decay of the first updates.
    pub warmup: Warmup,
    /// Only steps that are multiples of this are averaged; the others cost nothing. At least 1. The decay is per update, not
    /// per step.
    pub every_n: u64,
    /// Snapshots that may wait or be worked on: the number of staging buffers. At least 1.
    pub max_in_flight: usize,
    /// The part of the parameters to average.
    pub shard: Shard,
}

impl Default for EmaConfig {
    /// Decay 0.999, no warm-up, every step, two snapshots in flight, all parameters.
    fn default() -> Self {
        Self { decay: 0.999, warmup: Warmup::None, every_n: 1, max_in_flight: 2, shard: Shard::WHOLE }
    }
}

impl EmaConfig {
    /// Refuses values out of range.
    pub fn validate(&self) -> Result<()> {
        let bad = |what, expected, got: String| Err(Error::Config { what, expected, got });
        if !(0.0..1.0).contains(&self.decay) {
            return bad("decay", "at least 0 and below 1", self.decay.to_string());
        }
        if let Warmup::Ratio { offset } = self.warmup
            && !(offset > 1.0 && offset.is_finite())
        {
            return bad("warm-up offset", "a number above 1", offset.to_string());
        }
        if self.every_n == 0 {
            return bad("every_n", "at least 1", self.every_n.to_string());
        }
        if self.max_in_flight == 0 || self.max_in_flight > 1024 {
            return bad("max_in_flight", "between 1 and 1024", self.max_in_flight.to_string());
        }
        if self.shard.rank >= self.shard.ranks {
            let got = format!("rank {} of {}", self.shard.rank, self.shard.ranks);
            return bad("shard", "a rank below the number of ranks", got);
        }
        Ok(())
    }

    /// The decay of update `t` = 0, 1, ...
    pub fn decay_at(&self, t: u64) -> f64 {
        match self.warmup {
            Warmup::None => self.decay,
            Warmup::Ratio { offset } => self.decay.min((1.0 + t as f64) / (offset + t as f64)),
        }
    }

    /// What update `t` multiplies the difference by: `1 - decay_at(t)`, subtracted in f64 and rounded to f32.
    pub fn rate(&self, t: u64) -> f32 {
        (1.0 - self.decay_at(t)) as f32
    }
}
