//! Verification of drafted chains: greedy, and exact rejection sampling.
//!
//! A drafter proposes `n` tokens; one pass of the target over them yields `n + 1` next-token distributions. The verifier
//! says how many drafted tokens stand and which token follows them. It sees tokens and probabilities only, so that it
//! serves multi-token-prediction modules, separate draft models and EAGLE-style drafters alike.
//!
//! The law of rejection sampling (Leviathan, Kalman and Matias 2023; Chen et al. 2023): a token x drawn from the draft
//! distribution q is accepted with probability min(1, p(x)/q(x)), p being the target's; on rejection a token is drawn
//! from the residual max(0, p - q), normalised. The token that comes out then has the law p: it is accepted as x with
//! probability q(x) min(1, p(x)/q(x)) = min(q(x), p(x)), and the residual supplies max(0, p(x) - q(x)), whose sum over x
//! is exactly the probability of a rejection. `tests/law.rs` enumerates it.

use crate::error::{Error, Result, area, check_len};
use crate::rng::Uniform;
use crate::sampler::{draw, total_of};

/// What the verifier decided about one chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Drafted tokens that stand: the first `accepted` of the chain.
    pub accepted: usize,
    /// The token that follows them: the target's own, at no extra pass.
    pub next: u32,
}

impl Verdict {
    /// Rows of the verification pass that stay in the target's cache: the pass took the last committed token and the
    /// `n` drafted ones, and the rows of the rejected ones are to be trimmed.
    pub fn kept_rows(&self) -> usize {
        self.accepted + 1
    }

    /// The tokens this verdict commits, given the chain it was made for.
    pub fn committed<'a>(&self, draft: &'a [u32]) -> impl Iterator<Item = u32> + use<'a> {
        draft[..self.accepted.min(draft.len())].iter().copied().chain([self.next])
    }
}

/// The distributions that a chain of drafted tokens was drawn from.
#[derive(Debug, Clone, Copy)]
pub enum Draft<'a> {
    /// `[n, vocab]`, row i being the law that token i was drawn from. Rows need not sum to 1: each is divided by its sum.
    Sampled(&'a [f32]),
    /// Each token was chosen without chance (a greedy drafter, or text looked up): its law is all on that token.
    Certain,
}

/// Greedy verification: the longest prefix of `draft` that equals the target's own choices, and the choice after it.
///
/// `target_argmax` has one entry more than `draft`: entry i is the target's choice after i drafted tokens.
///
/// ```
/// let verdict = mtp::verify_greedy(&[5, 9, 2], &[5, 9, 4, 8])?;
/// assert_eq!((verdict.accepted, verdict.next), (2, 4));
/// # Ok::<(), mtp::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if the lengths do not fit.
pub fn verify_greedy(draft: &[u32], target_argmax: &[u32]) -> Result<Verdict> {
    check_len("target_argmax (drafted tokens + 1)", target_argmax.len(), draft.len() + 1)?;
    let accepted = draft.iter().zip(target_argmax).take_while(|(d, t)| d == t).count();
    Ok(Verdict { accepted, next: target_argmax[accepted] })
}

/// Exact rejection sampling over a chain: the tokens committed have the target's law, whatever the drafter's.
///
/// `draft` `[n]`; `proposal` its distributions; `target` `[n + 1, vocab]`, row i being the target's law after i drafted
/// tokens, after temperature and truncation ([`crate::Sampler::probs`]). Rows are divided by their sums, taken in f64 in a
/// fixed order. Exactly one number is drawn per drafted token examined, and one more for the token that ends the chain;
/// a token that is certain to be accepted draws its number too, so that the stream's position depends on the verdict
/// alone.
///
/// # Errors
/// [`Error::Shape`]; [`Error::Token`] for a drafted token outside the vocabulary; [`Error::Distribution`] for a row that
/// is negative, not finite or zero throughout, or a drafted token whose own distribution gives it no chance. Rows after
/// the first rejection are not looked at.
pub fn verify_sampled(
    draft: &[u32],
    proposal: Draft<'_>,
    target: &[f32],
    vocab: usize,
    rng: &mut impl Uniform,
) -> Result<Verdict> {
    if vocab == 0 {
        return Err(Error::Parameter { what: "vocab", expected: "at least 1", got: "0".into() });
    }
    check_len("target", target.len(), area("target", draft.len() + 1, vocab)?)?;
    if let Draft::Sampled(q) = proposal {
        check_len("draft distributions", q.len(), area("draft distributions", draft.len(), vocab)?)?;
    }
    for (index, &token) in draft.iter().enumerate() {
        if token as usize >= vocab {
            return Err(Error::Token { what: "draft", index, value: token.into(), vocab });
        }
    }
    for (position, (&token, p)) in draft.iter().zip(target.chunks_exact(vocab)).enumerate() {
        let p_total = total_of("target", position, p)?;
        let u = rng.uniform();
        let token_p = f64::from(p[token as usize]) / p_total;
        match proposal {
            Draft::Sampled(q) => {
                let q = &q[position * vocab..][..vocab];
                let q_total = total_of("draft distributions", position, q)?;
                let token_q = f64::from(q[token as usize]) / q_total;
                if token_q == 0.0 {
                    return Err(Error::Distribution {
                        what: "draft distributions",
                        position,
                        reason: "gives no chance to the token that was drafted",
                    });
                }
                if u * token_q < token_p {
                    continue;
                }
                let next = draw_residual(p, p_total, q, q_total, rng);
                return Ok(Verdict { accepted: position, next });
            }
            Draft::Certain => {
                if u < token_p {
                    continue;
                }
                let next = draw_without(p, p_total, token as usize, rng);
                return Ok(Verdict { accepted: position, next });
            }
        }
    }
    let last = &target[draft.len() * vocab..];
    let total = total_of("target", draft.len(), last)?;
    Ok(Verdict { accepted: draft.len(), next: draw(last.iter().map(|&p| f64::from(p)), total, rng.uniform()) })
}

/// Draws from max(0, p - q). Where rounding leaves nothing of it (p = q but for the last place), p itself is the limit.
fn draw_residual(p: &[f32], p_total: f64, q: &[f32], q_total: f64, rng: &mut impl Uniform) -> u32 {
    let (p_scale, q_scale) = (1.0 / p_total, 1.0 / q_total);
    let rest = || p.iter().zip(q).map(|(&p, &q)| (f64::from(p) * p_scale - f64::from(q) * q_scale).max(0.0));
    let total = rest().sum::<f64>();
    let u = rng.uniform();
    if total > 0.0 { draw(rest(), total, u) } else { draw(p.iter().map(|&p| f64::from(p)), p_total, u) }
}

/// Draws from p with one token left out: the residual of a draft that was certain of it.
fn draw_without(p: &[f32], p_total: f64, token: usize, rng: &mut impl Uniform) -> u32 {
    let rest = || p.iter().enumerate().map(|(i, &p)| if i == token { 0.0 } else { f64::from(p) });
    let total = rest().sum::<f64>();
    let u = rng.uniform();
    if total > 0.0 { draw(rest(), total, u) } else { draw(p.iter().map(|&p| f64::from(p)), p_total, u) }
}
