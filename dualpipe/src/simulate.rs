//! Runs a schedule on paper.

use crate::action::{ActionKind, Step};
use crate::cost::CostModel;
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::schedule::Schedule;
use crate::timeline::{Span, TimeUnit, Timeline};

/// Runs `schedule` with these costs: every rank takes its steps in order and starts each as soon as it is free and all
/// that the step needs has arrived.
///
/// A step needs, for each of its actions: `F` the activation of the stage before; `B` and `I` the gradient of the stage
/// after (the last stage: nothing but its own forward); `W` nothing. A pair needs both and gives both at its end; `B` gives
/// its gradient at its end. A result reaches another rank after [`CostModel::transfer`], the same rank at once; links carry
/// any number of transfers at a time.
///
/// # Errors
/// A cost that is negative or not a number.
///
/// ```
/// use dualpipe::{Costs, Kind, Schedule, simulate};
/// let timeline = simulate(&Schedule::new(Kind::OneFOneB, 4, 8)?, &Costs::default())?;
/// assert_eq!(timeline.makespan(), 33.0); // (M + R - 1)(F + B)
/// assert_eq!(timeline.bubble(), 9.0); // (R - 1)(F + B)
/// # Ok::<(), dualpipe::Error>(())
/// ```
pub fn simulate(schedule: &Schedule, costs: &impl CostModel) -> Result<Timeline> {
    let good = |value: f64| value.is_finite() && value >= 0.0;
    for (rank, steps) in schedule.ranks_actions().iter().enumerate() {
        for (index, step) in steps.iter().enumerate() {
            let cost = costs.compute(schedule, rank, step);
            if !good(cost) {
                return Err(bad_cost(format!("rank {rank}, step {index} ({step})"), cost));
            }
        }
        for other in (0..schedule.ranks()).filter(|&other| other != rank) {
            let cost = costs.transfer(rank, other);
            if !good(cost) {
                return Err(bad_cost(format!("transfer from rank {rank} to {other}"), cost));
            }
        }
    }
    let plan = Plan {
        kind: schedule.kind(),
        ranks: schedule.ranks(),
        micro_batches: schedule.micro_batches(),
        ranks_actions: schedule.ranks_actions(),
    };
    let spans = run(&plan, &|rank, step| costs.compute(schedule, rank, step), &|from, to| costs.transfer(from, to)).map_err(
        |blocked| Error::Deadlock {
            rank: blocked.rank,
            step: blocked.step,
            action: schedule.steps(blocked.rank)[blocked.step].to_string(),
            waits_for: blocked.waits_for,
        },
    )?;
    Ok(Timeline::from_parts(schedule, spans, TimeUnit::Units))
}

fn bad_cost(what: String, cost: f64) -> Error {
    let expected = "a finite cost, 0 or more".into();
    Error::Shape { what, expected, got: cost.to_string() }
}

/// A list of actions that need not be a valid schedule; its directions and chunks exist.
pub(crate) struct Plan<'a> {
    pub(crate) kind: Kind,
    pub(crate) ranks: usize,
    pub(crate) micro_batches: usize,
    pub(crate) ranks_actions: &'a [Vec<Step>],
}

/// A rank that cannot go on.
pub(crate) struct Blocked {
    pub(crate) rank: usize,
    pub(crate) step: usize,
    pub(crate) waits_for: String,
}

/// When the results of one micro-batch in one stage are there: infinite before.
#[derive(Clone, Copy)]
struct Results {
    activation: f64,
    gradient: f64,
}

/// Takes the steps of all ranks in an order that their needs allow. A rank is looked at again only when something that it
/// may wait for has been made, so the work is proportional to the number of steps.
pub(crate) fn run(
    plan: &Plan<'_>,
    compute: &dyn Fn(usize, &Step) -> f64,
    transfer: &dyn Fn(usize, usize) -> f64,
) -> std::result::Result<Vec<Vec<Span>>, Blocked> {
    let placement = plan.kind.placement();
    let stages = placement.stages(plan.ranks);
    let pending = Results { activation: f64::INFINITY, gradient: f64::INFINITY };
    let mut results = vec![pending; stages * plan.micro_batches];
    let mut spans: Vec<Vec<Span>> = plan.ranks_actions.iter().map(|steps| Vec::with_capacity(steps.len())).collect();
    let mut clock = vec![0.0f64; plan.ranks];

    let where_is = |rank: usize, direction: u8, chunk: usize| {
        let stage = placement.stage_of(plan.ranks, rank, direction.into()).unwrap_or(0);
        (stage, placement.micro_batch(plan.micro_batches, direction.into(), chunk))
    };
    let rank_of = |stage: usize, micro_batch: usize| {
        let found = placement.locate(plan.ranks, plan.micro_batches, stage, micro_batch);
        found.map_or(0, |(rank, ..)| rank)
    };
    // When all that the step needs has arrived, or what it waits for.
    let arrival = |results: &[Results], rank: usize, step: &Step| -> std::result::Result<f64, String> {
        let mut latest = 0.0f64;
        for action in step.actions() {
            let (stage, micro_batch) = where_is(rank, action.direction, action.chunk);
            let (source, gradient) = match action.kind {
                ActionKind::F if stage > 0 => (stage - 1, false),
                ActionKind::B | ActionKind::I if stage + 1 < stages => (stage + 1, true),
                _ => continue,
            };
            let made = results[micro_batch * stages + source];
            let time = if gradient { made.gradient } else { made.activation };
            let from = rank_of(source, micro_batch);
            if time == f64::INFINITY {
                let what = if gradient { "gradient" } else { "activation" };
                return Err(format!("the {what} of micro-batch {micro_batch} from stage {source} on rank {from}"));
            }
            let travel = if from == rank { 0.0 } else { transfer(from, rank) };
            latest = latest.max(time + travel);
        }
        Ok(latest)
    };

    let mut awake: Vec<usize> = (0..plan.ranks).rev().collect();
    while let Some(rank) = awake.pop() {
        while let Some(step) = plan.ranks_actions[rank].get(spans[rank].len()) {
            let Ok(ready) = arrival(&results, rank, step) else { break };
            let free = clock[rank];
            let start = free.max(ready);
            let end = start + compute(rank, step);
            clock[rank] = end;
            spans[rank].push(Span { rank, step: *step, start, end, wait: start - free });
            for action in step.actions() {
                let (stage, micro_batch) = where_is(rank, action.direction, action.chunk);
                let made = &mut results[micro_batch * stages + stage];
                let next = match action.kind {
                    ActionKind::F => {
                        made.activation = end;
                        (stage + 1 < stages).then_some(stage + 1)
                    }
                    ActionKind::B | ActionKind::I => {
                        made.gradient = end;
                        stage.checked_sub(1)
                    }
                    ActionKind::W => None,
                };
                if let Some(next) = next.map(|next| rank_of(next, micro_batch))
                    && next != rank
                {
                    awake.push(next);
                }
            }
        }
    }
    for (rank, steps) in plan.ranks_actions.iter().enumerate() {
        let index = spans[rank].len();
        if let Some(step) = steps.get(index) {
            let waits_for = arrival(&results, rank, step).err().unwrap_or_default();
            return Err(Blocked { rank, step: index, waits_for });
        }
    }
    Ok(spans)
}
