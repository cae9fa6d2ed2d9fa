#include "planes.h"
#include "segment.h"
#include "transform.h"

namespace {

using namespace zipcache::format;

// One block's rows of one side, [n, dim], transform undone; wanted [n]: which of them.
void rows_of(const ggml_zipcache_format & f, const ggml_zipcache_side & side, const Block & block, bool is_key,
             const float * divisor, const uint8_t * wanted, float * x) {
    const int dim = f.head_dim, bits = side.bits[block.tier];
    const Params & params = is_key ? block.k_params : block.v_params;
    const uint8_t * packed = is_key ? block.k : block.v;
    const bool coded = bits > 0 && bits != kUncoded;
    std::vector<uint8_t> codes(size_t(block.n_places) * code_stride(dim));
    if (coded) {
        unpack(packed, block.n_places, dim, bits, is_key, codes.data());
    }
    std::vector<float> scale(dim), min(dim);  // zeros for 0 bits
    auto fold = [&](int first, int last, Params::Value v) {
        std::fill(scale.begin() + first, scale.begin() + last, v.scale);
        std::fill(min.begin() + first, min.begin() + last, v.min);
    };
    const bool by_token = side.scope == GGML_ZIPCACHE_SCOPE_TOKEN;
    for (int c = 0; coded && !by_token && c < dim; ++c) {
        fold(c, c + 1, params.at(c));
    }
    for (int t = 0; t < block.n; ++t, x += dim) {
        if (!wanted[t]) {
            continue;
        }
        const int width = std::min(side.block, dim);
        for (int first = 0; coded && by_token && first < dim; first += width) {
            fold(first, first + width, params.at(first / width * int64_t(block.n_places) + t));
        }
        const uint8_t * code = &codes[size_t(t) * code_stride(dim)];
        for (int c = 0; c < dim; ++c) {
            x[c] = scale[c] * float(code[c]) + min[c];
        }
        if (bits == kUncoded) {
            ggml_fp16_to_fp32_row(reinterpret_cast<const ggml_fp16_t *>(packed) + int64_t(t) * dim, x, dim);
        }
        if (side.rotate) {
            zipcache::walsh_hadamard(x, dim);
        }
        for (int c = 0; divisor && c < dim; ++c) {
            x[c] *= divisor[c];
        }
    }
}

// What is wrong with a head's table and tags, or null; adds the places and the bytes of its blocks.
const char * head_error(const ggml_zipcache_format & f, const HeadView & view, int64_t & n_places, int64_t & at) {
    const int64_t n_tokens = header_of(view.segment).n_tokens;
    std::vector<uint32_t> counts(f.n_tiers);
    for (int64_t t = 0; t < n_tokens; ++t) {
        const int tier = tier_of(view.tags(), tag_bits(f), t);
        if (tier >= f.n_tiers) {
            return "a token of a tier that does not exist";
        }
        ++counts[tier];
    }
    int64_t places = 0;
    for (int tier = 0; tier < f.n_tiers; ++tier) {
        if (view.table.counts[tier] != counts[tier] || view.table.offsets[tier] != at) {
            return "a head's table that does not match its tokens";
        }
        at += tier_bytes(f, tier, counts[tier]);
        places += tier_places(f, tier, counts[tier]);
    }
    n_places = std::max(n_places, places);
    const float * units = &view.table.units->k_range;
    for (int i = 0; i < 4; ++i) {
        if (!(units[i] >= 0 && units[i] < 1e30f)) {
            return "a unit that is no number";
        }
    }
    return nullptr;
}

}  // namespace

void zipcache::format::dequantize_head(const ggml_zipcache_format & f, const uint8_t * segment, int kv_head,
                                       int64_t first, int64_t n, const float * k_divisor, const float * v_divisor,
                                       float * k, float * v, uint8_t * kept) {
    const int dim = f.head_dim;
    const HeadView view(f, segment, kv_head);
    const auto tokens = tier_tokens(view);
    std::fill_n(k, n * dim, 0.0f);
    std::fill_n(v, n * dim, 0.0f);
    std::fill_n(kept, n, uint8_t(0));
    std::vector<float> rows(size_t(f.group) * dim);
    for_blocks(view, [&](const Block & block) {
        const uint32_t * token = &tokens[block.tier][block.token];
        uint8_t wanted[kGroup];
        bool any = false;
        for (int i = 0; i < block.n; ++i) {
            wanted[i] = token[i] >= first && token[i] < first + n;
            any |= wanted[i] != 0;
        }
        for (bool key : {true, false}) {
            const float * divisor = key ? k_divisor : v_divisor;
            if (any) {
                rows_of(f, key ? f.k : f.v, block, key, divisor ? divisor + int64_t(kv_head) * dim : nullptr, wanted,
                        rows.data());
            }
            for (int i = 0; any && i < block.n; ++i) {
                if (wanted[i]) {
                    std::copy_n(&rows[i * dim], dim, (key ? k : v) + (token[i] - first) * dim);
                    kept[token[i] - first] = 1;
                }
            }
        }
    });
}

void ggml_zipcache_dequantize_kv(const ggml_zipcache_format * format, const uint8_t * segment, int kv_head,
                                 int64_t first, int64_t n, const float * k_divisor, const float * v_divisor,
                                 uint16_t * k, uint16_t * v, uint8_t * kept) {
    const int64_t size = n * format->head_dim;
    std::vector<float> k_rows(size), v_rows(size);
    std::vector<uint8_t> is_kept(n);
    dequantize_head(*format, segment, kv_head, first, n, k_divisor, v_divisor, k_rows.data(), v_rows.data(),
                    is_kept.data());
    ggml_fp32_to_fp16_row(k_rows.data(), k, size);
    ggml_fp32_to_fp16_row(v_rows.data(), v, size);
    if (kept) {
        std::copy(is_kept.begin(), is_kept.end(), kept);
    }
}

int64_t ggml_zipcache_segment_places(const ggml_zipcache_format *, const uint8_t * segment) {
    return header_of(segment).n_places;
}

void ggml_zipcache_segment_positions(const ggml_zipcache_format * format, const uint8_t * segment,
                                     uint16_t * position) {
    const int64_t n_places = header_of(segment).n_places;
    std::fill_n(position, format->n_kv_heads * n_places, UINT16_MAX);
    for (int head = 0; head < format->n_kv_heads; ++head, position += n_places) {
        const HeadView view(*format, segment, head);
        const auto tokens = tier_tokens(view);
        for_blocks(view, [&](const Block & block) {
            std::copy_n(&tokens[block.tier][block.token], block.n, position + block.place);
        });
    }
}

const char * ggml_zipcache_segment_error(const ggml_zipcache_format * format, int64_t n_tokens, const uint8_t * segment,
                                         size_t n_bytes) {
    const auto & f = *format;
    if (n_bytes < sizeof(SegmentHeader)) {
        return "a segment shorter than its header";
    }
    const SegmentHeader & header = header_of(segment);
    if (header.magic != kMagic || header.n_tokens != n_tokens || header.n_bytes != n_bytes) {
        return "a segment's header that does not match";
    }
    const SegmentLayout layout(f, n_tokens, header.n_places);
    if (header.n_places > 2 * n_tokens + f.n_tiers * kTile || layout.blocks > int64_t(n_bytes)) {
        return "a segment shorter than its tables";
    }
    int64_t n_places = 0, at = layout.blocks;
    for (int head = 0; head < f.n_kv_heads; ++head) {
        if (const char * error = head_error(f, HeadView(f, segment, head), n_places, at)) {
            return error;
        }
    }
    return n_places == header.n_places && at == int64_t(n_bytes) ? nullptr : "a segment whose size does not match";
}
