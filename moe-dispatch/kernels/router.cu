// archs: sm_80
//
// The router: from logits to each token's experts and weights. Kernels router_64, router_256 and router_512, for up to so many experts.
//
// Bits: those of the CPU's `route`: scores by the same exponential in the same operations (range reduction in two steps, a polynomial with fused
// multiply-adds, two products with powers of two), IEEE additions and divisions in the same order. Selection is by score + bias; with fewer kept
// groups than groups, a group's score is the sum of its `group_scores` best of these, and experts of other groups are out. Ties go to the lower index.
// Weights are scores, divided by (their sum + 1e-20) if `normalize`, times `factor`.
//
// A token with a logit, or a score with its bias, that is not finite gets experts of 2^32 - 1 and weights of 0, and `status` says so.
//
// Launch: 128 threads, a warp for each token: ceil(tokens / 4) blocks, no dynamic shared memory.

#include "ptx.cuh"

// Shared with the host: repr(C), 96 bytes.
struct RouterParams {
    const float* logits;     //  0: [tokens, num_experts]
    const float* bias;       //  8: [num_experts], or null for zeros
    uint32_t* indices;       // 16: [tokens, top_k], best first
    float* weights;          // 24: [tokens, top_k]
    float* scores;           // 32: [tokens, num_experts], or null
    uint32_t* status;        // 40: one word, zero at first: 1 + a token with a value that is not finite
    uint32_t tokens;         // 48
    uint32_t num_experts;    // 52
    uint32_t top_k;          // 56: at most 32, and at most the experts of the kept groups
    uint32_t groups;         // 60: a divisor of num_experts
    uint32_t kept_groups;    // 64: at least 1
    uint32_t group_scores;   // 68: at least 1, at most the experts of a group
    uint32_t softmax;        // 72: 0: sigmoid
    uint32_t normalize;      // 76: 0 or 1
    uint32_t factor;         // 80: the bits of an f32
    uint32_t reserved[3];    // 84: zero
};
static_assert(sizeof(RouterParams) == 96, "the layout that the host writes");

namespace {

constexpr uint32_t ALL = 0xffffffffu;
constexpr uint32_t WARPS = 4;
constexpr uint32_t SUM_LANES = 16; // lanes of the CPU's sums

// e^x, at most 1 ulp from it, with the bits of the CPU's: x = n ln 2 + r, a polynomial of degree 6 in r, times 2^n in two steps.
__device__ __forceinline__ float exp_fixed(float x) {
    constexpr float ROUND = 12582912.0f; // 1.5 * 2^23: adding and subtracting it rounds to an integer
    constexpr float LOG2_E = 1.44269504088896341f;
    constexpr float LN2_HIGH = 0.69314575f, LN2_LOW = 1.4286068e-6f;
    x = fmaxf(-105.0f, fminf(89.0f, x));
    const float n = __fmaf_rn(x, LOG2_E, ROUND) - ROUND;
    float r = __fmaf_rn(n, -LN2_HIGH, x);
    r = __fmaf_rn(n, -LN2_LOW, r);
    float p = 1.3814465e-3f;
    p = __fmaf_rn(p, r, 8.368781e-3f);
    p = __fmaf_rn(p, r, 4.1668393e-2f);
    p = __fmaf_rn(p, r, 0.1666652f);
    p = __fmaf_rn(p, r, 0.49999994f);
    p = __fmaf_rn(p, r, 1.0f);
    p = __fmaf_rn(p, r, 1.0f);
    const float half = __fmaf_rn(n, 0.5f, ROUND) - ROUND;
    // The last bits of n + ROUND are the integer n.
    const auto power = [](float n) { return __uint_as_float((__float_as_uint(__fadd_rn(n, ROUND)) - __float_as_uint(ROUND) + 127) << 23); };
    return __fmul_rn(__fmul_rn(p, power(half)), power(n - half));
}

// An integer that orders as the number does; 0 is below every finite number.
__device__ __forceinline__ uint32_t key_of(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits < 0x80000000u ? bits | 0x80000000u : ~bits;
}
__device__ __forceinline__ float value_of(uint32_t key) {
    return __uint_as_float(key < 0x80000000u ? ~key : key & 0x7fffffffu);
}

__device__ __forceinline__ bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

// A candidate orders by key, then by lower position.
__device__ __forceinline__ unsigned long long candidate(uint32_t key, uint32_t position) {
    return static_cast<unsigned long long>(key) << 32 | ~position;
}
__device__ __forceinline__ unsigned long long larger(unsigned long long a, unsigned long long b) { return a > b ? a : b; }

// The best candidate of the warp, which every lane gets.
__device__ __forceinline__ unsigned long long best_of_warp(unsigned long long mine) {
    const uint32_t key = ptx::redux_sync_max_u32(static_cast<uint32_t>(mine >> 32), ALL);
    const uint32_t low = static_cast<uint32_t>(mine >> 32) == key ? static_cast<uint32_t>(mine) : 0;
    return static_cast<unsigned long long>(key) << 32 | ptx::redux_sync_max_u32(low, ALL);
}

// Scores of softmax, from the logits in `x`; expert r * 32 + lane in x[r]. The order of the CPU's sum: 16 lanes go through whole runs of 16, are
// added in a tree, and the rest follows one by one. `exps` [experts] is scratch of this warp's.
template <uint32_t REGISTERS>
__device__ __forceinline__ void softmax(float (&x)[REGISTERS], uint32_t experts, float* exps) {
    const uint32_t lane = threadIdx.x % 32;
    float top = -INFINITY;
#pragma unroll
    for (uint32_t r = 0; r < REGISTERS; ++r) {
        top = r * 32 + lane < experts ? fmaxf(top, x[r]) : top;
    }
#pragma unroll
    for (uint32_t distance = 16; distance > 0; distance /= 2) {
        top = fmaxf(top, __shfl_xor_sync(ALL, top, distance));
    }
    const uint32_t whole = experts / SUM_LANES * SUM_LANES;
    float sum = 0.0f;
#pragma unroll
    for (uint32_t r = 0; r < REGISTERS; ++r) {
        x[r] = exp_fixed(x[r] - top);
        if (r * 32 + lane < experts) {
            exps[r * 32 + lane] = x[r];
        }
        const float upper = __shfl_xor_sync(ALL, x[r], SUM_LANES);
        // Lanes 0 to 15 count.
        sum = r * 32 < whole ? __fadd_rn(sum, x[r]) : sum;
        sum = r * 32 + SUM_LANES < whole ? __fadd_rn(sum, upper) : sum;
    }
#pragma unroll
    for (uint32_t half = SUM_LANES / 2; half > 0; half /= 2) {
        sum = __fadd_rn(sum, __shfl_xor_sync(ALL, sum, half));
    }
    __syncwarp();
    float rest = 0.0f;
    for (uint32_t i = whole; i < experts; ++i) {
        rest = __fadd_rn(rest, exps[i]);
    }
    __syncwarp();
    const float total = __shfl_sync(ALL, __fadd_rn(sum, rest), 0);
#pragma unroll
    for (uint32_t r = 0; r < REGISTERS; ++r) {
        x[r] = __fdiv_rn(x[r], total);
    }
}

// Keeps the best groups: the keys of the others become 0. `keys` [experts] and `group_keys` [groups] are this warp's.
__device__ __forceinline__ void keep_groups(const RouterParams& p, const uint32_t* keys, uint32_t* group_keys) {
    const uint32_t lane = threadIdx.x % 32, size = p.num_experts / p.groups;
    // So many lanes for a group, a power of two.
    uint32_t width = 32;
    while (width > 1 && width * p.groups > 32) {
        width /= 2;
    }
    for (uint32_t first = 0; first < p.groups; first += 32 / width) {
        const uint32_t group = first + lane / width;
        float score = 0.0f;
        unsigned long long last = ~0ull;
        for (uint32_t taken = 0; taken < p.group_scores; ++taken) {
            unsigned long long best = 0;
            for (uint32_t i = lane % width; group < p.groups && i < size; i += width) {
                const unsigned long long one = candidate(keys[group * size + i], i);
                best = one < last ? larger(best, one) : best;
            }
            for (uint32_t distance = width / 2; distance > 0; distance /= 2) {
                best = larger(best, __shfl_xor_sync(ALL, best, distance));
            }
            score = __fadd_rn(score, value_of(static_cast<uint32_t>(best >> 32)));
            last = best;
        }
        if (group < p.groups && lane % width == 0) {
            group_keys[group] = key_of(score);
        }
    }
    __syncwarp();
    for (uint32_t taken = 0; taken < p.kept_groups; ++taken) {
        unsigned long long best = 0;
        for (uint32_t group = lane; group < p.groups; group += 32) {
            best = larger(best, candidate(group_keys[group], group));
        }
        best = best_of_warp(best);
        __syncwarp();
        if (lane == 0) {
            // A finite score is never 0: it marks what is kept.
            group_keys[~static_cast<uint32_t>(best)] = 0;
        }
        __syncwarp();
    }
}

template <uint32_t REGISTERS>
__device__ __forceinline__ void route(const RouterParams& p) {
    __shared__ float all_scores[WARPS][REGISTERS * 32];
    __shared__ uint32_t all_keys[WARPS][REGISTERS * 32], all_group_keys[WARPS][REGISTERS * 32];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, experts = p.num_experts;
    const uint64_t token = static_cast<uint64_t>(blockIdx.x) * WARPS + warp;
    if (token >= p.tokens) {
        return;
    }
    float x[REGISTERS];
    bool good = true;
#pragma unroll
    for (uint32_t r = 0; r < REGISTERS; ++r) {
        const uint32_t expert = r * 32 + lane;
        x[r] = expert < experts ? ptx::ld_global_nc_f32(p.logits + token * experts + expert) : 0.0f;
        good = good && is_finite(x[r]);
    }
    if (p.softmax != 0) {
        softmax(x, experts, all_scores[warp]);
    } else {
#pragma unroll
        for (uint32_t r = 0; r < REGISTERS; ++r) {
            x[r] = __fdiv_rn(1.0f, __fadd_rn(1.0f, exp_fixed(0.0f - x[r])));
        }
    }
    uint32_t keys[REGISTERS];
    float* const scores = all_scores[warp];
#pragma unroll
    for (uint32_t r = 0; r < REGISTERS; ++r) {
        const uint32_t expert = r * 32 + lane;
        keys[r] = 0;
        if (expert < experts) {
            const float biased = __fadd_rn(x[r], p.bias == nullptr ? 0.0f : ptx::ld_global_nc_f32(p.bias + expert));
            good = good && is_finite(biased);
            keys[r] = key_of(biased);
            scores[expert] = x[r];
            all_keys[warp][expert] = keys[r];
            if (p.scores != nullptr) {
                p.scores[token * experts + expert] = x[r];
            }
        }
    }
    const uint64_t at = token * p.top_k + lane;
    if (!__all_sync(ALL, good)) {
        if (lane < p.top_k) {
            p.indices[at] = 0xffffffffu;
            p.weights[at] = 0.0f;
        }
        if (lane == 0) {
            ptx::st_relaxed_gpu_global(p.status, static_cast<uint32_t>(token) + 1);
        }
        return;
    }
    __syncwarp();
    if (p.kept_groups < p.groups) {
        keep_groups(p, all_keys[warp], all_group_keys[warp]);
        const uint32_t size = experts / p.groups;
#pragma unroll
        for (uint32_t r = 0; r < REGISTERS; ++r) {
            const uint32_t expert = r * 32 + lane;
            if (expert < experts && all_group_keys[warp][expert / size] != 0) {
                keys[r] = 0;
            }
        }
    }
    uint32_t mine = 0;
    for (uint32_t taken = 0; taken < p.top_k; ++taken) {
        unsigned long long best = candidate(keys[0], lane);
#pragma unroll
        for (uint32_t r = 1; r < REGISTERS; ++r) {
            best = larger(best, candidate(keys[r], r * 32 + lane));
        }
        const uint32_t expert = ~static_cast<uint32_t>(best_of_warp(best));
        mine = lane == taken ? expert : mine;
#pragma unroll
        for (uint32_t r = 0; r < REGISTERS; ++r) {
            keys[r] = r * 32 + lane == expert ? 0 : keys[r];
        }
    }
    float weight = scores[mine];
    if (p.normalize != 0) {
        float sum = 0.0f;
        for (uint32_t i = 0; i < p.top_k; ++i) {
            sum = __fadd_rn(sum, __shfl_sync(ALL, weight, i));
        }
        weight = __fdiv_rn(weight, __fadd_rn(sum, 1e-20f));
    }
    if (lane < p.top_k) {
        p.indices[at] = mine;
        p.weights[at] = __fmul_rn(weight, __uint_as_float(p.factor));
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(WARPS * 32) router_64(const __grid_constant__ RouterParams p) { route<2>(p); }
extern "C" __global__ void __launch_bounds__(WARPS * 32) router_256(const __grid_constant__ RouterParams p) { route<8>(p); }
extern "C" __global__ void __launch_bounds__(WARPS * 32, 4) router_512(const __grid_constant__ RouterParams p) { route<16>(p); }
