#include <cstring>

#include "arena.h"
#include "check.h"
#include "ggml-zipcache-cuda.h"
#include "segment_sample.h"

namespace {

struct Shape {
    int head_dim, n_kv_heads, group, sliding_window;
};

// A sequence: segments, some tokens of some of them hidden, and a window.
struct Sequence {
    std::vector<Sample> samples;
    std::vector<std::vector<uint16_t>> position;  // of each segment, in the CPU's order
    std::vector<ggml_zipcache_segment> segments;
    std::vector<ggml_fp16_t> k, v;  // the window
    int32_t n_tokens = 0;
    int64_t capacity = 0;
};

struct Case {
    Shape shape;
    float scale;
    std::vector<Sequence> sequences;
    std::vector<float> q;  // [n_sequences, n_heads, head_dim]

    int n_heads() const { return shape.n_kv_heads * shape.group; }
};

// A sample's format as the policies auto and zipcache have theirs.
void make_common(Sample & s, std::mt19937 & random) {
    auto & f = s.format;
    f.k.scope = random() % 2 ? GGML_ZIPCACHE_SCOPE_SEGMENT : GGML_ZIPCACHE_SCOPE_GROUP;
    f.k.params = random() % 2 ? GGML_ZIPCACHE_PARAMS_F16_PAIR : GGML_ZIPCACHE_PARAMS_F8_PAIR;
    const ggml_zipcache_params params[] = {GGML_ZIPCACHE_PARAMS_F16_PAIR, GGML_ZIPCACHE_PARAMS_F8_PAIR,
                                           GGML_ZIPCACHE_PARAMS_F8_SCALE};
    f.v.scope = GGML_ZIPCACHE_SCOPE_TOKEN;
    f.v.params = params[random() % 3];
    const bool spans = f.same_order && f.v.params == GGML_ZIPCACHE_PARAMS_F16_PAIR && random() % 2;
    f.v.block = spans ? f.n_kv_heads * f.head_dim : f.head_dim;
    s.quantize();
}

Sequence random_sequence(std::mt19937 & random, const Shape & shape, bool common) {
    Sequence s;
    std::normal_distribution<float> normal;
    s.n_tokens = random() % 16 ? 1 + int32_t(random() % 150) : 0;
    s.capacity = std::max(1, s.n_tokens) + int64_t(random() % 5);
    for (int64_t i = 0; i < shape.n_kv_heads * s.capacity * shape.head_dim; ++i) {
        s.k.push_back(ggml_fp32_to_fp16(normal(random)));
        s.v.push_back(ggml_fp32_to_fp16(normal(random)));
    }
    const int n = int(random() % 4);
    for (int i = 0; i < n; ++i) {
        s.samples.push_back(random_sample(random, shape.head_dim, shape.n_kv_heads));
        if (common) {
            make_common(s.samples.back(), random);
        }
        if (i > 0 && common) {
            s.samples[i].format.k.rotate = s.samples[0].format.k.rotate;
        }
        if (i > 0 && (common || random() % 3 == 0)) {  // a layer's segments share their divisors
            s.samples[i].k_divisor = s.samples[0].k_divisor;
            s.samples[i].v_divisor = s.samples[0].v_divisor;
            s.samples[i].quantize();
        }
    }
    s.position.resize(n);
    for (int i = 0; i < n; ++i) {
        const Sample & x = s.samples[i];
        ggml_zipcache_segment segment = {
            &x.format, x.segment.data(), x.k_divisor.data(), x.v_divisor.data(), nullptr, 0, 0, 0, nullptr};
        if (random() % 3 == 0) {
            segment.n_places = ggml_zipcache_segment_places(&x.format, x.segment.data());
            s.position[i].resize(x.format.n_kv_heads * segment.n_places);
            ggml_zipcache_segment_positions(&x.format, x.segment.data(), s.position[i].data());
            segment.position = s.position[i].data();
            segment.first_seen = int64_t(random() % (x.n_tokens + 1));
            segment.last_seen = segment.first_seen + int64_t(random() % (x.n_tokens + 1 - segment.first_seen));
        }
        s.segments.push_back(segment);
    }
    return s;
}

Case random_case(std::mt19937 & random) {
    const int dims[] = {64, 80, 96, 128, 256};
    Case c;
    c.shape = {dims[random() % 5], 1 + int(random() % 3), 1 + int(random() % 16),
               random() % 3 ? 0 : 1 + int(random() % 100)};
    c.scale = 1 / std::sqrt(float(c.shape.head_dim));
    const int n = 1 + int(random() % 2);
    const bool common = random() % 2;
    for (int i = 0; i < n; ++i) {
        c.sequences.push_back(random_sequence(random, c.shape, common));
    }
    std::normal_distribution<float> normal;
    for (int i = 0; i < n * c.n_heads() * c.shape.head_dim; ++i) {
        c.q.push_back(normal(random));
    }
    return c;
}

ggml_zipcache_layer layer_of(const Case & c, const Sequence & s) {
    return {c.n_heads(),
            c.shape.n_kv_heads,
            c.shape.head_dim,
            c.scale,
            c.shape.sliding_window,
            s.capacity,
            s.k.data(),
            s.v.data(),
            int64_t(s.segments.size()),
            s.segments.data(),
            nullptr,
            nullptr};
}

// What a case has on the device.
struct OnDevice {
    ggml_zipcache_cuda_attend_args args;
    std::vector<int32_t *> n_tokens;
    std::vector<uint16_t *> probe_q;
    std::vector<float *> probe_log_sum;
    void * workspace;
    size_t workspace_bytes;
};

ggml_zipcache_cuda_segment put_segment(Arena & arena, const Sequence & s, int i) {
    const Sample & x = s.samples[i];
    std::vector<uint8_t> bytes(ggml_zipcache_cuda_bytes_of_cpu(&x.format, x.segment.data()));
    ggml_zipcache_cuda_from_cpu(&x.format, x.segment.data(), bytes.data());
    ggml_zipcache_cuda_segment segment = {};
    segment.format = arena.put(std::vector<ggml_zipcache_format>{x.format});
    segment.data = arena.put(bytes);
    const bool shared = i > 0 && x.k_divisor == s.samples[0].k_divisor;
    segment.k_divisor = shared ? nullptr : arena.put(x.k_divisor);
    segment.v_divisor = shared ? nullptr : arena.put(x.v_divisor);
    return segment;
}

OnDevice put_case(const Case & c) {
    Arena & arena = Arena::get();
    OnDevice d = {};
    bool any_format = c.q[0] > 1;  // at times though it need not be
    std::vector<ggml_zipcache_cuda_sequence> sequences;
    struct Position {
        const Sample * sample;
        const uint8_t * segment;
        uint16_t * to;
        void * work;
        size_t work_bytes;
    };
    std::vector<Position> positions;
    std::vector<std::pair<ggml_zipcache_cuda_index_args, uint8_t *>> indexes;
    for (const Sequence & s : c.sequences) {
        std::vector<ggml_zipcache_cuda_segment> segments;
        int64_t max_blocks = 0;
        for (size_t i = 0; i < s.samples.size(); ++i) {
            const Sample & x = s.samples[i];
            auto segment = put_segment(arena, s, int(i));
            any_format |= !ggml_zipcache_cuda_is_common(&x.format) || x.k_divisor != s.samples[0].k_divisor ||
                          x.format.k.rotate != s.samples[0].format.k.rotate;
            if (!segment.k_divisor) {
                segment.k_divisor = segments[0].k_divisor;
                segment.v_divisor = segments[0].v_divisor;
            }
            if (s.segments[i].position) {
                segment.max_places = ggml_zipcache_cuda_max_places(&x.format, x.n_tokens);
                auto * position = arena.room<uint16_t>(x.format.n_kv_heads * segment.max_places);
                segment.position = position;
                segment.first_seen = s.segments[i].first_seen;
                segment.last_seen = s.segments[i].last_seen;
                const size_t work = ggml_zipcache_cuda_dequantize_kv_workspace(&x.format, x.n_tokens);
                positions.push_back({&x, segment.data, position, arena.room<uint8_t>(work), work});
            }
            max_blocks += ggml_zipcache_cuda_max_blocks(&x.format, x.n_tokens);
            segments.push_back(segment);
        }
        const int n = int(segments.size()), spare = 2;
        segments.resize(n + spare);
        ggml_zipcache_cuda_index_args index = {c.shape.n_kv_heads,  c.shape.head_dim,
                                               n + spare,           max_blocks,
                                               arena.put(segments), arena.put(std::vector<int32_t>{n})};
        auto * to = arena.room<uint8_t>(ggml_zipcache_cuda_index_bytes(c.shape.n_kv_heads, n + spare, max_blocks));
        indexes.emplace_back(index, to);
        std::vector<int32_t> slots(s.capacity, -1);
        slots[std::max(0, s.n_tokens - 1)] = 1;
        d.n_tokens.push_back(arena.put(std::vector<int32_t>{s.n_tokens}));
        d.probe_q.push_back(arena.room<uint16_t>(2 * c.n_heads() * c.shape.head_dim));
        d.probe_log_sum.push_back(arena.room<float>(2 * c.n_heads()));
        sequences.push_back({arena.put(s.k), arena.put(s.v), s.capacity, d.n_tokens.back(),
                             n || s.n_tokens % 2 ? to : nullptr, arena.put(slots), d.probe_q.back(),
                             d.probe_log_sum.back()});
    }
    d.args = {
        int32_t(sequences.size()), c.n_heads(), c.shape.n_kv_heads,   c.shape.head_dim, c.scale,
        c.shape.sliding_window,    any_format,  arena.put(sequences), arena.put(c.q),   arena.room<float>(c.q.size())};
    d.workspace_bytes = ggml_zipcache_cuda_attend_kv_workspace(&d.args);
    d.workspace = arena.room<uint8_t>(d.workspace_bytes, 0);
    arena.upload();
    for (const Position & p : positions) {
        check_op(ggml_zipcache_cuda_positions(&p.sample->format, p.segment, p.sample->n_tokens, p.to, p.work,
                                              p.work_bytes, nullptr));
    }
    for (auto & [index, to] : indexes) {
        check_op(ggml_zipcache_cuda_index_kv(&index, to, nullptr));
    }
    return d;
}

struct Wanted {
    std::vector<float> out, log_sum;
};

// By the portable code, with the exact path over segments (ZIPCACHE_CPU=ref).
Wanted reference(const Case & c, size_t i) {
    const Sequence & s = c.sequences[i];
    const int dim = c.shape.head_dim, n = c.n_heads();
    Wanted want = {std::vector<float>(n * dim), std::vector<float>(n)};
    if (s.n_tokens > 0) {
        const auto layer = layer_of(c, s);
        const float * q = &c.q[i * n * dim];
        std::vector<float> partial(size_t(n) * (dim + 2));
        ggml_zipcache_attend_kv(&layer, q, s.n_tokens, 0, 1, partial.data());
        ggml_zipcache_attend_kv_merge(&layer, partial.data(), 1, want.out.data(), want.log_sum.data());
        ggml_zipcache_attend_kv_ref(&layer, q, s.n_tokens, want.out.data());
    }
    return want;
}

struct Difference {
    double output = 0, log_sum = 0;
    bool probes = true;  // the query is left where it should be, and nowhere else
};

Difference difference(const Case & c, const OnDevice & d) {
    Arena & arena = Arena::get();
    const int dim = c.shape.head_dim, n = c.n_heads();
    const auto out = arena.read(d.args.out, c.q.size());
    Difference worst;
    for (size_t i = 0; i < c.sequences.size(); ++i) {
        const Wanted want = reference(c, i);
        double size = 1;
        for (float x : want.out) {
            size = std::max(size, double(std::fabs(x)));
        }
        for (int j = 0; j < n * dim; ++j) {
            const float got = out[i * n * dim + j];
            worst.output =
                std::max(worst.output, std::isfinite(got) ? std::fabs(double(got) - want.out[j]) / size : INFINITY);
        }
        const auto probe_q = arena.read(d.probe_q[i], 2 * n * dim);
        const auto log_sum = arena.read(d.probe_log_sum[i], 2 * n);
        const bool idle = c.sequences[i].n_tokens == 0;
        for (int j = 0; j < n * dim; ++j) {
            const auto q = ggml_fp32_to_fp16(c.q[i * n * dim + j]);
            worst.probes &= probe_q[j] == 0xFFFF && probe_q[n * dim + j] == (idle ? 0xFFFF : q);
        }
        for (int j = 0; j < n && !idle; ++j) {
            const double off = std::fabs(log_sum[n + j] - want.log_sum[j]);
            worst.log_sum = std::max(worst.log_sum, std::isfinite(off) ? off : INFINITY);
        }
    }
    return worst;
}

std::string described(const Case & c) {
    std::string text = "heads " + std::to_string(c.n_heads()) + "/" + std::to_string(c.shape.n_kv_heads) + " dim " +
                       std::to_string(c.shape.head_dim) + " sliding " + std::to_string(c.shape.sliding_window);
    for (const Sequence & s : c.sequences) {
        text += "\n    window " + std::to_string(s.n_tokens);
        for (size_t i = 0; i < s.samples.size(); ++i) {
            text += "\n    " + described(s.samples[i]) + (s.segments[i].position ? ", partly hidden" : "");
        }
    }
    return text;
}

// The query and the probabilities are integers of 16 bits below the largest that a head's parameters allow.
constexpr double kTolerance = 5e-3, kLogSumTolerance = 5e-3;

void check_case(const Case & c, const OnDevice & d, Difference & most) {
    const Difference worst = difference(c, d);
    most.output = std::max(most.output, worst.output);
    most.log_sum = std::max(most.log_sum, worst.log_sum);
    const bool right = worst.output < kTolerance && worst.log_sum < kLogSumTolerance && worst.probes;
    CHECK(right);
    if (!right) {
        std::printf("  output %g, log sum %g, probes %d: %s\n", worst.output, worst.log_sum, worst.probes,
                    described(c).c_str());
    }
}

}  // namespace

TEST(cuda_attend_kv_matches_the_reference) {
    std::mt19937 random(test_seed());
    Difference most;
    for (int i = 0; i < n_cases(2000); ++i) {
        const Case c = random_case(random);
        const OnDevice d = put_case(c);
        // twice: the workspace must be left ready
        for (int run = 0; run < 2; ++run) {
            check_op(ggml_zipcache_cuda_attend_kv(&d.args, d.workspace, d.workspace_bytes, nullptr));
        }
        check_case(c, d, most);
    }
    std::printf("  attend_kv: output off by at most %.2g of its largest, log sum by %.2g\n", most.output, most.log_sum);
}

// A step captured once, replayed as the window grows.
TEST(cuda_attend_kv_reads_lengths_when_a_graph_is_replayed) {
    std::mt19937 random(test_seed());
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (int i = 0; i < n_cases(40); ++i) {
        Case c = random_case(random);
        const OnDevice d = put_case(c);
        const int dim = c.shape.head_dim, n_kv = c.shape.n_kv_heads;
        std::normal_distribution<float> normal;
        std::vector<float> k(c.sequences.size() * n_kv * dim), v(k);
        float * there = nullptr;
        check_cuda(cudaMalloc(&there, 2 * k.size() * sizeof(float)));
        check_cuda(cudaDeviceSynchronize());
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t exec = nullptr;
        check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
        check_op(ggml_zipcache_cuda_append_kv(&d.args, there, there + k.size(), stream));
        check_op(ggml_zipcache_cuda_attend_kv(&d.args, d.workspace, d.workspace_bytes, stream));
        check_cuda(cudaStreamEndCapture(stream, &graph));
        check_cuda(cudaGraphInstantiate(&exec, graph, 0));
        for (int step = 0; step < 3; ++step) {
            for (size_t j = 0; j < k.size(); ++j) {
                k[j] = normal(random);
                v[j] = normal(random);
            }
            for (size_t j = 0; j < c.sequences.size(); ++j) {
                Sequence & s = c.sequences[j];
                s.n_tokens = 1 + int32_t(random() % s.capacity);
                for (int64_t x = 0; x < int64_t(n_kv) * dim; ++x) {
                    const int64_t at = (x / dim * s.capacity + s.n_tokens - 1) * dim + x % dim;
                    s.k[at] = ggml_fp32_to_fp16(k[j * n_kv * dim + x]);
                    s.v[at] = ggml_fp32_to_fp16(v[j * n_kv * dim + x]);
                }
                check_cuda(cudaMemcpy(d.n_tokens[j], &s.n_tokens, sizeof s.n_tokens, cudaMemcpyHostToDevice));
            }
            check_cuda(cudaMemcpy(there, k.data(), k.size() * sizeof(float), cudaMemcpyHostToDevice));
            check_cuda(cudaMemcpy(there + k.size(), v.data(), v.size() * sizeof(float), cudaMemcpyHostToDevice));
            check_cuda(cudaDeviceSynchronize());  // a copy from pageable memory may still be under way
            check_cuda(cudaGraphLaunch(exec, stream));
            check_cuda(cudaStreamSynchronize(stream));
            Difference worst = difference(c, d);
            CHECK(worst.output < kTolerance);
        }
        check_cuda(cudaGraphExecDestroy(exec));
        check_cuda(cudaGraphDestroy(graph));
        check_cuda(cudaFree(there));
    }
    check_cuda(cudaStreamDestroy(stream));
}

TEST(cuda_ops_name_what_they_do_not_accept) {
    ggml_zipcache_cuda_attend_args args = {};
    args.n_sequences = 1;
    args.n_heads = 8;
    args.n_kv_heads = 8;
    args.head_dim = 72;
    std::vector<uint8_t> none(1);
    const size_t plenty = size_t(1) << 40;
    CHECK(ggml_zipcache_cuda_attend_kv(&args, none.data(), plenty, nullptr) != nullptr);
    args.head_dim = 128;
    CHECK(ggml_zipcache_cuda_attend_kv(&args, none.data(), 1, nullptr) != nullptr);
    args.n_kv_heads = 0;
    CHECK(ggml_zipcache_cuda_attend_kv(&args, none.data(), plenty, nullptr) != nullptr);
    CHECK(ggml_zipcache_cuda_attend_kv_workspace(&args) == 0);
    args.n_kv_heads = 8;
    args.n_heads = 136;
    CHECK(ggml_zipcache_cuda_attend_kv(&args, none.data(), plenty, nullptr) != nullptr);
}
