//! The router and the balance loss, as obvious as possible: f64, sorting, one token at a time.

use crate::router::{GroupScore, RouterConfig, Routing, Scoring};

/// Unbiased scores `[E]` of one token's logits `[E]`.
pub fn scores(scoring: Scoring, logits: &[f32]) -> Vec<f64> {
    let x = logits.iter().map(|&x| f64::from(x));
    match scoring {
        Scoring::Sigmoid => x.map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        Scoring::Softmax => {
            let top = x.clone().fold(f64::NEG_INFINITY, f64::max);
            let exps: Vec<f64> = x.map(|x| (x - top).exp()).collect();
            let sum: f64 = exps.iter().sum();
            exps.iter().map(|e| e / sum).collect()
        }
    }
}

/// Positions of `values` from the largest to the smallest; equal values in their order.
fn by_falling_value(values: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    order
}

/// The experts that one token's biased scores `[E]` select, best first: a full sort of the groups, then of the experts, with
/// every expert of a rejected group at minus infinity.
pub fn select(cfg: &RouterConfig, biased: &[f32]) -> Vec<u32> {
    let size = cfg.num_experts / cfg.n_group;
    let m = match cfg.group_score {
        GroupScore::TopTwo => 2,
        GroupScore::TopKOverM => (cfg.top_k / cfg.topk_group).max(1),
    };
    let group_scores: Vec<f32> =
        biased.chunks(size).map(|group| by_falling_value(group).iter().take(m).fold(0.0, |sum, &i| sum + group[i])).collect();
    let mut masked = vec![f32::NEG_INFINITY; cfg.num_experts];
    for &g in by_falling_value(&group_scores).iter().take(cfg.topk_group) {
        masked[g * size..][..size].copy_from_slice(&biased[g * size..][..size]);
    }
    by_falling_value(&masked).iter().take(cfg.top_k).map(|&i| i as u32).collect()
}

/// The weights of the selected experts, from the token's unbiased scores.
pub fn weights(cfg: &RouterConfig, scores: &[f64], indices: &[u32]) -> Vec<f64> {
    let chosen: Vec<f64> = indices.iter().map(|&i| scores[i as usize]).collect();
    let sum = if cfg.norm_topk_prob { chosen.iter().sum::<f64>() + 1e-20 } else { 1.0 };
    chosen.iter().map(|s| s / sum * f64::from(cfg.routed_scaling_factor)).collect()
}

/// Mean over the non-empty sequences of alpha * sum_i f_i P_i, for scores `[T, E]` and selections `[T, K]`.
pub fn sequence_balance_loss(cfg: &RouterConfig, scores: &[Vec<f64>], indices: &[u32], seq_lens: &[usize], alpha: f64) -> f64 {
    let (e, k) = (cfg.num_experts, cfg.top_k);
    let (mut loss, mut sequences, mut first) = (0.0, 0, 0);
    for &n in seq_lens.iter().filter(|&&n| n > 0) {
        let tokens = first..first + n;
        for i in 0..e {
            let count = indices[first * k..(first + n) * k].iter().filter(|&&x| x as usize == i).count();
            let f = e as f64 / (k * n) as f64 * count as f64;
            let p = tokens.clone().map(|t| scores[t][i] / scores[t].iter().sum::<f64>()).sum::<f64>() / n as f64;
            loss += alpha * f * p;
        }
        sequences += 1;
        first += n;
    }
    if sequences == 0 { 0.0 } else { loss / f64::from(sequences) }
}

/// Gradient of sum(weights * dweights) with respect to one token's logits, by the chain rule written out in full: the
/// Jacobian of the weights with respect to the scores, then that of the scores with respect to the logits.
pub fn route_backward(cfg: &RouterConfig, logits: &[f32], indices: &[u32], dweights: &[f32]) -> Vec<f64> {
    let s = scores(cfg.scoring, logits);
    let c = f64::from(cfg.routed_scaling_factor);
    let sum = indices.iter().map(|&i| s[i as usize]).sum::<f64>() + 1e-20;
    let mut ds = vec![0.0; s.len()];
    for (&i, &dw) in indices.iter().zip(dweights) {
        for &j in indices {
            let same = if i == j { 1.0 } else { 0.0 };
            let jacobian = if cfg.norm_topk_prob { same / sum - s[i as usize] / (sum * sum) } else { same };
            ds[j as usize] += f64::from(dw) * c * jacobian;
        }
    }
    let mut dlogits = vec![0.0; s.len()];
    for i in 0..s.len() {
        for j in 0..s.len() {
            let same = if i == j { 1.0 } else { 0.0 };
            let jacobian = match cfg.scoring {
                Scoring::Sigmoid => same * s[i] * (1.0 - s[i]),
                Scoring::Softmax => s[i] * (same - s[j]),
            };
            dlogits[j] += ds[i] * jacobian;
        }
    }
    dlogits
}

/// The whole router, token by token, with the f32 scores of `routing` deciding the selection (so that rounding of the
/// scores is not part of the comparison): returns the indices `[T, K]` that must come out.
pub fn select_all(cfg: &RouterConfig, routing: &Routing, bias: &[f32]) -> Vec<u32> {
    let e = cfg.num_experts;
    let rows = routing.scores.chunks(e);
    rows.flat_map(|row| {
        let biased: Vec<f32> = (0..e).map(|i| row[i] + bias.get(i).copied().unwrap_or(0.0)).collect();
        select(cfg, &biased)
    })
    .collect()
}
