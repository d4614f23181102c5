//! When each rank did what: simulated, or measured by the executor.

use std::collections::BTreeMap;

use crate::action::{ActionKind, Step};
use crate::cost::CostModel;
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::schedule::{Freed, Schedule};

/// One step of a rank in time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// The rank.
    pub rank: usize,
    /// What it did.
    pub step: Step,
    /// When the work began, all that it needed being there.
    pub start: f64,
    /// When the work ended.
    pub end: f64,
    /// How long the rank waited for what the step needed before `start`. In a simulation that is all the time since
    /// the rank's step before.
    pub wait: f64,
}

/// The unit of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimeUnit {
    /// That of the costs.
    Units,
    /// Seconds.
    Seconds,
}

/// When each rank did what, from 0 to [`Timeline::makespan`].
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    kind: Kind,
    micro_batches: usize,
    unit: TimeUnit,
    spans: Vec<Vec<Span>>,
    makespan: f64,
    peak_at_input: Vec<usize>,
    peak_at_weight: Vec<usize>,
}

impl Timeline {
    pub(crate) fn from_parts(schedule: &Schedule, spans: Vec<Vec<Span>>, unit: TimeUnit) -> Timeline {
        let makespan = spans.iter().flatten().fold(0.0f64, |latest, span| latest.max(span.end));
        Timeline {
            kind: schedule.kind(),
            micro_batches: schedule.micro_batches(),
            unit,
            spans,
            makespan,
            peak_at_input: schedule.peak_activations(Freed::AtInput),
            peak_at_weight: schedule.peak_activations(Freed::AtWeight),
        }
    }

    /// The timeline of an executed schedule, from what [`crate::execute`] gave on each rank (index = rank), in seconds.
    /// It begins where the first rank began to work or to wait.
    ///
    /// # Errors
    /// Spans that are not those of `schedule`, or run backwards in time.
    pub fn measured(schedule: &Schedule, mut spans: Vec<Vec<Span>>) -> Result<Timeline> {
        let fault = |what: String, expected: String, got: String| Error::Shape { what, expected, got };
        if spans.len() != schedule.ranks() {
            let expected = format!("{} lists, one a rank", schedule.ranks());
            return Err(fault("spans".into(), expected, spans.len().to_string()));
        }
        let mut begin = f64::INFINITY;
        for (rank, list) in spans.iter().enumerate() {
            let steps = schedule.steps(rank);
            if list.len() != steps.len() {
                let expected = format!("{} spans", steps.len());
                return Err(fault(format!("spans of rank {rank}"), expected, list.len().to_string()));
            }
            let mut free = f64::NEG_INFINITY;
            for (index, (span, step)) in list.iter().zip(steps).enumerate() {
                let what = || format!("span {index} of rank {rank}");
                if (span.rank, span.step) != (rank, *step) {
                    let got = format!("rank {}, {}", span.rank, span.step);
                    return Err(fault(what(), format!("rank {rank}, {step}"), got));
                }
                let in_order = free <= span.start && span.start <= span.end && span.wait >= 0.0;
                if !(in_order && span.end.is_finite() && span.wait.is_finite()) {
                    let got = format!("{} to {} after {free}", span.start, span.end);
                    return Err(fault(what(), "times in order".into(), got));
                }
                begin = begin.min(span.start - span.wait);
                free = span.end;
            }
        }
        for span in spans.iter_mut().flatten() {
            span.start -= begin;
            span.end -= begin;
        }
        Ok(Timeline::from_parts(schedule, spans, TimeUnit::Seconds))
    }

    /// The kind of the schedule.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.spans.len()
    }

    /// Number of micro-batches.
    pub fn micro_batches(&self) -> usize {
        self.micro_batches
    }

    /// The unit of all times.
    pub fn unit(&self) -> TimeUnit {
        self.unit
    }

    /// The same times called by another unit: for a simulation whose costs are seconds.
    pub fn with_unit(mut self, unit: TimeUnit) -> Timeline {
        self.unit = unit;
        self
    }

    /// The spans of each rank, in order.
    pub fn spans(&self) -> &[Vec<Span>] {
        &self.spans
    }

    /// When the last rank ends.
    pub fn makespan(&self) -> f64 {
        self.makespan
    }

    /// How long each rank works.
    pub fn busy(&self) -> Vec<f64> {
        let sum = |list: &Vec<Span>| list.iter().map(|span| span.end - span.start).sum();
        self.spans.iter().map(sum).collect()
    }

    /// For each rank the makespan minus the time it works.
    pub fn bubbles(&self) -> Vec<f64> {
        self.busy().into_iter().map(|busy| self.makespan - busy).collect()
    }

    /// The bubble of the least busy rank, the largest: what the formulas of the papers give.
    pub fn bubble(&self) -> f64 {
        self.bubbles().into_iter().fold(0.0, f64::max)
    }

    /// For each rank the share of the makespan in which it does not work, 0 to 1.
    pub fn idle_shares(&self) -> Vec<f64> {
        let share = |bubble: f64| if self.makespan > 0.0 { bubble / self.makespan } else { 0.0 };
        self.bubbles().into_iter().map(share).collect()
    }

    /// The share of all ranks' time in which they do not work, 0 to 1.
    pub fn idle_share(&self) -> f64 {
        let shares = self.idle_shares();
        shares.iter().sum::<f64>() / shares.len().max(1) as f64
    }

    /// The most chunks of which each rank keeps activations; see [`Schedule::peak_activations`].
    pub fn peak_activations(&self, freed: Freed) -> &[usize] {
        match freed {
            Freed::AtInput => &self.peak_at_input,
            Freed::AtWeight => &self.peak_at_weight,
        }
    }

    /// How many chunks a rank keeps activations of, over time: the number from each of these times on, beginning with 0 at time 0. A chunk
    /// counts from the start of its forward to the end of what frees it. Empty where there is no such rank.
    pub fn activation_curve(&self, rank: usize, freed: Freed) -> Vec<(f64, usize)> {
        let Some(spans) = self.spans.get(rank) else { return Vec::new() };
        let (mut curve, mut held) = (vec![(0.0, 0)], 0usize);
        for span in spans {
            let made = span.step.actions().filter(|action| action.kind == ActionKind::F).count();
            let ended = span.step.actions().filter(|action| freed.by(action.kind)).count();
            for (time, now) in [(span.start, held + made), (span.end, (held + made).saturating_sub(ended))] {
                if now != held {
                    held = now;
                    curve.push((time, held));
                }
            }
        }
        curve
    }

    /// The mean cost of each kind of step on each rank of this timeline, to simulate the same plan with.
    pub fn mean_costs(&self) -> MeasuredCosts {
        let mut sums: BTreeMap<StepKey, (f64, usize)> = BTreeMap::new();
        for span in self.spans.iter().flatten() {
            let entry = sums.entry(key(span.rank, &span.step)).or_default();
            entry.0 += span.end - span.start;
            entry.1 += 1;
        }
        let mean = |(key, (sum, count)): (StepKey, (f64, usize))| (key, sum / count as f64);
        MeasuredCosts { means: sums.into_iter().map(mean).collect(), transfer: 0.0 }
    }
}

/// Rank, kind and direction of the first action, whether it is a pair.
type StepKey = (usize, ActionKind, u8, bool);

fn key(rank: usize, step: &Step) -> StepKey {
    match step {
        Step::One(action) => (rank, action.kind, action.direction, false),
        Step::Pair(forward, _) => (rank, forward.kind, forward.direction, true),
    }
}

/// The mean cost of each kind of step (kind and direction, pairs apart) on each rank: see [`Timeline::mean_costs`].
#[derive(Debug, Clone, PartialEq)]
pub struct MeasuredCosts {
    means: BTreeMap<StepKey, f64>,
    /// What a transfer costs, in the unit of the timeline; 0 at first.
    pub transfer: f64,
}

impl CostModel for MeasuredCosts {
    /// NaN, which [`crate::simulate`] refuses, for a kind of step that was not in the timeline.
    fn compute(&self, _: &Schedule, rank: usize, step: &Step) -> f64 {
        self.means.get(&key(rank, step)).copied().unwrap_or(f64::NAN)
    }

    fn transfer(&self, _: usize, _: usize) -> f64 {
        self.transfer
    }
}
