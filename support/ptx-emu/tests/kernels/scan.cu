// archs: sm_80 sm_90
//
// Prefix sums. Plain CUDA C++ and libcu++ atomics, no headers of this workspace.
//
// kernel(parameters)                                             threads  blocks                  result
// scan_block(const u32* x, u32* y, u32 n)                        512      1                       y[i] = x[0] + .. + x[i], n <= 512; Hillis and Steele's
//                                                                                                 steps in 4096 bytes of dynamic shared memory
// scan_exclusive_tree(const u32* x, u32* y, u32 n)               256      1                       y[i] = x[0] + .. + x[i - 1], n <= 512; up-sweep and
//                                                                                                 down-sweep, 2048 bytes of dynamic shared memory
// scan_lookback(const u32* x, u32* y, u64* state, u32* ticket, u32 n)
//                                                                256      ceil(n / 1024)          y[i] = x[0] + .. + x[i], any n, one pass: each block waits
//                                                                                                 for the blocks before it. state: one word a block, zeroed;
//                                                                                                 ticket: zeroed
// scan_segments(const f32* x, const u32* flags, f32* y, u32 n)   256      ceil(n / 32 / 8)        sums that begin anew where flags[i] != 0 and at each
//                                                                                                 multiple of 32
//
// All sums of u32 are modulo 2^32. scan_lookback: tiles are numbered by ticket, so that a block's predecessors have started; a state word is
// status << 32 | value with status 1 (the tile's own sum) or 2 (sum of all up to it), written by release and read by acquire.

#include <cuda/atomic>

namespace {

__device__ unsigned inclusive_warp(unsigned x) {
    const unsigned lane = threadIdx.x % 32;
    for (unsigned step = 1; step < 32; step <<= 1) {
        const unsigned other = __shfl_up_sync(0xffffffff, x, step);
        if (lane >= step) {
            x += other;
        }
    }
    return x;
}

} // namespace

extern "C" __global__ void scan_block(const unsigned* x, unsigned* y, unsigned n) {
    extern __shared__ unsigned buffers[];
    unsigned* from = buffers;
    unsigned* to = buffers + blockDim.x;
    from[threadIdx.x] = threadIdx.x < n ? x[threadIdx.x] : 0;
    __syncthreads();
    for (unsigned step = 1; step < blockDim.x; step <<= 1) {
        to[threadIdx.x] = from[threadIdx.x] + (threadIdx.x >= step ? from[threadIdx.x - step] : 0);
        __syncthreads();
        unsigned* const swap = from;
        from = to;
        to = swap;
    }
    if (threadIdx.x < n) {
        y[threadIdx.x] = from[threadIdx.x];
    }
}

extern "C" __global__ void scan_exclusive_tree(const unsigned* x, unsigned* y, unsigned n) {
    extern __shared__ unsigned tree[];
    const unsigned size = 2 * blockDim.x;
    for (unsigned i = threadIdx.x; i < size; i += blockDim.x) {
        tree[i] = i < n ? x[i] : 0;
    }
    unsigned distance = 1;
    for (unsigned active = blockDim.x; active > 0; active >>= 1) {
        __syncthreads();
        if (threadIdx.x < active) {
            const unsigned right = distance * (2 * threadIdx.x + 2) - 1;
            tree[right] += tree[right - distance];
        }
        distance *= 2;
    }
    if (threadIdx.x == 0) {
        tree[size - 1] = 0;
    }
    for (unsigned active = 1; active <= blockDim.x; active <<= 1) {
        distance /= 2;
        __syncthreads();
        if (threadIdx.x < active) {
            const unsigned right = distance * (2 * threadIdx.x + 2) - 1;
            const unsigned left = tree[right - distance];
            tree[right - distance] = tree[right];
            tree[right] += left;
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        y[i] = tree[i];
    }
}

extern "C" __global__ void __launch_bounds__(256)
    scan_lookback(const unsigned* x, unsigned* y, unsigned long long* state, unsigned* ticket, unsigned n) {
    constexpr unsigned EACH = 4;
    constexpr unsigned long long OWN = 1ull << 32, ALL = 2ull << 32;
    __shared__ unsigned tile_shared, before_shared, warps[8];
    using Word = cuda::atomic_ref<unsigned long long, cuda::thread_scope_device>;

    if (threadIdx.x == 0) {
        tile_shared = atomicAdd(ticket, 1);
    }
    __syncthreads();
    const unsigned tile = tile_shared;
    const unsigned first = (tile * blockDim.x + threadIdx.x) * EACH;

    unsigned values[EACH];
    unsigned sum = 0;
    for (unsigned i = 0; i < EACH; ++i) {
        sum += first + i < n ? x[first + i] : 0;
        values[i] = sum;
    }
    const unsigned inclusive = inclusive_warp(sum);
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (lane == 31) {
        warps[warp] = inclusive;
    }
    __syncthreads();
    unsigned before_warp = 0, total = 0;
    for (unsigned w = 0; w < 8; ++w) {
        before_warp += w < warp ? warps[w] : 0;
        total += warps[w];
    }

    if (warp == 0) {
        unsigned before = 0;
        if (tile == 0) {
            if (lane == 0) {
                Word(state[0]).store(ALL | total, cuda::memory_order_release);
            }
        } else {
            if (lane == 0) {
                Word(state[tile]).store(OWN | total, cuda::memory_order_release);
            }
            // 32 tiles at a time, from the nearest back to one whose sum of all is known.
            int nearest = static_cast<int>(tile) - 1;
            for (bool found = false; !found; nearest -= 32) {
                const int looked_at = nearest - static_cast<int>(lane);
                unsigned long long word = ALL;
                if (looked_at >= 0) {
                    do {
                        word = Word(state[looked_at]).load(cuda::memory_order_acquire);
                    } while (word == 0);
                }
                const unsigned known = __ballot_sync(0xffffffff, word >= ALL);
                // Lanes up to the nearest one that knows everything count.
                const unsigned last = known != 0 ? __ffs(known) - 1 : 31;
                before += __reduce_add_sync(0xffffffff, lane <= last ? static_cast<unsigned>(word) : 0);
                found = known != 0;
            }
            if (lane == 0) {
                Word(state[tile]).store(ALL | (before + total), cuda::memory_order_release);
            }
        }
        if (lane == 0) {
            before_shared = before;
        }
    }
    __syncthreads();
    const unsigned offset = before_shared + before_warp + inclusive - sum;
    for (unsigned i = 0; i < EACH; ++i) {
        if (first + i < n) {
            y[first + i] = offset + values[i];
        }
    }
}

extern "C" __global__ void scan_segments(const float* x, const unsigned* flags, float* y, unsigned n) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned lane = threadIdx.x % 32;
    float sum = i < n ? x[i] : 0.0f;
    const unsigned heads = __ballot_sync(0xffffffff, lane == 0 || (i < n && flags[i] != 0));
    // The lane at which this one's segment begins: the highest head up to it.
    const unsigned begin = 31 - __clz(heads & (0xffffffffu >> (31 - lane)));
    for (unsigned step = 1; step < 32; step <<= 1) {
        const float other = __shfl_up_sync(0xffffffff, sum, step);
        if (lane >= begin + step) {
            sum += other;
        }
    }
    if (i < n) {
        y[i] = sum;
    }
}
