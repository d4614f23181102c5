// archs: sm_90a
// allow-ptxas: C7517 C7519
//
// Wrong use of Hopper's asynchronous instructions, each beside a correct twin (`*_ok`). 128 threads a block, one block unless stated, no dynamic
// shared memory. Pointers aligned to 16. What an instantiation shares is a template; BUG says what is left out.
//
// kernel(parameters)                                  expected (B: what is to be reported; twins: out)
// mbarrier_too_many(u32* out) / _ok                   B: two arrivals in a phase of one. out[i] = i
// mbarrier_wrong_phase(u32* out) / _ok                B: waits for a phase that nobody completes: deadlock. out[i] = i
// mbarrier_uninitialised(u32* out)                    B: arrives at memory that no init made a barrier
// mbarrier_overwritten(u32* out)                      B: an ordinary store into a live barrier
// mbarrier_invalidated(u32* out) / _ok                B: arrives after mbarrier.inval. _ok reuses the memory as data: out[i] = i
// bulk_load(const u32* x, u32* out)                   correct: out[i] = x[i] + x[i + 128] (256 u32 by two bulk copies of 512 bytes)
// bulk_load_no_wait(const u32* x, u32* out)           B: read before the barrier's phase completed: race with the copy
// bulk_load_no_expect(const u32* x, u32* out)         B: arrives without expect_tx, the phase may complete before the copy: race with the copy
// bulk_load_never(const u32* x, u32* out)             B: expects twice the bytes that come: deadlock
// bulk_load_size(const u32* x, u32* out)              B: 8 bytes: not a multiple of 16
// bulk_store_no_fence(u32* out) / _ok                 B: shared memory written by threads, stored by a bulk copy, no proxy fence. out[i] = i
// bulk_store_reuse(u32* out) / _ok                    B: source written again before wait_group.read: race. out[i] = i, out[128 + i] = 2 * i
// bulk_store_unwaited(u32* out, u32* copy) / _ok      B: the stored global memory read back with wait_group.read only: race. copy[i] = out[i] = i
// wgmma_ok(const u16* a, const u16* b, f32* d)        correct: d [64, 8] += a [64, 16] b [8, 16]^T, bf16, d read first
// wgmma_no_wait, wgmma_touched, wgmma_no_fence, wgmma_no_proxy_fence, wgmma_operand_overwritten, wgmma_descriptors_differ, wgmma_no_commit (same)
//                                                     B: accumulator stored before a wait; accumulator changed between issue and wait; no wgmma.fence after
//                                                     the accumulator was loaded; no fence.proxy.async after the operands were written; operand written
//                                                     again before the wait; warps give different descriptors; waited for, but never committed
// tma_load(map, f32* out)                             correct: u32 {32, 4} tensor, box {32, 4}, no swizzle: out[i] = x[i]
// tma_misaligned(map, u32* out)                       B: destination at 64 bytes past a multiple of 128
// tma_wrong_bytes(map, u32* out)                      B: expects 256 of 512 bytes: race with the copy, or a deadlock-free wrong phase
// cluster_exit(u32* out) / _ok                        4 blocks in clusters of 2. B: reads the shared memory of a block that may have ended. out[128 * block + i]
//                                                     = 1000 * (block ^ 1) + i
// cluster_no_barrier(u32* out)                        the same grid. B: reads before the other block has written (or begun): race
// cluster_send(u32* out)                              the same grid, correct: each block sends 512 bytes to the other (bulk copy, remote mbarrier): out as above
// cluster_remote_arrive(u32* out)                     the same grid, correct: remote arrivals; out[128 * block + i] = 1000 * (block ^ 1) + i
// cluster_scope(u32* out)                             as cluster_remote_arrive, but waits at .cta scope for what another block wrote: race
// setmaxnreg_ok(u32* out), setmaxnreg_exhausted(u32* out)    384 threads. B: all three warpgroups ask for 240 registers: the pool has not as many:
//                                                     deadlock. out[i] = i
// setmaxnreg_part(u32* out)                           384 threads. B: one warp of a warpgroup does not execute it
// elect_one(u32* out)                                 correct: out[w] = number of elected lanes of warp w = 1 (4 u32, zeroed)

#include "pipeline.cuh"
#include "reduce.cuh"

namespace {

// ---- mbarrier ----------------------------------------------------------------------------------------------------------

enum MbarrierBug { NONE, TOO_MANY, WRONG_PHASE, UNINITIALISED, OVERWRITTEN };

template <int BUG>
__device__ __forceinline__ void arrive_and_wait(uint32_t* out) {
    __shared__ uint64_t barrier;
    const uint32_t mbarrier = ptx::shared_address(&barrier);
    if (threadIdx.x == 0 && BUG != UNINITIALISED) {
        ptx::mbarrier_init(mbarrier, 1);
    }
    __syncthreads();
    if (threadIdx.x == 32) {
        if (BUG == OVERWRITTEN) {
            *const_cast<volatile uint64_t*>(&barrier) = 0;
        }
        ptx::mbarrier_arrive(mbarrier, BUG == TOO_MANY ? 2 : 1);
    }
    if (BUG == OVERWRITTEN) {
        __syncthreads(); // else the store would race with those who wait
    }
    pipeline::wait(mbarrier, 0);
    if (BUG == WRONG_PHASE) {
        pipeline::wait(mbarrier, 1);
    }
    out[threadIdx.x] = threadIdx.x;
}

} // namespace

extern "C" __global__ void mbarrier_too_many_ok(uint32_t* out) { arrive_and_wait<NONE>(out); }
extern "C" __global__ void mbarrier_wrong_phase_ok(uint32_t* out) { arrive_and_wait<NONE>(out); }
extern "C" __global__ void mbarrier_too_many(uint32_t* out) { arrive_and_wait<TOO_MANY>(out); }
extern "C" __global__ void mbarrier_wrong_phase(uint32_t* out) { arrive_and_wait<WRONG_PHASE>(out); }
extern "C" __global__ void mbarrier_uninitialised(uint32_t* out) { arrive_and_wait<UNINITIALISED>(out); }
extern "C" __global__ void mbarrier_overwritten(uint32_t* out) { arrive_and_wait<OVERWRITTEN>(out); }

namespace {

template <bool ARRIVE_AFTER>
__device__ __forceinline__ void invalidate(uint32_t* out) {
    __shared__ uint64_t memory[64];
    const uint32_t mbarrier = ptx::shared_address(memory);
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(mbarrier, 128);
    }
    __syncthreads();
    ptx::mbarrier_arrive(mbarrier);
    pipeline::wait(mbarrier, 0);
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::mbarrier_inval(mbarrier);
        if (ARRIVE_AFTER) {
            ptx::mbarrier_arrive(mbarrier);
        }
    }
    __syncthreads();
    uint32_t* data = reinterpret_cast<uint32_t*>(memory);
    data[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = data[threadIdx.x];
}

} // namespace

extern "C" __global__ void mbarrier_invalidated(uint32_t* out) { invalidate<true>(out); }
extern "C" __global__ void mbarrier_invalidated_ok(uint32_t* out) { invalidate<false>(out); }

// ---- Bulk copies -------------------------------------------------------------------------------------------------------

namespace {

enum LoadBug { LOAD_OK, NO_WAIT, NO_EXPECT, NEVER, SIZE };

template <int BUG>
__device__ __forceinline__ void load(const uint32_t* x, uint32_t* out) {
    __shared__ __align__(128) uint32_t values[256];
    __shared__ uint64_t barrier;
    const uint32_t mbarrier = ptx::shared_address(&barrier);
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(mbarrier, 1);
        ptx::fence_mbarrier_init();
    }
    // So that a read that comes too early finds something.
    values[threadIdx.x] = values[threadIdx.x + 128] = 0;
    ptx::fence_proxy_async_shared_cta();
    __syncthreads();
    if (threadIdx.x == 0) {
        if (BUG == NO_EXPECT) {
            ptx::mbarrier_arrive(mbarrier);
        } else {
            ptx::mbarrier_arrive_expect_tx(mbarrier, BUG == NEVER ? 2048 : 1024);
        }
        ptx::cp_async_bulk_load(ptx::shared_address(values), x, BUG == SIZE ? 8 : 512, mbarrier);
        ptx::cp_async_bulk_load(ptx::shared_address(values + 128), x + 128, 512, mbarrier);
    }
    if (BUG != NO_WAIT) {
        pipeline::wait(mbarrier, 0);
    }
    out[threadIdx.x] = values[threadIdx.x] + values[threadIdx.x + 128];
}

} // namespace

extern "C" __global__ void bulk_load(const uint32_t* x, uint32_t* out) { load<LOAD_OK>(x, out); }
extern "C" __global__ void bulk_load_no_wait(const uint32_t* x, uint32_t* out) { load<NO_WAIT>(x, out); }
extern "C" __global__ void bulk_load_no_expect(const uint32_t* x, uint32_t* out) { load<NO_EXPECT>(x, out); }
extern "C" __global__ void bulk_load_never(const uint32_t* x, uint32_t* out) { load<NEVER>(x, out); }
extern "C" __global__ void bulk_load_size(const uint32_t* x, uint32_t* out) { load<SIZE>(x, out); }

namespace {

template <bool FENCE, bool WAIT_READ>
__device__ __forceinline__ void store(uint32_t* out, bool twice) {
    __shared__ __align__(128) uint32_t values[128];
    for (uint32_t turn = 0; turn < (twice ? 2 : 1); ++turn) {
        values[threadIdx.x] = threadIdx.x * (turn + 1);
        if (FENCE) {
            ptx::fence_proxy_async_shared_cta();
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            ptx::cp_async_bulk_store(out + turn * 128, ptx::shared_address(values), 512);
            ptx::cp_async_bulk_commit_group();
            if (WAIT_READ) {
                ptx::cp_async_bulk_wait_group_read<0>();
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        ptx::cp_async_bulk_wait_group<0>();
    }
}

} // namespace

extern "C" __global__ void bulk_store_no_fence(uint32_t* out) { store<false, true>(out, false); }
extern "C" __global__ void bulk_store_no_fence_ok(uint32_t* out) { store<true, true>(out, false); }
extern "C" __global__ void bulk_store_reuse(uint32_t* out) { store<true, false>(out, true); }
extern "C" __global__ void bulk_store_reuse_ok(uint32_t* out) { store<true, true>(out, true); }

namespace {

template <bool WAIT>
__device__ __forceinline__ void store_and_read(uint32_t* out, uint32_t* copy) {
    __shared__ __align__(128) uint32_t values[128];
    values[threadIdx.x] = threadIdx.x;
    ptx::fence_proxy_async_shared_cta();
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::cp_async_bulk_store(out, ptx::shared_address(values), 512);
        ptx::cp_async_bulk_commit_group();
        if (WAIT) {
            ptx::cp_async_bulk_wait_group<0>();
        } else {
            ptx::cp_async_bulk_wait_group_read<0>();
        }
        // What the asynchronous proxy wrote is read by the generic one.
        ptx::fence_proxy_async_global();
    }
    __syncthreads();
    copy[threadIdx.x] = *const_cast<volatile uint32_t*>(out + threadIdx.x);
    if (threadIdx.x == 0) {
        ptx::cp_async_bulk_wait_group<0>();
    }
}

} // namespace

extern "C" __global__ void bulk_store_unwaited(uint32_t* out, uint32_t* copy) { store_and_read<false>(out, copy); }
extern "C" __global__ void bulk_store_unwaited_ok(uint32_t* out, uint32_t* copy) { store_and_read<true>(out, copy); }

// ---- WGMMA -------------------------------------------------------------------------------------------------------------

namespace {

enum WgmmaBug { WGMMA_OK, WGMMA_NO_WAIT, TOUCHED, NO_FENCE, NO_PROXY_FENCE, OPERAND_OVERWRITTEN, DESCRIPTORS_DIFFER, NO_COMMIT };

// Without swizzle: core matrices of 8 rows of 16 bytes, 128 bytes each, in the order (rows / 8, columns / 8).
template <int BUG>
__device__ __forceinline__ void product(const uint16_t* a, const uint16_t* b, float* d) {
    __shared__ __align__(128) uint8_t operand_a[64 * 32];
    __shared__ __align__(128) uint8_t operand_b[8 * 32];
    const uint32_t row = threadIdx.x / 2, half = threadIdx.x % 2;
    const uint32_t place = row / 8 * 256 + half * 128 + row % 8 * 16;
    *reinterpret_cast<uint4*>(operand_a + place) = *reinterpret_cast<const uint4*>(a + row * 16 + half * 8);
    if (threadIdx.x < 16) {
        *reinterpret_cast<uint4*>(operand_b + place) = *reinterpret_cast<const uint4*>(b + row * 16 + half * 8);
    }
    if (BUG != NO_PROXY_FENCE) {
        ptx::fence_proxy_async_shared_cta();
    }
    __syncthreads();

    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float sum[4];
    float* mine = d + (warp * 16 + lane / 4) * 8 + lane % 4 * 2;
    for (uint32_t i = 0; i < 4; ++i) {
        sum[i] = mine[i / 2 * 64 + i % 2];
        ptx::wgmma_fence_register(sum[i]);
    }
    const uint64_t da =
        ptx::wgmma_descriptor(ptx::shared_address(operand_a) + (BUG == DESCRIPTORS_DIFFER && warp == 3 ? 256 : 0), 128, 256, ptx::WgmmaSwizzle::None);
    const uint64_t db = ptx::wgmma_descriptor(ptx::shared_address(operand_b), 128, 256, ptx::WgmmaSwizzle::None);
    if (BUG != NO_FENCE) {
        ptx::wgmma_fence();
    }
    ptx::wgmma_m64n8k16_f32_bf16_bf16(sum, da, db, true);
    if (BUG != NO_COMMIT) {
        ptx::wgmma_commit_group();
    }
    if (BUG == TOUCHED) {
        sum[0] = sum[0] + 1.0f;
        ptx::wgmma_fence_register(sum[0]);
    }
    if (BUG == OPERAND_OVERWRITTEN) {
        operand_b[threadIdx.x] = 0;
    }
    if (BUG != WGMMA_NO_WAIT) {
        ptx::wgmma_wait_group<0>();
    }
    for (uint32_t i = 0; i < 4; ++i) {
        ptx::wgmma_fence_register(sum[i]);
        mine[i / 2 * 64 + i % 2] = sum[i];
    }
    if (BUG == WGMMA_NO_WAIT) {
        ptx::wgmma_wait_group<0>();
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(128) wgmma_ok(const uint16_t* a, const uint16_t* b, float* d) { product<WGMMA_OK>(a, b, d); }
extern "C" __global__ void __launch_bounds__(128) wgmma_no_wait(const uint16_t* a, const uint16_t* b, float* d) { product<WGMMA_NO_WAIT>(a, b, d); }
extern "C" __global__ void __launch_bounds__(128) wgmma_touched(const uint16_t* a, const uint16_t* b, float* d) { product<TOUCHED>(a, b, d); }
extern "C" __global__ void __launch_bounds__(128) wgmma_no_fence(const uint16_t* a, const uint16_t* b, float* d) { product<NO_FENCE>(a, b, d); }
extern "C" __global__ void __launch_bounds__(128) wgmma_no_proxy_fence(const uint16_t* a, const uint16_t* b, float* d) {
    product<NO_PROXY_FENCE>(a, b, d);
}
extern "C" __global__ void __launch_bounds__(128) wgmma_operand_overwritten(const uint16_t* a, const uint16_t* b, float* d) {
    product<OPERAND_OVERWRITTEN>(a, b, d);
}
extern "C" __global__ void __launch_bounds__(128) wgmma_descriptors_differ(const uint16_t* a, const uint16_t* b, float* d) {
    product<DESCRIPTORS_DIFFER>(a, b, d);
}
extern "C" __global__ void __launch_bounds__(128) wgmma_no_commit(const uint16_t* a, const uint16_t* b, float* d) { product<NO_COMMIT>(a, b, d); }

// ---- TMA ---------------------------------------------------------------------------------------------------------------

namespace {

template <uint32_t OFFSET, uint32_t BYTES>
__device__ __forceinline__ void tensor_load(const ptx::TensorMap& map, uint32_t* out) {
    __shared__ __align__(128) uint32_t values[256];
    __shared__ uint64_t barrier;
    const uint32_t mbarrier = ptx::shared_address(&barrier);
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(mbarrier, 1);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::mbarrier_arrive_expect_tx(mbarrier, BYTES);
        ptx::cp_async_bulk_tensor_2d_load(ptx::shared_address(values) + OFFSET, &map, mbarrier, 0, 0);
    }
    pipeline::wait(mbarrier, 0);
    out[threadIdx.x] = values[OFFSET / 4 + threadIdx.x];
}

} // namespace

extern "C" __global__ void tma_load(const __grid_constant__ ptx::TensorMap map, uint32_t* out) { tensor_load<0, 512>(map, out); }
extern "C" __global__ void tma_misaligned(const __grid_constant__ ptx::TensorMap map, uint32_t* out) { tensor_load<64, 512>(map, out); }
extern "C" __global__ void tma_wrong_bytes(const __grid_constant__ ptx::TensorMap map, uint32_t* out) { tensor_load<0, 256>(map, out); }

// ---- Clusters ----------------------------------------------------------------------------------------------------------

namespace {

template <bool BARRIER_BEFORE, bool BARRIER_AFTER>
__device__ __forceinline__ void read_peer(uint32_t* out) {
    __shared__ uint32_t values[128];
    values[threadIdx.x] = blockIdx.x * 1000 + threadIdx.x;
    if (BARRIER_BEFORE) {
        ptx::barrier_cluster_arrive_release();
        ptx::barrier_cluster_wait_acquire();
    }
    const uint32_t peer = ptx::mapa_shared_cluster(ptx::shared_address(values + threadIdx.x), ptx::cluster_ctarank() ^ 1);
    out[blockIdx.x * 128 + threadIdx.x] = ptx::ld_shared_cluster_u32(peer);
    if (BARRIER_AFTER) {
        ptx::barrier_cluster_arrive_release();
        ptx::barrier_cluster_wait_acquire();
    }
}

} // namespace

extern "C" __global__ void __cluster_dims__(2, 1, 1) cluster_exit(uint32_t* out) { read_peer<true, false>(out); }
extern "C" __global__ void __cluster_dims__(2, 1, 1) cluster_exit_ok(uint32_t* out) { read_peer<true, true>(out); }
extern "C" __global__ void __cluster_dims__(2, 1, 1) cluster_no_barrier(uint32_t* out) { read_peer<false, true>(out); }

extern "C" __global__ void __cluster_dims__(2, 1, 1) cluster_send(uint32_t* out) {
    __shared__ __align__(128) uint32_t sent[128];
    __shared__ __align__(128) uint32_t received[128];
    __shared__ uint64_t barrier;
    const uint32_t mbarrier = ptx::shared_address(&barrier);
    const uint32_t peer = ptx::cluster_ctarank() ^ 1;
    sent[threadIdx.x] = blockIdx.x * 1000 + threadIdx.x;
    ptx::fence_proxy_async_shared_cta();
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(mbarrier, 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect_tx(mbarrier, 512);
    }
    __syncwarp();
    ptx::barrier_cluster_arrive_release();
    ptx::barrier_cluster_wait_acquire();
    if (threadIdx.x == 0) {
        ptx::cp_async_bulk_shared_to_cluster(ptx::mapa_shared_cluster(ptx::shared_address(received), peer), ptx::shared_address(sent), 512,
                                             ptx::mapa_shared_cluster(mbarrier, peer));
    }
    pipeline::wait_cluster(mbarrier, 0);
    out[blockIdx.x * 128 + threadIdx.x] = received[threadIdx.x];
    __syncwarp();
    // The copy out of `sent` has arrived at the other side before this block ends.
    ptx::barrier_cluster_arrive_release();
    ptx::barrier_cluster_wait_acquire();
}

namespace {

template <bool CLUSTER_SCOPE>
__device__ __forceinline__ void remote_arrive(uint32_t* out) {
    __shared__ uint32_t received[128];
    __shared__ uint64_t barrier;
    const uint32_t mbarrier = ptx::shared_address(&barrier);
    const uint32_t peer = ptx::cluster_ctarank() ^ 1;
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(mbarrier, 128);
        ptx::fence_mbarrier_init();
    }
    __syncwarp();
    ptx::barrier_cluster_arrive_release();
    ptx::barrier_cluster_wait_acquire();
    ptx::st_shared_cluster_u32(ptx::mapa_shared_cluster(ptx::shared_address(received + threadIdx.x), peer), blockIdx.x * 1000 + threadIdx.x);
    ptx::mbarrier_arrive_cluster(ptx::mapa_shared_cluster(mbarrier, peer));
    if (CLUSTER_SCOPE) {
        pipeline::wait_cluster(mbarrier, 0);
    } else {
        pipeline::wait(mbarrier, 0);
    }
    out[blockIdx.x * 128 + threadIdx.x] = received[threadIdx.x];
    __syncwarp();
    ptx::barrier_cluster_arrive_release();
    ptx::barrier_cluster_wait_acquire();
}

} // namespace

extern "C" __global__ void __cluster_dims__(2, 1, 1) cluster_remote_arrive(uint32_t* out) { remote_arrive<true>(out); }
extern "C" __global__ void __cluster_dims__(2, 1, 1) cluster_scope(uint32_t* out) { remote_arrive<false>(out); }

// ---- Registers and warps -----------------------------------------------------------------------------------------------

// A block of 384 threads starts with 168 registers a thread (65536 / 384, down to a multiple of 8): the pool that setmaxnreg moves around.
extern "C" __global__ void __launch_bounds__(384, 1) setmaxnreg_ok(uint32_t* out) {
    if (threadIdx.x < 128) {
        ptx::setmaxnreg_dec<40>();
    } else {
        ptx::setmaxnreg_inc<232>();
    }
    out[threadIdx.x] = threadIdx.x;
}

extern "C" __global__ void __launch_bounds__(384, 1) setmaxnreg_exhausted(uint32_t* out) {
    ptx::setmaxnreg_inc<240>();
    out[threadIdx.x] = threadIdx.x;
}

extern "C" __global__ void __launch_bounds__(384, 1) setmaxnreg_part(uint32_t* out) {
    if (threadIdx.x < 96) {
        ptx::setmaxnreg_dec<40>();
    }
    out[threadIdx.x] = threadIdx.x;
}

extern "C" __global__ void elect_one(uint32_t* out) {
    const bool elected = ptx::elect_sync(0xffffffffu);
    atomicAdd(out + threadIdx.x / 32, elected ? 1 : 0);
}
