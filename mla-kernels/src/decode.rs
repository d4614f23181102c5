//! Absorbed decode: attention of a few new tokens over the cached latents of their sequence.

use crate::cache::{LatentCache, SeqId};
use crate::cpu::{DecodeSplit, Kernels, LANES, Shared, merge_splits};
use crate::error::{Error, Result, check_len};
use v3_numerics::par;

/// Values of partial results that are held at a time (64 MiB).
const PARTIAL_VALUES: usize = 16 << 20;

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
    if !(scale.is_finite() && scale > 0.0) {
        return Err(Error::Parameter { what: "softmax scale", expected: "finite and positive", got: scale.to_string() });
    }
    if options.split_len == 0 {
        return Err(Error::Parameter { what: "split_len", expected: "positive", got: "0".into() });
    }
    let split_len = options.split_len;
    let blocks = query_blocks(cache, requests, heads, split_len)?;
    let kernels = Kernels::detect();
    let width = config.d_c + 2;
    let mut rest = &blocks[..];
    while !rest.is_empty() {
        // As many blocks of queries as the partial results have room for, at least one.
        let mut values = 0;
        let count = rest.iter().take_while(|b| {
            let fits = values == 0 || values + b.splits * b.lanes * width <= PARTIAL_VALUES;
            values += b.splits * b.lanes * width;
            fits
        });
        let (batch, later) = rest.split_at(count.count());
        rest = later;

        // Per block of queries and split: `[lanes, d_c]` outputs, `[lanes]` maxima, `[lanes]` sums.
        let mut jobs = Vec::new();
        let mut offsets = Vec::with_capacity(batch.len());
        let mut size = 0;
        for (i, b) in batch.iter().enumerate() {
            offsets.push(size);
            jobs.extend((0..b.splits).map(|split| (i, split)));
            size += b.splits * b.lanes * width;
        }
        let mut partial = vec![0.0f32; size];
        let parts = Shared(partial.as_mut_ptr());
        par::for_each(jobs.len(), |job| {
            let (i, split) = jobs[job];
            let b = &batch[i];
            let start = split * split_len;
            // SAFETY: the queries of the block are within `q_latent` and `q_rope`, whose sizes were checked; the sequence has
            // all tokens that any of them sees; each job has its own part of `partial`; the kernels are for an
            // instruction set that the processor has.
            unsafe {
                let out = parts.add(offsets[i] + split * b.lanes * width);
                (kernels.decode)(&DecodeSplit {
                    cache,
                    pages: b.pages,
                    start,
                    end: start.saturating_add(split_len).min(b.visible[b.lanes - 1]),
                    scale,
                    lanes: b.lanes,
                    visible: b.visible,
                    q_latent: q_latent.as_ptr().add(b.first * config.d_c),
                    q_rope: q_rope.as_ptr().add(b.first * config.d_rope),
                    out,
                    max: out.add(b.lanes * config.d_c),
                    sum: out.add(b.lanes * (config.d_c + 1)),
                });
            }
        });

        let (out, lse) = (Shared(out.as_mut_ptr()), Shared(lse.as_mut_ptr()));
        par::for_each(batch.len(), |i| {
            let b = &batch[i];
            let split_values = b.lanes * width;
            let part = |split: usize| &partial[offsets[i] + split * split_values..][..split_values];
            for lane in 0..b.lanes {
                let splits = b.visible[lane].div_ceil(split_len);
                let scalar = |column: usize| (0..splits).map(|s| part(s)[b.lanes * column + lane]).collect::<Vec<_>>();
                let (max, sum) = (scalar(config.d_c), scalar(config.d_c + 1));
                // SAFETY: the row is within `out`, whose size was checked, and each lane of each block has its own.
                let row = unsafe { std::slice::from_raw_parts_mut(out.add((b.first + lane) * config.d_c).0, config.d_c) };
                let row_lse = merge_splits(&max, &sum, |s| &part(s)[lane * config.d_c..][..config.d_c], row);
                // SAFETY: as above.
                unsafe { *lse.add(b.first + lane).0 = row_lse };
            }
        });
    }
    Ok(())
}

/// Consecutive queries, token-major and head-minor, of one request.
struct QueryBlock<'a> {
    pages: &'a [u32],
    /// Index of the first among the queries of all requests.
    first: usize,
    lanes: usize,
    /// Tokens that each query sees; ascending.
    visible: [usize; LANES],
    /// Splits that the last query, and so any of them, sees.
    splits: usize,
}

/// Cuts the queries of every request into blocks.
fn query_blocks<'a>(
    cache: &'a LatentCache,
    requests: &[DecodeRequest],
    heads: usize,
    split_len: usize,
) -> Result<Vec<QueryBlock<'a>>> {
    let mut blocks = Vec::new();
    let mut first = 0;
    for r in requests {
        let (len, pages) = (cache.len(r.seq)?, cache.pages(r.seq)?);
        let queries = r.s_q * heads;
        for start in (0..queries).step_by(LANES) {
            let lanes = (queries - start).min(LANES);
            let mut visible = [0; LANES];
            for (lane, v) in visible[..lanes].iter_mut().enumerate() {
                *v = (len + (start + lane) / heads + 1).saturating_sub(r.s_q);
            }
            blocks.push(QueryBlock {
                pages,
                first: first + start,
                lanes,
                visible,
                splits: visible[lanes - 1].div_ceil(split_len),
            });
        }
        first += queries;
    }
    Ok(blocks)
}
