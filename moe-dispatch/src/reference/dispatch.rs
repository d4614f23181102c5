//! Dispatch and combine for all ranks at once, as the definitions say it: no messages, no plans, one row after the other.

use crate::layout::Layout;
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

/// The expert-major rows of each rank, `None` for padding, and its offsets.
pub fn expert_rows(layout: &Layout, routings: &[Routing], alignment: usize) -> Vec<(Vec<Option<ExpertRow>>, Vec<usize>)> {
    let per_rank = layout.slots_per_rank();
    let rows_of_rank = |rank: usize| {
        let (mut rows, mut offsets) = (Vec::new(), vec![0]);
        for slot in rank * per_rank..(rank + 1) * per_rank {
            for (source, routing) in routings.iter().enumerate() {
                for token in 0..routing.tokens {
                    for choice in 0..routing.top_k {
                        let expert = routing.indices[token * routing.top_k + choice] as usize;
                        if layout.slot_for(expert, source, token) == slot {
                            rows.push(Some(ExpertRow { source, token, choice }));
                        }
                    }
                }
            }
            while rows.len() % alignment != 0 {
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
        let experts = &routing.indices[token * routing.top_k..(token + 1) * routing.top_k];
        for node in (0..layout.nodes()).filter(|&node| node != layout.node(source)) {
            let slot = |&expert: &u32| layout.slot_for(expert as usize, source, token);
            pairs += usize::from(experts.iter().any(|expert| layout.node(layout.rank_of_slot(slot(expert))) == node));
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
        for choice in 0..routing.top_k {
            let at = token * routing.top_k + choice;
            let weight = if weighted { routing.weights[at] } else { 1.0 };
            let row = expert_row(token, choice);
            for (sum, x) in sum.iter_mut().zip(&row) {
                *sum += f64::from(weight) * f64::from(*x);
            }
            leaves.push((routing.indices[at], row.iter().map(|x| weight * x).collect()));
        }
        out.extend(tree_sum(&leaves, 0, height).unwrap_or_else(|| vec![0.0; row_len]));
        exact.extend(sum);
    }
    (out, exact)
}

/// Gradients of `combine` for one rank's tokens: of the expert row of `(token, choice)`, weight * dy, and of the weights, [T, k], in f64.
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
            let row = expert_row(token, choice);
            d_weights.push(dy.iter().zip(&row).map(|(dy, x)| f64::from(*dy) * f64::from(*x)).sum());
        }
    }
    (d_rows, d_weights)
}
