//! What the bubble of each schedule is, by formula, and bounds where the formula does not hold.
//!
//! With `R` ranks, `M` micro-batches, `I = B - W`, free transfers, and the bubble being the makespan minus the time that
//! the least busy rank works:
//!
//! | schedule  | bubble                        | holds for                                        |
//! |-----------|-------------------------------|--------------------------------------------------|
//! | gpipe     | `(R-1)(F+B)`                  | all costs, all `M`                               |
//! | 1f1b      | `(R-1)(F+B)`                  | all costs, all `M`                               |
//! | interleaved | `(R-1)(F+B)`                | all costs, `M` a multiple of `R`                 |
//! | zb-h1     | `(R-1)(F+B-2W)`               | `M >= R`, `W <= F`, `W <= I`                     |
//! | zb-v      | `(R-1) max(I, 2(I-W))`        | `M >= 2R-1`, `F <= I`, `W <= I`                  |
//! | dualpipe  | `(R/2-1)(FB+F-2W)`            | even `M >= 2R`, `W <= I <= F`, `max(F,B) <= FB <= F+B` |
//! | dualpipev | `(R-1)(FB+F-2W)`              | `M >= 2R`, `W <= I <= F`, `max(F,B) <= FB <= F+B` |
//!
//! The table of the DualPipe paper writes `(PP/2-1)(FB+B-3W)`, which is the same when `F = I`, as there. A stage of zb-v
//! and dualpipev is half of one of the others, one of interleaved an N-th, so that for the same model their costs are as much
//! smaller. For
//! `F = I = W` zb-v leaves `(R-1)F`: the last rank cannot begin before the first micro-batch reaches it.
//!
//! The tests hold the simulator to these on a grid of ranks, micro-batches and costs. Elsewhere [`bubble_bounds`] encloses
//! it. A simulated end time is the longest path through steps in a fixed order, so it never falls when a cost rises;
//! [`bubble_bounds`] moves the costs up, and down, to the nearest place where the formula holds (a transfer is moved into
//! the step that sends), and takes the makespans there. Where the micro-batches are not as the formula needs, a
//! schedule is the plan for more with steps left out, which ends no later; and one micro-batch must go there and back.

use crate::action::ActionKind;
use crate::cost::Costs;
use crate::kind::Kind;
use crate::schedule::Schedule;

/// The bubble by the formula above, or `None` where it does not hold.
///
/// ```
/// use dualpipe::{Costs, Kind, formula};
/// let costs: Costs = "F=1,B=2,W=1,FB=2.5".parse()?;
/// assert_eq!(formula::bubble(Kind::DualPipe, 8, 20, &costs), Some(3.0 * 1.5));
/// assert_eq!(formula::bubble(Kind::ZbH1, 8, 4, &costs), None);
/// # Ok::<(), dualpipe::Error>(())
/// ```
pub fn bubble(kind: Kind, ranks: usize, micro_batches: usize, costs: &Costs) -> Option<f64> {
    let holds = kind.check(ranks, micro_batches).is_ok()
        && costs.check().is_ok()
        && costs.p2p == 0.0
        && enough(kind, ranks, micro_batches) == micro_batches
        && in_domain(kind, costs);
    holds.then(|| value(kind, ranks, costs))
}

/// A lower and an upper bound of the simulated bubble of a schedule made by [`Schedule::new`], for any costs. They meet
/// where the formula holds. See the text of this module for why they hold.
///
/// # Errors
/// Costs that [`Costs::check`] refuses.
pub fn bubble_bounds(schedule: &Schedule, costs: &Costs) -> crate::Result<(f64, f64)> {
    costs.check()?;
    let (kind, ranks, micro_batches) = (schedule.kind(), schedule.ranks(), schedule.micro_batches());
    let busy = least_busy(schedule, costs);
    let lowered = lower(kind, costs);
    let there_and_back = schedule.stages() as f64 * (lowered.f + lowered.i()) + lowered.w;
    if let Kind::Custom(_) = kind {
        // One step at a time, of all ranks.
        let steps = schedule.ranks_actions().iter().flatten().map(|step| costs.step(step) + 2.0 * costs.p2p);
        return Ok(((there_and_back - busy).max(0.0), (steps.sum::<f64>() - busy).max(0.0)));
    }
    let raised = raise(kind, costs);
    let full = enough(kind, ranks, micro_batches);
    if micro_batches == full {
        let low = value(kind, ranks, &lowered) + least_busy(schedule, &lowered);
        let high = value(kind, ranks, &raised) + least_busy(schedule, &raised);
        return Ok(((low - busy).max(0.0), high - busy));
    }
    let fuller = Schedule::new(kind, ranks, full)?;
    let high = value(kind, ranks, &raised) + least_busy(&fuller, &raised);
    Ok(((there_and_back - busy).max(0.0), high - busy))
}

/// The fewest micro-batches, so many or more, for which the formula holds.
fn enough(kind: Kind, ranks: usize, micro_batches: usize) -> usize {
    let least = micro_batches.max(kind.full_micro_batches(ranks));
    match kind {
        Kind::DualPipe => least.next_multiple_of(2),
        Kind::Interleaved(_) => least.next_multiple_of(ranks.max(1)),
        _ => least,
    }
}

fn value(kind: Kind, ranks: usize, costs: &Costs) -> f64 {
    let Costs { f, b, w, fb, .. } = *costs;
    let i = costs.i();
    match kind {
        Kind::GPipe | Kind::OneFOneB | Kind::Interleaved(_) => (ranks as f64 - 1.0) * (f + b),
        // Not asked: there is none.
        Kind::Custom(_) => f64::NAN,
        Kind::ZbH1 => (ranks as f64 - 1.0) * (f + b - 2.0 * w),
        Kind::ZbV => (ranks as f64 - 1.0) * i.max(2.0 * (i - w)),
        Kind::DualPipe => (ranks as f64 / 2.0 - 1.0) * (fb + f - 2.0 * w),
        Kind::DualPipeV => (ranks as f64 - 1.0) * (fb + f - 2.0 * w),
    }
}

fn in_domain(kind: Kind, costs: &Costs) -> bool {
    let Costs { f, b, w, fb, .. } = *costs;
    let i = costs.i();
    match kind {
        Kind::GPipe | Kind::OneFOneB | Kind::Interleaved(_) => true,
        Kind::Custom(_) => false,
        Kind::ZbH1 => w <= f && w <= i,
        Kind::ZbV => f <= i && w <= i,
        Kind::DualPipe | Kind::DualPipeV => w <= i && i <= f && f.max(b) <= fb && fb <= f + b,
    }
}

/// Costs in the formula's domain, none of them below `costs` with its transfers moved into the steps that send.
fn raise(kind: Kind, costs: &Costs) -> Costs {
    let mut f = costs.f + costs.p2p;
    let mut i = costs.i() + costs.p2p;
    let w = costs.w;
    let mut fb = costs.fb + costs.p2p;
    match kind {
        Kind::GPipe | Kind::OneFOneB | Kind::Interleaved(_) | Kind::Custom(_) => {}
        Kind::ZbH1 => {
            f = f.max(w);
            i = i.max(w);
        }
        Kind::ZbV => i = i.max(f).max(w),
        Kind::DualPipe | Kind::DualPipeV => {
            i = i.max(w);
            f = f.max(i);
            fb = fb.max(f).max(i + w);
            f = f.max(fb - (i + w));
        }
    }
    Costs { f, b: i + w, w, fb, p2p: 0.0 }
}

/// Costs in the formula's domain, none of them above `costs`.
fn lower(kind: Kind, costs: &Costs) -> Costs {
    let (mut f, mut i, mut w, mut fb) = (costs.f, costs.i(), costs.w, costs.fb);
    match kind {
        Kind::GPipe | Kind::OneFOneB | Kind::Interleaved(_) => {}
        Kind::ZbH1 => w = w.min(f).min(i),
        Kind::ZbV => {
            w = w.min(i);
            f = f.min(i);
        }
        Kind::DualPipe | Kind::DualPipeV | Kind::Custom(_) => {
            f = f.min(fb);
            i = i.min(f);
            w = w.min(i).min(fb - i);
            fb = fb.min(f + i + w);
        }
    }
    Costs { f, b: i + w, w, fb, p2p: 0.0 }
}

/// How long the least busy rank works.
fn least_busy(schedule: &Schedule, costs: &Costs) -> f64 {
    let busy = |steps: &Vec<crate::Step>| {
        let mut counts = [0usize; 5];
        for step in steps {
            let slot = match step {
                crate::Step::Pair(..) => 4,
                crate::Step::One(action) => match action.kind {
                    ActionKind::F => 0,
                    ActionKind::B => 1,
                    ActionKind::I => 2,
                    ActionKind::W => 3,
                },
            };
            counts[slot] += 1;
        }
        let each = [costs.f, costs.b, costs.i(), costs.w, costs.fb];
        counts.iter().zip(each).map(|(&n, cost)| n as f64 * cost).sum::<f64>()
    };
    schedule.ranks_actions().iter().map(busy).fold(f64::INFINITY, f64::min)
}
