//! The 12-bit format for activations that are kept for the backward pass: 1 sign, 5 exponent (bias 15), 6 mantissa bits.
//!
//! Infinities and NaN are coded as in IEEE 754. The largest finite value is 65024 = (2 - 2^-6) * 2^15, the smallest 2^-20. Two values
//! are packed in 3 bytes, little-endian, the first in the low 12 bits.

use crate::error::{Result, check_len};
use crate::formats::round_magnitude;

/// The largest finite value.
pub const MAX: f32 = 65024.0;

/// The nearest 12-bit code, ties to even. A finite value above [`MAX`] saturates to it; infinities stay infinite, NaN stays NaN.
#[inline]
pub fn encode(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = ((bits >> 20) & 0x800) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e0;
    }
    if magnitude == 0x7f80_0000 {
        return sign | 0x7c0;
    }
    sign | round_magnitude(magnitude.min(MAX.to_bits()), 6, 15) as u16
}

/// The value of a 12-bit code, exactly. The upper 4 bits are ignored.
#[inline]
pub fn decode(code: u16) -> f32 {
    // The format is the upper 12 bits of IEEE half precision.
    half::f16::from_bits(code << 4).to_f32_const()
}

/// Two codes in 3 bytes, the first in the low 12 bits.
#[inline]
pub fn pack_pair(first: u16, second: u16) -> [u8; 3] {
    let word = u32::from(first & 0xfff) | (u32::from(second & 0xfff) << 12);
    [word as u8, (word >> 8) as u8, (word >> 16) as u8]
}

/// The two codes of 3 bytes.
#[inline]
pub fn unpack_pair(bytes: [u8; 3]) -> (u16, u16) {
    let word = u32::from(bytes[0]) | (u32::from(bytes[1]) << 8) | (u32::from(bytes[2]) << 16);
    ((word & 0xfff) as u16, (word >> 12) as u16)
}

/// The number of bytes that `n` packed values take: 3 for each pair; an odd last value is paired with a zero.
pub const fn packed_len(n: usize) -> usize {
    n.div_ceil(2) * 3
}

/// Encodes and packs `x * scale` into `out`, which must have [`packed_len`]`(x.len())` bytes.
pub fn encode_slice(x: &[f32], scale: f32, out: &mut [u8]) -> Result<()> {
    check_len("packed E5M6", packed_len(x.len()), out.len())?;
    for (pair, bytes) in x.chunks(2).zip(out.chunks_exact_mut(3)) {
        let second = if pair.len() == 2 { encode(pair[1] * scale) } else { 0 };
        bytes.copy_from_slice(&pack_pair(encode(pair[0] * scale), second));
    }
    Ok(())
}

/// Unpacks and decodes into `out`, each value times `scale`. `packed` must have [`packed_len`]`(out.len())` bytes.
pub fn decode_slice(packed: &[u8], scale: f32, out: &mut [f32]) -> Result<()> {
    check_len("packed E5M6", packed_len(out.len()), packed.len())?;
    for (pair, bytes) in out.chunks_mut(2).zip(packed.chunks_exact(3)) {
        let (first, second) = unpack_pair([bytes[0], bytes[1], bytes[2]]);
        pair[0] = decode(first) * scale;
        if let Some(value) = pair.get_mut(1) {
            *value = decode(second) * scale;
        }
    }
    Ok(())
}
