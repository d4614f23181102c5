// Rings of shared-memory slots between a producer and consumers, kept by a pair of mbarriers a slot: `full` completes when a
// slot's data are there, `empty` when all its readers are done with it. sm_90.
//
//     thread 0:   ring.init(arrivals_full, arrivals_empty); ptx::fence_mbarrier_init();      then all: __syncthreads()
//     producer:   ring.wait_empty(slot); ptx::mbarrier_arrive_expect_tx(ring.full(slot), bytes); copies to ring.full(slot); slot.advance()
//     consumers:  ring.wait_full(slot); read; ring.arrive_empty(slot); slot.advance()
//
// Producer and consumers each keep a Slot of their own and go through the ring in the same order.
#pragma once

#include "ptx.cuh"

namespace pipeline {

// Waits for the completion of the phase of `parity`.
__device__ __forceinline__ void wait(uint32_t mbarrier, uint32_t parity) {
    while (!ptx::mbarrier_try_wait_parity(mbarrier, parity)) {
    }
}

// The same with acquire at cluster scope.
__device__ __forceinline__ void wait_cluster(uint32_t mbarrier, uint32_t parity) {
    while (!ptx::mbarrier_try_wait_parity_cluster(mbarrier, parity)) {
    }
}

// A position in a ring of STAGES: which slot, and whether the trip around it is even or odd.
template <uint32_t STAGES>
struct Slot {
    uint32_t index = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void advance() {
        if (++index == STAGES) {
            index = 0;
            parity ^= 1;
        }
    }
};

// STAGES pairs of mbarriers at `base` (16 * STAGES bytes of shared memory, aligned to 8): first all `full`, then all `empty`.
template <uint32_t STAGES>
struct Ring {
    static constexpr uint32_t BYTES = 16 * STAGES;
    uint32_t base;

    __device__ __forceinline__ uint32_t full(const Slot<STAGES>& slot) const { return base + 8 * slot.index; }
    __device__ __forceinline__ uint32_t empty(const Slot<STAGES>& slot) const { return base + 8 * (STAGES + slot.index); }

    // One thread; fence_mbarrier_init and a barrier of the block (cluster) must follow.
    __device__ __forceinline__ void init(uint32_t arrivals_full, uint32_t arrivals_empty) const {
        for (uint32_t i = 0; i < STAGES; ++i) {
            ptx::mbarrier_init(base + 8 * i, arrivals_full);
            ptx::mbarrier_init(base + 8 * (STAGES + i), arrivals_empty);
        }
    }

    // Consumers wait for the phase in progress, the producer for the one before: on a fresh ring that passes at once.
    __device__ __forceinline__ void wait_full(const Slot<STAGES>& slot) const { wait(full(slot), slot.parity); }
    __device__ __forceinline__ void wait_empty(const Slot<STAGES>& slot) const { wait(empty(slot), slot.parity ^ 1); }
    __device__ __forceinline__ void wait_empty_cluster(const Slot<STAGES>& slot) const { wait_cluster(empty(slot), slot.parity ^ 1); }

    // One arrival at this block's barrier, or at that of block `rank` of the cluster.
    __device__ __forceinline__ void arrive_empty(const Slot<STAGES>& slot) const { ptx::mbarrier_arrive(empty(slot)); }
    __device__ __forceinline__ void arrive_empty_of(const Slot<STAGES>& slot, uint32_t rank) const {
        ptx::mbarrier_arrive_cluster(ptx::mapa_shared_cluster(empty(slot), rank));
    }
};

} // namespace pipeline
