// archs: sm_80 sm_90
//
// Bitonic sort of u32 keys with u32 values, ascending (direction 1) or descending (0), n a power of two. Not stable. Plain CUDA C++.
//
// kernel(parameters)                                                              threads  blocks     what
// bitonic_sort_shared(u32* keys, u32* values, u32 n, u32 direction)               512      n / 1024   sorts each 1024 in shared memory (8192 bytes, static):
//                                                                                                     with alternating directions where n > 1024
// bitonic_merge_global(u32* keys, u32* values, u32 n, u32 size, u32 stride, u32 direction)
//                                                                                 256      n / 512    one step of the merge of runs of `size`
// bitonic_merge_shared(u32* keys, u32* values, u32 n, u32 size, u32 direction)    512      n / 1024   the steps of strides below 1024
// bitonic_sort_warp(f32* x, u32 n)                                                any x32  any        sorts each 32 of x ascending, by shuffles; n a multiple of 32
// odd_even_transpose(s16* x, u32 n)                                               any      1          sorts n <= 2 * threads s16 in dynamic shared memory (2n bytes)
//
// n = 1024: bitonic_sort_shared alone. More: bitonic_sort_shared, then for size = 2048, 4096 .. n: for stride = size / 2 down to 1024 merge_global,
// then merge_shared(size).

namespace {

constexpr unsigned SHARED = 1024;

__device__ __forceinline__ void order(unsigned& key_a, unsigned& value_a, unsigned& key_b, unsigned& value_b, bool ascending) {
    if ((key_a > key_b) == ascending) {
        unsigned swap = key_a;
        key_a = key_b;
        key_b = swap;
        swap = value_a;
        value_a = value_b;
        value_b = swap;
    }
}

} // namespace

extern "C" __global__ void bitonic_sort_shared(unsigned* keys, unsigned* values, unsigned n, unsigned direction) {
    __shared__ unsigned k[SHARED], v[SHARED];
    const unsigned first = blockIdx.x * SHARED + threadIdx.x;
    k[threadIdx.x] = keys[first];
    v[threadIdx.x] = values[first];
    k[threadIdx.x + SHARED / 2] = keys[first + SHARED / 2];
    v[threadIdx.x + SHARED / 2] = values[first + SHARED / 2];
    for (unsigned size = 2; size < SHARED; size <<= 1) {
        const bool ascending = (threadIdx.x & (size / 2)) == 0;
        for (unsigned stride = size / 2; stride > 0; stride >>= 1) {
            __syncthreads();
            const unsigned at = 2 * threadIdx.x - (threadIdx.x & (stride - 1));
            order(k[at], v[at], k[at + stride], v[at + stride], ascending);
        }
    }
    // The last merge decides the block's direction.
    const bool ascending = n == SHARED ? direction != 0 : (blockIdx.x & 1) == 0;
    for (unsigned stride = SHARED / 2; stride > 0; stride >>= 1) {
        __syncthreads();
        const unsigned at = 2 * threadIdx.x - (threadIdx.x & (stride - 1));
        order(k[at], v[at], k[at + stride], v[at + stride], ascending);
    }
    __syncthreads();
    keys[first] = k[threadIdx.x];
    values[first] = v[threadIdx.x];
    keys[first + SHARED / 2] = k[threadIdx.x + SHARED / 2];
    values[first + SHARED / 2] = v[threadIdx.x + SHARED / 2];
}

extern "C" __global__ void bitonic_merge_global(unsigned* keys, unsigned* values, unsigned n, unsigned size, unsigned stride,
                                                unsigned direction) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned inside = i & (n / 2 - 1);
    const bool ascending = size == n ? direction != 0 : (inside & (size / 2)) == 0;
    const unsigned at = 2 * i - (i & (stride - 1));
    unsigned key_a = keys[at], value_a = values[at], key_b = keys[at + stride], value_b = values[at + stride];
    order(key_a, value_a, key_b, value_b, ascending);
    keys[at] = key_a;
    values[at] = value_a;
    keys[at + stride] = key_b;
    values[at + stride] = value_b;
}

extern "C" __global__ void bitonic_merge_shared(unsigned* keys, unsigned* values, unsigned n, unsigned size, unsigned direction) {
    __shared__ unsigned k[SHARED], v[SHARED];
    const unsigned first = blockIdx.x * SHARED + threadIdx.x;
    k[threadIdx.x] = keys[first];
    v[threadIdx.x] = values[first];
    k[threadIdx.x + SHARED / 2] = keys[first + SHARED / 2];
    v[threadIdx.x + SHARED / 2] = values[first + SHARED / 2];
    const unsigned inside = (blockIdx.x * (SHARED / 2) + threadIdx.x) & (n / 2 - 1);
    const bool ascending = size == n ? direction != 0 : (inside & (size / 2)) == 0;
    for (unsigned stride = SHARED / 2; stride > 0; stride >>= 1) {
        __syncthreads();
        const unsigned at = 2 * threadIdx.x - (threadIdx.x & (stride - 1));
        order(k[at], v[at], k[at + stride], v[at + stride], ascending);
    }
    __syncthreads();
    keys[first] = k[threadIdx.x];
    values[first] = v[threadIdx.x];
    keys[first + SHARED / 2] = k[threadIdx.x + SHARED / 2];
    values[first + SHARED / 2] = v[threadIdx.x + SHARED / 2];
}

extern "C" __global__ void bitonic_sort_warp(float* x, unsigned n) {
    const unsigned lane = threadIdx.x % 32;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        float mine = x[i];
        for (unsigned size = 2; size <= 32; size <<= 1) {
            for (unsigned stride = size / 2; stride > 0; stride >>= 1) {
                const float other = __shfl_xor_sync(0xffffffff, mine, stride);
                const bool keep_small = ((lane & stride) == 0) == ((lane & size) == 0);
                mine = keep_small ? fminf(mine, other) : fmaxf(mine, other);
            }
        }
        x[i] = mine;
    }
}

extern "C" __global__ void odd_even_transpose(short* x, unsigned n) {
    extern __shared__ short values[];
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        values[i] = x[i];
    }
    for (unsigned turn = 0; turn < n; ++turn) {
        __syncthreads();
        const unsigned at = 2 * threadIdx.x + turn % 2;
        if (at + 1 < n && values[at] > values[at + 1]) {
            const short swap = values[at];
            values[at] = values[at + 1];
            values[at + 1] = swap;
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        x[i] = values[i];
    }
}
