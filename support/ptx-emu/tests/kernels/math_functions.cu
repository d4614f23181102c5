// archs: sm_90a
//
// CUDA's mathematical functions and integer intrinsics, one kernel each: what they compile to uses most of the arithmetic there is (range
// reduction in integers of many words, conversions of every kind, fused multiply-adds in directed roundings). Every kernel: out[i] =
// function(a[i], ...), one block, any number of threads.

#include <cstdint>

#define ONE(name, type) \
    extern "C" __global__ void m_##name(type* out, const type* a) { out[threadIdx.x] = name(a[threadIdx.x]); }
#define TWO(name, type) \
    extern "C" __global__ void m_##name(type* out, const type* a, const type* b) { \
        out[threadIdx.x] = name(a[threadIdx.x], b[threadIdx.x]); \
    }

ONE(sinf, float)
ONE(cosf, float)
ONE(tanf, float)
ONE(expf, float)
ONE(exp10f, float)
ONE(expm1f, float)
ONE(logf, float)
ONE(log10f, float)
ONE(log1pf, float)
ONE(cbrtf, float)
ONE(atanf, float)
ONE(asinf, float)
ONE(sinhf, float)
ONE(tanhf, float)
ONE(rsqrtf, float)
ONE(rintf, float)
ONE(roundf, float)
TWO(powf, float)
TWO(atan2f, float)
TWO(hypotf, float)
TWO(fmodf, float)

ONE(sin, double)
ONE(exp, double)
ONE(log, double)
ONE(sqrt, double)
ONE(cbrt, double)
ONE(atan, double)
ONE(tanh, double)
ONE(rsqrt, double)
ONE(round, double)
TWO(pow, double)
TWO(fmod, double)

#define INTEGERS(name, type, expression) \
    extern "C" __global__ void i_##name(type* out, const type* pa, const type* pb) { \
        const type a = pa[threadIdx.x], b = pb[threadIdx.x]; \
        out[threadIdx.x] = expression; \
    }

INTEGERS(divide_s64, int64_t, a / b)
INTEGERS(remainder_u64, uint64_t, a % b)
INTEGERS(mulhi_s64, int64_t, __mul64hi(a, b))
INTEGERS(divide_s16, int16_t, static_cast<int16_t>(a / b))
INTEGERS(saturating_byte, uint8_t, static_cast<uint8_t>(a + b > 255 ? 255 : a + b))
INTEGERS(rotate, uint32_t, __funnelshift_l(a, a, b))
INTEGERS(bytes, uint32_t, __byte_perm(a, b, 0x6172))
INTEGERS(average, uint32_t, __vavgu4(a, b))
INTEGERS(differences, uint32_t, __vsadu4(a, b))
INTEGERS(bit_mix, uint32_t, __brev(a) ^ __popc(b) ^ __clz(a) << 8 ^ __ffs(b) << 16)
INTEGERS(wide_mix, uint64_t, __brevll(a) ^ __popcll(b) ^ static_cast<uint64_t>(__clzll(a)) << 8 ^ static_cast<uint64_t>(__ffsll(b)) << 16)

// 128 bits as two words each, the lower first.
extern "C" __global__ void i_wide_division(uint64_t* out, const uint64_t* pa, const uint64_t* pb) {
    const unsigned i = 2 * threadIdx.x;
    const unsigned __int128 a = static_cast<unsigned __int128>(pa[i + 1]) << 64 | pa[i];
    const unsigned __int128 b = static_cast<unsigned __int128>(pb[i + 1]) << 64 | pb[i];
    const unsigned __int128 quotient = a / b, rest = a - quotient * b, mixed = (quotient << 7) + (rest >> 3);
    out[i] = static_cast<uint64_t>(mixed);
    out[i + 1] = static_cast<uint64_t>(mixed >> 64);
}

// Through every pair of types: float to integers and back.
extern "C" __global__ void i_conversions(double* out, const double* pa) {
    const double a = pa[threadIdx.x];
    const float f = static_cast<float>(a);
    out[threadIdx.x] = static_cast<double>(static_cast<int8_t>(static_cast<int>(f))) + static_cast<double>(static_cast<uint16_t>(a)) +
                       static_cast<double>(static_cast<int64_t>(f)) + static_cast<float>(static_cast<uint64_t>(a)) +
                       static_cast<double>(static_cast<uint32_t>(f)) + static_cast<float>(static_cast<int32_t>(a));
}
