//! The obvious simulator: the oracle of the tests.
//!
//! It asks of every step again and again when it could end, given what is known of the others, until nothing changes.

use std::collections::HashMap;

use crate::action::{ActionKind, Step};
use crate::cost::Costs;
use crate::schedule::Schedule;

/// Start and end of every step of every rank, by repeated relaxation: a step starts at the largest of the end of the
/// rank's step before and the arrivals of what it needs.
pub fn times(schedule: &Schedule, costs: &Costs) -> Vec<Vec<(f64, f64)>> {
    let last = schedule.stages() - 1;
    let mut times: Vec<Vec<(f64, f64)>> = schedule.ranks_actions().iter().map(|steps| vec![(0.0, 0.0); steps.len()]).collect();
    // Where the activation and the gradient of (stage, micro-batch) are made.
    let mut activation_at = HashMap::new();
    let mut gradient_at = HashMap::new();
    for (rank, steps) in schedule.ranks_actions().iter().enumerate() {
        for (index, step) in steps.iter().enumerate() {
            for action in step.actions() {
                let stage = schedule.stage_of(rank, action.direction).unwrap_or_default();
                let place = (stage, schedule.micro_batch(action.direction, action.chunk));
                match action.kind {
                    ActionKind::F => activation_at.insert(place, (rank, index)),
                    ActionKind::B | ActionKind::I => gradient_at.insert(place, (rank, index)),
                    ActionKind::W => None,
                };
            }
        }
    }
    loop {
        let mut changed = false;
        for (rank, steps) in schedule.ranks_actions().iter().enumerate() {
            for (index, step) in steps.iter().enumerate() {
                let mut start = if index == 0 { 0.0 } else { times[rank][index - 1].1 };
                for action in step.actions() {
                    let stage = schedule.stage_of(rank, action.direction).unwrap_or_default();
                    let micro_batch = schedule.micro_batch(action.direction, action.chunk);
                    let made_at = match action.kind {
                        ActionKind::F if stage > 0 => activation_at.get(&(stage - 1, micro_batch)),
                        ActionKind::B | ActionKind::I if stage < last => gradient_at.get(&(stage + 1, micro_batch)),
                        _ => None,
                    };
                    if let Some(&(from, made)) = made_at {
                        let travel = if from == rank { 0.0 } else { costs.p2p };
                        start = f64::max(start, times[from][made].1 + travel);
                    }
                }
                let now = (start, start + duration(costs, step));
                changed |= times[rank][index] != now;
                times[rank][index] = now;
            }
        }
        if !changed {
            return times;
        }
    }
}

fn duration(costs: &Costs, step: &Step) -> f64 {
    match step {
        Step::Pair(..) => costs.fb,
        Step::One(action) => match action.kind {
            ActionKind::F => costs.f,
            ActionKind::B => costs.b,
            ActionKind::I => costs.b - costs.w,
            ActionKind::W => costs.w,
        },
    }
}
