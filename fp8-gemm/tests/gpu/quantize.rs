//! The quantisers: the bits of the CPU's, which are those of the reference.

use crate::{config, emulator, emulators, gpu};
use fp8_gemm::gpu::{Activation, Arch, Kernels, QuantizeParams, View, policy_code};
use fp8_gemm::quantize::{quantize_1x128, quantize_1x128_transposed};
use fp8_gemm::{BLOCK, Block, BlockScaled, ScalePolicy, reference};
use proptest::prelude::*;
use v3_gpu::{Buffer, Device, EmulatorConfig, Stream};
use v3_numerics::{E4M3, MatRef, bf16};
use v3_testkit::Rng;

/// Every kernel text on every device that runs it.
fn kernels(test: &str) -> Vec<(Device, Kernels)> {
    let mut devices = emulators();
    devices.extend(gpu(test, |c| c >= (8, 0)));
    let mut all = vec![];
    for device in devices {
        let capability = device.info().unwrap().compute_capability;
        for arch in [Arch::Sm80, Arch::Sm90a] {
            if arch.runs_on(capability) {
                all.push((device.clone(), Kernels::load_for(&device, arch).unwrap()));
            }
        }
    }
    all
}

/// Values of every kind: ordinary ones, some far from 1, some of any bits; and whole blocks of one kind.
fn values(rng: &mut Rng, rows: usize, cols: usize) -> Vec<bf16> {
    let mut x: Vec<f32> = match rng.below(4) {
        0 => rng.normal_vec(rows * cols, 1.0),
        1 => rng.spread_vec(rows * cols, -40, 30),
        2 => rng.bits_vec(rows * cols),
        _ => rng.spread_vec(rows * cols, -127, 128),
    };
    for block in x.chunks_mut(BLOCK) {
        match rng.below(8) {
            0 => block.fill(0.0),
            1 => block.iter_mut().for_each(|x| *x *= 1e-30),
            2 => block[0] = f32::INFINITY,
            3 => block.fill(f32::NAN),
            _ => {}
        }
    }
    x.into_iter().map(bf16::from_f32).collect()
}

/// Where an output lies, element by element.
#[derive(Debug, Clone)]
struct Place {
    first: usize,
    stride: usize,
}

const POISON_CODE: E4M3 = E4M3(0x5a);
const POISON_SCALE: f32 = -12345.0;

struct Output {
    codes: Buffer<E4M3>,
    scales: Buffer<f32>,
    codes_at: Place,
    /// Distances from one row's scale to the next one's, and from one block's.
    scales_at: (Place, usize),
    rows: usize,
    cols: usize,
}

impl Output {
    /// Codes from `first` on with gaps of `gap`; scales row-major or block-major.
    fn new(stream: &Stream, rows: usize, cols: usize, first: usize, gap: usize, block_major: bool) -> Output {
        let blocks = cols.div_ceil(BLOCK);
        let stride = cols + gap;
        let (row, block) = if block_major { (1, rows.next_multiple_of(4)) } else { (blocks + gap, 1) };
        let scales = first + if block_major { blocks * block } else { rows * row };
        Output {
            codes: stream.upload(&vec![POISON_CODE; first + rows * stride + 64]).unwrap(),
            scales: stream.upload(&vec![POISON_SCALE; scales + 64]).unwrap(),
            codes_at: Place { first, stride },
            scales_at: (Place { first, stride: row }, block),
            rows,
            cols,
        }
    }

    /// That it holds what is expected, and its poison elsewhere.
    fn check(&self, stream: &Stream, what: &str, expected: &BlockScaled) {
        let mut codes = vec![POISON_CODE; self.codes.len()];
        let mut scales = vec![POISON_SCALE; self.scales.len()];
        let blocks = self.cols.div_ceil(BLOCK);
        for i in 0..self.rows {
            let at = self.codes_at.first + i * self.codes_at.stride;
            codes[at..at + self.cols].copy_from_slice(&expected.data()[i * self.cols..][..self.cols]);
            for b in 0..blocks {
                let (row, block) = &self.scales_at;
                scales[row.first + i * row.stride + b * block] = expected.scales()[i * blocks + b];
            }
        }
        v3_testkit::assert_bits_eq(&format!("{what}: scales"), &stream.download(&self.scales).unwrap(), &scales);
        let got = stream.download(&self.codes).unwrap();
        for (i, (got, expected)) in got.iter().zip(&codes).enumerate() {
            assert_eq!(got.0, expected.0, "{what}: code at {i} of {:?} [{}, {}]", self.codes_at, self.rows, self.cols);
        }
    }
}

/// Both kernels over raw addresses with these strides and offsets, in poisoned surroundings.
fn check(test: &str, rows: usize, cols: usize, policy: ScalePolicy, seed: u64, (first, gap, block_major): (usize, usize, bool)) {
    let mut rng = Rng::new(seed);
    let x = values(&mut rng, rows, cols);
    let floats: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
    let view = MatRef::new(&floats, rows, cols).unwrap();
    let (expected, expected_t) = (quantize_1x128(view, policy), quantize_1x128_transposed(view, policy));
    let (codes, scales) = reference::quantize(&floats, rows, cols, Block::Row128, policy);
    assert_eq!(expected, BlockScaled::new(codes, scales, rows, cols, Block::Row128).unwrap(), "CPU and reference");

    // Between the rows: the largest number, which would be any block's amax.
    let x_stride = cols + gap;
    let mut padded = vec![bf16::MAX; first + rows * x_stride + 64];
    for i in 0..rows {
        padded[first + i * x_stride..][..cols].copy_from_slice(&x[i * cols..][..cols]);
    }
    for (device, kernels) in kernels(test) {
        let stream = device.stream().unwrap();
        let input = stream.upload(&padded).unwrap();
        let out = [0, 1].map(|_| Output::new(&stream, rows, cols, first, gap, block_major));
        let out_t = Output::new(&stream, cols, rows, first, gap, block_major);
        let params = |out: &Output, out_t: &Output| QuantizeParams {
            x: input.range(first..first).unwrap(),
            codes: out.codes.range(first..first).unwrap(),
            scales: out.scales.range(first..first).unwrap(),
            codes_t: out_t.codes.range(first..first).unwrap(),
            scales_t: out_t.scales.range(first..first).unwrap(),
            x_stride: x_stride as u64,
            codes_stride: out.codes_at.stride as u64,
            scale_row_stride: out.scales_at.0.stride as u64,
            scale_block_stride: out.scales_at.1 as u64,
            codes_t_stride: out_t.codes_at.stride as u64,
            scale_t_row_stride: out_t.scales_at.0.stride as u64,
            scale_t_block_stride: out_t.scales_at.1 as u64,
            rows: rows as u32,
            cols: cols as u32,
            policy: policy_code(policy),
            reserved: [0; 5],
        };
        // SAFETY: the buffers are as large as the strides say.
        unsafe {
            kernels.quantize_1x128_raw(&stream, &params(&out[0], &out_t)).unwrap();
            kernels.quantize_1x128_with_transpose_raw(&stream, &params(&out[1], &out_t)).unwrap();
        }
        let what = format!("{} {}", device.backend(), kernels.arch());
        stream.synchronize().unwrap_or_else(|e| panic!("{what}: {e}"));
        out[0].check(&stream, &what, &expected);
        out[1].check(&stream, &format!("{what} with transpose"), &expected);
        out_t.check(&stream, &format!("{what} transposed"), &expected_t);
    }
}

fn policies() -> impl Strategy<Value = ScalePolicy> {
    prop_oneof![Just(ScalePolicy::F32), Just(ScalePolicy::PowerOfTwo), Just(ScalePolicy::TransformerEngine)]
}

/// Around what the kernels count in: vectors of 8, groups of 4 and 16, blocks of 128.
fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![1..20usize, Just(31), Just(64), Just(67), 120..137usize, Just(255), Just(257)]
}

proptest! {
    #![proptest_config(config(32))]

    #[test]
    fn quantisers_have_the_bits_of_the_reference(
        rows in sizes(), cols in sizes(), policy in policies(), seed: u64,
        place in prop_oneof![Just((0usize, 0usize)), Just((0, 8)), Just((16, 16)), (0..20usize, 0..20usize)],
        block_major: bool,
    ) {
        check("quantisers_have_the_bits_of_the_reference", rows, cols, policy, seed, (place.0, place.1, block_major));
    }
}

/// One tile and its neighbours, vectors and not.
#[test]
fn tiles_and_their_neighbours() {
    for (seed, (rows, cols)) in [(1, 128), (128, 1), (127, 129), (129, 127), (128, 128), (4, 2049)].into_iter().enumerate() {
        let policy = [ScalePolicy::F32, ScalePolicy::PowerOfTwo, ScalePolicy::TransformerEngine][seed % 3];
        check("tiles_and_their_neighbours", rows, cols, policy, seed as u64, (0, 0, true));
        check("tiles_and_their_neighbours", rows, cols, policy, seed as u64, (seed + 1, 3, seed % 2 == 0));
    }
}

/// What the safe functions make and give back.
#[test]
fn activations_go_there_and_back() {
    for (device, kernels) in kernels("activations_go_there_and_back") {
        let (stream, other) = (device.stream().unwrap(), device.stream().unwrap());
        for (rows, cols) in [(0, 5), (5, 0), (0, 0), (1, 1), (3, 130), (130, 17)] {
            let x = values(&mut Rng::new(3), rows, cols);
            let floats: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
            let view = MatRef::new(&floats, rows, cols).unwrap();
            let (expected, expected_t) =
                (quantize_1x128(view, ScalePolicy::F32), quantize_1x128_transposed(view, ScalePolicy::F32));
            let x = stream.upload(&x).unwrap();
            let x = View::new(&x, rows, cols).unwrap();
            let mut out = Activation::new(&stream, rows, cols).unwrap();
            let mut out_t = Activation::new(&other, cols, rows).unwrap();
            kernels.quantize_1x128(&stream, x, ScalePolicy::F32, &mut out).unwrap();
            assert_eq!(out.download(&stream).unwrap(), expected);
            kernels.quantize_1x128_with_transpose(&stream, x, ScalePolicy::F32, &mut out, &mut out_t).unwrap();
            assert_eq!(out.download(&stream).unwrap(), expected);
            assert_eq!(out_t.download(&stream).unwrap(), expected_t);
            let again = Activation::upload(&stream, &expected).unwrap();
            assert_eq!(again.download(&stream).unwrap(), expected);
            assert_eq!(again.bytes(), out.bytes());
        }
    }
}

/// A part of a wider matrix, as a fused projection's output is, quantised in place of a copy.
#[test]
fn columns_of_a_wider_matrix() {
    let device = emulator(EmulatorConfig::default());
    let kernels = Kernels::load(&device).unwrap();
    let stream = device.stream().unwrap();
    let (rows, cols, wide) = (9, 200, 600);
    let x = values(&mut Rng::new(8), rows, wide);
    let floats: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
    let part = MatRef::new(&floats, rows, wide).unwrap().col_range(300..500).unwrap();
    let x = stream.upload(&x).unwrap();
    let mut out = Activation::new(&stream, rows, cols).unwrap();
    let view = View::with_stride(&x, 300, rows, cols, wide).unwrap();
    kernels.quantize_1x128(&stream, view, ScalePolicy::PowerOfTwo, &mut out).unwrap();
    assert_eq!(out.download(&stream).unwrap(), quantize_1x128(part, ScalePolicy::PowerOfTwo));
}
