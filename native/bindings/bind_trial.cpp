// One layer of a cache over rows that are given, without a model, on any device: what a policy makes of them.
#include "bindings/bind.h"
#include "common/error.h"
#include "device/devices.h"
#include "graph/executor.h"
#include "kv/kv_cache.h"

namespace py = pybind11;

namespace zipcache {
namespace {

using Halves = py::array_t<uint16_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;

constexpr int64_t kMost = 65535;   // tokens: those that a segment can hold
constexpr int64_t kMaxNodes = 16;  // of a step

// Tokens from outside, one after the other.
struct Tokens {
    int64_t n;
    const uint16_t * k;  // [n_kv_heads, n, head_dim] f16
    const uint16_t * v;
    const float * q;  // [n, n_heads, head_dim]
};

HParams shape_of(int n_heads, int n_kv_heads, int head_dim, int sliding_window) {
    HParams h;
    h.n_layers = 1;
    h.n_heads = n_heads;
    h.n_kv_heads = n_kv_heads;
    h.head_dim = head_dim;
    h.attention_scale = 1 / std::sqrt(float(head_dim));
    h.sliding_window = sliding_window;
    h.is_sliding = {sliding_window > 0};
    return h;
}

class Trial {
  public:
    // norms [n_heads * head_dim]: how strongly each channel of the output is read
    Trial(const KvOptions & kv, HParams h, const std::string & where, std::vector<float> norms)
        : h_(std::move(h)),
          executor_(1, open_device(where)),
          norms_({std::move(norms)}),
          policy_(make_policy(kv, h_)),
          cache_(policy_, h_, make_codecs(executor_.stages(h_.n_layers), policy_, h_, norms_), kMost),
          memory_(executor_.device(), kMaxNodes),
          q_(executor_.device(), GGML_TYPE_F32, h_.head_dim, h_.n_heads),
          k_(executor_.device(), GGML_TYPE_F32, h_.head_dim, h_.n_kv_heads),
          v_(executor_.device(), GGML_TYPE_F32, h_.head_dim, h_.n_kv_heads),
          n_tokens_(executor_.device(), GGML_TYPE_I32, 1) {
        const int n_queries = h_.n_heads / h_.n_kv_heads;
        if (!device().attends(n_queries, h_.head_dim)) {
            throw ArgumentError(device().name() + " does not read heads of " + std::to_string(h_.head_dim) +
                                " channels with " + std::to_string(n_queries) +
                                " query heads each; accepted: the device cpu");
        }
    }

    const HParams & shape() const { return h_; }
    KvStats stats() const { return cache_.stats(); }

    void truncate(int64_t n_tokens) {
        if (n_tokens < 0 || n_tokens > cache_.size()) {
            throw ArgumentError("KvTrial is to keep " + std::to_string(n_tokens) + " tokens; accepted: 0 to the " +
                                std::to_string(cache_.size()) + " that it has");
        }
        cache_.truncate(n_tokens);
    }

    void check_room(int64_t n) const {
        if (n < 1 || n > kMost - cache_.size()) {
            throw ArgumentError("KvTrial got " + std::to_string(n) + " tokens; accepted: 1 to " +
                                std::to_string(kMost - cache_.size()) + " more");
        }
    }

    void prefill(const Tokens & t) {
        const PrefillRows rows = cache_.begin_prefill(0, t.n, parallel());
        for (const auto & [to, from] : {std::pair(rows.k, t.k), std::pair(rows.v, t.v)}) {
            for (int head = 0; head < h_.n_kv_heads; ++head) {
                write(row_of(to, head, rows.n_past), from + head * t.n * h_.head_dim, t.n * h_.head_dim);
            }
        }
        std::vector<int64_t> probes;
        if (policy_->compresses && policy_->wants_probes()) {
            probes = choose_probes(policy_->options, t.n, uint64_t(cache_.size()));
        }
        const int64_t width = int64_t(h_.n_heads) * h_.head_dim;
        const Bytes queries(device(), probes.size() * width * sizeof(float));
        for (size_t i = 0; i < probes.size(); ++i) {
            write(queries.as<float>() + i * width, t.q + probes[i] * width, width);
        }
        cache_.end_prefill(0, t.n, probes, queries.as<float>(), parallel());
        cache_.commit(t.n);
        cache_.release_scratch();
    }

    // One after the other. out [n, n_heads, head_dim]
    void decode(const Tokens & t, float * out) {
        const int64_t dim = h_.head_dim, width = h_.n_heads * dim;
        for (int64_t i = 0; i < t.n; ++i) {
            write(data_of<float>(q_.tensor), t.q + i * width, width);
            for (const auto & [to, from] : {std::pair(k_.tensor, t.k), std::pair(v_.tensor, t.v)}) {
                std::vector<float> row(h_.n_kv_heads * dim);
                for (int head = 0; head < h_.n_kv_heads; ++head) {
                    ggml_fp16_to_fp32_row(from + (head * t.n + i) * dim, &row[head * dim], dim);
                }
                write(data_of<float>(to), row.data(), row.size());
            }
            step(out + i * width);
        }
    }

    // The rows of each KV head that the newest token saw, and as many more as the window holds of older ones: k, then
    // v, each [n_rows, head_dim].
    std::vector<std::vector<uint16_t>> rows() {
        if (cache_.size() == 0) {
            throw ContextError("KvTrial has no rows yet: prefill or decode first");
        }
        const PrefillRows rows = cache_.begin_prefill(0, 0, parallel());
        std::vector<std::vector<uint16_t>> sides;
        for (const ggml_tensor * from : {rows.k, rows.v}) {
            const int64_t n = rows.n_past * h_.head_dim;
            auto & side = sides.emplace_back(h_.n_kv_heads * n);
            for (int head = 0; head < h_.n_kv_heads; ++head) {
                device().read(&side[head * n], row_of(from, head, 0), n * sizeof(uint16_t));
            }
        }
        cache_.release_scratch();
        return sides;
    }

  private:
    template <class T>
    static T * data_of(const ggml_tensor * tensor) {
        return static_cast<T *>(tensor->data);
    }
    Device & device() const { return executor_.device(); }
    Parallel parallel() {
        return [this](int n, const std::function<void(int)> & task) { executor_.parallel(n, task); };
    }
    template <class T>
    void write(T * to, const T * from, size_t n) const {
        device().write(to, from, n * sizeof(T));
    }
    uint16_t * row_of(const ggml_tensor * rows, int64_t head, int64_t row) const {
        return data_of<uint16_t>(rows) + (head * rows->ne[1] + row) * h_.head_dim;
    }

    // Of the token that q_, k_ and v_ hold. out [n_heads, head_dim]
    void step(float * out) {
        cache_.make_room(parallel());
        cache_.release_scratch();
        const auto n = static_cast<int32_t>(cache_.window_size() + 1);
        write(data_of<int32_t>(n_tokens_.tensor), &n, 1);
        const auto view = device().batch_view({&cache_.view(0)});
        ggml_tensor * result =
            view->attend(memory_.begin(), {q_.tensor, k_.tensor, v_.tensor, n_tokens_.tensor}, nullptr);
        ggml_set_output(result);
        ggml_build_forward_expand(memory_.graph(), result);
        memory_.allocate();
        view->refresh();
        executor_.compute(device(), memory_.graph(), std::atomic<bool>{false});
        device().read(out, result->data, ggml_nbytes(result));
        cache_.advance();
    }

    HParams h_;
    Executor executor_;
    OutputNorms norms_;
    std::shared_ptr<const Policy> policy_;
    KvCache cache_;
    GraphMemory memory_;
    OwnTensor q_, k_, v_, n_tokens_;  // of a token
};

int checked(py::ssize_t n, const char * what) {
    if (n < 1 || n > 1024) {
        throw ArgumentError(std::string("KvTrial got ") + std::to_string(n) + " " + what + "; accepted: 1 to 1024");
    }
    return static_cast<int>(n);
}

std::unique_ptr<Trial> make_trial(const KvOptions & kv, const std::string & device, const Floats & norms,
                                  int n_kv_heads, int sliding_window) {
    if (norms.ndim() != 2 || !std::all_of(norms.data(), norms.data() + norms.size(), [](float x) { return x > 0; })) {
        throw ArgumentError("KvTrial got norms that are none; accepted: [n_heads, head_dim], all above 0");
    }
    const int n_heads = checked(norms.shape(0), "heads"), head_dim = checked(norms.shape(1), "channels");
    if (n_kv_heads < 1 || n_heads % n_kv_heads != 0 || sliding_window < 0) {
        throw ArgumentError("KvTrial got " + std::to_string(n_kv_heads) + " KV heads and a sliding window of " +
                            std::to_string(sliding_window) + "; accepted: a divisor of the " + std::to_string(n_heads) +
                            " heads, and 0 or more tokens");
    }
    const std::vector<float> copy(norms.data(), norms.data() + norms.size());
    const py::gil_scoped_release unlocked;
    return std::make_unique<Trial>(kv, shape_of(n_heads, n_kv_heads, head_dim, sliding_window), device, copy);
}

Tokens tokens_of(const Trial & trial, const Halves & k, const Halves & v, const Floats & q) {
    const HParams & h = trial.shape();
    const int64_t n = q.ndim() == 3 ? q.shape(0) : 0;
    const std::array<py::ssize_t, 3> rows = {h.n_kv_heads, n, h.head_dim}, queries = {n, h.n_heads, h.head_dim};
    const bool fits =
        k.ndim() == 3 && v.ndim() == 3 && q.ndim() == 3 && std::equal(rows.begin(), rows.end(), k.shape()) &&
        std::equal(rows.begin(), rows.end(), v.shape()) && std::equal(queries.begin(), queries.end(), q.shape());
    if (!fits) {
        throw ArgumentError("KvTrial got tokens whose shapes don't fit; accepted: k, v [" +
                            std::to_string(h.n_kv_heads) + ", n, " + std::to_string(h.head_dim) + "], q [n, " +
                            std::to_string(h.n_heads) + ", " + std::to_string(h.head_dim) + "]");
    }
    trial.check_room(n);
    return {n, k.data(), v.data(), q.data()};
}

void prefill(Trial & trial, const Halves & k, const Halves & v, const Floats & q) {
    const Tokens tokens = tokens_of(trial, k, v, q);
    const py::gil_scoped_release unlocked;
    trial.prefill(tokens);
}

Floats decode(Trial & trial, const Halves & k, const Halves & v, const Floats & q) {
    const Tokens tokens = tokens_of(trial, k, v, q);
    Floats out({py::ssize_t(tokens.n), py::ssize_t(trial.shape().n_heads), py::ssize_t(trial.shape().head_dim)});
    float * to = out.mutable_data();
    const py::gil_scoped_release unlocked;
    trial.decode(tokens, to);
    return out;
}

py::tuple rows(Trial & trial) {
    const HParams & h = trial.shape();
    std::vector<std::vector<uint16_t>> sides;
    {
        const py::gil_scoped_release unlocked;
        sides = trial.rows();
    }
    auto array = [&](const std::vector<uint16_t> & side) {
        const auto n_rows = static_cast<py::ssize_t>(side.size()) / (h.n_kv_heads * h.head_dim);
        return Halves({py::ssize_t(h.n_kv_heads), n_rows, py::ssize_t(h.head_dim)}, side.data());
    };
    return py::make_tuple(array(sides[0]), array(sides[1]));
}

}  // namespace

void bind_trial(py::module_ & m) {
    py::class_<Trial>(m, "KvTrial")
        .def(py::init(&make_trial), py::kw_only(), py::arg("kv"), py::arg("device"), py::arg("norms"),
             py::arg("n_kv_heads"), py::arg("sliding_window"))
        .def("prefill", &prefill, py::arg("k"), py::arg("v"), py::arg("q"))
        .def("decode", &decode, py::arg("k"), py::arg("v"), py::arg("q"))
        .def("rows", &rows)
        .def("truncate", &Trial::truncate, py::arg("n_tokens"))
        .def("stats", [](const Trial & trial) { return dict_of(trial.stats()); });
}

}  // namespace zipcache
