//! Keeping the experts evenly loaded: the bias update, the sequence-wise balance loss and load metrics.

use v3_numerics::cpu::Isa;
use v3_numerics::par;
use v3_numerics::simd::{Kernel, LANES, Simd, dispatch};

use crate::error::{Error, Result};
use crate::router::{RouterConfig, Routing, Scoring, WEIGHT_EPS, shape};

/// Tokens whose normalised scores are summed in one go; fixed, so that sums do not depend on the number of threads.
const TOKENS_PER_CHUNK: usize = 64;

/// Balances the load without an auxiliary loss: every expert's selection bias moves by `gamma` (0.001 in the report)
/// towards an even load, up if the expert got less than the mean of `counts` in the last step, down if it got more, not
/// at all if it got just the mean. The comparison is exact.
///
/// `counts` `[E]` are the tokens sent to each expert in the whole global batch (all ranks and micro-batches).
///
/// ```
/// let mut bias = [0.0f32; 3];
/// moe_dispatch::balance::update_bias(&mut bias, &[10, 2, 6], 0.001)?;
/// assert_eq!(bias, [-0.001, 0.001, 0.0]);
/// # Ok::<(), moe_dispatch::Error>(())
/// ```
pub fn update_bias(bias: &mut [f32], counts: &[u64], gamma: f32) -> Result<()> {
    if bias.len() != counts.len() {
        return Err(shape("counts", bias.len(), counts.len()));
    }
    if !gamma.is_finite() {
        return Err(shape("gamma", "a finite number", gamma));
    }
    let total: u128 = counts.iter().map(|&c| u128::from(c)).sum();
    let experts = counts.len() as u128;
    for (b, &c) in bias.iter_mut().zip(counts) {
        match (u128::from(c) * experts).cmp(&total) {
            std::cmp::Ordering::Less => *b += gamma,
            std::cmp::Ordering::Greater => *b -= gamma,
            std::cmp::Ordering::Equal => {}
        }
    }
    Ok(())
}

/// The sequence-wise balance loss and its gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct BalanceLoss {
    /// Mean over the sequences that have tokens; 0 when there is none.
    pub loss: f64,
    /// The loss of each sequence, in order; 0 for an empty one.
    pub per_sequence: Vec<f64>,
    /// d `loss` / d logits `[T, E]`, to be added to what [`route_backward`](crate::router::route_backward) gives.
    pub dlogits: Vec<f32>,
}

/// The report's complementary loss against imbalance within one sequence: for a sequence of T tokens
///
/// - f_i = E / (K T) * (tokens that selected expert i),
/// - P_i = mean over the tokens of s_i / (sum_j s_j), s the unbiased scores,
/// - L = alpha * sum_i f_i P_i (alpha = 1e-4 in the report); an even load gives alpha.
///
/// `seq_lens` are the lengths of the sequences that the tokens of `routing` form, in order, and add up to all of them.
/// The result is the **mean** over the sequences. The gradient goes through P only; f is a constant. Sums over tokens are
/// in f32 within chunks of 64 tokens counted from the start of the sequence, and in f64 from chunk to chunk.
pub fn sequence_balance_loss(cfg: &RouterConfig, routing: &Routing, seq_lens: &[usize], alpha: f32) -> Result<BalanceLoss> {
    routing.check(cfg)?;
    let (e, k) = (cfg.num_experts, cfg.top_k);
    let covered = seq_lens.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
    if covered != Some(routing.tokens) {
        let got = covered.map_or("more than can be counted".into(), |c| c.to_string());
        return Err(shape("sum of seq_lens", routing.tokens, got));
    }
    if !alpha.is_finite() {
        return Err(shape("alpha", "a finite number", alpha));
    }
    let mut dlogits = vec![0.0f32; routing.tokens * e];
    let mut per_sequence = vec![0.0f64; seq_lens.len()];
    let filled = seq_lens.iter().filter(|&&n| n > 0).count();
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut first = 0;
    for (sequence, &n) in seq_lens.iter().enumerate() {
        for start in (0..n).step_by(TOKENS_PER_CHUNK) {
            chunks.push(Chunk { sequence, start: first + start, len: TOKENS_PER_CHUNK.min(n - start) });
        }
        first += n;
    }
    let isa = Isa::detect();
    let mut sums = vec![0.0f64; chunks.len() * e];
    par::for_each_chunk_mut(&mut sums, e, |c, sums| {
        let scores = &routing.scores[chunks[c].start * e..][..chunks[c].len * e];
        dispatch(isa, ChunkSums { scoring: cfg.scoring, scores, sums });
    });
    // d loss / d s'_{i,t} for each sequence: alpha f_i / (T * sequences).
    let mut slopes = vec![0.0f32; seq_lens.len() * e];
    let mut counts = vec![0u64; e];
    let (mut token, mut chunk) = (0, 0);
    for (q, &n) in seq_lens.iter().enumerate().filter(|(_, n)| **n > 0) {
        counts.fill(0);
        routing.indices[token * k..(token + n) * k].iter().for_each(|&i| counts[i as usize] += 1);
        let mut p = vec![0.0f64; e];
        while chunk < chunks.len() && chunks[chunk].sequence == q {
            p.iter_mut().zip(&sums[chunk * e..][..e]).for_each(|(p, s)| *p += s);
            chunk += 1;
        }
        let tokens = n as f64;
        for i in 0..e {
            let f = e as f64 / (k as f64 * tokens) * counts[i] as f64;
            per_sequence[q] += f64::from(alpha) * f * (p[i] / tokens);
            slopes[q * e + i] = (f64::from(alpha) * f / (tokens * filled as f64)) as f32;
        }
        token += n;
    }
    let mut items: Vec<(usize, &mut [f32])> = Vec::with_capacity(chunks.len());
    let mut rest = dlogits.as_mut_slice();
    for (c, chunk) in chunks.iter().enumerate() {
        let (head, tail) = rest.split_at_mut(chunk.len * e);
        items.push((c, head));
        rest = tail;
    }
    par::for_each_chunk_mut(&mut items, 1, |_, item| {
        let (c, out) = &mut item[0];
        let chunk = &chunks[*c];
        let slope = &slopes[chunk.sequence * e..][..e];
        let scores = &routing.scores[chunk.start * e..][..chunk.len * e];
        dispatch(isa, ChunkGradient { scoring: cfg.scoring, scores, slope, out });
    });
    let loss = if filled == 0 { 0.0 } else { per_sequence.iter().sum::<f64>() / filled as f64 };
    Ok(BalanceLoss { loss, per_sequence, dlogits })
}

/// A run of tokens of one sequence.
struct Chunk {
    sequence: usize,
    start: usize,
    len: usize,
}

/// `sums[i]` = sum over the tokens of `scores` `[tokens, E]` of s_i / (sum_j s_j): in f32, the tokens in order.
struct ChunkSums<'a> {
    scoring: Scoring,
    scores: &'a [f32],
    sums: &'a mut [f64],
}

impl Kernel for ChunkSums<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let e = self.sums.len();
        let mut sums = vec![0.0f32; e];
        for scores in self.scores.chunks_exact(e) {
            let inv = s.splat(1.0 / total_score(s, self.scoring, scores));
            for (sum, x) in sums.chunks_mut(LANES).zip(scores.chunks(LANES)) {
                let next = s.mul_add(s.load_partial(x), inv, s.load_partial(sum));
                s.store_partial(next, sum);
            }
        }
        self.sums.iter_mut().zip(sums).for_each(|(to, sum)| *to = f64::from(sum));
    }
}

/// d loss / d logits `[tokens, E]` from the slope of the loss in each normalised score `[E]`, the same for all the tokens.
struct ChunkGradient<'a> {
    scoring: Scoring,
    scores: &'a [f32],
    slope: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for ChunkGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let e = self.slope.len();
        for (scores, out) in self.scores.chunks_exact(e).zip(self.out.chunks_exact_mut(e)) {
            let total = total_score(s, self.scoring, scores);
            let mut dot = s.splat(0.0);
            for (x, g) in scores.chunks(LANES).zip(self.slope.chunks(LANES)) {
                dot = s.mul_add(s.load_partial(x), s.load_partial(g), dot);
            }
            let mean = s.splat(s.reduce_add(dot) / total);
            let inv = s.splat(1.0 / total);
            let one = s.splat(1.0);
            for ((out, x), g) in out.chunks_mut(LANES).zip(scores.chunks(LANES)).zip(self.slope.chunks(LANES)) {
                let x = s.load_partial(x);
                let local = match self.scoring {
                    Scoring::Sigmoid => s.mul(s.mul(x, s.sub(one, x)), inv),
                    Scoring::Softmax => x,
                };
                s.store_partial(s.mul(local, s.sub(s.load_partial(g), mean)), out);
            }
        }
    }
}

/// What a token's scores are divided by.
#[inline(always)]
fn total_score<S: Simd>(s: S, scoring: Scoring, scores: &[f32]) -> f32 {
    match scoring {
        Scoring::Sigmoid => {
            let mut sum = s.splat(0.0);
            for x in scores.chunks(LANES) {
                sum = s.add(sum, s.load_partial(x));
            }
            s.reduce_add(sum) + WEIGHT_EPS
        }
        Scoring::Softmax => 1.0,
    }
}

/// How even a load is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadMetrics {
    /// Mean load.
    pub mean: f64,
    /// Largest load.
    pub max: u64,
    /// Smallest load.
    pub min: u64,
    /// Largest over mean: 1 is perfect. 1 as well when there is no load at all.
    pub max_over_mean: f64,
    /// Standard deviation over mean; 0 when there is no load.
    pub coefficient_of_variation: f64,
    /// Entries with no load.
    pub idle: usize,
}

impl LoadMetrics {
    /// Of the tokens sent to each expert.
    pub fn of(counts: &[u64]) -> Result<Self> {
        let (Some(&max), Some(&min)) = (counts.iter().max(), counts.iter().min()) else {
            return Err(shape("counts", "at least one entry", "none"));
        };
        let n = counts.len() as f64;
        let mean = counts.iter().map(|&c| u128::from(c)).sum::<u128>() as f64 / n;
        let variance = counts.iter().map(|&c| (c as f64 - mean).powi(2)).sum::<f64>() / n;
        let (max_over_mean, coefficient_of_variation) =
            if max == 0 { (1.0, 0.0) } else { (max as f64 / mean, variance.sqrt() / mean) };
        let idle = counts.iter().filter(|&&c| c == 0).count();
        Ok(Self { mean, max, min, max_over_mean, coefficient_of_variation, idle })
    }

    /// Of the load that each of `ranks` equal runs of experts gets: the balance of devices under contiguous placement.
    pub fn of_ranks(counts: &[u64], ranks: usize) -> Result<Self> {
        if ranks == 0 || counts.is_empty() || !counts.len().is_multiple_of(ranks) {
            let expected = format!("a divisor of the {} experts", counts.len());
            return Err(Error::Shape { what: "ranks", expected, got: ranks.to_string() });
        }
        let sums: Vec<u64> = counts.chunks(counts.len() / ranks).map(|c| c.iter().sum()).collect();
        Self::of(&sums)
    }
}
