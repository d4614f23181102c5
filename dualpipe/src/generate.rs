//! The lists of actions of each schedule, rank by rank.

use std::collections::VecDeque;

use crate::action::{Action, ActionKind, Step};
use crate::kind::Kind;

use ActionKind::{B, F, I, W};

/// The steps of all ranks. `kind.check(ranks, micro_batches)` has passed, and the size fits.
///
/// Where the published plan wants more micro-batches, or a multiple of some number, it is made for as many, and the chunks
/// beyond `micro_batches` are left out: chunks of different micro-batches do not need each other, so the rest runs, and
/// no step ends later than before.
pub(crate) fn generate(kind: Kind, ranks: usize, micro_batches: usize) -> Vec<Vec<Step>> {
    let full = micro_batches.max(kind.full_micro_batches(ranks));
    let full = match kind {
        Kind::DualPipe => full.next_multiple_of(2),
        Kind::DualPipeV => full,
        Kind::Interleaved(_) => full.next_multiple_of(ranks),
        _ => micro_batches,
    };
    let mut lists = published(kind, ranks, full);
    if full > micro_batches {
        let exists = |action: &Action| {
            let direction = usize::from(action.direction);
            action.chunk < kind.placement().chunks(micro_batches, direction)
        };
        for steps in &mut lists {
            *steps = steps.iter().filter_map(|step| without(step, &exists)).collect();
        }
    }
    lists
}

/// What is left of a step when only some actions exist.
fn without(step: &Step, exists: &impl Fn(&Action) -> bool) -> Option<Step> {
    let mut actions = step.actions().filter(exists);
    match (actions.next(), actions.next()) {
        (Some(forward), Some(backward)) => Some(Step::Pair(forward, backward)),
        (Some(action), None) => Some(Step::One(action)),
        _ => None,
    }
}

fn published(kind: Kind, ranks: usize, micro_batches: usize) -> Vec<Vec<Step>> {
    (0..ranks)
        .map(|rank| match kind {
            Kind::Interleaved(each) => interleaved(ranks, usize::from(each), micro_batches, rank),
            // Has no generator: `Kind::check` refuses it.
            Kind::Custom(_) => Vec::new(),
            Kind::GPipe => gpipe(micro_batches),
            Kind::OneFOneB => one_f_one_b(ranks, micro_batches, rank),
            Kind::ZbH1 => zb_h1(ranks, micro_batches, rank),
            Kind::ZbV => zb_v(ranks, micro_batches, rank),
            Kind::DualPipe => {
                let half = ranks / 2;
                let distance = rank.min(ranks - 1 - rank);
                dual_pipe(half, micro_batches / 2, distance, rank >= half)
            }
            Kind::DualPipeV => dual_pipe(ranks, micro_batches, rank, false),
        })
        .collect()
}

fn one(kind: ActionKind, direction: u8, chunk: usize) -> Step {
    Step::One(Action::new(kind, direction, chunk))
}

fn gpipe(micro_batches: usize) -> Vec<Step> {
    let forwards = (0..micro_batches).map(|m| one(F, 0, m));
    forwards.chain((0..micro_batches).map(|m| one(B, 0, m))).collect()
}

fn one_f_one_b(ranks: usize, micro_batches: usize, rank: usize) -> Vec<Step> {
    let ahead = (ranks - 1 - rank).min(micro_batches);
    let mut steps: Vec<Step> = (0..ahead).map(|m| one(F, 0, m)).collect();
    for m in 0..micro_batches {
        if ahead + m < micro_batches {
            steps.push(one(F, 0, ahead + m));
        }
        steps.push(one(B, 0, m));
    }
    steps
}

/// Interleaved 1F1B of Megatron-LM: micro-batches go round in groups of as many as there are ranks; a rank runs so many forwards
/// ahead that its first backward, of the last stage it holds, is there when it has done them. `micro_batches` is a multiple of `ranks`.
fn interleaved(ranks: usize, each: usize, micro_batches: usize, rank: usize) -> Vec<Step> {
    let all = each * micro_batches;
    let (group, per_group) = (ranks, ranks * each);
    let place = |k: usize| ((k % per_group) / group, k / per_group * group + k % group);
    let forward = |k: usize| {
        let (direction, chunk) = place(k);
        one(F, direction as u8, chunk)
    };
    let backward = |k: usize| {
        let (direction, chunk) = place(k);
        one(B, (each - 1 - direction) as u8, chunk)
    };
    let ahead = (2 * (ranks - 1 - rank) + (each - 1) * ranks).min(all);
    let mut steps: Vec<Step> = (0..ahead).map(forward).collect();
    for k in 0..all {
        if ahead + k < all {
            steps.push(forward(ahead + k));
        }
        steps.push(backward(k));
    }
    steps
}

/// 1F1B, where rank `r` keeps `r` weight gradients back: as many as it holds fewer activations than rank 0. The last
/// rank can thus answer its first micro-batches sooner, and works the weight gradients off at the end, where it would
/// idle.
fn zb_h1(ranks: usize, micro_batches: usize, rank: usize) -> Vec<Step> {
    let ahead = (ranks - 1 - rank).min(micro_batches);
    let mut steps: Vec<Step> = (0..ahead).map(|m| one(F, 0, m)).collect();
    for m in 0..micro_batches {
        if ahead + m < micro_batches {
            steps.push(one(F, 0, ahead + m));
        }
        steps.push(one(I, 0, m));
        if m >= rank {
            steps.push(one(W, 0, m - rank));
        }
    }
    steps.extend((micro_batches.saturating_sub(rank)..micro_batches).map(|m| one(W, 0, m)));
    steps
}

/// ZB-V: a warm-up that fills the V, a steady state F0 I0 W0 F1 I1 W1, and a drain in which the weight gradients kept
/// back come last.
///
/// The pattern is that of at least `2 * ranks - 1` micro-batches; with fewer, the rest of it is left out.
fn zb_v(ranks: usize, micro_batches: usize, rank: usize) -> Vec<Step> {
    let full = micro_batches.max(2 * ranks - 1);
    let mut counts = [[0usize; 2]; 3];
    let mut steps = Vec::new();
    let mut push = |counts: &mut [[usize; 2]; 3], kind: ActionKind, direction: u8| {
        let row = match kind {
            F => 0,
            W => 2,
            _ => 1,
        };
        let count = &mut counts[row][direction as usize];
        if *count < micro_batches {
            steps.push(one(kind, direction, *count));
        }
        *count += 1;
    };
    for _ in 0..2 * (ranks - rank) - 1 {
        push(&mut counts, F, 0);
    }
    for _ in 0..rank {
        push(&mut counts, F, 1);
        push(&mut counts, F, 0);
    }
    for _ in 0..ranks - rank {
        push(&mut counts, F, 1);
        push(&mut counts, I, 1);
        push(&mut counts, W, 1);
    }
    while counts[0][1] < full {
        if counts[0][0] < full {
            push(&mut counts, F, 0);
        }
        push(&mut counts, I, 0);
        push(&mut counts, W, 0);
        push(&mut counts, F, 1);
        push(&mut counts, I, 1);
        push(&mut counts, W, 1);
    }
    for _ in 0..rank {
        push(&mut counts, I, 0);
        push(&mut counts, I, 1);
    }
    for _ in 0..ranks - rank {
        push(&mut counts, I, 0);
        push(&mut counts, W, 0);
    }
    for direction in [1, 0] {
        while counts[2][direction as usize] < full {
            push(&mut counts, W, direction);
        }
    }
    steps
}

/// The rank's list while it is being made by the eight phases of DualPipe.
struct DualPipeRank {
    /// Whether the rank's near direction is 1: it is so in the second half of the ranks.
    flipped: bool,
    forwards: [usize; 2],
    backwards: [usize; 2],
    kept_back: VecDeque<Action>,
    steps: Vec<Step>,
}

impl DualPipeRank {
    fn next_forward(&mut self, phase: usize) -> Action {
        let chunk = self.forwards[phase];
        self.forwards[phase] += 1;
        Action::new(F, (phase ^ usize::from(self.flipped)) as u8, chunk)
    }

    fn next_backward(&mut self, phase: usize, kind: ActionKind) -> Action {
        let chunk = self.backwards[phase];
        self.backwards[phase] += 1;
        Action::new(kind, (phase ^ usize::from(self.flipped)) as u8, chunk)
    }

    fn forward(&mut self, phase: usize) {
        let action = self.next_forward(phase);
        self.steps.push(Step::One(action));
    }

    fn full_backward(&mut self, phase: usize) {
        let action = self.next_backward(phase, B);
        self.steps.push(Step::One(action));
    }

    fn input_backward(&mut self, phase: usize) {
        let action = self.next_backward(phase, I);
        self.kept_back.push_back(Action::new(W, action.direction, action.chunk));
        self.steps.push(Step::One(action));
    }

    fn oldest_weights(&mut self) {
        if let Some(action) = self.kept_back.pop_front() {
            self.steps.push(Step::One(action));
        }
    }

    fn pair(&mut self, forward_phase: usize, backward_phase: usize) {
        let forward = self.next_forward(forward_phase);
        let backward = self.next_backward(backward_phase, B);
        self.steps.push(Step::Pair(forward, backward));
    }
}

/// One rank of DualPipe (`half` = ranks / 2, `chunks` = micro-batches / 2) or DualPipeV (`half` = ranks, `chunks` =
/// micro-batches): the eight phases of the authors' algorithm. `distance` counts from the nearer end of the pipeline;
/// the rank with `distance == half - 1` is in the middle (at the point of the V).
fn dual_pipe(half: usize, chunks: usize, distance: usize, flipped: bool) -> Vec<Step> {
    let to_middle = half - 1 - distance;
    let mut rank = DualPipeRank { flipped, forwards: [0; 2], backwards: [0; 2], kept_back: VecDeque::new(), steps: Vec::new() };
    // 1: forwards of the near direction.
    for _ in 0..2 * to_middle {
        rank.forward(0);
    }
    // 2: forwards of both directions.
    for _ in 0..distance + 1 {
        rank.forward(0);
        rank.forward(1);
    }
    // 3: backward for inputs, its weights, and a forward, all of the far direction.
    for _ in 0..to_middle {
        rank.input_backward(1);
        rank.oldest_weights();
        rank.forward(1);
    }
    // 4: the main phase, overlapped pairs. In the middle the first two are not overlapped: the neighbour gets the
    // forward sooner.
    for i in 0..chunks + distance + 1 - 2 * half {
        if i == 0 && to_middle == 0 {
            rank.forward(0);
            rank.full_backward(1);
        } else {
            rank.pair(0, 1);
        }
        rank.pair(1, 0);
    }
    // 5: backwards of the far direction, pairs with the last forwards.
    for _ in 0..to_middle {
        rank.full_backward(1);
        rank.pair(1, 0);
    }
    // 6: backwards of both directions; in the second half of them the weights are kept back.
    let backwards = distance + 1;
    for i in 0..2 * backwards {
        let phase = (i + 1) % 2;
        if i < backwards {
            rank.full_backward(phase);
        } else {
            rank.input_backward(phase);
        }
    }
    // 7: weights kept back, and the last backwards of the near direction.
    for _ in 0..to_middle {
        rank.oldest_weights();
        rank.input_backward(0);
    }
    // 8: the rest of the weights.
    for _ in 0..distance + 1 {
        rank.oldest_weights();
    }
    rank.steps
}
