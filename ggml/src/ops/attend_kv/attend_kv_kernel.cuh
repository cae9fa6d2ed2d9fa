#pragma once
// attend_kv in one launch: a block of threads works on its part of an item, its warps take units in turn, and the first
// part's block waits for the others' sums. So all blocks of the launch have to run at a time: there is one for each SM,
// and nothing that holds an SM waits for this launch.
#include "attend_kv_merge.cuh"
#include "attend_kv_window.cuh"
#include "cuda/launch.h"

namespace zipcache::cuda {

// A query head of an item in the space of its segments; zeros where there is none.
template <int D>
__device__ __forceinline__ void load_row(const AttendParams & p, const Item & item, int row, int lane, Row<D> & x) {
#pragma unroll
    for (int i = 0; i * kLanes < D; ++i) {
        const int c = i * kLanes + lane;
        x[i] = row < item.n_rows && c < D ? p.a.q[(int64_t(item.row) + row) * D + c] : 0;
        x[i] *= item.k_home.divisor && c < D ? item.k_home.divisor[c] : 1.0f;
    }
}

// Stores it in the order of KeyQuery, its largest at kShare.
template <int D>
__device__ __forceinline__ void store_row(const Queries & queries, float * stored, int row, int lane, Row<D> & x) {
    if (queries.home.rotate) {
        warp_hadamard<D>(x, lane);
    }
    float most = 0;
#pragma unroll
    for (int i = 0; i * kLanes < D; ++i) {
        x[i] *= queries.scale;
        most = fmaxf(most, fabsf(x[i]));
    }
    most = warp_max(most);
    const float up = most > 0 ? __fdividef(kShare, most) : 0;
#pragma unroll
    for (int i = 0; i * kLanes < D; ++i) {
        const int c = i * kLanes + lane;
        if (c < D) {
            const int quad = c / 16 * kLanes + row * 4 + c % 16 / 4;
            stored[quad * 4 + c % 4] = x[i] * up;
            const uint32_t integer = __float_as_uint(fmaf(x[i], up * (kMost / kShare), kMagic));
            uint8_t * bytes = reinterpret_cast<uint8_t *>(stored) + Shape<D>::kIntegers + quad * 8 + c % 4;
            bytes[0] = uint8_t(integer >> 8);  // as pack_bytes() has them
            bytes[4] = uint8_t(integer ^ 0x80);
        }
    }
    if (lane == 0) {
        stored[Shape<D>::kUnits / 4 + row] = most / kShare;
    }
}

// Barriers besides that of __syncthreads(): all queries are stored.
constexpr int kStored = 1, kStoredByOthers = 2;

// A warp's copies of blocks in whole pieces: a barrier for each of its two slots, and the parity of what comes next.
struct Arrivals {
    uint32_t barriers;    // address in shared memory of two of 8 bytes: keys, values
    uint32_t parity = 0;  // bit 0: of keys; bit 1: of values

    __device__ __forceinline__ uint32_t barrier(bool key) const { return barriers + (key ? 0 : 8); }
    __device__ __forceinline__ void wait(bool key) {
        wait_arrival(barrier(key), key ? parity & 1 : parity >> 1);
        parity ^= key ? 1 : 2;
    }
};

// One warp's units of a share. ring: [2, kSlot], the warp's own.
template <int D, int T, bool Any>
struct Worker {
    const Item & item;
    const Turns & turns;
    const Queries & queries;
    Arrivals & arrivals;
    uint32_t ring, record;  // offsets in shared memory
    int warp, lane;
    int n_kv_heads;

    __device__ __forceinline__ uint32_t values() const { return ring + Shape<D>::kSlot; }
    __device__ __forceinline__ WarpRecord & own() const {
        return *reinterpret_cast<WarpRecord *>(shared_bytes() + record);
    }
    __device__ __forceinline__ int first() const { return own().first; }
    __device__ __forceinline__ bool is_window(int unit) const { return unit < item.window_units; }
    __device__ __forceinline__ bool is_block(int unit) const { return unit < turns.last && !is_window(unit); }

    __device__ __forceinline__ Ref ref_of(int unit) const {
        Ref ref = {};
        if (!is_window(unit)) {
            const auto * from = reinterpret_cast<const uint4 *>(item.blocks + (unit - item.window_units));
            ref.a = from[0];
            ref.b = from[1];
        }
        return ref;
    }

    __device__ __forceinline__ Ref first_ref() const { return is_block(first()) ? ref_of(first()) : Ref{}; }

    __device__ __forceinline__ int first_token(int unit) const { return item.seen.first + unit * kWindowTokens; }

    __device__ __forceinline__ void copy_window(int unit, bool key) const {
        const auto & s = *item.sequence;
        copy_rows<D>(ring + (key ? 0 : Shape<D>::kSlot), (key ? s.k : s.v) + item.head * s.capacity * D,
                     first_token(unit), item.seen.last, lane);
    }

    // A half of a block: codes and parameters; of keys, where they are new, also those of the tier's channels, of
    // values the pairs that all heads share.
    __device__ __forceinline__ void copy_block(const Ref & ref, bool key, bool new_tier) const {
        const uint32_t first = key ? 0 : ref.v_codes(), n = key ? ref.v_codes() : ref.size() - first;
        const uint32_t slot = shared_address(shared_bytes()) + ring + (key ? 0 : Shape<D>::kSlot);
        const uint32_t back = !key ? ref.v_pairs() : new_tier ? ref.k_channels() : 0;
        const uint32_t shared =
            back == 0 ? 0 : (key ? uint32_t(D) : ref.n_steps() * kStep) * uint32_t(sizeof(format::Pair));
        const uint32_t shared_slot = slot + (key ? n : ref.v_params() - first);
        const uint8_t *from = ref.data() + first, *shared_from = ref.data() - back;
        if constexpr (kBulkCopies) {
            if (lane == 0) {
                expect_bytes(arrivals.barrier(key), n + shared);
                copy_bulk_once(slot, from, n, arrivals.barrier(key));
                if (shared > 0) {
                    copy_bulk(shared_slot, shared_from, shared, arrivals.barrier(key));
                }
            }
            return;
        }
        constexpr uint32_t kPiece = 16;
        for (uint32_t i = lane * kPiece; i < n; i += kLanes * kPiece) {
            copy_async(slot + i, from + i);
        }
        for (uint32_t i = lane * kPiece; i < shared; i += kLanes * kPiece) {
            copy_async(shared_slot + i, shared_from + i);
        }
    }

    __device__ __forceinline__ void copy(int unit, const Ref & ref, bool key, bool new_tier) const {
        if (is_window(unit)) {
            copy_window(unit, key);
        } else {
            copy_block(ref, key, new_tier);
        }
    }

    // Waits for a half of the unit: all groups of copies but the newest, or what arrives in whole.
    __device__ __forceinline__ void wait_for(bool window, bool key) const {
        if (kBulkCopies && !window) {
            arrivals.wait(key);
        } else {
            wait_copies<1>();
        }
        __syncwarp();
    }

    // Starts copying the first unit's keys.
    __device__ __forceinline__ void begin(const Ref & ref) const {
        if (!is_window(first())) {
            copy_record(ref.segment());
        }
        copy(first(), ref, true, true);
        commit_copies();
        commit_copies();  // in the place of the values, which are asked for when the keys are there: all warps begin at
                          // once, and soon each has what it needs first
    }

    __device__ __forceinline__ void begin_values(bool is_first, int unit, const Ref & ref) const {
        if (is_first) {
            copy(unit, ref, false, false);
            commit_copies();
        }
    }

    __device__ __forceinline__ const HeadRecord * record_of(uint32_t segment) const {
        return item.records + int64_t(segment) * n_kv_heads;
    }

    // Looked up once: it takes a division, and registers are few.
    __device__ __forceinline__ void find_first() const {
        if (lane == 0) {
            own().first = turns.begin(warp);
        }
        __syncwarp();
    }

    // Where the next run() finds them.
    __device__ __forceinline__ void find_queries(uint32_t stored) const {
        if (lane == 0) {
            own().stored = stored;
        }
        __syncwarp();
    }

    // The record of a segment, in shared memory: it is read often, and what the cache holds goes by quickly.
    __device__ __forceinline__ void copy_record(uint32_t segment) const {
        if (lane < int(sizeof(HeadRecord) / sizeof(uint4))) {
            const auto * from = reinterpret_cast<const uint4 *>(record_of(segment));
            copy_async(shared_address(shared_bytes()) + record + lane * sizeof(uint4), from + lane);
        }
    }

    // The warp's units; the first one's keys are there or on their way. Where it does not count, the first one alone,
    // with anything for its values. ref: the first one's.
    __device__ __forceinline__ void run(bool counts, Ref ref, Sums<D, T> & sums) const {
        const int first = this->first(), begins = counts ? first : -1, last = counts ? turns.last : first + 1;
        arrivals.parity ^= counts ? 0 : 2;  // a wait for values that are not asked for is over before it begins
        KeyQuery<D, T> query;
        const uint32_t keys = ring, values = this->values();
        const auto & r = in_shared<HeadRecord>(record);
        uint32_t segment = is_window(first) ? ~0u : ref.segment();  // whose record is there, or on its way
        Ref next = {};
        for (int unit = first, after; unit < last; unit = after) {
            after = turns.after(unit, warp);
            if (after < last) {
                next = ref_of(after);
            }
            if (is_window(unit)) {
                float s[T][4];
                wait_for(true, true);
                begin_values(unit == begins, unit, ref);
                window_logits<D>(queries, keys, item.seen.last - first_token(unit), lane, s);
                before_bulk_copies();
                advance(after < last, after, next, true, true);
                wait_for(true, false);
                add_window(values, s, lane, sums);
                before_bulk_copies();
            } else {
                if (ref.segment() != segment) {
                    segment = ref.segment();
                    copy_record(segment);
                    commit_copies();
                    wait_copies<0>();
                } else if (kBulkCopies) {
                    wait_copies<0>();  // the first one's record
                }
                wait_for(false, true);
                begin_values(unit == begins, unit, ref);
                float s[T][8];
                prepare_query<D, T, Any>({queries, own().stored}, r, ref, keys, lane, query);
                key_logits<D, T, Any>(query, r, ref, keys, lane, s);
                if (after < last && next.segment() != ref.segment() && lane < 2) {
                    fetch_line(reinterpret_cast<const uint8_t *>(record_of(next.segment())) + lane * 128);
                }
                advance(after < last, after, next, true, !next.same_tier(ref));
                hide(r, ref, lane, s);
                wait_for(false, false);
                add_values<D, T, Any>({r, ref, values, ref.n_steps()}, s, lane, sums);
            }
            advance(after < last, after, next, false, false);
            ref = next;
        }
        wait_copies<0>();
        arrivals.parity ^= counts ? 0 : 1;  // the keys are still to be waited for
    }

    // A slot that was read takes the same half of the next unit, if there is any. Windows count groups of copies, so
    // that every half is one.
    __device__ __forceinline__ void advance(bool any, int unit, const Ref & next, bool key, bool new_tier) const {
        __syncwarp();
        if (any) {
            copy(unit, next, key, new_tier);
        }
        commit_copies();
    }
};

// An item as all warps of a block see it; in shared memory, to leave the registers to the sums.
struct Shared {
    Run run;
    Item item;
    Share share;
    Queries queries;
    Merged merged;
};

// The references to the blocks of a share on their way to the L2 cache: each is read but once, most units late.
__device__ __forceinline__ void fetch_references(const Item & item, const Turns & turns) {
    constexpr int kLine = 128 / int(sizeof(BlockRef));
    for (int i = turns.windows + int(threadIdx.x) * kLine; i < turns.last; i += int(blockDim.x) * kLine) {
        fetch_line(item.blocks + (i - item.window_units));
    }
}

// All units of a share.
template <int D, int T, bool Any>
__device__ __forceinline__ void work_on(const AttendParams & p, Shared & shared, Arrivals & arrivals, bool cold,
                                        float * red, float * acc) {
    using S = Shape<D>;
    const Item & item = shared.item;
    const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes, n_warps = blockDim.x / kLanes;
    const uint32_t stored = S::ring_bytes(n_warps);
    const Turns & turns = shared.share.turns;
    const Worker<D, T, Any> worker = {item,
                                      turns,
                                      shared.queries,
                                      arrivals,
                                      uint32_t(warp * 2 * S::kSlot),
                                      uint32_t(stored + S::kQueries + warp * sizeof(WarpRecord)),
                                      warp,
                                      lane,
                                      p.a.n_kv_heads};
    const auto & sequence = *item.sequence;
    if (item.v_home.divisor && lane * 32 < D) {  // read at the end, as the next is
        fetch_line(item.v_home.divisor + lane * 32);
    }
    if (sequence.probe_slot && lane == 0) {
        fetch_line(sequence.probe_slot + item.seen.last - 1);
    }
    worker.find_first();
    Ref ref = worker.first_ref();
    fetch_references(item, turns);
    if (worker.is_block(worker.first())) {
        worker.begin(ref);
    }
    // A launch begins without instructions at hand, and they come from as far as the keys do. So the last warp, which
    // has the fewest units and no query to store, goes through its first one before the queries are there, with
    // whatever lies where they and the values will be; nobody waits for it. Of two tiles the loop has no register to
    // spare.
    const int last_warp = n_warps - 1;
    const bool rehearsal =
        T == 1 && cold && kBulkCopies && last_warp >= kTile && worker.is_block(turns.begin(last_warp));
    Sums<D, T> sums;
#pragma unroll 1
    for (bool done = false, counts = !rehearsal || warp < last_warp; !done; counts = true) {
        if (counts) {
            wait_for_the_launch_before();  // it turns the queries and stores the newest token, in the window
            if (worker.is_window(worker.first()) && worker.first() < turns.last) {
                worker.begin(ref);
            }
            for (int r = warp; r < kTile * T; r += n_warps) {
                Row<D> row;
                load_row<D>(p, item, r, lane, row);
                store_row<D>(shared.queries, acc, r, lane, row);
            }
            if (!rehearsal) {
                __syncthreads();
            } else if (warp == last_warp) {
                wait_at(kStored, blockDim.x);
            } else {
                pass_by(kStored, blockDim.x);
                wait_at(kStoredByOthers, blockDim.x - kLanes);
            }
        }
        worker.find_queries(counts ? stored : worker.values());
        sums.clear(worker.is_window(worker.first()) ? Space{} : item.v_home);
        worker.run(counts, ref, sums);
        done = counts;
        if (!counts) {
            ref = worker.first_ref();  // again: it has no registers of its own in between
        }
    }
    sums.move_to(item.v_home, lane);
    merge_warps(sums, item.n_rows, red, acc, shared.merged,
                shared.share.is_first() ? nullptr : part_at<D>(p, item, blockIdx.x));
}

template <int D, int T, bool Any>
__global__ void __launch_bounds__(Shape<D>::kWarps * kLanes, 1) attend(AttendParams p) {
    __shared__ Shared shared;
    float * red = reinterpret_cast<float *>(shared_bytes());
    const uint32_t stored = Shape<D>::ring_bytes(blockDim.x / kLanes);
    float * acc = reinterpret_cast<float *>(shared_bytes() + stored);  // where the stored queries were
    __shared__ uint64_t barriers[Shape<D>::kWarps][2];
    Arrivals arrivals = {shared_address(barriers[threadIdx.x / kLanes])};
    if (threadIdx.x % kLanes == 0) {
        make_arrival(arrivals.barrier(true));
        make_arrival(arrivals.barrier(false));
    }
    let_the_next_launch_begin();  // it writes nothing before this one has ended
    const bool few = few_items(p);
    if (few && is_planned(p)) {
        if (threadIdx.x == 0) {
            planned_share<D>(p, shared.item, shared.share);
        }
    } else if (few) {
        find_share<D>(p, reinterpret_cast<uint32_t *>(shared_bytes()), shared.item, shared.share);
    } else {
        find_run<D>(p, reinterpret_cast<uint32_t *>(shared_bytes()), shared.run);
    }
    for (bool first = true; first || !few; first = false) {
        if (threadIdx.x == 0) {
            if (!few) {
                next_share<D>(p, shared.run, shared.item, shared.share);
            }
            const Item & item = shared.item;
            // the fast kernel has but one space of queries: what it cannot compute must not look like a result
            const float scale = Any || item.one_space ? p.a.scale * kLog2e : NAN;
            shared.queries = {p.a.q + int64_t(item.row) * D, item.n_rows, scale, item.k_home};
        }
        before_bulk_copies();
        __syncthreads();
        if (shared.share.item >= p.n_items) {
            break;
        }
        work_on<D, T, Any>(p, shared, arrivals, first, red, acc);
        if (shared.share.is_first()) {
            const Ending<D> ending(shared.item);
            finish<D>(p, shared.item, shared.share, ending, acc, shared.merged);
        }
        __syncthreads();
    }
    wait_for_the_launch_before();
}

template <int D, int T, bool Any>
const char * launch_tiles(const AttendParams & p, cudaStream_t stream) {
    const Device device;
    cudaFuncAttributes attributes;
    cudaError_t error = cudaFuncGetAttributes(&attributes, attend<D, T, Any>);
    if (error != cudaSuccess) {
        return cudaGetErrorString(error);
    }
    int n_warps = Shape<D>::kWarps;
    while (n_warps > 1 && Shape<D>::shared_bytes(n_warps) + int(attributes.sharedSizeBytes) > device.shared_bytes) {
        --n_warps;
    }
    const int shared = Shape<D>::shared_bytes(n_warps);
    error = cudaFuncSetAttribute(attend<D, T, Any>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) {
        return cudaGetErrorString(error);
    }
    // what does not need the new token begins while append_kv turns and stores it
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(device.multiprocessors);
    config.blockDim = dim3(n_warps * kLanes);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = device.starts_early ? 1 : 0;
    error = cudaLaunchKernelEx(&config, attend<D, T, Any>, p);
    return error == cudaSuccess ? launch_error() : cudaGetErrorString(error);
}

template <int D, bool Any>
const char * launch(const AttendParams & p, cudaStream_t stream) {
    return p.group > kTile ? launch_tiles<D, 2, Any>(p, stream) : launch_tiles<D, 1, Any>(p, stream);
}

}  // namespace zipcache::cuda
