//! What the host refuses.

use crate::emulator;
use fp8_gemm::gpu::{Activation, Arch, GemmPlan, Kernels, RawGemm, Rows128, Square128, View, ViewMut, Weight};
use fp8_gemm::{Block, BlockScaled, Error, ScalePolicy};
use v3_gpu::{Buffer, Device, DevicePtr, EmulatorConfig, Stream};
use v3_numerics::{E4M3, bf16};

fn setup() -> (Device, Kernels, Stream) {
    let device = emulator(EmulatorConfig::default());
    let (kernels, stream) = (Kernels::load(&device).unwrap(), device.stream().unwrap());
    (device, kernels, stream)
}

/// The operand that a shape error names.
fn shape<T: std::fmt::Debug>(result: Result<T, Error>) -> &'static str {
    match result {
        Err(Error::Shape { what, .. }) => what,
        result => panic!("{result:?}"),
    }
}

fn unsupported<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(e @ Error::Unsupported { .. }) => e.to_string(),
        result => panic!("{result:?}"),
    }
}

#[test]
fn views_lie_inside_their_buffers() {
    let (_device, _, stream) = setup();
    let mut buffer = stream.zeroed::<bf16>(100).unwrap();
    let fits = [(0, 10, 10, 10), (5, 1, 95, 1), (99, 1, 1, 1000), (100, 0, 50, 50), (100, 9, 0, 0), (10, 3, 20, 35)];
    for (first, rows, cols, stride) in fits {
        let view = View::with_stride(&buffer, first, rows, cols, stride).unwrap();
        assert_eq!((view.rows(), view.cols()), (rows, cols));
        assert_eq!(view.ptr().0, buffer.ptr().0 + 2 * first as u64);
    }
    let wrong =
        [(1, 10, 10, 10), (0, 2, 10, 9), (0, 3, 20, 41), (101, 0, 0, 0), (usize::MAX, 1, 1, 1), (0, usize::MAX, 2, usize::MAX)];
    for (first, rows, cols, stride) in wrong {
        assert_eq!(shape(View::with_stride(&buffer, first, rows, cols, stride)), "matrix in device memory");
        assert_eq!(shape(ViewMut::with_stride(&mut buffer, first, rows, cols, stride)), "matrix in device memory");
    }
    for (rows, cols) in [(10, 9), (11, 10), (usize::MAX, usize::MAX)] {
        assert_eq!(shape(View::new(&buffer, rows, cols)), "matrix in device memory");
        assert_eq!(shape(ViewMut::new(&mut buffer, rows, cols)), "matrix in device memory");
    }
}

#[test]
fn quantisers_want_outputs_of_their_shape() {
    let (_device, kernels, stream) = setup();
    let x = stream.zeroed::<bf16>(20 * 30).unwrap();
    let x = View::new(&x, 20, 30).unwrap();
    let make = |rows, cols| Activation::new(&stream, rows, cols).unwrap();
    let quantize = |out: &mut Activation| kernels.quantize_1x128(&stream, x, ScalePolicy::F32, out);
    assert_eq!(shape(quantize(&mut make(20, 31))), "quantised rows");
    assert_eq!(shape(quantize(&mut make(30, 20))), "quantised rows");
    let both = |out: &mut Activation, out_t: &mut Activation| {
        kernels.quantize_1x128_with_transpose(&stream, x, ScalePolicy::F32, out, out_t)
    };
    assert_eq!(shape(both(&mut make(19, 30), &mut make(30, 20))), "quantised rows");
    assert_eq!(shape(both(&mut make(20, 30), &mut make(20, 30))), "quantised columns");
    both(&mut make(20, 30), &mut make(30, 20)).unwrap();
    assert!(matches!(Activation::new(&stream, usize::MAX, 2), Err(Error::Shape { .. })));
    assert!(matches!(Activation::new(&stream, 2, usize::MAX), Err(Error::Shape { .. })));
    stream.synchronize().unwrap();
}

#[test]
fn operands_have_their_kind_of_scales() {
    let (_device, _, stream) = setup();
    let make = |block: Block| {
        let (rows, cols) = block.scale_shape(130, 140);
        BlockScaled::new(vec![E4M3(0); 130 * 140], vec![1.0; rows * cols], 130, 140, block).unwrap()
    };
    for block in [Block::Col128, Block::Square128] {
        assert!(unsupported(Activation::upload(&stream, &make(block))).contains("1x128"));
    }
    for block in [Block::Col128, Block::Row128] {
        assert!(unsupported(Weight::upload(&stream, &make(block))).contains("128x128"));
    }
    let codes = stream.zeroed::<E4M3>(160 * 160).unwrap();
    let scales = stream.zeroed::<f32>(400).unwrap();
    let codes_at = |first, rows, cols, stride| View::with_stride(&codes, first, rows, cols, stride).unwrap();
    let scales_at = |first, rows, cols, stride| View::with_stride(&scales, first, rows, cols, stride).unwrap();
    let rows128 = |c, s| Rows128::new(c, s);
    assert_eq!(shape(rows128(codes_at(0, 130, 140, 144), scales_at(0, 1, 130, 132))), "scales of 1x128");
    assert_eq!(shape(rows128(codes_at(0, 130, 140, 144), scales_at(0, 2, 131, 132))), "scales of 1x128");
    assert_eq!(shape(rows128(codes_at(0, 130, 140, 140), scales_at(0, 2, 130, 132))), "codes of 1x128");
    assert_eq!(shape(rows128(codes_at(8, 130, 140, 144), scales_at(0, 2, 130, 132))), "codes of 1x128");
    assert_eq!(shape(rows128(codes_at(0, 130, 140, 144), scales_at(0, 2, 130, 130))), "scales of 1x128");
    assert_eq!(shape(rows128(codes_at(0, 130, 140, 144), scales_at(2, 2, 130, 132))), "scales of 1x128");
    rows128(codes_at(16, 130, 140, 160), scales_at(4, 2, 130, 136)).unwrap();
    // One row has no next one.
    rows128(codes_at(16, 1, 140, 141), scales_at(4, 2, 1, 4)).unwrap();
    assert_eq!(shape(Square128::new(codes_at(0, 130, 140, 144), scales_at(0, 2, 1, 1))), "scales of 128x128");
    assert_eq!(shape(Square128::new(codes_at(0, 130, 140, 152), scales_at(1, 2, 2, 3))), "codes of 128x128");
    Square128::new(codes_at(0, 130, 140, 144), scales_at(1, 2, 2, 3)).unwrap();
}

#[test]
fn products_want_matching_shapes() {
    let (_device, kernels, stream) = setup();
    let activation = |rows, cols| {
        let scales = vec![1.0; rows * cols_blocks(cols)];
        Activation::upload(&stream, &BlockScaled::new(vec![E4M3(0); rows * cols], scales, rows, cols, Block::Row128).unwrap())
            .unwrap()
    };
    let weight = |rows: usize, cols: usize| {
        let scales = vec![1.0; rows.div_ceil(128) * cols_blocks(cols)];
        Weight::upload(&stream, &BlockScaled::new(vec![E4M3(0); rows * cols], scales, rows, cols, Block::Square128).unwrap())
            .unwrap()
    };
    let mut d = stream.zeroed::<bf16>(1000).unwrap();
    let (a, b) = (activation(5, 40), weight(16, 40));
    let mut product = |a: &Activation, b: &Weight, first, m, n, stride| {
        kernels.gemm_nt(&stream, a.view(), b.view(), ViewMut::with_stride(&mut d, first, m, n, stride).unwrap())
    };
    assert_eq!(shape(product(&a, &weight(16, 41), 0, 5, 16, 16)), "a");
    assert_eq!(shape(product(&activation(6, 40), &b, 0, 5, 16, 16)), "a");
    assert_eq!(shape(product(&a, &b, 0, 5, 17, 24)), "d");
    assert_eq!(shape(product(&a, &b, 0, 5, 16, 20)), "d");
    assert_eq!(shape(product(&a, &b, 4, 5, 16, 16)), "d");
    product(&a, &b, 8, 5, 16, 24).unwrap();
    stream.synchronize().unwrap();
}

fn cols_blocks(cols: usize) -> usize {
    cols.div_ceil(128)
}

#[test]
fn plans_that_do_not_fit() {
    let (_device, kernels, stream) = setup();
    let memory: Buffer<u8> = stream.zeroed(1 << 16).unwrap();
    let p = memory.ptr();
    let good = RawGemm {
        a: p,
        a_stride: 16,
        scales_a: p,
        scales_a_stride: 4,
        b: p.offset(4096),
        b_stride: 16,
        scales_b: p,
        scales_b_stride: 1,
        d: p.offset(8192),
        d_stride: 8,
        m: 4,
        n: 8,
        k: 16,
    };
    // SAFETY: all of it lies in `memory`, or is refused.
    let run = |gemm: RawGemm, plan: GemmPlan| unsafe { kernels.gemm_nt_raw(&stream, &gemm, &plan) };
    let plan = kernels.plan(4, 8);
    for wrong in [
        GemmPlan { cluster: 3, ..plan },
        GemmPlan { cluster: 0, ..plan },
        GemmPlan { blocks: 0, ..plan },
        GemmPlan { cluster: 2, blocks: 3, ..plan },
        GemmPlan { raster_rows: 0, ..plan },
    ] {
        assert!(unsupported(run(good, wrong)).contains("plan"));
    }
    assert_eq!(shape(run(RawGemm { m: 1 << 31, ..good }, plan)), "m");
    assert!(unsupported(run(RawGemm { m: (1 << 31) - 1, n: (1 << 31) - 1, ..good }, plan)).contains("2^31 tiles"));
    // What TMA does not take is said by what encodes it.
    for wrong in [
        RawGemm { a: p.offset(8), ..good },
        RawGemm { a_stride: 24, ..good },
        RawGemm { b_stride: 1 << 40, ..good },
        RawGemm { d: p.offset(8), ..good },
        RawGemm { d_stride: 12, ..good },
        RawGemm { scales_a: DevicePtr(4), ..good },
    ] {
        assert!(matches!(run(wrong, plan), Err(Error::Gpu(v3_gpu::Error::TensorMap { .. }))), "{wrong:?}");
    }
    run(good, plan).unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn only_hopper_has_the_product() {
    let (device, _, stream) = setup();
    let kernels = Kernels::load_for(&device, Arch::Sm80).unwrap();
    assert_eq!(kernels.arch(), Arch::Sm80);
    assert_eq!(kernels.device(), &device);
    let x = Activation::new(&stream, 1, 16).unwrap();
    let w = BlockScaled::new(vec![E4M3(0); 16], vec![1.0], 1, 16, Block::Square128).unwrap();
    let w = Weight::upload(&stream, &w).unwrap();
    let mut d = stream.zeroed::<bf16>(1).unwrap();
    let said = unsupported(kernels.gemm_nt(&stream, x.view(), w.view(), ViewMut::new(&mut d, 1, 1).unwrap()));
    assert!(said.contains("sm_90a") && said.contains("sm_80"), "{said}");
}

#[test]
fn other_devices_are_refused() {
    let (_device, kernels, _stream) = setup();
    let other = emulator(EmulatorConfig::default()).stream().unwrap();
    let x = other.zeroed::<bf16>(128).unwrap();
    let mut out = Activation::new(&other, 1, 128).unwrap();
    let result = kernels.quantize_1x128(&other, View::new(&x, 1, 128).unwrap(), ScalePolicy::F32, &mut out);
    assert_eq!(result, Err(Error::Gpu(v3_gpu::Error::WrongDevice { what: "the kernel" })));
}
