// archs: sm_80 sm_90
//
// Sums of an array by each method, as one would write them first and as one would write them last. Plain CUDA C++, cooperative groups, no headers
// of this workspace.
//
// kernel(parameters)                                          threads  blocks  shared  result
// sum_interleaved(const f32* x, f32* partial, u32 n)          256      any     1024    partial[b]: sum of block b's elements; the blocks stride over x
// sum_sequential(the same)                                    256      any     1024    the same, conflict-free order of the tree
// sum_shuffle(the same)                                       any x32  any     0       the same, by warp shuffles
// sum_groups(the same)                                        any x32  any     0       the same, by cooperative groups
// sum_vector(const f32* x, f32* partial, u32 n)               256      any     0       the same, by float4 where x is aligned to 16 (it must be)
// sum_double(const f64* x, f64* out, u32 n)                   256      any     0       out[0] += the sum, by atomicAdd on doubles (out zeroed)
// sum_atomic(const u32* x, u64* out, u32 n)                   any x32  any     0       out[0] += sum (64 bits), one atomic a warp
// sum_redux(const u32* x, u32* out, u32 n)                    any x32  any     4       out[0] += sum modulo 2^32, redux.sync and a shared atomic
// sum_last_block(const f32* x, f32* partial, u32* count, f32* out, u32 n)
//                                                             256      any     0       out[0] = the sum, by the block that finishes last; count[0] must
//                                                                                      be 0 and is again
// extremes(const s32* x, s32* out, u32 n)                     any x32  any     0       out[0] = min(out[0], x), out[1] = max(out[1], x) by atomics
// histogram(const u8* x, u32* bins, u32 n)                    256      any     1024    bins[v] += count of v, privatised in shared memory
// histogram_match(the same)                                   any x32  any     0       the same, equal values of a warp counted by match.any
// count_if(const f32* x, f32 limit, u32* out, u32 n)          any x32  any     0       out[0] += number of x > limit, by ballot
//
// "Shared" is dynamic shared memory in bytes. Sums of small integers in f32 are exact whatever the order.

#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>

namespace cg = cooperative_groups;

namespace {

__device__ float strided_sum(const float* x, unsigned n) {
    float sum = 0.0f;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        sum += x[i];
    }
    return sum;
}

__device__ float block_sum_shuffle(float sum) {
    __shared__ float warps[32];
    const unsigned lane = threadIdx.x % warpSize;
    for (int offset = 16; offset > 0; offset >>= 1) {
        sum += __shfl_down_sync(0xffffffff, sum, offset);
    }
    if (lane == 0) {
        warps[threadIdx.x / warpSize] = sum;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = lane < blockDim.x / warpSize ? warps[lane] : 0.0f;
        for (int offset = 16; offset > 0; offset >>= 1) {
            sum += __shfl_down_sync(0xffffffff, sum, offset);
        }
    }
    return sum;
}

} // namespace

extern "C" __global__ void sum_interleaved(const float* x, float* partial, unsigned n) {
    extern __shared__ float values[];
    values[threadIdx.x] = strided_sum(x, n);
    __syncthreads();
    for (unsigned step = 1; step < blockDim.x; step *= 2) {
        if (threadIdx.x % (2 * step) == 0) {
            values[threadIdx.x] += values[threadIdx.x + step];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = values[0];
    }
}

extern "C" __global__ void sum_sequential(const float* x, float* partial, unsigned n) {
    extern __shared__ float values[];
    values[threadIdx.x] = strided_sum(x, n);
    __syncthreads();
    for (unsigned step = blockDim.x / 2; step > 0; step >>= 1) {
        if (threadIdx.x < step) {
            values[threadIdx.x] += values[threadIdx.x + step];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = values[0];
    }
}

extern "C" __global__ void sum_shuffle(const float* x, float* partial, unsigned n) {
    const float sum = block_sum_shuffle(strided_sum(x, n));
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
    }
}

extern "C" __global__ void sum_groups(const float* x, float* partial, unsigned n) {
    __shared__ float warps[32];
    const cg::thread_block block = cg::this_thread_block();
    const cg::thread_block_tile<32> warp = cg::tiled_partition<32>(block);
    const float sum = cg::reduce(warp, strided_sum(x, n), cg::plus<float>());
    if (warp.thread_rank() == 0) {
        warps[warp.meta_group_rank()] = sum;
    }
    block.sync();
    if (warp.meta_group_rank() == 0) {
        const float mine = warp.thread_rank() < warp.meta_group_size() ? warps[warp.thread_rank()] : 0.0f;
        const float total = cg::reduce(warp, mine, cg::plus<float>());
        if (warp.thread_rank() == 0) {
            partial[block.group_index().x] = total;
        }
    }
}

extern "C" __global__ void sum_vector(const float* x, float* partial, unsigned n) {
    float sum = 0.0f;
    const float4* fours = reinterpret_cast<const float4*>(x);
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n / 4; i += gridDim.x * blockDim.x) {
        const float4 four = fours[i];
        sum += (four.x + four.y) + (four.z + four.w);
    }
    if (blockIdx.x == 0 && threadIdx.x < n % 4) {
        sum += x[n / 4 * 4 + threadIdx.x];
    }
    sum = block_sum_shuffle(sum);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
    }
}

extern "C" __global__ void sum_double(const double* x, double* out, unsigned n) {
    __shared__ double values[256];
    double sum = 0.0;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        sum += x[i];
    }
    values[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned step = 128; step >= 32; step >>= 1) {
        if (threadIdx.x < step) {
            values[threadIdx.x] += values[threadIdx.x + step];
        }
        __syncthreads();
    }
    if (threadIdx.x < 32) {
        sum = values[threadIdx.x];
        for (int offset = 16; offset > 0; offset >>= 1) {
            sum += __shfl_xor_sync(0xffffffff, sum, offset);
        }
        if (threadIdx.x == 0) {
            atomicAdd(out, sum);
        }
    }
}

extern "C" __global__ void sum_atomic(const unsigned* x, unsigned long long* out, unsigned n) {
    unsigned long long sum = 0;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        sum += x[i];
    }
    for (int offset = 16; offset > 0; offset >>= 1) {
        sum += __shfl_down_sync(0xffffffff, sum, offset);
    }
    if (threadIdx.x % 32 == 0) {
        atomicAdd(out, sum);
    }
}

extern "C" __global__ void sum_redux(const unsigned* x, unsigned* out, unsigned n) {
    extern __shared__ unsigned total[];
    if (threadIdx.x == 0) {
        *total = 0;
    }
    __syncthreads();
    unsigned sum = 0;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        sum += x[i];
    }
    sum = __reduce_add_sync(0xffffffff, sum);
    if (threadIdx.x % 32 == 0) {
        atomicAdd(total, sum);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicAdd(out, *total);
    }
}

extern "C" __global__ void sum_last_block(const float* x, float* partial, unsigned* count, float* out, unsigned n) {
    __shared__ bool last;
    float sum = block_sum_shuffle(strided_sum(x, n));
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
        __threadfence();
        // Wraps to zero with the last block: ready for the next launch.
        last = atomicInc(count, gridDim.x - 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (last) {
        sum = 0.0f;
        for (unsigned i = threadIdx.x; i < gridDim.x; i += blockDim.x) {
            sum += partial[i];
        }
        sum = block_sum_shuffle(sum);
        if (threadIdx.x == 0) {
            *out = sum;
        }
    }
}

extern "C" __global__ void extremes(const int* x, int* out, unsigned n) {
    int low = 2147483647, high = -2147483647 - 1;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        low = min(low, x[i]);
        high = max(high, x[i]);
    }
    low = __reduce_min_sync(0xffffffff, low);
    high = __reduce_max_sync(0xffffffff, high);
    if (threadIdx.x % 32 == 0) {
        atomicMin(out, low);
        atomicMax(out + 1, high);
    }
}

extern "C" __global__ void histogram(const unsigned char* x, unsigned* bins, unsigned n) {
    extern __shared__ unsigned mine[];
    mine[threadIdx.x] = 0;
    __syncthreads();
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        atomicAdd(&mine[x[i]], 1);
    }
    __syncthreads();
    if (mine[threadIdx.x] != 0) {
        atomicAdd(&bins[threadIdx.x], mine[threadIdx.x]);
    }
}

extern "C" __global__ void histogram_match(const unsigned char* x, unsigned* bins, unsigned n) {
    const unsigned stride = gridDim.x * blockDim.x;
    // All lanes of a warp go around equally often, the late ones without an element.
    for (unsigned first = blockIdx.x * blockDim.x; first < n; first += stride) {
        const unsigned i = first + threadIdx.x;
        const unsigned present = __ballot_sync(0xffffffff, i < n);
        if (i < n) {
            const unsigned value = x[i];
            const unsigned peers = __match_any_sync(present, value);
            if (__ffs(peers) - 1 == static_cast<int>(threadIdx.x % 32)) {
                atomicAdd(&bins[value], __popc(peers));
            }
        }
        __syncwarp();
    }
}

extern "C" __global__ void count_if(const float* x, float limit, unsigned* out, unsigned n) {
    const unsigned stride = gridDim.x * blockDim.x;
    unsigned found = 0;
    for (unsigned first = blockIdx.x * blockDim.x; first < n; first += stride) {
        const unsigned i = first + threadIdx.x;
        found += __popc(__ballot_sync(0xffffffff, i < n && x[i] > limit));
    }
    if (threadIdx.x % 32 == 0 && found != 0) {
        atomicAdd(out, found);
    }
}
