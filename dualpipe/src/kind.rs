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
    /// `interleaved-N`: interleaved 1F1B with N stages a rank, 2 or more; `interleaved` is `interleaved-2`. Micro-batches go
    /// round the ranks N times, so that the pipeline fills in an N-th of the time, at more transfers and activations.
    Interleaved(u8),
    /// `custom`, `custom-bidirectional`, `custom-v`, `custom-loop-N`: lists of actions that no generator made (found by a search,
    /// or read from elsewhere), with the stages placed so.
    Custom(Placement),
}

impl Kind {
    /// All schedules that can be made by name, oldest first; interleaved with two stages a rank.
    pub const ALL: [Kind; 7] =
        [Kind::GPipe, Kind::OneFOneB, Kind::Interleaved(2), Kind::ZbH1, Kind::ZbV, Kind::DualPipe, Kind::DualPipeV];

    /// The name on the command line, without the numbers that [`Display`](fmt::Display) adds.
    pub fn name(self) -> &'static str {
        match self {
            Kind::GPipe => "gpipe",
            Kind::OneFOneB => "1f1b",
            Kind::ZbH1 => "zb-h1",
            Kind::ZbV => "zb-v",
            Kind::DualPipe => "dualpipe",
            Kind::DualPipeV => "dualpipev",
            Kind::Interleaved(_) => "interleaved",
            Kind::Custom(Placement::Line) => "custom",
            Kind::Custom(Placement::Bidirectional) => "custom-bidirectional",
            Kind::Custom(Placement::V) => "custom-v",
            Kind::Custom(Placement::Loop(_)) => "custom-loop",
        }
    }

    /// Where this schedule puts the stages.
    pub fn placement(self) -> Placement {
        match self {
            Kind::GPipe | Kind::OneFOneB | Kind::ZbH1 => Placement::Line,
            Kind::DualPipe => Placement::Bidirectional,
            Kind::ZbV | Kind::DualPipeV => Placement::V,
            Kind::Interleaved(each) => Placement::Loop(each),
            Kind::Custom(placement) => placement,
        }
    }

    /// The fewest micro-batches with which this schedule on `ranks` ranks is what its authors describe. With fewer, it is their
    /// plan for so many with the rest left out.
    pub fn full_micro_batches(self, ranks: usize) -> usize {
        match self {
            Kind::GPipe | Kind::OneFOneB | Kind::Custom(_) => 1,
            Kind::ZbH1 | Kind::Interleaved(_) => ranks,
            Kind::ZbV => ranks.saturating_mul(2).saturating_sub(1),
            Kind::DualPipe | Kind::DualPipeV => ranks.saturating_mul(2),
        }
    }

    /// Checks that this schedule can be made for `ranks` ranks and `micro_batches` micro-batches: at least one of each; an even
    /// number of ranks for [`Placement::Bidirectional`], where each rank holds a stage and the one opposite, which would be the
    /// same stage twice in the middle of an odd number; 2 stages a rank or more for [`Kind::Interleaved`].
    ///
    /// # Errors
    /// What is wrong, and for [`Kind::Custom`] that it has no generator.
    pub fn check(self, ranks: usize, micro_batches: usize) -> Result<()> {
        if let Kind::Custom(_) = self {
            return Err(Error::UnknownKind { expected: generated(), got: self.to_string() });
        }
        self.placement_fits(ranks, micro_batches)
    }

    /// Checks what any list of actions of this kind needs, whatever its order.
    pub(crate) fn placement_fits(self, ranks: usize, micro_batches: usize) -> Result<()> {
        let two_way = self.placement() == Placement::Bidirectional;
        if ranks == 0 || (two_way && !ranks.is_multiple_of(2)) {
            let expected = match two_way {
                true => "an even number of 2 or more (in the middle of an odd number a stage would be opposite to itself)",
                false => "1 or more",
            };
            return Err(Error::Ranks { kind: self, expected: expected.into(), got: ranks });
        }
        if micro_batches == 0 {
            return Err(Error::MicroBatches { kind: self, ranks, expected: "1 or more".into(), got: micro_batches });
        }
        let (least, each) = match self {
            Kind::Interleaved(each) => (2, each),
            Kind::Custom(Placement::Loop(each)) => (1, each),
            _ => return Ok(()),
        };
        if each < least {
            return Err(Error::Shape {
                what: format!("schedule {self}"),
                expected: format!("{least} or more stages a rank"),
                got: each.to_string(),
            });
        }
        Ok(())
    }
}

impl fmt::Display for Kind {
    /// The name, with the number of stages a rank where it is part of it: what [`FromStr`] reads back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Interleaved(each) | Kind::Custom(Placement::Loop(each)) => f.pad(&format!("{}-{each}", self.name())),
            _ => f.pad(self.name()),
        }
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Kind> {
        let custom = [Placement::Line, Placement::Bidirectional, Placement::V].map(Kind::Custom);
        let plain = Kind::ALL.into_iter().chain(custom).find(|kind| kind.name() == text);
        let numbered = || {
            let (name, each) = text.rsplit_once('-')?;
            let each: u8 = each.parse().ok()?;
            match name {
                "interleaved" if each >= 2 => Some(Kind::Interleaved(each)),
                "custom-loop" if each >= 1 => Some(Kind::Custom(Placement::Loop(each))),
                _ => None,
            }
        };
        plain.or_else(numbered).ok_or_else(|| Error::UnknownKind { expected: generated(), got: text.into() })
    }
}

/// The names that a generator has.
fn generated() -> String {
    Kind::ALL.map(Kind::name).join(", ") + ", interleaved-N with N from 2 to 255"
}

/// Which stages a rank holds, and which micro-batches visit them in which direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Placement {
    /// As many stages as ranks; rank `r` holds stage `r`. One direction.
    Line,
    /// As many stages as ranks, each twice: rank `r` of `R` holds stage `r` for direction 0 and a copy of stage
    /// `R - 1 - r` for direction 1. Of `M` micro-batches the first half (the larger, if they differ) travels in direction 0.
    Bidirectional,
    /// Twice as many stages as ranks: rank `r` of `R` holds stage `r` (direction 0, the way down) and stage
    /// `2R - 1 - r` (direction 1, the way up). Every micro-batch visits both.
    V,
    /// So many times as many stages as ranks: rank `r` of `R` holds stage `d R + r` for each direction `d`, which here is the
    /// round. Every micro-batch goes round all ranks in each.
    Loop(u8),
}

impl Placement {
    /// Number of directions, which is the number of stages a rank holds.
    pub fn directions(self) -> usize {
        match self {
            Placement::Line => 1,
            Placement::Bidirectional | Placement::V => 2,
            Placement::Loop(each) => each.into(),
        }
    }

    /// Number of stages of the model.
    pub fn stages(self, ranks: usize) -> usize {
        match self {
            Placement::Line | Placement::Bidirectional => ranks,
            Placement::V => 2 * ranks,
            Placement::Loop(each) => usize::from(each) * ranks,
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
            (Placement::Loop(_), round) => round * ranks + rank,
            _ => ranks - 1 - rank,
        })
    }

    /// Number of chunks in `direction`.
    pub fn chunks(self, micro_batches: usize, direction: usize) -> usize {
        match (self, direction) {
            (Placement::Bidirectional, 0) => micro_batches.div_ceil(2),
            (Placement::Bidirectional, _) => micro_batches / 2,
            _ => micro_batches,
        }
    }

    /// The micro-batch that `chunk` of `direction` stands for.
    pub fn micro_batch(self, micro_batches: usize, direction: usize, chunk: usize) -> usize {
        match (self, direction) {
            (Placement::Bidirectional, 1..) => micro_batches.div_ceil(2) + chunk,
            _ => chunk,
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
                let first = micro_batches.div_ceil(2);
                if micro_batch < first { (stage, 0, micro_batch) } else { (ranks - 1 - stage, 1, micro_batch - first) }
            }
            Placement::V if stage < ranks => (stage, 0, micro_batch),
            Placement::V => (2 * ranks - 1 - stage, 1, micro_batch),
            Placement::Loop(_) => (stage % ranks, stage / ranks, micro_batch),
        })
    }
}
