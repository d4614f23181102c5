//! The element-wise loops, in plain Rust that the compiler vectorises: written once, inlined into a function that enables an
//! instruction set.

use half::bf16;
use v3_numerics::E4M3;

/// The bits of a magnitude, with NaN as 0 and infinity as the largest finite value.
#[inline(always)]
fn magnitude(x: f32) -> u32 {
    let bits = x.to_bits() & 0x7fff_ffff;
    if bits > 0x7f80_0000 { 0 } else { bits.min(0x7f7f_ffff) }
}

#[inline(always)]
pub(super) fn amax(x: &[f32]) -> f32 {
    // Magnitudes are ordered as their bits are; 16 lanes keep the maximum free of a chain.
    let mut lanes = [0u32; 16];
    let mut chunks = x.chunks_exact(16);
    for chunk in &mut chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = (*lane).max(magnitude(*x));
        }
    }
    let tail = chunks.remainder().iter().map(|x| magnitude(*x)).fold(0, u32::max);
    f32::from_bits(lanes.into_iter().fold(tail, u32::max))
}

#[inline(always)]
pub(super) fn amax_columns(x: &[f32], acc: &mut [f32]) {
    for (acc, x) in acc.iter_mut().zip(x) {
        *acc = f32::from_bits(acc.to_bits().max(magnitude(*x)));
    }
}

/// `E4M3::from_f32` without a branch.
#[inline(always)]
fn to_e4m3(x: f32) -> E4M3 {
    let rounded = round_to_e4m3(x);
    let bits = rounded.to_bits();
    let sign = (bits >> 24) & 0x80;
    let magnitude = bits & 0x7fff_ffff;
    let normal = (magnitude >> 20).wrapping_sub(120 << 3);
    // Subnormal codes count multiples of 2^-9; adding 2^14 puts that count into the lowest bits of the mantissa.
    let subnormal = (f32::from_bits(magnitude) + 16384.0).to_bits() & 7;
    let code = if magnitude >= 0x3c80_0000 { normal } else { subnormal };
    let code = if magnitude > 0x7f80_0000 { 0x7f } else { code };
    E4M3((sign | code) as u8)
}

/// The nearest value that E4M3 has, ties to even, saturating; NaN stays NaN.
#[inline(always)]
fn round_to_e4m3(x: f32) -> f32 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let limited = magnitude.min(448.0f32.to_bits());
    // 2^20 times the power of two below the value (2^-6 for subnormals) has its last place where the code has its.
    let magic = f32::from_bits((limited & 0x7f80_0000).max((127 - 6) << 23) + (20 << 23));
    let rounded = ((f32::from_bits(limited) + magic) - magic).to_bits();
    let rounded = if magnitude > 0x7f80_0000 { 0x7fc0_0000 } else { rounded };
    f32::from_bits(rounded | (bits & 0x8000_0000))
}

#[inline(always)]
pub(super) fn encode(x: &[f32], r: f32, out: &mut [E4M3]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = to_e4m3(*x * r);
    }
}

#[inline(always)]
pub(super) fn encode_columns(x: &[f32], r: &[f32], out: &mut [E4M3]) {
    for ((out, x), r) in out.iter_mut().zip(x).zip(r) {
        *out = to_e4m3(*x * *r);
    }
}

#[inline(always)]
pub(super) fn round(x: &[f32], r: f32, out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = round_to_e4m3(*x * r);
    }
}

#[inline(always)]
pub(super) fn round_bf16(x: &[f32], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        let bits = x.to_bits();
        let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
        let quiet = (bits | 0x0040_0000) & 0xffff_0000;
        *out = f32::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { nearest });
        debug_assert_eq!(out.to_bits(), bf16::from_f32(*x).to_f32().to_bits());
    }
}

#[inline(always)]
pub(super) fn scale(x: &mut [f32], s: f32) {
    for x in x {
        *x *= s;
    }
}

#[inline(always)]
pub(super) fn scale_columns(x: &mut [f32], s: &[f32]) {
    for (x, s) in x.iter_mut().zip(s) {
        *x *= *s;
    }
}

/// The element-wise entries of a set of kernels: the loops above, compiled with the given target features.
macro_rules! elementwise_kernels {
    ($rows:expr, $tile:path $(, $feature:literal)?) => {{
        use $crate::cpu::elementwise as generic;
        $(#[target_feature(enable = $feature)])?
        fn amax(x: &[f32]) -> f32 {
            generic::amax(x)
        }
        $(#[target_feature(enable = $feature)])?
        fn amax_columns(x: &[f32], acc: &mut [f32]) {
            generic::amax_columns(x, acc);
        }
        $(#[target_feature(enable = $feature)])?
        fn encode(x: &[f32], r: f32, out: &mut [v3_numerics::E4M3]) {
            generic::encode(x, r, out);
        }
        $(#[target_feature(enable = $feature)])?
        fn encode_columns(x: &[f32], r: &[f32], out: &mut [v3_numerics::E4M3]) {
            generic::encode_columns(x, r, out);
        }
        $(#[target_feature(enable = $feature)])?
        fn round(x: &[f32], r: f32, out: &mut [f32]) {
            generic::round(x, r, out);
        }
        $(#[target_feature(enable = $feature)])?
        fn round_bf16(x: &[f32], out: &mut [f32]) {
            generic::round_bf16(x, out);
        }
        $(#[target_feature(enable = $feature)])?
        fn scale(x: &mut [f32], s: f32) {
            generic::scale(x, s);
        }
        $(#[target_feature(enable = $feature)])?
        fn scale_columns(x: &mut [f32], s: &[f32]) {
            generic::scale_columns(x, s);
        }
        $crate::cpu::Kernels {
            rows: $rows,
            tile: $tile,
            amax,
            amax_columns,
            encode,
            encode_columns,
            round,
            round_bf16,
            scale,
            scale_columns,
        }
    }};
}
pub(super) use elementwise_kernels;
