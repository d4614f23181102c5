//! How well drafts are accepted, by position in the chain.

use crate::verify::Verdict;
use std::fmt;

/// Counts of drafted, examined and accepted tokens by position.
///
/// ```
/// use mtp::{AcceptanceStats, Verdict};
/// let mut stats = AcceptanceStats::default();
/// stats.record(2, &Verdict { accepted: 2, next: 0 });
/// stats.record(2, &Verdict { accepted: 0, next: 0 });
/// assert_eq!(stats.rate(), Some(0.5));
/// assert_eq!((stats.position_rate(0), stats.conditional_rate(1)), (Some(0.5), Some(1.0)));
/// assert_eq!(stats.tokens_per_pass(), Some(2.0)); // 2 accepted + 2 of the target's own, in 2 passes
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AcceptanceStats {
    passes: u64,
    drafted: Vec<u64>,
    accepted: Vec<u64>,
}

impl AcceptanceStats {
    /// Counts one verification of a chain of `drafted` tokens.
    pub fn record(&mut self, drafted: usize, verdict: &Verdict) {
        let accepted = verdict.accepted.min(drafted);
        self.passes += 1;
        if self.drafted.len() < drafted {
            self.drafted.resize(drafted, 0);
            self.accepted.resize(drafted, 0);
        }
        self.drafted[..drafted].iter_mut().for_each(|n| *n += 1);
        self.accepted[..accepted].iter_mut().for_each(|n| *n += 1);
    }

    /// Adds the counts of another request.
    pub fn merge(&mut self, other: &AcceptanceStats) {
        self.passes += other.passes;
        let len = self.drafted.len().max(other.drafted.len());
        self.drafted.resize(len, 0);
        self.accepted.resize(len, 0);
        for (mine, theirs) in self.drafted.iter_mut().zip(&other.drafted) {
            *mine += theirs;
        }
        for (mine, theirs) in self.accepted.iter_mut().zip(&other.accepted) {
            *mine += theirs;
        }
    }

    /// Verification passes counted.
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// Tokens drafted at each position.
    pub fn drafted(&self) -> &[u64] {
        &self.drafted
    }

    /// Tokens accepted at each position.
    pub fn accepted(&self) -> &[u64] {
        &self.accepted
    }

    /// Accepted tokens over drafted tokens. `None` while nothing was drafted.
    pub fn rate(&self) -> Option<f64> {
        ratio(self.accepted.iter().sum(), self.drafted.iter().sum())
    }

    /// The share of drafts accepted up to and including `position`, of those that reach so far.
    pub fn position_rate(&self, position: usize) -> Option<f64> {
        ratio(*self.accepted.get(position)?, *self.drafted.get(position)?)
    }

    /// The share accepted at `position` of the drafts that were accepted at every earlier one. Meaningful where all
    /// chains have one length.
    pub fn conditional_rate(&self, position: usize) -> Option<f64> {
        let examined = if position == 0 { *self.drafted.first()? } else { *self.accepted.get(position - 1)? };
        ratio(*self.accepted.get(position)?, examined)
    }

    /// Tokens committed for each pass of the target: accepted tokens and the target's own. Plain decoding has 1.
    pub fn tokens_per_pass(&self) -> Option<f64> {
        ratio(self.accepted.iter().sum::<u64>() + self.passes, self.passes)
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

impl fmt::Display for AcceptanceStats {
    /// One line: `accepted 71.2% (by position 80.1%, 62.3%), 2.42 tokens a pass`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(rate), Some(per_pass)) = (self.rate(), self.tokens_per_pass()) else {
            return write!(f, "nothing drafted");
        };
        write!(f, "accepted {:.1}% (by position ", rate * 100.0)?;
        for position in 0..self.drafted.len() {
            let comma = if position == 0 { "" } else { ", " };
            match self.position_rate(position) {
                Some(rate) => write!(f, "{comma}{:.1}%", rate * 100.0)?,
                None => write!(f, "{comma}-")?,
            }
        }
        write!(f, "), {per_pass:.2} tokens a pass")
    }
}
