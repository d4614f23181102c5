//! Prefill forward and backward, and absorbed decode, on the caller's pool.
//!
//! Rates count the work that the mathematics asks for: a causal sequence of `T` tokens has `T (T + 1) / 2` scores.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mla_kernels::{
    CacheConfig, DecodeOptions, DecodeRequest, KvType, LatentCache, PrefillShape, decode, prefill_backward, prefill_forward,
};
use std::time::Duration;
use v3_testkit::Rng;

struct Case {
    name: &'static str,
    shape: PrefillShape,
    sequences: usize,
    tokens: usize,
}

const CASES: [Case; 3] = [
    Case { name: "training", shape: PrefillShape { heads: 8, d_nope: 32, d_rope: 16, d_v: 32 }, sequences: 8, tokens: 256 },
    Case { name: "real", shape: PrefillShape { heads: 4, d_nope: 128, d_rope: 64, d_v: 128 }, sequences: 1, tokens: 1024 },
    Case { name: "short", shape: PrefillShape { heads: 8, d_nope: 32, d_rope: 16, d_v: 32 }, sequences: 32, tokens: 64 },
];

fn prefill(c: &mut Criterion) {
    let mut group = c.benchmark_group("prefill");
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for Case { name, shape, sequences, tokens } in CASES {
        let cu: Vec<usize> = (0..=sequences).map(|i| i * tokens).collect();
        let rows = sequences * tokens * shape.heads;
        let mut rng = Rng::new(1);
        let q = rng.normal_vec(rows * shape.d_qk(), 1.0);
        let kv = rng.normal_vec(rows * shape.d_kv(), 1.0);
        let k_rope = rng.normal_vec(sequences * tokens * shape.d_rope, 1.0);
        let dout = rng.normal_vec(rows * shape.d_v, 1.0);
        let (mut out, mut lse) = (vec![0.0; rows * shape.d_v], vec![0.0; rows]);
        let scale = (shape.d_qk() as f32).powf(-0.5);
        let scores = (sequences * shape.heads * tokens * (tokens + 1) / 2) as u64;
        group.throughput(Throughput::Elements(2 * scores * (shape.d_qk() + shape.d_v) as u64));
        group.bench_function(BenchmarkId::new("forward", name), |b| {
            b.iter(|| prefill_forward(&shape, scale, &cu, &q, &kv, &k_rope, &mut out, &mut lse).unwrap());
        });
        prefill_forward(&shape, scale, &cu, &q, &kv, &k_rope, &mut out, &mut lse).unwrap();
        let (mut dq, mut dkv, mut dk_rope) = (q.clone(), kv.clone(), k_rope.clone());
        group.throughput(Throughput::Elements(2 * scores * (3 * shape.d_qk() + 2 * shape.d_v) as u64));
        group.bench_function(BenchmarkId::new("backward", name), |b| {
            b.iter(|| {
                prefill_backward(&shape, scale, &cu, &q, &kv, &k_rope, &out, &lse, &dout, &mut dq, &mut dkv, &mut dk_rope)
                    .unwrap();
            });
        });
    }
    group.finish();
}

fn absorbed_decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    let (d_c, d_rope, tokens) = (512, 64, 4096);
    let mut rng = Rng::new(2);
    let (latent, k_rope) = (rng.normal_vec(tokens * d_c, 1.0), rng.normal_vec(tokens * d_rope, 1.0));
    for dtype in [KvType::F32, KvType::Bf16, KvType::Fp8] {
        let config = CacheConfig { d_c, d_rope, page_size: 64, num_pages: tokens.div_ceil(64), dtype };
        let mut cache = LatentCache::new(config).unwrap();
        let seq = cache.new_sequence();
        cache.append(seq, &latent, &k_rope).unwrap();
        for heads in [1, 16, 128] {
            let (q_latent, q_rope) = (rng.normal_vec(heads * d_c, 0.1), rng.normal_vec(heads * d_rope, 0.1));
            let (mut out, mut lse) = (vec![0.0; heads * d_c], vec![0.0; heads]);
            group.throughput(Throughput::Elements((2 * tokens * heads * (2 * d_c + d_rope)) as u64));
            let requests = [DecodeRequest { seq, s_q: 1 }];
            group.bench_function(BenchmarkId::new(format!("{dtype}, heads"), heads), |b| {
                b.iter(|| {
                    let options = DecodeOptions::default();
                    decode(&cache, &requests, heads, &q_latent, &q_rope, 0.07, &mut out, &mut lse, &options).unwrap();
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, prefill, absorbed_decode);
criterion_main!(benches);
