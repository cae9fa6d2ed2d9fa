#include <atomic>
#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "cuda/cuda_device.h"
#include "cuda/wide_product.h"
#include "device/memory.h"

using namespace zipcache;

namespace {

// Root mean square of the error of weight * x beside that of the product.
struct Difference {
    double wide, plain;  // of wide_product(), of ggml_mul_mat()
};

std::vector<float> computed(cuda::CudaDevice & device, ggml_context * ctx, ggml_tensor * y) {
    ggml_cgraph * graph = ggml_new_graph_custom(ctx, 8, false);
    ggml_build_forward_expand(graph, y);
    const std::unique_ptr<ggml_gallocr, void (*)(ggml_gallocr_t)> memory(ggml_gallocr_new(device.memory()),
                                                                         ggml_gallocr_free);
    CHECK(ggml_gallocr_alloc_graph(memory.get(), graph));
    device.compute(graph, std::atomic<bool>{false});
    std::vector<float> values(ggml_nelements(y));
    device.read(values.data(), y->data, values.size() * sizeof(float));
    return values;
}

Difference difference(cuda::CudaDevice & device, ggml_type type, int64_t n_in, int64_t n_out, int64_t n_tokens,
                      std::mt19937 & random) {
    std::normal_distribution<float> normal;
    std::vector<float> w(n_in * n_out), x(n_in * n_tokens);
    for (auto * values : {&w, &x}) {
        for (float & value : *values) {
            value = normal(random);
        }
    }
    std::vector<uint8_t> packed(n_out * ggml_row_size(type, n_in));
    const std::vector<float> importance(n_in, 1.0f);
    ggml_quantize_chunk(type, w.data(), packed.data(), 0, n_out, n_in, importance.data());
    ggml_get_type_traits(type)->to_float(packed.data(), w.data(), n_in * n_out);

    const OwnTensor weight(device, type, n_in, n_out), input(device, GGML_TYPE_F32, n_in, n_tokens);
    device.write(weight.tensor->data, packed.data(), packed.size());
    device.write(input.tensor->data, x.data(), x.size() * sizeof(float));
    const GgmlContext context(
        ggml_init({16 * ggml_tensor_overhead() + 2 * ggml_graph_overhead_custom(8, false), nullptr, true}));
    ggml_tensor * y = cuda::wide_product(context.get(), weight.tensor, input.tensor);
    CHECK(y);
    const auto wide = computed(device, context.get(), y);
    const auto plain = computed(device, context.get(), ggml_mul_mat(context.get(), weight.tensor, input.tensor));

    double all = 0, wide_error = 0, plain_error = 0;
    for (int64_t t = 0; t < n_tokens; ++t) {
        for (int64_t r = 0; r < n_out; ++r) {
            double sum = 0;
            for (int64_t c = 0; c < n_in; ++c) {
                sum += double(w[r * n_in + c]) * x[t * n_in + c];
            }
            all += sum * sum;
            wide_error += std::pow(wide[t * n_out + r] - sum, 2);
            plain_error += std::pow(plain[t * n_out + r] - sum, 2);
        }
    }
    return {std::sqrt(wide_error / all), std::sqrt(plain_error / all)};
}

}  // namespace

TEST(cuda_wide_product_is_closer_than_ggmls) {
    cuda::CudaDevice device(0);
    if (!cuda::has_wide_product(0)) {
        std::printf("  not on this GPU\n");
        return;
    }
    std::mt19937 random(test_seed());
    double most = 0, least_gain = INFINITY;
    for (ggml_type type : {GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_Q5_K, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
                           GGML_TYPE_Q5_1, GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS,
                           GGML_TYPE_IQ2_XS, GGML_TYPE_IQ3_S, GGML_TYPE_MXFP4}) {
        const int64_t n_in = 256 * (1 + random() % 4), n_out = 1 + random() % 300, n_tokens = 1 + random() % 300;
        const Difference d = difference(device, type, n_in, n_out, n_tokens, random);
        most = std::max(most, d.wide);
        least_gain = std::min(least_gain, d.plain / d.wide);
        CHECK(d.wide < 0.004);  // two roundings to 8 bits of mantissa
        if (n_tokens > 8) {     // for fewer ggml has other kernels
            CHECK(d.wide < d.plain);
        }
    }
    std::printf("  wide_product: off by at most %.4f of its size, ggml's by %.1f times as much or more\n", most,
                least_gain);
}

TEST(cuda_wide_product_is_shared_and_knows_its_limits) {
    cuda::CudaDevice device(0);
    const GgmlContext context(ggml_init({64 * ggml_tensor_overhead(), nullptr, true}));
    ggml_context * ctx = context.get();
    ggml_tensor * x = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 256, 512);
    ggml_tensor * a = cuda::wide_product(ctx, ggml_new_tensor_2d(ctx, GGML_TYPE_Q4_K, 256, 64), x);
    ggml_tensor * b = cuda::wide_product(ctx, ggml_new_tensor_2d(ctx, GGML_TYPE_Q6_K, 256, 96), x);
    CHECK(a && b && a->src[1] == b->src[1]);
    CHECK(a && a->ne[0] == 64 && a->ne[1] == 512 && a->type == GGML_TYPE_F32);
    CHECK(!cuda::wide_product(ctx, ggml_new_tensor_2d(ctx, GGML_TYPE_F16, 256, 64), x));
    CHECK(!cuda::wide_product(ctx, ggml_new_tensor_3d(ctx, GGML_TYPE_Q4_K, 256, 64, 2), x));
    CHECK(!device.wide_product(ctx, ggml_new_tensor_2d(ctx, GGML_TYPE_Q4_K, 256, 64),
                               ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 256, cuda::kLeastWide - 1)));
}
