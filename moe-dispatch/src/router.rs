//! The router: which experts a token goes to, and with what weights.
//!
//! For every token, from its logits [E]:
//!
//! 1. scores = sigmoid(logits), or softmax(logits);
//! 2. a *biased* copy, scores + bias, decides the selection and nothing else (the bias balances the load without an
//!    auxiliary loss: see [`update_bias`](crate::balance::update_bias));
//! 3. the experts form `n_group` groups of neighbours. A group's score is the sum of its best biased scores (two of them,
//!    or `top_k / topk_group`: [`GroupScore`]); the `topk_group` best groups are kept and the others are out, as if their
//!    biased scores were minus infinity (not zero: a kept expert whose biased score is negative still beats them);
//! 4. the `top_k` best biased scores among the kept groups are the token's experts;
//! 5. weights = their *unbiased* scores, divided by (their sum + 1e-20) if `norm_topk_prob`, times `routed_scaling_factor`.
//!
//! This is the router of the published DeepSeek-V3 checkpoints. Ties go to the lower index, for groups as for experts. A
//! token's experts are stored from the best biased score to the worst. No token is ever dropped.
//!
//! # Numerical policy
//!
//! Everything is f32, in one order of operations, so the result has the same bits on every instruction set and for every
//! number of threads; a token's result depends on its own logits and the bias only. A sigmoid score has a relative error of
//! at most 2^-22 (exponential 2^-23, sum and quotient 2^-24 each; below 2^-126 it may be zero); a softmax score at most
//! (d + E + 8) 2^-24, d the distance of its logit from the largest.

use v3_numerics::cpu::Isa;
use v3_numerics::par;
use v3_numerics::simd::{Kernel, LANES, Simd, dispatch, exp};

use crate::error::{Error, Result};

/// Tokens that one work item takes: fixed, so that the partition does not depend on the number of threads.
const ROWS_PER_ITEM: usize = 32;

/// Added to the sum that normalises the weights, as in the published model.
pub(crate) const WEIGHT_EPS: f32 = 1e-20;

/// How a logit becomes an affinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Scoring {
    /// Every expert by itself: 1 / (1 + exp(-logit)). DeepSeek-V3.
    #[default]
    Sigmoid,
    /// A distribution over all experts: exp(logit) / sum. DeepSeek-V2 and most other models.
    Softmax,
}

/// How many of a group's best biased scores make the group's score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum GroupScore {
    /// The best two (the only one, in groups of one): what published checkpoints are run with.
    #[default]
    TopTwo,
    /// The best `top_k / topk_group`, at least one: the technical report's K/M.
    TopKOverM,
}

/// The router's hyper-parameters, under the names of a published `config.json` where there is one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterConfig {
    /// Routed experts, E (`n_routed_experts`).
    pub num_experts: usize,
    /// Experts per token, K (`num_experts_per_tok`).
    pub top_k: usize,
    /// Groups that the experts are divided into; divides `num_experts`.
    pub n_group: usize,
    /// Groups kept for a token, M.
    pub topk_group: usize,
    /// Affinity function.
    pub scoring: Scoring,
    /// Score of a group.
    pub group_score: GroupScore,
    /// Whether a token's weights are normalised to sum to `routed_scaling_factor`.
    pub norm_topk_prob: bool,
    /// Factor on the weights.
    pub routed_scaling_factor: f32,
}

impl RouterConfig {
    /// A router without groups: sigmoid scores, normalised weights, factor 1.
    pub fn new(num_experts: usize, top_k: usize) -> Self {
        Self {
            num_experts,
            top_k,
            n_group: 1,
            topk_group: 1,
            scoring: Scoring::Sigmoid,
            group_score: GroupScore::TopTwo,
            norm_topk_prob: true,
            routed_scaling_factor: 1.0,
        }
    }

    /// DeepSeek-V3: 256 experts in 8 groups, 8 experts of 4 groups a token, factor 2.5.
    pub fn deepseek_v3() -> Self {
        Self { n_group: 8, topk_group: 4, routed_scaling_factor: 2.5, ..Self::new(256, 8) }
    }

    /// Refuses values that contradict each other.
    pub fn validate(&self) -> Result<()> {
        let bad =
            |what, expected: String, got: String| Err(Error::Config { what, reason: format!("expected {expected}, got {got}") });
        if self.num_experts == 0 || self.num_experts > u32::MAX as usize {
            return bad("num_experts", "between 1 and 2^32 - 1".into(), self.num_experts.to_string());
        }
        if self.n_group == 0 || !self.num_experts.is_multiple_of(self.n_group) {
            return bad("n_group", format!("a divisor of the {} experts", self.num_experts), self.n_group.to_string());
        }
        if self.topk_group == 0 || self.topk_group > self.n_group {
            return bad("topk_group", format!("between 1 and n_group = {}", self.n_group), self.topk_group.to_string());
        }
        let held = self.topk_group * self.group_size();
        if self.top_k == 0 || self.top_k > held {
            let expected = format!("between 1 and the {held} experts of the {} kept groups", self.topk_group);
            return bad("top_k", expected, self.top_k.to_string());
        }
        if !self.routed_scaling_factor.is_finite() {
            return bad("routed_scaling_factor", "a finite number".into(), self.routed_scaling_factor.to_string());
        }
        Ok(())
    }

    /// Experts in a group.
    pub fn group_size(&self) -> usize {
        self.num_experts / self.n_group
    }

    /// How many of a group's best scores are added up.
    pub fn scores_per_group(&self) -> usize {
        let wanted = match self.group_score {
            GroupScore::TopTwo => 2,
            GroupScore::TopKOverM => (self.top_k / self.topk_group).max(1),
        };
        wanted.min(self.group_size())
    }
}

/// The router's answer for T tokens.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Routing {
    /// T.
    pub tokens: usize,
    /// K, experts per token.
    pub top_k: usize,
    /// [T, K]: each token's experts, distinct, by falling biased score.
    pub indices: Vec<u32>,
    /// [T, K]: the weight of each.
    pub weights: Vec<f32>,
    /// [T, E]: every expert's unbiased score, which the backward and the balance loss need.
    pub scores: Vec<f32>,
}

impl Routing {
    /// Tokens sent to each expert [E]: the load that [`update_bias`](crate::balance::update_bias) evens out. An index of
    /// `num_experts` or more is an error.
    pub fn expert_counts(&self, num_experts: usize) -> Result<Vec<u64>> {
        let mut counts = vec![0u64; num_experts];
        for &e in &self.indices {
            match counts.get_mut(e as usize) {
                Some(c) => *c += 1,
                None => return Err(shape("expert index", format!("below {num_experts}"), e)),
            }
        }
        Ok(counts)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        4 * (self.indices.len() + self.weights.len() + self.scores.len())
    }

    /// Checks the lengths and the indices against a configuration.
    pub(crate) fn check(&self, cfg: &RouterConfig) -> Result<()> {
        cfg.validate()?;
        if self.top_k != cfg.top_k {
            return Err(shape("routing.top_k", cfg.top_k, self.top_k));
        }
        let (t, k, e) = (self.tokens, cfg.top_k, cfg.num_experts);
        check_len("routing.indices", self.indices.len(), t, k)?;
        check_len("routing.weights", self.weights.len(), t, k)?;
        check_len("routing.scores", self.scores.len(), t, e)?;
        match self.indices.iter().find(|&&i| i as usize >= e) {
            Some(i) => Err(shape("expert index", format!("below {e}"), i)),
            None => Ok(()),
        }
    }
}

/// An `Error::Shape`.
pub(crate) fn shape(what: &'static str, expected: impl ToString, got: impl ToString) -> Error {
    Error::Shape { what, expected: expected.to_string(), got: got.to_string() }
}

/// `Error::Shape` unless `len` is `rows * cols`.
pub(crate) fn check_len(what: &'static str, len: usize, rows: usize, cols: usize) -> Result<()> {
    if rows.checked_mul(cols) == Some(len) {
        return Ok(());
    }
    Err(shape(what, format!("[{rows}, {cols}]"), format!("{len} elements")))
}

/// Routes T tokens: `logits` [T, E], `bias` [E] (added to the scores for the selection only; empty means zeros).
///
/// Errors: a contradictory configuration, wrong lengths, a logit or bias that is not finite.
///
/// ```
/// use moe_dispatch::router::{RouterConfig, route};
/// let cfg = RouterConfig { routed_scaling_factor: 2.0, ..RouterConfig::new(4, 2) };
/// let r = route(&cfg, &[0.0, 3.0, -1.0, 3.0], &[0.0; 4])?;
/// assert_eq!(r.indices, [1, 3]); // a tie: the lower index first
/// assert_eq!(r.weights, [1.0, 1.0]); // equal scores share the factor
/// # Ok::<(), moe_dispatch::Error>(())
/// ```
pub fn route(cfg: &RouterConfig, logits: &[f32], bias: &[f32]) -> Result<Routing> {
    cfg.validate()?;
    let (e, k) = (cfg.num_experts, cfg.top_k);
    let tokens = logits.len() / e;
    if !logits.len().is_multiple_of(e) {
        return Err(shape("logits", format!("[T, {e}]"), format!("{} elements", logits.len())));
    }
    if !bias.is_empty() && bias.len() != e {
        return Err(shape("bias", format!("[{e}]"), format!("{} elements", bias.len())));
    }
    if let Some(i) = bias.iter().position(|b| !b.is_finite()) {
        return Err(shape("bias", "finite numbers", format!("{} for expert {i}", bias[i])));
    }
    let mut routing =
        Routing { tokens, top_k: k, indices: vec![0; tokens * k], weights: vec![0.0; tokens * k], scores: vec![0.0; tokens * e] };
    let isa = Isa::detect();
    let mut items: Vec<Item<'_>> = logits
        .chunks(ROWS_PER_ITEM * e)
        .zip(routing.indices.chunks_mut(ROWS_PER_ITEM * k))
        .zip(routing.weights.chunks_mut(ROWS_PER_ITEM * k))
        .zip(routing.scores.chunks_mut(ROWS_PER_ITEM * e))
        .map(|(((logits, indices), weights), scores)| Item { logits, indices, weights, scores, bad: None })
        .collect();
    par::for_each_chunk_mut(&mut items, 1, |_, item| {
        dispatch(isa, RouteRows { cfg, bias, item: &mut item[0] });
    });
    if let Some((i, row)) = items.iter().enumerate().find_map(|(i, item)| Some((i, item.bad?))) {
        let row = i * ROWS_PER_ITEM + row;
        let values = &logits[row * e..][..e];
        let column = values.iter().position(|x| !x.is_finite()).unwrap_or(0);
        let got = format!("{} for token {row}, expert {column}", values[column]);
        return Err(shape("logits", "finite numbers", got));
    }
    Ok(routing)
}

/// Gradient of the logits [T, E] from that of the weights [T, K]. The selection is a constant; the bias has no gradient.
///
/// With w_j = c s_j / (S + eps), S the sum over the token's experts: dL/ds_j = c / (S + eps) (dw_j - sum_i dw_i s_i / (S + eps)),
/// then through the sigmoid, s (1 - s), or the softmax.
pub fn route_backward(cfg: &RouterConfig, routing: &Routing, dweights: &[f32]) -> Result<Vec<f32>> {
    routing.check(cfg)?;
    let (e, k) = (cfg.num_experts, cfg.top_k);
    check_len("dweights", dweights.len(), routing.tokens, k)?;
    let mut dlogits = vec![0.0f32; routing.tokens * e];
    par::for_each_chunk_mut(&mut dlogits, ROWS_PER_ITEM * e, |chunk, dlogits| {
        for (r, dl) in dlogits.chunks_exact_mut(e).enumerate() {
            let t = chunk * ROWS_PER_ITEM + r;
            let scores = &routing.scores[t * e..][..e];
            backward_row(cfg, scores, &routing.indices[t * k..][..k], &dweights[t * k..][..k], dl);
        }
    });
    Ok(dlogits)
}

/// One token of [`route_backward`]; `dlogits` [E] comes in as zeros.
fn backward_row(cfg: &RouterConfig, scores: &[f32], indices: &[u32], dweights: &[f32], dlogits: &mut [f32]) {
    let (mut inv, mut mean) = (1.0f32, 0.0f32);
    if cfg.norm_topk_prob {
        let mut sum = 0.0f32;
        let mut dot = 0.0f32;
        for (&i, &dw) in indices.iter().zip(dweights) {
            sum += scores[i as usize];
            dot += dw * scores[i as usize];
        }
        sum += WEIGHT_EPS;
        inv = 1.0 / sum;
        mean = dot / sum;
    }
    let c = cfg.routed_scaling_factor * inv;
    match cfg.scoring {
        Scoring::Sigmoid => {
            for (&i, &dw) in indices.iter().zip(dweights) {
                let s = scores[i as usize];
                dlogits[i as usize] += c * (dw - mean) * (s * (1.0 - s));
            }
        }
        Scoring::Softmax => {
            let mut dot = 0.0f32;
            for (&i, &dw) in indices.iter().zip(dweights) {
                let ds = c * (dw - mean);
                dlogits[i as usize] += ds;
                dot += ds * scores[i as usize];
            }
            for (d, &s) in dlogits.iter_mut().zip(scores) {
                *d = s * (*d - dot);
            }
        }
    }
}

/// A run of tokens with its outputs.
struct Item<'a> {
    logits: &'a [f32],
    indices: &'a mut [u32],
    weights: &'a mut [f32],
    scores: &'a mut [f32],
    /// First row, counted within the item, that holds a value which is not finite.
    bad: Option<usize>,
}

/// [`route_rows`] for one item. The loops hold one IEEE operation after the other in a fixed order, so the instruction set
/// changes the speed only.
struct RouteRows<'a, 'b> {
    cfg: &'a RouterConfig,
    bias: &'a [f32],
    item: &'a mut Item<'b>,
}

impl Kernel for RouteRows<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        route_rows(s, self.cfg, self.bias, self.item);
    }
}

#[inline(always)]
fn route_rows<S: Simd>(s: S, cfg: &RouterConfig, bias: &[f32], item: &mut Item<'_>) {
    let (e, k) = (cfg.num_experts, cfg.top_k);
    let mut biased = vec![0.0f32; e];
    let mut best = vec![0.0f32; k.max(cfg.topk_group)];
    let mut group_ids = vec![0u32; best.len()];
    let mut kept = vec![true; cfg.n_group];
    for (row, logits) in item.logits.chunks_exact(e).enumerate() {
        let scores = &mut item.scores[row * e..][..e];
        if !score_row(s, cfg.scoring, logits, scores) {
            item.bad = Some(row);
            return;
        }
        if bias.is_empty() {
            biased.copy_from_slice(scores);
        } else {
            for ((b, &s), &c) in biased.iter_mut().zip(&*scores).zip(bias) {
                *b = s + c;
            }
        }
        let size = cfg.group_size();
        if cfg.topk_group < cfg.n_group {
            keep_groups(s, cfg, &biased, &mut best, &mut group_ids, &mut kept);
        }
        let indices = &mut item.indices[row * k..][..k];
        let mut list = TopList::new(&mut best[..k], indices);
        for (g, values) in biased.chunks_exact(size).enumerate() {
            if kept[g] {
                list.scan(values, (g * size) as u32);
            }
        }
        let weights = &mut item.weights[row * k..][..k];
        let mut sum = 0.0f32;
        for (w, &i) in weights.iter_mut().zip(&*indices) {
            *w = scores[i as usize];
            sum += *w;
        }
        if cfg.norm_topk_prob {
            let sum = sum + WEIGHT_EPS;
            weights.iter_mut().for_each(|w| *w /= sum);
        }
        weights.iter_mut().for_each(|w| *w *= cfg.routed_scaling_factor);
    }
}

/// Marks the `topk_group` groups with the best scores.
#[inline(always)]
fn keep_groups<S: Simd>(s: S, cfg: &RouterConfig, biased: &[f32], best: &mut [f32], ids: &mut [u32], kept: &mut [bool]) {
    let (size, m) = (cfg.group_size(), cfg.scores_per_group());
    let mut scores = [0.0f32; LANES];
    let mut start = 0;
    let mut filled = 0;
    while start < cfg.n_group {
        let n = LANES.min(cfg.n_group - start);
        for (score, values) in scores[..n].iter_mut().zip(biased[start * size..].chunks_exact(size)) {
            *score = match m {
                1 => max(s, values),
                2 => top_two(s, values),
                _ => top_m(values, m),
            };
        }
        let mut list = TopList { best: &mut best[..cfg.topk_group], ids: &mut ids[..cfg.topk_group], filled };
        list.scan(&scores[..n], start as u32);
        filled = list.filled;
        start += n;
    }
    kept.fill(false);
    for &g in &ids[..cfg.topk_group] {
        kept[g as usize] = true;
    }
}

/// The largest value.
#[inline(always)]
fn max<S: Simd>(s: S, values: &[f32]) -> f32 {
    if values.len() < LANES {
        return values.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m });
    }
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = s.splat(f32::NEG_INFINITY);
    for chunk in chunks {
        lanes = s.max(lanes, s.load(chunk));
    }
    rest.iter().fold(s.reduce_max(lanes), |m, &x| if x > m { x } else { m })
}

/// Sum of the two largest of at least two values.
#[inline(always)]
fn top_two<S: Simd>(s: S, values: &[f32]) -> f32 {
    // The two largest of a pair of falling pairs.
    let merge = |(a, b): (f32, f32), (c, d): (f32, f32)| {
        let (high, low) = if c > a { (c, a) } else { (a, c) };
        let second = if d > b { d } else { b };
        (high, if low > second { low } else { second })
    };
    const LOW: f32 = f32::NEG_INFINITY;
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut best = (LOW, LOW);
    if !chunks.is_empty() {
        let (mut first, mut second) = (s.splat(LOW), s.splat(LOW));
        for chunk in chunks {
            let x = s.load(chunk);
            second = s.max(second, s.min(first, x));
            first = s.max(first, x);
        }
        let (mut first, mut second) = (s.to_array(first), s.to_array(second));
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                (first[i], second[i]) = merge((first[i], second[i]), (first[i + half], second[i + half]));
            }
        }
        best = (first[0], second[0]);
    }
    best = rest.iter().fold(best, |best, &x| merge(best, (x, LOW)));
    best.0 + best.1
}

/// Sum of the `m` largest, from the largest down, in passes of "the largest that comes after the last one taken".
#[inline(never)]
fn top_m(values: &[f32], m: usize) -> f32 {
    let (mut sum, mut last, mut last_at) = (0.0f32, f32::INFINITY, usize::MAX);
    for _ in 0..m {
        let mut next: Option<(f32, usize)> = None;
        for (i, &x) in values.iter().enumerate() {
            let after = x < last || (x == last && last_at != usize::MAX && i > last_at);
            if after && next.is_none_or(|(n, _)| x > n) {
                next = Some((x, i));
            }
        }
        let Some((x, i)) = next else { break };
        sum += x;
        (last, last_at) = (x, i);
    }
    sum
}

/// The best values seen so far with their ids, in falling order; among equals the one that came first stays ahead.
struct TopList<'a> {
    best: &'a mut [f32],
    ids: &'a mut [u32],
    filled: usize,
}

impl<'a> TopList<'a> {
    #[inline(always)]
    fn new(best: &'a mut [f32], ids: &'a mut [u32]) -> Self {
        Self { best, ids, filled: 0 }
    }

    /// Offers `values`, whose ids are `first_id..`. Most runs of 16 hold nothing good enough and cost one comparison.
    #[inline(always)]
    fn scan(&mut self, values: &[f32], first_id: u32) {
        let n = self.best.len();
        for (c, chunk) in values.chunks(LANES).enumerate() {
            if self.filled == n && chunk.len() == LANES {
                let worst = self.best[n - 1];
                let mut any = false;
                for &x in chunk {
                    any |= x > worst;
                }
                if !any {
                    continue;
                }
            }
            for (i, &x) in chunk.iter().enumerate() {
                if self.filled < n || x > self.best[n - 1] {
                    self.insert(x, first_id + (c * LANES + i) as u32);
                }
            }
        }
    }

    #[inline(always)]
    fn insert(&mut self, x: f32, id: u32) {
        let mut at = if self.filled < self.best.len() {
            self.filled += 1;
            self.filled - 1
        } else {
            self.best.len() - 1
        };
        while at > 0 && x > self.best[at - 1] {
            self.best[at] = self.best[at - 1];
            self.ids[at] = self.ids[at - 1];
            at -= 1;
        }
        self.best[at] = x;
        self.ids[at] = id;
    }
}

/// Scores of one token; false when a logit is not finite.
#[inline(always)]
fn score_row<S: Simd>(s: S, scoring: Scoring, logits: &[f32], scores: &mut [f32]) -> bool {
    let mut bad = 0u32;
    for x in logits {
        bad |= u32::from(x.to_bits() & 0x7f80_0000 == 0x7f80_0000);
    }
    if bad != 0 {
        return false;
    }
    match scoring {
        Scoring::Sigmoid => {
            let one = s.splat(1.0);
            for (out, x) in scores.chunks_mut(LANES).zip(logits.chunks(LANES)) {
                let e = exp(s, s.sub(s.splat(0.0), s.load_partial(x)));
                s.store_partial(s.div(one, s.add(one, e)), out);
            }
        }
        Scoring::Softmax => {
            let top = s.splat(max(s, logits));
            let mut sum = 0.0f32;
            let mut sums = s.splat(0.0);
            let (chunks, rest) = logits.as_chunks::<LANES>();
            let (out, out_rest) = scores.as_chunks_mut::<LANES>();
            for (out, x) in out.iter_mut().zip(chunks) {
                let e = exp(s, s.sub(s.load(x), top));
                sums = s.add(sums, e);
                s.store(e, out);
            }
            s.store_partial(exp(s, s.sub(s.load_partial(rest), top)), out_rest);
            out_rest.iter().for_each(|e| sum += e);
            let sum = s.splat(s.reduce_add(sums) + sum);
            for out in scores.chunks_mut(LANES) {
                let e = s.load_partial(out);
                s.store_partial(s.div(e, sum), out);
            }
        }
    }
    true
}
