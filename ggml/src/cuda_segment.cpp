// Segments in device order, on the host: their sizes, and the way to and from the CPU's order.
#include "cuda_layout.h"
#include "ggml-zipcache-cuda.h"
#include "planes.h"

namespace {

using namespace zipcache;
using format::HeadView;
using format::SegmentHeader;

// The counts of tokens [n_orders, n_tiers] decide where everything lies.
struct Plan {
    int64_t n_places = 0;  // of the head that has most
    int64_t n_bytes = 0;

    Plan(const ggml_zipcache_format & f, int64_t n_tokens, const uint32_t * counts) {
        int64_t blocks = 0;
        for (int head = 0; head < f.n_kv_heads; ++head) {
            int64_t places = 0;
            for (int t = 0; t < f.n_tiers; ++t) {
                const uint32_t count = counts[(f.same_order ? 0 : head) * f.n_tiers + t];
                places += cuda::cuda_tier_places(f, t, count);
                blocks += cuda::cuda_tier_bytes(f, t, count);
            }
            n_places = std::max(n_places, places);
        }
        n_bytes = cuda::segment_layout(f, n_tokens, n_places).blocks + blocks;
    }
};

// A segment's head tables, in either order: they begin alike.
std::vector<uint32_t> counts_of(const ggml_zipcache_format & f, const uint8_t * segment) {
    std::vector<uint32_t> counts;
    for (int order = 0; order < format::n_orders(f); ++order) {
        const HeadView view(f, segment, order);
        counts.insert(counts.end(), view.table.counts, view.table.counts + f.n_tiers);
    }
    return counts;
}

std::vector<uint8_t> tiers_of(const ggml_zipcache_format & f, const uint8_t * cuda_segment) {
    const int64_t n = format::header_of(cuda_segment).n_tokens;
    const auto layout = cuda::segment_layout(f, n, format::header_of(cuda_segment).n_places);
    std::vector<uint8_t> tiers(format::n_orders(f) * n);
    for (int64_t i = 0; i < int64_t(tiers.size()); ++i) {
        const uint8_t * tags = cuda_segment + layout.tags + i / n * format::tag_bytes(f, n);
        tiers[i] = static_cast<uint8_t>(format::tier_of(tags, format::tag_bits(f), i % n));
    }
    return tiers;
}

// Copies between a pair of parts that lie in the two orders.
template <bool ToCuda, class Cpu, class Cuda>
void move_bytes(Cpu * cpu, Cuda * cuda, size_t n) {
    if constexpr (ToCuda) {
        std::memcpy(cuda, cpu, n);
    } else {
        std::memcpy(cpu, cuda, n);
    }
}

// One entry of parameters: number i of n_cpu there, j of n_cuda here.
template <bool ToCuda, class Cpu, class Cuda>
void move_entry(ggml_zipcache_params kind, Cpu * cpu, int64_t i, int64_t n_cpu, Cuda * cuda, int64_t j,
                int64_t n_cuda) {
    const bool f8 = kind >= GGML_ZIPCACHE_PARAMS_F8_PAIR;
    const int size = f8 ? 1 : format::entry_bytes(kind);
    move_bytes<ToCuda>(cpu + i * size, cuda + j * size, size);
    if (kind == GGML_ZIPCACHE_PARAMS_F8_PAIR) {
        move_bytes<ToCuda>(cpu + n_cpu + i, cuda + n_cuda + j, 1);
    }
}

template <bool ToCuda, class Cpu, class Cuda>
void move_channels(const ggml_zipcache_side & side, int dim, Cpu * cpu, Cuda * cuda) {
    for (int c = 0; c < dim; ++c) {
        move_entry<ToCuda>(side.params, cpu, c, dim, cuda, cuda::channel_index(c, dim), dim);
    }
}

// One block of one side.
template <bool ToCuda, class Cpu, class Cuda>
void move_side(const ggml_zipcache_format & f, bool is_key, const format::Block & block, Cpu * cpu_codes,
               Cpu * cpu_params, Cuda * cuda_codes, Cuda * cuda_params) {
    const auto & side = is_key ? f.k : f.v;
    const int dim = f.head_dim, bits = side.bits[block.tier];
    const int64_t n_places = cuda::step_places(block.n);
    std::vector<uint8_t> codes(size_t(block.n_places) * format::code_stride(dim));
    if constexpr (ToCuda) {
        format::unpack(cpu_codes, block.n_places, dim, bits, is_key, codes.data());
    }
    const format::Planes planes = cuda::cuda_planes(bits);
    Cuda * plane = cuda_codes;
    for (int i = 0, low = 0; i < planes.n; low += planes.width[i++]) {
        const int width = planes.width[i], mask = (1 << width) - 1;
        for (int place = 0; place < block.n; ++place) {
            for (int c = 0; c < dim; ++c) {
                const auto spot =
                    is_key ? cuda::cuda_k_spot(place, c, dim, width) : cuda::cuda_v_spot(place, c, dim, width);
                uint8_t & code = codes[size_t(place) * format::code_stride(dim) + c];
                if constexpr (ToCuda) {
                    plane[spot.byte] |= static_cast<uint8_t>((code >> low & mask) << spot.shift);
                } else {
                    code |= static_cast<uint8_t>((plane[spot.byte] >> spot.shift & mask) << low);
                }
            }
        }
        plane += cuda::plane_bytes(n_places, dim, width);
    }
    if constexpr (!ToCuda) {
        format::pack(codes.data(), block.n_places, dim, bits, is_key, cpu_codes);
    }
    if (side.scope == GGML_ZIPCACHE_SCOPE_GROUP) {
        move_channels<ToCuda>(side, dim, cpu_params, cuda_params);
    }
    const int64_t n_cpu = format::block_param_entries(f, side, block.n_places);
    const int64_t n_cuda = format::block_param_entries(f, side, n_places);
    for (int64_t i = 0; side.scope == GGML_ZIPCACHE_SCOPE_TOKEN && i < n_cpu; ++i) {
        const int64_t place = i % block.n_places, at = i / block.n_places * n_places;  // padding too
        move_entry<ToCuda>(side.params, cpu_params, i, n_cpu, cuda_params, at + cuda::place_index(place, n_places),
                           n_cuda);
    }
}

// Everything of a head but its table and tags.
template <bool ToCuda, class Cpu, class Cuda>
void move_head(const ggml_zipcache_format & f, int head, Cpu * cpu, Cuda * cuda) {
    const HeadView view(f, cpu, head);
    const SegmentHeader & header = format::header_of(cuda);
    const auto layout = cuda::segment_layout(f, header.n_tokens, header.n_places);
    const HeadView cuda_view(f, cuda, head);
    const int64_t units = view.layout.heads + (head + 1) * view.layout.head_bytes - int64_t(sizeof(format::HeadUnits));
    move_bytes<ToCuda>(cpu + units, cuda + units, sizeof(format::HeadUnits));
    for (bool key : {true, false}) {
        const auto & side = key ? f.k : f.v;
        const int64_t set = int64_t(f.head_dim) * format::entry_bytes(side.params);
        const int64_t from = head * format::segment_param_bytes(f, side);
        for (int i = 0; i < format::segment_sets(f, side); ++i) {
            move_channels<ToCuda>(side, f.head_dim,
                                  cpu + (key ? view.layout.k_params : view.layout.v_params) + from + i * set,
                                  cuda + (key ? layout.k_params : layout.v_params) + from + i * set);
        }
    }
    std::vector<int64_t> first_place(f.n_tiers + 1);
    for (int t = 0; t < f.n_tiers; ++t) {
        first_place[t + 1] = first_place[t] + cuda::cuda_tier_places(f, t, view.table.counts[t]);
    }
    format::for_blocks(view, [&](const format::Block & block) {
        const int64_t number = block.token / f.group, n_places = cuda::step_places(block.n);
        const auto b = cuda::block_layout(f, block.tier, n_places);
        const int64_t place = first_place[block.tier] + number * cuda::step_places(f.group);
        Cuda * at = cuda + cuda_view.table.offsets[block.tier] +
                    number * cuda::block_layout(f, block.tier, cuda::step_places(f.group)).size;
        auto cpu_at = [&](const uint8_t * part) { return cpu + (part - cpu); };
        move_side<ToCuda>(f, true, block, cpu_at(block.k), cpu_at(block.k_params.data), at, at + b.k_params);
        move_side<ToCuda>(f, false, block, cpu_at(block.v), cpu_at(block.v_params.data), at + b.v_codes,
                          at + b.v_params);
        for (bool key : {true, false}) {
            for (int i = 0; head == 0 && format::spans_heads(f, key ? f.k : f.v) && i < block.n; ++i) {
                move_entry<ToCuda>(GGML_ZIPCACHE_PARAMS_F16_PAIR,
                                   cpu + (key ? view.layout.k_shared : view.layout.v_shared), block.place + i, 0,
                                   cuda + (key ? layout.k_shared : layout.v_shared),
                                   place + cuda::place_index(i, n_places), 0);
            }
        }
    });
}

const char * head_error(const ggml_zipcache_format & f, const uint8_t * segment, const std::vector<uint8_t> & tiers,
                        int head, int64_t & n_places, int64_t & at) {
    const HeadView view(f, segment, head);
    const int64_t n = format::header_of(segment).n_tokens;
    std::vector<uint32_t> counts(f.n_tiers);
    for (int64_t t = 0; t < n; ++t) {
        const int tier = tiers[(f.same_order ? 0 : head) * n + t];
        if (tier >= f.n_tiers) {
            return "a token of a tier that does not exist";
        }
        ++counts[tier];
    }
    int64_t places = 0;
    for (int t = 0; t < f.n_tiers; ++t) {
        if (view.table.counts[t] != counts[t] || view.table.offsets[t] != at) {
            return "a head's table that does not match its tokens";
        }
        at += cuda::cuda_tier_bytes(f, t, counts[t]);
        places += cuda::cuda_tier_places(f, t, counts[t]);
    }
    n_places = std::max(n_places, places);
    const float * units = &view.table.units->k_range;
    return std::all_of(units, units + 4, [](float x) { return x >= 0 && x < 1e30f; }) ? nullptr
                                                                                      : "a unit that is no number";
}

}  // namespace

size_t ggml_zipcache_cuda_segment_bytes(const ggml_zipcache_format * format, int64_t n_tokens,
                                        const uint32_t * counts) {
    return Plan(*format, n_tokens, counts).n_bytes;
}

size_t ggml_zipcache_cuda_segment_bound(const ggml_zipcache_format * format, int64_t n_tokens, double bits) {
    const auto & f = *format;
    int64_t widest = 0, rest = 0;
    double larger = 1;  // a whole block than the CPU's
    for (int t = 0; t < f.n_tiers; ++t) {
        if (format::evicts(f, t)) {
            continue;
        }
        const int64_t whole = cuda::cuda_tier_bytes(f, t, f.group);
        widest = std::max(widest, whole);
        larger = std::max(larger, double(whole) / double(format::BlockLayout(f, t, f.group).size));
        rest += cuda::block_layout(f, t, cuda::kStep).size + 4 * format::kAlign;  // the last block's padding
    }
    const int64_t tables = cuda::segment_layout(f, n_tokens, ggml_zipcache_cuda_max_places(format, n_tokens)).blocks;
    const int64_t most = tables + f.n_kv_heads * ggml_zipcache_cuda_max_blocks(format, n_tokens) * widest;
    const double budget = bits / 8 * 2 * double(f.n_kv_heads) * f.head_dim * double(n_tokens);
    const double bound = budget * larger + double(tables + f.n_kv_heads * rest);
    return bits > 0 ? std::min(size_t(most), size_t(bound)) : size_t(most);
}

int64_t ggml_zipcache_cuda_max_blocks(const ggml_zipcache_format * format, int64_t n_tokens) {
    return n_tokens / format->group + std::min<int64_t>(format->n_tiers, n_tokens);
}

int64_t ggml_zipcache_cuda_max_places(const ggml_zipcache_format * format, int64_t n_tokens) {
    return ggml_zipcache_cuda_max_blocks(format, n_tokens) * cuda::step_places(format->group);
}

size_t ggml_zipcache_cuda_bytes_of_cpu(const ggml_zipcache_format * format, const uint8_t * cpu_segment) {
    return Plan(*format, format::header_of(cpu_segment).n_tokens, counts_of(*format, cpu_segment).data()).n_bytes;
}

size_t ggml_zipcache_cpu_bytes_of_cuda(const ggml_zipcache_format * format, const uint8_t * cuda_segment) {
    const auto tiers = tiers_of(*format, cuda_segment);
    return ggml_zipcache_segment_bytes(format, format::header_of(cuda_segment).n_tokens, tiers.data());
}

void ggml_zipcache_cuda_from_cpu(const ggml_zipcache_format * format, const uint8_t * cpu_segment, uint8_t * to) {
    const auto & f = *format;
    const SegmentHeader & from = format::header_of(cpu_segment);
    const Plan plan(f, from.n_tokens, counts_of(f, cpu_segment).data());
    std::memset(to, 0, plan.n_bytes);
    const SegmentHeader header = {cuda::kCudaMagic, from.n_tokens, uint32_t(plan.n_bytes), uint32_t(plan.n_places)};
    std::memcpy(to, &header, sizeof header);
    const auto layout = cuda::segment_layout(f, from.n_tokens, plan.n_places);
    const format::SegmentLayout cpu_layout(f, from.n_tokens, from.n_places);
    std::memcpy(to + layout.tags, cpu_segment + cpu_layout.tags,
                format::n_orders(f) * format::tag_bytes(f, from.n_tokens));
    int64_t at = layout.blocks;
    for (int head = 0; head < f.n_kv_heads; ++head) {
        const HeadView view(f, cpu_segment, head);
        auto * counts = reinterpret_cast<uint32_t *>(to + layout.heads + head * layout.head_bytes);
        for (int t = 0; t < f.n_tiers; ++t) {
            counts[t] = view.table.counts[t];
            counts[f.n_tiers + t] = uint32_t(at);
            at += cuda::cuda_tier_bytes(f, t, counts[t]);
        }
        move_head<true>(f, head, cpu_segment, to);
    }
}

void ggml_zipcache_cpu_from_cuda(const ggml_zipcache_format * format, const uint8_t * cuda_segment, uint8_t * to) {
    const auto & f = *format;
    format::begin_segment(f, format::header_of(cuda_segment).n_tokens, tiers_of(f, cuda_segment).data(), to);
    for (int head = 0; head < f.n_kv_heads; ++head) {
        move_head<false>(f, head, to, cuda_segment);
    }
}

const char * ggml_zipcache_cuda_segment_error(const ggml_zipcache_format * format, int64_t n_tokens,
                                              const uint8_t * cuda_segment, size_t n_bytes) {
    const auto & f = *format;
    if (n_bytes < sizeof(SegmentHeader)) {
        return "a segment shorter than its header";
    }
    const SegmentHeader & header = format::header_of(cuda_segment);
    if (header.magic != cuda::kCudaMagic || header.n_tokens != n_tokens || header.n_bytes != n_bytes) {
        return "a segment's header that does not match";
    }
    const auto layout = cuda::segment_layout(f, n_tokens, header.n_places);
    if (header.n_places > 2 * n_tokens + f.n_tiers * cuda::kStep || layout.blocks > int64_t(n_bytes)) {
        return "a segment shorter than its tables";
    }
    const auto tiers = tiers_of(f, cuda_segment);
    int64_t n_places = 0, at = layout.blocks;
    for (int head = 0; head < f.n_kv_heads; ++head) {
        if (const char * error = head_error(f, cuda_segment, tiers, head, n_places, at)) {
            return error;
        }
    }
    return n_places == header.n_places && at == int64_t(n_bytes) ? nullptr : "a segment whose size does not match";
}

const char * ggml_zipcache_cuda_format_error(const ggml_zipcache_format * format) {
    const auto & f = *format;
    const int dims[] = {64, 80, 96, 128, 256};
    if (std::none_of(dims, dims + 5, [&](int dim) { return dim == f.head_dim; })) {
        return "a segment's head_dim on a CUDA device; accepted: 64, 80, 96, 128, 256";
    }
    for (const auto & side : {f.k, f.v}) {
        if (std::any_of(side.bits, side.bits + f.n_tiers, [](int bits) { return bits > 8; })) {
            return "a segment's bits on a CUDA device; accepted: 0 to 8";
        }
        if (side.scope == GGML_ZIPCACHE_SCOPE_TOKEN && side.block < f.head_dim && side.block % 32 != 0) {
            return "channels that share a token's parameters on a CUDA device; accepted: multiples of 32 that divide "
                   "head_dim, head_dim, all channels of a layer";
        }
    }
    return nullptr;
}

bool ggml_zipcache_cuda_is_common(const ggml_zipcache_format * format) {
    const auto &k = format->k, &v = format->v;
    return k.scope != GGML_ZIPCACHE_SCOPE_TOKEN && v.scope == GGML_ZIPCACHE_SCOPE_TOKEN &&
           v.block >= format->head_dim && v.params != GGML_ZIPCACHE_PARAMS_F16_SCALE;
}
