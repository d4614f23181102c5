//! Dispatch and combine for all ranks at once, as the definitions say it: no messages, no plans, one row after the other.

use half::bf16;

use crate::layout::Layout;
use crate::plan::{MASKED, PlanOptions};
use crate::router::Routing;

/// One expert-major row: which rank's token it is, and which of that token's experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertRow {
    /// Source rank.
    pub source: usize,
    /// Token of that rank.
    pub token: usize,
    /// Place among the token's experts, 0..k.
    pub choice: usize,
}

/// The choices of a token that are not masked, and their logical experts.
fn choices(routing: &Routing, token: usize) -> impl Iterator<Item = (usize, u32)> + '_ {
    let experts = &routing.indices[token * routing.top_k..(token + 1) * routing.top_k];
    experts.iter().copied().enumerate().filter(|&(_, expert)| expert != MASKED)
}

/// The expert-major rows of each rank, `None` for padding, and its offsets. Of the options alignment and capacity matter.
pub fn expert_rows(layout: &Layout, routings: &[Routing], options: &PlanOptions) -> Vec<(Vec<Option<ExpertRow>>, Vec<usize>)> {
    let per_rank = layout.slots_per_rank();
    let rows_of_rank = |rank: usize| {
        let (mut rows, mut offsets) = (Vec::new(), vec![0]);
        for slot in rank * per_rank..(rank + 1) * per_rank {
            for (source, routing) in routings.iter().enumerate() {
                let begin = rows.len();
                for token in 0..routing.tokens {
                    for (choice, expert) in choices(routing, token) {
                        if layout.slot_for(expert as usize, source, token) == slot {
                            rows.push(Some(ExpertRow { source, token, choice }));
                        }
                    }
                }
                if let Some(capacity) = options.capacity {
                    rows.resize(begin + capacity, None);
                }
            }
            while (rows.len() - offsets[offsets.len() - 1]) % options.alignment != 0 {
                rows.push(None);
            }
            offsets.push(rows.len());
        }
        (rows, offsets)
    };
    (0..layout.ep_size()).map(rows_of_rank).collect()
}

/// The number of distinct pairs of a token of one rank and a node other than that rank's.
pub fn token_node_pairs(layout: &Layout, source: usize, routing: &Routing) -> usize {
    let mut pairs = 0;
    for token in 0..routing.tokens {
        for node in (0..layout.nodes()).filter(|&node| node != layout.node(source)) {
            let slot = |expert: u32| layout.slot_for(expert as usize, source, token);
            let there = |(_, expert): (usize, u32)| layout.node(layout.rank_of_slot(slot(expert))) == node;
            pairs += usize::from(choices(routing, token).any(there));
        }
    }
    pairs
}

/// The sum of some experts' rows, `(logical expert, row)`, in the fixed tree over the experts `first..first + 2^height`: `None` when none of
/// them is there.
pub fn tree_sum(leaves: &[(u32, Vec<f32>)], first: u32, height: u32) -> Option<Vec<f32>> {
    if height == 0 {
        return leaves.iter().find(|(expert, _)| *expert == first).map(|(_, row)| row.clone());
    }
    let left = tree_sum(leaves, first, height - 1);
    let right = tree_sum(leaves, first + (1 << (height - 1)), height - 1);
    match (left, right) {
        (Some(left), Some(right)) => Some(left.iter().zip(&right).map(|(a, b)| a + b).collect()),
        (one, None) | (None, one) => one,
    }
}

/// What `combine` gives for one rank's tokens, [T, d], when `expert_row(token, choice)` is the row that comes back, and its sum in f64 beside it.
pub fn combine(
    layout: &Layout,
    routing: &Routing,
    row_len: usize,
    weighted: bool,
    expert_row: impl Fn(usize, usize) -> Vec<f32>,
) -> (Vec<f32>, Vec<f64>) {
    let height = (layout.num_experts() as u32).next_power_of_two().trailing_zeros();
    let (mut out, mut exact) = (Vec::new(), Vec::new());
    for token in 0..routing.tokens {
        let mut leaves = Vec::new();
        let mut sum = vec![0f64; row_len];
        for (choice, expert) in choices(routing, token) {
            let weight = if weighted { routing.weights[token * routing.top_k + choice] } else { 1.0 };
            let row = expert_row(token, choice);
            for (sum, x) in sum.iter_mut().zip(&row) {
                *sum += f64::from(weight) * f64::from(*x);
            }
            leaves.push((expert, row.iter().map(|x| weight * x).collect()));
        }
        out.extend(tree_sum(&leaves, 0, height).unwrap_or_else(|| vec![0.0; row_len]));
        exact.extend(sum);
    }
    (out, exact)
}

/// What `combine` gives for the tokens of rank `source` when sums travel in bf16, [T, d]: the sum of every greatest node of the tree that one rank owns alone is
/// rounded, as is then that of every greatest node that one node of ranks owns alone; what is left to do at home is done in f32.
pub fn combine_rounded(
    layout: &Layout,
    source: usize,
    routing: &Routing,
    row_len: usize,
    weighted: bool,
    expert_row: impl Fn(usize, usize) -> Vec<f32>,
) -> Vec<f32> {
    let height = (layout.num_experts() as u32).next_power_of_two().trailing_zeros();
    let mut out = Vec::new();
    for token in 0..routing.tokens {
        let mut leaves = Vec::new();
        for (choice, expert) in choices(routing, token) {
            let weight = if weighted { routing.weights[token * routing.top_k + choice] } else { 1.0 };
            let rank = layout.rank_of_slot(layout.slot_for(expert as usize, source, token));
            let row = expert_row(token, choice).iter().map(|x| weight * x).collect();
            leaves.push(OwnedLeaf { expert, rank, node: layout.node(rank), row });
        }
        out.extend(rounded_sum(&leaves, 0, height, (false, false)).unwrap_or_else(|| vec![0.0; row_len]));
    }
    out
}

struct OwnedLeaf {
    expert: u32,
    rank: usize,
    node: usize,
    row: Vec<f32>,
}

/// The sum of the experts `first..first + 2^height`, as [`tree_sum`]. `inside` says whether a node above was owned by one rank alone, and by one
/// node of ranks alone: then what is below it is not rounded.
fn rounded_sum(leaves: &[OwnedLeaf], first: u32, height: u32, inside: (bool, bool)) -> Option<Vec<f32>> {
    let here: Vec<&OwnedLeaf> = leaves.iter().filter(|leaf| leaf.expert >> height == first >> height).collect();
    let one_rank = here.iter().all(|leaf| leaf.rank == here[0].rank);
    let one_node = here.iter().all(|leaf| leaf.node == here[0].node);
    let below = (inside.0 || one_rank, inside.1 || one_node);
    let sum = if height == 0 {
        here.first().map(|leaf| leaf.row.clone())
    } else {
        let left = rounded_sum(leaves, first, height - 1, below);
        let right = rounded_sum(leaves, first + (1 << (height - 1)), height - 1, below);
        match (left, right) {
            (Some(left), Some(right)) => Some(left.iter().zip(&right).map(|(a, b)| a + b).collect::<Vec<f32>>()),
            (one, None) | (None, one) => one,
        }
    };
    // Rounding a second time changes nothing.
    let rounds = below != inside;
    sum.map(|sum| if rounds { sum.iter().map(|&x| bf16::from_f32(x).to_f32()).collect() } else { sum })
}

/// Gradients of `combine` for one rank's tokens: of the expert row of `(token, choice)`, weight * dy, and of the weights, [T, k], in f64; without meaning and 0
/// for masked choices.
pub fn combine_backward(
    routing: &Routing,
    dy: &[f32],
    row_len: usize,
    expert_row: impl Fn(usize, usize) -> Vec<f32>,
) -> (Vec<Vec<f32>>, Vec<f64>) {
    let (mut d_rows, mut d_weights) = (Vec::new(), Vec::new());
    for token in 0..routing.tokens {
        let dy = &dy[token * row_len..(token + 1) * row_len];
        for choice in 0..routing.top_k {
            let weight = routing.weights[token * routing.top_k + choice];
            d_rows.push(dy.iter().map(|dy| weight * dy).collect());
            if routing.indices[token * routing.top_k + choice] == MASKED {
                d_weights.push(0.0);
                continue;
            }
            let row = expert_row(token, choice);
            d_weights.push(dy.iter().zip(&row).map(|(dy, x)| f64::from(*dy) * f64::from(*x)).sum());
        }
    }
    (d_rows, d_weights)
}
