// How the warps of a block are shared out between two roles. The host has the same function (src/gpu/exchange/roles.rs); a test
// compares the two.
#pragma once

#include <cstdint>

namespace ep {

// Of `warps` warps (2 or more) those of the first role, when the two have `first` and `second` rows to move: in proportion, to
// the nearest (a half goes up), at least one for a role that has rows; none for one that has not. With no rows at all: none.
__host__ __device__ inline uint32_t warps_of_first(uint32_t warps, uint32_t first, uint32_t second) {
    if (first == 0) {
        return 0;
    }
    if (second == 0) {
        return warps;
    }
    const uint64_t total = static_cast<uint64_t>(first) + second;
    const uint64_t share = (2 * static_cast<uint64_t>(warps) * first + total) / (2 * total);
    const uint64_t most = warps - 1;
    return static_cast<uint32_t>(share < 1 ? 1 : share > most ? most : share);
}

} // namespace ep
