#include "model/weights.h"

#include <algorithm>

#include "common/error.h"
#include "common/mapped_file.h"
#include "ggml-cpu.h"

namespace zipcache {
namespace {

std::string shape_text(const int64_t * ne, size_t n) {
    std::string text = "[";
    for (size_t i = 0; i < n; ++i) {
        text += (i ? ", " : "") + std::to_string(ne[i]);
    }
    return text + "]";
}

bool computable(ggml_type type) {
    return ggml_get_type_traits_cpu(type)->vec_dot && (type == GGML_TYPE_F32 || ggml_get_type_traits(type)->to_float);
}

// All extra layouts (repack, AMX, ...) that the CPU backend offers.
std::vector<ggml_backend_buffer_type_t> extra_layouts(ggml_backend_dev_t device) {
    std::vector<ggml_backend_buffer_type_t> layouts;
    auto get = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
    if (get) {
        for (auto * list = get(device); list && *list; ++list) {
            layouts.push_back(*list);
        }
    }
    return layouts;
}

}  // namespace

ggml_backend_buffer_type_t preferred_layout(ggml_type type, int64_t n_columns, int64_t n_rows) {
    ggml_backend_dev_t device = ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
    GgmlContext scratch(ggml_init({3 * ggml_tensor_overhead(), nullptr, true}));
    ggml_tensor * weight = ggml_new_tensor_2d(scratch.get(), type, n_columns, n_rows);
    ggml_tensor * input = ggml_new_tensor_2d(scratch.get(), GGML_TYPE_F32, n_columns, 512);
    ggml_tensor * product = ggml_mul_mat(scratch.get(), weight, input);
    for (auto layout : extra_layouts(device)) {
        // the backend answers by the buffer a weight lies in; one without data is enough to ask
        GgmlBuffer probe(ggml_backend_buft_alloc_buffer(layout, 0));
        if (!probe) {
            continue;
        }
        weight->buffer = probe.get();
        if (ggml_backend_dev_supports_op(device, product)) {
            return layout;
        }
    }
    return nullptr;
}

Weights::Weights(std::shared_ptr<const GgufFile> file, const WeightsPlace & place)
    : file_(std::move(file)), place_(place), device_(place.device) {
    // a tied embedding is requested twice, and matrices are views of stacks
    for (GgmlContext * context : {&context_, &device_context_}) {
        context->reset(ggml_init({(3 * file_->tensors().size() + 8) * ggml_tensor_overhead(), nullptr, true}));
    }
    // ggml only reads weights; the mapping itself is read-only
    mapping_.reset(ggml_backend_cpu_buffer_from_ptr(const_cast<uint8_t *>(file_->data()), file_->size()));
    ggml_backend_buffer_set_usage(mapping_.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
}

const GgufTensor * Weights::request(const std::string & name, const std::vector<int64_t> & shape, bool required) const {
    const GgufTensor * source = file_->find_tensor(name);
    if (!source) {
        if (required) {
            throw ModelError("the model file has no tensor " + name + " " + shape_text(shape.data(), shape.size()));
        }
        return nullptr;
    }
    for (size_t i = 0; i < source->ne.size(); ++i) {
        if (source->ne[i] != (i < shape.size() ? shape[i] : 1)) {
            throw ModelError("tensor " + name + " has the shape " + shape_text(source->ne.data(), source->ne.size()) +
                             "; accepted: " + shape_text(shape.data(), shape.size()));
        }
    }
    return source;
}

ggml_tensor * Weights::new_tensor(const GgufTensor & source) {
    ggml_context * context = (device_ ? device_context_ : context_).get();
    ggml_tensor * tensor = ggml_new_tensor(context, source.type, GGML_MAX_DIMS, source.ne.data());
    ggml_set_name(tensor, source.name.c_str());
    return tensor;
}

ggml_tensor * Weights::plain(const std::string & name, const std::vector<int64_t> & shape, bool required) {
    const GgufTensor * source = request(name, shape, required);
    if (!source) {
        return nullptr;
    }
    // the arithmetic on norms and biases is f32 only; embedding rows are converted
    const bool readable = shape.size() == 1 ? source->type == GGML_TYPE_F32 : computable(source->type);
    if (!readable) {
        throw ModelError("tensor " + name + " is " + ggml_type_name(source->type) +
                         "; accepted: " + (shape.size() == 1 ? "f32" : "a type that the CPU backend computes"));
    }
    if (device_) {
        return on_device(*source);
    }
    ggml_tensor * tensor = new_tensor(*source);
    use_in_place(tensor, *source);
    return tensor;
}

// A tied embedding serves twice.
ggml_tensor * Weights::on_device(const GgufTensor & source) {
    ggml_tensor *& tensor = on_device_[&source];
    if (!tensor) {
        tensor = new_tensor(source);
        device_bytes_ += ggml_backend_buft_get_alloc_size(device_->memory(), tensor);
    }
    return tensor;
}

ggml_tensor * Weights::stack(const std::vector<std::string> & names) {
    std::vector<const GgufTensor *> sources;
    int64_t n_rows = 0;
    for (const std::string & name : names) {
        const GgufTensor * source = file_->find_tensor(name);
        if (!device_ || !source || source->type != file_->find_tensor(names[0])->type ||
            source->ne[0] != file_->find_tensor(names[0])->ne[0] || on_device_.count(source)) {
            return nullptr;
        }
        sources.push_back(source);
        n_rows += source->ne[1] * source->ne[2] * source->ne[3];
    }
    ggml_context * context = device_context_.get();
    ggml_tensor * all = ggml_new_tensor_2d(context, sources[0]->type, sources[0]->ne[0], n_rows);
    device_bytes_ += ggml_backend_buft_get_alloc_size(device_->memory(), all);
    size_t offset = 0;
    for (const GgufTensor * source : sources) {
        on_device_[source] = ggml_view_2d(context, all, source->ne[0], source->ne[1], all->nb[1], offset);
        offset += source->nbytes;
    }
    return all;
}

void Weights::use_in_place(ggml_tensor * tensor, const GgufTensor & source) {
    ggml_backend_tensor_alloc(mapping_.get(), tensor, const_cast<uint8_t *>(source.data));
    if (in_place_.insert(&source).second) {  // a tied embedding serves twice
        mapped_bytes_ += source.nbytes;
    }
}

const GgufTensor * Weights::request_matrix(const std::string & name, const std::vector<int64_t> & shape,
                                           bool required) const {
    const GgufTensor * source = request(name, shape, required);
    if (source && !computable(source->type)) {
        throw ModelError("tensor " + name + " is " + ggml_type_name(source->type) +
                         ", a type that the CPU backend cannot multiply");
    }
    return source;
}

ggml_tensor * Weights::experts(const std::string & name, const std::vector<int64_t> & shape) {
    const GgufTensor * source = request_matrix(name, shape, true);
    if (device_) {
        return on_device(*source);
    }
    ggml_tensor * tensor = new_tensor(*source);
    use_in_place(tensor, *source);
    return tensor;
}

ggml_tensor * Weights::matrix(const std::string & name, const std::vector<int64_t> & shape, bool required) {
    const GgufTensor * source = request_matrix(name, shape, required);
    if (!source) {
        return nullptr;
    }
    if (device_) {
        return on_device(*source);
    }
    auto layout = place_.repack ? preferred_layout(source->type, source->ne[0], source->ne[1]) : nullptr;
    ggml_tensor * tensor = new_tensor(*source);
    if (!layout) {
        use_in_place(tensor, *source);
        return tensor;
    }
    repacked_.push_back({tensor, source, layout});
    repacked_bytes_ += source->nbytes;
    return tensor;
}

void Weights::send(const std::function<void(size_t)> & advanced) {
    device_buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(device_context_.get(), place_.device->memory()));
    if (!device_buffer_) {
        throw ModelError(place_.device->name() + " has not the memory for " + std::to_string(device_bytes_ >> 20) +
                         " MiB of weights");
    }
    ggml_backend_buffer_set_usage(device_buffer_.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    for (const auto & [source, tensor] : on_device_) {
        place_.device->write(tensor->data, source->data, source->nbytes);
        advanced(source->nbytes);
    }
}

void Weights::repack(const std::function<void(size_t)> & advanced) {
    for (const Repacked & item : repacked_) {
        GgmlBuffer buffer(
            ggml_backend_buft_alloc_buffer(item.layout, ggml_backend_buft_get_alloc_size(item.layout, item.tensor)));
        if (!buffer) {
            throw ModelError("not enough memory for " + std::to_string(item.source->nbytes) + " bytes of " +
                             item.source->name);
        }
        ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        ggml_backend_tensor_alloc(buffer.get(), item.tensor, ggml_backend_buffer_get_base(buffer.get()));
        ggml_backend_tensor_set(item.tensor, item.source->data, 0, item.source->nbytes);
        repack_buffers_.push_back(std::move(buffer));
        release_pages(item.source->data, item.source->nbytes);
        advanced(item.source->nbytes);
    }
}

void Weights::load(const Progress & progress) {
    const size_t all = device_bytes_ + repacked_bytes_;
    size_t done = 0;
    auto advanced = [&](size_t n_bytes) {
        done += n_bytes;
        if (progress) {
            progress(std::min(1.0f, float(done) / float(all)));
        }
    };
    if (place_.device) {
        send(advanced);
    }
    repack(advanced);
    if (progress && all == 0) {
        progress(1.0f);
    }
}

}  // namespace zipcache
