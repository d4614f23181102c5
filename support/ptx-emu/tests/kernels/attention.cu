// archs: sm_80
// variants: barrier=-DBUG=1 reuse=-DBUG=2 wait=-DBUG=3
//
// Attention of one query tile a block, keys in tiles of 64, online softmax; cp.async into two buffers, ldmatrix, mma.sync,
// shuffles. One head has 64 dimensions, bf16.
//
// Parameters: q bf16 [heads, queries, 64], k and v bf16 [heads, keys, 64], o bf16 [heads, queries, 64], lse f32 [heads, queries]
// (natural log of the sum of exp(scores)), queries, keys (u32), scale (f32: scores are scale * q.k), causal (u32: query i sees
// keys up to i + keys - queries). All pointers aligned to 16. Launch: 128 threads, grid (ceil(queries / 64), heads), 40960 bytes
// of dynamic shared memory. Expected: o = softmax(scale q k^T) v within bf16 rounding of probabilities and output (about 1e-2
// relative to the largest |v|); a query without a key gives 0 and lse -inf.
//
// BUG   what                                                           to be reported as
//   1   no __syncthreads after the wait: other threads' copies unseen  race of cp.async's writes with ldmatrix's reads (two tiles of keys or more: any)
//   2   no __syncthreads before a buffer is filled again               race of ldmatrix's reads with cp.async's writes (three tiles of keys or more)
//   3   no cp.async.wait_group                                         reads of what cp.async has not brought

#include "ptx.cuh"

#ifndef BUG
#define BUG 0
#endif

namespace {

constexpr uint32_t TILE = 64, HEAD = 64, PITCH = HEAD * 2, TILE_BYTES = TILE * PITCH;
constexpr uint32_t Q = 0, K = Q + TILE_BYTES, V = K + 2 * TILE_BYTES;
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// 16-byte chunks of a row are XORed with the row's number, so that ldmatrix reads 8 rows from 32 different banks.
__device__ __forceinline__ uint32_t place(uint32_t row, uint32_t chunk) { return row * PITCH + (chunk ^ row % 8) * 16; }

// Rows first to first + 63 of a [rows, 64] matrix; those past the end become zeros.
__device__ __forceinline__ void load_tile(uint32_t shared, const uint16_t* x, uint32_t first, uint32_t rows) {
#pragma unroll
    for (uint32_t i = 0; i < TILE * 8 / 128; ++i) {
        const uint32_t at = i * 128 + threadIdx.x, row = at / 8, chunk = at % 8;
        const bool exists = first + row < rows;
        ptx::cp_async_cg_16_zfill(shared + place(row, chunk), x + (exists ? (first + row) * HEAD + chunk * 8 : 0), exists ? 16 : 0);
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(128)
    attention(const uint16_t* __restrict__ q, const uint16_t* __restrict__ k, const uint16_t* __restrict__ v, uint16_t* __restrict__ o,
              float* __restrict__ lse, uint32_t queries, uint32_t keys, float scale, uint32_t causal) {
    extern __shared__ __align__(128) uint8_t memory[];
    const uint32_t shared = ptx::shared_address(memory);
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t head = blockIdx.y, first_query = blockIdx.x * TILE;
    q += static_cast<uint64_t>(head) * queries * HEAD;
    k += static_cast<uint64_t>(head) * keys * HEAD;
    v += static_cast<uint64_t>(head) * keys * HEAD;

    // Keys that any query of this tile sees.
    const uint32_t last_query = min(first_query + TILE, queries) - 1;
    int32_t seen = static_cast<int32_t>(keys);
    if (causal) {
        seen = min(seen, static_cast<int32_t>(last_query + 1 + keys) - static_cast<int32_t>(queries));
    }
    const uint32_t tiles = seen > 0 ? (seen + TILE - 1) / TILE : 0;

    load_tile(shared + Q, q, first_query, queries);
    if (tiles > 0) {
        load_tile(shared + K, k, 0, keys);
        load_tile(shared + V, v, 0, keys);
    }
    ptx::cp_async_commit_group();

    float out[HEAD / 8][4] = {};
    float row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {0.0f, 0.0f};
    uint32_t query[HEAD / 16][4];
    const float scale_log2 = scale * LOG2_E;

    for (uint32_t tile = 0; tile < tiles; ++tile) {
        const uint32_t buffer = tile % 2 * TILE_BYTES;
        if (tile + 1 < tiles) {
            const uint32_t next = (tile + 1) % 2 * TILE_BYTES;
            load_tile(shared + K + next, k, (tile + 1) * TILE, keys);
            load_tile(shared + V + next, v, (tile + 1) * TILE, keys);
            ptx::cp_async_commit_group();
#if BUG != 3
            ptx::cp_async_wait_group<1>();
        } else {
            ptx::cp_async_wait_group<0>();
#endif
        }
#if BUG != 1
        __syncthreads();
#endif
        if (tile == 0) {
#pragma unroll
            for (uint32_t step = 0; step < HEAD / 16; ++step) {
                ptx::ldmatrix_x4(query[step], shared + Q + place(warp * 16 + lane % 16, step * 2 + lane / 16));
            }
        }

        float score[TILE / 8][4] = {};
#pragma unroll
        for (uint32_t step = 0; step < HEAD / 16; ++step) {
#pragma unroll
            for (uint32_t pair = 0; pair < TILE / 16; ++pair) {
                // Keys 16 * pair to + 15; matrices: first 8 keys (two halves of the step), next 8 keys.
                uint32_t keys4[4];
                ptx::ldmatrix_x4(keys4, shared + K + buffer + place(pair * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
                ptx::mma_m16n8k16_f32_bf16_bf16(score[2 * pair], query[step], {keys4[0], keys4[1]});
                ptx::mma_m16n8k16_f32_bf16_bf16(score[2 * pair + 1], query[step], {keys4[2], keys4[3]});
            }
        }

#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            const int32_t row = static_cast<int32_t>(first_query + warp * 16 + lane / 4 + 8 * half);
            const int32_t limit = causal ? min(row + 1 + static_cast<int32_t>(keys) - static_cast<int32_t>(queries), static_cast<int32_t>(keys))
                                         : static_cast<int32_t>(keys);
            float largest = row_max[half];
#pragma unroll
            for (uint32_t i = 0; i < TILE / 8; ++i) {
#pragma unroll
                for (uint32_t j = 0; j < 2; ++j) {
                    float& s = score[i][2 * half + j];
                    const int32_t key = static_cast<int32_t>(tile * TILE + i * 8 + lane % 4 * 2 + j);
                    s = key < limit ? s * scale_log2 : -INFINITY;
                    largest = fmaxf(largest, s);
                }
            }
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
            const float base = largest == -INFINITY ? 0.0f : largest;
            const float rescale = ptx::ex2_approx_ftz_f32(row_max[half] - base);
            row_max[half] = largest;
            float sum = 0.0f;
#pragma unroll
            for (uint32_t i = 0; i < TILE / 8; ++i) {
#pragma unroll
                for (uint32_t j = 0; j < 2; ++j) {
                    float& s = score[i][2 * half + j];
                    s = ptx::ex2_approx_ftz_f32(s - base);
                    sum += s;
                }
            }
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            row_sum[half] = row_sum[half] * rescale + sum;
#pragma unroll
            for (uint32_t i = 0; i < HEAD / 8; ++i) {
                out[i][2 * half] *= rescale;
                out[i][2 * half + 1] *= rescale;
            }
        }

#pragma unroll
        for (uint32_t step = 0; step < TILE / 16; ++step) {
            const uint32_t probabilities[4] = {ptx::cvt_rn_bf16x2_f32(score[2 * step][0], score[2 * step][1]),
                                               ptx::cvt_rn_bf16x2_f32(score[2 * step][2], score[2 * step][3]),
                                               ptx::cvt_rn_bf16x2_f32(score[2 * step + 1][0], score[2 * step + 1][1]),
                                               ptx::cvt_rn_bf16x2_f32(score[2 * step + 1][2], score[2 * step + 1][3])};
#pragma unroll
            for (uint32_t pair = 0; pair < HEAD / 16; ++pair) {
                uint32_t values[4];
                ptx::ldmatrix_x4_trans(values, shared + V + buffer + place(step * 16 + lane % 16, pair * 2 + lane / 16));
                ptx::mma_m16n8k16_f32_bf16_bf16(out[2 * pair], probabilities, {values[0], values[1]});
                ptx::mma_m16n8k16_f32_bf16_bf16(out[2 * pair + 1], probabilities, {values[2], values[3]});
            }
        }
#if BUG != 2
        __syncthreads();
#endif
    }
    // Nothing is under way when the block ends, also where no tile was waited for.
    ptx::cp_async_wait_all();

#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t row = first_query + warp * 16 + lane / 4 + 8 * half;
        if (row >= queries) {
            continue;
        }
        const uint64_t at = static_cast<uint64_t>(head) * queries + row;
        const float inverse = row_sum[half] > 0.0f ? 1.0f / row_sum[half] : 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < HEAD / 8; ++i) {
            *reinterpret_cast<uint32_t*>(o + at * HEAD + i * 8 + lane % 4 * 2) =
                ptx::cvt_rn_bf16x2_f32(out[i][2 * half] * inverse, out[i][2 * half + 1] * inverse);
        }
        if (lane % 4 == 0) {
            lse[at] = row_sum[half] > 0.0f ? (row_max[half] + ptx::lg2_approx_f32(row_sum[half])) * LN_2 : -INFINITY;
        }
    }
}
