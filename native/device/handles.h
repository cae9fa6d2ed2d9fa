#pragma once
#include <memory>

#include "ggml-backend.h"
#include "ggml.h"

namespace zipcache {

struct GgmlContextDeleter {
    void operator()(ggml_context * context) const { ggml_free(context); }
};
struct GgmlBufferDeleter {
    void operator()(ggml_backend_buffer_t buffer) const { ggml_backend_buffer_free(buffer); }
};
struct GgmlBackendDeleter {
    void operator()(ggml_backend_t backend) const { ggml_backend_free(backend); }
};
using GgmlContext = std::unique_ptr<ggml_context, GgmlContextDeleter>;
using GgmlBuffer = std::unique_ptr<ggml_backend_buffer, GgmlBufferDeleter>;
using GgmlBackend = std::unique_ptr<ggml_backend, GgmlBackendDeleter>;

}  // namespace zipcache
