// One layer of a cache over rows that are given, without a model: what a policy makes of them.
#include "bindings/bind.h"
#include "common/error.h"
#include "device/cpu_device.h"
#include "kv/kv_cache.h"

namespace py = pybind11;

namespace zipcache {
namespace {

using Halves = py::array_t<uint16_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;
using Turns = std::vector<std::pair<int64_t, int64_t>>;  // tokens that come together, then one by one

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
    Trial(const KvOptions & kv, HParams h, int64_t n, const uint16_t * k, const uint16_t * v, const float * q)
        : h_(std::move(h)),
          n_(n),
          k_(k),
          v_(v),
          q_(q),
          device_(1),
          norms_(nullptr, 1),
          policy_(checked(make_policy(kv, h_))),
          cache_(policy_, h_, device_, make_codec(device_, policy_, h_, norms_), n) {}

    void prefill(int64_t n) {
        const int64_t first = cache_.size(), width = int64_t(h_.n_heads) * h_.head_dim;
        const PrefillRows rows = cache_.begin_prefill(0, n, in_turn);
        for (const auto & [to, from] : {std::pair(rows.k, k_), std::pair(rows.v, v_)}) {
            for (int head = 0; head < h_.n_kv_heads; ++head) {
                std::copy_n(row_of(from, head, first), n * h_.head_dim,
                            static_cast<uint16_t *>(to->data) + (head * to->ne[1] + rows.n_past) * h_.head_dim);
            }
        }
        std::vector<int64_t> probes;
        if (policy_->compresses && policy_->wants_probes()) {
            probes = choose_probes(policy_->options, n, uint64_t(first));
        }
        std::vector<float> queries;
        for (int64_t probe : probes) {
            queries.insert(queries.end(), q_ + (first + probe) * width, q_ + (first + probe + 1) * width);
        }
        cache_.end_prefill(0, n, probes, queries.data(), in_turn);
        cache_.commit(n);
        cache_.release_scratch();
    }

    // out [n_heads, head_dim]
    void decode(float * out) {
        const int64_t t = cache_.size(), dim = h_.head_dim;
        cache_.make_room(in_turn);
        cache_.release_scratch();
        const GgmlContext context(ggml_init({size_t(1) << 20, nullptr, false}));
        ggml_context * ctx = context.get();
        ggml_tensor * q = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, dim, h_.n_heads, 1);
        ggml_tensor * k = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, dim, h_.n_kv_heads, 1);
        ggml_tensor * v = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, dim, h_.n_kv_heads, 1);
        std::copy_n(q_ + t * h_.n_heads * dim, h_.n_heads * dim, static_cast<float *>(q->data));
        for (int head = 0; head < h_.n_kv_heads; ++head) {
            ggml_fp16_to_fp32_row(row_of(k_, head, t), static_cast<float *>(k->data) + head * dim, dim);
            ggml_fp16_to_fp32_row(row_of(v_, head, t), static_cast<float *>(v->data) + head * dim, dim);
        }
        const auto layer = device_.batch_view({&cache_.view(0)});
        layer->refresh();
        ggml_tensor * result = layer->attend(ctx, {q, k, v, number(ctx, cache_.window_size() + 1)});
        ggml_cgraph * graph = ggml_new_graph(ctx);
        ggml_build_forward_expand(graph, result);
        device_.compute(graph, std::atomic<bool>{false});
        std::copy_n(static_cast<const float *>(result->data), h_.n_heads * dim, out);
        cache_.advance();
    }

    KvStats stats() const { return cache_.stats(); }

  private:
    static void in_turn(int n, const std::function<void(int)> & task) {
        for (int i = 0; i < n; ++i) {
            task(i);
        }
    }

    static std::shared_ptr<const Policy> checked(std::shared_ptr<const Policy> policy) {
        if (policy->k_divisor == Divisor::balance) {
            throw ArgumentError("try_kv: the policy " + policy->options.policy +
                                " looks at the weights that read the values; accepted: any other");
        }
        return policy;
    }

    static ggml_tensor * number(ggml_context * ctx, int64_t n) {
        ggml_tensor * tensor = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, 1);
        *static_cast<int32_t *>(tensor->data) = static_cast<int32_t>(n);
        return tensor;
    }

    const uint16_t * row_of(const uint16_t * rows, int64_t head, int64_t token) const {
        return rows + (head * n_ + token) * h_.head_dim;
    }

    HParams h_;
    int64_t n_;
    const uint16_t * k_;  // [n_kv_heads, n, head_dim] f16
    const uint16_t * v_;
    const float * q_;  // [n, n_heads, head_dim]
    CpuDevice device_;
    OutputNorms norms_;
    std::shared_ptr<const Policy> policy_;
    KvCache cache_;
};

py::tuple try_kv(const KvOptions & kv, const Halves & k, const Halves & v, const Floats & q, const Turns & turns,
                 int sliding_window) {
    int64_t n = 0, n_decoded = 0;
    for (const auto & [together, apart] : turns) {
        n += together + apart;
        n_decoded += apart;
        if (together < 0 || apart < 0) {
            throw ArgumentError("try_kv got turns of fewer than no tokens; accepted: 0 or more");
        }
    }
    const bool fits = k.ndim() == 3 && v.ndim() == 3 && q.ndim() == 3 && n > 0 && k.shape(1) == n &&
                      std::equal(k.shape(), k.shape() + 3, v.shape()) && q.shape(0) == n && q.shape(2) == k.shape(2) &&
                      k.shape(0) > 0 && q.shape(1) > 0 && q.shape(1) % k.shape(0) == 0 && sliding_window >= 0;
    if (!fits) {
        throw ArgumentError(
            "try_kv got shapes that don't fit; accepted: k, v [n_kv_heads, n, head_dim], q [n, n_heads, head_dim], n "
            "tokens in all turns together");
    }
    const int n_heads = int(q.shape(1)), head_dim = int(q.shape(2));
    Floats out({py::ssize_t(n_decoded), py::ssize_t(n_heads), py::ssize_t(head_dim)});
    float * to = out.mutable_data();
    const uint16_t *keys = k.data(), *values = v.data();
    const float * queries = q.data();
    const int n_kv_heads = int(k.shape(0));
    KvStats stats;
    {
        const py::gil_scoped_release unlocked;
        Trial trial(kv, shape_of(n_heads, n_kv_heads, head_dim, sliding_window), n, keys, values, queries);
        for (const auto & [together, apart] : turns) {
            if (together > 0) {
                trial.prefill(together);
            }
            for (int64_t i = 0; i < apart; ++i, to += int64_t(n_heads) * head_dim) {
                trial.decode(to);
            }
        }
        stats = trial.stats();
    }
    return py::make_tuple(out, dict_of(stats));
}

}  // namespace

void bind_trial(py::module_ & m) {
    m.def("try_kv", &try_kv, py::kw_only(), py::arg("kv"), py::arg("k"), py::arg("v"), py::arg("q"), py::arg("turns"),
          py::arg("sliding_window"));
}

}  // namespace zipcache
