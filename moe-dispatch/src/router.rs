//! The router: which experts a token goes to, and with what weights.
//!
//! For every token, from its logits `[E]`:
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
//!
//! # Speed
//!
//! With AVX-512, groups of a multiple of 16 experts and at most 16 experts a token, the selection finds the few keys that can be among the best by
//! comparing registers, without a branch on the scores: 4096 tokens, top 8 of 256 experts in 8 groups, take 1.4 ms on one thread of a
//! 2-core Xeon virtual machine. 2048 tokens there (best of 60, by the thread's own clock): 0.23 ms for top 2 of 8; backward of either 0.13 and
//! 0.01 ms, balance loss with gradient 0.34 and 0.06 ms.

use v3_numerics::cpu::Isa;
use v3_numerics::par;
use v3_numerics::simd::{Kernel, LANES, Simd, dispatch, exp};

use crate::cpu::Selection;
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
    /// `[T, K]`: each token's experts, distinct, by falling biased score.
    pub indices: Vec<u32>,
    /// `[T, K]`: the weight of each.
    pub weights: Vec<f32>,
    /// `[T, E]`: every expert's unbiased score, which the backward and the balance loss need.
    pub scores: Vec<f32>,
}

impl Routing {
    /// Tokens sent to each expert `[E]`: the load that [`update_bias`](crate::balance::update_bias) evens out. An index of
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

/// Routes T tokens: `logits` `[T, E]`, `bias` `[E]` (added to the scores for the selection only; empty means zeros).
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
    let selection = Selection::new(cfg, isa);
    // A score is at least 0, and 0 added leaves it as it is.
    let zeros = vec![0.0; if bias.is_empty() { e } else { 0 }];
    let bias = if bias.is_empty() { &zeros } else { bias };
    let mut items: Vec<Item<'_>> = logits
        .chunks(ROWS_PER_ITEM * e)
        .zip(routing.indices.chunks_mut(ROWS_PER_ITEM * k))
        .zip(routing.weights.chunks_mut(ROWS_PER_ITEM * k))
        .zip(routing.scores.chunks_mut(ROWS_PER_ITEM * e))
        .map(|(((logits, indices), weights), scores)| Item { logits, indices, weights, scores, bad: None })
        .collect();
    par::for_each_chunk_mut(&mut items, 1, |_, item| {
        dispatch(isa, RouteRows { cfg, bias, selection, item: &mut item[0] });
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

/// Gradient of the logits `[T, E]` from that of the weights `[T, K]`. The selection is a constant; the bias has no gradient.
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

/// One token of [`route_backward`]; `dlogits` `[E]` comes in as zeros.
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
    /// `[E]`
    bias: &'a [f32],
    selection: Option<Selection>,
    item: &'a mut Item<'b>,
}

impl Kernel for RouteRows<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let RouteRows { cfg, bias, selection, item } = self;
        let (e, k) = (cfg.num_experts, cfg.top_k);
        for (row, (logits, scores)) in item.logits.chunks_exact(e).zip(item.scores.chunks_exact_mut(e)).enumerate() {
            if !score_row(s, cfg.scoring, logits, scores) {
                item.bad = Some(row);
                return;
            }
        }
        let scores = &*item.scores;
        let mut selector = Selector::new(cfg);
        match selection {
            Some(selection) => {
                let mut left = Vec::new();
                selection.rows(scores, bias, item.indices, |row| left.push(row));
                for row in left {
                    selector.select(cfg, &scores[row * e..][..e], bias, &mut item.indices[row * k..][..k]);
                }
            }
            None => {
                for (scores, indices) in scores.chunks_exact(e).zip(item.indices.chunks_exact_mut(k)) {
                    selector.select(cfg, scores, bias, indices);
                }
            }
        }
        let rows = scores.chunks_exact(e).zip(item.indices.chunks_exact(k)).zip(item.weights.chunks_exact_mut(k));
        for ((scores, indices), weights) in rows {
            let mut sum = 0.0f32;
            for (w, &i) in weights.iter_mut().zip(indices) {
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
}

/// Selects experts with any configuration on any processor.
struct Selector {
    keys: Vec<u32>,
    experts: Candidates,
    group_keys: Vec<u32>,
    groups: Candidates,
    kept: Vec<u32>,
}

impl Selector {
    fn new(cfg: &RouterConfig) -> Self {
        Selector {
            keys: vec![0; cfg.num_experts],
            experts: Candidates::new(cfg.num_experts),
            group_keys: vec![0; cfg.n_group],
            groups: Candidates::new(cfg.n_group),
            kept: vec![0; cfg.topk_group],
        }
    }

    /// The experts of one token, the best first.
    #[inline(always)]
    fn select(&mut self, cfg: &RouterConfig, scores: &[f32], bias: &[f32], indices: &mut [u32]) {
        let Selector { keys, experts, group_keys, groups, kept } = self;
        let size = cfg.group_size();
        keys.iter_mut().zip(scores).zip(bias).for_each(|((k, &s), &b)| *k = key(s + b));
        if cfg.topk_group < cfg.n_group {
            let m = cfg.scores_per_group();
            for (score, group) in group_keys.iter_mut().zip(keys.chunks_exact(size)) {
                *score = key(match m {
                    1 => value(largest(group)),
                    2 => top_two(group),
                    _ => top_m(group, m),
                });
            }
            groups.fill(group_keys);
            groups.take_best(kept);
            group_keys.fill(0);
            kept.iter().for_each(|&g| group_keys[g as usize] = u32::MAX);
            for (group, &mask) in keys.chunks_exact_mut(size).zip(&*group_keys) {
                group.iter_mut().for_each(|k| *k &= mask);
            }
        }
        experts.fill(keys);
        experts.take_best(indices);
    }
}

/// An integer that orders as the number does: selection on integers vectorises, and has no branch to mispredict. Zero is
/// below every finite number. (Minus zero would come before zero; a score plus a bias is never minus zero.)
#[inline(always)]
fn key(x: f32) -> u32 {
    let bits = x.to_bits();
    bits ^ ((bits as i32 >> 31) as u32 | 0x8000_0000)
}

/// The number of a key.
#[inline(always)]
fn value(key: u32) -> f32 {
    f32::from_bits(key ^ ((!key as i32 >> 31) as u32 | 0x8000_0000))
}

#[inline(always)]
fn largest(keys: &[u32]) -> u32 {
    keys.iter().fold(0, |m, &k| m.max(k))
}

/// Sum of the two largest of at least two values.
#[inline(always)]
fn top_two(keys: &[u32]) -> f32 {
    let first = largest(keys);
    let mut times = 0u32;
    let mut second = 0;
    for &k in keys {
        times += u32::from(k == first);
        second = second.max(if k == first { 0 } else { k });
    }
    value(first) + value(if times > 1 { first } else { second })
}

/// Sum of the `m` largest, from the largest down, in passes of "the largest that comes after the last one taken".
fn top_m(keys: &[u32], m: usize) -> f32 {
    let (mut sum, mut last) = (0.0f32, (u32::MAX, 0));
    for _ in 0..m {
        // Equal keys in their order: the position breaks the tie.
        let after = keys.iter().enumerate().map(|(i, &k)| (k, usize::MAX - i)).filter(|x| *x < last);
        let Some(next) = after.max() else { break };
        sum += value(next.0);
        last = next;
    }
    sum
}

/// Keys to choose the largest of, in runs of 16, and the largest of each run. The position sits below the key, inverted, so
/// that one comparison decides ties too.
struct Candidates {
    keys: Vec<[u64; LANES]>,
    largest: Vec<u64>,
}

impl Candidates {
    fn new(n: usize) -> Self {
        let runs = n.div_ceil(LANES);
        Self { keys: vec![[0; LANES]; runs], largest: vec![0; runs] }
    }

    #[inline(always)]
    fn fill(&mut self, keys: &[u32]) {
        for (i, (to, &k)) in self.keys.as_flattened_mut().iter_mut().zip(keys).enumerate() {
            *to = u64::from(k) << 32 | u64::from(!(i as u32));
        }
        for (l, run) in self.largest.iter_mut().zip(&self.keys) {
            *l = run.iter().fold(0, |m, &k| m.max(k));
        }
    }

    /// The positions of the largest keys, the largest first, of equal ones the first first; takes them out.
    #[inline(always)]
    fn take_best(&mut self, ids: &mut [u32]) {
        for id in ids {
            let best = self.largest.iter().fold(0, |m, &k| m.max(k));
            *id = !(best as u32);
            let run = *id as usize / LANES;
            self.keys[run][*id as usize % LANES] = 0;
            self.largest[run] = self.keys[run].iter().fold(0, |m, &k| m.max(k));
        }
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
