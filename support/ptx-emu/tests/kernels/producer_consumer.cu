// archs: sm_80 sm_90
// variants: scope=-DBUG=1
//
// Two devices that work together while both run: data and flags in memory that both map. Plain CUDA C++ and libcu++ atomics, no headers of this
// workspace. Every kernel is launched on each device at the same time, and all its blocks must be resident.
//
// kernel(parameters)                                                             threads  where, result
// produce(const u32* x, u32* ring, u32* full, u32* empty, u32 chunks, u32 slots) 256      device 0. Block b sends chunks * 256 values, x[(b * chunks + c) * 256 + t],
//                                                                                         through its part of ring, [blocks, slots, 256] (on either device)
// consume(const u32* ring, u32* full, u32* empty, u32* y, u32 chunks, u32 slots)
//                                                                                256      device 1, as many blocks. y[i] = 3 * x[i] + 1.
//                                                                                         full, empty: [blocks, slots], zeroed
// produce_fenced, consume_fenced (the same)                                      256      the same with volatile flags and __threadfence_system
// ping_pong(u32* ball, u32* out, u32 me, u32 turns)                              32       both, one block, me = 0 and 1: ball (zeroed) counts to 2 * turns;
//                                                                                         out[turn] = 2 * turn + me: what each saw when it was its turn
// count_together(u32* count, u32 times)                                          any      both: count[0] += threads * times, atomics at system scope
// exchange(const u32* mine, u32* theirs, const u32* inbox, u32* their_flag, u32* my_flag, u32* out, u32 n)
//                                                                                256      both, one block: writes mine[0..n] to theirs, sets their_flag, waits for
//                                                                                         my_flag (both zeroed), out[i] = inbox[i]. `theirs` of one is
//                                                                                         `inbox` of the other, the flags likewise
//
// BUG 1: flags of produce and consume at device scope: a race on the ring, or a flag never seen.

#include <cuda/atomic>

#ifndef BUG
#define BUG 0
#endif

namespace {

constexpr unsigned CHUNK = 256;
using Flag = cuda::atomic_ref<unsigned, BUG == 1 ? cuda::thread_scope_device : cuda::thread_scope_system>;

} // namespace

extern "C" __global__ void __launch_bounds__(CHUNK)
    produce(const unsigned* x, unsigned* ring, unsigned* full, unsigned* empty, unsigned chunks, unsigned slots) {
    for (unsigned c = 0; c < chunks; ++c) {
        const unsigned slot = blockIdx.x * slots + c % slots, turn = c / slots;
        if (threadIdx.x == 0) {
            while (Flag(empty[slot]).load(cuda::memory_order_acquire) != turn) {
            }
        }
        __syncthreads();
        ring[slot * CHUNK + threadIdx.x] = x[(blockIdx.x * chunks + c) * CHUNK + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0) {
            Flag(full[slot]).store(turn + 1, cuda::memory_order_release);
        }
    }
}

extern "C" __global__ void __launch_bounds__(CHUNK)
    consume(const unsigned* ring, unsigned* full, unsigned* empty, unsigned* y, unsigned chunks, unsigned slots) {
    for (unsigned c = 0; c < chunks; ++c) {
        const unsigned slot = blockIdx.x * slots + c % slots, turn = c / slots;
        if (threadIdx.x == 0) {
            while (Flag(full[slot]).load(cuda::memory_order_acquire) != turn + 1) {
            }
        }
        __syncthreads();
        const unsigned value = ring[slot * CHUNK + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0) {
            Flag(empty[slot]).store(turn + 1, cuda::memory_order_release);
        }
        y[(blockIdx.x * chunks + c) * CHUNK + threadIdx.x] = 3 * value + 1;
    }
}

extern "C" __global__ void __launch_bounds__(CHUNK)
    produce_fenced(const unsigned* x, unsigned* ring, volatile unsigned* full, volatile unsigned* empty, unsigned chunks, unsigned slots) {
    for (unsigned c = 0; c < chunks; ++c) {
        const unsigned slot = blockIdx.x * slots + c % slots, turn = c / slots;
        if (threadIdx.x == 0) {
            while (empty[slot] != turn) {
            }
            __threadfence_system();
        }
        __syncthreads();
        ring[slot * CHUNK + threadIdx.x] = x[(blockIdx.x * chunks + c) * CHUNK + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence_system();
            full[slot] = turn + 1;
        }
    }
}

extern "C" __global__ void __launch_bounds__(CHUNK)
    consume_fenced(const unsigned* ring, volatile unsigned* full, volatile unsigned* empty, unsigned* y, unsigned chunks, unsigned slots) {
    for (unsigned c = 0; c < chunks; ++c) {
        const unsigned slot = blockIdx.x * slots + c % slots, turn = c / slots;
        if (threadIdx.x == 0) {
            while (full[slot] != turn + 1) {
            }
            __threadfence_system();
        }
        __syncthreads();
        const unsigned value = ring[slot * CHUNK + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence_system();
            empty[slot] = turn + 1;
        }
        y[(blockIdx.x * chunks + c) * CHUNK + threadIdx.x] = 3 * value + 1;
    }
}

extern "C" __global__ void ping_pong(unsigned* ball, unsigned* out, unsigned me, unsigned turns) {
    cuda::atomic_ref<unsigned, cuda::thread_scope_system> shared(*ball);
    if (threadIdx.x == 0) {
        for (unsigned turn = 0; turn < turns; ++turn) {
            const unsigned mine = 2 * turn + me;
            unsigned seen = mine;
            // Takes the ball only when it says so, and passes it on.
            while (!shared.compare_exchange_weak(seen, mine + 1, cuda::memory_order_acq_rel)) {
                seen = mine;
                __nanosleep(20);
            }
            out[turn] = seen;
        }
    }
}

extern "C" __global__ void count_together(unsigned* count, unsigned times) {
    for (unsigned i = 0; i < times; ++i) {
        atomicAdd_system(count, 1);
    }
}

extern "C" __global__ void exchange(const unsigned* mine, unsigned* theirs, const unsigned* inbox, unsigned* their_flag, unsigned* my_flag,
                                    unsigned* out, unsigned n) {
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        theirs[i] = mine[i];
    }
    // Every thread orders its own writes, then one tells.
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicExch_system(their_flag, 1);
        while (atomicAdd_system(my_flag, 0) == 0) {
        }
        __threadfence_system();
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        out[i] = inbox[i];
    }
}
