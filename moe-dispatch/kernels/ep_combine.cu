// archs: sm_80 sm_90a
//
// Combine between devices in two hops, back along the way of a dispatch: each rank adds the rows of its experts for a token, times their
// weights, and sends one row to the token's gateway in its node; the gateway adds those of its node and sends one row to the token's
// rank, which adds those of the nodes.
//
// Sums are in f32 in the fixed binary tree over logical experts, absent ones skipped; a leaf is round(weight * row). Each of the three sums
// is rounded once to bf16, that of a token's own rank and node too: the bits depend on the layout, not on where a token is at home.
//
// Launch: as ep_dispatch, with the same channels; it takes what that dispatch wrote, unchanged. Half 0 sends and receives, half 1
// forwards. Rows of tokens without experts become zeros. `map` says where permutation put each choice's row; a choice without a row
// is left out, and said in `status`.

#include "ep_combine.cuh"

extern "C" __global__ void __launch_bounds__(ep::MAX_COMBINE_THREADS, 1) ep_combine(const __grid_constant__ ep::CombineParams p) {
    ep::combine(p);
}
