//! What this machine can do at most: memory bandwidth and arithmetic peaks, on the threads of the current pool.
//!
//! Bytes are counted as STREAM counts them: a copy moves 2 N, a triad 3 N (in place as well); the lines that a store fetches first are not
//! counted. The arrays are 192 MiB each; a machine with a larger shared cache may serve part of them from it, and the ratio of
//! an operation to its ceiling is then that much kinder to the ceiling.

use crate::measure::{Effort, median_seconds, timed};
use rayon::prelude::*;
use std::hint::black_box;

/// A limit of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ceiling {
    /// Reading memory.
    Read,
    /// Copying memory.
    Copy,
    /// Two arrays read, one written.
    Triad,
    /// Two arrays read, one of them written.
    TriadInPlace,
    /// Fused multiply-adds in f32.
    F32Fma,
    /// Dot products of bf16 pairs accumulated in f32; the f32 peak where the processor has none.
    Bf16Dot,
}

impl Ceiling {
    /// All of them.
    pub const ALL: [Ceiling; 6] =
        [Ceiling::Read, Ceiling::Copy, Ceiling::Triad, Ceiling::TriadInPlace, Ceiling::F32Fma, Ceiling::Bf16Dot];

    /// Its name in a line of output.
    pub fn name(self) -> &'static str {
        match self {
            Ceiling::Read => "memory read",
            Ceiling::Copy => "memory copy",
            Ceiling::Triad => "memory triad",
            Ceiling::TriadInPlace => "triad in place",
            Ceiling::F32Fma => "f32 fma peak",
            Ceiling::Bf16Dot => "bf16 dot peak",
        }
    }

    /// What it is counted in.
    pub fn unit(self) -> &'static str {
        match self {
            Ceiling::Read | Ceiling::Copy | Ceiling::Triad | Ceiling::TriadInPlace => "GB/s",
            Ceiling::F32Fma | Ceiling::Bf16Dot => "GFLOP/s",
        }
    }
}

/// The ceilings measured for one number of threads.
#[derive(Debug, Clone, Copy)]
pub struct Ceilings {
    rates: [f64; 6],
}

impl Ceilings {
    /// The rate in [`Ceiling::unit`].
    pub fn rate(&self, ceiling: Ceiling) -> f64 {
        self.rates[ceiling as usize]
    }

    /// Measures all of them on the current pool.
    pub fn measure(effort: Effort) -> Ceilings {
        const VALUES: usize = 48 << 20;
        let a = vec![1.0f32; VALUES];
        let b = vec![2.0f32; VALUES];
        let mut c = vec![0.0f32; VALUES];
        let part = VALUES.div_ceil(rayon::current_num_threads()).next_multiple_of(1024);
        let gigabytes = |arrays: usize, seconds: f64| (arrays * VALUES * 4) as f64 / seconds * 1e-9;
        let read = median_seconds(effort, || {
            timed(|| {
                black_box(a.par_chunks(part).map(sum).sum::<f32>());
            })
        });
        let copy = median_seconds(effort, || {
            timed(|| {
                c.par_chunks_mut(part).zip(a.par_chunks(part)).for_each(|(c, a)| c.copy_from_slice(a));
                black_box(&mut c);
            })
        });
        let triad = median_seconds(effort, || {
            timed(|| {
                c.par_chunks_mut(part).zip(a.par_chunks(part)).zip(b.par_chunks(part)).for_each(|((c, a), b)| {
                    for ((c, a), b) in c.iter_mut().zip(a).zip(b) {
                        *c = a + 0.999 * b;
                    }
                });
                black_box(&mut c);
            })
        });
        let triad_in_place = median_seconds(effort, || {
            timed(|| {
                c.par_chunks_mut(part).zip(a.par_chunks(part)).for_each(|(c, a)| {
                    for (c, a) in c.iter_mut().zip(a) {
                        *c = a + 0.999 * *c;
                    }
                });
                black_box(&mut c);
            })
        });
        let peak = |flops: fn() -> f64| {
            let threads = rayon::current_num_threads();
            let mut work = 0.0;
            let seconds =
                median_seconds(effort, || timed(|| work = (0..threads).into_par_iter().with_max_len(1).map(|_| flops()).sum()));
            work / seconds * 1e-9
        };
        Ceilings {
            rates: [
                gigabytes(1, read),
                gigabytes(2, copy),
                gigabytes(3, triad),
                gigabytes(3, triad_in_place),
                peak(f32_fma),
                peak(bf16_dot),
            ],
        }
    }

    /// By how much, relatively, the rate that moved most differs from another measurement.
    pub fn drift(&self, other: &Ceilings) -> f64 {
        self.rates.iter().zip(other.rates).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max)
    }
}

fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 64];
    for x in x.chunks_exact(64) {
        lanes.iter_mut().zip(x).for_each(|(l, x)| *l += x);
    }
    lanes.iter().sum()
}

/// Runs of the innermost loop of a peak: a few milliseconds.
const ROUNDS: usize = 1 << 20;

/// Computes, and returns the number of floating-point operations done.
fn f32_fma() -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F.
            return unsafe { x86::f32_fma_avx512() };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has AVX2 and FMA.
            return unsafe { x86::f32_fma_avx2() };
        }
    }
    let mut acc = black_box([[0.0f32; 8]; 12]);
    let (x, y) = black_box((0.5f32, 0.25f32));
    for _ in 0..ROUNDS {
        acc.iter_mut().flatten().for_each(|a| *a = *a * x + y);
    }
    black_box(acc);
    (ROUNDS * 12 * 8 * 2) as f64
}

fn bf16_dot() -> f64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512F and AVX512_BF16.
        return unsafe { x86::bf16_dot_avx512() };
    }
    f32_fma()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Twelve independent accumulators: enough to hide the latency of two units, few enough to stay in registers.

    use super::ROUNDS;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    const CHAINS: usize = 12;

    #[target_feature(enable = "avx512f")]
    pub fn f32_fma_avx512() -> f64 {
        let (x, y) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
        let mut acc = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..ROUNDS {
            for a in &mut acc {
                *a = _mm512_fmadd_ps(*a, x, y);
            }
        }
        black_box(acc.map(|a| _mm512_reduce_add_ps(a)));
        (ROUNDS * CHAINS * 16 * 2) as f64
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn f32_fma_avx2() -> f64 {
        let (x, y) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
        let mut acc = [_mm256_setzero_ps(); CHAINS];
        for _ in 0..ROUNDS {
            for a in &mut acc {
                *a = _mm256_fmadd_ps(*a, x, y);
            }
        }
        black_box(acc.map(|a| _mm256_cvtss_f32(a)));
        (ROUNDS * CHAINS * 8 * 2) as f64
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn bf16_dot_avx512() -> f64 {
        let pairs = _mm512_set1_ps(black_box(0.5));
        let x = _mm512_cvtne2ps_pbh(pairs, pairs);
        let mut acc = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..ROUNDS {
            for a in &mut acc {
                *a = _mm512_dpbf16_ps(*a, x, x);
            }
        }
        black_box(acc.map(|a| _mm512_reduce_add_ps(a)));
        (ROUNDS * CHAINS * 32 * 2) as f64
    }
}
