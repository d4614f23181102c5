// Loads, stores and atomics with cache operators, orders and scopes; cp.async (PTX ISA 9.0, sections 8 "Memory consistency
// model", 9.7.9 "ld, st, cp.async" and 9.7.13 "atom, red"). Part of ptx.cuh.
//
// A flag is written by `st_release_*` or `red_release_*` after the data, and read by `ld_acquire_*` before it. Scopes: `cta` this
// block, `cluster`, `gpu` this device, `sys` all devices and the host. A narrower scope than the partner's distance synchronises
// nothing.
#pragma once

#include <cstdint>

namespace ptx {

struct U32x2 {
    uint32_t x, y;
};
struct alignas(16) U32x4 {
    uint32_t x, y, z, w;
};

// ---- Global memory, cache operators ------------------------------------------------------------------------------------

// 16 bytes that nothing writes while the kernel runs and that are read once. sm_80.
__device__ __forceinline__ U32x4 ld_global_nc_L1_no_allocate_L2_256B_v4_u32(const void* pointer) {
    U32x4 d;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w)
                 : "l"(global_address(pointer)));
    return d;
}

// 16 bytes that nothing writes while the kernel runs.
__device__ __forceinline__ U32x4 ld_global_nc_v4_u32(const void* pointer) {
    U32x4 d;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w)
                 : "l"(global_address(pointer)));
    return d;
}
__device__ __forceinline__ uint16_t ld_global_nc_u16(const void* pointer) {
    uint16_t d;
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(d) : "l"(global_address(pointer)));
    return d;
}
__device__ __forceinline__ float ld_global_nc_f32(const float* pointer) {
    float d;
    asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(d) : "l"(global_address(pointer)));
    return d;
}

// 16 bytes that others may be writing elsewhere, not kept in L1. sm_80.
__device__ __forceinline__ U32x4 ld_global_L1_no_allocate_v4_u32(const void* pointer) {
    U32x4 d;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w)
                 : "l"(global_address(pointer))
                 : "memory");
    return d;
}
__device__ __forceinline__ void st_global_L1_no_allocate_v4_u32(void* pointer, U32x4 x) {
    asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global_address(pointer)), "r"(x.x), "r"(x.y), "r"(x.z),
                 "r"(x.w)
                 : "memory");
}
__device__ __forceinline__ void st_global_v4_u32(void* pointer, U32x4 x) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global_address(pointer)), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
                 : "memory");
}
__device__ __forceinline__ void st_global_v2_u32(void* pointer, U32x2 x) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(global_address(pointer)), "r"(x.x), "r"(x.y) : "memory");
}

// ---- Shared memory by address ------------------------------------------------------------------------------------------

__device__ __forceinline__ float ld_shared_f32(uint32_t address) {
    float d;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(d) : "r"(address) : "memory");
    return d;
}
__device__ __forceinline__ uint32_t ld_shared_u32(uint32_t address) {
    uint32_t d;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(d) : "r"(address) : "memory");
    return d;
}
__device__ __forceinline__ U32x2 ld_shared_v2_u32(uint32_t address) {
    U32x2 d;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(d.x), "=r"(d.y) : "r"(address) : "memory");
    return d;
}
__device__ __forceinline__ U32x4 ld_shared_v4_u32(uint32_t address) {
    U32x4 d;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w) : "r"(address) : "memory");
    return d;
}
__device__ __forceinline__ void st_shared_f32(uint32_t address, float x) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(x) : "memory");
}
__device__ __forceinline__ void st_shared_u32(uint32_t address, uint32_t x) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}
__device__ __forceinline__ void st_shared_v2_u32(uint32_t address, U32x2 x) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(x.x), "r"(x.y) : "memory");
}
__device__ __forceinline__ void st_shared_v4_u32(uint32_t address, U32x4 x) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

// Shared memory of any block of the cluster, address from `mapa_shared_cluster`. sm_90.
__device__ __forceinline__ uint32_t ld_shared_cluster_u32(uint32_t address) {
    uint32_t d;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(d) : "r"(address) : "memory");
    return d;
}
__device__ __forceinline__ void st_shared_cluster_u32(uint32_t address, uint32_t x) {
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}

// ---- Orders and scopes, global memory ----------------------------------------------------------------------------------

#define PTX_LD(ORDER, SCOPE, CTYPE, TYPE, REG)                                                                                             \
    __device__ __forceinline__ CTYPE ld_##ORDER##_##SCOPE##_global(const CTYPE* pointer) {                                                 \
        CTYPE d;                                                                                                                           \
        asm volatile("ld." #ORDER "." #SCOPE ".global." #TYPE " %0, [%1];" : "=" REG(d) : "l"(global_address(pointer)) : "memory");        \
        return d;                                                                                                                          \
    }
#define PTX_ST(ORDER, SCOPE, CTYPE, TYPE, REG)                                                                                             \
    __device__ __forceinline__ void st_##ORDER##_##SCOPE##_global(CTYPE* pointer, CTYPE x) {                                               \
        asm volatile("st." #ORDER "." #SCOPE ".global." #TYPE " [%0], %1;" ::"l"(global_address(pointer)), REG(x) : "memory");             \
    }
#define PTX_RED_ADD(ORDER, SCOPE, CTYPE, TYPE, REG)                                                                                        \
    __device__ __forceinline__ void red_##ORDER##_##SCOPE##_global_add(CTYPE* pointer, CTYPE x) {                                          \
        asm volatile("red." #ORDER "." #SCOPE ".global.add." #TYPE " [%0], %1;" ::"l"(global_address(pointer)), REG(x) : "memory");        \
    }
#define PTX_ATOM_ADD(ORDER, SCOPE, CTYPE, TYPE, REG)                                                                                       \
    __device__ __forceinline__ CTYPE atom_##ORDER##_##SCOPE##_global_add(CTYPE* pointer, CTYPE x) {                                        \
        CTYPE d;                                                                                                                           \
        asm volatile("atom." #ORDER "." #SCOPE ".global.add." #TYPE " %0, [%1], %2;"                                                       \
                     : "=" REG(d)                                                                                                          \
                     : "l"(global_address(pointer)), REG(x)                                                                                \
                     : "memory");                                                                                                          \
        return d;                                                                                                                          \
    }
#define PTX_ATOM_BITS(OP, ORDER, SCOPE, CTYPE, TYPE, REG)                                                                                  \
    __device__ __forceinline__ CTYPE atom_##ORDER##_##SCOPE##_global_##OP(CTYPE* pointer, CTYPE x) {                                       \
        CTYPE d;                                                                                                                           \
        asm volatile("atom." #ORDER "." #SCOPE ".global." #OP "." #TYPE " %0, [%1], %2;"                                                   \
                     : "=" REG(d)                                                                                                          \
                     : "l"(global_address(pointer)), REG(x)                                                                                \
                     : "memory");                                                                                                          \
        return d;                                                                                                                          \
    }
#define PTX_ATOM_CAS(ORDER, SCOPE, CTYPE, TYPE, REG)                                                                                       \
    __device__ __forceinline__ CTYPE atom_##ORDER##_##SCOPE##_global_cas(CTYPE* pointer, CTYPE compare, CTYPE x) {                         \
        CTYPE d;                                                                                                                           \
        asm volatile("atom." #ORDER "." #SCOPE ".global.cas." #TYPE " %0, [%1], %2, %3;"                                                   \
                     : "=" REG(d)                                                                                                          \
                     : "l"(global_address(pointer)), REG(compare), REG(x)                                                                  \
                     : "memory");                                                                                                          \
        return d;                                                                                                                          \
    }

#define PTX_SCOPE(SCOPE, CTYPE, U, S, B, REG)                                                                                              \
    PTX_LD(acquire, SCOPE, CTYPE, U, REG)                                                                                                  \
    PTX_LD(relaxed, SCOPE, CTYPE, U, REG)                                                                                                  \
    PTX_ST(release, SCOPE, CTYPE, U, REG)                                                                                                  \
    PTX_ST(relaxed, SCOPE, CTYPE, U, REG)                                                                                                  \
    PTX_RED_ADD(release, SCOPE, CTYPE, U, REG)                                                                                             \
    PTX_RED_ADD(relaxed, SCOPE, CTYPE, U, REG)                                                                                             \
    PTX_ATOM_ADD(acq_rel, SCOPE, CTYPE, U, REG)                                                                                            \
    PTX_ATOM_ADD(acquire, SCOPE, CTYPE, U, REG)                                                                                            \
    PTX_ATOM_ADD(release, SCOPE, CTYPE, U, REG)                                                                                            \
    PTX_ATOM_ADD(relaxed, SCOPE, CTYPE, U, REG)                                                                                            \
    PTX_ATOM_BITS(exch, acq_rel, SCOPE, CTYPE, B, REG)                                                                                     \
    PTX_ATOM_BITS(max, relaxed, SCOPE, CTYPE, U, REG)                                                                                      \
    PTX_ATOM_CAS(acq_rel, SCOPE, CTYPE, B, REG)

PTX_SCOPE(cta, uint32_t, u32, s32, b32, "r")
PTX_SCOPE(cta, unsigned long long, u64, s64, b64, "l")
PTX_SCOPE(cluster, uint32_t, u32, s32, b32, "r")
PTX_SCOPE(cluster, unsigned long long, u64, s64, b64, "l")
PTX_SCOPE(gpu, uint32_t, u32, s32, b32, "r")
PTX_SCOPE(gpu, unsigned long long, u64, s64, b64, "l")
PTX_SCOPE(sys, uint32_t, u32, s32, b32, "r")
PTX_SCOPE(sys, unsigned long long, u64, s64, b64, "l")

PTX_RED_ADD(relaxed, gpu, float, f32, "f")
PTX_RED_ADD(relaxed, sys, float, f32, "f")

#undef PTX_LD
#undef PTX_ST
#undef PTX_RED_ADD
#undef PTX_ATOM_ADD
#undef PTX_ATOM_BITS
#undef PTX_ATOM_CAS
#undef PTX_SCOPE

// Weak but never cached in registers, never torn apart or merged by the compiler: what a spinning loop without an order reads.
__device__ __forceinline__ uint32_t ld_volatile_global(const uint32_t* pointer) {
    uint32_t d;
    asm volatile("ld.volatile.global.u32 %0, [%1];" : "=r"(d) : "l"(global_address(pointer)) : "memory");
    return d;
}

// ---- Policies for L2 ---------------------------------------------------------------------------------------------------

// For the `L2::cache_hint` forms: lines that are dropped first, or last. sm_80.
__device__ __forceinline__ uint64_t createpolicy_fractional_L2_evict_first() {
    uint64_t d;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(d));
    return d;
}
__device__ __forceinline__ uint64_t createpolicy_fractional_L2_evict_last() {
    uint64_t d;
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(d));
    return d;
}

// ---- cp.async (sm_80) --------------------------------------------------------------------------------------------------

// 16 bytes from global to shared memory past L1, both aligned to 16. Done after `cp_async_wait_group` of the issuing thread;
// other threads need a barrier too.
__device__ __forceinline__ void cp_async_cg_16(uint32_t shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global_address(global)) : "memory");
}

// The same, reading only the first `bytes` (0 to 16) and writing zeros for the rest.
__device__ __forceinline__ void cp_async_cg_16_zfill(uint32_t shared, const void* global, uint32_t bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global_address(global)), "r"(bytes) : "memory");
}

// The same through L1, BYTES of 4, 8 or 16.
template <int BYTES>
__device__ __forceinline__ void cp_async_ca(uint32_t shared, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(global_address(global)), "n"(BYTES) : "memory");
}

__device__ __forceinline__ void cp_async_commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's groups, the latest, are under way.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait_group() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
__device__ __forceinline__ void cp_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// ---- Loads and stores under a policy for L2 -----------------------------------------------------------------------------

// 16 bytes under a policy for L2 (from `createpolicy_*`), not kept in L1: what passes through and should push nothing else out.
// sm_80.
__device__ __forceinline__ U32x4 ld_global_nc_L1_no_allocate_L2_cache_hint_v4_u32(const void* pointer, uint64_t policy) {
    U32x4 d;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w)
                 : "l"(global_address(pointer)), "l"(policy));
    return d;
}
__device__ __forceinline__ U32x4 ld_global_L1_no_allocate_L2_cache_hint_v4_u32(const void* pointer, uint64_t policy) {
    U32x4 d;
    asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w)
                 : "l"(global_address(pointer)), "l"(policy)
                 : "memory");
    return d;
}
__device__ __forceinline__ void st_global_L1_no_allocate_L2_cache_hint_v4_u32(void* pointer, U32x4 x, uint64_t policy) {
    asm volatile("st.global.L1::no_allocate.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(global_address(pointer)), "r"(x.x),
                 "r"(x.y), "r"(x.z), "r"(x.w), "l"(policy)
                 : "memory");
}

} // namespace ptx
