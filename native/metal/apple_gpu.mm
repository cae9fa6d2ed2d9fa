// Apple's calls, and nothing else: the rest of the backend is plain C++ behind metal/gpu.h.
//
// How it keeps in step with ggml-metal, which was read for it: ggml commits its command buffers to the one queue of its
// device, in order, and its buffers are tracked resources in the memory that they share with the host. So ours are
// committed to the same queue, between ggml's, and name the very same MTLBuffers by useResource: Metal itself then
// holds a kernel back until what wrote its buffers before has ended. No event is needed, and none would order the host.
// Both the queue and the buffers come from ggml-metal's private header, which is why this needs its source.
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "common/error.h"
#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "ggml-metal.h"
#include "ggml-metal/ggml-metal-device.h"
#include "metal/gpu.h"
#include "metal/library.h"

namespace zipcache::metal {
namespace {

std::string text(NSString * from) {
    const char * bytes = [from UTF8String];
    return bytes ? bytes : "";
}

std::string what(NSError * error) {
    return error ? text([error localizedDescription]) : "no reason given";
}

id<MTLLibrary> compile(id<MTLDevice> device) {
    MTLCompileOptions * options = [[MTLCompileOptions alloc] init];
    options.languageVersion = MTLLanguageVersion3_0;
    options.fastMathEnabled = NO;  // infinities count, and codes must not depend on how divisions round
    NSError * error = nil;
    id<MTLLibrary> library = [device newLibraryWithSource:[NSString stringWithUTF8String:kLibrarySource]
                                                  options:options
                                                    error:&error];
    if (!library) {
        throw ModelError("Metal did not compile our kernels: " + what(error));
    }
    return library;
}

// The compiled one where the build made one that this system reads, else its source.
id<MTLLibrary> load_library(id<MTLDevice> device) {
    if (kLibraryBytes > 0) {
        dispatch_data_t data = dispatch_data_create(kLibrary, kLibraryBytes, nullptr, DISPATCH_DATA_DESTRUCTOR_DEFAULT);
        NSError * error = nil;
        if (id<MTLLibrary> library = [device newLibraryWithData:data error:&error]) {
            return library;
        }
    }
    return compile(device);
}

// The buffer that holds a tensor of ggml's Metal memory, and where.
ggml_metal_buffer_id place_of(const ggml_tensor * tensor) {
    ggml_backend_buffer_t buffer = tensor->view_src ? tensor->view_src->buffer : tensor->buffer;
    const ggml_metal_buffer_id place =
        ggml_metal_buffer_get_id(static_cast<ggml_metal_buffer_t>(buffer->context), tensor);
    if (!place.metal) {
        throw ModelError("Metal: a tensor that lies in no buffer of the GPU");
    }
    return place;
}

class AppleGpu : public Gpu {
  public:
    AppleGpu() : backend_(ggml_backend_metal_init()) {
        if (!backend_) {
            throw ModelError("ggml could not start the Metal device");
        }
        auto * device = static_cast<ggml_metal_device_t>(ggml_backend_get_device(backend_.get())->context);
        device_ = (__bridge id<MTLDevice>) ggml_metal_device_get_obj(device);
        queue_ = (__bridge id<MTLCommandQueue>) ggml_metal_device_get_queue(device);
        @autoreleasepool {
            library_ = load_library(device_);
        }
        nothing_.reset(ggml_init({ggml_graph_overhead_custom(1, false), nullptr, true}));
    }

    ~AppleGpu() override {
        commit();
        for (id<MTLCommandBuffer> work : committed_) {
            [work waitUntilCompleted];
        }
    }

    std::string description() const override {
        return ggml_backend_dev_description(ggml_backend_get_device(backend_.get()));
    }

    FreeMemory free_memory() const override {
        FreeMemory memory = {};
        ggml_backend_dev_memory(ggml_backend_get_device(backend_.get()), &memory.free, &memory.total);
        memory.free = memory.free > memory.total ? 0 : memory.free;  // a difference that may be below 0
        return memory;
    }

    ggml_backend_buffer_type_t memory() const override { return ggml_backend_get_default_buffer_type(backend_.get()); }

    bool computes(const ggml_tensor * node) const override { return ggml_backend_supports_op(backend_.get(), node); }

    // Metal tells nobody how many cores there are: four for each of 16 of them.
    int n_groups() const override { return 64; }

    GpuBuffer allocate(size_t n_bytes) override {
        // asked first, for ggml ends the process where it gets none
        if (n_bytes > [device_ maxBufferLength] || n_bytes > free_memory().free) {
            return {};
        }
        ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(memory(), n_bytes);
        if (!buffer) {
            return {};
        }
        ggml_tensor first = {};
        first.type = GGML_TYPE_I8;
        std::fill(first.ne, first.ne + GGML_MAX_DIMS, int64_t(1));
        std::fill(first.nb, first.nb + GGML_MAX_DIMS, size_t(1));
        first.buffer = buffer;
        first.data = ggml_backend_buffer_get_base(buffer);
        id<MTLBuffer> metal = (__bridge id<MTLBuffer>) place_of(&first).metal;
        ours_[buffer] = metal;
        if (encoder_) {
            use(metal);
        }
        return {buffer, [metal gpuAddress]};
    }

    void release(ggml_backend_buffer_t buffer) override {
        ours_.erase(buffer);
        ggml_backend_buffer_free(buffer);
    }

    ggml_zipcache_metal_address address(const ggml_tensor * tensor) override {
        const ggml_metal_buffer_id place = place_of(tensor);
        id<MTLBuffer> metal = (__bridge id<MTLBuffer>) place.metal;
        open_encoder();
        use(metal);
        return [metal gpuAddress] + place.offs;
    }

    void encode(const ggml_zipcache_metal_dispatch & d) override {
        @autoreleasepool {
            id<MTLComputePipelineState> state = pipeline(d.kernel);
            if ([state maxTotalThreadsPerThreadgroup] < d.threads) {
                throw ModelError(std::string("Metal: ") + d.kernel + " needs " + std::to_string(d.threads) +
                                 " threads in a threadgroup, and this GPU runs it with at most " +
                                 std::to_string([state maxTotalThreadsPerThreadgroup]));
            }
            open_encoder();
            [encoder_ setComputePipelineState:state];
            [encoder_ setBytes:d.params length:d.params_bytes atIndex:0];
            [encoder_ setThreadgroupMemoryLength:d.threadgroup_bytes atIndex:0];
            [encoder_ dispatchThreadgroups:MTLSizeMake(d.groups[0], d.groups[1], d.groups[2])
                     threadsPerThreadgroup:MTLSizeMake(d.threads, 1, 1)];
        }
    }

    // A view of the graph, not a graph of its own: ggml fuses nodes by how often the whole graph uses them.
    void run(ggml_cgraph * graph, int first, int last) override {
        commit();
        ggml_cgraph stretch = ggml_graph_view(graph, first, last);
        throw_if_failed(ggml_backend_graph_compute_async(backend_.get(), &stretch));
        ggml_ran_ = true;
    }

    void wait() override {
        commit();
        ggml_backend_synchronize(backend_.get());
        const std::vector<id<MTLCommandBuffer>> ended = std::exchange(committed_, {});
        for (id<MTLCommandBuffer> work : ended) {
            [work waitUntilCompleted];
        }
        for (id<MTLCommandBuffer> work : ended) {
            if ([work status] != MTLCommandBufferStatusCompleted) {
                throw ContextError("Metal could not run our kernels: " + what([work error]));
            }
        }
        if (std::exchange(ggml_ran_, false)) {  // what failed there is only told to who asks for more
            ggml_reset(nothing_.get());
            throw_if_failed(
                ggml_backend_graph_compute_async(backend_.get(), ggml_new_graph_custom(nothing_.get(), 1, false)));
        }
    }

  private:
    static void throw_if_failed(ggml_status status) {
        if (status != GGML_STATUS_SUCCESS) {
            throw ContextError(std::string("ggml could not compute the graph: ") + ggml_status_to_string(status));
        }
    }

    id<MTLComputePipelineState> pipeline(const char * kernel) {
        __strong id<MTLComputePipelineState> & state = pipelines_[kernel];
        if (!state) {
            NSError * error = nil;
            id<MTLFunction> function = [library_ newFunctionWithName:[NSString stringWithUTF8String:kernel]];
            if (function) {
                state = [device_ newComputePipelineStateWithFunction:function error:&error];
            }
            if (!state) {
                throw ModelError(std::string("Metal has no kernel ") + kernel + ": " + what(error));
            }
        }
        return state;
    }

    // Addresses hide from Metal what a kernel touches; so it is told of all that it may.
    void use(id<MTLBuffer> buffer) { [encoder_ useResource:buffer usage:MTLResourceUsageRead | MTLResourceUsageWrite]; }

    // Of the serial type: a dispatch sees what those before it wrote.
    void open_encoder() {
        if (encoder_) {
            return;
        }
        @autoreleasepool {
            work_ = [queue_ commandBuffer];
            encoder_ = [work_ computeCommandEncoder];
        }
        if (!encoder_) {
            throw ContextError("Metal has no room for more commands");
        }
        for (const auto & [buffer, metal] : ours_) {
            use(metal);
        }
    }

    void commit() {
        if (encoder_) {
            [encoder_ endEncoding];
            [work_ commit];
            committed_.push_back(work_);
            encoder_ = nil;
            work_ = nil;
        }
    }

    GgmlBackend backend_;
    id<MTLDevice> device_;
    id<MTLCommandQueue> queue_;
    id<MTLLibrary> library_;
    std::map<std::string, id<MTLComputePipelineState>> pipelines_;
    std::map<ggml_backend_buffer_t, id<MTLBuffer>> ours_;
    id<MTLCommandBuffer> work_ = nil;
    id<MTLComputeCommandEncoder> encoder_ = nil;
    std::vector<id<MTLCommandBuffer>> committed_;  // since the last wait
    GgmlContext nothing_;                          // of a graph without nodes
    bool ggml_ran_ = false;
};

}  // namespace

FoundGpu find_gpu() {
    if (@available(macOS 13.0, *)) {
        @autoreleasepool {
            id<MTLDevice> device = MTLCreateSystemDefaultDevice();
            if (!device) {
                return {false, "this system has no Metal device"};
            }
            const std::string name = text([device name]);
            if (![device hasUnifiedMemory] || ![device supportsFamily:MTLGPUFamilyApple7]) {
                return {false, name + " is none of Apple's own GPUs since M1, for which our kernels are made"};
            }
            return {true, name};
        }
    }
    return {false, "our kernels need macOS 13"};
}

std::unique_ptr<Gpu> open_gpu() {
    return std::make_unique<AppleGpu>();
}

}  // namespace zipcache::metal
