//! Products and operations at the shapes of a small model and of the real one, on the calling pool's threads.
//!
//! The first entry is the ceiling that the products are to be held against: 24 independent chains of f32 multiply-adds.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use v3_numerics::cpu::Isa;
use v3_numerics::gemm::{PackedB, gemm, gemm_packed};
use v3_numerics::ops::{self, AdamWParams};
use v3_numerics::simd::{Kernel, Simd, dispatch};
use v3_numerics::{E4M3, MatMut, MatRef, bf16, convert, par};
use v3_testkit::Rng;

/// Independent multiply-adds: what the processor can do at most.
struct Peak(usize);
impl Kernel for Peak {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (x, y) = (s.splat(black_box(0.999)), s.splat(black_box(1e-3)));
        let mut chains = [s.splat(1.0); 24];
        for _ in 0..self.0 {
            for chain in &mut chains {
                *chain = s.mul_add(*chain, x, y);
            }
        }
        chains.into_iter().map(|chain| s.reduce_add(chain)).sum()
    }
}

fn products(c: &mut Criterion) {
    let mut group = c.benchmark_group(format!("{} x{}", Isa::detect(), par::num_threads()));
    group
        .sample_size(20)
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_millis(600));
    let threads = par::num_threads();
    group.throughput(Throughput::Elements(10_000 * 24 * 32 * threads as u64));
    group.bench_function("f32 multiply-add ceiling (elements = operations)", |b| {
        b.iter(|| par::for_each(threads, |_| _ = black_box(dispatch(Isa::detect(), Peak(10_000)))));
    });
    let mut rng = Rng::new(1);
    for (m, n, k) in [
        (1024, 1024, 1024),
        (2048, 256, 256),
        (2048, 512, 256),
        (64, 256, 256),
        (512, 256, 256),
        (1, 2048, 2048),
        (16, 2048, 2048),
    ] {
        let (x, w, mut y) = (rng.normal_vec(m * k, 1.0), rng.normal_vec(n * k, 1.0), vec![0.0; m * n]);
        let (x, w) = (MatRef::new(&x, m, k).unwrap(), MatRef::new(&w, n, k).unwrap());
        let packed = PackedB::new(w.t());
        group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
        group.bench_function(format!("gemm nt [{m} x {n} x {k}]"), |b| {
            b.iter(|| gemm(x, w.t(), MatMut::new(&mut y, m, n).unwrap(), false).unwrap());
        });
        group.bench_function(format!("gemm packed [{m} x {n} x {k}]"), |b| {
            b.iter(|| gemm_packed(x, &packed, MatMut::new(&mut y, m, n).unwrap(), false).unwrap());
        });
    }
    let (m, n, k) = (256, 256, 2048);
    let (dy, x, mut dw) = (rng.normal_vec(m * k, 1.0), rng.normal_vec(n * k, 1.0), vec![0.0; m * n]);
    let (dy, x) = (MatRef::new(&dy, k, m).unwrap(), MatRef::new(&x, k, n).unwrap());
    group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
    group.bench_function(format!("gemm tn += [{m} x {n} x {k}]"), |b| {
        b.iter(|| gemm(dy.t(), x, MatMut::new(&mut dw, m, n).unwrap(), true).unwrap());
    });
    group.finish();
}

fn operations(c: &mut Criterion) {
    let mut group = c.benchmark_group(format!("{} x{}", Isa::detect(), par::num_threads()));
    group
        .sample_size(20)
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_millis(400));
    let (t, d) = (2048, 1024);
    let n = t * d;
    let mut rng = Rng::new(2);
    let (x, dy, weight) = (rng.normal_vec(n, 1.0), rng.normal_vec(n, 1.0), vec![1.0; d]);
    let (mut y, mut rstd) = (vec![0.0; n], vec![0.0; t]);
    let bytes = |values: usize| Throughput::Bytes(4 * values as u64);
    group.throughput(bytes(2 * n));
    group.bench_function(format!("rms_norm [{t}, {d}]"), |b| {
        b.iter(|| ops::rms_norm(&x, &weight, 1e-6, &mut y, &mut rstd).unwrap())
    });
    group.throughput(bytes(3 * n));
    group.bench_function(format!("rms_norm_backward_input [{t}, {d}]"), |b| {
        b.iter(|| ops::rms_norm_backward_input(&dy, &x, &weight, &rstd, &mut y).unwrap());
    });
    group.throughput(bytes(n + n / 2));
    group.bench_function(format!("swiglu [{t}, 2 x {}]", d / 2), |b| b.iter(|| ops::swiglu(&x, d / 2, &mut y[..n / 2]).unwrap()));
    group.throughput(bytes(2 * n + n / 2));
    group.bench_function(format!("swiglu_backward [{t}, 2 x {}]", d / 2), |b| {
        b.iter(|| ops::swiglu_backward(&dy[..n / 2], &x, d / 2, &mut y).unwrap());
    });
    group.throughput(bytes(2 * n));
    group.bench_function(format!("exp [{n}]"), |b| b.iter(|| ops::exp(&x, &mut y).unwrap()));
    let p = AdamWParams { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    let (mut w, mut m, mut v) = (x.clone(), vec![bf16::ZERO; n], vec![bf16::ZERO; n]);
    group.throughput(Throughput::Bytes(20 * n as u64));
    group.bench_function(format!("adamw bf16 moments [{n}]"), |b| {
        b.iter(|| ops::adamw_step(&p, 1, &mut w, &dy, 1.0, &mut m, &mut v).unwrap());
    });
    let mut e4m3 = vec![E4M3(0); n];
    group.throughput(Throughput::Bytes(5 * n as u64));
    group.bench_function(format!("f32 to e4m3 [{n}]"), |b| b.iter(|| convert::f32_to_e4m3(&x, &mut e4m3).unwrap()));
    group.bench_function(format!("e4m3 to f32 [{n}]"), |b| b.iter(|| convert::e4m3_to_f32(&e4m3, &mut y).unwrap()));
    group.throughput(Throughput::Bytes(6 * n as u64));
    group.bench_function(format!("f32 to bf16 [{n}]"), |b| b.iter(|| convert::f32_to_bf16(&x, &mut m).unwrap()));
    group.finish();
}

criterion_group!(benches, products, operations);
criterion_main!(benches);
