//! Prefill forwards and backwards, absorbed decode, the absorb projections.

use super::{AnyError, Operation, bytes, f32_flops, narrow_flops, values};
use crate::ceilings::Ceiling;
use mla_kernels::{
    Absorbed, CacheConfig, DecodeOptions, DecodeRequest, KvType, LatentCache, PrefillShape, decode, prefill_backward,
    prefill_forward,
};

const D_C: usize = 512;
const D_ROPE: usize = 64;

pub fn operations(_threads: usize) -> Vec<Operation> {
    let small = PrefillShape { heads: 8, d_nope: 32, d_rope: 16, d_v: 32 };
    let real = PrefillShape { heads: 8, d_nope: 128, d_rope: 64, d_v: 128 };
    let mut all = vec![];
    for (shape, sequences, tokens) in [(small, 8, 256), (real, 1, 2048)] {
        all.push(prefill(shape, sequences, tokens, false));
        all.push(prefill(shape, sequences, tokens, true));
    }
    for (names, heads) in [
        (["decode f32, 16 heads", "decode bf16, 16 heads", "decode fp8, 16 heads"], 16),
        (["decode f32, 128 heads", "decode bf16, 128 heads", "decode fp8, 128 heads"], 128),
    ] {
        for (name, dtype) in names.into_iter().zip([KvType::F32, KvType::Bf16, KvType::Fp8]) {
            let flops = 2.0 * (4096 * heads * (2 * D_C + D_ROPE)) as f64;
            let work = if dtype == KvType::F32 { f32_flops(flops) } else { narrow_flops(flops) };
            all.push(Operation::new(name, "4096 tokens", work, decoding(dtype, heads, 4096)));
        }
    }
    for (name, dtype) in [("decode bf16, 1 head", KvType::Bf16), ("decode fp8, 1 head", KvType::Fp8)] {
        let tokens = 128 * 1024;
        let config = cache_config(dtype, tokens);
        let work = bytes(tokens * config.token_bytes(), Ceiling::Read);
        all.push(Operation::new(name, "131072 tokens", work, decoding(dtype, 1, tokens)));
    }
    let (rows, heads) = (64, 16);
    let flops = 2.0 * (rows * heads * 128 * D_C) as f64;
    all.push(Operation::new("absorb query", format!("{rows} rows, {heads} heads"), f32_flops(flops), move || {
        let absorbed = Absorbed::new(&values(heads * 256 * D_C, 1), heads, 128, 128, D_C)?;
        let (q, mut q_latent) = (values(rows * heads * 128, 2), vec![0.0; rows * heads * D_C]);
        Ok(move || absorbed.absorb_query(&q, rows, heads * 128, 128, &mut q_latent))
    }));
    all
}

/// A causal sequence of T tokens has T (T + 1) / 2 scores; that much work the mathematics asks for.
fn prefill(shape: PrefillShape, sequences: usize, tokens: usize, backward: bool) -> Operation {
    let scores = (sequences * shape.heads * tokens * (tokens + 1) / 2) as f64;
    let (name, per_score) = if backward {
        ("prefill backward", 3 * shape.d_qk() + 2 * shape.d_v)
    } else {
        ("prefill forward", shape.d_qk() + shape.d_v)
    };
    let label = format!("{sequences}x{tokens}, {} heads of {}/{}", shape.heads, shape.d_qk(), shape.d_v);
    Operation::new(name, label, f32_flops(2.0 * scores * per_score as f64), move || {
        let cu_seqlens: Vec<usize> = (0..=sequences).map(|i| i * tokens).collect();
        let rows = sequences * tokens * shape.heads;
        let (q, kv) = (values(rows * shape.d_qk(), 1), values(rows * shape.d_kv(), 2));
        let k_rope = values(sequences * tokens * shape.d_rope, 3);
        let dout = values(rows * shape.d_v, 4);
        let (mut out, mut lse) = (vec![0.0; rows * shape.d_v], vec![0.0; rows]);
        let scale = (shape.d_qk() as f32).sqrt().recip();
        prefill_forward(&shape, scale, &cu_seqlens, &q, &kv, &k_rope, &mut out, &mut lse)?;
        let (mut dq, mut dkv, mut dk_rope) = (q.clone(), kv.clone(), k_rope.clone());
        Ok(move || {
            if backward {
                prefill_backward(&shape, scale, &cu_seqlens, &q, &kv, &k_rope, &out, &lse, &dout, &mut dq, &mut dkv, &mut dk_rope)
            } else {
                prefill_forward(&shape, scale, &cu_seqlens, &q, &kv, &k_rope, &mut out, &mut lse)
            }
        })
    })
}

fn cache_config(dtype: KvType, tokens: usize) -> CacheConfig {
    CacheConfig { d_c: D_C, d_rope: D_ROPE, page_size: 64, num_pages: tokens.div_ceil(64), dtype }
}

fn decoding(
    dtype: KvType,
    heads: usize,
    tokens: usize,
) -> impl FnOnce() -> Result<Box<dyn FnMut() -> mla_kernels::Result<()> + Send>, AnyError> + Send + 'static {
    move || {
        let mut cache = LatentCache::new(cache_config(dtype, tokens))?;
        let seq = cache.new_sequence();
        let chunk = 4096;
        for start in (0..tokens).step_by(chunk) {
            cache.append(seq, &values(chunk * D_C, start as u64), &values(chunk * D_ROPE, 1 + start as u64))?;
        }
        let (q_latent, q_rope) = (values(heads * D_C, 3), values(heads * D_ROPE, 4));
        let (mut out, mut lse) = (vec![0.0; heads * D_C], vec![0.0; heads]);
        let requests = [DecodeRequest { seq, s_q: 1 }];
        Ok(Box::new(move || {
            decode(&cache, &requests, heads, &q_latent, &q_rope, 0.07, &mut out, &mut lse, &DecodeOptions::default())
        }))
    }
}
