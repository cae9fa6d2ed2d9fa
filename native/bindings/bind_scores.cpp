#include "bindings/bind.h"
#include "engine/prompt_scores.h"

namespace py = pybind11;

namespace zipcache {
namespace {

template <class T>
py::array_t<T> array_of(const std::vector<T> & values, const std::vector<py::ssize_t> & shape) {
    return py::array_t<T>(shape, values.data());
}

py::dict score_prompt_of(Model & model, const py::array_t<int32_t, py::array::c_style> & tokens,
                         const KvOptions & options, const PyProgress & progress) {
    const Progress told = progress_of(progress);
    const int32_t * data = tokens.data();
    const auto n = static_cast<size_t>(tokens.size());
    PromptScores scores;
    {
        const py::gil_scoped_release unlocked;
        scores = score_prompt(model, data, n, options, told);
    }
    const HParams & h = model.hparams();
    const auto n_tokens = static_cast<py::ssize_t>(n);
    using namespace py::literals;
    return py::dict("probes"_a = array_of(scores.probes, {static_cast<py::ssize_t>(scores.probes.size())}),
                    "score"_a = array_of(scores.score, {h.n_layers, h.n_kv_heads, n_tokens}),
                    "seen"_a = array_of(scores.seen, {h.n_layers, n_tokens}));
}

}  // namespace

void bind_scores(py::module_ & m) {
    m.def("score_prompt", score_prompt_of, py::arg("model"), py::arg("tokens"), py::arg("options"),
          py::arg("progress"));
}

}  // namespace zipcache
