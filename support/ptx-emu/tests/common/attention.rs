//! `attention.cu` with random operands, and how far its results may be from softmax in f64.

use super::{Failure, Gpu, Run, Text};
use crate::args;
use half::bf16;
use ptx_emu::{Config, Shape};
use v3_testkit::Rng;

const HEAD: usize = 64;
/// Bytes of dynamic shared memory that the kernel asks for.
pub const SHARED: u32 = 40960;

/// A problem.
#[derive(Clone, Copy)]
pub struct Problem {
    /// Heads.
    pub heads: usize,
    /// Queries of each.
    pub queries: usize,
    /// Keys of each.
    pub keys: usize,
    /// Query i sees keys up to i + keys - queries.
    pub causal: bool,
}

/// Runs the kernel and checks its results.
///
/// Scores are exact products of bf16 summed in f32 (64 terms), so that an f64 reference has the same to about 1e-6; each probability is
/// rounded to bf16 before it multiplies a value (at most 2^-8 of it), while the sum that divides them is not; the output is rounded to
/// bf16 once more. So |error| <= 2^-8 S + 2^-8 (S + 2^-8 S), S the sum of |p v|, and a little for the sums in f32 and for exp2.
pub fn run(text: &Text, config: Config, problem: Problem) -> Run {
    let Problem { heads, queries, keys, causal } = problem;
    let gpu = Gpu::new(text, config);
    let mut rng = Rng::new((queries * 1009 + keys * 13 + heads) as u64);
    let mut matrix = |n: usize| -> Vec<bf16> { (0..n).map(|_| bf16::from_f32(rng.normal())).collect() };
    let (q, k, v) = (matrix(heads * queries * HEAD), matrix(heads * keys * HEAD), matrix(heads * keys * HEAD));
    let bits = |x: &[bf16]| gpu.upload(&x.iter().map(|x| x.to_bits()).collect::<Vec<u16>>());
    let (o, lse) = (gpu.room::<u16>(q.len()), gpu.room::<f32>(heads * queries));
    let scale = 0.125f32;
    let shape = Shape { grid: [queries.div_ceil(64) as u32, heads as u32, 1], ..Shape::new(1, 128).shared(SHARED) };
    let args = args![bits(&q), bits(&k), bits(&v), o, lse, queries as u32, keys as u32, scale, u32::from(causal)];
    gpu.run("attention", shape, &args)?;

    let (o, lse) = (gpu.download::<u16>(o, q.len()), gpu.download::<f32>(lse, heads * queries));
    for head in 0..heads {
        for query in 0..queries {
            let row = head * queries + query;
            let seen = if causal { (query + 1 + keys).saturating_sub(queries).min(keys) } else { keys };
            let at = |x: &[bf16], i: usize, d: usize| f64::from(x[i * HEAD + d].to_f32());
            let scores: Vec<f64> = (0..seen)
                .map(|key| f64::from(scale) * (0..HEAD).map(|d| at(&q, row, d) * at(&k, head * keys + key, d)).sum::<f64>())
                .collect();
            let largest = scores.iter().fold(f64::NEG_INFINITY, |a, &s| a.max(s));
            let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
            let expected_lse = if seen == 0 { f64::NEG_INFINITY } else { largest + sum.ln() };
            let got = f64::from(lse[row]);
            if got != expected_lse && (got - expected_lse).abs() > 1e-5 * (1.0 + expected_lse.abs()) {
                return Err(Failure::Wrong(format!("lse of head {head} query {query}: {got} is not {expected_lse}")));
            }
            for d in 0..HEAD {
                let terms = scores.iter().enumerate().map(|(key, s)| ((s - largest).exp() / sum, at(&v, head * keys + key, d)));
                let (mut expected, mut size) = (0.0, 0.0);
                for (p, value) in terms {
                    expected += p * value;
                    size += p * value.abs();
                }
                let got = f64::from(bf16::from_bits(o[row * HEAD + d]).to_f32());
                let bound = size / 256.0 + (size + size / 256.0) / 256.0 + 1e-5;
                if (got - expected).abs() > bound {
                    return Err(Failure::Wrong(format!(
                        "o of head {head} query {query} [{d}]: {got} is not {expected} (within {bound})"
                    )));
                }
            }
        }
    }
    Ok(())
}
