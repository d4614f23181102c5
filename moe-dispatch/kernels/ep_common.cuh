// What dispatch and combine between devices share: shapes, rings, flags, who does what.
//
// Ranks are numbered node by node: rank r is at place r % ranks_per_node of node r / ranks_per_node, and holds the aligned block of
// experts r << expert_shift .. (r + 1) << expert_shift. The *gateway* of source s on a node is the rank at the place of s there; on its
// own node that is s itself. Every rank has a workspace that all others reach (peer-mapped, or on the same device).
//
// A channel is two blocks of each rank, half 0 and half 1, and has its own share of the tokens, rings and flags: channels know
// nothing of each other, and a launch may have some of them only, the same on all ranks. All blocks of all ranks must be resident together.
//
// A ring has `slots` slots of one row each. Rows of a stream are numbered on, launch after launch: row number q (a u32 that may wrap) goes to
// slot q % slots on lap q / slots. Two flags a slot, both 0 at first: `full`, in the workspace of the reader, becomes the first number of
// the next lap when the row is there; `free`, in the workspace of the writer, likewise when it has been read. Before it writes,
// the writer waits for `free` to be the first number of its own lap. Each warp that moves rows deals with whole rows, so that any number of warps
// can work on a stream.
//
// Flags are released and acquired at system scope: the other side is another device.
#pragma once

#include "ep_roles.cuh"
#include "ptx.cuh"

namespace ep {

using ptx::U32x4;

constexpr uint32_t MAX_RANKS = 64;  // of the group
constexpr uint32_t MAX_HERE = 8;    // of one launch
constexpr uint32_t MAX_TOP_K = 16;
constexpr uint32_t MAX_THREADS = 512;         // of a block of dispatch
constexpr uint32_t MAX_COMBINE_THREADS = 256; // of a block of combine: its sums want registers
constexpr uint32_t ALL = 0xffffffffu;

// One of the mistakes that tests/kernels makes on purpose; 0 in what ships.
#ifndef EP_BUG
#define EP_BUG 0
#endif
constexpr int BUG = EP_BUG;
constexpr int BUG_GPU_SCOPE = 1;      // the flag of a row is released at gpu scope
constexpr int BUG_FLAG_FIRST = 2;     // the flag of a row is set before its payload is stored
constexpr int BUG_EARLY_REUSE = 3;    // a slot is written before it has been read
constexpr int BUG_CTA_SCOPE = 4;      // the flag of a row is released at block scope

// Whether rows are copied by bulk copies (sm_90) through shared memory, instead of by loads and stores.
#ifndef EP_BULK
#define EP_BULK 0
#endif

// Shared with the host: repr(C), 64 bytes.
struct Shape {
    uint32_t ranks;              //  0: of the group, at most MAX_RANKS: nodes * ranks_per_node
    uint32_t ranks_per_node;     //  4: at most 32
    uint32_t nodes;              //  8: at most 32
    uint32_t ranks_here;         // 12: of this launch, at most MAX_HERE
    uint32_t channels;           // 16
    uint32_t tokens_per_channel; // 20: ceil(max_tokens / channels)
    uint32_t max_tokens;         // 24
    uint32_t slots;              // 28: of a ring, a power of two
    uint32_t top_k;              // 32: at most MAX_TOP_K
    uint32_t expert_shift;       // 36: log2 of the experts of a rank
    uint32_t row_bytes;          // 40: of a row of payload, a multiple of 16
    uint32_t header_bytes;       // 44: of what goes before it in dispatch (Header)
    uint32_t reserved[4];        // 48: zero
};
static_assert(sizeof(Shape) == 64, "the layout that the host writes");

// ---- What a caller got wrong -------------------------------------------------------------------------------------------

// Words of a rank's `status`, zero at first: 1 + the number of a token (or of a place) where it happened. The exchange goes on without
// what is wrong: a rank that stopped would leave the others waiting.
enum Status : uint32_t {
    STATUS_EXPERT = 0, // a token names an expert that does not exist
    STATUS_TWICE = 1,  // a token names an expert twice
    STATUS_TOKENS = 2, // there are more tokens than max_tokens
    STATUS_ROW = 3,    // a choice has no expert row
};

__device__ __forceinline__ void complain(uint32_t* status, Status what, uint32_t where) {
    ptx::st_relaxed_gpu_global(status + what, where + 1);
}

// The number of tokens, as far as there is room.
__device__ __forceinline__ uint32_t tokens_of(const uint32_t* tokens, uint32_t max_tokens, uint32_t* status) {
    const uint32_t count = *tokens;
    if (count > max_tokens) {
        complain(status, STATUS_TOKENS, max_tokens);
    }
    return min(count, max_tokens);
}

// ---- Flags -------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t slot_of(uint32_t number, uint32_t slots) { return number & (slots - 1); }
__device__ __forceinline__ uint32_t lap_of(uint32_t number, uint32_t slots) { return number & ~(slots - 1); }
__device__ __forceinline__ uint32_t next_lap_of(uint32_t number, uint32_t slots) { return lap_of(number, slots) + slots; }

// Waits a little longer each time.
struct Backoff {
    uint32_t nanoseconds = 16;
    __device__ __forceinline__ void pause() {
        ptx::nanosleep(nanoseconds);
        nanoseconds = min(nanoseconds * 2, 256u);
    }
};

__device__ __forceinline__ bool is_set(const uint32_t* flag, uint32_t value) { return ptx::ld_acquire_sys_global(flag) == value; }

// That a row is there. What other lanes of the warp stored comes before it: __syncwarp first.
__device__ __forceinline__ void set_full(uint32_t* flag, uint32_t value) {
    if (BUG == BUG_GPU_SCOPE) {
        ptx::st_release_gpu_global(flag, value);
    } else if (BUG == BUG_CTA_SCOPE) {
        ptx::st_release_cta_global(flag, value);
    } else {
        ptx::st_release_sys_global(flag, value);
    }
}

// That a row has been read, likewise.
__device__ __forceinline__ void set_free(uint32_t* flag, uint32_t value) { ptx::st_release_sys_global(flag, value); }

// Counts travel with the epoch that they are of, in one word.
__device__ __forceinline__ void publish(unsigned long long* word, uint32_t epoch, uint32_t count) {
    ptx::st_release_sys_global(word, static_cast<unsigned long long>(epoch) << 32 | count);
}

__device__ __forceinline__ uint32_t wait_for_count(const unsigned long long* word, uint32_t epoch) {
    Backoff backoff;
    unsigned long long seen = ptx::ld_acquire_sys_global(word);
    while (static_cast<uint32_t>(seen >> 32) != epoch) {
        backoff.pause();
        seen = ptx::ld_acquire_sys_global(word);
    }
    return static_cast<uint32_t>(seen);
}

// ---- Work of a role ----------------------------------------------------------------------------------------------------

// Which streams, and which of their rows, a warp has: of `warps` warps of a role with `streams` streams. With fewer warps than streams
// each has every warps-th stream whole; otherwise each has one stream, and shares its rows with the others on it.
struct Share {
    uint32_t stream; // the first
    uint32_t step;   // from one of its streams to the next
    uint32_t end;    // of the streams
    uint32_t row;    // the first of a stream
    uint32_t stride; // from one of its rows to the next
    uint32_t cursor; // where its cursors begin: that of stream s at cursor + s

    __device__ __forceinline__ Share(uint32_t warp, uint32_t warps, uint32_t streams)
        : stream(warp), step(warps), end(streams), row(0), stride(1), cursor(0) {
        if (warps > streams && streams > 0) {
            stream = warp % streams;
            step = streams;
            row = warp / streams;
            stride = (warps - 1 - stream) / streams + 1;
            cursor = warp - stream;
        }
    }
};

// Moves all rows of a warp's share: `attempt(stream, row)` moves one and says so, or says that it cannot yet; then another stream is
// tried. A stream's rows go in order. No warp waits for one stream while it could serve another: that is why rings cannot lock each
// other. `rows` are the streams' rows; `cursors` as many words of shared memory as the role has warps or streams. All lanes are here.
template <class Attempt>
__device__ __forceinline__ void serve(const Share& share, const uint32_t* rows, uint32_t* cursors, const Attempt& attempt) {
    const uint32_t lane = threadIdx.x % 32;
    cursors += share.cursor;
    for (uint32_t stream = share.stream + lane * share.step; stream < share.end; stream += 32 * share.step) {
        cursors[stream] = share.row;
    }
    __syncwarp();
    Backoff backoff;
    for (bool left = true; left;) {
        left = false;
        bool moved = false;
        for (uint32_t stream = share.stream; stream < share.end; stream += share.step) {
            const uint32_t row = cursors[stream];
            if (row >= rows[stream]) {
                continue;
            }
            left = true;
            if (attempt(stream, row)) {
                moved = true;
                __syncwarp();
                if (lane == 0) {
                    cursors[stream] = row + share.stride;
                }
                __syncwarp();
            }
        }
        if (moved) {
            backoff = Backoff{};
        } else if (left) {
            backoff.pause();
        }
    }
}

// The workspace of a rank, as an address.
template <class T>
__device__ __forceinline__ T* at(uint64_t base, uint64_t bytes) {
    return reinterpret_cast<T*>(base + bytes);
}

} // namespace ep
