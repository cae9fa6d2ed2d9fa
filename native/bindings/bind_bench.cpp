// Times attend_kv on synthetic rows for bench/attend_kv.py, beside what moving the same bytes takes. One thread.
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>

#include "bindings/bind.h"
#include "common/error.h"
#include "ggml-zipcache.h"

namespace py = pybind11;

namespace zipcache {
namespace {

struct Shape {
    int head_dim, n_kv_heads, n_heads;
    int64_t n_tokens;
    int64_t stride() const { return n_tokens + 1; }  // the newest token is not compressed
    int64_t width() const { return int64_t(n_kv_heads) * head_dim; }
};

ggml_zipcache_side side_of(ggml_zipcache_scope scope, ggml_zipcache_params params, int block, int bits, float shrink) {
    ggml_zipcache_side side = {};
    side.bits[0] = bits;
    side.shrink[0] = shrink;
    side.scope = scope;
    side.params = params;
    side.block = block;
    return side;
}

// One tier, as the policies of that name lay it out.
ggml_zipcache_format format_of(const Shape & s, const std::string & layout, int k_bits, int v_bits) {
    ggml_zipcache_format f = {};
    f.n_kv_heads = s.n_kv_heads;
    f.head_dim = s.head_dim;
    f.group = GGML_ZIPCACHE_GROUP;
    f.n_tiers = 1;
    f.same_order = layout != "auto";
    if (layout == "auto") {
        constexpr auto pair = GGML_ZIPCACHE_PARAMS_F8_PAIR;
        f.k = side_of(GGML_ZIPCACHE_SCOPE_GROUP, pair, 0, k_bits, k_bits == 2 ? 0.95f : 1.0f);
        f.v = side_of(GGML_ZIPCACHE_SCOPE_TOKEN, pair, s.head_dim, v_bits,
                      v_bits == 1   ? 0.5f
                      : v_bits == 2 ? 0.8f
                                    : 1.0f);
        f.k.rotate = f.v.rotate = true;
    } else if (layout == "zipcache") {
        constexpr auto pair = GGML_ZIPCACHE_PARAMS_F16_PAIR;
        f.k = side_of(GGML_ZIPCACHE_SCOPE_SEGMENT, pair, 0, k_bits, 1);
        f.v = side_of(GGML_ZIPCACHE_SCOPE_TOKEN, pair, int(s.width()), v_bits, 1);
    } else if (layout == "blocks") {
        f.k = side_of(GGML_ZIPCACHE_SCOPE_TOKEN, GGML_ZIPCACHE_PARAMS_F16_SCALE, 32, k_bits, 1);
        f.v = side_of(GGML_ZIPCACHE_SCOPE_TOKEN, GGML_ZIPCACHE_PARAMS_F16_SCALE, 32, v_bits, 1);
    } else {
        throw ArgumentError("the layout is '" + layout + "'; accepted: auto, zipcache, blocks, f16");
    }
    if (const char * error = ggml_zipcache_format_error(&f)) {
        throw ArgumentError(std::string("the format is not one: ") + error);
    }
    return f;
}

// Rows of unit spread, n_tokens and the newest; keys with a bias of each channel's own; queries that give logits a
// standard deviation of 2.
struct Rows {
    std::vector<ggml_fp16_t> k, v;  // [n_kv_heads, n_tokens + 1, head_dim]
    std::vector<float> q;           // [n_heads, head_dim]
    std::vector<float> ones;        // [n_kv_heads, head_dim]

    explicit Rows(const Shape & s) : ones(s.width(), 1.0f) {
        std::mt19937 random(1);
        std::normal_distribution<float> normal;
        std::vector<float> bias(s.head_dim);
        for (float & b : bias) {
            b = normal(random);
        }
        for (int64_t i = 0; i < s.width() * s.stride(); ++i) {
            k.push_back(ggml_fp32_to_fp16(bias[i % s.head_dim] + normal(random)));
            v.push_back(ggml_fp32_to_fp16(normal(random)));
        }
        for (int i = 0; i < s.n_heads * s.head_dim; ++i) {
            q.push_back(2 * normal(random));
        }
    }
};

std::vector<uint8_t> segment_of(const Shape & s, const ggml_zipcache_format & f, const Rows & rows) {
    const std::vector<uint8_t> tiers(s.width() * s.n_tokens);
    const ggml_zipcache_rows args = {s.n_tokens,       s.stride(),       rows.k.data(), rows.v.data(),
                                     rows.ones.data(), rows.ones.data(), tiers.data(),  nullptr};
    std::vector<uint8_t> segment(ggml_zipcache_segment_bytes(&f, s.n_tokens, tiers.data()));
    ggml_zipcache_quantize_kv_begin(&f, &args, segment.data());
    for (int head = 0; head < s.n_kv_heads; ++head) {
        ggml_zipcache_quantize_kv_head(&f, &args, head, segment.data());
    }
    return segment;
}

// A segment and the newest token; without a format, all rows as a window.
struct Layer {
    ggml_zipcache_layer layer;
    ggml_zipcache_segment segment;
    int64_t n_window;

    Layer(const Shape & s, const Rows & rows, const ggml_fp16_t * k, const ggml_fp16_t * v,
          const ggml_zipcache_format * f = nullptr, const uint8_t * data = nullptr)
        : segment{f, data, rows.ones.data(), rows.ones.data(), nullptr, 0, 0, 0, nullptr},
          n_window(f ? 1 : s.stride()) {
        const int64_t newest = f ? s.n_tokens * s.head_dim : 0;
        layer = {s.n_heads, s.n_kv_heads, s.head_dim, 1 / std::sqrt(float(s.head_dim)),
                 0,         s.stride(),   k + newest, v + newest,
                 f ? 1 : 0, &segment,     nullptr,    nullptr};
    }
    Layer(const Layer &) = delete;

    void attend(const Rows & rows, std::vector<float> & partial, std::vector<float> & out) const {
        ggml_zipcache_attend_kv(&layer, rows.q.data(), n_window, 0, 1, partial.data());
        ggml_zipcache_attend_kv_merge(&layer, partial.data(), 1, out.data(), nullptr);
    }
    std::vector<float> reference(const Rows & rows) const {
        std::vector<float> out(rows.q.size());
        ggml_zipcache_attend_kv_ref(&layer, rows.q.data(), n_window, out.data());
        return out;
    }
};

// Root mean square of the difference over that of b.
double relative_error(const std::vector<float> & a, const std::vector<float> & b) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        difference += std::pow(double(a[i]) - b[i], 2);
        size += std::pow(double(b[i]), 2);
    }
    return std::sqrt(difference / size);
}

uint64_t sum_of(const uint8_t * bytes, size_t n) {
    uint64_t sum = 0, word;
    for (size_t i = 0; i + sizeof word <= n; i += sizeof word) {
        std::memcpy(&word, bytes + i, sizeof word);
        sum += word;
    }
    return sum;
}

// Mean seconds of task(i) over i in [0, n).
template <class Task>
double seconds(int64_t n, Task && task) {
    const auto start = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < n; ++i) {
        task(i);
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / double(n);
}

struct Times {
    size_t bytes = 0;                        // that a run reads
    std::vector<double> attend, copy, read;  // seconds of a run, for each pass
    double rounding = 0;                     // relative error of the kernel beside its reference
    double quantization = 0;                 // of that reference beside the rows that were not quantized
};

// A pass runs once over each of n_copies equal caches. More than fit the processor's caches: every run is cold.
Times measure(const Shape & s, const std::string & layout, int k_bits, int v_bits, int64_t n_copies, int n_passes) {
    const Rows rows(s);
    const bool packed = layout != "f16";
    const ggml_zipcache_format f = packed ? format_of(s, layout, k_bits, v_bits) : ggml_zipcache_format{};
    std::vector<uint8_t> data = packed ? segment_of(s, f, rows) : std::vector<uint8_t>();
    if (!packed) {
        const size_t side = rows.k.size() * sizeof(ggml_fp16_t);
        data.resize(2 * side);
        std::memcpy(data.data(), rows.k.data(), side);
        std::memcpy(data.data() + side, rows.v.data(), side);
    }
    const std::vector<std::vector<uint8_t>> copies(n_copies, data);
    std::vector<std::unique_ptr<Layer>> layers;
    for (const auto & copy : copies) {
        const auto * k = packed ? rows.k.data() : reinterpret_cast<const ggml_fp16_t *>(copy.data());
        const auto * v = packed ? rows.v.data() : k + rows.k.size();
        layers.push_back(std::make_unique<Layer>(s, rows, k, v, packed ? &f : nullptr, copy.data()));
    }
    std::vector<float> partial(size_t(s.n_heads) * (s.head_dim + 2)), out(rows.q.size());
    Times times;
    times.bytes = data.size();
    for (int pass = 0; pass < n_passes; ++pass) {
        volatile uint64_t total = 0;
        times.attend.push_back(seconds(n_copies, [&](int64_t i) { layers[i]->attend(rows, partial, out); }));
        times.copy.push_back(seconds(n_copies, [&](int64_t i) {
            std::memcpy(data.data(), copies[i].data(), data.size());
            total = total + data[size_t(pass) % data.size()];
        }));
        times.read.push_back(
            seconds(n_copies, [&](int64_t i) { total = total + sum_of(copies[i].data(), data.size()); }));
    }
    const auto reference = layers[0]->reference(rows);
    times.rounding = relative_error(out, reference);
    times.quantization = relative_error(reference, Layer(s, rows, rows.k.data(), rows.v.data()).reference(rows));
    return times;
}

py::dict bench_attend_kv(const std::string & layout, int head_dim, int n_kv_heads, int n_heads, int64_t n_tokens,
                         int k_bits, int v_bits, int64_t n_copies, int n_passes) {
    if (head_dim < 1 || n_kv_heads < 1 || n_heads < n_kv_heads || n_heads % n_kv_heads != 0 || n_tokens < 1 ||
        n_tokens > 65535 || n_copies < 1 || n_passes < 1) {
        throw ArgumentError(
            "bench_attend_kv got a shape that is none; accepted: sizes above 0, heads that are a "
            "multiple of the KV heads, at most 65535 tokens");
    }
    Times t;
    {
        const py::gil_scoped_release unlocked;
        t = measure({head_dim, n_kv_heads, n_heads, n_tokens}, layout, k_bits, v_bits, n_copies, n_passes);
    }
    using namespace py::literals;
    return py::dict("bytes"_a = t.bytes, "attend"_a = t.attend, "copy"_a = t.copy, "read"_a = t.read,
                    "rounding"_a = t.rounding, "quantization"_a = t.quantization);
}

}  // namespace

void bind_bench(py::module_ & m) {
    m.def("bench_attend_kv", &bench_attend_kv, py::kw_only(), py::arg("layout"), py::arg("head_dim"),
          py::arg("n_kv_heads"), py::arg("n_heads"), py::arg("n_tokens"), py::arg("k_bits"), py::arg("v_bits"),
          py::arg("n_copies"), py::arg("n_passes"));
}

}  // namespace zipcache
