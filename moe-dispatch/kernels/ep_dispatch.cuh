// Dispatch between devices: see ep_dispatch.cu.
#pragma once

#include "ep_common.cuh"

namespace ep {

// Shared with the host: repr(C). Addresses of one rank, on its own device.
struct DispatchRank {
    const uint8_t* rows;          //   0: [tokens, row_bytes]
    const int32_t* experts;       //   8: [tokens, top_k], negative: no expert
    const float* weights;         //  16: [tokens, top_k]
    const uint32_t* tokens;       //  24: one number, at most max_tokens
    uint8_t* out_rows;            //  32: [ranks, channels, tokens_per_channel, row_bytes]
    int32_t* out_experts;         //  40: [ranks, channels, tokens_per_channel, top_k]: of this rank's experts, or -1
    float* out_weights;           //  48: likewise
    uint32_t* out_tokens;         //  56: [ranks, channels, tokens_per_channel]: the source's number of the token
    uint32_t* out_counts;         //  64: [ranks, channels]: rows that came
    int32_t* forward_positions;   //  72: [nodes, channels, tokens_per_channel, ranks_per_node]: see combine
    uint32_t* forward_counts;     //  80: [nodes, channels, 1 + ranks_per_node]
    int32_t* home_positions;      //  88: [max_tokens, nodes]
    uint32_t* home_counts;        //  96: [nodes, channels]
    uint32_t* status;             // 104: [4], see Status
    uint32_t rank;                // 112
    uint32_t reserved;            // 116: zero
};
static_assert(sizeof(DispatchRank) == 120, "the layout that the host writes");

// Where things are in a workspace, in bytes. What lasts from launch to launch depends on the channel's number, not on how many there
// are: launches may have fewer channels than the workspace has room for. C channels, N nodes, L ranks a node, R ranks, K slots, T tokens of a channel.
struct DispatchOffsets {
    uint64_t slow_rows;  //  0: [C, N, K, header and row]: from the rank at this place in each other node
    uint64_t slow_full;  //  8: u32 [C, N, K]
    uint64_t slow_free;  // 16: u32 [C, N, K]: of the rings that this rank writes in each node
    uint64_t fast_rows;  // 24: [C, R, K, header and row]: rows of each source, through its gateway
    uint64_t fast_full;  // 32: u32 [C, R, K]
    uint64_t fast_free;  // 40: u32 [C, N, L, K]: of the rings that this rank writes, for each origin, in each rank of its node
    uint64_t slow_count; // 48: u64 [C, 2, N, 1 + L]: rows that come for this node, and for each of its ranks
    uint64_t fast_count; // 56: u64 [C, 2, R]: rows that come from each source
    uint64_t state;      // 64: u32 [C, 2 + 2 N + 2 R]: the epochs of both halves, the next numbers of every ring
    uint64_t masks;      // 72: u64 [C, 2, T]: the ranks that a token goes to
    uint64_t positions;  // 80: u32 [C, R, T]: which of the rows for a rank a token is
    uint64_t lists;      // 88: u32 [C, N, T]: the tokens that go to a node
    uint64_t experts;    // 96: i32 [C, 2, T, top_k]: those that exist, each once
    uint64_t reserved;   // 104: zero
};

struct DispatchParams {
    Shape shape;                     //    0
    DispatchOffsets offsets;         //   64
    uint64_t workspaces[MAX_RANKS];  //  176: of all ranks
    DispatchRank ranks[MAX_HERE];    //  688
};
static_assert(sizeof(DispatchParams) == 1648, "the layout that the host writes");

// What goes before a row, in words: the token, its position among the rows for each rank of the node (or -1), its experts, its weights.
struct Header {
    static constexpr uint32_t TOKEN = 0;
    static constexpr uint32_t POSITIONS = 1;
};

struct Dispatch {
    const DispatchParams& p;
    const DispatchRank& rank;
    uint32_t channel, half;
    uint32_t me, node, place;
    uint32_t warp, warps, lane;
    uint32_t first, count; // this channel's tokens
    uint32_t epoch;
    uint64_t own;          // this rank's workspace
    uint64_t policy;
#if EP_BULK
    // Of this warp, in shared memory: STAGES pieces of rows, and an mbarrier for each.
    static constexpr uint32_t PIECE = 4096, STAGES = 2;
    uint32_t staging, barriers;
    mutable uint32_t parities; // bit s: of the next phase of stage s
#endif

    __device__ __forceinline__ Dispatch(const DispatchParams& params)
        : p(params), rank(params.ranks[blockIdx.x / 2 / params.shape.channels]), channel(blockIdx.x / 2 % params.shape.channels),
          half(blockIdx.x % 2), me(rank.rank), node(me / params.shape.ranks_per_node), place(me % params.shape.ranks_per_node),
          warp(threadIdx.x / 32), warps(blockDim.x / 32), lane(threadIdx.x % 32), own(params.workspaces[me]),
          policy(ptx::createpolicy_fractional_L2_evict_first()) {
        const uint32_t tokens = tokens_of(rank.tokens, p.shape.max_tokens, rank.status);
        first = min(channel * p.shape.tokens_per_channel, tokens);
        count = min(p.shape.tokens_per_channel, tokens - first);
        epoch = state()[half] + 1;
#if EP_BULK
        extern __shared__ __align__(128) uint8_t pieces[];
        __shared__ __align__(8) uint64_t objects[MAX_THREADS / 32 * STAGES];
        staging = ptx::shared_address(pieces) + warp * STAGES * PIECE;
        barriers = ptx::shared_address(objects) + warp * STAGES * 8;
        parities = 0;
        if (lane == 0) {
            for (uint32_t stage = 0; stage < STAGES; ++stage) {
                ptx::mbarrier_init(barriers + 8 * stage, 1);
            }
            ptx::fence_mbarrier_init();
        }
        __syncwarp();
#endif
    }

    // ---- Addresses -----------------------------------------------------------------------------------------------------

    __device__ __forceinline__ uint32_t slot_bytes() const { return p.shape.header_bytes + p.shape.row_bytes; }
    __device__ __forceinline__ uint32_t* state() const {
        return at<uint32_t>(own, p.offsets.state) + channel * (2 + 2 * (p.shape.nodes + p.shape.ranks));
    }
    __device__ __forceinline__ uint32_t* slow_sent() const { return state() + 2; }
    __device__ __forceinline__ uint32_t* slow_taken() const { return slow_sent() + p.shape.nodes; }
    __device__ __forceinline__ uint32_t* fast_sent() const { return slow_taken() + p.shape.nodes; }
    __device__ __forceinline__ uint32_t* fast_taken() const { return fast_sent() + p.shape.ranks; }
    __device__ __forceinline__ unsigned long long* slow_count(uint64_t workspace, uint32_t origin) const {
        const uint32_t row = (channel * 2 + (epoch & 1)) * p.shape.nodes + origin;
        return at<unsigned long long>(workspace, p.offsets.slow_count) + row * (1 + p.shape.ranks_per_node);
    }
    __device__ __forceinline__ unsigned long long* fast_count(uint64_t workspace, uint32_t source) const {
        return at<unsigned long long>(workspace, p.offsets.fast_count) + (channel * 2 + (epoch & 1)) * p.shape.ranks + source;
    }
    // Slot number `index` of a ring of the slow hop, which belongs to a node, and of one of the fast hop, of a source or of an origin
    // and a place (L * origin + place).
    __device__ __forceinline__ uint32_t slow_slot(uint32_t of_node, uint32_t number) const {
        return (channel * p.shape.nodes + of_node) * p.shape.slots + slot_of(number, p.shape.slots);
    }
    __device__ __forceinline__ uint32_t fast_slot(uint32_t of, uint32_t number) const {
        return (channel * p.shape.ranks + of) * p.shape.slots + slot_of(number, p.shape.slots);
    }
    __device__ __forceinline__ uint64_t* masks() const {
        return at<uint64_t>(own, p.offsets.masks) + (channel * 2 + half) * p.shape.tokens_per_channel;
    }
    __device__ __forceinline__ int32_t* experts() const {
        return at<int32_t>(own, p.offsets.experts) + (channel * 2 + half) * p.shape.tokens_per_channel * p.shape.top_k;
    }
    __device__ __forceinline__ int32_t* positions(uint32_t to) const {
        return at<int32_t>(own, p.offsets.positions) + static_cast<uint64_t>(channel * p.shape.ranks + to) * p.shape.tokens_per_channel;
    }
    __device__ __forceinline__ uint32_t* list(uint32_t to_node) const {
        return at<uint32_t>(own, p.offsets.lists) + static_cast<uint64_t>(channel * p.shape.nodes + to_node) * p.shape.tokens_per_channel;
    }

    // ---- Who goes where ------------------------------------------------------------------------------------------------

    // The ranks of each token of the channel, and its experts without those that do not exist or were named before.
    __device__ __forceinline__ void find_ranks() const {
        uint64_t* const to = masks();
        for (uint32_t token = threadIdx.x; token < count; token += blockDim.x) {
            const int32_t* const given = rank.experts + static_cast<uint64_t>(first + token) * p.shape.top_k;
            int32_t* const kept = experts() + token * p.shape.top_k;
            uint64_t mask = 0;
            for (uint32_t j = 0; j < p.shape.top_k; ++j) {
                int32_t expert = given[j];
                const uint32_t owner = static_cast<uint32_t>(max(expert, 0)) >> p.shape.expert_shift;
                if (owner >= p.shape.ranks) {
                    complain(rank.status, STATUS_EXPERT, first + token);
                    expert = -1;
                }
                for (uint32_t i = 0; i < j && expert >= 0; ++i) {
                    if (given[i] == expert) {
                        complain(rank.status, STATUS_TWICE, first + token);
                        expert = -1;
                    }
                }
                kept[j] = expert;
                mask |= expert >= 0 ? 1ull << owner : 0;
            }
            to[token] = mask;
        }
    }

    // Numbers the rows for each node and each of its ranks, and tells those who will wait for them how many there are. Half 0 does it for
    // the other nodes, half 1 for its own. `node_rows` [nodes], `rank_rows` [ranks] in shared memory.
    __device__ __forceinline__ void number_rows(uint32_t* node_rows, uint32_t* rank_rows) const {
        const uint32_t per_node = p.shape.ranks_per_node;
        const uint64_t* const mask_of = masks();
        for (uint32_t job = warp; job < p.shape.nodes * (1 + per_node); job += warps) {
            const uint32_t to_node = job / (1 + per_node), which = job % (1 + per_node);
            if ((to_node == node) != (half == 1)) {
                continue;
            }
            const uint32_t to_rank = to_node * per_node + (which == 0 ? 0 : which - 1);
            // Of the whole node, or of one rank.
            const uint64_t bits = (which == 0 ? (1ull << per_node) - 1 : 1ull) << to_rank;
            uint32_t total = 0;
            for (uint32_t base = 0; base < count; base += 32) {
                const uint32_t token = base + lane;
                const bool is_token = token < count;
                const bool goes = is_token && (mask_of[token] & bits) != 0;
                const uint32_t all = __ballot_sync(ALL, goes);
                const uint32_t position = total + __popc(all & ((1u << lane) - 1));
                if (is_token) {
                    const int32_t there = goes ? static_cast<int32_t>(position) : -1;
                    if (which == 0) {
                        rank.home_positions[static_cast<uint64_t>(first + token) * p.shape.nodes + to_node] = there;
                    } else {
                        positions(to_rank)[token] = there;
                    }
                }
                if (which == 0 && goes) {
                    list(to_node)[position] = token;
                }
                total += __popc(all);
            }
            if (lane == 0) {
                const uint32_t gateway = to_node * per_node + place;
                if (to_node != node) {
                    publish(slow_count(p.workspaces[gateway], node) + which, epoch, total);
                }
                if (which == 0) {
                    node_rows[to_node] = total;
                    rank.home_counts[to_node * p.shape.channels + channel] = total;
                } else {
                    rank_rows[to_rank] = total;
                    publish(fast_count(p.workspaces[to_rank], me), epoch, total);
                }
            }
        }
    }

    // A word of the header of a token of this rank that goes to a node.
    __device__ __forceinline__ uint32_t header_word(uint32_t word, uint32_t token, uint32_t to_node) const {
        const uint32_t per_node = p.shape.ranks_per_node, top_k = p.shape.top_k;
        if (word == Header::TOKEN) {
            return first + token;
        }
        if (word < Header::POSITIONS + per_node) {
            return static_cast<uint32_t>(positions(to_node * per_node + word - Header::POSITIONS)[token]);
        }
        const uint32_t choice = word - Header::POSITIONS - per_node;
        if (choice < top_k) {
            return static_cast<uint32_t>(experts()[token * top_k + choice]);
        }
        return __float_as_uint(rank.weights[static_cast<uint64_t>(first + token) * top_k + choice - top_k]);
    }
    __device__ __forceinline__ uint32_t header_words() const {
        return Header::POSITIONS + p.shape.ranks_per_node + 2 * p.shape.top_k;
    }

    // ---- Roles ---------------------------------------------------------------------------------------------------------

    // Copies a row of payload to each of the addresses that the lanes of `to` hold. CONSTANT: nothing writes it while the kernel
    // runs. When it returns, what a lane then releases covers the row once the warp has met.
#if EP_BULK
    template <bool CONSTANT>
    __device__ __forceinline__ void copy(uint64_t address, uint32_t to, const uint8_t* from) const {
        const uint32_t pieces = (p.shape.row_bytes + PIECE - 1) / PIECE;
        const auto bytes_of = [&](uint32_t piece) { return min(PIECE, p.shape.row_bytes - piece * PIECE); };
        const auto load = [&](uint32_t piece) {
            const uint32_t stage = piece % STAGES;
            ptx::mbarrier_arrive_expect_tx(barriers + 8 * stage, bytes_of(piece));
            ptx::cp_async_bulk_load_L2_cache_hint(staging + stage * PIECE, from + piece * PIECE, bytes_of(piece), barriers + 8 * stage, policy);
        };
        if (lane == 0) {
            // Flags were acquired by generic accesses; the copies behind them are asynchronous ones.
            ptx::fence_proxy_async_global();
            load(0);
        }
        for (uint32_t piece = 0; piece < pieces; ++piece) {
            const uint32_t stage = piece % STAGES;
            if (lane == 0) {
                if (piece + 1 < pieces) {
                    // The store before has read the stage that is loaded next.
                    ptx::cp_async_bulk_wait_group_read<0>();
                    load(piece + 1);
                }
                while (!ptx::mbarrier_try_wait_parity(barriers + 8 * stage, parities >> stage & 1)) {
                }
            }
            parities ^= 1u << stage;
            for (uint32_t left = to; left != 0; left &= left - 1) {
                const uint64_t target = __shfl_sync(ALL, address, __ffs(left) - 1) + piece * PIECE;
                if (lane == 0) {
                    ptx::cp_async_bulk_store_L2_cache_hint(reinterpret_cast<void*>(target), staging + stage * PIECE, bytes_of(piece), policy);
                }
            }
            if (lane == 0) {
                ptx::cp_async_bulk_commit_group();
            }
        }
        if (lane == 0) {
            ptx::cp_async_bulk_wait_group<0>();
        }
    }
#else
    template <bool CONSTANT>
    __device__ __forceinline__ void copy(uint64_t address, uint32_t to, const uint8_t* from) const {
        constexpr uint32_t UNROLL = 4;
        for (uint32_t base = 0; base < p.shape.row_bytes; base += UNROLL * 512) {
            U32x4 x[UNROLL] = {};
#pragma unroll
            for (uint32_t u = 0; u < UNROLL; ++u) {
                const uint32_t byte = base + u * 512 + lane * 16;
                if (byte < p.shape.row_bytes) {
                    x[u] = CONSTANT ? ptx::ld_global_nc_L1_no_allocate_L2_cache_hint_v4_u32(from + byte, policy)
                                    : ptx::ld_global_L1_no_allocate_L2_cache_hint_v4_u32(from + byte, policy);
                }
            }
            for (uint32_t left = to; left != 0; left &= left - 1) {
                uint8_t* const target = reinterpret_cast<uint8_t*>(__shfl_sync(ALL, address, __ffs(left) - 1));
#pragma unroll
                for (uint32_t u = 0; u < UNROLL; ++u) {
                    const uint32_t byte = base + u * 512 + lane * 16;
                    if (byte < p.shape.row_bytes) {
                        ptx::st_global_L1_no_allocate_L2_cache_hint_v4_u32(target + byte, x[u], policy);
                    }
                }
            }
        }
    }

#endif

    // Whether a flag has a value, asked by one lane for its warp.
    __device__ __forceinline__ bool warp_sees(const uint32_t* flag, uint32_t value) const {
        const bool seen = lane != 0 || is_set(flag, value);
        const bool all = __all_sync(ALL, seen);
        __syncwarp();
        return all;
    }

    // Own token to another node's gateway.
    __device__ __forceinline__ bool send(uint32_t to_node, uint32_t row) const {
        const uint32_t slots = p.shape.slots;
        const uint32_t number = slow_sent()[to_node] + row;
        if (BUG != BUG_EARLY_REUSE &&
            !warp_sees(at<uint32_t>(own, p.offsets.slow_free) + slow_slot(to_node, number), lap_of(number, slots))) {
            return false;
        }
        const uint64_t gateway = p.workspaces[to_node * p.shape.ranks_per_node + place];
        const uint32_t token = list(to_node)[row];
        const uint32_t slot = slow_slot(node, number);
        uint8_t* const to = at<uint8_t>(gateway, p.offsets.slow_rows) + static_cast<uint64_t>(slot) * slot_bytes();
        uint32_t* const full = at<uint32_t>(gateway, p.offsets.slow_full) + slot;
        if (BUG == BUG_FLAG_FIRST && lane == 0) {
            set_full(full, next_lap_of(number, slots));
        }
        for (uint32_t word = lane; word < header_words(); word += 32) {
            reinterpret_cast<uint32_t*>(to)[word] = header_word(word, token, to_node);
        }
        copy<true>(reinterpret_cast<uint64_t>(to + p.shape.header_bytes), 1,
                   rank.rows + static_cast<uint64_t>(first + token) * p.shape.row_bytes);
        __syncwarp();
        if (BUG != BUG_FLAG_FIRST && lane == 0) {
            set_full(full, next_lap_of(number, slots));
        }
        return true;
    }

    // A row of the rank at this place in node `origin` (or of this rank) to those ranks of this node that want it.
    __device__ __forceinline__ bool forward(uint32_t origin, uint32_t row) const {
        const uint32_t slots = p.shape.slots, per_node = p.shape.ranks_per_node;
        const bool is_own = origin == node;
        const uint32_t number = is_own ? 0 : slow_taken()[origin] + row;
        const uint32_t slot = slow_slot(origin, number);
        const uint8_t* const arrived = at<uint8_t>(own, p.offsets.slow_rows) + static_cast<uint64_t>(slot) * slot_bytes();
        if (!is_own && !warp_sees(at<uint32_t>(own, p.offsets.slow_full) + slot, next_lap_of(number, slots))) {
            return false;
        }
        const uint32_t token = is_own ? list(node)[row] : 0;
        // Lane d deals with place d of the node.
        int32_t position = -1;
        if (lane < per_node) {
            position = is_own ? positions(node * per_node + lane)[token]
                              : static_cast<int32_t>(reinterpret_cast<const uint32_t*>(arrived)[Header::POSITIONS + lane]);
        }
        const bool wants = position >= 0;
        const uint32_t ring = origin * per_node + lane;
        const uint32_t there = wants ? fast_sent()[ring] + static_cast<uint32_t>(position) : 0;
        bool is_free = true;
        if (wants && BUG != BUG_EARLY_REUSE) {
            is_free = is_set(at<uint32_t>(own, p.offsets.fast_free) + fast_slot(ring, there), lap_of(there, slots));
        }
        if (!__all_sync(ALL, is_free)) {
            return false;
        }
        __syncwarp();
        const uint32_t to = __ballot_sync(ALL, wants);
        const uint32_t source = origin * per_node + place;
        const uint64_t workspace = wants ? p.workspaces[node * per_node + lane] : 0;
        const uint64_t target = workspace + p.offsets.fast_rows + static_cast<uint64_t>(fast_slot(source, there)) * slot_bytes();
        uint32_t* const full = at<uint32_t>(workspace, p.offsets.fast_full) + fast_slot(source, there);
        if (BUG == BUG_FLAG_FIRST && wants) {
            set_full(full, next_lap_of(there, slots));
        }
        for (uint32_t base = 0; base < header_words(); base += 32) {
            const uint32_t word = base + lane;
            uint32_t x = 0;
            if (word < header_words()) {
                x = is_own ? header_word(word, token, node) : reinterpret_cast<const uint32_t*>(arrived)[word];
            }
            for (uint32_t left = to; left != 0; left &= left - 1) {
                uint32_t* const header = reinterpret_cast<uint32_t*>(__shfl_sync(ALL, target, __ffs(left) - 1));
                if (word < header_words()) {
                    header[word] = x;
                }
            }
        }
        if (is_own) {
            copy<true>(target + p.shape.header_bytes, to, rank.rows + static_cast<uint64_t>(first + token) * p.shape.row_bytes);
        } else {
            copy<false>(target + p.shape.header_bytes, to, arrived + p.shape.header_bytes);
        }
        if (lane < per_node) {
            const uint64_t stream = static_cast<uint64_t>(origin * p.shape.channels + channel) * p.shape.tokens_per_channel + row;
            rank.forward_positions[stream * per_node + lane] = position;
        }
        __syncwarp();
        if (BUG != BUG_FLAG_FIRST && wants) {
            set_full(full, next_lap_of(there, slots));
        }
        if (!is_own && lane == 0) {
            set_free(at<uint32_t>(p.workspaces[source], p.offsets.slow_free) + slow_slot(node, number), next_lap_of(number, slots));
        }
        return true;
    }

    // A row of a source to its place in the output.
    __device__ __forceinline__ bool receive(uint32_t source, uint32_t row) const {
        const uint32_t slots = p.shape.slots, per_node = p.shape.ranks_per_node, top_k = p.shape.top_k;
        const uint32_t number = fast_taken()[source] + row;
        const uint32_t slot = fast_slot(source, number);
        if (!warp_sees(at<uint32_t>(own, p.offsets.fast_full) + slot, next_lap_of(number, slots))) {
            return false;
        }
        const uint8_t* const arrived = at<uint8_t>(own, p.offsets.fast_rows) + static_cast<uint64_t>(slot) * slot_bytes();
        const uint64_t to = static_cast<uint64_t>(source * p.shape.channels + channel) * p.shape.tokens_per_channel + row;
        const uint32_t* const header = reinterpret_cast<const uint32_t*>(arrived);
        if (lane < top_k) {
            const uint32_t expert = header[Header::POSITIONS + per_node + lane];
            const bool here = static_cast<int32_t>(expert) >= 0 && expert >> p.shape.expert_shift == me;
            rank.out_experts[to * top_k + lane] = here ? static_cast<int32_t>(expert & ((1u << p.shape.expert_shift) - 1)) : -1;
            const uint32_t weight = header[Header::POSITIONS + per_node + top_k + lane];
            rank.out_weights[to * top_k + lane] = here ? __uint_as_float(weight) : 0.0f;
        }
        if (lane == 0) {
            rank.out_tokens[to] = header[Header::TOKEN];
        }
        copy<false>(reinterpret_cast<uint64_t>(rank.out_rows + to * p.shape.row_bytes), 1, arrived + p.shape.header_bytes);
        __syncwarp();
        if (lane == 0) {
            const uint64_t gateway = p.workspaces[node * per_node + source % per_node];
            const uint32_t ring = source / per_node * per_node + place;
            set_free(at<uint32_t>(gateway, p.offsets.fast_free) + fast_slot(ring, number), next_lap_of(number, slots));
        }
        return true;
    }

    // ---- The two halves of a channel -----------------------------------------------------------------------------------

    // Sends to other nodes, and receives.
    __device__ __forceinline__ void send_and_receive(const uint32_t* node_rows, uint32_t* send_rows, uint32_t* receive_rows,
                                                     uint32_t* cursors) const {
        const uint32_t others = p.shape.nodes - 1, ranks = p.shape.ranks;
        for (uint32_t source = threadIdx.x; source < ranks; source += blockDim.x) {
            receive_rows[source] = wait_for_count(fast_count(own, source), epoch);
            rank.out_counts[source * p.shape.channels + channel] = receive_rows[source];
        }
        for (uint32_t i = threadIdx.x; i < others; i += blockDim.x) {
            send_rows[i] = node_rows[i < node ? i : i + 1];
        }
        __syncthreads();
        uint32_t sent = 0, received = 0;
        for (uint32_t i = 0; i < others; ++i) {
            sent += send_rows[i];
        }
        for (uint32_t i = 0; i < ranks; ++i) {
            received += receive_rows[i];
        }
        const uint32_t senders = warps_of_first(warps, sent, received);
        if (warp < senders) {
            serve(Share(warp, senders, others), send_rows, cursors,
                  [&](uint32_t i, uint32_t row) { return send(i < node ? i : i + 1, row); });
        } else if (received > 0) {
            serve(Share(warp - senders, warps - senders, ranks), receive_rows, cursors + MAX_RANKS,
                  [&](uint32_t source, uint32_t row) { return receive(source, row); });
        }
        // Nothing is where nothing came.
        for (uint32_t source = warp; source < ranks; source += warps) {
            const uint64_t base = static_cast<uint64_t>(source * p.shape.channels + channel) * p.shape.tokens_per_channel;
            for (uint32_t i = receive_rows[source] * p.shape.top_k + lane; i < p.shape.tokens_per_channel * p.shape.top_k; i += 32) {
                rank.out_experts[base * p.shape.top_k + i] = -1;
            }
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < others; i += blockDim.x) {
            slow_sent()[i < node ? i : i + 1] += send_rows[i];
        }
        for (uint32_t source = threadIdx.x; source < ranks; source += blockDim.x) {
            fast_taken()[source] += receive_rows[source];
        }
    }

    // Forwards, own rows included. `forward_rows` [nodes], `part_rows` [nodes, ranks_per_node].
    __device__ __forceinline__ void forward_all(const uint32_t* node_rows, const uint32_t* rank_rows, uint32_t* forward_rows,
                                                uint32_t* part_rows, uint32_t* cursors) const {
        const uint32_t per_node = p.shape.ranks_per_node;
        for (uint32_t i = threadIdx.x; i < p.shape.nodes * (1 + per_node); i += blockDim.x) {
            const uint32_t origin = i / (1 + per_node), which = i % (1 + per_node);
            uint32_t rows;
            if (origin == node) {
                rows = which == 0 ? node_rows[node] : rank_rows[node * per_node + which - 1];
            } else {
                rows = wait_for_count(slow_count(own, origin) + which, epoch);
            }
            (which == 0 ? forward_rows[origin] : part_rows[origin * per_node + which - 1]) = rows;
            rank.forward_counts[(origin * p.shape.channels + channel) * (1 + per_node) + which] = rows;
        }
        __syncthreads();
        serve(Share(warp, warps, p.shape.nodes), forward_rows, cursors,
              [&](uint32_t origin, uint32_t row) { return forward(origin, row); });
        __syncthreads();
        for (uint32_t origin = threadIdx.x; origin < p.shape.nodes; origin += blockDim.x) {
            if (origin != node) {
                slow_taken()[origin] += forward_rows[origin];
            }
        }
        for (uint32_t i = threadIdx.x; i < p.shape.ranks; i += blockDim.x) {
            fast_sent()[i] += part_rows[i];
        }
    }
};

__device__ __forceinline__ void dispatch(const DispatchParams& p) {
    __shared__ uint32_t node_rows[32], rank_rows[MAX_RANKS], stream_rows[2 * MAX_RANKS], cursors[2 * MAX_RANKS];
    const Dispatch d(p);
    d.find_ranks();
    __syncthreads();
    d.number_rows(node_rows, rank_rows);
    __syncthreads();
    if (d.half == 0) {
        d.send_and_receive(node_rows, stream_rows, stream_rows + MAX_RANKS, cursors);
    } else {
        d.forward_all(node_rows, rank_rows, stream_rows, stream_rows + MAX_RANKS, cursors);
    }
    if (threadIdx.x == 0) {
        d.state()[d.half] = d.epoch;
    }
}

} // namespace ep
