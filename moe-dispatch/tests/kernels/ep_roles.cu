// archs: sm_80
//
// What the device says to warps_of_first: for inputs (warps, first, second) of each thread.

#include "../../kernels/ep_roles.cuh"

extern "C" __global__ void ep_roles(const uint32_t* inputs, uint32_t* warps, uint32_t count) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) {
        warps[i] = ep::warps_of_first(inputs[3 * i], inputs[3 * i + 1], inputs[3 * i + 2]);
    }
}
