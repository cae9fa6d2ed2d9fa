#include "bindings/bind.h"
#include "engine/session.h"

namespace py = pybind11;

namespace zipcache {
namespace {

using Tokens = py::array_t<int32_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;

void prefill(Session & session, const Tokens & tokens, const PyProgress & progress) {
    const Progress told = progress_of(progress);
    const int32_t * data = tokens.data();
    const auto size = static_cast<size_t>(tokens.size());
    const py::gil_scoped_release unlocked;
    session.prefill(data, size, told);
}

Floats score(Session & session, const Tokens & tokens) {
    const int32_t * data = tokens.data();
    const auto size = static_cast<size_t>(tokens.size());
    Floats logits({py::ssize_t(size), py::ssize_t(session.model()->hparams().n_vocab)});
    float * out = logits.mutable_data();
    const py::gil_scoped_release unlocked;
    session.score(data, size, out);
    return logits;
}

Floats logits(const Session & session) {
    const std::vector<float> values = session.logits();
    return Floats(py::ssize_t(values.size()), values.data());
}

py::dict stats(const Session & session) {
    const SessionStats s = session.stats();
    using namespace py::literals;
    return py::dict("prefill_tokens"_a = s.prefill_tokens, "prefill_seconds"_a = s.prefill_seconds,
                    "scratch_bytes"_a = s.scratch_bytes, "decode_tokens"_a = s.decode_tokens,
                    "decode_seconds"_a = s.decode_seconds, "compress_seconds"_a = s.compress_seconds,
                    "dequantize_seconds"_a = s.dequantize_seconds);
}

void decode_batch(const std::vector<std::shared_ptr<Session>> & sessions, const std::vector<int32_t> & tokens) {
    std::vector<Session *> pointers;
    for (const auto & session : sessions) {
        pointers.push_back(session.get());
    }
    Session::decode_batch(pointers, tokens);
}

}  // namespace

KvOptions kv_options(std::string policy, double bits, double ratio, int high_bits, int low_bits, std::string saliency,
                     std::string probes, double random_probes, double recent_probes, std::string keys,
                     std::string values, bool rotate, bool per_head, int group, double heavy, double newest, int rank,
                     int window_rank, double outliers, int64_t window, int64_t recent, uint64_t seed) {
    const KvOptions options = {std::move(policy),
                               bits,
                               ratio,
                               high_bits,
                               low_bits,
                               std::move(saliency),
                               std::move(probes),
                               random_probes,
                               recent_probes,
                               std::move(keys),
                               std::move(values),
                               rotate,
                               per_head,
                               group,
                               heavy,
                               newest,
                               rank,
                               window_rank,
                               outliers,
                               window,
                               recent,
                               seed};
    check_options(options);
    return options;
}

py::dict dict_of(const KvStats & s) {
    using namespace py::literals;
    return py::dict("bytes"_a = s.bytes, "elements"_a = s.elements, "bits"_a = s.bits, "ratio"_a = s.ratio,
                    "n_tokens"_a = s.n_tokens, "compressed_bytes"_a = s.compressed_bytes,
                    "compressed_elements"_a = s.compressed_elements, "compressed_bits"_a = s.compressed_bits);
}

// Every call may wait for another thread's call on the same session, which may wait for the interpreter: release it.
void bind_session(py::module_ & m) {
    py::class_<KvOptions>(m, "KvOptions")
        .def(py::init(&kv_options), py::kw_only(), py::arg("policy"), py::arg("bits"), py::arg("ratio"),
             py::arg("high_bits"), py::arg("low_bits"), py::arg("saliency"), py::arg("probes"),
             py::arg("random_probes"), py::arg("recent_probes"), py::arg("keys"), py::arg("values"), py::arg("rotate"),
             py::arg("per_head"), py::arg("group"), py::arg("heavy"), py::arg("newest"), py::arg("rank"),
             py::arg("window_rank"), py::arg("outliers"), py::arg("window"), py::arg("recent"), py::arg("seed"));
    using Unlocked = py::call_guard<py::gil_scoped_release>;
    py::class_<Session, std::shared_ptr<Session>>(m, "Session")
        .def_property_readonly("n_ctx", &Session::n_ctx)
        .def_property_readonly("n_past", py::cpp_function(&Session::n_past, Unlocked()))
        .def_property_readonly("tokens", py::cpp_function(&Session::tokens, Unlocked()))
        .def("prefill", prefill, py::arg("tokens"), py::arg("progress"))
        .def("logits", logits)
        .def("decode", &Session::decode, Unlocked())
        .def("score", score)
        .def("kv_stats", [](const Session & session) { return dict_of(session.kv_stats()); })
        .def("stats", stats)
        .def("time_cache", &Session::time_cache, Unlocked(), py::arg("on"))
        .def_property_readonly("planned_bytes", py::cpp_function(&Session::planned_bytes, Unlocked()))
        .def(
            "fork", [](const Session & session) { return std::shared_ptr<Session>(session.fork()); }, Unlocked())
        .def("save", &Session::save, Unlocked(), py::arg("path"))
        .def_property_readonly("least_kept", py::cpp_function(&Session::least_kept, Unlocked()))
        .def("truncate", &Session::truncate, Unlocked())
        .def("reset", &Session::reset, Unlocked())
        .def("cancel", &Session::cancel);
    m.def("decode_batch", decode_batch, Unlocked(), py::arg("sessions"), py::arg("tokens"));
}

}  // namespace zipcache
