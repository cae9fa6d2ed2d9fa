// Rows to codes. One portable implementation, in loops that compilers vectorize; its definition of correct is the
// bound that tests hold it to: every element within half a step of what its parameters allow.
#include <cmath>
#include <limits>

#include "planes.h"
#include "segment.h"
#include "transform.h"

namespace {

using namespace zipcache::format;

struct Range {
    float min = std::numeric_limits<float>::infinity();
    float max = -std::numeric_limits<float>::infinity();

    void take(float x) {
        min = std::min(min, x);
        max = std::max(max, x);
    }
    bool empty() const { return min > max; }
};

Pair pair_of(const Range & range, int bits) {
    if (range.empty() || bits == 0 || bits == kUncoded) {
        return {0, 0};  // unused: equal input gives equal bytes
    }
    const ggml_fp16_t low = ggml_fp32_to_fp16(range.min);
    const float width = std::max(0.0f, range.max - ggml_fp16_to_fp32(low));
    return {ggml_fp32_to_fp16(width / levels(bits)), low};
}

// One side (K or V) of one KV head, its rows in the order of the places.
struct Side {
    const ggml_zipcache_format & f;
    const ggml_zipcache_side & how;
    bool is_key;
    int dim = f.head_dim;
    std::vector<float> x{};  // [n_places, dim], transformed; padding holds zeros

    float * row(int64_t place) { return &x[place * dim]; }
};

// The transformed rows of a head: (x / divisor) H, in the order of the places. row: of each token, or null.
void load(Side & side, const uint16_t * rows, const uint32_t * row, const float * divisor,
          const std::vector<std::vector<uint32_t>> & tokens) {
    const int dim = side.dim;
    std::vector<float> inverse(dim, 1.0f);
    for (int c = 0; divisor && c < dim; ++c) {
        inverse[c] = 1.0f / divisor[c];
    }
    int64_t n_places = 0;
    for (int tier = 0; tier < side.f.n_tiers; ++tier) {
        n_places += tier_places(side.f, tier, int64_t(tokens[tier].size()));
    }
    side.x.assign(n_places * dim, 0.0f);
    int64_t place = 0;
    for (int tier = 0; tier < side.f.n_tiers; ++tier) {
        if (evicts(side.f, tier)) {
            continue;
        }
        int64_t at = place;
        for (uint32_t token : tokens[tier]) {
            float * x = side.row(at++);
            ggml_fp16_to_fp32_row(rows + int64_t(row ? row[token] : token) * dim, x, dim);
            for (int c = 0; c < dim; ++c) {
                x[c] *= inverse[c];
            }
            if (side.how.rotate) {
                zipcache::walsh_hadamard(x, dim);
            }
        }
        place += tier_places(side.f, tier, int64_t(tokens[tier].size()));
    }
}

void channel_ranges(const float * x, int64_t n, int dim, Range * ranges) {
    for (int64_t t = 0; t < n; ++t, x += dim) {
        for (int c = 0; c < dim; ++c) {
            ranges[c].take(x[c]);
        }
    }
}

// The middle of a range in units, or (mid_unit 0) in 256ths of the range.
float middle_of(const Range & r, float mid_unit) {
    const float unit = mid_unit > 0 ? mid_unit : (r.max - r.min) / 256;
    return unit > 0 ? std::clamp(std::round((r.min + r.max) / 2 / unit), -127.0f, 127.0f) : 0.0f;
}

// The width of a range around that middle which still covers both ends, so that nothing is clipped unasked.
float covered(const Range & r, float middle, float mid_unit) {
    if (mid_unit > 0) {
        return 2 * std::max(r.max - middle * mid_unit, middle * mid_unit - r.min);
    }
    const float m = middle / 256;
    return std::max({0.0f, r.max / (0.5f + m), -r.min / (0.5f - m)});
}

// Writes parameters of entries given by their ranges. ranges [n]; F8 wants the units of the head.
void write_params(ggml_zipcache_params kind, const Range * ranges, int64_t n, int bits, float range_unit,
                  float mid_unit, uint8_t * to) {
    for (int64_t i = 0; i < n; ++i) {
        const Range & r = ranges[i];
        if (kind == GGML_ZIPCACHE_PARAMS_F16_PAIR) {
            reinterpret_cast<Pair *>(to)[i] = pair_of(r, bits);
        } else if (kind == GGML_ZIPCACHE_PARAMS_F16_SCALE) {
            // llama.cpp's: of the element of the largest magnitude; up to 7 bits its sign takes the odd code
            const float extreme = r.empty() ? 0.0f : (-r.min > r.max ? r.min : r.max);
            const float scale = bits == 8  ? std::fabs(extreme) / 127
                                : bits > 0 ? extreme / -static_cast<float>(1 << (bits - 1))
                                           : 0.0f;
            reinterpret_cast<ggml_fp16_t *>(to)[i] = ggml_fp32_to_fp16(scale);
        } else if (kind == GGML_ZIPCACHE_PARAMS_F8_SCALE) {
            const float width = r.empty() ? 0.0f : 2 * std::max(std::fabs(r.min), std::fabs(r.max));
            to[i] = range_unit > 0 ? covering_range(width / range_unit) : 0;
        } else if (!r.empty()) {
            const float m = middle_of(r, mid_unit);
            to[i] = range_unit > 0 ? covering_range(covered(r, m, mid_unit) / range_unit) : 0;
            to[n + i] = static_cast<uint8_t>(static_cast<int8_t>(m));
        }
    }
}

// What the units of F8 must reach.
struct Widest {
    float width = 0, middle = 0;

    void take(const Range & r, const ggml_zipcache_side & side) {
        if (r.empty()) {
            return;
        }
        if (side.params == GGML_ZIPCACHE_PARAMS_F8_SCALE) {
            width = std::max(width, 2 * std::max(std::fabs(r.min), std::fabs(r.max)));
        } else if (side.scope == GGML_ZIPCACHE_SCOPE_TOKEN) {
            width = std::max(width, covered(r, middle_of(r, 0), 0));
        } else {
            width = std::max(width, r.max - r.min);
            middle = std::max(middle, std::fabs(r.min + r.max) / 2);
        }
    }
    float mid_unit() const { return middle / 127; }
    float range_unit() const { return (width + mid_unit()) / kTopRange; }  // a rounded middle widens its range
};

// codes [n, code_stride] of the rows of a block
void encode(const Side & side, const float * x, int n, int n_places, int bits, const Params & params, uint8_t * codes) {
    const int dim = side.dim;
    const float most = levels(bits);
    std::vector<float> inverse(dim), low(dim);
    auto fold = [&](int first, int last, Params::Value v) {
        std::fill(inverse.begin() + first, inverse.begin() + last, v.scale != 0 ? 1 / v.scale : 0);
        std::fill(low.begin() + first, low.begin() + last, v.min);
    };
    const bool by_token = side.how.scope == GGML_ZIPCACHE_SCOPE_TOKEN;
    for (int c = 0; !by_token && c < dim; ++c) {
        fold(c, c + 1, params.at(c));
    }
    for (int t = 0; t < n; ++t, x += dim, codes += code_stride(dim)) {
        const int block = std::min(side.how.block, dim);
        for (int first = 0; by_token && first < dim; first += block) {
            fold(first, first + block, params.at(first / block * int64_t(n_places) + t));
        }
        for (int c = 0; c < dim; ++c) {
            const float code = (x[c] - low[c]) * inverse[c];
            const float nearest = std::min(std::max(0.0f, code), most) + 0.5f;  // truncated next; lround() is a call
            codes[c] = static_cast<uint8_t>(static_cast<int>(nearest));
        }
    }
}

// Ranges of one block's own parameters: of its channels, or of its tokens.
std::vector<Range> block_ranges(const Side & side, const Block & block, const float * x) {
    const int dim = side.dim;
    std::vector<Range> ranges(tier_param_entries(side.f, side.how, block.tier, block.n_places));
    if (ranges.empty()) {
        return ranges;
    }
    if (side.how.scope == GGML_ZIPCACHE_SCOPE_GROUP) {
        channel_ranges(x, block.n, dim, ranges.data());
    } else {
        for (int t = 0; t < block.n; ++t) {
            for (int c = 0; c < dim; ++c) {
                ranges[c / side.how.block * block.n_places + t].take(x[t * dim + c]);
            }
        }
    }
    return ranges;
}

// Everything one side of a head writes.
void write_side(const HeadView & view, Side & side, uint8_t * segment) {
    const auto & f = view.f;
    const bool key = side.is_key, f8 = side.how.params >= GGML_ZIPCACHE_PARAMS_F8_PAIR;
    Widest widest;
    std::vector<std::vector<Range>> blocks;  // of each block
    std::vector<Range> whole(size_t(segment_sets(f, side.how)) * side.dim);
    for_blocks(view, [&](const Block & block) {
        blocks.push_back(block_ranges(side, block, side.row(block.place)));
        for (const Range & r : blocks.back()) {
            widest.take(r, side.how);
        }
        if (!whole.empty() && side.how.bits[block.tier] != kUncoded) {
            const int set = segment_sets(f, side.how) > 1 ? block.tier : 0;
            channel_ranges(side.row(block.place), block.n, side.dim, &whole[size_t(set) * side.dim]);
        }
    });
    for (const Range & r : whole) {
        widest.take(r, side.how);
    }
    auto & units = const_cast<HeadUnits &>(*view.table.units);
    (key ? units.k_range : units.v_range) = f8 ? widest.range_unit() : 0;
    (key ? units.k_mid : units.v_mid) = f8 && side.how.scope != GGML_ZIPCACHE_SCOPE_TOKEN ? widest.mid_unit() : 0;
    const float range_unit = key ? units.k_range : units.v_range, mid_unit = key ? units.k_mid : units.v_mid;
    for (int set = 0; set < segment_sets(f, side.how); ++set) {
        uint8_t * to = segment + (key ? view.layout.k_params : view.layout.v_params) +
                       view.head * segment_param_bytes(f, side.how) +
                       int64_t(set) * side.dim * entry_bytes(side.how.params);
        write_params(side.how.params, &whole[size_t(set) * side.dim], side.dim, side.how.bits[set], range_unit,
                     mid_unit, to);
    }
    std::vector<uint8_t> codes;
    size_t number = 0;
    for_blocks(view, [&](const Block & block) {
        const Params & params = key ? block.k_params : block.v_params;
        const std::vector<Range> & ranges = blocks[number++];
        const int bits = side.how.bits[block.tier];
        auto * to = const_cast<uint8_t *>(key ? block.k : block.v);
        if (bits == kUncoded) {
            ggml_fp32_to_fp16_row(side.row(block.place), reinterpret_cast<ggml_fp16_t *>(to),
                                  int64_t(block.n_places) * side.dim);
            return;
        }
        if (!ranges.empty()) {
            write_params(side.how.params, ranges.data(), int64_t(ranges.size()), bits, range_unit, mid_unit,
                         const_cast<uint8_t *>(params.data));
        }
        codes.assign(size_t(block.n_places) * code_stride(side.dim), 0);
        Params read = params;  // the units were not yet known when the block was found
        read.range_unit = range_unit;
        read.mid_unit = side.how.scope == GGML_ZIPCACHE_SCOPE_TOKEN ? 0.0f : mid_unit;
        encode(side, side.row(block.place), block.n, block.n_places, bits, read, codes.data());
        pack(codes.data(), block.n_places, side.dim, bits, key, to);
    });
}

// Counts of tokens of each head, the places all heads take, and the bytes of the whole.
struct Plan {
    std::vector<std::vector<int64_t>> counts;  // [n_orders, n_tiers]
    int64_t n_places = 0;                      // of the head that has most
    int64_t n_bytes = 0;

    Plan(const ggml_zipcache_format & f, int64_t n_tokens, const uint8_t * tier) {
        for (int order = 0; order < n_orders(f); ++order) {
            auto & count = counts.emplace_back(f.n_tiers);
            for (int64_t t = 0; t < n_tokens; ++t) {
                ++count[tier[order * n_tokens + t]];
            }
            int64_t places = 0;
            for (int t = 0; t < f.n_tiers; ++t) {
                places += tier_places(f, t, count[t]);
            }
            n_places = std::max(n_places, places);
        }
        n_bytes = SegmentLayout(f, n_tokens, n_places).blocks;
        for (int head = 0; head < f.n_kv_heads; ++head) {
            for (int t = 0; t < f.n_tiers; ++t) {
                n_bytes += tier_bytes(f, t, of(f, head)[t]);
            }
        }
    }
    const std::vector<int64_t> & of(const ggml_zipcache_format & f, int head) const {
        return counts[f.same_order ? 0 : head];
    }
};

void write_tables(const ggml_zipcache_format & f, const Plan & plan, int64_t n_tokens, uint8_t * to) {
    const SegmentLayout layout(f, n_tokens, plan.n_places);
    int64_t at = layout.blocks;
    for (int head = 0; head < f.n_kv_heads; ++head) {
        auto * counts = reinterpret_cast<uint32_t *>(to + layout.heads + head * layout.head_bytes);
        for (int t = 0; t < f.n_tiers; ++t) {
            counts[t] = static_cast<uint32_t>(plan.of(f, head)[t]);
            counts[f.n_tiers + t] = static_cast<uint32_t>(at);
            at += tier_bytes(f, t, plan.of(f, head)[t]);
        }
    }
}

// Ranges of tokens over all heads. Every head computes its part of the parameters' ranges anew from all rows: it is the
// price of heads that need no order among themselves.
void write_shared_params(const ggml_zipcache_format & f, const ggml_zipcache_rows & rows, bool key, uint8_t * to) {
    const auto & how = key ? f.k : f.v;
    const HeadView view(f, to, 0);
    const auto tokens = tier_tokens(view);
    std::vector<Range> ranges(header_of(to).n_places);
    for (int head = 0; head < f.n_kv_heads; ++head) {
        Side side = {f, how, key};
        const float * divisor = key ? rows.k_divisor : rows.v_divisor;
        load(side, (key ? rows.k : rows.v) + head * rows.stride * f.head_dim, rows.row,
             divisor ? divisor + int64_t(head) * f.head_dim : nullptr, tokens);
        for_blocks(view, [&](const Block & block) {
            for (int t = 0; t < block.n; ++t) {
                for (int c = 0; c < f.head_dim; ++c) {
                    ranges[block.place + t].take(side.row(block.place + t)[c]);
                }
            }
        });
    }
    auto * pairs = reinterpret_cast<Pair *>(to + (key ? view.layout.k_shared : view.layout.v_shared));
    for_blocks(view, [&](const Block & block) {
        for (int t = 0; t < block.n; ++t) {
            pairs[block.place + t] = pair_of(ranges[block.place + t], how.bits[block.tier]);
        }
    });
}

}  // namespace

void ggml_zipcache_walsh_hadamard(float * x, int n) {
    zipcache::walsh_hadamard(x, n);
}

size_t ggml_zipcache_segment_bytes(const ggml_zipcache_format * format, int64_t n_tokens, const uint8_t * tier) {
    return Plan(*format, n_tokens, tier).n_bytes;
}

size_t ggml_zipcache_block_bytes(const ggml_zipcache_format * format, int tier, int64_t n_tokens) {
    const bool empty = n_tokens == 0 || evicts(*format, tier);
    return empty ? 0 : BlockLayout(*format, tier, tile_places(n_tokens)).size;
}

int64_t zipcache::format::begin_segment(const ggml_zipcache_format & f, int64_t n, const uint8_t * tier, uint8_t * to) {
    const Plan plan(f, n, tier);
    std::memset(to, 0, plan.n_bytes);
    const SegmentHeader header = {kMagic, static_cast<uint32_t>(n), static_cast<uint32_t>(plan.n_bytes),
                                  static_cast<uint32_t>(plan.n_places)};
    std::memcpy(to, &header, sizeof header);
    write_tables(f, plan, n, to);
    const SegmentLayout layout(f, n, plan.n_places);
    const int bits = tag_bits(f);
    for (int order = 0; bits > 0 && order < n_orders(f); ++order) {
        uint8_t * tags = to + layout.tags + order * tag_bytes(f, n);
        for (int64_t t = 0; t < n; ++t) {
            tags[t * bits / 8] |= static_cast<uint8_t>(tier[order * n + t] << (t * bits % 8));
        }
    }
    return plan.n_bytes;
}

void ggml_zipcache_quantize_kv_begin(const ggml_zipcache_format * format, const ggml_zipcache_rows * rows,
                                     uint8_t * to) {
    const auto & f = *format;
    begin_segment(f, rows->n_tokens, rows->tier, to);
    for (bool key : {true, false}) {
        if (spans_heads(f, key ? f.k : f.v)) {
            write_shared_params(f, *rows, key, to);
        }
    }
}

void ggml_zipcache_quantize_kv_head(const ggml_zipcache_format * format, const ggml_zipcache_rows * rows, int kv_head,
                                    uint8_t * to) {
    const auto & f = *format;
    const HeadView view(f, to, kv_head);
    const auto tokens = tier_tokens(view);
    const int64_t row = kv_head * rows->stride * f.head_dim, channel = int64_t(kv_head) * f.head_dim;
    Side k = {f, f.k, true};
    load(k, rows->k + row, rows->row, rows->k_divisor ? rows->k_divisor + channel : nullptr, tokens);
    write_side(view, k, to);
    Side v = {f, f.v, false};
    load(v, rows->v + row, rows->row, rows->v_divisor ? rows->v_divisor + channel : nullptr, tokens);
    write_side(view, v, to);
}
