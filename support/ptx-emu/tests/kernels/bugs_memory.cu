// archs: sm_80
//
// Accesses that are wrong by themselves, each beside a correct twin (`*_ok`). One block of 64 threads unless stated; no dynamic shared memory.
//
// kernel(parameters)                                     expected
// global_out_of_bounds(u32* out, n)                      thread i writes out[i] for i <= n: thread n (< 64) writes past an out of n elements
// global_out_of_bounds_ok(u32* out, n)                   the same for i < n: out[i] = i
// global_before_start(u32* out)                          thread 0 writes out[-1]
// shared_out_of_bounds(u32* out, n)                      with n = 64, thread 63 writes element 64 of a shared array of 64; out[i] = i else
// shared_out_of_bounds_ok(u32* out, n)                   with n = 64: out[i] = (i + 1) % 64
// dynamic_shared_too_small(u32* out)                     reads and writes 64 u32 of dynamic shared memory: launched with 252 bytes an error, with 256
//                                                        none: out[i] = 63 - i
// misaligned_vector(const u32* x, u32* out, offset)      16-byte load at x + 4 * i + offset elements: offset 1 misaligned, 0 right: out[i] = sum of the 4
// misaligned_scalar(const u8* x, u32* out, offset)       4-byte load at x + 4 * i + offset bytes: offset 2 misaligned, 0 right: out[i] = the word
// uninitialised_shared(u32* out)                         threads below 32 write a shared array of 64, all read theirs: 32 .. 63 read what nobody wrote
// uninitialised_shared_ok(u32* out)                      all write: out[i] = i + 7
// uninitialised_register(u32* out)                       adds a register that nothing wrote
// uninitialised_register_ok(u32* out)                    out[i] = i + 5
// uninitialised_global(const u32* x, u32* out)           out[i] = x[i]: an error when the host wrote only a part of x, none when all of it
// uninitialised_local(u32* out, n)                       writes the first n of 64 local u32, reads element i: n = 60 an error, n = 64: out[i] = i * i
// touch(u32* x)                                          x[i] += 1, for null, freed and foreign pointers (the host's part)
// read_const_global(const u32* x, u32* out)              out[i] = x[i] by the non-coherent path, and thread 0 of block 1 writes x[0] when there are two
//                                                        blocks: an error (memory that ld.global.nc reads is written by the same grid); one block: none

#include <cstdint>

namespace ptx {

// A sum whose one operand is a register that this text declares and does not write.
__device__ __forceinline__ uint32_t add_unwritten(uint32_t x) {
    uint32_t d;
    asm volatile("{\n\t"
                 ".reg .b32 unwritten;\n\t"
                 "add.u32 %0, %1, unwritten;\n\t"
                 "}"
                 : "=r"(d)
                 : "r"(x));
    return d;
}

__device__ __forceinline__ uint32_t add_written(uint32_t x) {
    uint32_t d;
    asm volatile("{\n\t"
                 ".reg .b32 written;\n\t"
                 "mov.b32 written, 5;\n\t"
                 "add.u32 %0, %1, written;\n\t"
                 "}"
                 : "=r"(d)
                 : "r"(x));
    return d;
}

} // namespace ptx

extern "C" __global__ void global_out_of_bounds(uint32_t* out, uint32_t n) {
    if (threadIdx.x <= n) {
        out[threadIdx.x] = threadIdx.x;
    }
}

extern "C" __global__ void global_out_of_bounds_ok(uint32_t* out, uint32_t n) {
    if (threadIdx.x < n) {
        out[threadIdx.x] = threadIdx.x;
    }
}

extern "C" __global__ void global_before_start(uint32_t* out) {
    if (threadIdx.x == 0) {
        out[-1] = 1;
    }
}

extern "C" __global__ void shared_out_of_bounds(uint32_t* out, uint32_t n) {
    __shared__ uint32_t values[64];
    values[threadIdx.x] = threadIdx.x;
    __syncthreads();
    // Meant to wrap around, and does not.
    const uint32_t next = threadIdx.x + 1;
    const uint32_t mine = values[threadIdx.x];
    __syncthreads();
    values[next + 64 - n] = mine + 1;
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
}

extern "C" __global__ void shared_out_of_bounds_ok(uint32_t* out, uint32_t n) {
    __shared__ uint32_t values[64];
    values[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = values[(threadIdx.x + 1) % n];
}

extern "C" __global__ void dynamic_shared_too_small(uint32_t* out) {
    extern __shared__ uint32_t dynamic[];
    dynamic[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = dynamic[63 - threadIdx.x];
}

extern "C" __global__ void misaligned_vector(const uint32_t* x, uint32_t* out, uint32_t offset) {
    const uint4 four = *reinterpret_cast<const uint4*>(x + threadIdx.x * 4 + offset);
    out[threadIdx.x] = four.x + four.y + four.z + four.w;
}

extern "C" __global__ void misaligned_scalar(const uint8_t* x, uint32_t* out, uint32_t offset) {
    out[threadIdx.x] = *reinterpret_cast<const uint32_t*>(x + threadIdx.x * 4 + offset);
}

extern "C" __global__ void uninitialised_shared(uint32_t* out) {
    __shared__ uint32_t values[64];
    if (threadIdx.x < 32) {
        values[threadIdx.x] = threadIdx.x + 7;
    }
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
}

extern "C" __global__ void uninitialised_shared_ok(uint32_t* out) {
    __shared__ uint32_t values[64];
    values[63 - threadIdx.x] = 63 - threadIdx.x + 7;
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];
}

extern "C" __global__ void uninitialised_register(uint32_t* out) { out[threadIdx.x] = ptx::add_unwritten(threadIdx.x); }

extern "C" __global__ void uninitialised_register_ok(uint32_t* out) { out[threadIdx.x] = ptx::add_written(threadIdx.x); }

extern "C" __global__ void uninitialised_global(const uint32_t* x, uint32_t* out) { out[threadIdx.x] = x[threadIdx.x]; }

extern "C" __global__ void uninitialised_local(uint32_t* out, uint32_t n) {
    uint32_t values[64];
#pragma unroll 1
    for (uint32_t i = 0; i < n; ++i) {
        values[i] = i * i;
    }
    out[threadIdx.x] = values[threadIdx.x];
}

extern "C" __global__ void touch(uint32_t* x) { x[threadIdx.x] += 1; }

extern "C" __global__ void read_const_global(const uint32_t* x, uint32_t* out) {
    if (blockIdx.x == 0) {
        out[threadIdx.x] = __ldg(x + threadIdx.x);
    } else if (threadIdx.x == 0) {
        *const_cast<volatile uint32_t*>(x) = 1;
    }
}
