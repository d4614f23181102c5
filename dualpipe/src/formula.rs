//! What the bubble of each schedule is, by formula, and bounds where the formula does not hold.
//!
//! With `R` ranks, `M` micro-batches, `I = B - W`, free transfers, and the bubble being the makespan minus the time that
//! the least busy rank works:
//!
//! | schedule  | bubble                        | holds for                                        |
//! |-----------|-------------------------------|--------------------------------------------------|
//! | gpipe     | `(R-1)(F+B)`                  | all costs, all `M`                               |
//! | 1f1b      | `(R-1)(F+B)`                  | all costs, all `M`                               |
//! | zb-h1     | `(R-1)(F+B-2W)`               | `M >= R`, `W <= F`, `W <= I`                     |
//! | zb-v      | `(R-1) max(I, 2(I-W))`        | `M >= 2R-1`, `F <= I`, `W <= I`                  |
//! | dualpipe  | `(R/2-1)(FB+F-2W)`            | `W <= I <= F`, `max(F,B) <= FB <= F+B`           |
//! | dualpipev | `(R-1)(FB+F-2W)`              | `W <= I <= F`, `max(F,B) <= FB <= F+B`           |
//!
//! The table of the DualPipe paper writes `(PP/2-1)(FB+B-3W)`, which is the same when `F = I`, as there. A stage of zb-v
//! and dualpipev is half of one of the others, so that for the same model their costs are half as large. For
//! `F = I = W` zb-v leaves `(R-1)F`: the last rank cannot begin before the first micro-batch reaches it.
//!
//! The tests hold the simulator to these on a grid of ranks, micro-batches and costs. Elsewhere [`bubble_bounds`] encloses
//! it. A simulated end time is the longest path through steps in a fixed order, so it never falls when a cost rises;
//! [`bubble_bounds`] moves the costs up, and down, to the nearest place where the formula holds (a transfer is moved into
//! the step that sends), and takes the makespans there. With fewer micro-batches than the formula needs, zb-h1 and zb-v
//! are the plan for more with steps left out, which ends no later; and one micro-batch must go there and back.

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
        && micro_batches >= enough(kind, ranks)
        && in_domain(kind, costs);
    holds.then(|| value(kind, ranks, costs))
}

/// A lower and an upper bound of the simulated bubble of a schedule made by [`Schedule::new`], for any costs. They meet
/// where the formula holds. See the text of this module for why they hold.
///
/// # Errors
/// Costs that [`Costs::check`] refuses; a [`Kind::Custom`] schedule, for which there is no formula.
pub fn bubble_bounds(schedule: &Schedule, costs: &Costs) -> crate::Result<(f64, f64)> {
    costs.check()?;
    let (kind, ranks) = (schedule.kind(), schedule.ranks());
    if let Kind::Custom(_) = kind {
        kind.check(ranks, schedule.micro_batches())?;
    }
    let busy = least_busy(schedule, costs);
    let raised = raise(kind, costs);
    let lowered = lower(kind, costs);
    let full = enough(kind, ranks);
    if schedule.micro_batches() >= full {
        let low = value(kind, ranks, &lowered) + least_busy(schedule, &lowered);
        let high = value(kind, ranks, &raised) + least_busy(schedule, &raised);
        return Ok(((low - busy).max(0.0), high - busy));
    }
    let there_and_back = schedule.stages() as f64 * (costs.f + costs.i()) + costs.w;
    let fuller = Schedule::new(kind, ranks, full)?;
    let high = value(kind, ranks, &raised) + least_busy(&fuller, &raised);
    Ok(((there_and_back - busy).max(0.0), high - busy))
}

/// The fewest micro-batches for which the formula holds.
fn enough(kind: Kind, ranks: usize) -> usize {
    match kind {
        Kind::GPipe | Kind::OneFOneB | Kind::Custom(_) => 1,
        Kind::ZbH1 => ranks,
        Kind::ZbV => 2 * ranks - 1,
        Kind::DualPipe | Kind::DualPipeV => 2 * ranks,
    }
}

fn value(kind: Kind, ranks: usize, costs: &Costs) -> f64 {
    let Costs { f, b, w, fb, .. } = *costs;
    let i = costs.i();
    match kind {
        Kind::GPipe | Kind::OneFOneB => (ranks as f64 - 1.0) * (f + b),
        Kind::ZbH1 => (ranks as f64 - 1.0) * (f + b - 2.0 * w),
        Kind::ZbV => (ranks as f64 - 1.0) * i.max(2.0 * (i - w)),
        Kind::DualPipe => (ranks as f64 / 2.0 - 1.0) * (fb + f - 2.0 * w),
        Kind::DualPipeV => (ranks as f64 - 1.0) * (fb + f - 2.0 * w),
        // No formula: `bubble` and `bubble_bounds` do not come here with it.
        Kind::Custom(_) => f64::NAN,
    }
}

fn in_domain(kind: Kind, costs: &Costs) -> bool {
    let Costs { f, b, w, fb, .. } = *costs;
    let i = costs.i();
    match kind {
        Kind::GPipe | Kind::OneFOneB => true,
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
        Kind::GPipe | Kind::OneFOneB | Kind::Custom(_) => {}
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
        Kind::GPipe | Kind::OneFOneB | Kind::Custom(_) => {}
        Kind::ZbH1 => w = w.min(f).min(i),
        Kind::ZbV => {
            w = w.min(i);
            f = f.min(i);
        }
        Kind::DualPipe | Kind::DualPipeV => {
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
