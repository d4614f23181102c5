// Inline PTX, one wrapper an instruction, named after it. Everything that kernels of this workspace need beyond CUDA C++ is here,
// so that a kernel's own text holds no `asm`, and so that one place says what each instruction asks of its caller.
//
// Conventions:
// - A `uint32_t` that points into shared memory is an address in the shared window (`shared_address`), either of this block
//   (`.shared::cta`) or, where the wrapper says so, of any block of the cluster (`.shared::cluster`, from `mapa`).
// - Wrappers that order memory or touch it name `memory` among their clobbers; the compiler moves nothing across them.
// - `.aligned` instructions must be reached by all threads of the warp (of the warpgroup for wgmma and setmaxnreg) together.
// - Nothing is emitted for a wrapper that is not called, so a file for sm_80 may include all of them.
//
// Source: PTX ISA 9.0. Sections are named in the parts.
#pragma once

#include <cstdint>

namespace ptx {

// What cuTensorMapEncodeTiled fills: 128 opaque bytes, aligned to 128 (as CUtensorMap of CUDA 13). Kernels take it, or a struct
// that holds it, as `const __grid_constant__` parameter and pass its address on.
struct alignas(128) TensorMap {
    uint64_t opaque[16];
};

// The address of `pointer`, which points into this block's shared memory, in the shared window.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The address of `pointer`, which points into global memory, in the global window.
__device__ __forceinline__ uint64_t global_address(const void* pointer) {
    return static_cast<uint64_t>(__cvta_generic_to_global(pointer));
}

} // namespace ptx

#include "ptx_convert.cuh"
#include "ptx_mbarrier.cuh"
#include "ptx_memory.cuh"
#include "ptx_mma.cuh"
#include "ptx_sync.cuh"
#include "ptx_tma.cuh"
#include "ptx_wgmma.cuh"
