#include "common/error.h"
#include "graph/forward.h"

namespace zipcache {

HostTensor::HostTensor(ggml_type type, int64_t n_columns, int64_t n_rows)
    : context(ggml_init({ggml_tensor_overhead(), nullptr, true})) {
    tensor = ggml_new_tensor_2d(context.get(), type, n_columns, n_rows);
    buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(context.get(), ggml_backend_cpu_buffer_type()));
    if (!buffer) {
        throw ContextError("not enough memory for " + std::to_string(ggml_nbytes(tensor)) + " bytes of activations");
    }
}

}  // namespace zipcache
