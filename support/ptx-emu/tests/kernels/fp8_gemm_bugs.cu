// archs: sm_90a
// variants: swizzle=-DBUG=1 init=-DBUG=2 empty=-DBUG=3 expect=-DBUG=4 wait=-DBUG=5 store-barrier=-DBUG=6 proxy=-DBUG=7 reuse=-DBUG=8 fence=-DBUG=9 parity=-DBUG=10 arrive=-DBUG=11
// allow-ptxas: C7518 C7520
//
// A small FP8 GEMM with everything that goes wrong in such kernels: TMA, an mbarrier ring, WGMMA, a TMA store. D = A B^T, A E4M3
// [m, k], B E4M3 [n, k], D bf16 [m, n]; each 128 along k is summed by the tensor core and added to an f32 total. Without BUG it
// is correct.
//
// Parameters: a: tensor map u8 {k, m}, box {128, 64}, swizzle 128 B; b: u8 {k, n}, box {128, 64}, swizzle 128 B; d: bf16 {n, m},
// box {64, 64}, swizzle 128 B; m, n, k (u32, >= 1).
// Launch: 160 threads, any number of blocks (tiles of 64 by 64 go round), 41024 bytes of dynamic shared memory.
// Expected: D[i][j] = bf16(sum over k of A[i][k] * B[j][k]); exact when the operands are small integers.
//
// BUG   what                                                         to be reported as
//   1   the descriptors say 64-byte swizzle                          wrong values
//   2   no __syncthreads after mbarrier.init                         race between the init and other threads' uses of the barrier
//   3   the producer does not wait for the slot to be empty          race of TMA's writes with WGMMA's reads, or too many arrivals
//   4   expect_tx is half of what the copies bring                   race of WGMMA's reads with TMA's writes
//   5   no wgmma.wait_group                                          accumulators read while WGMMA owns them
//   6   no barrier before the TMA store                              race of the threads' writes with the store's reads
//   7   no fence.proxy.async before the TMA store                    missing proxy fence
//   8   no wait_group.read before the store's buffer is used again   race of the store's reads with the threads' writes (two tiles a block)
//   9   no wgmma.fence                                               accumulators written by ordinary instructions used by WGMMA unfenced
//  10   the producer waits for the parity that is under way          deadlock
//  11   every lane arrives at `empty`, one in a warp is expected     more arrivals than expected

#include "pipeline.cuh"

#ifndef BUG
#define BUG 0
#endif

namespace {

constexpr uint32_t TILE = 64, BLOCK_K = 128, STAGES = 2, CONSUMER_WARPS = 4;
constexpr uint32_t OPERAND_BYTES = TILE * BLOCK_K;
constexpr uint32_t A = 0, B = A + STAGES * OPERAND_BYTES, D = B + STAGES * OPERAND_BYTES, BARRIERS = D + TILE * TILE * 2;
static_assert(BARRIERS + pipeline::Ring<STAGES>::BYTES <= 41024, "what the test asks for");

} // namespace

extern "C" __global__ void __launch_bounds__(160, 1)
    fp8_gemm(const __grid_constant__ ptx::TensorMap a, const __grid_constant__ ptx::TensorMap b, const __grid_constant__ ptx::TensorMap d,
             uint32_t m, uint32_t n, uint32_t k) {
    extern __shared__ __align__(1024) uint8_t memory[];
    const uint32_t shared = ptx::shared_address(memory);
    const pipeline::Ring<STAGES> ring{shared + BARRIERS};
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t blocks = (k + BLOCK_K - 1) / BLOCK_K;
    const uint32_t rows = (m + TILE - 1) / TILE, tiles = rows * ((n + TILE - 1) / TILE);

    if (threadIdx.x == 0) {
        ring.init(1, CONSUMER_WARPS);
        ptx::fence_mbarrier_init();
    }
#if BUG != 2
    __syncthreads();
#endif

    pipeline::Slot<STAGES> slot;
    if (warp == CONSUMER_WARPS) {
        if (ptx::elect_sync(0xffffffffu)) {
            for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
                for (uint32_t block = 0; block < blocks; ++block, slot.advance()) {
#if BUG == 10
                    pipeline::wait(ring.empty(slot), slot.parity);
#elif BUG != 3
                    ring.wait_empty(slot);
#endif
                    ptx::mbarrier_arrive_expect_tx(ring.full(slot), BUG == 4 ? OPERAND_BYTES : 2 * OPERAND_BYTES);
                    ptx::cp_async_bulk_tensor_2d_load(shared + A + slot.index * OPERAND_BYTES, &a, ring.full(slot), block * BLOCK_K,
                                                      tile % rows * TILE);
                    ptx::cp_async_bulk_tensor_2d_load(shared + B + slot.index * OPERAND_BYTES, &b, ring.full(slot), block * BLOCK_K,
                                                      tile / rows * TILE);
                }
            }
        }
        return;
    }

    constexpr ptx::WgmmaSwizzle SWIZZLE = BUG == 1 ? ptx::WgmmaSwizzle::Bytes64 : ptx::WgmmaSwizzle::Bytes128;
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        float total[TILE / 2];
        for (float& x : total) {
            x = 0.0f;
        }
        for (uint32_t block = 0; block < blocks; ++block, slot.advance()) {
            ring.wait_full(slot);
            const uint64_t da = ptx::wgmma_descriptor(shared + A + slot.index * OPERAND_BYTES, 16, 1024, SWIZZLE);
            const uint64_t db = ptx::wgmma_descriptor(shared + B + slot.index * OPERAND_BYTES, 16, 1024, SWIZZLE);
            float chain[TILE / 2];
            for (float& x : chain) {
                x = 0.0f;
                // The zero is in a register, and an ordinary instruction put it there.
                ptx::wgmma_fence_register(x);
            }
#if BUG != 9
            ptx::wgmma_fence();
#endif
#pragma unroll
            for (uint32_t step = 0; step < BLOCK_K / 32; ++step) {
                ptx::wgmma_m64n64k32_f32_e4m3_e4m3(chain, da + step * 2, db + step * 2, true);
            }
            ptx::wgmma_commit_group();
#if BUG != 5
            ptx::wgmma_wait_group<0>();
#endif
            for (float& x : chain) {
                ptx::wgmma_fence_register(x);
            }
            __syncwarp();
            if (BUG == 11 || lane == 0) {
                ring.arrive_empty(slot);
            }
#pragma unroll
            for (uint32_t i = 0; i < TILE / 2; ++i) {
                total[i] += chain[i];
            }
        }

#if BUG != 8
        if (threadIdx.x == 0) {
            ptx::cp_async_bulk_wait_group_read<0>();
        }
#endif
        ptx::bar_sync(1, 128);
        const uint32_t row = warp * 16 + lane / 8 % 2 * 8 + lane % 8;
#pragma unroll
        for (uint32_t i = 0; i < TILE / 16; ++i) {
            const uint32_t chunk = i * 2 + lane / 16;
            ptx::stmatrix_x4(shared + D + row * 128 + (chunk ^ row % 8) * 16, ptx::cvt_rn_bf16x2_f32(total[8 * i], total[8 * i + 1]),
                             ptx::cvt_rn_bf16x2_f32(total[8 * i + 2], total[8 * i + 3]),
                             ptx::cvt_rn_bf16x2_f32(total[8 * i + 4], total[8 * i + 5]),
                             ptx::cvt_rn_bf16x2_f32(total[8 * i + 6], total[8 * i + 7]));
        }
#if BUG != 7
        ptx::fence_proxy_async_shared_cta();
#endif
#if BUG != 6
        ptx::bar_sync(1, 128);
#endif
        if (threadIdx.x == 0) {
            ptx::cp_async_bulk_tensor_2d_store(&d, tile / rows * TILE, tile % rows * TILE, shared + D);
            ptx::cp_async_bulk_commit_group();
        }
    }
    if (threadIdx.x == 0) {
        ptx::cp_async_bulk_wait_group<0>();
    }
}
