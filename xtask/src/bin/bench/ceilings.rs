//! What this machine can do at most: memory bandwidth and arithmetic peaks.
//!
//! Bytes are counted as STREAM counts them: a copy moves 2 N, a triad 3 N (in place as well); the lines that a store fetches first are not
//! counted. The arrays are 192 MiB each; a machine with a larger shared cache may serve part of them from it, and the ratio of
//! an operation to its ceiling is then that much kinder to the ceiling.

use crate::measure::{median, timed};
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

/// Values in each of the arrays that the memory's ceilings are measured on.
const VALUES: usize = 48 << 20;

/// The machine: measures any of its ceilings, on the threads of the current pool.
pub struct Machine {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Machine {
    /// Allocates and touches the arrays.
    pub fn new() -> Machine {
        Machine { a: vec![1.0; VALUES], b: vec![2.0; VALUES], c: vec![3.0; VALUES] }
    }

    /// Measures a ceiling once: the rate in [`Ceiling::unit`].
    pub fn probe(&mut self, ceiling: Ceiling) -> f64 {
        let threads = rayon::current_num_threads();
        let part = VALUES.div_ceil(threads).next_multiple_of(1024);
        let Machine { a, b, c } = self;
        let (arrays, seconds) = match ceiling {
            Ceiling::Read => {
                let mut total = 0.0f32;
                let seconds = timed(|| total = a.par_chunks(part).map(sum).sum());
                black_box(total);
                (1, seconds)
            }
            Ceiling::Copy => {
                (2, timed(|| c.par_chunks_mut(part).zip(a.par_chunks(part)).for_each(|(c, a)| c.copy_from_slice(a))))
            }
            Ceiling::Triad => {
                let parts = c.par_chunks_mut(part).zip(a.par_chunks(part)).zip(b.par_chunks(part));
                (3, timed(|| parts.for_each(|((c, a), b)| triad(c, a, b))))
            }
            Ceiling::TriadInPlace => {
                let parts = c.par_chunks_mut(part).zip(a.par_chunks(part));
                (3, timed(|| parts.for_each(|(c, a)| c.iter_mut().zip(a).for_each(|(c, a)| *c = a + 0.5 * *c))))
            }
            Ceiling::F32Fma | Ceiling::Bf16Dot => {
                let flops = if ceiling == Ceiling::F32Fma { f32_fma } else { bf16_dot };
                let mut work = 0.0;
                let seconds = timed(|| work = (0..threads).into_par_iter().with_max_len(1).map(|_| flops()).sum());
                return work / seconds * 1e-9;
            }
        };
        black_box(c);
        (arrays * VALUES * size_of::<f32>()) as f64 / seconds * 1e-9
    }

    /// The median of several measurements.
    pub fn measure(&mut self, ceiling: Ceiling, times: usize) -> f64 {
        self.probe(ceiling);
        median(&mut (0..times).map(|_| self.probe(ceiling)).collect::<Vec<_>>())
    }
}

fn triad(c: &mut [f32], a: &[f32], b: &[f32]) {
    for ((c, a), b) in c.iter_mut().zip(a).zip(b) {
        *c = a + 0.5 * b;
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
