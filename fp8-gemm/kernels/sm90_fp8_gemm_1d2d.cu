// archs: sm_90a
// variants: multicast=-DCLUSTER=2
//
// D = A B^T: A E4M3 [m, k] with a scale for each row and 128 along k, B E4M3 [n, k] with a scale for each 128 by 128, D bf16 [m,
// n].
//
// Order of summation, the same for every m, n and number of blocks: for each 128 along k in turn the tensor core's sum of 4 steps
// of 32 from zero ("chain"), then total = fma(chain, scale_a * scale_b, total) in f32, the scales' product rounded to f32; total
// begins at +0 and is rounded to bf16 (nearest even) at the end. Past k both operands are zeros: they add nothing, whatever the
// scales.
//
// A block works on tiles of 128 by 128, one after the other: a producer warpgroup whose one thread feeds a ring of STAGES slots
// by TMA, and two consumer warpgroups of 64 rows each, which multiply (wgmma m64n128k32), promote, and store through swizzled
// shared memory by TMA while the next tile's products begin. One warpgroup's promotion overlaps with the other's products.
// Variant `multicast`: two blocks of a cluster take the tiles of two neighbouring row blocks and the same columns; each loads
// half of the slot's B for both.
//
// Launch: 384 threads (x), grid: at most as many blocks as SMs (of one block each), along x, a multiple of CLUSTER; clusters of
// CLUSTER; SHARED_BYTES (199248) of dynamic shared memory. m, n, k >= 1; tiles_m * tiles_n below 2^31. Programmatic launch: the
// kernel waits for what it depends on.
//
// Roofline (H200: 1979 TFLOP/s dense FP8, 4.8 TB/s): 2mnk flops over mk + nk + 2mn + 4mk/128 bytes, once each; compute-bound
// where that is above 412 flops a byte, m above about 250 for the weights of DeepSeek-V3. A slot (33 KB, 4.2 MFLOP) takes the
// tensor cores 512 cycles; its promotion, 64 fma a thread, issues for 128 of them. Not measured on hardware.

#include "pipeline.cuh"

#ifndef CLUSTER
#define CLUSTER 1
#endif

using ptx::TensorMap;

// Shared with the host: repr(C), aligned to 128, 640 bytes. Tensor maps, innermost dimension first; out-of-bounds elements read
// as zero:
struct alignas(128) Fp8Gemm1d2dParams {
    TensorMap a;         //   0: u8 {k, m}, strides {lda}, box {128, 128}, swizzle 128 B. lda a multiple of 16, base aligned to 16
    TensorMap b;         // 128: u8 {k, n}, strides {ldb}, box {128, 128 / CLUSTER}, swizzle 128 B
    TensorMap scales_a;  // 256: f32 {m, ceil(k / 128)}, strides {4 * (m rounded up to 4)}, box {128, 1}, no swizzle: "MN-major"
    TensorMap d;         // 384: bf16 {n, m}, strides {2 * ldd}, box {64, 64}, swizzle 128 B. ldd a multiple of 8
    const float* scales_b; // 512: [ceil(n / 128), ceil(k / 128)], row-major
    uint64_t scales_b_stride; // 520: from one row of it to the next, in elements
    uint32_t m;          // 528
    uint32_t n;          // 532
    uint32_t k;          // 536
    uint32_t raster_rows; // 540: row blocks (of 128 * CLUSTER) that are worked on together, so that their A stays in L2; >= 1
    uint32_t reserved[24]; // 544: zero
};
static_assert(sizeof(Fp8Gemm1d2dParams) == 640, "the layout that the host writes");

namespace {

constexpr uint32_t BLOCK_M = 128, BLOCK_N = 128, BLOCK_K = 128;
constexpr uint32_t STAGES = 5;
constexpr uint32_t CONSUMERS = 2;                    // warpgroups
constexpr uint32_t ROWS = BLOCK_M / CONSUMERS;       // of a consumer: the M of wgmma
constexpr uint32_t THREADS = 128 * (1 + CONSUMERS);
constexpr uint32_t WARPS_THAT_READ = 4 * CONSUMERS * CLUSTER;

constexpr uint32_t A_BYTES = BLOCK_M * BLOCK_K, B_BYTES = BLOCK_N * BLOCK_K, SCALES_BYTES = BLOCK_M * 4;
constexpr uint32_t D_BYTES = BLOCK_M * BLOCK_N * 2, D_BOX_BYTES = ROWS * 64 * 2;

// Shared memory. What is swizzled by 128 bytes begins at multiples of 1024.
constexpr uint32_t A = 0;
constexpr uint32_t B = A + STAGES * A_BYTES;
constexpr uint32_t D = B + STAGES * B_BYTES;
constexpr uint32_t SCALES = D + D_BYTES;
constexpr uint32_t BARRIERS = SCALES + STAGES * SCALES_BYTES;
constexpr uint32_t SHARED_BYTES = BARRIERS + pipeline::Ring<STAGES>::BYTES;
static_assert(SHARED_BYTES == 199248 && SHARED_BYTES <= 227 * 1024, "what the host asks for");

// The tiles of a block, in an order that keeps `raster_rows` row blocks by one column block together.
struct Tiles {
    uint32_t rows, columns, raster_rows, next, step;

    __device__ __forceinline__ explicit Tiles(const Fp8Gemm1d2dParams& p)
        : rows((p.m - 1) / (BLOCK_M * CLUSTER) + 1), columns((p.n - 1) / BLOCK_N + 1), raster_rows(min(p.raster_rows, rows)),
          next(blockIdx.x / CLUSTER), step(gridDim.x / CLUSTER) {}

    // False when there is none left. `m` and `n` are the tile's first row and column.
    __device__ __forceinline__ bool take(uint32_t rank, uint32_t& m, uint32_t& n) {
        if (next >= rows * columns) {
            return false;
        }
        const uint32_t group = next / (raster_rows * columns);
        const uint32_t first = group * raster_rows;
        const uint32_t height = min(raster_rows, rows - first);
        const uint32_t inside = next - first * columns;
        m = ((first + inside % height) * CLUSTER + rank) * BLOCK_M;
        n = inside / height * BLOCK_N;
        next += step;
        return true;
    }
};

// One thread: feeds the ring.
__device__ __forceinline__ void produce(const Fp8Gemm1d2dParams& p, uint32_t shared, uint32_t rank, pipeline::Ring<STAGES> ring) {
    const uint32_t blocks = (p.k - 1) / BLOCK_K + 1;
    pipeline::Slot<STAGES> slot;
    Tiles tiles(p);
    uint32_t m, n;
    while (tiles.take(rank, m, n)) {
        for (uint32_t block = 0; block < blocks; ++block) {
            const uint32_t full = ring.full(slot);
            const int32_t k = static_cast<int32_t>(block * BLOCK_K);
            if (CLUSTER == 1) {
                ring.wait_empty(slot);
            } else {
                ring.wait_empty_cluster(slot);
            }
            ptx::mbarrier_arrive_expect_tx(full, A_BYTES + B_BYTES + SCALES_BYTES);
            ptx::cp_async_bulk_tensor_2d_load(shared + A + slot.index * A_BYTES, &p.a, full, k, static_cast<int32_t>(m));
            if (CLUSTER == 1) {
                ptx::cp_async_bulk_tensor_2d_load(shared + B + slot.index * B_BYTES, &p.b, full, k, static_cast<int32_t>(n));
            } else {
                // This block's part of B, to every block of the cluster.
                constexpr uint32_t PART = BLOCK_N / CLUSTER;
                ptx::cp_async_bulk_tensor_2d_load_multicast(shared + B + slot.index * B_BYTES + rank * PART * BLOCK_K, &p.b, full, k,
                                                            static_cast<int32_t>(n + rank * PART), (1 << CLUSTER) - 1);
            }
            ptx::cp_async_bulk_tensor_2d_load(shared + SCALES + slot.index * SCALES_BYTES, &p.scales_a, full, static_cast<int32_t>(m),
                                              static_cast<int32_t>(block));
            slot.advance();
        }
    }
}

// A warpgroup: rows ROWS * consumer .. of each tile.
__device__ __forceinline__ void consume(const Fp8Gemm1d2dParams& p, uint32_t shared, uint32_t rank, pipeline::Ring<STAGES> ring,
                                        uint32_t consumer) {
    const uint32_t blocks = (p.k - 1) / BLOCK_K + 1;
    const uint32_t thread = threadIdx.x % 128;
    const uint32_t warp = thread / 32;
    const uint32_t lane = thread % 32;
    const uint32_t row = consumer * ROWS + warp * 16 + lane / 4; // of the accumulators 0 and 1 of each 4; 2 and 3 are 8 below
    const uint32_t d = shared + D + consumer * (D_BYTES / CONSUMERS);
    pipeline::Slot<STAGES> slot;
    Tiles tiles(p);
    uint32_t m, n;
    while (tiles.take(rank, m, n)) {
        const float* scales_b = p.scales_b + n / BLOCK_N * p.scales_b_stride;
        float total[BLOCK_N / 2];
#pragma unroll
        for (uint32_t i = 0; i < BLOCK_N / 2; ++i) {
            total[i] = 0.0f;
        }
        float scale_b = ptx::ld_global_nc_f32(scales_b);
        for (uint32_t block = 0; block < blocks; ++block) {
            // Asked for one turn ahead: it is the only load from global memory on this path.
            const float next_scale_b = ptx::ld_global_nc_f32(scales_b + min(block + 1, blocks - 1));
            ring.wait_full(slot);
            const uint32_t scales = shared + SCALES + slot.index * SCALES_BYTES + row * 4;
            const float scale_upper = ptx::ld_shared_f32(scales) * scale_b;
            const float scale_lower = ptx::ld_shared_f32(scales + 8 * 4) * scale_b;

            float chain[BLOCK_N / 2];
            const uint64_t a = ptx::wgmma_descriptor_128B(shared + A + slot.index * A_BYTES + consumer * ROWS * BLOCK_K);
            const uint64_t b = ptx::wgmma_descriptor_128B(shared + B + slot.index * B_BYTES);
            ptx::wgmma_fence();
#pragma unroll
            for (uint32_t step = 0; step < BLOCK_K / 32; ++step) {
                ptx::wgmma_m64n128k32_f32_e4m3_e4m3(chain, a + step * 2, b + step * 2, step != 0);
            }
            ptx::wgmma_commit_group();
            ptx::wgmma_wait_group<0>();
#pragma unroll
            for (uint32_t i = 0; i < BLOCK_N / 2; ++i) {
                ptx::wgmma_fence_register(chain[i]);
            }
            // The whole warp is done with the slot.
            __syncwarp();
            if (CLUSTER == 1) {
                if (lane == 0) {
                    ring.arrive_empty(slot);
                }
            } else if (lane < CLUSTER) {
                ring.arrive_empty_of(slot, lane);
            }
#pragma unroll
            for (uint32_t i = 0; i < BLOCK_N / 2; ++i) {
                total[i] = __fmaf_rn(chain[i], i / 2 % 2 == 0 ? scale_upper : scale_lower, total[i]);
            }
            scale_b = next_scale_b;
            slot.advance();
        }

        // The tile of the turn before has left shared memory.
        if (thread == 0) {
            ptx::cp_async_bulk_wait_group_read<0>();
        }
        ptx::bar_sync(1 + consumer, 128);
        // 16 columns of 16 rows at a time. Lane 8i + r gives the address of row r of matrix i: 0 and 1 are the upper and lower 8
        // rows of the first 8 columns, 2 and 3 those of the next.
        const uint32_t matrix_row = warp * 16 + lane / 8 % 2 * 8 + lane % 8;
#pragma unroll
        for (uint32_t i = 0; i < BLOCK_N / 16; ++i) {
            const uint32_t chunk = i * 2 + lane / 16; // of 16 bytes; 8 of them are a row of a box
            const uint32_t address = d + chunk / 8 * D_BOX_BYTES + matrix_row * 128 + (chunk % 8 ^ matrix_row % 8) * 16;
            ptx::stmatrix_x4(address, ptx::cvt_rn_bf16x2_f32(total[8 * i], total[8 * i + 1]),
                             ptx::cvt_rn_bf16x2_f32(total[8 * i + 2], total[8 * i + 3]),
                             ptx::cvt_rn_bf16x2_f32(total[8 * i + 4], total[8 * i + 5]),
                             ptx::cvt_rn_bf16x2_f32(total[8 * i + 6], total[8 * i + 7]));
        }
        ptx::fence_proxy_async_shared_cta();
        ptx::bar_sync(1 + consumer, 128);
        if (thread == 0) {
            const uint32_t first_row = m + consumer * ROWS;
#pragma unroll
            for (uint32_t box = 0; box < BLOCK_N / 64; ++box) {
                if (first_row < p.m && n + box * 64 < p.n) {
                    ptx::cp_async_bulk_tensor_2d_store(&p.d, static_cast<int32_t>(n + box * 64), static_cast<int32_t>(first_row),
                                                       d + box * D_BOX_BYTES);
                }
            }
            ptx::cp_async_bulk_commit_group();
        }
    }
    if (thread == 0) {
        ptx::cp_async_bulk_wait_group<0>();
    }
}

} // namespace

extern "C" __global__ void
#if CLUSTER > 1
__cluster_dims__(CLUSTER, 1, 1)
#endif
__launch_bounds__(THREADS, 1) sm90_fp8_gemm_1d2d(const __grid_constant__ Fp8Gemm1d2dParams p) {
    extern __shared__ __align__(1024) uint8_t memory[];
    const uint32_t shared = ptx::shared_address(memory);
    const uint32_t warpgroup = threadIdx.x / 128;
    const uint32_t rank = CLUSTER == 1 ? 0 : ptx::cluster_ctarank();
    const pipeline::Ring<STAGES> ring{shared + BARRIERS};

    if (threadIdx.x == 0) {
        ptx::prefetch_tensormap(&p.a);
        ptx::prefetch_tensormap(&p.b);
        ptx::prefetch_tensormap(&p.scales_a);
        ptx::prefetch_tensormap(&p.d);
        ring.init(1, WARPS_THAT_READ);
        ptx::fence_mbarrier_init();
    }
    if (CLUSTER == 1) {
        __syncthreads();
    } else {
        __syncwarp();
        ptx::barrier_cluster_arrive_release();
        ptx::barrier_cluster_wait_acquire();
    }
    // Everything so far overlaps with the end of the grid before.
    ptx::griddepcontrol_wait();

    if (warpgroup == 0) {
        ptx::setmaxnreg_dec<40>();
        if (threadIdx.x < 32 && ptx::elect_sync(0xffffffffu)) {
            produce(p, shared, rank, ring);
        }
        __syncwarp();
    } else {
        ptx::setmaxnreg_inc<232>();
        consume(p, shared, rank, ring, warpgroup - 1);
        __syncwarp();
    }
    if (CLUSTER > 1) {
        // No block ends while another may still write to its shared memory or arrive at its barriers.
        ptx::barrier_cluster_arrive_release();
        ptx::barrier_cluster_wait_acquire();
    }
}
