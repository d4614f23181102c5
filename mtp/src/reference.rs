//! The same operations as obviously as they can be written: f64, no blocks, no SIMD. The oracle of the tests.

/// Logits `[tokens, vocab]` in f64 from `h` `[tokens, hidden]` and `w` `[vocab, hidden]`.
pub fn logits(h: &[f32], w: &[f32], hidden: usize, vocab: usize, tokens: usize) -> Vec<f64> {
    let mut out = vec![0.0; tokens * vocab];
    for t in 0..tokens {
        for v in 0..vocab {
            for k in 0..hidden {
                out[t * vocab + v] += f64::from(h[t * hidden + k]) * f64::from(w[v * hidden + k]);
            }
        }
    }
    out
}

/// The logarithm of the sum of exponentials.
pub fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

/// Cross entropy of each row of logits against its target, 0 where that is -1; and the log of the sum of exponentials.
pub fn cross_entropy(logits: &[f64], vocab: usize, targets: &[i64]) -> (Vec<f64>, Vec<f64>) {
    let lse: Vec<f64> = logits.chunks(vocab).map(log_sum_exp).collect();
    let loss =
        (0..targets.len()).map(|t| if targets[t] < 0 { 0.0 } else { lse[t] - logits[t * vocab + targets[t] as usize] }).collect();
    (loss, lse)
}

/// The gradient of the scaled losses for the logits, `[tokens, vocab]`.
pub fn cross_entropy_backward(logits: &[f64], vocab: usize, targets: &[i64], scale: &[f64]) -> Vec<f64> {
    let mut grad = vec![0.0; logits.len()];
    for (t, row) in logits.chunks(vocab).enumerate() {
        if targets[t] < 0 {
            continue;
        }
        let lse = log_sum_exp(row);
        for v in 0..vocab {
            let at_target = if v as i64 == targets[t] { 1.0 } else { 0.0 };
            grad[t * vocab + v] = scale[t] * ((row[v] - lse).exp() - at_target);
        }
    }
    grad
}

/// The gradient for the hidden states, `[tokens, hidden]`, from that for the logits.
pub fn head_backward_input(dlogits: &[f64], w: &[f32], hidden: usize, vocab: usize) -> Vec<f64> {
    let mut dh = vec![0.0; dlogits.len() / vocab * hidden];
    for (t, row) in dlogits.chunks(vocab).enumerate() {
        for (v, g) in row.iter().enumerate() {
            for k in 0..hidden {
                dh[t * hidden + k] += g * f64::from(w[v * hidden + k]);
            }
        }
    }
    dh
}

/// The gradient for the weights, `[vocab, hidden]`, from that for the logits.
pub fn head_backward_weight(dlogits: &[f64], h: &[f32], hidden: usize, vocab: usize) -> Vec<f64> {
    let mut dw = vec![0.0; vocab * hidden];
    for (t, row) in dlogits.chunks(vocab).enumerate() {
        for (v, g) in row.iter().enumerate() {
            for k in 0..hidden {
                dw[v * hidden + k] += g * f64::from(h[t * hidden + k]);
            }
        }
    }
    dw
}

/// RMSNorm of rows of length `weight.len()`, and the reciprocal deviation of each.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> (Vec<f64>, Vec<f64>) {
    let d = weight.len();
    let rstd: Vec<f64> = x
        .chunks(d)
        .map(|row| 1.0 / (row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / d as f64 + f64::from(eps)).sqrt())
        .collect();
    let y = (0..x.len()).map(|i| f64::from(x[i]) * rstd[i / d] * f64::from(weight[i % d])).collect();
    (y, rstd)
}

/// `[RMSNorm(emb) | RMSNorm(h)]`, `[tokens, 2 hidden]`.
pub fn merge(emb: &[f32], h: &[f32], enorm: &[f32], hnorm: &[f32], eps: f32) -> Vec<f64> {
    let d = enorm.len();
    let (left, right) = (rms_norm(emb, enorm, eps).0, rms_norm(h, hnorm, eps).0);
    left.chunks(d).zip(right.chunks(d)).flat_map(|(l, r)| l.iter().chain(r).copied().collect::<Vec<_>>()).collect()
}

/// The gradients of RMSNorm for its input and for its weight.
pub fn rms_norm_backward(dy: &[f64], x: &[f32], weight: &[f32], eps: f32) -> (Vec<f64>, Vec<f64>) {
    let d = weight.len();
    let rstd = rms_norm(x, weight, eps).1;
    let (mut dx, mut dweight) = (vec![0.0; x.len()], vec![0.0; d]);
    for (t, &rstd) in rstd.iter().enumerate() {
        let at = |i: usize| t * d + i;
        let dot: f64 = (0..d).map(|i| dy[at(i)] * f64::from(weight[i]) * f64::from(x[at(i)])).sum();
        for i in 0..d {
            let x = f64::from(x[at(i)]);
            dx[at(i)] = rstd * (dy[at(i)] * f64::from(weight[i]) - x * rstd * rstd * dot / d as f64);
            dweight[i] += dy[at(i)] * x * rstd;
        }
    }
    (dx, dweight)
}

/// The distribution after temperature, top-k (0: all) and top-p, ties to the lower token id.
pub fn distribution(logits: &[f32], temperature: f64, top_k: usize, top_p: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let largest = f64::from(logits[order[0]]);
    let mut weights: Vec<f64> = logits.iter().map(|&x| ((f64::from(x) - largest) / temperature).exp()).collect();
    if temperature == 0.0 {
        weights = (0..logits.len()).map(|i| if i == order[0] { 1.0 } else { 0.0 }).collect();
    }
    if top_k > 0 {
        order.iter().skip(top_k).for_each(|&i| weights[i] = 0.0);
    }
    let total: f64 = weights.iter().sum();
    let mut reached = 0.0;
    for &i in &order {
        if reached >= top_p * total {
            weights[i] = 0.0;
        }
        reached += weights[i];
    }
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// The law of the token that comes out where a draft from `q` is verified against `p`: by the case distinction itself.
pub fn law_of_one_step(p: &[f64], q: &[f64]) -> Vec<f64> {
    let accept: Vec<f64> = p.iter().zip(q).map(|(p, q)| if *q == 0.0 { 0.0 } else { q * (p / q).min(1.0) }).collect();
    let rejected = 1.0 - accept.iter().sum::<f64>();
    let rest: Vec<f64> = p.iter().zip(q).map(|(p, q)| (p - q).max(0.0)).collect();
    let total: f64 = rest.iter().sum();
    accept.iter().zip(&rest).map(|(a, r)| a + if total > 0.0 { rejected * r / total } else { 0.0 }).collect()
}
