#pragma once
// What all parts of the attend_kv kernel share. One warp works on one unit at a time: a block of a segment, or 32
// tokens of the window. It multiplies by mma.m16n8k32: the codes of 16 tokens, or of 16 channels of values, are the
// rows of A; a query head has two columns of B and of C, for the high and the low bytes of what meets the codes as
// 16-bit integers. So four heads make a tile, and a pass has one of them or two.
//
// Lane l has rows l / 4 and l / 4 + 8 of C and head l % 4 of each tile. For B it feeds the column l / 4: head l / 8,
// high bytes or, where l / 4 is odd, low ones.
#include "attend_kv_launch.h"
#include "attend_kv_shares.cuh"
#include "cuda/ptx.cuh"
#include "cuda/row.cuh"
#include "cuda_index.h"
#include "ggml-zipcache-cuda.h"

namespace zipcache::cuda {

constexpr float kMost = 32000;  // of a query or a probability as an integer of 16 bits
// 1.5 * 2^23: a float's low bits are then an integer; 128 rounds its high byte
constexpr float kMagic = 12582912 + 128;
constexpr float kTop = format::kTopRange;
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kShare = kMost / kTop;      // the largest factor of an 8-bit range: their product is an integer
constexpr float kLog2Share = -0.98838930f;  // its logarithm

// What a warp keeps in shared memory, to leave the registers to its sums.
struct WarpRecord {
    HeadRecord record;  // of the segment that it is in
    uint32_t stored;    // offset of the queries
    int first;          // its first unit
};

template <int D>
struct Shape {
    static constexpr int kRegs = D / 8;     // of 16 places; also the channels of a lane of C
    static constexpr int kSteps = D / 16;   // of 16 channels
    static constexpr int kQuarter = D / 4;  // channels of a lane of B
    static constexpr int kSlot = 72 * D;    // bytes of half a unit: 8-bit codes, parameters by 32 channels
    static constexpr int kWarps = attend_warps(D);
    static constexpr int kRedStride = D + 8;                          // floats; spreads the rows over the banks
    static constexpr int kIntegers = kRows * D * int(sizeof(float));  // offset of the queries as integers
    static constexpr int kUnits = kIntegers + kRows * D * int(sizeof(int16_t));
    static constexpr int kQueries = kUnits + kRows * int(sizeof(float));

    // Shared memory of a block of so many warps: two slots each; the queries, later their sums; a record for each.
    static constexpr int ring_bytes(int n_warps) { return n_warps * 2 * kSlot; }
    static constexpr int shared_bytes(int n_warps) {
        return ring_bytes(n_warps) + kQueries + n_warps * int(sizeof(WarpRecord));
    }
};

constexpr int kTile = 4;  // heads

// What is loaded for the next tile waits for this one, or it would take registers that there are not.
__device__ __forceinline__ void end_of_tile() {
    asm volatile("" ::: "memory");
}

// What a lane puts into its column of B.
struct Feed {
    bool low;       // bytes
    uint32_t flip;  // makes them signed

    __device__ __forceinline__ explicit Feed(int lane) : low(lane & 4), flip(low ? 0x80808080u : 0) {}

    // Of four integers, as kMagic puts them in the low bits of floats.
    __device__ __forceinline__ uint32_t bytes(const float (&x)[4]) const { return picked(x, low ? 0x40 : 0x51) ^ flip; }
    // What the lane that feeds the head's other column puts there.
    __device__ __forceinline__ uint32_t others_bytes(const float (&x)[4]) const {
        return picked(x, low ? 0x51 : 0x40) ^ (flip ^ 0x80808080u);
    }

  private:
    __device__ __forceinline__ static uint32_t picked(const float (&x)[4], uint32_t bytes) {
        const uint32_t ab = __byte_perm(__float_as_uint(x[0]), __float_as_uint(x[1]), bytes);
        const uint32_t cd = __byte_perm(__float_as_uint(x[2]), __float_as_uint(x[3]), bytes);
        return __byte_perm(ab, cd, 0x5410);
    }
};

// The head whose column a lane feeds, in tile `tile`; and what such a lane has of a head, where the lanes of C want it.
__device__ __forceinline__ int fed_head(int tile, int lane) {
    return kTile * tile + lane / 8;
}

__device__ __forceinline__ float from_feeder(float x, int lane) {
    return __shfl_sync(~0u, x, lane % 4 * 8);
}

// Over the rows of C: the lanes that have the same head.
__device__ __forceinline__ float rows_max(float x) {
    return warp_max<4>(x);
}

__device__ __forceinline__ float rows_sum(float x) {
    return warp_sum<4>(x);
}

// 1 + range_of() of byte `i` of a word.
__device__ __forceinline__ float above_range(uint32_t word, int i) {
    return __uint_as_float(__byte_perm(word, 0, 0x4440 + i) * (1u << 19) + (127u << 23));
}

__device__ __forceinline__ float range_at(uint32_t word, int i) {
    return above_range(word, i) - 1.0f;
}

// A BlockRef in registers.
struct Ref {
    uint4 a, b;

    __device__ __forceinline__ const uint8_t * data() const {
        return reinterpret_cast<const uint8_t *>(uint64_t(a.y) << 32 | a.x);
    }
    __device__ __forceinline__ uint32_t place() const { return a.z; }
    __device__ __forceinline__ uint32_t segment() const { return a.w & 0xFFFF; }
    __device__ __forceinline__ int tier() const { return int(a.w >> 16 & 0xFF); }
    __device__ __forceinline__ int n() const { return int(a.w >> 24); }
    __device__ __forceinline__ int n_steps() const { return (n() + kStep - 1) / kStep; }
    __device__ __forceinline__ bool same_tier(const Ref & other) const {
        return ((a.w ^ other.a.w) & 0xFFFFFF) == 0;  // and segment
    }
    __device__ __forceinline__ uint32_t k_channels() const { return b.x; }
    __device__ __forceinline__ uint32_t v_pairs() const { return b.y; }
    __device__ __forceinline__ uint32_t v_codes() const { return (b.z & 0xFFFF) * kAlign; }
    __device__ __forceinline__ uint32_t v_params() const { return (b.z >> 16) * kAlign; }
    __device__ __forceinline__ uint32_t size() const { return (b.w & 0xFFFF) * kAlign; }
    __device__ __forceinline__ int k_bits() const { return int(b.w >> 16 & 0xFF); }
    __device__ __forceinline__ int v_bits() const { return int(b.w >> 24); }
    // behind the keys' codes: their parameters, the block's own or its tier's
    template <int D>
    __device__ __forceinline__ uint32_t k_params() const {
        int words = 0;  // of a lane for a step
#pragma unroll
        for (int width = 1; width <= 8; width *= 2) {
            words += k_bits() & width ? lane_words(D, width) : 0;
        }
        return uint32_t(n_steps() * words) * (kLanes * 4);
    }
};
static_assert(sizeof(Ref) == sizeof(BlockRef));

// Halves of a 16-bit integer meet the codes in columns of their own.
__device__ __forceinline__ int whole_int(int high, int low) {
    return high * 256 + low;
}

__device__ __forceinline__ float whole(int high, int low) {
    return static_cast<float>(whole_int(high, low));
}

// The dynamic shared memory by byte offsets: a pointer that went through a struct is no longer known to be shared.
__device__ __forceinline__ uint8_t * shared_bytes() {
    extern __shared__ __align__(128) uint8_t shared_memory[];
    return shared_memory;
}

template <class T>
__device__ __forceinline__ const T & in_shared(uint32_t offset) {
    return *reinterpret_cast<const T *>(shared_bytes() + offset);
}

// A lane's words of 16 places of a plane.
template <int W, int D>
__device__ __forceinline__ void load_words(uint32_t plane, int step, int lane, uint32_t (&words)[lane_words(D, W)]) {
    constexpr int kN = lane_words(D, W), kV = vector_words(kN);
    const uint32_t at = plane + (step * kN * kLanes + lane * kV) * 4;
#pragma unroll
    for (int i = 0; i < kN; i += kV) {
        if constexpr (kV == 4) {
            const uint4 v = in_shared<uint4>(at + i * kLanes * 4);
            words[i] = v.x;
            words[i + 1] = v.y;
            words[i + 2] = v.z;
            words[i + 3] = v.w;
        } else if constexpr (kV == 2) {
            const uint2 v = in_shared<uint2>(at + i * kLanes * 4);
            words[i] = v.x;
            words[i + 1] = v.y;
        } else {
            words[i] = in_shared<uint32_t>(at + i * kLanes * 4);
        }
    }
}

// Adds the codes of a plane to registers [first, first + N), its bits from `low` on; the first plane begins them.
template <int W, int D, int N>
__device__ __forceinline__ void add_plane(const uint32_t (&words)[lane_words(D, W)], int first, int low,
                                          uint32_t (&regs)[N]) {
    constexpr uint32_t kMask = 0x01010101u * ((1u << W) - 1);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const int shift = (first + i) % (8 / W) * W - low;
        const uint32_t word = words[(first + i) / (8 / W)];
        const uint32_t own = (shift >= 0 ? word >> shift : word << -shift) & (kMask << low);
        regs[i] = low == 0 ? own : regs[i] | own;
    }
}

// Registers [first, first + N) of places [16 step, 16 step + 16) of a block of n_steps times 16. What is loaded and not
// used falls away when it is compiled.
template <int Bits, int D, int N>
__device__ __forceinline__ void unpack(uint32_t codes, int n_steps, int step, int lane, int first,
                                       uint32_t (&regs)[N]) {
    if constexpr (Bits == 8) {
        uint32_t words[lane_words(D, 8)];
        load_words<8, D>(codes, step, lane, words);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            regs[i] = words[first + i];
        }
    } else {
        constexpr bool k4 = Bits & 4, k2 = Bits & 2, k1 = Bits & 1;
        if constexpr (k4) {
            uint32_t words[lane_words(D, 4)];
            load_words<4, D>(codes, step, lane, words);
            add_plane<4, D>(words, first, 0, regs);
            codes += n_steps * lane_words(D, 4) * kLanes * 4;
        }
        if constexpr (k2) {
            uint32_t words[lane_words(D, 2)];
            load_words<2, D>(codes, step, lane, words);
            add_plane<2, D>(words, first, k4 ? 4 : 0, regs);
            codes += n_steps * lane_words(D, 2) * kLanes * 4;
        }
        if constexpr (k1) {
            uint32_t words[lane_words(D, 1)];
            load_words<1, D>(codes, step, lane, words);
            add_plane<1, D>(words, first, (k4 ? 4 : 0) + (k2 ? 2 : 0), regs);
        }
    }
}

template <int N>
struct Int {
    static constexpr int value = N;
};

// Calls body(Int<bits>), one of Bits: the code's length as a constant. They are tried in their order: a switch becomes
// a tree whose every branch jumps further than instructions are fetched ahead.
template <int Bits, int... Others, class Body>
__device__ __forceinline__ void with_bits_of(int bits, Body && body) {
    if constexpr (sizeof...(Others) == 0) {
        body(Int<Bits>());
    } else if (bits == Bits) {
        body(Int<Bits>());
    } else {
        asm volatile("" : "+r"(bits));  // or the compiler makes a switch of it
        with_bits_of<Others...>(bits, body);
    }
}

template <class Body>
__device__ __forceinline__ void with_bits(int bits, Body && body) {
    with_bits_of<4, 2, 3, 1, 5, 6, 7, 8>(bits, body);
}

struct Param {
    float scale, min;
};

// As format::Params::at, of parameters of tokens. kind is uniform over the warp.
struct TokenParams {
    const uint8_t * data;
    int kind, n;                  // entries
    float unit, step, low, bias;  // of the range; shrink / (2^b - 1); shrink / 2; 2^(b - 1)

    // A call, not inlined: formats that need it many times are rare, and code that is not run has its cost.
    __device__ __noinline__ Param at(int i) const {
        if (kind == GGML_ZIPCACHE_PARAMS_F16_PAIR) {
            const float2 p = __half22float2(reinterpret_cast<const __half2 *>(data)[i]);
            return {p.x, p.y};
        }
        if (kind == GGML_ZIPCACHE_PARAMS_F16_SCALE) {
            const float scale = __half2float(reinterpret_cast<const __half *>(data)[i]);
            return {scale, -bias * scale};
        }
        const float range = range_at(data[i], 0) * unit;
        const float middle =
            kind == GGML_ZIPCACHE_PARAMS_F8_PAIR ? float(static_cast<int8_t>(data[n + i])) * (1.0f / 256) : 0.0f;
        return {range * step, range * (middle - low)};
    }
};

__device__ __forceinline__ TokenParams token_params(const uint8_t * data, int kind, int n, float unit, float shrink,
                                                    int bits) {
    return {data, kind, n, unit, shrink / float((1 << bits) - 1), shrink / 2, float(1 << bits) / 2};
}

// Walsh-Hadamard over channels: register i of a lane of B has channel 16 (i / 4) + 4 (lane % 4) + i % 4, one of C
// channel 8 i + lane / 4. Steps over registers, of which kWithin have neighbouring channels, then over lanes, whose
// bits kFirst to kLast are channels'.
template <int kWithin, int kFirst, int kLast, int N>
__device__ __forceinline__ void lanes_hadamard(float (&x)[N], int size) {
    constexpr int kOver = 2 * kLast / kFirst;  // lanes that share a row
#pragma unroll
    for (int half = 1; half < N; half *= 2) {
        const int span = half < kWithin ? half : half * kOver;  // of channels
        if (span < size) {
#pragma unroll
            for (int i = 0; i < N; ++i) {
                if (!(i & half) && (i | half) < N) {
                    const float a = x[i], b = x[i | half];
                    x[i] = a + b;
                    x[i | half] = a - b;
                }
            }
        }
    }
#pragma unroll
    for (int bit = kFirst; bit <= kLast; bit *= 2) {
        const bool upper = threadIdx.x & bit;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float other = __shfl_xor_sync(~0u, x[i], bit);
            x[i] = upper ? other - x[i] : x[i] + other;
        }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        x[i] *= rsqrtf(float(size));
    }
}

template <int N>
__device__ __forceinline__ void query_hadamard(float (&x)[N], int size) {
    lanes_hadamard<4, 1, 2>(x, size);
}

template <int N>
__device__ __forceinline__ void sums_hadamard(float (&x)[N], int size) {
    lanes_hadamard<1, 4, 16>(x, size);
}

}  // namespace zipcache::cuda
