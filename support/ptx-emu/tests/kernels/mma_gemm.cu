// archs: sm_80 sm_90a
//
// C = A B by tensor cores of a warp: cp.async into two buffers, ldmatrix, mma.sync. Plain CUDA C++ with the pipeline primitives of the toolkit and
// its own inline PTX, no headers of this workspace.
//
// kernel(parameters)                                                                       k, n multiples of  B            sums
// mma_gemm_bf16_nt(const bf16* a, const bf16* b, f32* c, u32 m, u32 n, u32 k)              8, -               [n, k]       f32
// mma_gemm_f16_nn(const f16* a, const f16* b, f16* c, u32 m, u32 n, u32 k)                 8, 8               [k, n]       f32, c rounded to f16
// mma_gemm_f16_sums(const f16* a, const f16* b, f16* c, u32 m, u32 n, u32 k)               8, -               [n, k]       f16
// mma_gemm_s8(const s8* a, const s8* b, s32* c, u32 m, u32 n, u32 k)                       16, -              [n, k]       s32, exact
//
// A is [m, k], C [m, n], all row-major and aligned to 16. 128 threads, grid (ceil(n / 64), ceil(m / 64)), no dynamic shared memory.
// Exact (but for the stated rounding) when inputs are small integers.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>

namespace {

constexpr unsigned TILE = 64, STEP_BYTES = 64; // 64 rows of A and of B at a time, 64 bytes along k

__device__ __forceinline__ unsigned shared_pointer(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void load_matrices(unsigned (&d)[4], const void* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_pointer(p)));
}

__device__ __forceinline__ void load_matrices_transposed(unsigned (&d)[4], const void* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_pointer(p)));
}

struct Bf16 {
    using Sum = float;
    static constexpr unsigned SUMS = 4;
    __device__ static void multiply(float* d, const unsigned* a, const unsigned* b) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
};

struct F16 {
    using Sum = float;
    static constexpr unsigned SUMS = 4;
    __device__ static void multiply(float* d, const unsigned* a, const unsigned* b) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
};

struct F16Sums {
    using Sum = unsigned; // two f16
    static constexpr unsigned SUMS = 2;
    __device__ static void multiply(unsigned* d, const unsigned* a, const unsigned* b) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, {%0,%1};\n"
                     : "+r"(d[0]), "+r"(d[1])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
};

struct S8 {
    using Sum = int;
    static constexpr unsigned SUMS = 4;
    __device__ static void multiply(int* d, const unsigned* a, const unsigned* b) {
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
};

// 64 rows of 64 bytes of a matrix whose rows have `bytes`; what lies outside becomes zero. Rows are 80 bytes apart in shared memory, so that
// ldmatrix finds 8 of them in different banks.
constexpr unsigned PITCH = STEP_BYTES + 16;

__device__ __forceinline__ void fetch_rows(unsigned char* to, const unsigned char* from, unsigned first_row, unsigned rows, unsigned first_byte,
                                           unsigned bytes) {
    for (unsigned i = threadIdx.x; i < TILE * STEP_BYTES / 16; i += blockDim.x) {
        const unsigned row = i / 4, at = first_byte + i % 4 * 16;
        const bool inside = first_row + row < rows && at < bytes;
        const size_t offset = inside ? static_cast<size_t>(first_row + row) * bytes + at : 0;
        __pipeline_memcpy_async(to + row * PITCH + i % 4 * 16, from + offset, 16, inside ? 0 : 16);
    }
}

// 32 rows (k) of 64 columns of a [k, n] matrix of 2-byte elements: rows of 128 bytes, 144 apart.
constexpr unsigned PITCH_NN = 128 + 16;

__device__ __forceinline__ void fetch_columns(unsigned char* to, const unsigned char* from, unsigned first_k, unsigned k, unsigned first_column,
                                              unsigned n) {
    for (unsigned i = threadIdx.x; i < 32 * 8; i += blockDim.x) {
        const unsigned row = i / 8, column = first_column + i % 8 * 8;
        const bool inside = first_k + row < k && column < n;
        const size_t offset = inside ? (static_cast<size_t>(first_k + row) * n + column) * 2 : 0;
        __pipeline_memcpy_async(to + row * PITCH_NN + i % 8 * 16, from + offset, 16, inside ? 0 : 16);
    }
}

// Warps 2 by 2, each 32 by 32. ELEMENT is bytes of an element of A and B.
template <class Mma, unsigned ELEMENT, bool NN, class Store>
__device__ __forceinline__ void gemm(const void* a, const void* b, unsigned m, unsigned n, unsigned k, Store store) {
    __shared__ __align__(128) unsigned char tile_a[2][TILE * PITCH];
    __shared__ __align__(128) unsigned char tile_b[2][TILE * PITCH];
    const unsigned char* bytes_a = static_cast<const unsigned char*>(a);
    const unsigned char* bytes_b = static_cast<const unsigned char*>(b);
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    const unsigned warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
    const unsigned steps = (k * ELEMENT + STEP_BYTES - 1) / STEP_BYTES;

    typename Mma::Sum sums[2][4][Mma::SUMS] = {};
    auto fetch = [&](unsigned step) {
        fetch_rows(tile_a[step % 2], bytes_a, first_row, m, step * STEP_BYTES, k * ELEMENT);
        if (NN) {
            fetch_columns(tile_b[step % 2], bytes_b, step * 32, k, first_column, n);
        } else {
            fetch_rows(tile_b[step % 2], bytes_b, first_column, n, step * STEP_BYTES, k * ELEMENT);
        }
        __pipeline_commit();
    };

    fetch(0);
    for (unsigned step = 0; step < steps; ++step) {
        if (step + 1 < steps) {
            fetch(step + 1);
            __pipeline_wait_prior(1);
        } else {
            __pipeline_wait_prior(0);
        }
        __syncthreads();
#pragma unroll
        for (unsigned half = 0; half < 2; ++half) {
            unsigned fragment_a[2][4], fragment_b[2][4];
#pragma unroll
            for (unsigned i = 0; i < 2; ++i) {
                load_matrices(fragment_a[i], tile_a[step % 2] + (warp_row + i * 16 + lane % 16) * PITCH + half * 32 + lane / 16 * 16);
                if (NN) {
                    load_matrices_transposed(fragment_b[i],
                                             tile_b[step % 2] + (half * 16 + lane % 16) * PITCH_NN + (warp_column + i * 16) * 2 + lane / 16 * 16);
                } else {
                    load_matrices(fragment_b[i],
                                  tile_b[step % 2] + (warp_column + i * 16 + lane / 16 * 8 + lane % 8) * PITCH + half * 32 + lane / 8 % 2 * 16);
                }
            }
#pragma unroll
            for (unsigned i = 0; i < 2; ++i) {
#pragma unroll
                for (unsigned j = 0; j < 4; ++j) {
                    Mma::multiply(sums[i][j], fragment_a[i], &fragment_b[j / 2][j % 2 * 2]);
                }
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
#pragma unroll
        for (unsigned j = 0; j < 4; ++j) {
#pragma unroll
            for (unsigned h = 0; h < 2; ++h) {
                const unsigned row = first_row + warp_row + i * 16 + h * 8 + lane / 4;
                const unsigned column = first_column + warp_column + j * 8 + lane % 4 * 2;
                store(row, column, &sums[i][j][h * Mma::SUMS / 2]);
            }
        }
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(128)
    mma_gemm_bf16_nt(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, unsigned m, unsigned n, unsigned k) {
    gemm<Bf16, 2, false>(a, b, m, n, k, [=](unsigned row, unsigned column, const float* sums) {
        for (unsigned i = 0; i < 2; ++i) {
            if (row < m && column + i < n) {
                c[static_cast<size_t>(row) * n + column + i] = sums[i];
            }
        }
    });
}

extern "C" __global__ void __launch_bounds__(128)
    mma_gemm_f16_nn(const __half* a, const __half* b, __half* c, unsigned m, unsigned n, unsigned k) {
    gemm<F16, 2, true>(a, b, m, n, k, [=](unsigned row, unsigned column, const float* sums) {
        // n is even, so both or neither.
        if (row < m && column < n) {
            *reinterpret_cast<__half2*>(c + static_cast<size_t>(row) * n + column) = __floats2half2_rn(sums[0], sums[1]);
        }
    });
}

extern "C" __global__ void __launch_bounds__(128)
    mma_gemm_f16_sums(const __half* a, const __half* b, __half* c, unsigned m, unsigned n, unsigned k) {
    gemm<F16Sums, 2, false>(a, b, m, n, k, [=](unsigned row, unsigned column, const unsigned* sums) {
        const __half2 pair = *reinterpret_cast<const __half2*>(sums);
        if (row < m && column < n) {
            c[static_cast<size_t>(row) * n + column] = __low2half(pair);
        }
        if (row < m && column + 1 < n) {
            c[static_cast<size_t>(row) * n + column + 1] = __high2half(pair);
        }
    });
}

extern "C" __global__ void __launch_bounds__(128)
    mma_gemm_s8(const signed char* a, const signed char* b, int* c, unsigned m, unsigned n, unsigned k) {
    gemm<S8, 1, false>(a, b, m, n, k, [=](unsigned row, unsigned column, const int* sums) {
        for (unsigned i = 0; i < 2; ++i) {
            if (row < m && column + i < n) {
                c[static_cast<size_t>(row) * n + column + i] = sums[i];
            }
        }
    });
}
