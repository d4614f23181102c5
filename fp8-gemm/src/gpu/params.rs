//! What the kernels are given: the structs of kernels/*.cu, byte for byte.

use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;
use v3_gpu::{DevicePtr, TensorMap};

/// Parameters of `quantize_1x128` and `quantize_1x128_with_transpose` (kernels/quantize_1x128.cu).
///
/// Strides count elements. The scale of row i and block b of 128 columns goes to `scales[i * scale_row_stride + b * scale_block_stride]`, and
/// likewise those of the transposed codes, whose row i is column i of x.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct QuantizeParams {
    /// bf16 `[rows, cols]`.
    pub x: DevicePtr,
    /// E4M3 `[rows, cols]`.
    pub codes: DevicePtr,
    /// f32.
    pub scales: DevicePtr,
    /// E4M3 `[cols, rows]`. Neither this nor the other fields of `codes_t` and `scales_t` is read by `quantize_1x128`.
    pub codes_t: DevicePtr,
    /// f32.
    pub scales_t: DevicePtr,
    /// From one row to the next, at least `cols`.
    pub x_stride: u64,
    /// At least `cols`.
    pub codes_stride: u64,
    /// See above.
    pub scale_row_stride: u64,
    /// See above.
    pub scale_block_stride: u64,
    /// At least `rows`.
    pub codes_t_stride: u64,
    /// See above.
    pub scale_t_row_stride: u64,
    /// See above.
    pub scale_t_block_stride: u64,
    /// At least 1.
    pub rows: u32,
    /// At least 1.
    pub cols: u32,
    /// [`policy_code`] of a policy.
    pub policy: u32,
    /// Zero.
    pub reserved: [u32; 5],
}

const _: () = {
    assert!(size_of::<QuantizeParams>() == 128);
    assert!(offset_of!(QuantizeParams, x) == 0);
    assert!(offset_of!(QuantizeParams, codes) == 8);
    assert!(offset_of!(QuantizeParams, scales) == 16);
    assert!(offset_of!(QuantizeParams, codes_t) == 24);
    assert!(offset_of!(QuantizeParams, scales_t) == 32);
    assert!(offset_of!(QuantizeParams, x_stride) == 40);
    assert!(offset_of!(QuantizeParams, codes_stride) == 48);
    assert!(offset_of!(QuantizeParams, scale_row_stride) == 56);
    assert!(offset_of!(QuantizeParams, scale_block_stride) == 64);
    assert!(offset_of!(QuantizeParams, codes_t_stride) == 72);
    assert!(offset_of!(QuantizeParams, scale_t_row_stride) == 80);
    assert!(offset_of!(QuantizeParams, scale_t_block_stride) == 88);
    assert!(offset_of!(QuantizeParams, rows) == 96);
    assert!(offset_of!(QuantizeParams, cols) == 100);
    assert!(offset_of!(QuantizeParams, policy) == 104);
    assert!(offset_of!(QuantizeParams, reserved) == 108);
};

/// A policy as the kernels number it (`convert::ScalePolicy`).
pub const fn policy_code(policy: crate::ScalePolicy) -> u32 {
    match policy {
        crate::ScalePolicy::F32 => 0,
        crate::ScalePolicy::PowerOfTwo => 1,
        crate::ScalePolicy::TransformerEngine => 2,
    }
}

/// Parameters of `sm90_fp8_gemm_1d2d` (kernels/sm90_fp8_gemm_1d2d.cu), whose comments say what each tensor map is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(128))]
pub struct Fp8Gemm1d2dParams {
    /// E4M3 `[m, k]`.
    pub a: TensorMap,
    /// E4M3 `[n, k]`.
    pub b: TensorMap,
    /// f32 `[ceil(k / 128), m]`.
    pub scales_a: TensorMap,
    /// bf16 `[m, n]`.
    pub d: TensorMap,
    /// f32 `[ceil(n / 128), ceil(k / 128)]`.
    pub scales_b: DevicePtr,
    /// From one row of `scales_b` to the next, in elements.
    pub scales_b_stride: u64,
    /// At least 1, as `n` and `k`.
    pub m: u32,
    /// See above.
    pub n: u32,
    /// See above.
    pub k: u32,
    /// [`super::GemmPlan::raster_rows`].
    pub raster_rows: u32,
    /// Zero.
    pub reserved: [u32; 24],
}

const _: () = {
    assert!(size_of::<Fp8Gemm1d2dParams>() == 640);
    assert!(align_of::<Fp8Gemm1d2dParams>() == 128);
    assert!(offset_of!(Fp8Gemm1d2dParams, a) == 0);
    assert!(offset_of!(Fp8Gemm1d2dParams, b) == 128);
    assert!(offset_of!(Fp8Gemm1d2dParams, scales_a) == 256);
    assert!(offset_of!(Fp8Gemm1d2dParams, d) == 384);
    assert!(offset_of!(Fp8Gemm1d2dParams, scales_b) == 512);
    assert!(offset_of!(Fp8Gemm1d2dParams, scales_b_stride) == 520);
    assert!(offset_of!(Fp8Gemm1d2dParams, m) == 528);
    assert!(offset_of!(Fp8Gemm1d2dParams, n) == 532);
    assert!(offset_of!(Fp8Gemm1d2dParams, k) == 536);
    assert!(offset_of!(Fp8Gemm1d2dParams, raster_rows) == 540);
    assert!(offset_of!(Fp8Gemm1d2dParams, reserved) == 544);
};
