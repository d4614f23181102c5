//! Linear layers in each precision, quantisers, and products of the real model's shapes.
//!
//! Everything runs on one thread and on all. A linear's figures include what a training step pays: rounding or quantising the gradient,
//! re-tiling the activation. Rates are multiply-adds times two, or bytes read and written.

use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use fp8_gemm::gemm::gemm_packed;
use fp8_gemm::linear::{Activation, Weight, dgrad, fprop, fprop_grouped, wgrad, wgrad_grouped};
use fp8_gemm::quantize::{quantize_1x128, quantize_128x1, quantize_128x128, retile_128x1};
use fp8_gemm::{Operand, Packed, Precision, ScalePolicy};
use std::hint::black_box;
use std::time::{Duration, Instant};
use v3_numerics::cpu::Isa;
use v3_numerics::{MatMut, MatRef};

fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// How long `iterations` calls take.
fn time<R>(iterations: u64, f: &mut impl FnMut() -> R) -> Duration {
    let start = Instant::now();
    for _ in 0..iterations {
        black_box(f());
    }
    start.elapsed()
}

/// The pools to measure on: one thread, and all there are.
struct Threads {
    name: String,
    #[cfg(feature = "rayon")]
    pool: rayon::ThreadPool,
}

impl Threads {
    #[cfg(feature = "rayon")]
    fn all() -> Vec<Threads> {
        let mut counts = vec![1, rayon::current_num_threads()];
        counts.dedup();
        let build = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        counts.into_iter().map(|n| Threads { name: format!("{n}T"), pool: build(n) }).collect()
    }
    #[cfg(not(feature = "rayon"))]
    fn all() -> Vec<Threads> {
        vec![Threads { name: "1T".into() }]
    }

    /// Measures `f` inside the pool.
    fn bench<R>(&self, group: &mut BenchmarkGroup<'_, WallTime>, name: &str, mut f: impl FnMut() -> R + Send) {
        group.bench_function(format!("{name}/{}", self.name), |b| {
            b.iter_custom(|iterations| {
                #[cfg(feature = "rayon")]
                return self.pool.install(|| time(iterations, &mut f));
                #[cfg(not(feature = "rayon"))]
                return time(iterations, &mut f);
            });
        });
    }
}

fn group<'c>(c: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = c.benchmark_group(format!("{name}/{}", Isa::detect()));
    group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(300));
    group
}

fn linear(c: &mut Criterion) {
    for threads in Threads::all() {
        for (m, n, k) in [(2048, 256, 256), (512, 1024, 256)] {
            let mut group = group(c, &format!("linear_{m}x{n}x{k}"));
            group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
            let (x, w, dy) = (values(m * k, 1), values(n * k, 2), values(m * n, 3));
            let dy = MatRef::new(&dy, m, n).expect("fits");
            for precision in Precision::ALL {
                let weight = Weight::pack(&w, n, k, precision).expect("fits");
                let input = Activation::new(&x, m, k, precision).expect("fits");
                let (mut y, mut dx, mut dw) = (vec![0.0; m * n], vec![0.0; m * k], vec![0.0; n * k]);
                threads.bench(&mut group, &format!("prepare/{precision}"), || Activation::new(black_box(&x), m, k, precision));
                threads.bench(&mut group, &format!("pack/{precision}"), || Weight::pack(black_box(&w), n, k, precision));
                threads.bench(&mut group, &format!("fprop/{precision}"), || {
                    fprop(&input, &weight, MatMut::new(&mut y, m, n).expect("fits"))
                });
                threads.bench(&mut group, &format!("dgrad/{precision}"), || {
                    dgrad(dy, &weight, MatMut::new(&mut dx, m, k).expect("fits"), false)
                });
                threads.bench(&mut group, &format!("wgrad/{precision}"), || wgrad(&input, dy, &mut dw, precision));
            }
            group.finish();
        }
    }
}

fn experts(c: &mut Criterion) {
    for threads in Threads::all() {
        let (groups, n, k) = (8, 128, 256);
        let sizes = [500, 525, 488, 550, 512, 0, 1000, 521];
        let offsets: Vec<usize> = (0..=groups).map(|g| sizes[..g].iter().sum()).collect();
        let m = offsets[groups];
        let mut group = group(c, &format!("experts_{groups}x{n}x{k}_{m}_rows"));
        group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
        let (x, dy) = (values(m * k, 1), values(m * n, 3));
        let dy = MatRef::new(&dy, m, n).expect("fits");
        for precision in Precision::ALL {
            let pack = |g| Weight::pack(&values(n * k, g as u32), n, k, precision).expect("fits");
            let weights: Vec<Weight> = (0..groups).map(pack).collect();
            let input = Activation::new(&x, m, k, precision).expect("fits");
            let (mut y, mut dw) = (vec![0.0; m * n], vec![0.0; groups * n * k]);
            threads.bench(&mut group, &format!("fprop/{precision}"), || {
                fprop_grouped(&input, &offsets, &weights, MatMut::new(&mut y, m, n).expect("fits"))
            });
            threads.bench(&mut group, &format!("wgrad/{precision}"), || wgrad_grouped(&input, &offsets, dy, &mut dw, precision));
        }
        group.finish();
    }
}

fn quantisers(c: &mut Criterion) {
    for threads in Threads::all() {
        let (rows, cols) = (2048, 512);
        let x = values(rows * cols, 7);
        let x = MatRef::new(&x, rows, cols).expect("fits");
        let mut group = group(c, &format!("quantise_{rows}x{cols}"));
        group.throughput(Throughput::Bytes(5 * (rows * cols) as u64));
        threads.bench(&mut group, "1x128", || quantize_1x128(x, ScalePolicy::F32));
        threads.bench(&mut group, "128x1", || quantize_128x1(x, ScalePolicy::F32));
        threads.bench(&mut group, "128x128", || quantize_128x128(x, ScalePolicy::F32));
        let q = quantize_1x128(x, ScalePolicy::PowerOfTwo);
        threads.bench(&mut group, "retile", || retile_128x1(&q, ScalePolicy::PowerOfTwo));
        group.finish();
    }
}

/// Products of DeepSeek-V3 itself: `kv_a` and `q_b` projections, by decoded tokens. Weights are packed before, and warm where they fit.
fn real_shapes(c: &mut Criterion) {
    for threads in Threads::all() {
        for (m, n, k) in [(128, 2112, 7168), (4, 2112, 7168), (1, 2112, 7168)] {
            let mut group = group(c, &format!("v3_{m}x{n}x{k}"));
            group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
            let (x, w) = (values(m * k, 1), values(n * k, 2));
            let (x, w) = (MatRef::new(&x, m, k).expect("fits"), MatRef::new(&w, n, k).expect("fits"));
            let mut y = vec![0.0; m * n];
            let packed = Packed::new(Operand::RoundedToBf16(w.t())).expect("fits");
            threads.bench(&mut group, "bf16", || {
                gemm_packed(Operand::RoundedToBf16(x), &packed, MatMut::new(&mut y, m, n).expect("fits"), false)
            });
            let w = quantize_128x128(w, ScalePolicy::F32);
            let packed = Packed::new(Operand::from(&w).t().expect("has a transpose")).expect("fits");
            let x = quantize_1x128(x, ScalePolicy::F32);
            threads.bench(&mut group, "fp8", || gemm_packed(&x, &packed, MatMut::new(&mut y, m, n).expect("fits"), false));
            group.finish();
        }
    }
}

criterion_group!(benches, linear, experts, quantisers, real_shapes);
criterion_main!(benches);
