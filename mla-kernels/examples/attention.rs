//! Generates nothing, but attends as a generator does: tokens come one at a time, and absorbed decode over the latent cache gives
//! what attention over expanded keys and values gives.

use mla_kernels::{
    Absorbed, CacheConfig, DecodeOptions, DecodeRequest, KvType, LatentCache, PrefillShape, RopeConfig, RopeTable, decode,
    prefill_forward, softmax_scale,
};

/// Numbers that look random enough.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let shape = PrefillShape { heads: 4, d_nope: 32, d_rope: 16, d_v: 32 };
    let (heads, d_c, tokens) = (shape.heads, 64, 40);
    let rope = RopeConfig { dim: shape.d_rope, theta: 10_000.0, max_position: 1024, yarn: None, interleaved: true };
    let scale = softmax_scale(shape.d_qk(), &rope);
    let table = RopeTable::new(&rope)?;

    let latent = noise(tokens * d_c, 1);
    let kv_b_proj = noise(heads * shape.d_kv() * d_c, 2);
    let mut q = noise(tokens * heads * shape.d_qk(), 3);
    let mut k_rope = noise(tokens * shape.d_rope, 4);
    let positions: Vec<u32> = (0..tokens as u32).collect();
    table.apply(&mut q, tokens, heads * shape.d_qk(), shape.d_nope, heads, shape.d_qk(), &positions, false)?;
    table.apply(&mut k_rope, tokens, shape.d_rope, 0, 1, shape.d_rope, &positions, false)?;

    // Expanded: all tokens at once.
    let mut kv = vec![0.0; tokens * heads * shape.d_kv()];
    for (row, c) in kv.chunks_mut(heads * shape.d_kv()).zip(latent.chunks(d_c)) {
        for (x, w) in row.iter_mut().zip(kv_b_proj.chunks(d_c)) {
            *x = w.iter().zip(c).map(|(w, c)| w * c).sum();
        }
    }
    let mut expanded = vec![0.0; tokens * heads * shape.d_v];
    let mut lse = vec![0.0; tokens * heads];
    prefill_forward(&shape, scale, &[0, tokens], &q, &kv, &k_rope, &mut expanded, &mut lse)?;

    // Absorbed: one token at a time, over a cache of each type.
    let absorbed = Absorbed::new(&kv_b_proj, heads, shape.d_nope, shape.d_v, d_c)?;
    for dtype in [KvType::F32, KvType::Bf16, KvType::Fp8] {
        let mut cache = LatentCache::new(CacheConfig { d_c, d_rope: shape.d_rope, page_size: 16, num_pages: 8, dtype })?;
        let seq = cache.new_sequence();
        let mut worst = 0.0f32;
        for t in 0..tokens {
            cache.append(seq, &latent[t * d_c..][..d_c], &k_rope[t * shape.d_rope..][..shape.d_rope])?;
            let row = &q[t * heads * shape.d_qk()..][..heads * shape.d_qk()];
            let mut q_latent = vec![0.0; heads * d_c];
            absorbed.absorb_query(row, 1, row.len(), shape.d_qk(), &mut q_latent)?;
            let q_rope: Vec<f32> = row.chunks(shape.d_qk()).flat_map(|head| head[shape.d_nope..].to_vec()).collect();
            let (mut attended, mut lse) = (vec![0.0; heads * d_c], vec![0.0; heads]);
            let request = DecodeRequest { seq, s_q: 1 };
            let options = DecodeOptions::default();
            decode(&cache, &[request], heads, &q_latent, &q_rope, scale, &mut attended, &mut lse, &options)?;
            let mut out = vec![0.0; heads * shape.d_v];
            absorbed.expand_output(&attended, 1, &mut out)?;
            let same = &expanded[t * out.len()..][..out.len()];
            worst = out.iter().zip(same).fold(worst, |m, (a, b)| m.max((a - b).abs()));
        }
        let largest = expanded.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let bytes = cache.config().token_bytes();
        println!(
            "{dtype:>4} cache, {bytes} bytes a token: off expanded attention by at most {worst:.1e}, of values up to {largest:.1}"
        );
    }
    Ok(())
}
