// Reductions over the lanes of a warp and the warps of a block. Sums are binary trees of a fixed shape: the same bits on every
// run.
#pragma once

#include "ptx.cuh"

namespace reduce {

struct Add {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a + b;
    }
};
struct Max {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a > b ? a : b;
    }
    // A NaN loses against a number.
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Min {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a < b ? a : b;
    }
    __device__ __forceinline__ float operator()(float a, float b) const { return fminf(a, b); }
};

// Over groups of WIDTH consecutive lanes (a power of two up to 32): every lane gets its group's result. All 32 lanes are here.
template <int WIDTH = 32, class T, class Op>
__device__ __forceinline__ T warp(T x, Op op) {
    static_assert(WIDTH > 0 && WIDTH <= 32 && (WIDTH & (WIDTH - 1)) == 0, "a power of two up to 32");
#pragma unroll
    for (int distance = WIDTH / 2; distance > 0; distance /= 2) {
        x = op(x, __shfl_xor_sync(0xffffffffu, x, distance));
    }
    return x;
}

// Inclusive scan along the lanes: lane l gets op over lanes 0..=l. All 32 lanes are here.
template <class T, class Op>
__device__ __forceinline__ T warp_inclusive_scan(T x, Op op) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
        const T other = __shfl_up_sync(0xffffffffu, x, distance);
        if (lane >= distance) {
            x = op(other, x);
        }
    }
    return x;
}

// Over a one-dimensional block of WARPS full warps: every thread gets the result. `scratch` is WARPS values of shared memory; it
// may be used again after the caller's next __syncthreads.
template <int WARPS, class T, class Op>
__device__ __forceinline__ T block(T x, Op op, T* scratch) {
    static_assert(WARPS > 0 && WARPS <= 32 && (WARPS & (WARPS - 1)) == 0, "a power of two up to 32");
    x = warp(x, op);
    if (threadIdx.x % 32 == 0) {
        scratch[threadIdx.x / 32] = x;
    }
    __syncthreads();
    return warp<WARPS>(scratch[threadIdx.x % WARPS], op);
}

} // namespace reduce
