#include "bindings/bind.h"
#include "engine/generate.h"

namespace py = pybind11;

namespace zipcache {
namespace {

SamplerOptions sampler_options(float temperature, int32_t top_k, float top_p, float min_p, float repetition_penalty,
                               float presence_penalty, float frequency_penalty, int32_t penalty_last_n,
                               std::vector<std::pair<int32_t, float>> logit_bias, uint64_t seed) {
    SamplerOptions o;
    o.temperature = temperature;
    o.top_k = top_k;
    o.top_p = top_p;
    o.min_p = min_p;
    o.repetition_penalty = repetition_penalty;
    o.presence_penalty = presence_penalty;
    o.frequency_penalty = frequency_penalty;
    o.penalty_last_n = penalty_last_n;
    o.logit_bias = std::move(logit_bias);
    o.seed = seed;
    return o;
}

std::unique_ptr<Generation> generation(std::shared_ptr<Session> session,
                                       const py::array_t<int32_t, py::array::c_style> & tokens, int64_t max_tokens,
                                       const SamplerOptions & sampler, std::vector<std::string> stop,
                                       const PyProgress & progress) {
    std::vector<int32_t> prompt(tokens.data(), tokens.data() + tokens.size());
    return std::make_unique<Generation>(std::move(session), std::move(prompt),
                                        GenerateOptions{max_tokens, sampler, std::move(stop)}, progress_of(progress));
}

py::object next(Generation & generation) {
    std::optional<Piece> piece;
    {
        const py::gil_scoped_release unlocked;
        piece = generation.next();
    }
    if (!piece) {
        return py::none();
    }
    return py::make_tuple(piece->text, piece->token, piece->logprob);
}

py::object finish_reason(const Generation & generation) {
    switch (generation.finish()) {
        case Finish::stop: return py::str("stop");
        case Finish::length: return py::str("length");
        default: return py::none();
    }
}

}  // namespace

void bind_generate(py::module_ & m) {
    py::class_<SamplerOptions>(m, "SamplerOptions")
        .def(py::init(&sampler_options), py::kw_only(), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"),
             py::arg("min_p"), py::arg("repetition_penalty"), py::arg("presence_penalty"), py::arg("frequency_penalty"),
             py::arg("penalty_last_n"), py::arg("logit_bias"), py::arg("seed"));
    py::class_<Generation>(m, "Generation")
        .def(py::init(&generation), py::arg("session"), py::arg("tokens"), py::arg("max_tokens"), py::arg("sampler"),
             py::arg("stop"), py::arg("progress"))
        .def("next", next)
        .def_property_readonly("finish_reason", finish_reason);
    m.def("decode_newest", &Generation::decode_newest, py::call_guard<py::gil_scoped_release>(), py::arg("replies"));
}

}  // namespace zipcache
