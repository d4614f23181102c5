// What nvcc makes of ordinary CUDA: initialised tables, calls of every kind, switches, local arrays, templates, inline PTX.
#include <cassert>
#include <cstdio>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

struct Record {
    char tag;
    int count;
    const float *table;
    double weight;
};
typedef int (*unary)(int);

__constant__ int integers[16] = {1, -2, 3, 4, 5, 6, 7, 8};
__constant__ float floats[4] = {1.5f, -0.0f, 1e-30f};
__constant__ double doubles[4] = {1.5, -0.0, 1e-30};
__constant__ float4 vectors[2] = {{1, 2, 3, 4}, {5, 6, 7, 8}};
__constant__ Record records[2] = {{'x', 3, floats + 1, 2.0}, {1, 2, 0, 3}};
__device__ int counter = 7;
__device__ int *pointer = &counter;
__device__ const char *words[] = {"abc", "def"};
__device__ volatile int matrix[3][4] = {{1, 2}, {3}};
__device__ Record record = {'x', 3, floats, 2.0};
extern __shared__ char dynamic_shared[];

__device__ __noinline__ int triple(int x) { return x * 3; }
__device__ __noinline__ int add_counter(int x) { return x + counter; }
__device__ unary functions[] = {triple, add_counter};
__device__ __noinline__ Record bump(int by, Record record) {
    record.count += by;
    return record;
}
__device__ __noinline__ int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

extern "C" __global__ void __launch_bounds__(256, 2) branches(int *out, int n, Record in) {
    int t = threadIdx.x, r = 0;
    switch (n + t) {
    case 0: r = t; break;
    case 1: r = t * t; break;
    case 2: r = __popc(t); break;
    case 3: r = t ^ 7; break;
    case 4: r = n / t; break;
    case 5: r = n % t; break;
    case 6:
        r = integers[t & 15];
        asm volatile("nanosleep.u32 3;");
        break;
    case 9: r = functions[t & 1](t); break;
    default: r = 2;
    }
    int local[32];
    for (int i = 0; i < 32; ++i) local[(i * n) & 31] = i;
    r += local[n & 31] + matrix[t & 1][2];
    printf("hello %d %s\n", r, words[t & 1]);
    Record q = bump(r, in);
    r += q.count + (int)q.table[0] + fibonacci(n) + record.count + records[t & 1].tag + (int)vectors[t & 1].y;
    dynamic_shared[t] = r;
    __syncthreads();
    r += __shfl_xor_sync(0xffffffff, r, 3);
    if (__any_sync(0xffffffff, r > 3)) r = dynamic_shared[255 - t];
    atomicAdd(out + 1, r);
    out[t] = r + (int)(floats[t & 3] * doubles[n & 3]);
}

template <int N> __global__ void templated(__half2 *a, const __nv_bfloat162 *b, float4 *c) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        a[i] = __hfma2(a[i], a[i + 1], a[i + 2]);
        c[i].x += __bfloat162float(b[i].x);
        float4 x = c[i + 9];
        c[i] = make_float4(sqrtf(x.x), __expf(x.y), sinf(x.z), x.w / 3.f);
    }
    asm volatile("{\n .reg .pred P1;\n LAB_WAIT:\n setp.lt.u32 P1, %0, %1;\n @P1 bra DONE;\n bra LAB_WAIT;\n DONE:\n }\n" ::"r"(3), "r"(N));
}
template __global__ void templated<2>(__half2 *a, const __nv_bfloat162 *b, float4 *c);
template __global__ void templated<5>(__half2 *a, const __nv_bfloat162 *b, float4 *c);

__global__ void grid_constant(const __grid_constant__ Record in, float *__restrict__ out) {
    const Record *at = &in;
    __shared__ int rows[3][5];
    rows[threadIdx.x][1] = 3;
    __syncthreads();
    out[threadIdx.x] = at->count + *(&at->count + threadIdx.x) + rows[0][threadIdx.x];
    assert(out);
    asm volatile("trap;");
}
