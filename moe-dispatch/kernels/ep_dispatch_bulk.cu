// archs: sm_90a
//
// ep_dispatch (see there) with bulk copies: one lane of a warp moves a row through shared memory, 4096 bytes at a time, one piece being
// loaded while the one before is stored to all who want it. Launch: with 8192 bytes of dynamic shared memory for each warp.

#define EP_BULK 1
#include "ep_dispatch.cuh"

extern "C" __global__ void __launch_bounds__(ep::MAX_THREADS, 1) ep_dispatch(const __grid_constant__ ep::DispatchParams p) {
    ep::dispatch(p);
}
