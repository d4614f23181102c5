// Combine between devices: see ep_combine.cu.
#pragma once

#include "convert.cuh"
#include "ep_common.cuh"

namespace ep {

// Shared with the host: repr(C). Addresses of one rank, on its own device. Those that dispatch wrote have its names.
struct CombineRank {
    const uint16_t* expert_rows;        //  0: bf16 [expert_row_count, columns]
    const int32_t* map;                 //  8: [ranks, channels, tokens_per_channel, top_k]: the expert row of each choice, or -1
    const int32_t* out_experts;         // 16
    const float* out_weights;           // 24: or null, for weights of 1
    const uint32_t* out_counts;         // 32
    const int32_t* forward_positions;   // 40
    const uint32_t* forward_counts;     // 48
    const int32_t* home_positions;      // 56
    const uint32_t* home_counts;        // 64
    const uint32_t* tokens;             // 72
    uint16_t* combined;                 // 80: bf16 [tokens, columns]
    uint32_t* status;                   // 88
    uint32_t expert_row_count;          // 96
    uint32_t rank;                      // 100
};
static_assert(sizeof(CombineRank) == 104, "the layout that the host writes");

// Where things are in a workspace, in bytes.
struct CombineOffsets {
    uint64_t fast_rows;  //  0: [C, N, L, K, row]: sums of each rank of this node for the rank at this place in each node
    uint64_t fast_full;  //  8: u32 [C, N, L, K]
    uint64_t fast_free;  // 16: u32 [C, R, K]: of the rings that this rank writes, for each source, in its gateway
    uint64_t slow_rows;  // 24: [C, N, K, row]: sums of each node for this rank
    uint64_t slow_full;  // 32: u32 [C, N, K]
    uint64_t slow_free;  // 40: u32 [C, N, K]: of the rings that this rank writes in the rank at its place of each node
    uint64_t state;      // 48: u32 [C, 2 R + 2 N]: the next numbers of every ring
    uint64_t reserved;   // 56: zero
};

struct CombineParams {
    Shape shape;                     //    0
    CombineOffsets offsets;          //   64
    uint64_t workspaces[MAX_RANKS];  //  128
    CombineRank ranks[MAX_HERE];     //  640
};
static_assert(sizeof(CombineParams) == 1472, "the layout that the host writes");

// One row to add, lane t's the t-th of the row's terms in the order of the leaves.
struct Term {
    const uint8_t* row; // bf16
    float weight;
    uint32_t adds; // so many times, after this one, the two topmost sums are replaced by their sum
};

// The terms of the lanes that have one (`present`), ascending by leaf, with the additions of the fixed tree over the leaves (inner nodes
// of height h cover 2^h leaves, beginning at a multiple of 2^h; a node with one side present is that side). Leaves differ. Lanes from
// `width` on have none. All lanes are here; gives the number of terms.
__device__ __forceinline__ uint32_t make_terms(Term& term, bool present, uint32_t leaf, uint32_t width) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t all = __ballot_sync(ALL, present);
    const uint32_t terms = __popc(all);
    uint32_t order = 0;
    for (uint32_t i = 0; i < width; ++i) {
        const uint32_t other = __shfl_sync(ALL, leaf, i);
        order += (all >> i & 1) != 0 && other < leaf ? 1 : 0;
    }
    uint32_t from = 0;
    for (uint32_t i = 0; i < width; ++i) {
        const uint32_t other = __shfl_sync(ALL, order, i);
        from = (all >> i & 1) != 0 && other == lane ? i : from;
    }
    term.row = reinterpret_cast<const uint8_t*>(__shfl_sync(ALL, reinterpret_cast<uint64_t>(term.row), from));
    term.weight = __shfl_sync(ALL, term.weight, from);
    const uint32_t sorted = __shfl_sync(ALL, leaf, from);
    // Heights at which sums wait for their right sides: all different, the topmost the least.
    uint32_t waiting = 0;
    term.adds = 0;
    for (uint32_t t = 0; t < terms; ++t) {
        const uint32_t left = __shfl_sync(ALL, sorted, t), right = __shfl_sync(ALL, sorted, (t + 1) % 32);
        const bool is_last = t + 1 == terms;
        const uint32_t height = is_last ? 31 : 31 - __clz((left ^ right) | 1);
        const uint32_t joined = waiting & ((1u << height) - 1);
        if (lane == t) {
            term.adds = __popc(joined);
        }
        waiting = (waiting & ~joined) | 1u << height;
    }
    return terms;
}

// The sum of some terms, rounded once to bf16, to `to`. DEPTH: most sums that wait at a time. CONSTANT: nothing writes the rows while the
// kernel runs.
template <uint32_t DEPTH, bool CONSTANT>
__device__ __forceinline__ void add_terms(uint8_t* to, const Term& term, uint32_t terms, uint32_t row_bytes, uint64_t policy) {
    constexpr uint32_t AHEAD = 4;
    const uint32_t lane = threadIdx.x % 32;
    for (uint32_t base = 0; base < row_bytes; base += 512) {
        const uint32_t byte = base + lane * 16;
        const bool is_in = byte < row_bytes;
        float sum[8] = {};
        float waiting[DEPTH][8] = {};
        for (uint32_t first = 0; first < terms; first += AHEAD) {
            U32x4 x[AHEAD] = {};
#pragma unroll
            for (uint32_t i = 0; i < AHEAD; ++i) {
                const uint32_t from = min(first + i, terms - 1);
                const auto* const row = reinterpret_cast<const uint8_t*>(__shfl_sync(ALL, reinterpret_cast<uint64_t>(term.row), from));
                if (is_in && first + i < terms) {
                    x[i] = CONSTANT ? ptx::ld_global_nc_L1_no_allocate_L2_cache_hint_v4_u32(row + byte, policy)
                                    : ptx::ld_global_L1_no_allocate_L2_cache_hint_v4_u32(row + byte, policy);
                }
            }
#pragma unroll
            for (uint32_t i = 0; i < AHEAD; ++i) {
                const uint32_t from = first + i;
                const float weight = __shfl_sync(ALL, term.weight, from % 32);
                const uint32_t adds = __shfl_sync(ALL, term.adds, from % 32);
                if (from >= terms) {
                    break;
                }
                if (from > 0) {
#pragma unroll
                    for (uint32_t e = 0; e < 8; ++e) {
#pragma unroll
                        for (uint32_t d = DEPTH - 1; d > 0; --d) {
                            waiting[d][e] = waiting[d - 1][e];
                        }
                        waiting[0][e] = sum[e];
                    }
                }
                const uint32_t words[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
#pragma unroll
                for (uint32_t e = 0; e < 8; ++e) {
                    const float value = e % 2 == 0 ? convert::f32_from_bf16_low(words[e / 2]) : convert::f32_from_bf16_high(words[e / 2]);
                    sum[e] = __fmul_rn(weight, value);
                }
                for (uint32_t add = 0; add < adds; ++add) {
#pragma unroll
                    for (uint32_t e = 0; e < 8; ++e) {
                        sum[e] = __fadd_rn(waiting[0][e], sum[e]);
#pragma unroll
                        for (uint32_t d = 0; d + 1 < DEPTH; ++d) {
                            waiting[d][e] = waiting[d + 1][e];
                        }
                    }
                }
            }
        }
        if (is_in) {
            const U32x4 out = {ptx::cvt_rn_bf16x2_f32(sum[0], sum[1]), ptx::cvt_rn_bf16x2_f32(sum[2], sum[3]),
                               ptx::cvt_rn_bf16x2_f32(sum[4], sum[5]), ptx::cvt_rn_bf16x2_f32(sum[6], sum[7])};
            ptx::st_global_L1_no_allocate_L2_cache_hint_v4_u32(to + byte, out, policy);
        }
    }
}

struct Combine {
    const CombineParams& p;
    const CombineRank& rank;
    uint32_t channel, half;
    uint32_t me, node, place;
    uint32_t warp, warps, lane;
    uint32_t first, count; // this channel's tokens
    uint64_t own;          // this rank's workspace
    uint64_t policy;

    // Most sums that wait at a time: of the experts of a rank (256 at most), of the ranks of a node or the nodes (32 at most).
    static constexpr uint32_t EXPERTS = 8, PLACES = 5;

    __device__ __forceinline__ Combine(const CombineParams& params)
        : p(params), rank(params.ranks[blockIdx.x / 2 / params.shape.channels]), channel(blockIdx.x / 2 % params.shape.channels),
          half(blockIdx.x % 2), me(rank.rank), node(me / params.shape.ranks_per_node), place(me % params.shape.ranks_per_node),
          warp(threadIdx.x / 32), warps(blockDim.x / 32), lane(threadIdx.x % 32), own(params.workspaces[me]),
          policy(ptx::createpolicy_fractional_L2_evict_first()) {
        const uint32_t tokens = tokens_of(rank.tokens, p.shape.max_tokens, rank.status);
        first = min(channel * p.shape.tokens_per_channel, tokens);
        count = min(p.shape.tokens_per_channel, tokens - first);
    }

    __device__ __forceinline__ uint32_t* fast_sent() const {
        return at<uint32_t>(own, p.offsets.state) + channel * 2 * (p.shape.nodes + p.shape.ranks);
    }
    __device__ __forceinline__ uint32_t* fast_taken() const { return fast_sent() + p.shape.ranks; }
    __device__ __forceinline__ uint32_t* slow_sent() const { return fast_taken() + p.shape.ranks; }
    __device__ __forceinline__ uint32_t* slow_taken() const { return slow_sent() + p.shape.nodes; }
    __device__ __forceinline__ uint32_t slow_slot(uint32_t of_node, uint32_t number) const {
        return (channel * p.shape.nodes + of_node) * p.shape.slots + slot_of(number, p.shape.slots);
    }
    __device__ __forceinline__ uint32_t fast_slot(uint32_t of, uint32_t number) const {
        return (channel * p.shape.ranks + of) * p.shape.slots + slot_of(number, p.shape.slots);
    }

    // The sum of this rank's experts for a row of a source, to the source's gateway.
    __device__ __forceinline__ bool send(uint32_t source, uint32_t row) const {
        const uint32_t slots = p.shape.slots, per_node = p.shape.ranks_per_node, top_k = p.shape.top_k;
        const uint32_t number = fast_sent()[source] + row;
        const bool is_free = lane != 0 ||
                             is_set(at<uint32_t>(own, p.offsets.fast_free) + fast_slot(source, number), lap_of(number, slots));
        if (!__all_sync(ALL, is_free)) {
            return false;
        }
        __syncwarp();
        const uint64_t here = static_cast<uint64_t>(source * p.shape.channels + channel) * p.shape.tokens_per_channel + row;
        Term term = {nullptr, 1.0f, 0};
        bool present = false;
        uint32_t expert = 0;
        if (lane < top_k) {
            const int32_t choice = rank.out_experts[here * top_k + lane];
            present = choice >= 0;
            if (present) {
                const int32_t at_row = rank.map[here * top_k + lane];
                present = at_row >= 0 && static_cast<uint32_t>(at_row) < rank.expert_row_count;
                if (!present) {
                    complain(rank.status, STATUS_ROW, static_cast<uint32_t>(here));
                }
                expert = static_cast<uint32_t>(choice);
                term.row = reinterpret_cast<const uint8_t*>(rank.expert_rows) + static_cast<uint64_t>(at_row) * p.shape.row_bytes;
                if (rank.out_weights != nullptr) {
                    term.weight = rank.out_weights[here * top_k + lane];
                }
            }
        }
        const uint32_t terms = make_terms(term, present, expert, top_k);
        const uint64_t gateway = p.workspaces[node * per_node + source % per_node];
        const uint32_t slot = fast_slot(source / per_node * per_node + place, number);
        uint32_t* const full = at<uint32_t>(gateway, p.offsets.fast_full) + slot;
        add_terms<EXPERTS, true>(at<uint8_t>(gateway, p.offsets.fast_rows) + static_cast<uint64_t>(slot) * p.shape.row_bytes, term, terms,
                                 p.shape.row_bytes, policy);
        __syncwarp();
        if (lane == 0) {
            set_full(full, next_lap_of(number, slots));
        }
        return true;
    }

    // The sum of this node's ranks for a row of the rank at this place in node `origin`, to that rank.
    __device__ __forceinline__ bool forward(uint32_t origin, uint32_t row) const {
        const uint32_t slots = p.shape.slots, per_node = p.shape.ranks_per_node;
        const uint32_t number = slow_sent()[origin] + row;
        const uint32_t home = origin * per_node + place;
        int32_t position = -1;
        if (lane < per_node) {
            const uint64_t stream = static_cast<uint64_t>(origin * p.shape.channels + channel) * p.shape.tokens_per_channel + row;
            position = rank.forward_positions[stream * per_node + lane];
        }
        const bool present = position >= 0;
        const uint32_t ring = origin * per_node + lane;
        const uint32_t there = present ? fast_taken()[ring] + static_cast<uint32_t>(position) : 0;
        const uint32_t slot = present ? fast_slot(ring, there) : 0;
        bool ready = !present || is_set(at<uint32_t>(own, p.offsets.fast_full) + slot, next_lap_of(there, slots));
        if (lane == 0) {
            ready = is_set(at<uint32_t>(own, p.offsets.slow_free) + slow_slot(origin, number), lap_of(number, slots)) && ready;
        }
        if (!__all_sync(ALL, ready)) {
            return false;
        }
        __syncwarp();
        Term term = {at<uint8_t>(own, p.offsets.fast_rows) + static_cast<uint64_t>(slot) * p.shape.row_bytes, 1.0f, 0};
        const uint32_t terms = make_terms(term, present, lane, per_node);
        const uint32_t out = slow_slot(node, number);
        const uint64_t target = p.workspaces[home];
        uint32_t* const full = at<uint32_t>(target, p.offsets.slow_full) + out;
        add_terms<PLACES, false>(at<uint8_t>(target, p.offsets.slow_rows) + static_cast<uint64_t>(out) * p.shape.row_bytes, term, terms,
                                 p.shape.row_bytes, policy);
        __syncwarp();
        if (lane == 0) {
            set_full(full, next_lap_of(number, slots));
        }
        if (present) {
            set_free(at<uint32_t>(p.workspaces[node * per_node + lane], p.offsets.fast_free) + fast_slot(home, there),
                     next_lap_of(there, slots));
        }
        return true;
    }

    // The sum of all nodes for a token of this rank.
    __device__ __forceinline__ bool receive(uint32_t token) const {
        const uint32_t slots = p.shape.slots, per_node = p.shape.ranks_per_node, nodes = p.shape.nodes;
        int32_t position = -1;
        if (lane < nodes) {
            position = rank.home_positions[static_cast<uint64_t>(first + token) * nodes + lane];
        }
        const bool present = position >= 0;
        const uint32_t number = present ? slow_taken()[lane] + static_cast<uint32_t>(position) : 0;
        const uint32_t slot = present ? slow_slot(lane, number) : 0;
        const bool ready = !present || is_set(at<uint32_t>(own, p.offsets.slow_full) + slot, next_lap_of(number, slots));
        if (!__all_sync(ALL, ready)) {
            return false;
        }
        __syncwarp();
        Term term = {at<uint8_t>(own, p.offsets.slow_rows) + static_cast<uint64_t>(slot) * p.shape.row_bytes, 1.0f, 0};
        const uint32_t terms = make_terms(term, present, lane, nodes);
        add_terms<PLACES, false>(reinterpret_cast<uint8_t*>(rank.combined) + static_cast<uint64_t>(first + token) * p.shape.row_bytes, term,
                                 terms, p.shape.row_bytes, policy);
        __syncwarp();
        if (present) {
            set_free(at<uint32_t>(p.workspaces[lane * per_node + place], p.offsets.slow_free) + slow_slot(node, number),
                     next_lap_of(number, slots));
        }
        return true;
    }

    // Sends the sums of this rank, and receives those of its tokens. `rows` [ranks], `home` [1].
    __device__ __forceinline__ void send_and_receive(uint32_t* rows, uint32_t* home, uint32_t* cursors) const {
        const uint32_t ranks = p.shape.ranks, nodes = p.shape.nodes;
        for (uint32_t source = threadIdx.x; source < ranks; source += blockDim.x) {
            rows[source] = min(rank.out_counts[source * p.shape.channels + channel], p.shape.tokens_per_channel);
        }
        if (threadIdx.x == 0) {
            *home = count;
        }
        __syncthreads();
        uint32_t sent = 0, received = 0;
        for (uint32_t i = 0; i < ranks; ++i) {
            sent += rows[i];
        }
        for (uint32_t i = 0; i < nodes; ++i) {
            received += rank.home_counts[i * p.shape.channels + channel];
        }
        // A token without experts is a row of zeros to write.
        const uint32_t senders = warps_of_first(warps, sent, max(received, count));
        if (warp < senders) {
            serve(Share(warp, senders, ranks), rows, cursors, [&](uint32_t source, uint32_t row) { return send(source, row); });
        } else {
            serve(Share(warp - senders, warps - senders, 1), home, cursors + MAX_RANKS,
                  [&](uint32_t, uint32_t token) { return receive(token); });
        }
        __syncthreads();
        for (uint32_t source = threadIdx.x; source < ranks; source += blockDim.x) {
            fast_sent()[source] += rows[source];
        }
        for (uint32_t i = threadIdx.x; i < nodes; i += blockDim.x) {
            slow_taken()[i] += rank.home_counts[i * p.shape.channels + channel];
        }
    }

    // Adds and forwards. `rows` [nodes].
    __device__ __forceinline__ void forward_all(uint32_t* rows, uint32_t* cursors) const {
        const uint32_t per_node = p.shape.ranks_per_node;
        const auto count_of = [&](uint32_t origin, uint32_t which) {
            return rank.forward_counts[(origin * p.shape.channels + channel) * (1 + per_node) + which];
        };
        for (uint32_t origin = threadIdx.x; origin < p.shape.nodes; origin += blockDim.x) {
            rows[origin] = min(count_of(origin, 0), p.shape.tokens_per_channel);
        }
        __syncthreads();
        serve(Share(warp, warps, p.shape.nodes), rows, cursors, [&](uint32_t origin, uint32_t row) { return forward(origin, row); });
        __syncthreads();
        for (uint32_t origin = threadIdx.x; origin < p.shape.nodes; origin += blockDim.x) {
            slow_sent()[origin] += rows[origin];
        }
        for (uint32_t i = threadIdx.x; i < p.shape.ranks; i += blockDim.x) {
            fast_taken()[i] += count_of(i / per_node, 1 + i % per_node);
        }
    }
};

__device__ __forceinline__ void combine(const CombineParams& p) {
    __shared__ uint32_t rows[MAX_RANKS], home, cursors[2 * MAX_RANKS];
    const Combine c(p);
    if (c.half == 0) {
        c.send_and_receive(rows, &home, cursors);
    } else {
        c.forward_all(rows, cursors);
    }
}

} // namespace ep
