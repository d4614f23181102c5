// archs: sm_80 sm_90a
//
// bf16 to E4M3 with a scale for each 128 values, for activations and gradients. Two kernels:
//
//   quantize_1x128                 x [rows, cols] -> codes [rows, cols], scales: one for each row and 128 columns
//   quantize_1x128_with_transpose  the same, and codes_t [cols, rows], scales_t: one for each column and 128 rows; both from x itself
//
// Bits: those of the CPU quantisers of this crate (`quantize_1x128`, `quantize_1x128_transposed`). amax is the block's largest
// magnitude (NaN does not count, an infinity counts as the largest f32); s and r follow from it by the policy; a code is the E4M3
// nearest to x * r (that product rounded to f32), ties to even, saturating, NaN kept with its sign. Blocks at the edges are
// smaller.
//
// Launch: 256 threads (x), grid (x only):
//   quantize_1x128                 ceil(ceil(rows / 4) * ceil(cols / 128) / 16) blocks, no shared memory
//   quantize_1x128_with_transpose  ceil(rows / 128) * ceil(cols / 128) blocks, 18944 bytes of dynamic shared memory
// rows, cols >= 1; the number of blocks below 2^31. Any row strides and alignments: addresses and strides that are multiples of
// 16 bytes (x), 8 bytes (codes) and 16 bytes (codes_t) take the vector path, others element by element; a block with fewer than 8
// columns left goes element by element too. Nothing outside [rows, cols] is read or written, paddings of rows included. On sm_90a
// dependents may be launched early (programmatic launch); the kernel itself waits for the grids that it depends on.
//
// Roofline: memory. Without transpose 2 + 1 + 4/128 bytes a value, with it 2 + 2 + 8/128: an H200 (4.8 TB/s, 132 SMs at 1.75 GHz)
// moves them in the time in which it issues 18 and 25 instructions a value. The E4M3 conversion of sm_90a is half an instruction
// a value, that of sm_80, in integers, about 12. Not measured on hardware.

#include "convert.cuh"
#include "reduce.cuh"

using convert::Scale;
using ptx::U32x2;
using ptx::U32x4;

// Shared with the host: repr(C), 128 bytes. Strides count elements. A scale of row i and block b of 128 columns goes to
// scales[i * scale_row_stride + b * scale_block_stride]: (ceil(cols / 128), 1) is row-major, (1, rows rounded up to 4) is what
// the GEMM's TMA reads. scales_t likewise: row i of codes_t, which is column i of x.
struct QuantizeParams {
    const uint16_t* x;            //   0: bf16 [rows, cols]
    uint8_t* codes;               //   8: E4M3 [rows, cols]
    float* scales;                //  16
    uint8_t* codes_t;             //  24: E4M3 [cols, rows]; not read by quantize_1x128, as the other fields of codes_t and scales_t
    float* scales_t;              //  32
    uint64_t x_stride;            //  40: from one row to the next, >= cols
    uint64_t codes_stride;        //  48: >= cols
    uint64_t scale_row_stride;    //  56
    uint64_t scale_block_stride;  //  64
    uint64_t codes_t_stride;      //  72: >= rows
    uint64_t scale_t_row_stride;  //  80
    uint64_t scale_t_block_stride; // 88
    uint32_t rows;                //  96
    uint32_t cols;                // 100
    uint32_t policy;              // 104: convert::ScalePolicy
    uint32_t reserved[5];         // 108: zero
};
static_assert(sizeof(QuantizeParams) == 128, "the layout that the host writes");

namespace {

constexpr uint32_t BLOCK = 128;          // values that share a scale
constexpr uint32_t THREADS = 256;
constexpr uint32_t LANES = 16;           // threads for one row of a block: 8 values each
constexpr uint32_t HALF_WARPS = THREADS / LANES;

__device__ __forceinline__ bool is_aligned(const void* pointer, uint64_t stride_bytes, uint64_t alignment) {
    return (reinterpret_cast<uintptr_t>(pointer) | stride_bytes) % alignment == 0;
}

// 8 bf16 from `x`, of which `left` (0 to 8) exist; the others are zero.
__device__ __forceinline__ U32x4 load8(const uint16_t* x, int32_t left, bool vectors) {
    if (vectors && left >= 8) {
        return ptx::ld_global_nc_L1_no_allocate_L2_256B_v4_u32(x);
    }
    // Rare: kept small.
    uint64_t low = 0, high = 0;
#pragma unroll 1
    for (int i = 0; i < left; ++i) {
        const uint64_t element = static_cast<uint64_t>(ptx::ld_global_nc_u16(x + i)) << (i % 4 * 16);
        (i < 4 ? low : high) |= element;
    }
    return {static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(high), static_cast<uint32_t>(high >> 32)};
}

// The first `left` (0 to 8) of 8 codes to `codes`.
__device__ __forceinline__ void store8(uint8_t* codes, int32_t left, bool vectors, U32x2 x) {
    if (vectors && left >= 8) {
        ptx::st_global_v2_u32(codes, x);
        return;
    }
    uint64_t rest = static_cast<uint64_t>(x.y) << 32 | x.x;
#pragma unroll 1
    for (int i = 0; i < left; ++i) {
        codes[i] = static_cast<uint8_t>(rest);
        rest >>= 8;
    }
}

// The largest magnitudes of the even and of the odd elements, packed; NaN does not count.
__device__ __forceinline__ uint32_t amax_pair(U32x4 x) {
    const uint32_t low = ptx::max_bf16x2(ptx::abs_bf16x2(x.x), ptx::abs_bf16x2(x.y));
    const uint32_t high = ptx::max_bf16x2(ptx::abs_bf16x2(x.z), ptx::abs_bf16x2(x.w));
    // A NaN is left only where both were: the maximum with zero drops it.
    return ptx::max_bf16x2(ptx::max_bf16x2(low, high), 0);
}

struct MaxPairs {
    __device__ __forceinline__ uint32_t operator()(uint32_t a, uint32_t b) const { return ptx::max_bf16x2(a, b); }
};

__device__ __forceinline__ float larger_of_pair(uint32_t pair) {
    return fmaxf(convert::f32_from_bf16_low(pair), convert::f32_from_bf16_high(pair));
}

__device__ __forceinline__ float product(uint32_t pair, int half, float r) {
    return __fmul_rn(half == 0 ? convert::f32_from_bf16_low(pair) : convert::f32_from_bf16_high(pair), r);
}

// The codes of 8 values that share a scale.
__device__ __forceinline__ U32x2 encode8(U32x4 x, float r) {
    // Bytes 1 and 3 of each pair hold the signs.
    const uint32_t signs_low = ptx::prmt_b32(x.x, x.y, 0x7531);
    const uint32_t signs_high = ptx::prmt_b32(x.z, x.w, 0x7531);
    return {convert::e4m3x4_from_f32(product(x.x, 0, r), product(x.x, 1, r), product(x.y, 0, r), product(x.y, 1, r), signs_low),
            convert::e4m3x4_from_f32(product(x.z, 0, r), product(x.z, 1, r), product(x.w, 0, r), product(x.w, 1, r), signs_high)};
}

__device__ __forceinline__ void begin_dependent_launch() {
#if __CUDA_ARCH__ >= 900
    ptx::griddepcontrol_launch_dependents();
    ptx::griddepcontrol_wait();
#endif
}

} // namespace

// Half a warp takes 4 consecutive rows of a block of 128 columns: 4 loads in flight, and in the GEMM's layout one 16-byte store
// of scales.
extern "C" __global__ void __launch_bounds__(THREADS) quantize_1x128(const __grid_constant__ QuantizeParams p) {
    begin_dependent_launch();
    constexpr uint32_t ROWS = 4;
    const uint32_t blocks = (p.cols - 1) / BLOCK + 1;
    const uint64_t unit = static_cast<uint64_t>(blockIdx.x) * HALF_WARPS + threadIdx.x / LANES;
    const uint64_t group = unit / blocks;
    const uint32_t block = static_cast<uint32_t>(unit % blocks);
    const uint32_t lane = threadIdx.x % LANES;
    // Half warps past the end stay for the shuffles, with no row.
    const uint64_t first = group * ROWS;
    const uint32_t rows = first < p.rows ? min(ROWS, p.rows - static_cast<uint32_t>(first)) : 0;
    const uint32_t column = block * BLOCK + lane * 8;
    const int32_t left = column < p.cols ? static_cast<int32_t>(min(8u, p.cols - column)) : 0;
    const bool vector_loads = is_aligned(p.x, p.x_stride * 2, 16);
    const bool vector_stores = is_aligned(p.codes, p.codes_stride, 8);

    U32x4 x[ROWS];
#pragma unroll
    for (uint32_t i = 0; i < ROWS; ++i) {
        x[i] = load8(p.x + (first + i) * p.x_stride + column, i < rows ? left : 0, vector_loads);
    }
    float scales[ROWS];
#pragma unroll
    for (uint32_t i = 0; i < ROWS; ++i) {
        const uint32_t amax = reduce::warp<LANES>(amax_pair(x[i]), MaxPairs{});
        const Scale s = convert::scale_from_amax(larger_of_pair(amax), p.policy);
        scales[i] = s.scale;
        store8(p.codes + (first + i) * p.codes_stride + column, i < rows ? left : 0, vector_stores, encode8(x[i], s.reciprocal));
    }
    if (lane == 0) {
        float* out = p.scales + first * p.scale_row_stride + block * p.scale_block_stride;
        if (rows == ROWS && p.scale_row_stride == 1 && is_aligned(p.scales, p.scale_block_stride * 4, 16)) {
            ptx::st_global_v4_u32(out, {__float_as_uint(scales[0]), __float_as_uint(scales[1]), __float_as_uint(scales[2]),
                                        __float_as_uint(scales[3])});
        } else {
#pragma unroll
            for (uint32_t i = 0; i < ROWS; ++i) {
                if (i < rows) {
                    out[i * p.scale_row_stride] = scales[i];
                }
            }
        }
    }
}

// A block takes 128 rows of 128 columns, and reads them once: half warp h has rows 8h to 8h + 7, lane l of it columns 8l to 8l +
// 7.
extern "C" __global__ void __launch_bounds__(THREADS, 3) quantize_1x128_with_transpose(const __grid_constant__ QuantizeParams p) {
    // Shared memory: codes of the transposed tile, the warps' amax of each column, the columns' reciprocals.
    extern __shared__ __align__(16) uint8_t shared[];
    constexpr uint32_t TILE = 0, COLUMN_AMAX = BLOCK * BLOCK, RECIPROCALS = COLUMN_AMAX + THREADS / 32 * BLOCK * 2;
    const uint32_t base = ptx::shared_address(shared);

    begin_dependent_launch();
    constexpr uint32_t ROWS = 8;
    const uint32_t blocks = (p.cols - 1) / BLOCK + 1;
    const uint32_t row_block = blockIdx.x / blocks;
    const uint32_t block = blockIdx.x % blocks;
    const uint32_t half_warp = threadIdx.x / LANES;
    const uint32_t lane = threadIdx.x % LANES;
    const uint64_t first = static_cast<uint64_t>(row_block) * BLOCK + half_warp * ROWS;
    const uint32_t rows = first < p.rows ? min(ROWS, p.rows - static_cast<uint32_t>(first)) : 0;
    const uint32_t column = block * BLOCK + lane * 8;
    const int32_t left = column < p.cols ? static_cast<int32_t>(min(8u, p.cols - column)) : 0;
    const bool vector_loads = is_aligned(p.x, p.x_stride * 2, 16);
    const bool vector_stores = is_aligned(p.codes, p.codes_stride, 8);

    U32x4 x[ROWS];
#pragma unroll
    for (uint32_t i = 0; i < ROWS; ++i) {
        x[i] = load8(p.x + (first + i) * p.x_stride + column, i < rows ? left : 0, vector_loads);
    }

    // Along the rows, as above; meanwhile each thread's amax of its 8 columns, in pairs.
    U32x4 columns = {0, 0, 0, 0};
#pragma unroll
    for (uint32_t i = 0; i < ROWS; ++i) {
        const uint32_t amax = reduce::warp<LANES>(amax_pair(x[i]), MaxPairs{});
        const Scale s = convert::scale_from_amax(larger_of_pair(amax), p.policy);
        store8(p.codes + (first + i) * p.codes_stride + column, i < rows ? left : 0, vector_stores, encode8(x[i], s.reciprocal));
        if (lane == 0 && i < rows) {
            p.scales[(first + i) * p.scale_row_stride + block * p.scale_block_stride] = s.scale;
        }
        columns.x = ptx::max_bf16x2(columns.x, ptx::abs_bf16x2(x[i].x));
        columns.y = ptx::max_bf16x2(columns.y, ptx::abs_bf16x2(x[i].y));
        columns.z = ptx::max_bf16x2(columns.z, ptx::abs_bf16x2(x[i].z));
        columns.w = ptx::max_bf16x2(columns.w, ptx::abs_bf16x2(x[i].w));
    }

    // The other half warp's rows, then all warps' through shared memory.
    columns.x = ptx::max_bf16x2(columns.x, __shfl_xor_sync(0xffffffffu, columns.x, LANES));
    columns.y = ptx::max_bf16x2(columns.y, __shfl_xor_sync(0xffffffffu, columns.y, LANES));
    columns.z = ptx::max_bf16x2(columns.z, __shfl_xor_sync(0xffffffffu, columns.z, LANES));
    columns.w = ptx::max_bf16x2(columns.w, __shfl_xor_sync(0xffffffffu, columns.w, LANES));
    if (threadIdx.x % 32 < LANES) {
        ptx::st_shared_v4_u32(base + COLUMN_AMAX + threadIdx.x / 32 * BLOCK * 2 + lane * 16, columns);
    }
    __syncthreads();
    // Thread t of the first 128: column t.
    if (threadIdx.x < BLOCK) {
        float amax = 0.0f;
#pragma unroll
        for (uint32_t w = 0; w < THREADS / 32; ++w) {
            const uint32_t pair = ptx::ld_shared_u32(base + COLUMN_AMAX + w * BLOCK * 2 + threadIdx.x / 2 * 4);
            amax = fmaxf(amax, threadIdx.x % 2 == 0 ? convert::f32_from_bf16_low(pair) : convert::f32_from_bf16_high(pair));
        }
        const Scale s = convert::scale_from_amax(amax, p.policy);
        ptx::st_shared_f32(base + RECIPROCALS + threadIdx.x * 4, s.reciprocal);
        const uint32_t row_t = block * BLOCK + threadIdx.x;
        if (row_t < p.cols) {
            p.scales_t[row_t * p.scale_t_row_stride + row_block * p.scale_t_block_stride] = s.scale;
        }
    }
    __syncthreads();

    // 8 rows of a column are 8 consecutive bytes of the transposed tile: chunk h of its row. Chunks are XORed with the row's
    // number / 8, which is the lane here, so that 16 lanes write to 16 different pairs of banks.
    const U32x4 r_low = ptx::ld_shared_v4_u32(base + RECIPROCALS + lane * 32);
    const U32x4 r_high = ptx::ld_shared_v4_u32(base + RECIPROCALS + lane * 32 + 16);
    const uint32_t reciprocals[8] = {r_low.x, r_low.y, r_low.z, r_low.w, r_high.x, r_high.y, r_high.z, r_high.w};
#pragma unroll
    for (uint32_t c = 0; c < 8; ++c) {
        const float r = __uint_as_float(reciprocals[c]);
        uint32_t pairs[ROWS];
#pragma unroll
        for (uint32_t i = 0; i < ROWS; ++i) {
            pairs[i] = c / 2 == 0 ? x[i].x : c / 2 == 1 ? x[i].y : c / 2 == 2 ? x[i].z : x[i].w;
        }
        uint32_t codes[2];
#pragma unroll
        for (uint32_t q = 0; q < 2; ++q) {
            // The bytes of pairs 0 and 1, then 2 and 3, that hold the signs of column c.
            const uint32_t selector = c % 2 == 0 ? 0x0051 : 0x0073;
            const uint32_t signs = ptx::prmt_b32(ptx::prmt_b32(pairs[4 * q], pairs[4 * q + 1], selector),
                                                 ptx::prmt_b32(pairs[4 * q + 2], pairs[4 * q + 3], selector), 0x5410);
            codes[q] = convert::e4m3x4_from_f32(product(pairs[4 * q], c % 2, r), product(pairs[4 * q + 1], c % 2, r),
                                                product(pairs[4 * q + 2], c % 2, r), product(pairs[4 * q + 3], c % 2, r), signs);
        }
        ptx::st_shared_v2_u32(base + TILE + (lane * 8 + c) * BLOCK + (half_warp ^ lane) * 8, {codes[0], codes[1]});
    }
    __syncthreads();

    // 8 threads a row of the transposed tile, 16 bytes (two chunks) each.
    const uint64_t first_token = static_cast<uint64_t>(row_block) * BLOCK;
    const bool vector_stores_t = is_aligned(p.codes_t, p.codes_t_stride, 16);
#pragma unroll
    for (uint32_t pass = 0; pass < BLOCK * 8 / THREADS; ++pass) {
        const uint32_t row = pass * (THREADS / 8) + threadIdx.x / 8;
        const uint32_t piece = threadIdx.x % 8;
        const uint32_t row_t = block * BLOCK + row;
        const uint32_t key = row / 8;
        const U32x4 loaded = ptx::ld_shared_v4_u32(base + TILE + row * BLOCK + (piece ^ key / 2) * 16);
        const U32x4 codes = key % 2 == 0 ? loaded : U32x4{loaded.z, loaded.w, loaded.x, loaded.y};
        const uint64_t token = first_token + piece * 16;
        const uint32_t left_t = token < p.rows ? min(16u, p.rows - static_cast<uint32_t>(token)) : 0;
        if (row_t < p.cols) {
            uint8_t* out = p.codes_t + row_t * p.codes_t_stride + token;
            if (vector_stores_t && left_t == 16) {
                ptx::st_global_v4_u32(out, codes);
            } else {
                store8(out, static_cast<int32_t>(min(left_t, 8u)), false, {codes.x, codes.y});
                store8(out + 8, max(static_cast<int32_t>(left_t) - 8, 0), false, {codes.z, codes.w});
            }
        }
    }
}
