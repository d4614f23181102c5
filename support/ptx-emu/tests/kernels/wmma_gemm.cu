// archs: sm_80
//
// C = A B^T by the wmma operations, whose fragments have no documented layout: load, multiply and store agree among themselves.
//
// wmma_gemm_f16(const f16* a [m, k], const f16* b [n, k], f32* c [m, n], u32 m, u32 n, u32 k): m and n multiples of 64, k of 16, pointers aligned
// to 32. 128 threads, grid (n / 64, m / 64). Each warp takes 16 rows by 64 columns. Exact when inputs are small integers.

#include <cuda_fp16.h>
#include <mma.h>

extern "C" __global__ void __launch_bounds__(128)
    wmma_gemm_f16(const __half* a, const __half* b, float* c, unsigned m, unsigned n, unsigned k) {
    using namespace nvcuda;
    const unsigned row = blockIdx.y * 64 + threadIdx.x / 32 * 16;
    const unsigned first_column = blockIdx.x * 64;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums[4];
    for (auto& sum : sums) {
        wmma::fill_fragment(sum, 0.0f);
    }
    for (unsigned at = 0; at < k; at += 16) {
        wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> fragment_a;
        wmma::load_matrix_sync(fragment_a, a + static_cast<size_t>(row) * k + at, k);
        for (unsigned j = 0; j < 4; ++j) {
            wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::col_major> fragment_b;
            wmma::load_matrix_sync(fragment_b, b + static_cast<size_t>(first_column + j * 16) * k + at, k);
            wmma::mma_sync(sums[j], fragment_a, fragment_b, sums[j]);
        }
    }
    for (unsigned j = 0; j < 4; ++j) {
        wmma::store_matrix_sync(c + static_cast<size_t>(row) * n + first_column + j * 16, sums[j], n, wmma::mem_row_major);
    }
}
