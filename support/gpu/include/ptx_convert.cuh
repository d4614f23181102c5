// Conversions and packed arithmetic (PTX ISA 9.0, sections 9.7.4 "Half precision" and 9.7.9 "cvt"). Part of ptx.cuh.
#pragma once

#include <cstdint>

namespace ptx {

// cvt with two sources puts the *first* source into the upper half; these wrappers take the lower one first.

// Two f32 to bf16, nearest even; NaN becomes 0x7fff. sm_80.
__device__ __forceinline__ uint32_t cvt_rn_bf16x2_f32(float low, float high) {
    uint32_t d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

// One f32 to bf16, nearest even. sm_80.
__device__ __forceinline__ uint16_t cvt_rn_bf16_f32(float x) {
    uint16_t d;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(d) : "f"(x));
    return d;
}

// Two f32 to f16, nearest even. sm_80.
__device__ __forceinline__ uint32_t cvt_rn_f16x2_f32(float low, float high) {
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

// One f16 to f32, exact.
__device__ __forceinline__ float cvt_f32_f16(uint16_t x) {
    float d;
    asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(x));
    return d;
}

// Two f32 to E4M3 (low byte: `low`), nearest even, saturating to +-448; NaN becomes 0x7f whatever its sign. sm_89.
__device__ __forceinline__ uint16_t cvt_rn_satfinite_e4m3x2_f32(float low, float high) {
    uint16_t d;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(d) : "f"(high), "f"(low));
    return d;
}

// Two f32 to E5M2 (low byte: `low`), nearest even, saturating to +-57344. sm_89.
__device__ __forceinline__ uint16_t cvt_rn_satfinite_e5m2x2_f32(float low, float high) {
    uint16_t d;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(d) : "f"(high), "f"(low));
    return d;
}

// Two E4M3 to f16, exact. sm_89.
__device__ __forceinline__ uint32_t cvt_rn_f16x2_e4m3x2(uint16_t x) {
    uint32_t d;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(d) : "h"(x));
    return d;
}

// Two E5M2 to f16, exact. sm_89.
__device__ __forceinline__ uint32_t cvt_rn_f16x2_e5m2x2(uint16_t x) {
    uint32_t d;
    asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(d) : "h"(x));
    return d;
}

// The magnitude of two bf16. sm_80.
__device__ __forceinline__ uint32_t abs_bf16x2(uint32_t x) {
    uint32_t d;
    asm("abs.bf16x2 %0, %1;" : "=r"(d) : "r"(x));
    return d;
}

// The larger of each pair of bf16; a NaN loses against a number. sm_80.
__device__ __forceinline__ uint32_t max_bf16x2(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

// Four bytes of `{b, a}` (bytes 7..4 from b, 3..0 from a), chosen by the nibbles of `selector`, lowest first.
__device__ __forceinline__ uint32_t prmt_b32(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}

// 2^x, at most 2 ulp from it; subnormal inputs and results kept.
__device__ __forceinline__ float ex2_approx_f32(float x) {
    float d;
    asm("ex2.approx.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}

// 2^x, at most 2 ulp from it; subnormal inputs and results become zero.
__device__ __forceinline__ float ex2_approx_ftz_f32(float x) {
    float d;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}

// log2(x), absolute error at most 2^-22 near 1.
__device__ __forceinline__ float lg2_approx_f32(float x) {
    float d;
    asm("lg2.approx.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}

// 1/x, at most 1 ulp from it.
__device__ __forceinline__ float rcp_approx_ftz_f32(float x) {
    float d;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}

} // namespace ptx
