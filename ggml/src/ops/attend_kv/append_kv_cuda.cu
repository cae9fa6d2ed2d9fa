#include <cuda_fp16.h>

#include <cmath>

#include "attend_kv_launch.h"
#include "cuda/launch.h"
#include "cuda/ptx.cuh"

namespace zipcache::cuda {
namespace {

// Few blocks for a sequence: attend_kv begins beside them, on the SMs that they leave free.
constexpr int kHeadsOfBlock = 2, kThreads = 512;

struct Args {
    ggml_zipcache_cuda_attend_args a;
    ggml_zipcache_cuda_new_tokens tokens;
    ggml_zipcache_cuda_rope rope;  // n_dims 0: none
    float step;                    // from one frequency to the next
};

// How channels c[0] and c[1] turn.
struct Turn {
    int c[2];
    float cos, sin;
};

// Pair `i` of a head at a position; beyond n_dims / 2, channels that stay.
__device__ Turn turn_at(const Args & args, int i, int position) {
    const auto & rope = args.rope;
    const int n_pairs = rope.n_dims / 2;
    if (i >= n_pairs) {
        return {{2 * i, 2 * i + 1}, 1, 0};
    }
    float angle = float(position) * powf(args.step, float(i));
    angle = rope.frequency_scale * (rope.factors ? angle / rope.factors[i] : angle);
    Turn turn = {{rope.halves ? i : 2 * i, rope.halves ? i + n_pairs : 2 * i + 1}, 0, 0};
    sincosf(angle, &turn.sin, &turn.cos);
    turn.cos *= rope.attention_factor;
    turn.sin *= rope.attention_factor;
    return turn;
}

__device__ uint16_t half_of(float x) {
    return __half_as_ushort(__float2half_rn(x));
}

// blockIdx: [KV heads / kHeadsOfBlock, n_sequences]. Each thread takes pairs of channels: of the queries' and the keys'
// heads, if they turn; of the keys and the values.
__global__ void __launch_bounds__(kThreads) append(Args args) {
    let_the_next_launch_begin();
    const auto & a = args.a;
    const auto & t = args.tokens;
    const auto & s = a.sequences[blockIdx.y];
    const int sequence = blockIdx.y, n = *s.n_tokens, n_pairs = a.head_dim / 2, group = a.n_heads / a.n_kv_heads;
    const int position = args.rope.n_dims > 0 ? args.rope.position[sequence] : 0;
    if (n <= 0) {
        return;
    }
    const int first = int(blockIdx.x) * kHeadsOfBlock, n_kv = min(kHeadsOfBlock, a.n_kv_heads - first);
    const int n_q = args.rope.n_dims > 0 ? n_kv * group : 0;
    for (int at = threadIdx.x; at < (n_q + 2 * n_kv) * n_pairs; at += blockDim.x) {
        const int row = at / n_pairs, i = at % n_pairs;
        if (row < n_q) {
            const int64_t head = int64_t(first) * group + row;
            const float * from = t.q + sequence * t.q_stride + head * a.head_dim;
            float * to = t.turned_q + (int64_t(sequence) * a.n_heads + head) * a.head_dim;
            const Turn turn = turn_at(args, i, position);
            const float x = from[turn.c[0]], y = from[turn.c[1]];
            to[turn.c[0]] = x * turn.cos - y * turn.sin;
            to[turn.c[1]] = x * turn.sin + y * turn.cos;
            continue;
        }
        const bool key = row < n_q + n_kv;
        const int64_t head = first + (row - n_q) % n_kv;
        const float * from = (key ? t.k + sequence * t.k_stride : t.v + sequence * t.v_stride) + head * a.head_dim;
        uint16_t * to = const_cast<uint16_t *>(key ? s.k : s.v) + (head * s.capacity + n - 1) * a.head_dim;
        const Turn turn = key && args.rope.n_dims > 0 ? turn_at(args, i, position) : Turn{{2 * i, 2 * i + 1}, 1, 0};
        const float x = from[turn.c[0]], y = from[turn.c[1]];
        to[turn.c[0]] = half_of(x * turn.cos - y * turn.sin);
        to[turn.c[1]] = half_of(x * turn.sin + y * turn.cos);
    }
}

}  // namespace
}  // namespace zipcache::cuda

const char * ggml_zipcache_cuda_append_kv(const ggml_zipcache_cuda_attend_args * args,
                                          const ggml_zipcache_cuda_new_tokens * tokens, void * stream) {
    using namespace zipcache::cuda;
    if (const char * error = attend_error(*args)) {
        return error;
    }
    Args a = {*args, *tokens, {}, 1};
    if (tokens->rope) {
        a.rope = *tokens->rope;
        if (a.rope.n_dims < 2 || a.rope.n_dims > args->head_dim || a.rope.n_dims % 2 != 0) {
            return "append_kv got an odd or impossible number of channels that turn; accepted: 2, 4, ... head_dim";
        }
        a.step = std::pow(a.rope.base, -2.0f / float(a.rope.n_dims));
    }
    const dim3 grid(unsigned((args->n_kv_heads + kHeadsOfBlock - 1) / kHeadsOfBlock), args->n_sequences);
    append<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
    return launch_error();
}
