// Tensor cores of a warpgroup (PTX ISA 9.0, section 9.7.15 "wgmma"). sm_90a. Part of ptx.cuh.
//
// All 128 threads of four consecutive warps, aligned to 4, execute each of these together with identical descriptors. Order of a
// product: `wgmma_fence` (the accumulator's, or A's, registers were written by ordinary instructions); one or more `wgmma_m64n*`;
// `wgmma_commit_group`; `wgmma_wait_group<0>`; only then are the registers touched and the shared operands written again. What
// ordinary instructions wrote to the shared operands needs a `fence_proxy_async_shared_cta` of the writers first; what TMA wrote
// needs its mbarrier alone.
//
// Accumulator, 64 by N: thread t of the warpgroup (warp w = t/32, lane l = t%32) holds in register i row 16w + l/4 + 8*((i/2)%2),
// column 8*(i/4) + 2*(l%4) + i%2.
#pragma once

#include <cstdint>

namespace ptx {

// ---- Descriptors of shared operands ------------------------------------------------------------------------------------

enum class WgmmaSwizzle : uint64_t { None = 0, Bytes128 = 1, Bytes64 = 2, Bytes32 = 3 };

// `address` is aligned to 16; the pattern of a swizzle repeats every 8 rows (1024, 512, 256 bytes) from an address aligned to
// that. K-major with a swizzle as wide as its row: `stride_bytes` from one group of 8 rows to the next, `leading_bytes` unused
// (give 16). K-major without swizzle: 8x16-byte core matrices, `leading_bytes` apart along K and `stride_bytes` along M or N.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address, uint32_t leading_bytes, uint32_t stride_bytes, WgmmaSwizzle swizzle) {
    return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>((leading_bytes & 0x3ffff) >> 4) << 16 |
           static_cast<uint64_t>((stride_bytes & 0x3ffff) >> 4) << 32 | static_cast<uint64_t>(swizzle) << 62;
}

// The usual one: rows of 128 bytes, swizzled by 128, packed. The next 32 bytes along K are `descriptor + 2`.
__device__ __forceinline__ uint64_t wgmma_descriptor_128B(uint32_t address) {
    return wgmma_descriptor(address, 16, 1024, WgmmaSwizzle::Bytes128);
}

// ---- Order -------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING groups, the latest, are under way.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait_group() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving uses of a register across the place of the call: between issue and wait it does not know that
// WGMMA owns it.
__device__ __forceinline__ void wgmma_fence_register(float& x) { asm volatile("" : "+f"(x)::"memory"); }

// ---- Products ----------------------------------------------------------------------------------------------------------
// d = a b, or d += a b with `accumulate`. `d` has N/2 registers. The text of one instruction for each N:

#define PTX_WGMMA_D8                                                                                                                       \
    "{%0, %1, %2, %3}"
#define PTX_WGMMA_D16                                                                                                                      \
    "{%0, %1, %2, %3, %4, %5, %6, %7}"
#define PTX_WGMMA_D32                                                                                                                      \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"
#define PTX_WGMMA_D64                                                                                                                      \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                                              \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define PTX_WGMMA_D96                                                                                                                      \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                                              \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                                     \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}"
#define PTX_WGMMA_D128                                                                                                                     \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                                              \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                                     \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                                     \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define PTX_WGMMA_D192                                                                                                                     \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                                              \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                                     \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                                     \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                                                     \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                                                     \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}"
#define PTX_WGMMA_D256                                                                                                                     \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                                              \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                                     \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                                     \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                                                     \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                                                     \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                                                     \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "                                         \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}"

#define PTX_WGMMA_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define PTX_WGMMA_8(i) PTX_WGMMA_4(i), PTX_WGMMA_4(i + 4)
#define PTX_WGMMA_16(i) PTX_WGMMA_8(i), PTX_WGMMA_8(i + 8)
#define PTX_WGMMA_32(i) PTX_WGMMA_16(i), PTX_WGMMA_16(i + 16)
#define PTX_WGMMA_O8 PTX_WGMMA_4(0)
#define PTX_WGMMA_O16 PTX_WGMMA_8(0)
#define PTX_WGMMA_O32 PTX_WGMMA_16(0)
#define PTX_WGMMA_O64 PTX_WGMMA_32(0)
#define PTX_WGMMA_O96 PTX_WGMMA_32(0), PTX_WGMMA_16(32)
#define PTX_WGMMA_O128 PTX_WGMMA_32(0), PTX_WGMMA_32(32)
#define PTX_WGMMA_O192 PTX_WGMMA_O128, PTX_WGMMA_32(64)
#define PTX_WGMMA_O256 PTX_WGMMA_O192, PTX_WGMMA_32(96)

#define PTX_WGMMA_TEXT(INSTRUCTION, PREDICATE, OPERANDS)                                                                                   \
    "{\n\t.reg .pred accumulate;\n\tsetp.ne.b32 accumulate, " PREDICATE ", 0;\n\t" INSTRUCTION " " OPERANDS ";\n\t}"

// Both operands K-major from shared memory: the only form of 8-bit types.
#define PTX_WGMMA_SS8(N, R0, R1, R2, TA, TB)                                                                                               \
    __device__ __forceinline__ void wgmma_m64n##N##k32_f32_##TA##_##TB(float(&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {        \
        asm volatile(PTX_WGMMA_TEXT("wgmma.mma_async.sync.aligned.m64n" #N "k32.f32." #TA "." #TB, R2,                                     \
                                    PTX_WGMMA_D##N ", " R0 ", " R1 ", accumulate, 1, 1")                                                   \
                     : PTX_WGMMA_O##N                                                                                                      \
                     : "l"(a), "l"(b), "r"(static_cast<uint32_t>(accumulate)));                                                            \
    }

// A from registers (row 16w + l/4 + 8*(j%2), bytes 4*(l%4) + 16*(j/2) .. + 4 in register j), B K-major from shared memory.
#define PTX_WGMMA_RS8(N, R0, R1, R2, R3, R4, R5, TA, TB)                                                                                   \
    __device__ __forceinline__ void wgmma_m64n##N##k32_f32_##TA##_##TB(float(&d)[N / 2], const uint32_t(&a)[4], uint64_t b,                \
                                                                       bool accumulate) {                                                  \
        asm volatile(PTX_WGMMA_TEXT("wgmma.mma_async.sync.aligned.m64n" #N "k32.f32." #TA "." #TB, R5,                                     \
                                    PTX_WGMMA_D##N ", {" R0 ", " R1 ", " R2 ", " R3 "}, " R4 ", accumulate, 1, 1")                         \
                     : PTX_WGMMA_O##N                                                                                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<uint32_t>(accumulate)));                        \
    }

// 16-bit types from shared memory, each operand K-major (0) or MN-major (1).
#define PTX_WGMMA_SS16(N, R0, R1, R2, R3, R4, T)                                                                                           \
    template <int A_MN_MAJOR = 0, int B_MN_MAJOR = 0>                                                                                      \
    __device__ __forceinline__ void wgmma_m64n##N##k16_f32_##T##_##T(float(&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {          \
        asm volatile(PTX_WGMMA_TEXT("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #T "." #T, R2,                                       \
                                    PTX_WGMMA_D##N ", " R0 ", " R1 ", accumulate, 1, 1, " R3 ", " R4)                                      \
                     : PTX_WGMMA_O##N                                                                                                      \
                     : "l"(a), "l"(b), "r"(static_cast<uint32_t>(accumulate)), "n"(A_MN_MAJOR), "n"(B_MN_MAJOR));                          \
    }

// 16-bit types, A from registers (as for mma.sync m16n8k16, 16 rows a warp), B K-major (0) or MN-major (1).
#define PTX_WGMMA_RS16(N, R0, R1, R2, R3, R4, R5, R6, T)                                                                                   \
    template <int B_MN_MAJOR = 0>                                                                                                          \
    __device__ __forceinline__ void wgmma_m64n##N##k16_f32_##T##_##T(float(&d)[N / 2], const uint32_t(&a)[4], uint64_t b,                  \
                                                                     bool accumulate) {                                                    \
        asm volatile(PTX_WGMMA_TEXT("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #T "." #T, R5,                                       \
                                    PTX_WGMMA_D##N ", {" R0 ", " R1 ", " R2 ", " R3 "}, " R4 ", accumulate, 1, 1, " R6)                    \
                     : PTX_WGMMA_O##N                                                                                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<uint32_t>(accumulate)), "n"(B_MN_MAJOR));       \
    }

// N, then the numbers of the operands that follow the N/2 registers of d.
#define PTX_WGMMA_ALL(N, R0, R1, R2, R3, R4, R5, R6)                                                                                       \
    PTX_WGMMA_SS8(N, R0, R1, R2, e4m3, e4m3)                                                                                               \
    PTX_WGMMA_SS8(N, R0, R1, R2, e5m2, e4m3)                                                                                               \
    PTX_WGMMA_SS8(N, R0, R1, R2, e4m3, e5m2)                                                                                               \
    PTX_WGMMA_SS8(N, R0, R1, R2, e5m2, e5m2)                                                                                               \
    PTX_WGMMA_RS8(N, R0, R1, R2, R3, R4, R5, e4m3, e4m3)                                                                                   \
    PTX_WGMMA_SS16(N, R0, R1, R2, R3, R4, bf16)                                                                                            \
    PTX_WGMMA_SS16(N, R0, R1, R2, R3, R4, f16)                                                                                             \
    PTX_WGMMA_RS16(N, R0, R1, R2, R3, R4, R5, R6, bf16)                                                                                    \
    PTX_WGMMA_RS16(N, R0, R1, R2, R3, R4, R5, R6, f16)

PTX_WGMMA_ALL(8, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
PTX_WGMMA_ALL(16, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
PTX_WGMMA_ALL(32, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
PTX_WGMMA_ALL(64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
PTX_WGMMA_ALL(96, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
PTX_WGMMA_ALL(128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
PTX_WGMMA_ALL(192, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
PTX_WGMMA_ALL(256, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

#undef PTX_WGMMA_ALL
#undef PTX_WGMMA_SS8
#undef PTX_WGMMA_RS8
#undef PTX_WGMMA_SS16
#undef PTX_WGMMA_RS16
#undef PTX_WGMMA_TEXT
#undef PTX_WGMMA_4
#undef PTX_WGMMA_8
#undef PTX_WGMMA_16
#undef PTX_WGMMA_32
#undef PTX_WGMMA_O8
#undef PTX_WGMMA_O16
#undef PTX_WGMMA_O32
#undef PTX_WGMMA_O64
#undef PTX_WGMMA_O96
#undef PTX_WGMMA_O128
#undef PTX_WGMMA_O192
#undef PTX_WGMMA_O256
#undef PTX_WGMMA_D8
#undef PTX_WGMMA_D16
#undef PTX_WGMMA_D32
#undef PTX_WGMMA_D64
#undef PTX_WGMMA_D96
#undef PTX_WGMMA_D128
#undef PTX_WGMMA_D192
#undef PTX_WGMMA_D256

} // namespace ptx
