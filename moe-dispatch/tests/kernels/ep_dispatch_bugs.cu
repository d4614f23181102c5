// archs: sm_80
// variants: gpu_scope=-DEP_BUG=1 flag_first=-DEP_BUG=2 early_reuse=-DEP_BUG=3 cta_scope=-DEP_BUG=4
//
// Dispatch with one mistake each, which the emulator must report, and without: see ep_common.cuh.

#include "../../kernels/ep_dispatch.cuh"

extern "C" __global__ void __launch_bounds__(ep::MAX_THREADS, 1) ep_dispatch(const __grid_constant__ ep::DispatchParams p) {
    ep::dispatch(p);
}
