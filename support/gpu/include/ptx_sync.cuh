// Barriers, fences, clusters, votes, register redistribution, programmatic launch (PTX ISA 9.0, sections 9.7.13 and 9.7.19). Part
// of ptx.cuh.
#pragma once

#include <cstdint>

namespace ptx {

// ---- Barriers of a block ---------------------------------------------------------------------------------------------

// Barrier 0 is __syncthreads; 1 to 15 are free. `threads` is a multiple of 32 and the same for all who meet at a barrier.
__device__ __forceinline__ void bar_sync(uint32_t barrier, uint32_t threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Arrives without waiting; others meet the arrivals with `bar_sync` of the same count.
__device__ __forceinline__ void bar_arrive(uint32_t barrier, uint32_t threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// As __syncthreads, but threads of a warp may reach it at different places and times.
__device__ __forceinline__ void barrier_sync(uint32_t barrier) { asm volatile("barrier.sync %0;" ::"r"(barrier) : "memory"); }

// ---- Fences ------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void fence_acq_rel_cta() { asm volatile("fence.acq_rel.cta;" ::: "memory"); }
__device__ __forceinline__ void fence_acq_rel_cluster() { asm volatile("fence.acq_rel.cluster;" ::: "memory"); }
__device__ __forceinline__ void fence_acq_rel_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
__device__ __forceinline__ void fence_acq_rel_sys() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }
__device__ __forceinline__ void fence_sc_gpu() { asm volatile("fence.sc.gpu;" ::: "memory"); }
__device__ __forceinline__ void fence_sc_sys() { asm volatile("fence.sc.sys;" ::: "memory"); }

// Orders this thread's generic accesses to shared memory before asynchronous ones (TMA, bulk copies, WGMMA) that come after it in
// happens-before order, and the other way round. The *writer* executes it, then the barrier.
__device__ __forceinline__ void fence_proxy_async_shared_cta() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// The same for global memory.
__device__ __forceinline__ void fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }
// The same for every state space.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async;" ::: "memory"); }

// ---- Warps -------------------------------------------------------------------------------------------------------------

// True in exactly one of the threads of `mask`, all of which are here. sm_90.
__device__ __forceinline__ bool elect_sync(uint32_t mask) {
    uint32_t chosen;
    asm volatile("{\n\t"
                 ".reg .pred chosen;\n\t"
                 "elect.sync _|chosen, %1;\n\t"
                 "selp.b32 %0, 1, 0, chosen;\n\t"
                 "}"
                 : "=r"(chosen)
                 : "r"(mask));
    return chosen != 0;
}

// Reductions over the threads of `mask`. sm_80.
__device__ __forceinline__ uint32_t redux_sync_max_u32(uint32_t x, uint32_t mask) {
    uint32_t d;
    asm volatile("redux.sync.max.u32 %0, %1, %2;" : "=r"(d) : "r"(x), "r"(mask));
    return d;
}
__device__ __forceinline__ uint32_t redux_sync_add_u32(uint32_t x, uint32_t mask) {
    uint32_t d;
    asm volatile("redux.sync.add.u32 %0, %1, %2;" : "=r"(d) : "r"(x), "r"(mask));
    return d;
}
__device__ __forceinline__ int32_t redux_sync_min_s32(int32_t x, uint32_t mask) {
    int32_t d;
    asm volatile("redux.sync.min.s32 %0, %1, %2;" : "=r"(d) : "r"(x), "r"(mask));
    return d;
}

// Suspends for about `nanoseconds` (at most a millisecond).
__device__ __forceinline__ void nanosleep(uint32_t nanoseconds) { asm volatile("nanosleep.u32 %0;" ::"r"(nanoseconds)); }

// Ends the grid with an error.
__device__ __forceinline__ void trap() { asm volatile("trap;"); }

// ---- Warpgroups --------------------------------------------------------------------------------------------------------

// Gives registers back to, or takes them from, the block's pool: REGISTERS is what each thread has afterwards, a multiple of 8
// from 24 to 256. All warps of the warpgroup. Needs a stated block size, and no register cap by compiler option. sm_90a.
template <uint32_t REGISTERS>
__device__ __forceinline__ void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <uint32_t REGISTERS>
__device__ __forceinline__ void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// ---- Clusters (sm_90) --------------------------------------------------------------------------------------------------

// This block's rank in its cluster.
__device__ __forceinline__ uint32_t cluster_ctarank() {
    uint32_t d;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(d));
    return d;
}

// The number of blocks in the cluster.
__device__ __forceinline__ uint32_t cluster_nctarank() {
    uint32_t d;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(d));
    return d;
}

// The cluster's number along x.
__device__ __forceinline__ uint32_t clusterid_x() {
    uint32_t d;
    asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(d));
    return d;
}

// Where `address` of this block's shared memory lies in block `rank`'s, as a `.shared::cluster` address.
__device__ __forceinline__ uint32_t mapa_shared_cluster(uint32_t address, uint32_t rank) {
    uint32_t d;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(d) : "r"(address), "r"(rank));
    return d;
}

// All threads of all blocks of the cluster arrive, release ...
__device__ __forceinline__ void barrier_cluster_arrive_release() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
// ... or without ordering memory ...
__device__ __forceinline__ void barrier_cluster_arrive_relaxed() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
// ... and wait for each other, acquire.
__device__ __forceinline__ void barrier_cluster_wait_acquire() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// ---- Programmatic dependent launch (sm_90) -----------------------------------------------------------------------------

// Waits until the grids that this one depends on have ended and their writes are visible. Does nothing in an ordinary launch.
__device__ __forceinline__ void griddepcontrol_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// Allows dependent grids to start once every block has executed it or ended.
__device__ __forceinline__ void griddepcontrol_launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

} // namespace ptx
