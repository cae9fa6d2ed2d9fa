#include "bindings/bind.h"
#include "common/error.h"
#include "engine/quantize.h"

namespace py = pybind11;

namespace zipcache {
namespace {

py::array_t<uint8_t> quantize(const py::array_t<float, py::array::c_style> & values, int number, int threads,
                              const std::string & name) {
    const ggml_type type = quantizable_type(number);
    if (values.ndim() != 2 || values.shape(0) < 1) {
        throw ArgumentError(name + " has " + std::to_string(values.ndim()) + " dimensions; accepted: rows and columns");
    }
    const RowsF32 rows = {values.data(), values.shape(0), values.shape(1), name};
    const auto n_bytes = static_cast<py::ssize_t>(quantized_bytes(rows, type));
    py::array_t<uint8_t> packed(std::vector<py::ssize_t>{values.shape(0), n_bytes / values.shape(0)});
    uint8_t * out = packed.mutable_data();
    const py::gil_scoped_release unlocked;
    Executor executor(thread_count(threads));
    quantize_rows(rows, type, executor, out);
    return packed;
}

}  // namespace

void bind_quantize(py::module_ & m) {
    m.def("quantize", quantize, py::arg("values").noconvert(), py::arg("type"), py::arg("threads"), py::arg("name"));
}

}  // namespace zipcache
