//! The update and the snapshot, in bytes moved: 12 a parameter for f32 weights, 10 for bf16 (the average read and written, the
//! weights read); a snapshot moves 8 or 4.
//!
//! The arrays are far larger than the caches.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ema_offload::{Ema, EmaConfig, bf16, lerp};
use v3_numerics::cpu::{Isa, with_isa};

const N: usize = 1 << 25;

fn bench(c: &mut Criterion) {
    let mut average = vec![0.5f32; N];
    let wide = vec![0.25f32; N];
    let narrow = vec![bf16::from_f32(0.25); N];
    let mut group = c.benchmark_group("ema");
    group.sample_size(10);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available() && *isa != Isa::Portable && *isa != Isa::Avx512Bf16) {
        group.throughput(Throughput::Bytes(12 * N as u64));
        let id = |what: &str| format!("{what}/{isa}");
        group.bench_function(id("lerp_f32"), |b| {
            b.iter(|| with_isa(isa, || lerp(&mut average, &wide, 1e-3)).unwrap());
        });
        group.throughput(Throughput::Bytes(10 * N as u64));
        group.bench_function(id("lerp_bf16"), |b| {
            b.iter(|| with_isa(isa, || lerp(&mut average, &narrow, 1e-3)).unwrap());
        });
    }
    let ema = Ema::new(&[&wide], EmaConfig::default()).unwrap();
    ema.reserve::<f32>().unwrap();
    group.throughput(Throughput::Bytes(8 * N as u64));
    let mut step = 0;
    group.bench_function("snapshot_f32", |b| {
        b.iter_custom(|n| {
            (0..n)
                .map(|_| {
                    step += 1;
                    let copied = ema.submit(step, &[&wide]).unwrap().copy;
                    ema.flush().unwrap();
                    copied
                })
                .sum()
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
