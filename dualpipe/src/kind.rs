//! The schedules by name, and where each puts the stages of the model.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A pipeline schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// `gpipe`: all forwards, then all backwards.
    GPipe,
    /// `1f1b`: one forward, one backward, as soon as a backward can run.
    OneFOneB,
    /// `zb-h1`: 1F1B with the backward for weights put off to where the rank would idle, at the memory of 1F1B. ZB1P in
    /// the DeepSeek-V3 report.
    ZbH1,
    /// `zb-v`: two stages a rank in a V, backward for inputs and for weights apart.
    ZbV,
    /// `dualpipe`: micro-batches from both ends of the pipeline, forward and backward overlapped; two copies of the
    /// weights.
    DualPipe,
    /// `dualpipev`: DualPipe cut in half; the two directions are the two halves of a V.
    DualPipeV,
    /// `custom`, `custom-v`, `custom-bidirectional`: lists of actions that no generator made (found by a search, or read from
    /// elsewhere), with the stages placed so.
    Custom(Placement),
}

impl Kind {
    /// All schedules that have a generator, oldest first.
    pub const ALL: [Kind; 6] = [Kind::GPipe, Kind::OneFOneB, Kind::ZbH1, Kind::ZbV, Kind::DualPipe, Kind::DualPipeV];

    /// The name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::GPipe => "gpipe",
            Kind::OneFOneB => "1f1b",
            Kind::ZbH1 => "zb-h1",
            Kind::ZbV => "zb-v",
            Kind::DualPipe => "dualpipe",
            Kind::DualPipeV => "dualpipev",
            Kind::Custom(Placement::Line) => "custom",
            Kind::Custom(Placement::V) => "custom-v",
            Kind::Custom(Placement::Bidirectional) => "custom-bidirectional",
        }
    }

    /// Where this schedule puts the stages.
    pub fn placement(self) -> Placement {
        match self {
            Kind::GPipe | Kind::OneFOneB | Kind::ZbH1 => Placement::Line,
            Kind::DualPipe => Placement::Bidirectional,
            Kind::ZbV | Kind::DualPipeV => Placement::V,
            Kind::Custom(placement) => placement,
        }
    }

    /// The fewest micro-batches this schedule takes on `ranks` ranks.
    pub fn min_micro_batches(self, ranks: usize) -> usize {
        match self {
            Kind::GPipe | Kind::OneFOneB | Kind::ZbH1 | Kind::ZbV | Kind::Custom(_) => 1,
            Kind::DualPipe | Kind::DualPipeV => ranks.saturating_mul(2),
        }
    }

    /// Checks that this schedule can be made for `ranks` ranks and `micro_batches` micro-batches.
    ///
    /// Every kind needs at least one rank; DualPipe needs an even number of ranks and of micro-batches; DualPipe and
    /// DualPipeV need at least `2 * ranks` micro-batches, the others at least one. A custom schedule cannot be made from
    /// its name.
    pub fn check(self, ranks: usize, micro_batches: usize) -> Result<()> {
        if let Kind::Custom(_) = self {
            return Err(Error::UnknownKind { expected: Kind::ALL.map(Kind::name).join(", "), got: self.name().into() });
        }
        self.placement_fits(ranks, micro_batches)?;
        let least = self.min_micro_batches(ranks);
        if micro_batches < least {
            let even = if self == Kind::DualPipe { "an even number of " } else { "" };
            return Err(Error::MicroBatches {
                kind: self,
                ranks,
                expected: format!("{even}{least} or more"),
                got: micro_batches,
            });
        }
        Ok(())
    }

    /// Checks what any list of actions of this kind needs, whatever its order.
    pub(crate) fn placement_fits(self, ranks: usize, micro_batches: usize) -> Result<()> {
        let two_way = self.placement() == Placement::Bidirectional;
        if ranks == 0 || (two_way && !ranks.is_multiple_of(2)) {
            let expected = if two_way { "an even number of 2 or more" } else { "1 or more" };
            return Err(Error::Ranks { kind: self, expected: expected.into(), got: ranks });
        }
        if micro_batches == 0 || (two_way && !micro_batches.is_multiple_of(2)) {
            let least = self.min_micro_batches(ranks);
            let even = if two_way { "an even number of " } else { "" };
            return Err(Error::MicroBatches {
                kind: self,
                ranks,
                expected: format!("{even}{least} or more"),
                got: micro_batches,
            });
        }
        Ok(())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Kind> {
        let custom = [Placement::Line, Placement::V, Placement::Bidirectional].map(Kind::Custom);
        Kind::ALL
            .into_iter()
            .chain(custom)
            .find(|kind| kind.name() == text)
            .ok_or_else(|| Error::UnknownKind { expected: Kind::ALL.map(Kind::name).join(", "), got: text.into() })
    }
}

/// Which stages a rank holds, and which micro-batches visit them in which direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Placement {
    /// As many stages as ranks; rank `r` holds stage `r`. One direction.
    Line,
    /// As many stages as ranks, each twice: rank `r` of `R` holds stage `r` for direction 0 and a copy of stage
    /// `R - 1 - r` for direction 1. Of `M` micro-batches the first half travels in direction 0.
    Bidirectional,
    /// Twice as many stages as ranks: rank `r` of `R` holds stage `r` (direction 0, the way down) and stage
    /// `2R - 1 - r` (direction 1, the way up). Every micro-batch visits both.
    V,
}

impl Placement {
    /// Number of directions, which is the number of stages a rank holds: 1 or 2.
    pub fn directions(self) -> usize {
        match self {
            Placement::Line => 1,
            Placement::Bidirectional | Placement::V => 2,
        }
    }

    /// Number of stages of the model.
    pub fn stages(self, ranks: usize) -> usize {
        match self {
            Placement::Line | Placement::Bidirectional => ranks,
            Placement::V => 2 * ranks,
        }
    }

    /// The stage that `rank` holds for `direction`.
    pub fn stage_of(self, ranks: usize, rank: usize, direction: usize) -> Option<usize> {
        if rank >= ranks || direction >= self.directions() {
            return None;
        }
        Some(match (self, direction) {
            (_, 0) => rank,
            (Placement::V, _) => 2 * ranks - 1 - rank,
            _ => ranks - 1 - rank,
        })
    }

    /// Number of chunks in each direction.
    pub fn chunks(self, micro_batches: usize) -> usize {
        match self {
            Placement::Line | Placement::V => micro_batches,
            Placement::Bidirectional => micro_batches / 2,
        }
    }

    /// The micro-batch that `chunk` of `direction` stands for.
    pub fn micro_batch(self, micro_batches: usize, direction: usize, chunk: usize) -> usize {
        match self {
            Placement::Line | Placement::V => chunk,
            Placement::Bidirectional => direction * (micro_batches / 2) + chunk,
        }
    }

    /// The rank, direction and chunk in which `micro_batch` visits `stage`.
    pub fn locate(self, ranks: usize, micro_batches: usize, stage: usize, micro_batch: usize) -> Option<(usize, usize, usize)> {
        if stage >= self.stages(ranks) || micro_batch >= micro_batches {
            return None;
        }
        Some(match self {
            Placement::Line => (stage, 0, micro_batch),
            Placement::Bidirectional => {
                let half = micro_batches / 2;
                if micro_batch < half { (stage, 0, micro_batch) } else { (ranks - 1 - stage, 1, micro_batch - half) }
            }
            Placement::V if stage < ranks => (stage, 0, micro_batch),
            Placement::V => (2 * ranks - 1 - stage, 1, micro_batch),
        })
    }
}
