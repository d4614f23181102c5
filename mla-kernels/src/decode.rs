//! Absorbed decode: attention of a few new tokens over the cached latents of their sequence.

use crate::cache::{LatentCache, SeqId};
use crate::error::{Error, Result, check_len};

/// The new tokens of one sequence, already appended to the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeRequest {
    /// The sequence.
    pub seq: SeqId,
    /// Query rows: the last `s_q` tokens of the sequence.
    pub s_q: usize,
}

/// How decode cuts its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Tokens of a split, positive: splits begin at multiples of it, whatever the length, and may run on different threads.
    /// Results depend on it (by rounding), and on nothing else about how the work is cut.
    pub split_len: usize,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self { split_len: 1024 }
    }
}

/// Attention of each request's rows over its sequence, in latent space.
///
/// Row `i` of a request attends to the first `len - s_q + i + 1` tokens; a row with none gives 0 and `lse = -inf`.
/// Requests follow each other in `q_latent` `[sum s_q, heads, d_c]`, `q_rope` `[sum s_q, heads, d_rope]` (rotated), `out`
/// `[sum s_q, heads, d_c]` and `lse` `[sum s_q, heads]` (natural log-sum-exp of the scaled scores); outputs are overwritten.
pub fn decode(
    cache: &LatentCache,
    requests: &[DecodeRequest],
    heads: usize,
    q_latent: &[f32],
    q_rope: &[f32],
    scale: f32,
    out: &mut [f32],
    lse: &mut [f32],
    options: &DecodeOptions,
) -> Result<()> {
    let config = cache.config();
    let rows = requests.iter().fold(0usize, |n, r| n.saturating_add(r.s_q));
    check_len("q_latent", q_latent.len(), &[rows, heads, config.d_c])?;
    check_len("q_rope", q_rope.len(), &[rows, heads, config.d_rope])?;
    check_len("out", out.len(), &[rows, heads, config.d_c])?;
    check_len("lse", lse.len(), &[rows, heads])?;
    if !scale.is_finite() {
        return Err(Error::Parameter { what: "softmax scale", expected: "finite", got: scale.to_string() });
    }
    if options.split_len == 0 {
        return Err(Error::Parameter { what: "split_len", expected: "positive", got: "0".into() });
    }
    requests.iter().try_for_each(|r| cache.len(r.seq).map(drop))?;
    let w = crate::reference::widen;
    let mut first = 0;
    for r in requests {
        let len = cache.len(r.seq)?;
        let (mut latent, mut k_rope) = (vec![0.0; len * config.d_c], vec![0.0; len * config.d_rope]);
        cache.read(r.seq, 0, &mut latent, &mut k_rope)?;
        let range = |width: usize| first * heads * width..(first + r.s_q) * heads * width;
        let (o, l) = crate::reference::decode(
            heads,
            config.d_c,
            config.d_rope,
            scale.into(),
            &w(&latent),
            &w(&k_rope),
            &w(&q_latent[range(config.d_c)]),
            &w(&q_rope[range(config.d_rope)]),
        );
        out[range(config.d_c)].iter_mut().zip(o).for_each(|(a, b)| *a = b as f32);
        lse[range(1)].iter_mut().zip(l).for_each(|(a, b)| *a = b as f32);
        first += r.s_q;
    }
    Ok(())
}
