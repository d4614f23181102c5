//! The output head, the sampler and the verifier at shapes of real models.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mtp::{Draft, GradScale, Head, RequestRng, Sampler, Uniform, head_backward, head_forward, verify_sampled};
use std::hint::black_box;

fn values(n: usize, rng: &mut RequestRng) -> Vec<f32> {
    (0..n).map(|_| (rng.uniform() - 0.5) as f32).collect()
}

/// Tokens, hidden size, vocabulary: a byte-level model, and a slice of a large one.
const HEADS: [(usize, usize, usize); 2] = [(2048, 256, 256), (256, 1024, 8192)];

fn head(c: &mut Criterion) {
    let mut rng = RequestRng::new(1, 1);
    let mut group = c.benchmark_group("head");
    group.sample_size(10);
    for (tokens, hidden, vocab) in HEADS {
        let (h, w) = (values(tokens * hidden, &mut rng), values(vocab * hidden, &mut rng));
        let targets: Vec<i64> = (0..tokens).map(|t| (t % vocab) as i64).collect();
        let head = Head { h: &h, w: &w, targets: &targets, hidden, vocab };
        let lse = head_forward(&head).expect("valid shapes").lse;
        let (mut dh, mut dw) = (vec![0.0; h.len()], vec![0.0; w.len()]);
        let shape = format!("{tokens}x{hidden}x{vocab}");
        group.throughput(Throughput::Elements((2 * tokens * hidden * vocab) as u64));
        group.bench_function(format!("forward/{shape}"), |b| b.iter(|| head_forward(black_box(&head))));
        group.throughput(Throughput::Elements((6 * tokens * hidden * vocab) as u64));
        group.bench_function(format!("backward/{shape}"), |b| {
            b.iter(|| head_backward(black_box(&head), &lse, GradScale::Uniform(1.0), &mut dh, &mut dw));
        });
    }
}

fn decoding(c: &mut Criterion) {
    const VOCAB: usize = 129_280;
    let mut rng = RequestRng::new(1, 2);
    let logits: Vec<f32> = (0..VOCAB).map(|_| ((0..6).map(|_| rng.uniform()).sum::<f64>() * 4.0) as f32).collect();
    let mut group = c.benchmark_group("decoding");
    group.sample_size(20);
    for (name, top_k, top_p) in [("all", 0, 1.0), ("top-k 50", 50, 1.0), ("top-p 0.95", 0, 0.95)] {
        let sampler = Sampler::new(0.8, top_k, top_p).expect("valid parameters");
        group.bench_function(format!("probs/{name}"), |b| b.iter(|| sampler.probs(black_box(&logits))));
    }
    let p = Sampler::default().probs(&logits).expect("finite logits");
    let target = [p.clone(), p.clone()].concat();
    group.bench_function("verify one token", |b| {
        b.iter(|| verify_sampled(&[17], Draft::Sampled(black_box(&p)), &target, VOCAB, &mut rng));
    });
}

criterion_group!(benches, head, decoding);
criterion_main!(benches);
