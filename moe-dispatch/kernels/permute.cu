// archs: sm_80 sm_90a
//
// Rows from the order of tokens to expert-major order. Three kernels:
//
//   permute_rows           rows of any type, as bytes
//   permute_quantize_bf16  bf16 to E4M3 with a scale for each 128 values
//   permute_quantize_f32   f32 to E4M3 likewise
//
// A token's row is read once, and quantised once, and written to each of its places (map). Padding rows (gather) become zeros, with the scale
// of zeros; rows behind the last one are left alone.
//
// Bits: s = max(amax, 1e-4) / 448, or the power of two at or above that; a code is the E4M3 nearest to x * (1 / s) (both rounded to f32),
// ties to even, saturating, NaN kept with its sign. amax is the block's largest magnitude; NaN does not count, an infinity counts as the largest f32.
//
// Launch: 256 threads, ceil((tokens * pieces + padding_warps) / 8) blocks, no shared memory. A piece is 2048 bytes of a row, or 1024 values of bf16,
// 512 of f32; padding_warps is ceil(capacity / 32), or 0 when the alignment is 1.
//
// Roofline: memory. Rows pass L1 by; what is read leaves L2 first, what is written may stay there for the product that follows.

#include "convert.cuh"
#include "reduce.cuh"

using convert::Scale;
using ptx::U32x2;
using ptx::U32x4;

// Shared with the host: repr(C), 128 bytes.
struct PermuteParams {
    const uint8_t* rows;          //   0: [tokens, width]: bytes, bf16 or f32
    const int32_t* map;           //   8: [tokens, top_k]: the row of each choice, or -1
    const uint32_t* gather;       //  16: [capacity]: 2^32 - 1 for padding
    const uint32_t* row_count;    //  24: one word: rows, padding included; at most capacity
    uint8_t* out;                 //  32: [capacity, width]: bytes, or E4M3
    float* scales;                //  40: not read by permute_rows
    uint64_t row_stride;          //  48: bytes, a multiple of 16
    uint64_t out_stride;          //  56: bytes, a multiple of 16
    uint64_t scale_row_stride;    //  64: elements: the scale of row i and block b is scales[i * scale_row_stride + b * scale_block_stride]
    uint64_t scale_block_stride;  //  72
    uint32_t tokens;              //  80
    uint32_t top_k;               //  84: at most 32
    uint32_t width;               //  88: bytes, a multiple of 16; or values, a multiple of 128
    uint32_t pieces;              //  92: of a row
    uint32_t capacity;            //  96
    uint32_t padding_warps;       // 100
    uint32_t policy;              // 104: convert::ScalePolicy
    uint32_t reserved[5];         // 108: zero
};
static_assert(sizeof(PermuteParams) == 128, "the layout that the host writes");

namespace {

constexpr uint32_t ALL = 0xffffffffu;
constexpr uint32_t THREADS = 256;
constexpr uint32_t LOADS = 4; // of 16 bytes, in flight for each lane
constexpr uint32_t BLOCK = 128;
constexpr uint32_t PADDING = 0xffffffffu;

// What a warp does: a piece of a token, or the padding among 32 rows.
struct Work {
    bool is_padding;
    uint32_t token, piece; // of a token
    uint64_t first;        // of rows that may be padding
    bool none;
};

__device__ __forceinline__ Work work_of(const PermuteParams& p) {
    const uint64_t warp = static_cast<uint64_t>(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32;
    const uint64_t of_tokens = static_cast<uint64_t>(p.tokens) * p.pieces;
    Work work = {};
    if (warp < of_tokens) {
        work.token = static_cast<uint32_t>(warp / p.pieces);
        work.piece = static_cast<uint32_t>(warp % p.pieces);
    } else {
        work.is_padding = true;
        work.first = (warp - of_tokens) * 32;
        work.none = warp - of_tokens >= p.padding_warps;
    }
    return work;
}

// The places of a token, one a lane.
struct Places {
    int32_t mine;
    uint32_t all; // the lanes that have one
};

// All lanes are here.
__device__ __forceinline__ Places places_of(const PermuteParams& p, uint32_t token) {
    const uint32_t lane = threadIdx.x % 32;
    Places places = {-1, 0};
    if (lane < p.top_k) {
        places.mine = p.map[static_cast<uint64_t>(token) * p.top_k + lane];
    }
    // A map of other makings cannot lead outside.
    places.all = __ballot_sync(ALL, places.mine >= 0 && static_cast<uint32_t>(places.mine) < p.capacity);
    return places;
}

// Calls `write(row)` for each place of a token. All lanes are here.
template <class Write>
__device__ __forceinline__ void for_each_place(const Places& places, const Write& write) {
    for (uint32_t left = places.all; left != 0; left &= left - 1) {
        write(static_cast<uint64_t>(static_cast<uint32_t>(__shfl_sync(ALL, places.mine, __ffs(left) - 1))));
    }
}

// Calls `clear(row)` for each padding row of 32.
template <class Clear>
__device__ __forceinline__ void for_each_padding(const PermuteParams& p, uint64_t first, const Clear& clear) {
    const uint64_t mine = first + threadIdx.x % 32;
    uint32_t left = __ballot_sync(ALL, mine < min(*p.row_count, p.capacity) && p.gather[mine] == PADDING);
    while (left != 0) {
        const uint32_t at = __ffs(left) - 1;
        left &= left - 1;
        clear(first + at);
    }
}

__device__ __forceinline__ void clear_row(const PermuteParams& p, uint64_t row) {
    for (uint32_t byte = threadIdx.x % 32 * 16; byte < p.width; byte += 512) {
        ptx::st_global_L1_no_allocate_v4_u32(p.out + row * p.out_stride + byte, {0, 0, 0, 0});
    }
}

__device__ __forceinline__ void clear_quantized_row(const PermuteParams& p, uint64_t row) {
    clear_row(p, row);
    const Scale s = convert::scale_from_amax(0.0f, p.policy);
    for (uint32_t block = threadIdx.x % 32; block < p.width / BLOCK; block += 32) {
        p.scales[row * p.scale_row_stride + block * p.scale_block_stride] = s.scale;
    }
}

struct MaxPairs {
    __device__ __forceinline__ uint32_t operator()(uint32_t a, uint32_t b) const { return ptx::max_bf16x2(a, b); }
};

__device__ __forceinline__ float product(uint32_t pair, int half, float r) {
    return __fmul_rn(half == 0 ? convert::f32_from_bf16_low(pair) : convert::f32_from_bf16_high(pair), r);
}

// 8 bf16 of a block whose 16 lanes are neighbours.
__device__ __forceinline__ U32x2 encode(U32x4 x, uint32_t policy, float& scale) {
    const uint32_t low = ptx::max_bf16x2(ptx::abs_bf16x2(x.x), ptx::abs_bf16x2(x.y));
    const uint32_t high = ptx::max_bf16x2(ptx::abs_bf16x2(x.z), ptx::abs_bf16x2(x.w));
    // A NaN is left only where both were: the maximum with zero drops it.
    const uint32_t amax = reduce::warp<16>(ptx::max_bf16x2(ptx::max_bf16x2(low, high), 0), MaxPairs{});
    const Scale s = convert::scale_from_amax(fmaxf(convert::f32_from_bf16_low(amax), convert::f32_from_bf16_high(amax)), policy);
    scale = s.scale;
    const float r = s.reciprocal;
    // Bytes 1 and 3 of each pair hold the signs.
    const uint32_t signs_low = ptx::prmt_b32(x.x, x.y, 0x7531), signs_high = ptx::prmt_b32(x.z, x.w, 0x7531);
    return {convert::e4m3x4_from_f32(product(x.x, 0, r), product(x.x, 1, r), product(x.y, 0, r), product(x.y, 1, r), signs_low),
            convert::e4m3x4_from_f32(product(x.z, 0, r), product(x.z, 1, r), product(x.w, 0, r), product(x.w, 1, r), signs_high)};
}

// 4 f32 of a block that the warp has.
__device__ __forceinline__ uint32_t encode_f32(U32x4 x, uint32_t policy, float& scale) {
    const float v[4] = {__uint_as_float(x.x), __uint_as_float(x.y), __uint_as_float(x.z), __uint_as_float(x.w)};
    // The last maximum drops a NaN that is alone.
    const auto magnitude = [](uint32_t bits) { return __uint_as_float(bits & 0x7fffffffu); };
    const float mine = fmaxf(fmaxf(fmaxf(magnitude(x.x), magnitude(x.y)), fmaxf(magnitude(x.z), magnitude(x.w))), 0.0f);
    const Scale s = convert::scale_from_amax(reduce::warp<32>(mine, reduce::Max{}), policy);
    scale = s.scale;
    const uint32_t signs = ptx::prmt_b32(ptx::prmt_b32(x.x, x.y, 0x0073), ptx::prmt_b32(x.z, x.w, 0x0073), 0x5410);
    return convert::e4m3x4_from_f32(__fmul_rn(v[0], s.reciprocal), __fmul_rn(v[1], s.reciprocal), __fmul_rn(v[2], s.reciprocal),
                                    __fmul_rn(v[3], s.reciprocal), signs);
}

// The 16 bytes of each load of this lane in a piece; zeros behind the row's end.
__device__ __forceinline__ void load_piece(U32x4 (&x)[LOADS], const PermuteParams& p, const Work& work, uint32_t bytes) {
    const uint64_t policy = ptx::createpolicy_fractional_L2_evict_first();
    const uint8_t* const row = p.rows + work.token * p.row_stride;
#pragma unroll
    for (uint32_t i = 0; i < LOADS; ++i) {
        const uint32_t byte = (work.piece * LOADS + i) * 512 + threadIdx.x % 32 * 16;
        x[i] = {0, 0, 0, 0};
        if (byte < bytes) {
            x[i] = ptx::ld_global_nc_L1_no_allocate_L2_cache_hint_v4_u32(row + byte, policy);
        }
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(THREADS) permute_rows(const __grid_constant__ PermuteParams p) {
    const Work work = work_of(p);
    if (work.none) {
        return;
    }
    if (work.is_padding) {
        for_each_padding(p, work.first, [&p](uint64_t row) { clear_row(p, row); });
        return;
    }
    const Places places = places_of(p, work.token);
    if (places.all == 0) {
        // Nobody may have written its row: a place behind those of a dispatch.
        return;
    }
    U32x4 x[LOADS];
    load_piece(x, p, work, p.width);
    for_each_place(places, [&](uint64_t row) {
        uint8_t* const to = p.out + row * p.out_stride;
#pragma unroll
        for (uint32_t i = 0; i < LOADS; ++i) {
            const uint32_t byte = (work.piece * LOADS + i) * 512 + threadIdx.x % 32 * 16;
            if (byte < p.width) {
                ptx::st_global_L1_no_allocate_v4_u32(to + byte, x[i]);
            }
        }
    });
}

extern "C" __global__ void __launch_bounds__(THREADS) permute_quantize_bf16(const __grid_constant__ PermuteParams p) {
    const Work work = work_of(p);
    if (work.none) {
        return;
    }
    if (work.is_padding) {
        for_each_padding(p, work.first, [&p](uint64_t row) { clear_quantized_row(p, row); });
        return;
    }
    const Places places = places_of(p, work.token);
    if (places.all == 0) {
        // Nobody may have written its row: a place behind those of a dispatch.
        return;
    }
    U32x4 x[LOADS];
    load_piece(x, p, work, p.width * 2);
    U32x2 codes[LOADS];
    float scales[LOADS];
#pragma unroll
    for (uint32_t i = 0; i < LOADS; ++i) {
        codes[i] = encode(x[i], p.policy, scales[i]);
    }
    const uint32_t lane = threadIdx.x % 32;
    for_each_place(places, [&](uint64_t row) {
#pragma unroll
        for (uint32_t i = 0; i < LOADS; ++i) {
            const uint32_t column = (work.piece * LOADS + i) * 256 + lane * 8;
            if (column < p.width) {
                ptx::st_global_v2_u32(p.out + row * p.out_stride + column, codes[i]);
                if (lane % 16 == 0) {
                    p.scales[row * p.scale_row_stride + column / BLOCK * p.scale_block_stride] = scales[i];
                }
            }
        }
    });
}

extern "C" __global__ void __launch_bounds__(THREADS) permute_quantize_f32(const __grid_constant__ PermuteParams p) {
    const Work work = work_of(p);
    if (work.none) {
        return;
    }
    if (work.is_padding) {
        for_each_padding(p, work.first, [&p](uint64_t row) { clear_quantized_row(p, row); });
        return;
    }
    const Places places = places_of(p, work.token);
    if (places.all == 0) {
        // Nobody may have written its row: a place behind those of a dispatch.
        return;
    }
    U32x4 x[LOADS];
    load_piece(x, p, work, p.width * 4);
    uint32_t codes[LOADS];
    float scales[LOADS];
#pragma unroll
    for (uint32_t i = 0; i < LOADS; ++i) {
        codes[i] = encode_f32(x[i], p.policy, scales[i]);
    }
    const uint32_t lane = threadIdx.x % 32;
    for_each_place(places, [&](uint64_t row) {
#pragma unroll
        for (uint32_t i = 0; i < LOADS; ++i) {
            const uint32_t column = (work.piece * LOADS + i) * BLOCK + lane * 4;
            if (column < p.width) {
                *reinterpret_cast<uint32_t*>(p.out + row * p.out_stride + column) = codes[i];
                if (lane == 0) {
                    p.scales[row * p.scale_row_stride + column / BLOCK * p.scale_block_stride] = scales[i];
                }
            }
        }
    });
}
