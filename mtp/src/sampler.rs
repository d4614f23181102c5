//! From logits to a distribution, and from a distribution to a token.

use crate::error::{Error, Result, check_len};
use crate::math;
use crate::rng::Uniform;
use v3_numerics::cpu::Isa;

/// Temperature, then top-k, then top-p: the order that the field's generation libraries share.
///
/// Equal logits are ranked by token id, lower first, so that a distribution is a function of its logits. Both the draft's
/// and the target's distribution must go through the same truncation for speculative sampling to be worth it; the law of
/// the output is the target's in any case.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
}

impl Default for Sampler {
    /// The model's own distribution: temperature 1, nothing cut.
    fn default() -> Self {
        Sampler { temperature: 1.0, top_k: 0, top_p: 1.0 }
    }
}

impl Sampler {
    /// `temperature` at least 0, where 0 puts everything on the largest logit; `top_k` the number of tokens to keep, 0 for
    /// all; `top_p` in (0, 1], keeping the fewest most probable tokens whose probabilities reach it.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a value outside its range.
    pub fn new(temperature: f32, top_k: usize, top_p: f32) -> Result<Self> {
        if !(temperature.is_finite() && temperature >= 0.0) {
            let expected = "a finite number, at least 0";
            return Err(Error::Parameter { what: "temperature", expected, got: temperature.to_string() });
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::Parameter { what: "top_p", expected: "more than 0, at most 1", got: top_p.to_string() });
        }
        Ok(Sampler { temperature, top_k, top_p })
    }

    /// Whether chance plays no part: temperature 0.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// The distribution over the vocabulary, `[vocab]`: sums to 1 up to f32 rounding, 0 where a token is cut.
    ///
    /// Weights are exp((logit - largest) / temperature) in f32, with the same bits on every instruction set; sums are f64
    /// in order of token id.
    ///
    /// ```
    /// let p = mtp::Sampler::new(1.0, 2, 1.0)?.probs(&[0.0, 1.0, -3.0, 1.0])?;
    /// assert_eq!(p, [0.0, 0.5, 0.0, 0.5]);
    /// # Ok::<(), mtp::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Distribution`] if a logit is NaN, or none is above minus infinity.
    pub fn probs(&self, logits: &[f32]) -> Result<Vec<f32>> {
        let mut probs = vec![0.0; logits.len()];
        self.probs_into(logits, &mut probs)?;
        Ok(probs)
    }

    /// [`Sampler::probs`] into the caller's memory.
    ///
    /// # Errors
    /// As [`Sampler::probs`], and [`Error::Shape`] if the lengths differ.
    pub fn probs_into(&self, logits: &[f32], probs: &mut [f32]) -> Result<()> {
        check_len("probs", probs.len(), logits.len())?;
        let best = argmax(logits)? as usize;
        let largest = logits[best];
        if self.is_greedy() {
            probs.fill(0.0);
            probs[best] = 1.0;
            return Ok(());
        }
        if largest == f32::INFINITY {
            // The limit: everything on the infinite logits.
            for (p, &x) in probs.iter_mut().zip(logits) {
                *p = if x == f32::INFINITY { 1.0 } else { 0.0 };
            }
        } else {
            for (p, &x) in probs.iter_mut().zip(logits) {
                *p = (x - largest) / self.temperature;
            }
            math::exp_scaled(Isa::detect(), probs, 0.0, 1.0);
        }
        self.truncate(logits, probs);
        let total = math::sum_f64(probs);
        probs.iter_mut().for_each(|p| *p = (f64::from(*p) / total) as f32);
        Ok(())
    }

    /// Draws a token from the distribution of `logits`.
    ///
    /// # Errors
    /// As [`Sampler::probs`].
    pub fn sample(&self, logits: &[f32], rng: &mut impl Uniform) -> Result<u32> {
        if self.is_greedy() {
            return argmax(logits);
        }
        sample(&self.probs(logits)?, rng)
    }

    /// Zeroes the weights of the tokens that top-k and top-p cut.
    fn truncate(&self, logits: &[f32], weights: &mut [f32]) {
        let keep = if self.top_k == 0 { weights.len() } else { self.top_k.min(weights.len()) };
        if keep == weights.len() && self.top_p >= 1.0 {
            return;
        }
        let mut order: Vec<u32> = (0..weights.len() as u32).collect();
        // By logit, not by weight: far below the largest all weights are 0, and the ranking must not depend on that.
        let rank = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if keep < order.len() {
            order.select_nth_unstable_by(keep - 1, rank);
            order[keep..].iter().for_each(|&i| weights[i as usize] = 0.0);
            order.truncate(keep);
        }
        if self.top_p >= 1.0 {
            return;
        }
        let goal = f64::from(self.top_p) * math::sum_f64(weights);
        let (mut reached, mut kept, mut sorted) = (0.0f64, 0, 0);
        while kept < order.len() && reached < goal {
            if kept == sorted {
                // The head of the ranking is all that is needed as a rule; sort twice as much each time it is not.
                let next = (sorted * 2).max(256).min(order.len());
                if next < order.len() {
                    order[sorted..].select_nth_unstable_by(next - sorted - 1, rank);
                }
                order[sorted..next].sort_unstable_by(rank);
                sorted = next;
            }
            reached += f64::from(weights[order[kept] as usize]);
            kept += 1;
        }
        order[kept..].iter().for_each(|&i| weights[i as usize] = 0.0);
    }
}

/// The token of the largest logit, the lowest id among equals.
///
/// # Errors
/// [`Error::Distribution`] if a logit is NaN, or none is above minus infinity.
pub fn argmax(logits: &[f32]) -> Result<u32> {
    let mut best = (f32::NEG_INFINITY, None);
    let mut nan = false;
    for (i, &x) in logits.iter().enumerate() {
        nan |= x.is_nan();
        if x > best.0 {
            best = (x, Some(i));
        }
    }
    if nan {
        return Err(Error::Distribution { what: "logits", position: 0, reason: "contain NaN" });
    }
    let reason = "have no value above minus infinity";
    best.1.map(|i| i as u32).ok_or(Error::Distribution { what: "logits", position: 0, reason })
}

/// Draws a token from `probs` `[vocab]`, which need not sum to 1: they are divided by their sum.
///
/// # Errors
/// [`Error::Distribution`] if a value is negative or not finite, or all are 0.
pub fn sample(probs: &[f32], rng: &mut impl Uniform) -> Result<u32> {
    let total = total_of("probs", 0, probs)?;
    Ok(draw(probs.iter().map(|&p| f64::from(p)), total, rng.uniform()))
}

/// The sum of a row of weights, once it is known to be one of a distribution.
pub(crate) fn total_of(what: &'static str, position: usize, weights: &[f32]) -> Result<f64> {
    // One pass, no branch in it: a NaN or a negative value makes `sound` false.
    let sound = weights.iter().fold(true, |sound, &w| sound & (0.0..f32::INFINITY).contains(&w));
    if !sound {
        return Err(Error::Distribution { what, position, reason: "holds a value that is negative or not finite" });
    }
    let total = math::sum_f64(weights);
    if total > 0.0 {
        return Ok(total);
    }
    Err(Error::Distribution { what, position, reason: "is zero throughout" })
}

/// The index at which the running sum of `weights` passes `u` of `total`; a weight of 0 is never chosen.
pub(crate) fn draw(weights: impl Iterator<Item = f64>, total: f64, u: f64) -> u32 {
    let goal = u * total;
    let (mut sum, mut last) = (0.0f64, 0);
    for (i, w) in weights.enumerate() {
        if w > 0.0 {
            last = i;
            sum += w;
            if goal < sum {
                return i as u32;
            }
        }
    }
    // The running sum rounded to a little less than `total`, and u fell into the gap.
    last as u32
}
