//! What a schedule is searched for: costs, links, memory.

use crate::action::{Action, ActionKind, Step};
use crate::cost::{CostModel, Costs};
use crate::error::{Error, Result};
use crate::kind::Placement;
use crate::schedule::Schedule;

/// Half of what one rank computes: a model is cut into twice as many slices as ranks.
///
/// A stage of [`Placement::Line`] or [`Placement::Bidirectional`] is two neighbouring slices, a stage of [`Placement::V`] is one;
/// so one description serves every placement. Times are in any unit, memory in any other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slice {
    /// Forward.
    pub f: f64,
    /// Backward for the inputs.
    pub i: f64,
    /// Backward for the weights. A full backward costs `i + w`.
    pub w: f64,
    /// A forward and a full backward of this slice, overlapped. A pair of two stages takes the mean of theirs.
    pub fb: f64,
    /// Memory for its parameters, with their gradients and whatever the optimizer keeps.
    pub parameters: f64,
    /// Activations of one micro-batch that are freed by the backward for the inputs.
    pub at_input: f64,
    /// Activations of one micro-batch that are kept until the backward for the weights.
    pub at_weight: f64,
}

/// Costs, links and memory of a pipeline, and the placements that may be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Number of ranks, R.
    pub ranks: usize,
    /// Number of micro-batches, M.
    pub micro_batches: usize,
    /// The 2R slices of the model, first to last.
    pub slices: Vec<Slice>,
    /// The time of a transfer between rank `r` and `r + 1` (the last: between the last rank and rank 0, of use to
    /// interleaved schedules on 3 ranks or more), R of them.
    pub links: Vec<f64>,
    /// The most memory a rank may use, for parameters and activations together; infinite for no cap.
    pub memory: f64,
    /// The placements among which the search may choose.
    pub placements: Vec<Placement>,
}

/// The placements that the search knows.
pub const PLACEMENTS: [Placement; 3] = [Placement::Line, Placement::V, Placement::Bidirectional];

impl Problem {
    /// A pipeline whose ranks all compute the same: `costs` of a whole rank (one stage of [`Placement::Line`]), one unit of
    /// memory for the activations of a rank and a micro-batch, kept until `W`, none for parameters, no cap.
    pub fn uniform(ranks: usize, micro_batches: usize, costs: &Costs) -> Result<Problem> {
        check_sizes(ranks, micro_batches)?;
        Problem::from_stages(ranks, micro_batches, &vec![*costs; ranks])
    }

    /// A pipeline from the costs of its stages in order: one for each rank, which are then taken to be made of two equal halves, or two
    /// for each rank. Memory as in [`Problem::uniform`]; a transfer over the link from a rank to the next takes the `p2p` of
    /// the rank's (first) stage.
    ///
    /// # Errors
    /// Another number of stages, or costs that [`Costs::check`] refuses.
    pub fn from_stages(ranks: usize, micro_batches: usize, stages: &[Costs]) -> Result<Problem> {
        check_sizes(ranks, micro_batches)?;
        let halves = match stages.len() {
            n if n == ranks => 2,
            n if ranks.checked_mul(2) == Some(n) => 1,
            n => {
                return Err(Error::Shape {
                    what: "search: stages".into(),
                    expected: format!("{ranks} (one a rank) or twice as many"),
                    got: n.to_string(),
                });
            }
        };
        let mut slices = Vec::with_capacity(2 * ranks);
        for costs in stages {
            costs.check()?;
            let part = |value: f64| value / halves as f64;
            let slice = Slice {
                f: part(costs.f),
                i: part(costs.i()),
                w: part(costs.w),
                fb: part(costs.fb),
                parameters: 0.0,
                at_input: 0.0,
                at_weight: 0.5,
            };
            slices.extend(std::iter::repeat_n(slice, halves));
        }
        let links = stages.chunks(stages.len() / ranks).map(|of_rank| of_rank[0].p2p).collect();
        let problem = Problem { ranks, micro_batches, slices, links, memory: f64::INFINITY, placements: PLACEMENTS.to_vec() };
        problem.check()?;
        Ok(problem)
    }

    /// Checks sizes and values: 2R slices, R links, all finite and not negative, at least one placement.
    pub fn check(&self) -> Result<()> {
        let fault =
            |what: &str, expected: String, got: String| Err(Error::Shape { what: format!("search: {what}"), expected, got });
        check_sizes(self.ranks, self.micro_batches)?;
        if self.slices.len() != 2 * self.ranks {
            return fault("slices", format!("{}, two a rank", 2 * self.ranks), self.slices.len().to_string());
        }
        if self.links.len() != self.ranks {
            return fault("links", self.ranks.to_string(), self.links.len().to_string());
        }
        if self.placements.is_empty() {
            return fault("placements", "at least one".into(), "none".into());
        }
        if let Some(other) = self.placements.iter().find(|placement| !PLACEMENTS.contains(placement)) {
            return fault("placements", "one chunk a rank, V or bidirectional".into(), format!("{other:?}"));
        }
        let values = |slice: &Slice| [slice.f, slice.i, slice.w, slice.fb, slice.parameters, slice.at_input, slice.at_weight];
        let all = self.slices.iter().flat_map(values).chain(self.links.iter().copied());
        for value in all {
            if !(value.is_finite() && (0.0..=1e30).contains(&value)) {
                return fault("costs and sizes", "finite numbers, 0 to 1e30".into(), value.to_string());
            }
        }
        if self.memory.is_nan() || self.memory < 0.0 {
            return fault("memory", "a cap, 0 or more".into(), self.memory.to_string());
        }
        Ok(())
    }

    /// The slices of which a stage is made.
    fn slices_of(&self, placement: Placement, stage: usize) -> &[Slice] {
        let each = 2 * self.ranks / placement.stages(self.ranks).max(1);
        self.slices.get(stage * each..(stage + 1) * each).unwrap_or(&[])
    }

    /// What a stage costs and keeps: the sum of its slices.
    pub fn stage(&self, placement: Placement, stage: usize) -> Slice {
        let zero = Slice { f: 0.0, i: 0.0, w: 0.0, fb: 0.0, parameters: 0.0, at_input: 0.0, at_weight: 0.0 };
        self.slices_of(placement, stage).iter().fold(zero, |sum, slice| Slice {
            f: sum.f + slice.f,
            i: sum.i + slice.i,
            w: sum.w + slice.w,
            fb: sum.fb + slice.fb,
            parameters: sum.parameters + slice.parameters,
            at_input: sum.at_input + slice.at_input,
            at_weight: sum.at_weight + slice.at_weight,
        })
    }

    /// The costs as a model for [`crate::simulate`].
    pub fn costs(&self, placement: Placement) -> PlacedCosts {
        let stages = (0..placement.stages(self.ranks)).map(|stage| self.stage(placement, stage)).collect();
        PlacedCosts { stages, links: self.links.clone() }
    }

    /// The memory that the parameters of each rank take: a rank that holds two stages holds the parameters of both.
    pub fn parameters(&self, placement: Placement) -> Vec<f64> {
        let of_rank = |rank: usize| {
            let stages = (0..placement.directions()).filter_map(|d| placement.stage_of(self.ranks, rank, d));
            stages.map(|stage| self.stage(placement, stage).parameters).sum()
        };
        (0..self.ranks).map(of_rank).collect()
    }

    /// The most memory that each rank uses at one time, parameters and activations. A chunk counts from the start of its
    /// forward; the forward of a pair counts before its backward frees anything.
    ///
    /// # Errors
    /// A schedule for other ranks, or with another cut of the model than halves.
    pub fn peak_memory(&self, schedule: &Schedule) -> Result<Vec<f64>> {
        self.check()?;
        let placement = schedule.placement();
        let stages = placement.stages(self.ranks);
        if schedule.ranks() != self.ranks || (stages != self.ranks && stages != 2 * self.ranks) {
            return Err(Error::Shape {
                what: "search: schedule".into(),
                expected: format!("{} ranks with one or two stages each", self.ranks),
                got: format!("{} ranks, {stages} stages", schedule.ranks()),
            });
        }
        let stage_sizes: Vec<Slice> = (0..stages).map(|stage| self.stage(placement, stage)).collect();
        let of_rank = |(rank, steps): (usize, &Vec<Step>)| {
            let size = |action: &Action| {
                let stage = schedule.stage_of(rank, action.direction).and_then(|stage| stage_sizes.get(stage));
                stage.map_or((0.0, 0.0), |stage| (stage.at_input, stage.at_weight))
            };
            let parameters: f64 = schedule.stages_of(rank).iter().filter_map(|&s| stage_sizes.get(s)).map(|s| s.parameters).sum();
            let (mut held, mut peak) = (parameters, parameters);
            for step in steps {
                for action in step.actions().filter(|a| a.kind == ActionKind::F) {
                    let (at_input, at_weight) = size(&action);
                    held += at_input + at_weight;
                }
                peak = peak.max(held);
                for action in step.actions() {
                    let (at_input, at_weight) = size(&action);
                    held -= match action.kind {
                        ActionKind::F => 0.0,
                        ActionKind::I => at_input,
                        ActionKind::W => at_weight,
                        ActionKind::B => at_input + at_weight,
                    };
                }
            }
            peak
        };
        Ok(schedule.ranks_actions().iter().enumerate().map(of_rank).collect())
    }

    /// Whether a schedule keeps every rank within the cap (to 1e-9 of it, for sums of fractions).
    ///
    /// # Errors
    /// As [`Problem::peak_memory`].
    pub fn fits(&self, schedule: &Schedule) -> Result<bool> {
        Ok(self.peak_memory(schedule)?.iter().all(|&peak| peak <= allowed(self.memory)))
    }
}

/// The largest `2 x ranks x micro-batches` that is searched.
pub const MAX_SEARCHED: usize = 1 << 14;

/// Sizes that there are, and that a search can look at.
fn check_sizes(ranks: usize, micro_batches: usize) -> Result<()> {
    let chunks = ranks.checked_mul(2).and_then(|stages| stages.checked_mul(micro_batches));
    if chunks.is_some_and(|chunks| (1..=MAX_SEARCHED).contains(&chunks)) {
        return Ok(());
    }
    Err(Error::Shape {
        what: "search: sizes".into(),
        expected: format!("1 or more ranks and micro-batches, 2 x ranks x micro-batches of at most {MAX_SEARCHED}"),
        got: format!("{ranks} ranks and {micro_batches} micro-batches"),
    })
}

/// The cap with room for the rounding of sums.
pub(crate) fn allowed(memory: f64) -> f64 {
    memory + 1e-9 * memory.abs()
}

/// The costs of a [`Problem`] for one placement.
#[derive(Debug, Clone, PartialEq)]
pub struct PlacedCosts {
    stages: Vec<Slice>,
    links: Vec<f64>,
}

impl CostModel for PlacedCosts {
    /// NaN, which [`crate::simulate`] refuses, for a stage that the problem does not have.
    fn compute(&self, schedule: &Schedule, rank: usize, step: &Step) -> f64 {
        let of = |direction: u8| schedule.stage_of(rank, direction).and_then(|stage| self.stages.get(stage));
        match step {
            Step::One(action) => of(action.direction).map_or(f64::NAN, |stage| match action.kind {
                ActionKind::F => stage.f,
                ActionKind::B => stage.i + stage.w,
                ActionKind::I => stage.i,
                ActionKind::W => stage.w,
            }),
            Step::Pair(forward, backward) => match (of(forward.direction), of(backward.direction)) {
                (Some(a), Some(b)) => 0.5 * (a.fb + b.fb),
                _ => f64::NAN,
            },
        }
    }

    /// The time of the direct link; 0 between ranks that have none, since no placement sends there.
    fn transfer(&self, from: usize, to: usize) -> f64 {
        let (low, high) = (from.min(to), from.max(to));
        let link = match high - low {
            1 => Some(low),
            // Round the ends.
            _ if low == 0 && high + 1 == self.links.len() => Some(high),
            _ => None,
        };
        link.and_then(|link| self.links.get(link)).copied().unwrap_or(0.0)
    }
}
