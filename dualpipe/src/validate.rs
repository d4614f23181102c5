//! Checks that a list of actions is a schedule.

use crate::action::{Action, ActionKind, Step};
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::schedule::size_fits;
use crate::simulate::{Plan, run};

/// Checks that every rank does every forward once and every backward once (as `B`, or as `I` and later `W`), nothing
/// else, in an order in which nobody waits for ever.
///
/// In detail:
/// - as many lists as ranks; ranks and micro-batches that the placement of `kind` can hold;
/// - directions and chunks that exist; a pair is one `F` and one `B` of different chunks;
/// - on each rank, for each direction and chunk: exactly one `F`; exactly one `B`, or exactly one `I` and one `W`; `F`
///   before the backward, `I` before `W`;
/// - every activation or gradient that a step needs is made by exactly one step of the rank that holds the neighbouring
///   stage (which follows from the above), and that step can run before: there is no circle of waiting.
pub fn validate(kind: Kind, ranks: usize, micro_batches: usize, ranks_actions: &[Vec<Step>]) -> Result<()> {
    kind.placement_fits(ranks, micro_batches)?;
    size_fits(kind, ranks, micro_batches)?;
    if ranks_actions.len() != ranks {
        return Err(Error::Shape {
            what: "schedule: ranks_actions".into(),
            expected: format!("{ranks} lists, one a rank"),
            got: ranks_actions.len().to_string(),
        });
    }
    for (rank, steps) in ranks_actions.iter().enumerate() {
        check_rank(kind, micro_batches, rank, steps)?;
    }
    let plan = Plan { kind, ranks, micro_batches, ranks_actions };
    match run(&plan, &|_, _| 1.0, &|_, _| 0.0) {
        Ok(_) => Ok(()),
        Err(blocked) => Err(Error::Deadlock {
            rank: blocked.rank,
            step: blocked.step,
            action: ranks_actions[blocked.rank][blocked.step].to_string(),
            waits_for: blocked.waits_for,
        }),
    }
}

/// What a rank has done with a chunk.
#[derive(Clone, Copy, Default)]
struct Done {
    forward: bool,
    input: bool,
    weight: bool,
}

fn check_rank(kind: Kind, micro_batches: usize, rank: usize, steps: &[Step]) -> Result<()> {
    let directions = kind.placement().directions();
    let placement = kind.placement();
    // Direction 0 has the most.
    let chunks = placement.chunks(micro_batches, 0);
    let mut done = vec![Done::default(); directions * chunks];
    for (index, step) in steps.iter().enumerate() {
        let fault = |message: String| Err(Error::Step { rank, step: index, message });
        if let Step::Pair(first, second) = step {
            if (first.kind, second.kind) != (ActionKind::F, ActionKind::B) {
                return fault(format!("expected a pair of F and B, found {step}"));
            }
            if (first.direction, first.chunk) == (second.direction, second.chunk) {
                return fault(format!("expected a pair of different chunks, found {step}"));
            }
        }
        for action in step.actions() {
            let Action { direction, chunk, .. } = action;
            if usize::from(direction) >= directions {
                return fault(format!("expected a direction below {directions}, found {action}"));
            }
            let here = placement.chunks(micro_batches, direction.into());
            if chunk >= here {
                return fault(format!("expected a chunk below {here}, found {action}"));
            }
            let state = &mut done[usize::from(direction) * chunks + chunk];
            let problem = match action.kind {
                ActionKind::F if state.forward => Some("F twice"),
                ActionKind::B | ActionKind::I if !state.forward => Some("backward before F"),
                ActionKind::B | ActionKind::I if state.input => Some("backward for the inputs twice"),
                ActionKind::W if state.weight => Some("backward for the weights twice"),
                ActionKind::W if !state.input => Some("W before I"),
                _ => None,
            };
            if let Some(problem) = problem {
                return fault(format!("expected each action once and in its order, found {action}: {problem}"));
            }
            match action.kind {
                ActionKind::F => state.forward = true,
                ActionKind::I => state.input = true,
                ActionKind::W => state.weight = true,
                ActionKind::B => (state.input, state.weight) = (true, true),
            }
        }
    }
    for (slot, state) in done.iter().enumerate() {
        let (direction, chunk) = (slot / chunks, slot % chunks);
        if chunk >= placement.chunks(micro_batches, direction) {
            continue;
        }
        let missing = match state {
            Done { forward: false, .. } => "F",
            Done { input: false, .. } => "B (or I and W)",
            Done { weight: false, .. } => "W",
            _ => continue,
        };
        let missing = format!("{missing} of direction {direction}, chunk {chunk}");
        return Err(Error::Missing { rank, missing });
    }
    Ok(())
}
