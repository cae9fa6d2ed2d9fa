// The Python module zipcache_rt._core. Declarations only; its shape is python/zipcache_rt/_core.pyi.
#include "bindings/bind.h"
#include "common/error.h"
#include "ggml.h"

namespace py = pybind11;

namespace zipcache {
namespace {

void silence(ggml_log_level, const char *, void *) {}

py::object & class_of(ErrorKind kind) {
    static py::object classes[5];
    return classes[static_cast<int>(kind)];
}

}  // namespace

Progress progress_of(const PyProgress & callable) {
    if (!callable) {
        return nullptr;
    }
    // the copy of a Python object may be dropped where the interpreter lock is not held
    std::shared_ptr<py::function> function(new py::function(*callable), [](py::function * f) {
        const py::gil_scoped_acquire lock;
        delete f;
    });
    return [function](float done) {
        const py::gil_scoped_acquire lock;
        (*function)(done);
    };
}

void bind_errors(py::module_ & m) {
    py::exception<Error> base(m, "ZipCacheError");
    const std::pair<ErrorKind, const char *> kinds[] = {{ErrorKind::file, "FileError"},
                                                        {ErrorKind::model, "ModelError"},
                                                        {ErrorKind::context, "ContextError"},
                                                        {ErrorKind::argument, "ArgumentError"},
                                                        {ErrorKind::cancelled, "CancelledError"}};
    for (const auto & [kind, name] : kinds) {
        class_of(kind) = py::exception<Error>(m, name, base);
    }
    py::register_exception_translator([](std::exception_ptr pointer) {
        try {
            std::rethrow_exception(pointer);
        } catch (const Error & error) {
            PyErr_SetString(class_of(error.kind()).ptr(), error.what());
        }
    });
}

}  // namespace zipcache

PYBIND11_MODULE(_core, m) {
    ggml_log_set(zipcache::silence, nullptr);  // a library does not print
    zipcache::bind_errors(m);
    zipcache::bind_inspect(m);
    zipcache::bind_session(m);  // before bind_model, whose signatures name it
    zipcache::bind_model(m);
    zipcache::bind_generate(m);
    zipcache::bind_bench(m);
    zipcache::bind_trial(m);
    zipcache::bind_quantize(m);
    zipcache::bind_scores(m);
}
