// archs: sm_80
//
// Expert-major rows back to tokens: for each token the weighted sum of its experts' rows. Kernels unpermute_FROM_TO, each of bf16 and f32.
//
// Bits: a leaf is round(weight * row) in f32; leaves are added in f32 in the fixed binary tree over the experts (inner nodes of height h cover 2^h
// experts, beginning at a multiple of 2^h; a node with one side present is that side); bf16 results are rounded once, nearest even. No
// multiplication is fused with an addition. A token without rows becomes zeros.
//
// A choice is masked out where its expert is negative. A choice without a row, and an expert that a token names again, are left out, and
// `status` says so.
//
// Launch: 128 threads, ceil(tokens * pieces / 4) blocks, (top_k - 1) * 128 * (32 for bf16 rows, 16 for f32 rows) bytes of dynamic shared
// memory, where sums wait for their right sides. A piece is 2048 bytes of a row.
//
// Roofline: memory; each row is read once, past L1 and first to leave L2.

#include "ep_combine.cuh"

// Shared with the host: repr(C), 96 bytes.
struct UnpermuteParams {
    const uint8_t* rows;     //  0: [row_count, columns]: bf16 or f32
    const int32_t* map;      //  8: [tokens, top_k]: the row of each choice, or -1
    const int32_t* experts;  // 16: [tokens, top_k]: the expert of each choice; negative: none
    const float* weights;    // 24: [tokens, top_k]; null for weights of 1
    uint8_t* out;            // 32: [tokens, columns]: bf16 or f32
    uint32_t* status;        // 40: [2], zero at first: 1 + the token that has a choice without a row; that names an expert twice
    uint64_t row_stride;     // 48: bytes, a multiple of 16
    uint64_t out_stride;     // 56: bytes, a multiple of 16
    uint32_t tokens;         // 64
    uint32_t top_k;          // 68: at most 16
    uint32_t columns;        // 72: a multiple of 8
    uint32_t pieces;         // 76: of a row
    uint32_t row_count;      // 80
    uint32_t reserved[3];    // 84: zero
};
static_assert(sizeof(UnpermuteParams) == 96, "the layout that the host writes");

namespace {

using ep::ALL;
using ptx::U32x4;

constexpr uint32_t THREADS = 128;
constexpr uint32_t STEPS = 4; // of 512 bytes: a piece
constexpr uint32_t AHEAD = 4; // rows in flight
enum Status : uint32_t { STATUS_ROW = 0, STATUS_TWICE = 1 };

// The token's terms, one a lane; gives their number.
__device__ __forceinline__ uint32_t terms_of(const UnpermuteParams& p, uint32_t token, ep::Term& term) {
    const uint32_t lane = threadIdx.x % 32;
    const uint64_t at = static_cast<uint64_t>(token) * p.top_k + lane;
    const int32_t expert = lane < p.top_k ? p.experts[at] : -1;
    bool present = expert >= 0;
    term = {nullptr, 1.0f, 0};
    if (present) {
        const int32_t row = p.map[at];
        if (row >= 0 && static_cast<uint32_t>(row) < p.row_count) {
            term.row = p.rows + static_cast<uint64_t>(row) * p.row_stride;
        } else {
            present = false;
            ptx::st_relaxed_gpu_global(p.status + STATUS_ROW, token + 1);
        }
        if (p.weights != nullptr) {
            term.weight = p.weights[at];
        }
    }
    bool twice = false;
    for (uint32_t i = 0; i + 1 < p.top_k; ++i) {
        const int32_t other = __shfl_sync(ALL, present ? expert : -1, i);
        twice = twice || (present && i < lane && other == expert);
    }
    if (twice) {
        present = false;
        ptx::st_relaxed_gpu_global(p.status + STATUS_TWICE, token + 1);
    }
    return ep::make_terms(term, present, static_cast<uint32_t>(expert), p.top_k);
}

// The sum of some terms, to `to`. VALUES: of 16 bytes of a row: 8 for bf16, 4 for f32.
template <uint32_t VALUES, bool TO_BF16>
__device__ __forceinline__ void unpermute(const UnpermuteParams& p) {
    extern __shared__ U32x4 stack[]; // [top_k - 1, VALUES / 4, THREADS]
    constexpr uint32_t QUADS = VALUES / 4;
    const uint64_t warp = static_cast<uint64_t>(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32;
    if (warp >= static_cast<uint64_t>(p.tokens) * p.pieces) {
        return;
    }
    const uint32_t token = static_cast<uint32_t>(warp / p.pieces), piece = static_cast<uint32_t>(warp % p.pieces);
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t mine = ptx::shared_address(stack + threadIdx.x);
    const uint64_t policy = ptx::createpolicy_fractional_L2_evict_first();
    ep::Term term;
    const uint32_t terms = terms_of(p, token, term);
    uint8_t* const to = p.out + token * p.out_stride;
    for (uint32_t step = piece * STEPS; step < (piece + 1) * STEPS && step * 32 * VALUES < p.columns; ++step) {
        const uint32_t column = (step * 32 + lane) * VALUES;
        const bool is_in = column < p.columns;
        float sum[VALUES] = {};
        uint32_t depth = 0;
        for (uint32_t first = 0; first < terms; first += AHEAD) {
            U32x4 x[AHEAD] = {};
#pragma unroll
            for (uint32_t i = 0; i < AHEAD; ++i) {
                const uint32_t from = min(first + i, terms - 1);
                const auto* const row = reinterpret_cast<const uint8_t*>(__shfl_sync(ALL, reinterpret_cast<uint64_t>(term.row), from));
                if (is_in && first + i < terms) {
                    x[i] = ptx::ld_global_nc_L1_no_allocate_L2_cache_hint_v4_u32(row + column * (16 / VALUES), policy);
                }
            }
#pragma unroll
            for (uint32_t i = 0; i < AHEAD; ++i) {
                const uint32_t from = first + i;
                const float weight = __shfl_sync(ALL, term.weight, from % 32);
                const uint32_t adds = __shfl_sync(ALL, term.adds, from % 32);
                if (from >= terms) {
                    break;
                }
                if (from > 0) {
#pragma unroll
                    for (uint32_t q = 0; q < QUADS; ++q) {
                        ptx::st_shared_v4_u32(mine + (depth * QUADS + q) * THREADS * 16,
                                              {__float_as_uint(sum[4 * q]), __float_as_uint(sum[4 * q + 1]), __float_as_uint(sum[4 * q + 2]),
                                               __float_as_uint(sum[4 * q + 3])});
                    }
                    ++depth;
                }
                const uint32_t words[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
#pragma unroll
                for (uint32_t e = 0; e < VALUES; ++e) {
                    const float value = VALUES == 4  ? __uint_as_float(words[e % 4])
                                        : e % 2 == 0 ? convert::f32_from_bf16_low(words[e / 2])
                                                     : convert::f32_from_bf16_high(words[e / 2]);
                    sum[e] = __fmul_rn(weight, value);
                }
                for (uint32_t add = 0; add < adds; ++add) {
                    --depth;
#pragma unroll
                    for (uint32_t q = 0; q < QUADS; ++q) {
                        const U32x4 left = ptx::ld_shared_v4_u32(mine + (depth * QUADS + q) * THREADS * 16);
                        sum[4 * q] = __fadd_rn(__uint_as_float(left.x), sum[4 * q]);
                        sum[4 * q + 1] = __fadd_rn(__uint_as_float(left.y), sum[4 * q + 1]);
                        sum[4 * q + 2] = __fadd_rn(__uint_as_float(left.z), sum[4 * q + 2]);
                        sum[4 * q + 3] = __fadd_rn(__uint_as_float(left.w), sum[4 * q + 3]);
                    }
                }
            }
        }
        if (!is_in) {
            continue;
        }
        if constexpr (TO_BF16 && VALUES == 8) {
            ptx::st_global_L1_no_allocate_v4_u32(to + column * 2,
                                                 {ptx::cvt_rn_bf16x2_f32(sum[0], sum[1]), ptx::cvt_rn_bf16x2_f32(sum[2], sum[3]),
                                                  ptx::cvt_rn_bf16x2_f32(sum[4], sum[5]), ptx::cvt_rn_bf16x2_f32(sum[6], sum[7])});
        } else if constexpr (TO_BF16) {
            ptx::st_global_v2_u32(to + column * 2, {ptx::cvt_rn_bf16x2_f32(sum[0], sum[1]), ptx::cvt_rn_bf16x2_f32(sum[2], sum[3])});
        } else {
#pragma unroll
            for (uint32_t q = 0; q < QUADS; ++q) {
                ptx::st_global_L1_no_allocate_v4_u32(to + column * 4 + q * 16,
                                                     {__float_as_uint(sum[4 * q]), __float_as_uint(sum[4 * q + 1]),
                                                      __float_as_uint(sum[4 * q + 2]), __float_as_uint(sum[4 * q + 3])});
            }
        }
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(THREADS) unpermute_bf16_bf16(const __grid_constant__ UnpermuteParams p) { unpermute<8, true>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) unpermute_bf16_f32(const __grid_constant__ UnpermuteParams p) { unpermute<8, false>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) unpermute_f32_bf16(const __grid_constant__ UnpermuteParams p) { unpermute<4, true>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) unpermute_f32_f32(const __grid_constant__ UnpermuteParams p) { unpermute<4, false>(p); }
