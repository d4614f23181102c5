//! The product against the reference.

use crate::{config, emulator, emulators, gpu};
use fp8_gemm::gpu::{Activation, GemmPlan, Kernels, Rows128, Square128, View, ViewMut, Weight};
use fp8_gemm::quantize::{quantize_1x128, quantize_128x128};
use fp8_gemm::{BLOCK, Block, ScalePolicy, reference};
use proptest::prelude::*;
use v3_gpu::{Backend, Device, EmulatorConfig, Fp8Accumulation};
use v3_numerics::{E4M3, MatRef, bf16};
use v3_testkit::{Rng, Tolerance};

/// Half the distance of neighbouring f32, and of neighbouring bf16, relative to a value.
const U_F32: f64 = 1.0 / (1u64 << 24) as f64;
const U_BF16: f64 = 1.0 / 256.0;

/// Fraction bits that Hopper's tensor cores keep of each term below the largest one's exponent.
const HOPPER_BITS: i32 = 13;

/// A product to be computed: operands in host memory, dense.
pub struct Problem {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Vec<E4M3>,
    /// `[m, ceil(k / 128)]`
    pub scales_a: Vec<f32>,
    pub b: Vec<E4M3>,
    /// `[ceil(n / 128), ceil(k / 128)]`
    pub scales_b: Vec<f32>,
}

/// Codes of all kinds but NaN, zeros and subnormals among them.
fn codes(rng: &mut Rng, len: usize) -> Vec<E4M3> {
    let finite = |rng: &mut Rng| loop {
        let code = rng.u32() as u8;
        if code & 0x7f != 0x7f {
            return E4M3(code);
        }
    };
    (0..len).map(|_| if rng.below(10) == 0 { E4M3((rng.below(9) | rng.below(2) << 7) as u8) } else { finite(rng) }).collect()
}

fn scales(rng: &mut Rng, len: usize) -> Vec<f32> {
    rng.spread_vec(len, -12, 6).into_iter().map(f32::abs).collect()
}

impl Problem {
    pub fn new(m: usize, n: usize, k: usize, seed: u64) -> Problem {
        let rng = &mut Rng::new(seed);
        let blocks = k.div_ceil(BLOCK);
        Problem {
            m,
            n,
            k,
            a: codes(rng, m * k),
            scales_a: scales(rng, m * blocks),
            b: codes(rng, n * k),
            scales_b: scales(rng, n.div_ceil(BLOCK) * blocks),
        }
    }

    fn blocks(&self) -> usize {
        self.k.div_ceil(BLOCK)
    }

    /// The value of element (i, j) in f64, and how far a result may be from it before it is rounded to bf16.
    ///
    /// Sums in f32: each of the 128 products of a chain is exact, and takes part in at most 127 additions and the 4 of its steps, in whatever
    /// order, each rounded by at most u of the partial sum, which is at most the sum A of the magnitudes: at most 131 u A (1 + 131 u). The
    /// product of the scales is rounded once, and each chain is added by one rounded multiply-add to a total of at most the sum S of all chains'
    /// scaled A: with B chains (131 + 1 + B) u S, and 1 % more for the terms of second order.
    ///
    /// As Hopper's tensor cores: in each step of 32 the products and the accumulator are cut off 13 bits below the largest exponent E among them:
    /// 33 terms, each by less than 2^(E - 13). E is the sum of two factors' exponents, where a subnormal or zero counts as 2^-6, or the
    /// accumulator's. The sum is cut off once more, 13 bits below its own leading bit.
    fn expected(&self, i: usize, j: usize, hopper: bool) -> (f64, f64) {
        let (mut value, mut bound, mut total) = (0.0, 0.0, 0.0);
        let cut = f64::powi(2.0, -HOPPER_BITS);
        for block in 0..self.blocks() {
            let (mut chain, mut magnitude, mut truncated) = (0.0f64, 0.0f64, 0.0f64);
            for step in (block * BLOCK..self.k.min((block + 1) * BLOCK)).step_by(32) {
                let mut largest = magnitude + truncated;
                for p in step..self.k.min(step + 32) {
                    let a = f64::from(self.a[i * self.k + p].to_f32());
                    let b = f64::from(self.b[j * self.k + p].to_f32());
                    chain += a * b;
                    magnitude += (a * b).abs();
                    largest = largest.max(a.abs().max(1.0 / 64.0) * b.abs().max(1.0 / 64.0));
                }
                truncated += cut * (33.0 * largest + magnitude + truncated);
            }
            let scale_a = f64::from(self.scales_a[i * self.blocks() + block]);
            let scale_b = f64::from(self.scales_b[j / BLOCK * self.blocks() + block]);
            let scale = scale_a * scale_b;
            value += scale * chain;
            total += scale * (magnitude + if hopper { truncated } else { 0.0 });
            bound += scale * if hopper { truncated } else { 131.0 * U_F32 * magnitude };
        }
        (value, 1.01 * (bound + (self.blocks() + 1) as f64 * U_F32 * total))
    }

    /// Fails unless every element of `d` `[m, n]` is within its bound. Returns the largest distance, in parts of the bound before rounding to bf16.
    pub fn check(&self, what: &str, d: &[bf16], hopper: bool) {
        let got: Vec<f64> = d.iter().map(|d| d.to_f64()).collect();
        let (mut expected, mut bounds) = (vec![], vec![]);
        for i in 0..self.m {
            for j in 0..self.n {
                let (value, bound) = self.expected(i, j, hopper);
                expected.push(value);
                // Rounded to bf16: half a place of the value that is rounded. The last term is half the smallest subnormal.
                bounds.push(bound + U_BF16 * (value.abs() + bound) + f64::powi(2.0, -134));
            }
        }
        let what = format!("{what} [{}, {}, {}]", self.m, self.n, self.k);
        Tolerance::EXACT.check_bounded(&what, &got, &expected, &bounds).unwrap();
    }

    /// How the operands lie in device memory.
    pub fn run(&self, kernels: &Kernels, layout: &Layout) -> Vec<bf16> {
        let device = kernels.device();
        let stream = device.stream().unwrap();
        let (m, n, k, blocks) = (self.m, self.n, self.k, self.blocks());
        let lda = (k + layout.gap).next_multiple_of(16);
        let scales_stride = (m + layout.gap).next_multiple_of(4);
        let scales_b_stride = blocks + layout.gap;
        let ldd = (n + layout.gap).next_multiple_of(8);
        let first = layout.first;

        // NaN wherever nothing belongs.
        let mut a = vec![E4M3(0x7f); 16 * first + m * lda + 256];
        let mut b = vec![E4M3(0xff); 16 * first + n * lda + 256];
        for (to, from, rows) in [(&mut a, &self.a, m), (&mut b, &self.b, n)] {
            for i in 0..rows {
                to[16 * first + i * lda..][..k].copy_from_slice(&from[i * k..][..k]);
            }
        }
        let mut scales_a = vec![f32::NAN; 4 * first + blocks * scales_stride + 64];
        for (at, scale) in self.scales_a.iter().enumerate() {
            scales_a[4 * first + at % blocks * scales_stride + at / blocks] = *scale;
        }
        let mut scales_b = vec![f32::NAN; first + n.div_ceil(BLOCK) * scales_b_stride + 64];
        for (at, scale) in self.scales_b.iter().enumerate() {
            scales_b[first + at / blocks * scales_b_stride + at % blocks] = *scale;
        }
        let poison = bf16::from_bits(0x7fad);
        let (a, b) = (stream.upload(&a).unwrap(), stream.upload(&b).unwrap());
        let (scales_a, scales_b) = (stream.upload(&scales_a).unwrap(), stream.upload(&scales_b).unwrap());
        let mut d = stream.upload(&vec![poison; 8 * first + m * ldd + 64]).unwrap();

        let rows = Rows128::new(
            View::with_stride(&a, 16 * first, m, k, lda).unwrap(),
            View::with_stride(&scales_a, 4 * first, blocks, m, scales_stride).unwrap(),
        );
        let squares = Square128::new(
            View::with_stride(&b, 16 * first, n, k, lda).unwrap(),
            View::with_stride(&scales_b, first, n.div_ceil(BLOCK), blocks, scales_b_stride).unwrap(),
        );
        let out = ViewMut::with_stride(&mut d, 8 * first, m, n, ldd).unwrap();
        let plan = layout.plan.unwrap_or_else(|| kernels.plan(m as u32, n as u32));
        kernels.gemm_nt_with(&stream, rows.unwrap(), squares.unwrap(), out, &plan).unwrap();
        let got = stream.download(&d).unwrap_or_else(|e| panic!("[{m}, {n}, {k}] {layout:?}: {e}"));

        let mut dense = Vec::with_capacity(m * n);
        let mut strays = got.clone();
        for i in 0..m {
            let row = 8 * first + i * ldd..8 * first + i * ldd + n;
            dense.extend_from_slice(&got[row.clone()]);
            strays[row].fill(poison);
        }
        let stray = strays.iter().position(|x| x.to_bits() != poison.to_bits());
        assert_eq!(stray, None, "[{m}, {n}, {k}] {layout:?}: written outside of D");
        dense
    }
}

/// Where operands begin (in the units that alignment allows), how far their rows are apart, and how the product is launched.
#[derive(Debug, Clone, Copy, Default)]
pub struct Layout {
    pub first: usize,
    pub gap: usize,
    pub plan: Option<GemmPlan>,
}

/// Every device that has the product, and whether it truncates.
pub fn hoppers(test: &str) -> Vec<(Device, bool)> {
    let mut devices: Vec<_> = emulators().into_iter().map(|device| (device, false)).collect();
    devices.extend(gpu(test, |c| c == (9, 0)).map(|device| (device, true)));
    devices
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![1..9usize, Just(64), Just(97), 127..130usize, Just(191)]
}

fn depths() -> impl Strategy<Value = usize> {
    prop_oneof![1..5usize, Just(31), Just(33), Just(97), 127..130usize, 255..258usize, Just(389)]
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn products_are_near_the_reference(
        m in sizes(), n in sizes(), k in depths(), first in 0..3usize, gap in 0..40usize, seed: u64, cluster in 0..3u32,
    ) {
        let problem = Problem::new(m, n, k, seed);
        for (device, hopper) in hoppers("products_are_near_the_reference") {
            let kernels = Kernels::load(&device).unwrap();
            // As the heuristics choose, or one of the two kernels.
            let plan = (cluster > 0).then(|| GemmPlan::with_cluster(m as u32, n as u32, 3, cluster));
            let d = problem.run(&kernels, &Layout { first, gap, plan });
            problem.check(&format!("{}", device.backend()), &d, hopper);
        }
    }
}

/// More k than slots of the ring, more tiles than blocks: slots and barriers are used again.
#[test]
fn slots_are_used_again() {
    let problem = Problem::new(130, 257, 128 * 6 + 5, 11);
    for (device, hopper) in hoppers("slots_are_used_again") {
        let kernels = Kernels::load(&device).unwrap();
        for plan in [GemmPlan::with_cluster(130, 257, 2, 2), GemmPlan::with_cluster(130, 257, 1, 1)] {
            let d = problem.run(&kernels, &Layout { plan: Some(plan), ..Layout::default() });
            problem.check(&format!("{} {plan}", device.backend()), &d, hopper);
        }
    }
}

/// Accumulation as Hopper's tensor cores do it: within its own bound, and beyond that of f32.
#[test]
fn products_of_truncating_tensor_cores() {
    let config = EmulatorConfig { fp8: Fp8Accumulation::Hopper, ..EmulatorConfig::default() };
    let kernels = Kernels::load(&emulator(config)).unwrap();
    let mut beyond = 0;
    for (m, n, k) in [(64, 32, 512), (3, 130, 129)] {
        let problem = Problem::new(m, n, k, 5);
        let d = problem.run(&kernels, &Layout::default());
        problem.check("Hopper", &d, true);
        for (at, d) in d.iter().enumerate() {
            let (value, bound) = problem.expected(at / n, at % n, false);
            let rounded = bound + U_BF16 * (value.abs() + bound);
            beyond += usize::from((d.to_f64() - value).abs() > rounded);
        }
    }
    assert!(beyond > 0, "truncation shows nowhere");
}

/// From bf16 to bf16 on the device, as a linear layer does it, against the CPU's quantisers and product.
#[test]
fn quantised_on_the_device() {
    let (m, n, k) = (70, 130, 300);
    let mut rng = Rng::new(4);
    let x: Vec<bf16> = rng.normal_vec(m * k, 1.0).into_iter().map(bf16::from_f32).collect();
    let w = rng.normal_vec(n * k, 0.05);
    let floats: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
    let a = quantize_1x128(MatRef::new(&floats, m, k).unwrap(), ScalePolicy::F32);
    let b = quantize_128x128(MatRef::new(&w, n, k).unwrap(), ScalePolicy::F32);
    let (scales_a, scales_b) = (a.scales().to_vec(), b.scales().to_vec());
    let problem = Problem { m, n, k, a: a.data().to_vec(), scales_a, b: b.data().to_vec(), scales_b };
    // The problem's own idea of the value is that of the reference, whose chain is one of the orders that the bound allows.
    let b_t: Vec<E4M3> = (0..k).flat_map(|p| (0..n).map(move |j| (p, j))).map(|(p, j)| b.data()[j * k + p]).collect();
    let blocks = k.div_ceil(BLOCK);
    let scales_b_t: Vec<f32> =
        (0..blocks).flat_map(|p| (0..n.div_ceil(BLOCK)).map(move |j| (p, j))).map(|(p, j)| b.scales()[j * blocks + p]).collect();
    let a_operand = reference::Scaled { codes: a.data(), scales: a.scales(), block: Block::Row128 };
    let b_operand = reference::Scaled { codes: &b_t, scales: &scales_b_t, block: Block::Square128 };
    let promoted = reference::matmul_promoted(a_operand, b_operand, m, n, k);
    problem.check("reference", &promoted.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(), false);

    for (device, hopper) in hoppers("quantised_on_the_device") {
        let kernels = Kernels::load(&device).unwrap();
        let (stream, loader) = (device.stream().unwrap(), device.stream().unwrap());
        let weight = Weight::upload(&loader, &b).unwrap();
        assert_eq!((weight.rows(), weight.cols()), (n, k));
        let x = loader.upload(&x).unwrap();
        stream.wait(&loader).unwrap();
        let mut input = Activation::new(&stream, m, k).unwrap();
        let mut y = stream.alloc::<bf16>(m * n.next_multiple_of(8)).unwrap();
        kernels.quantize_1x128(&stream, View::new(&x, m, k).unwrap(), ScalePolicy::F32, &mut input).unwrap();
        let d = ViewMut::with_stride(&mut y, 0, m, n, n.next_multiple_of(8)).unwrap();
        kernels.gemm_nt(&stream, input.view(), weight.view(), d).unwrap();
        // Freed while the product is queued.
        drop((weight, x));
        let y = stream.download(&y).unwrap();
        let dense: Vec<bf16> = y.chunks(n.next_multiple_of(8)).flat_map(|row| &row[..n]).copied().collect();
        problem.check(&format!("{}", device.backend()), &dense, hopper);
    }
}

/// Sizes of zero: nothing is touched, and with no k there are zeros.
#[test]
fn empty_products() {
    for (device, _) in hoppers("empty_products") {
        assert!(matches!(device.backend(), Backend::Emulator | Backend::Cuda));
        let kernels = Kernels::load(&device).unwrap();
        for (m, n, k) in [(0, 0, 0), (0, 5, 7), (5, 0, 7), (5, 0, 0), (0, 9, 0)] {
            assert_eq!(Problem::new(m, n, k, 1).run(&kernels, &Layout::default()), []);
        }
        for (m, n, gap) in [(3, 17, 0), (3, 16, 0), (1, 5, 30), (129, 8, 3)] {
            let d = Problem::new(m, n, 0, 1).run(&kernels, &Layout { first: 1, gap, plan: None });
            assert!(d.len() == m * n && d.iter().all(|d| d.to_bits() == 0), "[{m}, {n}, 0]");
        }
    }
}
