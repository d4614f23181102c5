// bf16 and E4M3 in registers, and the scales of E4M3 blocks. The bits are those of the CPU conversions of this workspace, for
// every input: nearest even, E4M3 saturating to +-448 with infinities too, NaN kept NaN with its sign.
#pragma once

#include "ptx.cuh"

namespace convert {

// ---- bf16: the upper half of an f32 ------------------------------------------------------------------------------------

__device__ __forceinline__ float f32_from_bf16(uint16_t x) { return __uint_as_float(static_cast<uint32_t>(x) << 16); }
__device__ __forceinline__ float f32_from_bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float f32_from_bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// ---- E4M3 (4 exponent bits, bias 7, 3 mantissa bits, no infinities, NaN S.1111.111) ------------------------------------

constexpr float E4M3_MAX = 448.0f;

// In integer arithmetic and one addition, for processors without the conversion (before sm_89).
__device__ __forceinline__ uint32_t e4m3_from_f32_portable(float x) {
    const uint32_t bits = __float_as_uint(x);
    const uint32_t sign = (bits >> 24) & 0x80u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return sign | 0x7fu;
    }
    // 448 is 0x43e00000; limiting first keeps the rounding inside the format.
    const uint32_t limited = min(magnitude, 0x43e00000u);
    // Normal from 2^-6 (121 << 23): round at bit 20, then move the exponent's bias from 127 to 7.
    const uint32_t normal = ((limited + 0x7ffffu + ((limited >> 20) & 1u)) >> 20) - (120u << 3);
    // Below, adding 2^14, whose last place is 2^-9, lets the adder round. Named so that no multiplication before it is contracted
    // into it.
    const uint32_t magic = 141u << 23;
    const uint32_t subnormal = __float_as_uint(__fadd_rn(__uint_as_float(limited), __uint_as_float(magic))) - magic;
    return sign | (limited >= (121u << 23) ? normal : subnormal);
}

// Four values to four codes, the first in the lowest byte. `signs` has the sign of each value in the top bit of each byte (what
// lies in the other bits does not matter): the hardware's conversion of NaN, and the multiplication before it, lose that sign.
__device__ __forceinline__ uint32_t e4m3x4_from_f32(float x0, float x1, float x2, float x3, uint32_t signs) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    const uint32_t low = ptx::cvt_rn_satfinite_e4m3x2_f32(x0, x1);
    const uint32_t high = ptx::cvt_rn_satfinite_e4m3x2_f32(x2, x3);
    return ptx::prmt_b32(low, high, 0x5410) | (signs & 0x80808080u);
#else
    const uint32_t codes = e4m3_from_f32_portable(x0) | e4m3_from_f32_portable(x1) << 8 | e4m3_from_f32_portable(x2) << 16 |
                           e4m3_from_f32_portable(x3) << 24;
    return codes | (signs & 0x80808080u);
#endif
}

// The value of a code, exactly.
__device__ __forceinline__ float f32_from_e4m3(uint32_t code) {
    const uint32_t sign = (code & 0x80u) << 24;
    const uint32_t magnitude = code & 0x7fu;
    if (magnitude == 0x7fu) {
        return __uint_as_float(sign | 0x7fc00000u);
    }
    // As an f32 whose exponent is 120 too small; the multiplication by 2^120 is exact and makes subnormals normal.
    return __uint_as_float(sign | magnitude << 20) * __uint_as_float((127u + 120u) << 23);
}

// ---- Scales of a block of E4M3 -----------------------------------------------------------------------------------------

enum ScalePolicy : uint32_t {
    SCALE_F32 = 0,                // s = max(amax, 1e-4) / 448, r = 1 / s
    SCALE_POWER_OF_TWO = 1,       // s = 2^ceil(log2(max(amax, 1e-4) / 448)), r = 1 / s, exact
    SCALE_TRANSFORMER_ENGINE = 2, // r = 448 / amax (1 when amax is 0, at most the largest f32), s = 1 / r
};

struct Scale {
    float scale;      // what a code is multiplied by to give the value
    float reciprocal; // what a value is multiplied by to give the code
};

constexpr float F32_MAX = 3.402823466e+38f;

// `amax` is not NaN; an infinity counts as the largest f32. Divisions round as IEEE 754 asks.
__device__ __forceinline__ Scale scale_from_amax(float amax, uint32_t policy) {
    amax = fminf(amax, F32_MAX);
    if (policy == SCALE_TRANSFORMER_ENGINE) {
        const float reciprocal = amax == 0.0f ? 1.0f : fminf(__fdiv_rn(E4M3_MAX, amax), F32_MAX);
        return {__fdiv_rn(1.0f, reciprocal), reciprocal};
    }
    const float scale = __fdiv_rn(fmaxf(amax, 1e-4f), E4M3_MAX);
    if (policy == SCALE_POWER_OF_TWO) {
        // The exponent, one more unless the mantissa is zero; 1e-4 keeps it far from the ends of the range.
        const uint32_t bits = __float_as_uint(scale);
        const uint32_t exponent = (bits >> 23) + ((bits & 0x7fffffu) != 0 ? 1u : 0u);
        return {__uint_as_float(exponent << 23), __uint_as_float((254u - exponent) << 23)};
    }
    return {scale, __fdiv_rn(1.0f, scale)};
}

} // namespace convert
