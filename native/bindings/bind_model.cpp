#include "bindings/bind.h"
#include "engine/model.h"
#include "engine/session.h"

namespace py = pybind11;

namespace zipcache {
namespace {

std::shared_ptr<Model> open(const std::string & path, const std::string & device, int gpu_layers, int threads,
                            bool repack, const PyProgress & progress) {
    ModelOptions options;
    options.device = device;
    options.gpu_layers = gpu_layers;
    options.threads = threads;
    options.repack = repack;
    options.progress = progress_of(progress);
    const py::gil_scoped_release unlocked;
    return Model::open(path, options);
}

py::object optional_text(const GgufFile & file, const char * key) {
    const auto value = file.maybe_string(key);
    return value ? py::object(py::str(std::string(*value))) : py::none();
}

// The text of a special token, for chat templates; "" if the model has none.
std::string token_text(const Model & model, int32_t token) {
    if (!model.has_tokenizer() || token < 0) {
        return {};
    }
    return std::string(model.tokenizer().piece(token, true));
}

// The tensor type most of the weights' bytes are in.
std::string main_type(const GgufFile & file) {
    std::vector<size_t> bytes(GGML_TYPE_COUNT);
    size_t best = 0;
    for (const GgufTensor & tensor : file.tensors()) {
        bytes[tensor.type] += tensor.nbytes;
        best = bytes[tensor.type] > bytes[best] ? size_t(tensor.type) : best;
    }
    return ggml_type_name(static_cast<ggml_type>(best));
}

py::dict info(const Model & model) {
    const HParams & h = model.hparams();
    const GgufFile & file = model.file();
    int64_t n_params = 0;
    for (const GgufTensor & tensor : file.tensors()) {
        n_params += tensor.ne[0] * tensor.ne[1] * tensor.ne[2] * tensor.ne[3];
    }
    const bool text = model.has_tokenizer();
    using namespace py::literals;
    return py::dict("path"_a = file.path(), "file_bytes"_a = file.size(), "architecture"_a = h.architecture,
                    "name"_a = optional_text(file, "general.name"), "quantization"_a = main_type(file),
                    "n_params"_a = n_params, "n_vocab"_a = h.n_vocab, "n_layers"_a = h.n_layers, "n_embd"_a = h.n_embd,
                    "n_heads"_a = h.n_heads, "n_kv_heads"_a = h.n_kv_heads, "head_dim"_a = h.head_dim,
                    "n_ctx_train"_a = h.n_ctx_train, "sliding_window"_a = h.sliding_window,
                    "device"_a = model.executor().device().name(), "gpu_layers"_a = model.gpu_layers(),
                    "threads"_a = model.executor().n_threads(),
                    "weights_mapped"_a = model.network().storage->mapped_bytes(),
                    "weights_repacked"_a = model.network().storage->repacked_bytes(),
                    "weights_device"_a = model.network().storage->device_bytes(), "has_tokenizer"_a = text,
                    "chat_template"_a = optional_text(file, "tokenizer.chat_template"),
                    "bos_token"_a = text ? token_text(model, model.tokenizer().spec().bos) : "",
                    "eos_token"_a = text ? token_text(model, model.tokenizer().spec().eos) : "",
                    "add_bos"_a = text && model.tokenizer().spec().add_bos);
}

std::vector<int32_t> tokenize(const Model & model, const py::bytes & text, std::optional<bool> add_bos, bool special) {
    const Tokenizer & tokenizer = model.tokenizer();
    const auto bytes = static_cast<std::string_view>(text);
    const py::gil_scoped_release unlocked;
    return tokenizer.tokenize(bytes, add_bos.value_or(tokenizer.spec().add_bos), !add_bos && tokenizer.spec().add_eos,
                              special);
}

py::bytes detokenize(const Model & model, const std::vector<int32_t> & ids, bool special) {
    return model.tokenizer().detokenize(ids.data(), ids.size(), special);
}

}  // namespace

void bind_model(py::module_ & m) {
    py::class_<Model, std::shared_ptr<Model>>(m, "Model")
        .def(py::init(&open), py::arg("path"), py::arg("device"), py::arg("gpu_layers"), py::arg("threads"),
             py::arg("repack"), py::arg("progress"))
        .def_property_readonly("info", info)
        .def(
            "free_memory", [](const Model & model) { return model.executor().device().free_memory().free; },
            py::call_guard<py::gil_scoped_release>())
        .def("tokenize", tokenize, py::arg("text"), py::arg("add_bos"), py::arg("special"))
        .def("detokenize", detokenize, py::arg("ids"), py::arg("special"))
        .def(
            "piece",
            [](const Model & model, int32_t token, bool special) {
                return py::bytes(std::string(model.tokenizer().piece(token, special)));
            },
            py::arg("token"), py::arg("special"))
        .def("is_end", [](const Model & model, int32_t token) { return model.tokenizer().is_end(token); })
        .def(
            "session",
            [](std::shared_ptr<Model> model, int64_t n_ctx, const KvOptions & kv) {
                return std::make_shared<Session>(std::move(model), n_ctx, kv);
            },
            py::arg("n_ctx"), py::arg("kv"))
        .def(
            "load_session",
            [](const std::shared_ptr<Model> & model, const std::string & path) {
                return std::shared_ptr<Session>(Session::load(model, path));
            },
            py::call_guard<py::gil_scoped_release>(), py::arg("path"));
}

}  // namespace zipcache
