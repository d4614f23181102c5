// mbarrier objects in shared memory (PTX ISA 9.0, section 9.7.13.15 "mbarrier"). sm_90 unless stated. Part of ptx.cuh.
//
// An mbarrier is 8 bytes, aligned to 8. A phase completes when as many arrivals as `init` said have come *and* the transaction
// count is zero. Waiting by parity asks whether the phase of that parity has completed: on a fresh barrier the phase in progress
// has parity 0, so that waiting for parity 1 passes at once. Threads other than the one that initialised it may use a barrier
// only after they synchronised with it.
#pragma once

#include <cstdint>

namespace ptx {

// Expects `count` arrivals (1 to 2^20 - 1) for each phase. sm_80.
__device__ __forceinline__ void mbarrier_init(uint32_t mbarrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(mbarrier), "r"(count) : "memory");
}

// Ends the object; its memory may be used for something else. sm_80.
__device__ __forceinline__ void mbarrier_inval(uint32_t mbarrier) {
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(mbarrier) : "memory");
}

// One arrival, release at block scope; the state tells the phase that it counted for. sm_80.
__device__ __forceinline__ uint64_t mbarrier_arrive(uint32_t mbarrier) {
    uint64_t state;
    asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(mbarrier) : "memory");
    return state;
}

// `count` arrivals at once.
__device__ __forceinline__ uint64_t mbarrier_arrive(uint32_t mbarrier, uint32_t count) {
    uint64_t state;
    asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1], %2;" : "=l"(state) : "r"(mbarrier), "r"(count) : "memory");
    return state;
}

// One arrival, and one fewer is expected in the phases to come. sm_80.
__device__ __forceinline__ uint64_t mbarrier_arrive_drop(uint32_t mbarrier) {
    uint64_t state;
    asm volatile("mbarrier.arrive_drop.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(mbarrier) : "memory");
    return state;
}

// Adds `bytes` to the transaction count, then arrives once.
__device__ __forceinline__ uint64_t mbarrier_arrive_expect_tx(uint32_t mbarrier, uint32_t bytes) {
    uint64_t state;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 %0, [%1], %2;" : "=l"(state) : "r"(mbarrier), "r"(bytes) : "memory");
    return state;
}

// Adds `bytes` to the transaction count without arriving.
__device__ __forceinline__ void mbarrier_expect_tx(uint32_t mbarrier, uint32_t bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(mbarrier), "r"(bytes) : "memory");
}

// Takes `bytes` off the transaction count, as an asynchronous copy does when it completes.
__device__ __forceinline__ void mbarrier_complete_tx(uint32_t mbarrier, uint32_t bytes) {
    asm volatile("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(mbarrier), "r"(bytes) : "memory");
}

// One arrival at the barrier of any block of the cluster (address from `mapa`), release at cluster scope.
__device__ __forceinline__ void mbarrier_arrive_cluster(uint32_t cluster_mbarrier) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(cluster_mbarrier) : "memory");
}

// The same with a transaction count.
__device__ __forceinline__ void mbarrier_arrive_expect_tx_cluster(uint32_t cluster_mbarrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(cluster_mbarrier), "r"(bytes)
                 : "memory");
}

// Whether the phase of `parity` has completed; waits for a time that the hardware limits. Acquire at block scope.
__device__ __forceinline__ bool mbarrier_try_wait_parity(uint32_t mbarrier, uint32_t parity) {
    uint32_t done;
    asm volatile("{\n\t"
                 ".reg .pred done;\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n\t"
                 "selp.b32 %0, 1, 0, done;\n\t"
                 "}"
                 : "=r"(done)
                 : "r"(mbarrier), "r"(parity)
                 : "memory");
    return done != 0;
}

// The same, acquire at cluster scope: when arrivals come from other blocks of the cluster and what they wrote is read.
__device__ __forceinline__ bool mbarrier_try_wait_parity_cluster(uint32_t mbarrier, uint32_t parity) {
    uint32_t done;
    asm volatile("{\n\t"
                 ".reg .pred done;\n\t"
                 "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n\t"
                 "selp.b32 %0, 1, 0, done;\n\t"
                 "}"
                 : "=r"(done)
                 : "r"(mbarrier), "r"(parity)
                 : "memory");
    return done != 0;
}

// Whether the phase that `state` (of `mbarrier_arrive`) counted for has completed; may wait.
__device__ __forceinline__ bool mbarrier_try_wait(uint32_t mbarrier, uint64_t state) {
    uint32_t done;
    asm volatile("{\n\t"
                 ".reg .pred done;\n\t"
                 "mbarrier.try_wait.shared::cta.b64 done, [%1], %2;\n\t"
                 "selp.b32 %0, 1, 0, done;\n\t"
                 "}"
                 : "=r"(done)
                 : "r"(mbarrier), "l"(state)
                 : "memory");
    return done != 0;
}

// As `mbarrier_try_wait`, never waiting. sm_80.
__device__ __forceinline__ bool mbarrier_test_wait(uint32_t mbarrier, uint64_t state) {
    uint32_t done;
    asm volatile("{\n\t"
                 ".reg .pred done;\n\t"
                 "mbarrier.test_wait.shared::cta.b64 done, [%1], %2;\n\t"
                 "selp.b32 %0, 1, 0, done;\n\t"
                 "}"
                 : "=r"(done)
                 : "r"(mbarrier), "l"(state)
                 : "memory");
    return done != 0;
}

// As `mbarrier_try_wait_parity`, never waiting. sm_80.
__device__ __forceinline__ bool mbarrier_test_wait_parity(uint32_t mbarrier, uint32_t parity) {
    uint32_t done;
    asm volatile("{\n\t"
                 ".reg .pred done;\n\t"
                 "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n\t"
                 "selp.b32 %0, 1, 0, done;\n\t"
                 "}"
                 : "=r"(done)
                 : "r"(mbarrier), "r"(parity)
                 : "memory");
    return done != 0;
}

// Makes initialised barriers known to the other blocks of the cluster and to the asynchronous proxy; a barrier of block or
// cluster follows.
__device__ __forceinline__ void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// The cp.async of this thread so far arrive at the barrier when they are done; that arrival is one of those `init` counted.
// sm_80.
__device__ __forceinline__ void cp_async_mbarrier_arrive_noinc(uint32_t mbarrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(mbarrier) : "memory");
}

} // namespace ptx
