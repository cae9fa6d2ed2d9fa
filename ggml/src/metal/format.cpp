#include "cuda_layout.h"
#include "ggml-zipcache-cuda.h"
#include "metal/encode.h"

namespace zipcache::metal_abi {
namespace {

static_assert(int(kMaxTiers) == int(format::kMaxTiers) && int(kGroup) == int(format::kGroup));
static_assert(uint32_t(kMagic) == cuda::kCudaMagic && int(kAlign) == int(format::kAlign));
static_assert(sizeof(SegmentHeader) == sizeof(format::SegmentHeader) && sizeof(HeadUnits) == sizeof(format::HeadUnits));
static_assert(sizeof(Segment) == sizeof(ggml_zipcache_metal_segment));
static_assert(sizeof(Sequence) == sizeof(ggml_zipcache_metal_sequence));

Side side_of(const ggml_zipcache_format & f, const ggml_zipcache_side & side) {
    Side to = {};
    for (int t = 0; t < f.n_tiers; ++t) {
        to.bits[t] = side.bits[t];
        to.shrink[t] = side.shrink[t];
    }
    to.scope = side.scope;
    to.kind = side.params;
    to.block = side.scope == GGML_ZIPCACHE_SCOPE_TOKEN ? std::min(side.block, f.head_dim) : f.head_dim;
    to.rotate = side.rotate;
    to.spans_heads = format::spans_heads(f, side);
    to.n_sets = format::segment_sets(f, side);
    to.entry_bytes = format::entry_bytes(side.params);
    to.set_bytes = f.head_dim * to.entry_bytes;
    return to;
}

}  // namespace

const char * format_error(const ggml_zipcache_format & format) {
    return ggml_zipcache_cuda_format_error(&format) ? "a segment's format that the Metal kernels don't read; accepted: "
                                                      "head_dim 64, 80, 96, 128, 256; parameters of a token for "
                                                      "multiples of 32 channels, head_dim, all of a layer"
                                                    : nullptr;
}

}  // namespace zipcache::metal_abi

size_t ggml_zipcache_metal_format_bytes() {
    return sizeof(zipcache::metal_abi::Format);
}

const char * ggml_zipcache_metal_write_format(const ggml_zipcache_format * format, void * to) {
    using namespace zipcache;
    namespace abi = metal_abi;
    const auto & f = *format;
    if (const char * error = abi::format_error(f)) {
        return error;
    }
    abi::Format a = {};
    a.n_kv_heads = f.n_kv_heads;
    a.head_dim = f.head_dim;
    a.group = f.group;
    a.n_tiers = f.n_tiers;
    a.n_orders = format::n_orders(f);
    a.tag_bits = format::tag_bits(f);
    const auto layout = cuda::segment_layout(f, 0, 0);
    a.heads = static_cast<int>(layout.heads);
    a.head_bytes = static_cast<int>(layout.head_bytes);
    a.tags = static_cast<int>(layout.tags);
    a.k = abi::side_of(f, f.k);
    a.v = abi::side_of(f, f.v);
    for (int t = 0; t < f.n_tiers; ++t) {
        for (int steps = 1; steps <= abi::kBlockSteps && !format::evicts(f, t); ++steps) {
            const auto b = cuda::block_layout(f, t, steps * cuda::kStep);
            a.block[t][steps - 1] = {int(b.k_params), int(b.v_codes), int(b.v_params), int(b.size)};
        }
    }
    std::memcpy(to, &a, sizeof a);
    return nullptr;
}
