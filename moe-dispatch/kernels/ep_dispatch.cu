// archs: sm_80 sm_90a
//
// Dispatch between devices in two hops: each token's row goes once to each node that has experts for it, to the gateway there, and
// from the gateway to the ranks that have them, with the token's experts and weights.
//
// Launch: 2 * channels blocks for each rank of the launch, 64 to 512 threads (a multiple of 32), no dynamic shared memory; all blocks of all
// ranks resident at once. Block b is half b % 2 of channel b / 2 % channels of rank ranks[b / 2 / channels]. Half 0 sends over the slow
// hop and receives, half 1 forwards; warps_of_first shares the warps of half 0 out. Channel c has tokens c * tokens_per_channel on.
//
// Output of a rank: for each source and channel a segment of tokens_per_channel rows, in the order of the source's tokens, filled from
// the front as far as out_counts says. Rows behind have no experts (-1), so that the whole can be taken as [ranks * channels *
// tokens_per_channel] tokens with choices masked out. The launch reads nothing but device memory, and leaves the rings ready for the
// next: it may be repeated, in a graph too, with other tokens and routings in the same memory.
//
// Experts that do not exist or that a token names twice, and tokens beyond max_tokens, are left out, and said in `status`.
//
// Cache: rows pass L1 by, and are the first to leave L2.

#include "ep_dispatch.cuh"

extern "C" __global__ void __launch_bounds__(ep::MAX_THREADS, 1) ep_dispatch(const __grid_constant__ ep::DispatchParams p) {
    ep::dispatch(p);
}
