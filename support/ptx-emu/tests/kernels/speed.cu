// archs: sm_80
//
// Loads for measuring how fast instructions execute: no tensor instructions, no synchronisation to wait for.
//
// kernel(parameters)                                     threads  blocks  result
// speed_registers(u32* out, u32 times)                   any      any     out[global thread] = a checksum; per thread and turn 16 arithmetic instructions
//                                                                         (integer, float, logic, shift, select) and the loop's 3
// speed_memory(const f32* x, f32* y, u32 n, u32 times)   256      any     y[i] = sum of neighbours, times over: per turn a global load, 3 shared
//                                                                         accesses, 2 barriers. n = blocks * 256; 1024 bytes of dynamic shared memory
// speed_divergent(u32* out, u32 times)                   any      any     lanes take one of two paths of unequal length each turn (out as above)

#include <cstdint>

extern "C" __global__ void speed_registers(uint32_t* out, uint32_t times) {
    const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t a = thread * 2654435761u + 1, b = thread ^ 0x9e3779b9u;
    float x = 1.0f + static_cast<float>(thread % 7), y = 0.5f;
#pragma unroll 1
    for (uint32_t i = 0; i < times; ++i) {
        a = a * 1664525u + 1013904223u;
        b ^= b << 13;
        b ^= b >> 17;
        b ^= b << 5;
        x = x * 0.999f + y;
        y = y * 0.75f + 0.125f;
        a += b & 0xffu;
        x = x > 4.0f ? x - 4.0f : x;
        b += a >> 3;
    }
    out[thread] = a ^ b ^ __float_as_uint(x) ^ __float_as_uint(y);
}

extern "C" __global__ void speed_memory(const float* x, float* y, uint32_t n, uint32_t times) {
    extern __shared__ float values[];
    const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
    float sum = 0.0f;
#pragma unroll 1
    for (uint32_t i = 0; i < times; ++i) {
        values[threadIdx.x] = x[(thread + i * 32) % n];
        __syncthreads();
        sum += values[(threadIdx.x + 1) % 256] + values[(threadIdx.x + 255) % 256];
        __syncthreads();
    }
    y[thread] = sum;
}

extern "C" __global__ void speed_divergent(uint32_t* out, uint32_t times) {
    const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t a = thread + 1;
#pragma unroll 1
    for (uint32_t i = 0; i < times; ++i) {
        if (((a >> 7) & 1) != 0) {
#pragma unroll 1
            for (uint32_t j = 0; j < 3; ++j) {
                a = a * 1664525u + j;
            }
        } else {
            a = a * 22695477u + 1;
        }
    }
    out[thread] = a;
}
