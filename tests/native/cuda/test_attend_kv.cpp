#include <algorithm>
#include <cmath>
#include <cstring>

#include "arena.h"
#include "attend_sample.h"
#include "check.h"
#include "ggml-zipcache-cuda.h"

namespace {

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
        ggml_zipcache_cuda_index_args index = {c.shape.n_kv_heads,
                                               c.shape.head_dim,
                                               n + spare,
                                               max_blocks,
                                               s.capacity,
                                               arena.put(segments),
                                               arena.put(std::vector<int32_t>{n})};
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

Difference difference(const Case & c, const OnDevice & d) {
    Arena & arena = Arena::get();
    const size_t n = c.n_heads(), dim = c.shape.head_dim;
    const auto out = arena.read(d.args.out, c.q.size());
    Difference worst;
    for (size_t i = 0; i < c.sequences.size(); ++i) {
        const auto probe_q = arena.read(d.probe_q[i], 2 * n * dim);
        const auto log_sum = arena.read(d.probe_log_sum[i], 2 * n);
        compare(c, i, {&out[i * n * dim], probe_q.data(), log_sum.data()}, worst);
    }
    return worst;
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
        const int64_t stride = int64_t(n_kv) * dim;
        const ggml_zipcache_cuda_new_tokens tokens = {there,   there + k.size(), stride, stride,
                                                      nullptr, nullptr,          0,      nullptr};
        check_op(ggml_zipcache_cuda_append_kv(&d.args, &tokens, stream));
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

// Queries, keys and values lie beside each other, as one product of all three leaves them.
TEST(cuda_append_kv_turns_by_position) {
    std::mt19937 random(test_seed());
    std::normal_distribution<float> normal;
    for (int i = 0; i < n_cases(40); ++i) {
        const int n_kv = 1 + int(random() % 9), group = 1 + int(random() % 8), dim = 16 * (1 + int(random() % 16));
        const int n = 1 + int(random() % 4), n_dims = 2 * (1 + int(random() % (dim / 2))), n_heads = n_kv * group;
        const bool halves = random() % 2 != 0, with_factors = random() % 2 != 0;
        const int64_t capacity = 3, width = int64_t(n_heads + 2 * n_kv) * dim;
        std::vector<float> rows(n * width), factors(n_dims / 2), turned(size_t(n) * n_heads * dim);
        std::generate(rows.begin(), rows.end(), [&] { return normal(random); });
        std::generate(factors.begin(), factors.end(), [&] { return 1 + float(random() % 100) / 50; });
        std::vector<int32_t> position(n), n_tokens(n);
        std::vector<uint16_t> window(2 * size_t(n) * n_kv * capacity * dim);
        Arena & arena = Arena::get();
        const float * there = arena.put(rows);
        const uint16_t * k = arena.put(window);
        std::vector<ggml_zipcache_cuda_sequence> sequences(n);
        for (int j = 0; j < n; ++j) {
            position[j] = int32_t(random() % 4096);
            n_tokens[j] = int32_t(random() % (capacity + 1));  // 0: idle
        }
        const int32_t * counts = arena.put(n_tokens);
        for (int j = 0; j < n; ++j) {
            sequences[j].k = k + int64_t(j) * n_kv * capacity * dim;
            sequences[j].v = sequences[j].k + int64_t(n) * n_kv * capacity * dim;
            sequences[j].capacity = capacity;
            sequences[j].n_tokens = counts + j;
        }
        ggml_zipcache_cuda_attend_args args = {};
        args.n_sequences = n;
        args.n_heads = n_heads;
        args.n_kv_heads = n_kv;
        args.head_dim = dim;
        args.sequences = arena.put(sequences);
        const ggml_zipcache_cuda_rope rope = {
            arena.put(position), with_factors ? arena.put(factors) : nullptr, n_dims, halves, 500000.0f, 0.5f, 1.25f};
        auto * to = arena.room<float>(turned.size());
        const float *from_k = there + int64_t(n_heads) * dim, *from_v = from_k + int64_t(n_kv) * dim;
        const ggml_zipcache_cuda_new_tokens tokens = {from_k, from_v, width, width, &rope, there, width, to};
        arena.upload();
        check_op(ggml_zipcache_cuda_append_kv(&args, &tokens, nullptr));
        turned = arena.read(to, turned.size());
        window = arena.read(k, window.size());
        // in double: what float leaves of an angle grows with it
        auto expected = [&](int j, int64_t channel) {  // of a row
            const int64_t c = channel % dim, head = j * width + channel - c, n_pairs = n_dims / 2;
            if (c >= n_dims) {
                return double(rows[head + c]);
            }
            const int64_t pair = halves ? c % n_pairs : c / 2;
            const bool second = halves ? c >= n_pairs : c % 2 != 0;
            const int64_t a = head + (halves ? pair : 2 * pair), b = head + (halves ? pair + n_pairs : 2 * pair + 1);
            const double step = std::pow(500000.0f, -2.0f / float(n_dims));
            const double angle =
                0.5 * position[j] * std::pow(step, double(pair)) / (with_factors ? factors[pair] : 1.0f);
            const double cosine = 1.25 * std::cos(angle), sine = 1.25 * std::sin(angle);
            return second ? rows[a] * sine + rows[b] * cosine : rows[a] * cosine - rows[b] * sine;
        };
        double worst = 0;
        for (int j = 0; j < n; ++j) {
            for (int64_t c = 0; c < width && n_tokens[j] > 0; ++c) {
                const int64_t row = c / dim - n_heads;
                double got;
                if (row < 0) {
                    got = turned[j * int64_t(n_heads) * dim + c];
                } else {
                    const bool is_v = row >= n_kv;
                    const int64_t plane = (is_v ? n + j : j) * int64_t(n_kv), at = plane + row % n_kv;
                    got = ggml_fp16_to_fp32(window[(at * capacity + n_tokens[j] - 1) * dim + c % dim]);
                }
                const double want = row >= n_kv ? double(rows[j * width + c]) : expected(j, c);
                worst = std::max(worst, std::fabs(got - want) / (1 + std::fabs(want)));
            }
        }
        CHECK(worst < 0.01);
    }
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
