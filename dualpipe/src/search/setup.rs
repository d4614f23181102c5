//! A problem with one placement, as tables that the inner loops read.

use crate::action::{Action, ActionKind, Step};
use crate::kind::{Kind, Placement};
use crate::search::problem::{Problem, allowed};

/// A letter of a rank's list: what is done in which direction. The chunk follows from the letters before, since every
/// stage takes its micro-batches in order: they are all alike, so a list in another order can be renamed into this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Op {
    F(u8),
    I(u8),
    W(u8),
    /// Forward of the first direction, full backward of the second.
    Pair(u8, u8),
}

/// Where a result comes from, or goes to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Link {
    pub place: usize,
    pub time: f64,
}

/// What one place (a rank and a direction) costs and keeps.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub f: f64,
    pub i: f64,
    pub w: f64,
    /// Cost of a pair whose backward is of direction 0, 1; infinite where a pair is not cheaper than its parts.
    pub pair: [f64; 2],
    /// Where its activations come from, and where its gradients come from. `None`: it needs none.
    pub before: Option<Link>,
    pub after: Option<Link>,
    pub at_input: f64,
    pub at_weight: f64,
}

impl Place {
    pub fn size(&self) -> f64 {
        self.at_input + self.at_weight
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub placement: Placement,
    pub ranks: usize,
    pub dirs: usize,
    /// The most chunks of a direction.
    pub chunks: usize,
    /// Chunks of each direction.
    pub counts: [usize; 2],
    /// Place `rank * dirs + direction`.
    pub places: Vec<Place>,
    /// Memory for activations on each rank.
    pub room: Vec<f64>,
    pub pairs: bool,
}

impl Setup {
    /// `None` when the placement cannot take so many ranks or micro-batches, or a rank cannot hold its parameters and what one
    /// micro-batch needs.
    pub fn new(problem: &Problem, placement: Placement) -> Option<Setup> {
        Kind::Custom(placement).placement_fits(problem.ranks, problem.micro_batches).ok()?;
        let ranks = problem.ranks;
        let (dirs, stages) = (placement.directions(), placement.stages(ranks));
        let costs = problem.costs(placement);
        // Where the chunks of a direction are in another stage. Two micro-batches, so that there is one for each direction.
        let place_of = |stage: usize, direction: usize| {
            let at = placement.locate(ranks, 2, stage, placement.micro_batch(2, direction, 0));
            at.map(|(rank, direction, _)| (rank, direction))
        };
        let mut places = Vec::with_capacity(ranks * dirs);
        let mut any_pair = false;
        for rank in 0..ranks {
            for d in 0..dirs {
                let stage = placement.stage_of(ranks, rank, d)?;
                let own = problem.stage(placement, stage);
                let link = |other: usize| {
                    let (r, direction) = place_of(other, d)?;
                    let time = if r == rank { 0.0 } else { crate::CostModel::transfer(&costs, r, rank) };
                    Some(Link { place: r * dirs + direction, time })
                };
                let mut pair = [f64::INFINITY; 2];
                for (back, cost) in pair.iter_mut().enumerate().take(dirs) {
                    let other = problem.stage(placement, placement.stage_of(ranks, rank, back)?);
                    let together = 0.5 * (own.fb + other.fb);
                    if together < (own.f + other.i + other.w) * (1.0 - 1e-12) {
                        *cost = together;
                        any_pair = true;
                    }
                }
                places.push(Place {
                    f: own.f,
                    i: own.i,
                    w: own.w,
                    pair,
                    before: if stage > 0 { link(stage - 1) } else { None },
                    after: if stage + 1 < stages { link(stage + 1) } else { None },
                    at_input: own.at_input,
                    at_weight: own.at_weight,
                });
            }
        }
        // Half of what `Problem::fits` forgives, so that sums in another order fit, too.
        let cap = 0.5 * (problem.memory + allowed(problem.memory));
        let room: Vec<f64> = problem.parameters(placement).iter().map(|parameters| cap - parameters).collect();
        let counts = [0, 1].map(|d| if d < dirs { placement.chunks(problem.micro_batches, d) } else { 0 });
        let setup = Setup { placement, ranks, dirs, chunks: counts[0].max(counts[1]), counts, places, room, pairs: any_pair };
        let fits = (0..ranks).all(|rank| setup.least(rank) <= setup.room[rank]);
        fits.then_some(setup)
    }

    /// The memory without which no micro-batch gets through this rank.
    pub fn least(&self, rank: usize) -> f64 {
        let sizes = self.places[rank * self.dirs..(rank + 1) * self.dirs].iter().map(Place::size);
        match self.placement {
            Placement::Bidirectional => sizes.fold(0.0, f64::max),
            _ => sizes.sum(),
        }
    }

    /// The chunks that a place sees.
    pub fn chunks_at(&self, place: usize) -> usize {
        self.counts[place % self.dirs]
    }

    pub fn place(&self, rank: usize, direction: u8) -> usize {
        rank * self.dirs + usize::from(direction)
    }

    pub fn cost(&self, rank: usize, op: Op) -> f64 {
        match op {
            Op::F(d) => self.places[self.place(rank, d)].f,
            Op::I(d) => self.places[self.place(rank, d)].i,
            Op::W(d) => self.places[self.place(rank, d)].w,
            Op::Pair(f, b) => self.places[self.place(rank, f)].pair[usize::from(b)],
        }
    }

    /// Letters with their chunks. A `W` is of the oldest chunk whose weights are due.
    pub fn steps(&self, lists: &[Vec<Op>]) -> Vec<Vec<Step>> {
        let of_rank = |ops: &Vec<Op>| {
            let (mut forward, mut backward) = ([0usize; 2], [0usize; 2]);
            let mut due: [std::collections::VecDeque<usize>; 2] = Default::default();
            let next = |count: &mut usize| {
                *count += 1;
                *count - 1
            };
            let mut steps = Vec::with_capacity(ops.len());
            for &op in ops {
                steps.push(match op {
                    Op::F(d) => Step::One(Action::new(ActionKind::F, d, next(&mut forward[usize::from(d)]))),
                    Op::I(d) => {
                        let chunk = next(&mut backward[usize::from(d)]);
                        due[usize::from(d)].push_back(chunk);
                        Step::One(Action::new(ActionKind::I, d, chunk))
                    }
                    Op::W(d) => {
                        let chunk = due[usize::from(d)].pop_front().unwrap_or(usize::MAX);
                        Step::One(Action::new(ActionKind::W, d, chunk))
                    }
                    Op::Pair(f, b) => Step::Pair(
                        Action::new(ActionKind::F, f, next(&mut forward[usize::from(f)])),
                        Action::new(ActionKind::B, b, next(&mut backward[usize::from(b)])),
                    ),
                });
            }
            steps
        };
        lists.iter().map(of_rank).collect()
    }

    /// The letters of a schedule with this placement. A full backward becomes `I` and `W`, which is never later.
    pub fn letters(&self, ranks_actions: &[Vec<Step>]) -> Vec<Vec<Op>> {
        let of_rank = |steps: &Vec<Step>| {
            let mut ops = Vec::with_capacity(steps.len() * 2);
            for step in steps {
                match step {
                    Step::Pair(f, b) => ops.push(Op::Pair(f.direction, b.direction)),
                    Step::One(a) => match a.kind {
                        ActionKind::F => ops.push(Op::F(a.direction)),
                        ActionKind::I => ops.push(Op::I(a.direction)),
                        ActionKind::W => ops.push(Op::W(a.direction)),
                        ActionKind::B => ops.extend([Op::I(a.direction), Op::W(a.direction)]),
                    },
                }
            }
            ops
        };
        ranks_actions.iter().map(of_rank).collect()
    }
}

impl Setup {
    /// The places in which micro-batches begin.
    pub fn firsts(&self) -> Vec<usize> {
        (0..self.places.len()).filter(|&place| self.places[place].before.is_none()).collect()
    }
}
