#include "bindings/bind.h"
#include "cuda/cuda.h"
#include "device/devices.h"
#include "engine/model.h"
#include "ggml-cpu.h"
#include "ggml-zipcache.h"

namespace py = pybind11;

namespace zipcache {
namespace {

constexpr uint64_t kLongArray = 8;  // longer arrays are shown by type and length

py::object text(std::string_view bytes) {
    return py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(bytes.data(), py::ssize_t(bytes.size()), "replace"));
}

py::object array_value(const GgufFile & file, const GgufEntry & entry) {
    if (entry.count > kLongArray) {
        return py::make_tuple(gguf_type_name(entry.element_type), entry.count);
    }
    py::list list;
    if (entry.element_type == GgufType::string) {
        for (auto string : entry.strings) {
            list.append(text(string));
        }
    } else if (entry.element_type == GgufType::f32 || entry.element_type == GgufType::f64) {
        for (float number : file.numbers(entry.key)) {
            list.append(number);
        }
    } else {
        for (int64_t integer : file.integers(entry.key)) {
            list.append(integer);
        }
    }
    return std::move(list);
}

py::object value_of(const GgufFile & file, const GgufEntry & entry) {
    switch (entry.type) {
        case GgufType::array: return array_value(file, entry);
        case GgufType::string: return text(entry.strings.at(0));
        case GgufType::boolean: return py::bool_(*file.maybe_boolean(entry.key));
        case GgufType::f32:
        case GgufType::f64: return py::float_(file.number(entry.key));
        case GgufType::u64: {
            uint64_t value;
            std::memcpy(&value, entry.data, sizeof(value));
            return py::int_(value);
        }
        default: return py::int_(file.integer(entry.key));
    }
}

py::dict inspect(const std::string & path, int64_t n_ctx, bool repack, const KvOptions & kv) {
    const auto file = GgufFile::open(path);
    py::dict metadata;
    for (const GgufEntry & entry : file->entries()) {
        metadata[text(entry.key)] = value_of(*file, entry);
    }
    py::list tensors;
    for (const GgufTensor & tensor : file->tensors()) {
        tensors.append(
            py::make_tuple(text(tensor.name), ggml_type_name(tensor.type), py::cast(tensor.ne), tensor.nbytes));
    }
    const MemoryPlan plan = plan_memory(file, n_ctx, repack, kv);
    using namespace py::literals;
    return py::dict("version"_a = file->version(), "file_bytes"_a = file->size(), "metadata"_a = metadata,
                    "tensors"_a = tensors,
                    "plan"_a = py::dict("n_ctx"_a = plan.n_ctx, "weights_mapped"_a = plan.weights_mapped,
                                        "weights_repacked"_a = plan.weights_repacked, "kv_bytes"_a = plan.kv_bytes,
                                        "scratch_bytes"_a = plan.scratch_bytes));
}

py::dict ggml_build() {
    py::dict features;
    ggml_backend_reg_t cpu = ggml_backend_cpu_reg();
    auto get = reinterpret_cast<ggml_backend_get_features_t>(
        ggml_backend_reg_get_proc_address(cpu, "ggml_backend_get_features"));
    for (auto * feature = get ? get(cpu) : nullptr; feature && feature->name; ++feature) {
        features[feature->name] =
            std::string(feature->value) == "1" ? py::object(py::bool_(true)) : py::str(feature->value);
    }
    using namespace py::literals;
    return py::dict("version"_a = ggml_version(), "commit"_a = ggml_commit(), "source"_a = ZIPCACHE_GGML_SOURCE,
                    "features"_a = features, "kernels"_a = ggml_zipcache_cpu_name(ggml_zipcache_cpu_level()));
}

py::dict devices() {
    const CudaDevices & cuda = cuda_devices();
    using namespace py::literals;
    return py::dict("descriptions"_a = cuda.descriptions, "missing"_a = cuda.missing);
}

py::dict find_device(const std::string & name) {
    const Executor executor(1, open_device(name));
    const Device & device = executor.device();
    const FreeMemory memory = device.free_memory();
    using namespace py::literals;
    return py::dict("name"_a = device.name(), "description"_a = device.description(), "free"_a = memory.free,
                    "total"_a = memory.total);
}

}  // namespace

void bind_inspect(py::module_ & m) {
    m.def("inspect", inspect, py::arg("path"), py::arg("n_ctx"), py::arg("repack"), py::arg("kv"));
    m.def("ggml_build", ggml_build);
    m.def("cuda_devices", devices);
    m.def("find_device", find_device, py::arg("name"));
}

}  // namespace zipcache
