// archs: sm_80
//
// Wrong synchronisation by ordinary instructions, each beside a correct twin (`*_ok`). 128 threads a block; one block unless stated; no dynamic
// shared memory.
//
// kernel(parameters)                               blocks  expected (B: what is to be reported; twins: out)
// shared_race(u32* out) / _ok                      1       B: race, shared, across warps. out[i] = (i + 32) % 128
// warp_race(u32* out) / _ok                        1       B: race, shared, within a warp without __syncwarp. out[i] = i ^ 31
// global_race(u32* out) / _ok                      4       B: race: blocks add to out[i] without atomics. out[i] = 4 (out zeroed by the host)
// flag_scope_block(u32* data, flag, out) / _ok     2       B: release and acquire at .cta scope between blocks: race on data. out[i] = i + 1
// flag_relaxed(u32* data, flag, out) / _ok         2       B: relaxed flag: race on data. out[i] = i + 1
// flag_no_fence(u32* data, flag, out) / _ok        2       B: volatile flag without fences: race on data. out[i] = i + 1
// device_send_gpu(u32* data, flag), device_send_ok(u32* data, flag), device_receive(const u32* data, flag, u32* out)
//                                                  1 each  sender on one device, receiver on another, memory of either, flag zeroed; started at the same time.
//                                                          device_send_gpu releases at .gpu: race on data; device_send_ok at .sys: out[i] = i + 1
// atomic_scope(u32* out) / _ok                     4       B: atomics at .cta scope from several blocks: race. out[0] = 512 (zeroed)
// livelock(const u32* flag, u32* out)              1       B: spins on a flag (0) that nobody sets. With flag 1: out[i] = 1
// last_block_no_fence(u32* partial, count, out) / _ok  4   B: partial sums read without fence: race. out[0] = 4 * 128 (partial: 4 u32, count zeroed)
// barrier_count(u32* out) / _ok                    1       B: bar.sync for 128 threads that 96 reach: deadlock. out[i] = 127 - i
// divergent_barrier(u32* out) / _ok                1       B: bar.sync (aligned) by a part of a warp. out[i] = (i + 64) % 128
// shuffle_absent(u32* out) / _ok                   1       B: shfl.sync reads lanes that ended: undefined values. out[i] = i ^ 1 for even i
// shuffle_not_named(u32* out)                      1       B: a lane executes shfl.sync with a mask without itself
// copy_no_wait(const u32* x, u32* out) / _ok       1       B: cp.async's data read before a wait. out[i] = x[i] (128 u32, aligned to 16)
// copy_no_barrier(const u32* x, u32* out)          1       B: waited for, but read by other threads without a barrier: race
// trap_here(u32* out, n)                           1       trap by thread n (n < 128); n >= 128: out[i] = i
// assert_here(const u32* x, u32* out)              1       assert(x[i] != 0): __assertfail by the threads with x[i] == 0; else out[i] = x[i]

#include "ptx.cuh"

#include <cassert>

extern "C" __global__ void shared_race(uint32_t* out) {
    __shared__ uint32_t values[128];
    // So that a read that comes too early finds something.
    values[threadIdx.x] = 0;
    __syncthreads();
    values[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = values[(threadIdx.x + 32) % 128];
}

extern "C" __global__ void shared_race_ok(uint32_t* out) {
    __shared__ uint32_t values[128];
    values[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = values[(threadIdx.x + 32) % 128];
}

extern "C" __global__ void warp_race(uint32_t* out) {
    __shared__ uint32_t values[128];
    values[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = values[threadIdx.x ^ 31];
}

extern "C" __global__ void warp_race_ok(uint32_t* out) {
    __shared__ uint32_t values[128];
    values[threadIdx.x] = threadIdx.x;
    __syncwarp();
    out[threadIdx.x] = values[threadIdx.x ^ 31];
}

extern "C" __global__ void global_race(uint32_t* out) { out[threadIdx.x] += 1; }

extern "C" __global__ void global_race_ok(uint32_t* out) { atomicAdd(out + threadIdx.x, 1); }

// ---- A flag from block 0 to block 1 ------------------------------------------------------------------------------------

extern "C" __global__ void flag_scope_block(uint32_t* data, uint32_t* flag, uint32_t* out) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = threadIdx.x + 1;
        __syncthreads();
        if (threadIdx.x == 0) {
            ptx::st_release_cta_global(flag, 1u);
        }
    } else {
        if (threadIdx.x == 0) {
            while (ptx::ld_acquire_cta_global(flag) == 0) {
            }
        }
        __syncthreads();
        out[threadIdx.x] = data[threadIdx.x];
    }
}

extern "C" __global__ void flag_scope_block_ok(uint32_t* data, uint32_t* flag, uint32_t* out) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = threadIdx.x + 1;
        __syncthreads();
        if (threadIdx.x == 0) {
            ptx::st_release_gpu_global(flag, 1u);
        }
    } else {
        if (threadIdx.x == 0) {
            while (ptx::ld_acquire_gpu_global(flag) == 0) {
            }
        }
        __syncthreads();
        out[threadIdx.x] = data[threadIdx.x];
    }
}

extern "C" __global__ void flag_relaxed(uint32_t* data, uint32_t* flag, uint32_t* out) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = threadIdx.x + 1;
        __syncthreads();
        if (threadIdx.x == 0) {
            ptx::st_relaxed_gpu_global(flag, 1u);
        }
    } else {
        if (threadIdx.x == 0) {
            while (ptx::ld_relaxed_gpu_global(flag) == 0) {
            }
        }
        __syncthreads();
        out[threadIdx.x] = data[threadIdx.x];
    }
}

// Fences around relaxed accesses are a release and an acquire pattern.
extern "C" __global__ void flag_relaxed_ok(uint32_t* data, uint32_t* flag, uint32_t* out) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = threadIdx.x + 1;
        __syncthreads();
        if (threadIdx.x == 0) {
            ptx::fence_acq_rel_gpu();
            ptx::st_relaxed_gpu_global(flag, 1u);
        }
    } else {
        if (threadIdx.x == 0) {
            while (ptx::ld_relaxed_gpu_global(flag) == 0) {
            }
            ptx::fence_acq_rel_gpu();
        }
        __syncthreads();
        out[threadIdx.x] = data[threadIdx.x];
    }
}

extern "C" __global__ void flag_no_fence(uint32_t* data, volatile uint32_t* flag, uint32_t* out) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = threadIdx.x + 1;
        __syncthreads();
        if (threadIdx.x == 0) {
            *flag = 1;
        }
    } else {
        if (threadIdx.x == 0) {
            while (*flag == 0) {
            }
        }
        __syncthreads();
        out[threadIdx.x] = data[threadIdx.x];
    }
}

extern "C" __global__ void flag_no_fence_ok(uint32_t* data, volatile uint32_t* flag, uint32_t* out) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = threadIdx.x + 1;
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            *flag = 1;
        }
    } else {
        if (threadIdx.x == 0) {
            while (*flag == 0) {
            }
            __threadfence();
        }
        __syncthreads();
        out[threadIdx.x] = data[threadIdx.x];
    }
}

// ---- A flag from one device to another ---------------------------------------------------------------------------------

extern "C" __global__ void device_send_gpu(uint32_t* data, uint32_t* flag) {
    data[threadIdx.x] = threadIdx.x + 1;
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::st_release_gpu_global(flag, 1u);
    }
}

extern "C" __global__ void device_send_ok(uint32_t* data, uint32_t* flag) {
    data[threadIdx.x] = threadIdx.x + 1;
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::st_release_sys_global(flag, 1u);
    }
}

extern "C" __global__ void device_receive(const uint32_t* data, const uint32_t* flag, uint32_t* out) {
    if (threadIdx.x == 0) {
        while (ptx::ld_acquire_sys_global(flag) == 0) {
        }
    }
    __syncthreads();
    out[threadIdx.x] = data[threadIdx.x];
}

// ---- Atomics and fences ------------------------------------------------------------------------------------------------

extern "C" __global__ void atomic_scope(uint32_t* out) { atomicAdd_block(out, 1); }

extern "C" __global__ void atomic_scope_ok(uint32_t* out) { atomicAdd(out, 1); }

extern "C" __global__ void livelock(const uint32_t* flag, uint32_t* out) {
    while (ptx::ld_acquire_gpu_global(flag) == 0) {
    }
    out[threadIdx.x] = 1;
}

namespace {

template <bool FENCE>
__device__ __forceinline__ void last_block(uint32_t* partial, uint32_t* count, uint32_t* out) {
    __shared__ bool last;
    const uint32_t sum = __syncthreads_count(1);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
        if (FENCE) {
            __threadfence();
        }
        last = atomicAdd(count, 1) == gridDim.x - 1;
        if (FENCE) {
            __threadfence();
        }
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        uint32_t total = 0;
        for (uint32_t i = 0; i < gridDim.x; ++i) {
            total += partial[i];
        }
        out[0] = total;
    }
}

} // namespace

extern "C" __global__ void last_block_no_fence(uint32_t* partial, uint32_t* count, uint32_t* out) { last_block<false>(partial, count, out); }
extern "C" __global__ void last_block_no_fence_ok(uint32_t* partial, uint32_t* count, uint32_t* out) { last_block<true>(partial, count, out); }

// ---- Barriers and warps ------------------------------------------------------------------------------------------------

extern "C" __global__ void barrier_count(uint32_t* out) {
    __shared__ uint32_t values[128];
    values[threadIdx.x] = threadIdx.x;
    if (threadIdx.x < 96) {
        ptx::bar_sync(1, 128);
    }
    ptx::bar_sync(2, 128);
    out[threadIdx.x] = values[127 - threadIdx.x];
}

extern "C" __global__ void barrier_count_ok(uint32_t* out) {
    __shared__ uint32_t values[128];
    values[threadIdx.x] = threadIdx.x;
    if (threadIdx.x < 96) {
        ptx::bar_sync(1, 96);
    }
    ptx::bar_sync(2, 128);
    out[threadIdx.x] = values[127 - threadIdx.x];
}

extern "C" __global__ void divergent_barrier(uint32_t* out) {
    __shared__ uint32_t values[128];
    values[threadIdx.x] = threadIdx.x;
    if (threadIdx.x % 32 < 16) {
        __syncthreads();
        out[threadIdx.x] = values[(threadIdx.x + 64) % 128];
    } else {
        out[threadIdx.x] = 0;
        __syncthreads();
        out[threadIdx.x] += values[(threadIdx.x + 64) % 128];
    }
}

// barrier.sync without .aligned may be reached from different places of a warp's program.
extern "C" __global__ void divergent_barrier_ok(uint32_t* out) {
    __shared__ uint32_t values[128];
    values[threadIdx.x] = threadIdx.x;
    if (threadIdx.x % 32 < 16) {
        ptx::barrier_sync(0);
        out[threadIdx.x] = values[(threadIdx.x + 64) % 128];
    } else {
        out[threadIdx.x] = 0;
        ptx::barrier_sync(0);
        out[threadIdx.x] += values[(threadIdx.x + 64) % 128];
    }
}

extern "C" __global__ void shuffle_absent(uint32_t* out) {
    if (threadIdx.x % 2 == 1) {
        return;
    }
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, threadIdx.x, 1);
}

extern "C" __global__ void shuffle_absent_ok(uint32_t* out) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, threadIdx.x, 1);
    if (threadIdx.x % 2 == 1) {
        return;
    }
    out[threadIdx.x] = other;
}

extern "C" __global__ void shuffle_not_named(uint32_t* out) { out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, threadIdx.x, 1); }

// ---- cp.async ----------------------------------------------------------------------------------------------------------

namespace {

template <bool WAIT, bool BARRIER>
__device__ __forceinline__ void copy(const uint32_t* x, uint32_t* out) {
    __shared__ __align__(16) uint32_t values[128];
    if (threadIdx.x < 32) {
        ptx::cp_async_cg_16(ptx::shared_address(values + threadIdx.x * 4), x + threadIdx.x * 4);
    }
    ptx::cp_async_commit_group();
    if (WAIT) {
        ptx::cp_async_wait_group<0>();
    }
    if (BARRIER) {
        __syncthreads();
    }
    out[threadIdx.x] = ptx::ld_shared_u32(ptx::shared_address(values + threadIdx.x));
    ptx::cp_async_wait_all();
}

} // namespace

extern "C" __global__ void copy_no_wait(const uint32_t* x, uint32_t* out) { copy<false, true>(x, out); }
extern "C" __global__ void copy_no_barrier(const uint32_t* x, uint32_t* out) { copy<true, false>(x, out); }
extern "C" __global__ void copy_no_wait_ok(const uint32_t* x, uint32_t* out) { copy<true, true>(x, out); }

// ---- Ends --------------------------------------------------------------------------------------------------------------

extern "C" __global__ void trap_here(uint32_t* out, uint32_t n) {
    if (threadIdx.x == n) {
        ptx::trap();
    }
    out[threadIdx.x] = threadIdx.x;
}

extern "C" __global__ void assert_here(const uint32_t* x, uint32_t* out) {
    assert(x[threadIdx.x] != 0);
    out[threadIdx.x] = x[threadIdx.x];
}
