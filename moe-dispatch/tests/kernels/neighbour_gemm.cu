// archs: sm_80
//
// d [m, n] f32 = a [m, k] bf16 times the transpose of b [n, k] bf16: what runs beside an exchange when its cost to others is measured
// (examples/exchange_gpu.rs). m and n are multiples of 128, k of 32. Any number of blocks of 256 threads; each takes one tile
// of 128 x 128 after the other.

#include "ptx.cuh"

namespace {

constexpr uint32_t TILE = 128, DEPTH = 32, THREADS = 256;
// Elements of a row of a tile in shared memory: 80 bytes, so that 8 rows lie in different banks.
constexpr uint32_t PITCH = 40;

} // namespace

extern "C" __global__ void __launch_bounds__(THREADS) neighbour_gemm(const uint16_t* a, const uint16_t* b, float* d, uint32_t m, uint32_t n,
                                                                     uint32_t k) {
    __shared__ __align__(16) uint16_t tiles[2][2][TILE * PITCH];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t warp_m = warp / 4 * 64, warp_n = warp % 4 * 32;
    const uint32_t columns = n / TILE, steps = k / DEPTH;

    for (uint32_t tile = blockIdx.x; tile < m / TILE * columns; tile += gridDim.x) {
        const uint16_t* const rows[2] = {a + static_cast<uint64_t>(tile / columns) * TILE * k, b + static_cast<uint64_t>(tile % columns) * TILE * k};
        const auto load = [&](uint32_t step) {
#pragma unroll
            for (uint32_t operand = 0; operand < 2; ++operand) {
#pragma unroll
                for (uint32_t i = threadIdx.x; i < TILE * 4; i += THREADS) {
                    ptx::cp_async_cg_16(ptx::shared_address(&tiles[step % 2][operand][i / 4 * PITCH + i % 4 * 8]),
                                        rows[operand] + static_cast<uint64_t>(i / 4) * k + step * DEPTH + i % 4 * 8);
                }
            }
            ptx::cp_async_commit_group();
        };
        float sums[4][4][4] = {};
        load(0);
        for (uint32_t step = 0; step < steps; ++step) {
            if (step + 1 < steps) {
                load(step + 1);
                ptx::cp_async_wait_group<1>();
            } else {
                ptx::cp_async_wait_group<0>();
            }
            __syncthreads();
            const uint32_t base_a = ptx::shared_address(tiles[step % 2][0]), base_b = ptx::shared_address(tiles[step % 2][1]);
#pragma unroll
            for (uint32_t part = 0; part < DEPTH; part += 16) {
                uint32_t x[4][4], y[4][2];
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) {
                    const uint32_t row = warp_m + i * 16 + lane % 16;
                    ptx::ldmatrix_x4(x[i], base_a + (row * PITCH + part + lane / 16 * 8) * 2);
                }
#pragma unroll
                for (uint32_t j = 0; j < 4; j += 2) {
                    uint32_t both[4];
                    const uint32_t row = warp_n + j * 8 + lane / 16 * 8 + lane % 8;
                    ptx::ldmatrix_x4(both, base_b + (row * PITCH + part + lane / 8 % 2 * 8) * 2);
                    y[j][0] = both[0], y[j][1] = both[1], y[j + 1][0] = both[2], y[j + 1][1] = both[3];
                }
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) {
#pragma unroll
                    for (uint32_t j = 0; j < 4; ++j) {
                        ptx::mma_m16n8k16_f32_bf16_bf16(sums[i][j], x[i], y[j]);
                    }
                }
            }
            __syncthreads();
        }
        const uint64_t row = static_cast<uint64_t>(tile / columns) * TILE + warp_m + lane / 4;
        const uint32_t column = tile % columns * TILE + warp_n + lane % 4 * 2;
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j) {
#pragma unroll
                for (uint32_t e = 0; e < 4; ++e) {
                    d[(row + i * 16 + e / 2 * 8) * n + column + j * 8 + e % 2] = sums[i][j][e];
                }
            }
        }
    }
}
