// archs: sm_80
//
// Where the rows of each expert go: from the experts of each token to expert-major places, on the device alone. Three kernels, one after
// the other on a stream:
//
//   permute_count  how many choices each block of the grid has for each expert; all places become padding
//   permute_scan   offsets of the experts, and of the blocks within them
//   permute_place  the place of each choice (map), and the token of each place (gather)
//
// The rows of an expert are in the order of the tokens, whatever the launch. Each expert begins at a multiple of `alignment`. Negative
// experts are choices that are masked out. An expert that does not exist and a row behind `capacity` are left out, and `status` says so.
//
// Launch: permute_count and permute_place `blocks` blocks of 256 threads, 32 * num_experts bytes of dynamic shared memory; permute_scan one
// block of 1024 threads. No shared state: a launch depends on its parameters alone.

#include "reduce.cuh"

// Shared with the host: repr(C), 112 bytes.
struct PermuteLayoutParams {
    const int32_t* experts;   //   0: [tokens, top_k]
    uint32_t* offsets;        //   8: [num_experts + 1]: the first row of each expert; the last is the number of rows, padding included
    uint32_t* counts;         //  16: [num_experts]: rows without padding
    uint32_t* gather;         //  24: [capacity]: the token of each row, or 2^32 - 1 for padding and behind the last row
    int32_t* map;             //  32: [tokens, top_k]: the row of each choice, or -1
    uint32_t* block_counts;   //  40: [blocks, num_experts]: workspace
    uint32_t* status;         //  48: [2], zero at first: see Status
    uint64_t choices;         //  56: tokens * top_k, below 2^31
    uint32_t top_k;           //  64
    uint32_t num_experts;     //  68: at most 1024
    uint32_t alignment;       //  72: at least 1
    uint32_t capacity;        //  76: rows of gather; below 2^31, as are the rows
    uint32_t blocks;          //  80
    uint32_t warp_choices;    //  84: choices of a warp, a multiple of 32; blocks * 8 * warp_choices is at least `choices`
    uint32_t reserved[6];     //  88: zero
};
static_assert(sizeof(PermuteLayoutParams) == 112, "the layout that the host writes");

namespace {

constexpr uint32_t ALL = 0xffffffffu;
constexpr uint32_t WARPS = 8;
constexpr uint32_t SCAN_THREADS = 1024;
constexpr uint32_t PADDING = 0xffffffffu;

// Words of `status`: 1 + the token that names an expert that does not exist; the number of rows, when there are more than `capacity`.
enum Status : uint32_t { STATUS_EXPERT = 0, STATUS_CAPACITY = 1 };

// The expert of a choice; num_experts where there is none.
__device__ __forceinline__ uint32_t expert_of(const PermuteLayoutParams& p, uint64_t choice) {
    if (choice >= p.choices) {
        return p.num_experts;
    }
    const int32_t expert = p.experts[choice];
    return expert >= 0 && static_cast<uint32_t>(expert) < p.num_experts ? static_cast<uint32_t>(expert) : p.num_experts;
}

// The lanes that have the value of this one, which is at most `most`.
__device__ __forceinline__ uint32_t lanes_with(uint32_t value, uint32_t most) {
    uint32_t same = ALL;
    for (uint32_t bit = 1; bit <= most; bit *= 2) {
        const uint32_t set = __ballot_sync(ALL, (value & bit) != 0);
        same &= (value & bit) != 0 ? set : ~set;
    }
    return same;
}

// Goes through the choices of this warp in order: `visit(choice, expert, number)` with the number of choices of that expert before it, counted
// on from what `counts` has.
template <class Visit>
__device__ __forceinline__ void for_each_choice(const PermuteLayoutParams& p, uint32_t* counts, const Visit& visit) {
    const uint32_t lane = threadIdx.x % 32;
    const uint64_t first = (static_cast<uint64_t>(blockIdx.x) * WARPS + threadIdx.x / 32) * p.warp_choices;
    for (uint32_t i = 0; i < p.warp_choices && first + i < p.choices; i += 32) {
        const uint64_t choice = first + i + lane;
        const uint32_t expert = expert_of(p, choice);
        const uint32_t same = lanes_with(expert, p.num_experts);
        const uint32_t before = __popc(same & ((1u << lane) - 1));
        uint32_t number = 0;
        if (expert < p.num_experts) {
            number = counts[expert] + before;
        }
        __syncwarp();
        if (expert < p.num_experts && before == 0) {
            counts[expert] = number + __popc(same);
        }
        __syncwarp();
        visit(choice, expert, number);
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(WARPS * 32) permute_count(const __grid_constant__ PermuteLayoutParams p) {
    extern __shared__ uint32_t counts[]; // [WARPS, num_experts]
    for (uint32_t i = threadIdx.x; i < WARPS * p.num_experts; i += blockDim.x) {
        counts[i] = 0;
    }
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.capacity; i += static_cast<uint64_t>(p.blocks) * blockDim.x) {
        p.gather[i] = PADDING;
    }
    __syncthreads();
    for_each_choice(p, counts + threadIdx.x / 32 * p.num_experts, [](uint64_t, uint32_t, uint32_t) {});
    __syncthreads();
    for (uint32_t expert = threadIdx.x; expert < p.num_experts; expert += blockDim.x) {
        uint32_t count = 0;
        for (uint32_t warp = 0; warp < WARPS; ++warp) {
            count += counts[warp * p.num_experts + expert];
        }
        p.block_counts[static_cast<uint64_t>(blockIdx.x) * p.num_experts + expert] = count;
    }
}

extern "C" __global__ void __launch_bounds__(SCAN_THREADS) permute_scan(const __grid_constant__ PermuteLayoutParams p) {
    __shared__ uint32_t sums[SCAN_THREADS / 32];
    const uint32_t expert = threadIdx.x, lane = threadIdx.x % 32;
    uint32_t count = 0;
    if (expert < p.num_experts) {
        for (uint32_t block = 0; block < p.blocks; ++block) {
            uint32_t* const at = p.block_counts + static_cast<uint64_t>(block) * p.num_experts + expert;
            const uint32_t of_block = *at;
            *at = count;
            count += of_block;
        }
    }
    const uint32_t padded = (count + p.alignment - 1) / p.alignment * p.alignment;
    const uint32_t in_warp = reduce::warp_inclusive_scan(padded, reduce::Add{});
    if (lane == 31) {
        sums[threadIdx.x / 32] = in_warp;
    }
    __syncthreads();
    uint32_t before = in_warp - padded;
    for (uint32_t warp = 0; warp < threadIdx.x / 32; ++warp) {
        before += sums[warp];
    }
    if (expert < p.num_experts) {
        const uint32_t first = min(before, p.capacity);
        p.offsets[expert] = first;
        p.counts[expert] = min(count, p.capacity - first);
    }
    if (expert + 1 == p.num_experts) {
        const uint32_t rows = before + padded;
        p.offsets[p.num_experts] = min(rows, p.capacity);
        if (rows > p.capacity) {
            p.status[STATUS_CAPACITY] = rows;
        }
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) permute_place(const __grid_constant__ PermuteLayoutParams p) {
    extern __shared__ uint32_t counts[]; // [WARPS, num_experts]
    uint32_t* const of_warp = counts + threadIdx.x / 32 * p.num_experts;
    for (uint32_t i = threadIdx.x; i < WARPS * p.num_experts; i += blockDim.x) {
        counts[i] = 0;
    }
    __syncthreads();
    for_each_choice(p, of_warp, [](uint64_t, uint32_t, uint32_t) {});
    __syncthreads();
    // From counts to the first row of each warp.
    for (uint32_t expert = threadIdx.x; expert < p.num_experts; expert += blockDim.x) {
        uint32_t row = p.offsets[expert] + p.block_counts[static_cast<uint64_t>(blockIdx.x) * p.num_experts + expert];
        for (uint32_t warp = 0; warp < WARPS; ++warp) {
            const uint32_t count = counts[warp * p.num_experts + expert];
            counts[warp * p.num_experts + expert] = row;
            row += count;
        }
    }
    __syncthreads();
    for_each_choice(p, of_warp, [&p](uint64_t choice, uint32_t expert, uint32_t row) {
        if (choice >= p.choices) {
            return;
        }
        const uint32_t token = static_cast<uint32_t>(choice / p.top_k);
        const bool placed = expert < p.num_experts && row < p.capacity;
        p.map[choice] = placed ? static_cast<int32_t>(row) : -1;
        if (placed) {
            p.gather[row] = token;
        } else if (expert == p.num_experts && p.experts[choice] >= 0) {
            ptx::st_relaxed_gpu_global(p.status + STATUS_EXPERT, token + 1);
        }
    });
}
