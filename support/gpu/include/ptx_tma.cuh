// Bulk asynchronous copies, tiled by a tensor map or linear (PTX ISA 9.0, section 9.7.9.25 "cp.async.bulk"). sm_90. Part of
// ptx.cuh.
//
// One thread issues a copy. Loads report to an mbarrier in bytes: the whole box, even where it lies outside the tensor and reads
// as zero. Stores go in bulk groups of the issuing thread. Shared addresses are aligned to 128 (to 1024 for a swizzled tile whose
// pattern starts at its first byte); coordinates are elements, innermost dimension first, and may be negative. Global strides are
// multiples of 16 bytes.
#pragma once

#include <cstdint>

namespace ptx {

// Fetches the descriptor itself. `map` is the address of a kernel parameter or of global memory.
__device__ __forceinline__ void prefetch_tensormap(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// ---- Tiled loads -------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void cp_async_bulk_tensor_2d_load(uint32_t shared, const TensorMap* map, uint32_t mbarrier, int32_t x, int32_t y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(shared),
                 "l"(map), "r"(mbarrier), "r"(x), "r"(y)
                 : "memory");
}

__device__ __forceinline__ void cp_async_bulk_tensor_3d_load(uint32_t shared, const TensorMap* map, uint32_t mbarrier, int32_t x, int32_t y,
                                                             int32_t z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared),
        "l"(map), "r"(mbarrier), "r"(x), "r"(y), "r"(z)
        : "memory");
}

// With a policy of `createpolicy_*`.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_load_L2_cache_hint(uint32_t shared, const TensorMap* map, uint32_t mbarrier, int32_t x,
                                                                           int32_t y, uint64_t policy) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4}], [%2], "
                 "%5;" ::"r"(shared),
                 "l"(map), "r"(mbarrier), "r"(x), "r"(y), "l"(policy)
                 : "memory");
}

__device__ __forceinline__ void cp_async_bulk_tensor_3d_load_L2_cache_hint(uint32_t shared, const TensorMap* map, uint32_t mbarrier, int32_t x,
                                                                           int32_t y, int32_t z, uint64_t policy) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %5}], "
                 "[%2], %6;" ::"r"(shared),
                 "l"(map), "r"(mbarrier), "r"(x), "r"(y), "r"(z), "l"(policy)
                 : "memory");
}

// To the same offset of every block of `cta_mask` (bit = rank in the cluster); each block's own mbarrier at the same offset gets
// the bytes. sm_90a.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_load_multicast(uint32_t shared, const TensorMap* map, uint32_t mbarrier, int32_t x,
                                                                       int32_t y, uint16_t cta_mask) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], "
                 "[%2], %5;" ::"r"(shared),
                 "l"(map), "r"(mbarrier), "r"(x), "r"(y), "h"(cta_mask)
                 : "memory");
}

__device__ __forceinline__ void cp_async_bulk_tensor_3d_load_multicast(uint32_t shared, const TensorMap* map, uint32_t mbarrier, int32_t x,
                                                                       int32_t y, int32_t z, uint16_t cta_mask) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4, "
                 "%5}], [%2], %6;" ::"r"(shared),
                 "l"(map), "r"(mbarrier), "r"(x), "r"(y), "r"(z), "h"(cta_mask)
                 : "memory");
}

__device__ __forceinline__ void cp_async_bulk_tensor_2d_load_multicast_L2_cache_hint(uint32_t shared, const TensorMap* map, uint32_t mbarrier,
                                                                                     int32_t x, int32_t y, uint16_t cta_mask,
                                                                                     uint64_t policy) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%0], "
                 "[%1, {%3, %4}], [%2], %5, %6;" ::"r"(shared),
                 "l"(map), "r"(mbarrier), "r"(x), "r"(y), "h"(cta_mask), "l"(policy)
                 : "memory");
}

// Into L2 only.
__device__ __forceinline__ void cp_async_bulk_prefetch_tensor_2d(const TensorMap* map, int32_t x, int32_t y) {
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(map), "r"(x), "r"(y) : "memory");
}

// ---- Tiled stores ------------------------------------------------------------------------------------------------------

// What lies outside the tensor is dropped. The source must have been written before a `fence_proxy_async_shared_cta` of each
// writer.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_store(const TensorMap* map, int32_t x, int32_t y, uint32_t shared) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(x), "r"(y), "r"(shared)
                 : "memory");
}

__device__ __forceinline__ void cp_async_bulk_tensor_3d_store(const TensorMap* map, int32_t x, int32_t y, int32_t z, uint32_t shared) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(map), "r"(x), "r"(y), "r"(z),
                 "r"(shared)
                 : "memory");
}

__device__ __forceinline__ void cp_async_bulk_tensor_2d_store_L2_cache_hint(const TensorMap* map, int32_t x, int32_t y, uint32_t shared,
                                                                            uint64_t policy) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group.L2::cache_hint [%0, {%1, %2}], [%3], %4;" ::"l"(map), "r"(x),
                 "r"(y), "r"(shared), "l"(policy)
                 : "memory");
}

// Adds instead of storing, each element atomically (relaxed, gpu scope), in the map's element type.
__device__ __forceinline__ void cp_reduce_async_bulk_tensor_2d_add(const TensorMap* map, int32_t x, int32_t y, uint32_t shared) {
    asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(x), "r"(y),
                 "r"(shared)
                 : "memory");
}

__device__ __forceinline__ void cp_reduce_async_bulk_tensor_3d_add(const TensorMap* map, int32_t x, int32_t y, int32_t z, uint32_t shared) {
    asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(map), "r"(x), "r"(y),
                 "r"(z), "r"(shared)
                 : "memory");
}

// ---- Linear copies: addresses and `bytes` are multiples of 16 ----------------------------------------------------------

__device__ __forceinline__ void cp_async_bulk_load(uint32_t shared, const void* global, uint32_t bytes, uint32_t mbarrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
                 "l"(global_address(global)), "r"(bytes), "r"(mbarrier)
                 : "memory");
}

__device__ __forceinline__ void cp_async_bulk_load_multicast(uint32_t shared, const void* global, uint32_t bytes, uint32_t mbarrier,
                                                             uint16_t cta_mask) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(shared),
                 "l"(global_address(global)), "r"(bytes), "r"(mbarrier), "h"(cta_mask)
                 : "memory");
}

__device__ __forceinline__ void cp_async_bulk_store(void* global, uint32_t shared, uint32_t bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global_address(global)), "r"(shared), "r"(bytes)
                 : "memory");
}

// To another block of the cluster; `shared` and `mbarrier` are addresses of that block, from `mapa_shared_cluster`.
__device__ __forceinline__ void cp_async_bulk_shared_to_cluster(uint32_t shared_cluster, uint32_t source, uint32_t bytes,
                                                                uint32_t mbarrier_cluster) {
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_cluster),
                 "r"(source), "r"(bytes), "r"(mbarrier_cluster)
                 : "memory");
}

__device__ __forceinline__ void cp_reduce_async_bulk_add_f32(float* global, uint32_t shared, uint32_t bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(global_address(global)), "r"(shared),
                 "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async_bulk_prefetch_L2(const void* global, uint32_t bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global_address(global)), "r"(bytes) : "memory");
}

// ---- Groups of stores --------------------------------------------------------------------------------------------------

__device__ __forceinline__ void cp_async_bulk_commit_group() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until at most PENDING groups of this thread, the latest, are under way: their writes are then visible to it.
template <int PENDING>
__device__ __forceinline__ void cp_async_bulk_wait_group() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
}

// The same for their reads: the source may be written again.
template <int PENDING>
__device__ __forceinline__ void cp_async_bulk_wait_group_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// ---- Linear copies under a policy for L2 (from `createpolicy_*`) -------------------------------------------------------

__device__ __forceinline__ void cp_async_bulk_load_L2_cache_hint(uint32_t shared, const void* global, uint32_t bytes, uint32_t mbarrier,
                                                                 uint64_t policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(shared),
                 "l"(global_address(global)), "r"(bytes), "r"(mbarrier), "l"(policy)
                 : "memory");
}
__device__ __forceinline__ void cp_async_bulk_store_L2_cache_hint(void* global, uint32_t shared, uint32_t bytes, uint64_t policy) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;" ::"l"(global_address(global)), "r"(shared),
                 "r"(bytes), "l"(policy)
                 : "memory");
}

} // namespace ptx
