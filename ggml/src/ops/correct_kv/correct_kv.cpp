// What codes lack, kept beside them. One portable implementation; tests hold it to the definition: with the outliers
// every element that is one comes back as it was, and the rest of the error is the smaller for the approximation.
#include <cmath>
#include <numeric>

#include "correction.h"

namespace {

using namespace zipcache::format;

// A broken model's NaN must not reach a sort.
float comparable(ggml_fp16_t x) {
    const float value = ggml_fp16_to_fp32(x);
    return std::isfinite(value) ? value : 0.0f;
}

// One vector of elements that share their parameters: n of them, `at` gives where each lies.
template <class At>
void mark_vector(const uint16_t * x, int64_t n, int64_t n_each, At && at, uint16_t * to, uint8_t * mark) {
    if (n_each == 0) {
        return;
    }
    std::vector<int64_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    auto less = [&](int64_t a, int64_t b) {
        const float u = comparable(x[at(a).from]), v = comparable(x[at(b).from]);
        return u < v || (u == v && a < b);
    };
    std::nth_element(order.begin(), order.begin() + n_each, order.end(), less);
    const uint16_t least = x[at(order[n_each]).from];
    std::nth_element(order.begin() + n_each, order.end() - n_each - 1, order.end(), less);
    const uint16_t most = x[at(order[n - n_each - 1]).from];
    for (int64_t i = 0; i < n_each; ++i) {
        to[at(order[i]).to] = least;
        to[at(order[n - 1 - i]).to] = most;
        mark[at(order[i]).to] = mark[at(order[n - 1 - i]).to] = 1;
    }
}

struct Place {
    int64_t from, to;  // in the rows at hand, in what is written
};

// a [n, rank] = e [n, dim] b^T, b [rank, dim]
void project(const float * e, int64_t n, int dim, const std::vector<float> & b, int rank, float * a) {
    for (int64_t t = 0; t < n; ++t, e += dim) {
        for (int r = 0; r < rank; ++r) {
            float dot = 0;
            for (int c = 0; c < dim; ++c) {
                dot += e[c] * b[r * dim + c];
            }
            a[t * rank + r] = dot;
        }
    }
}

// Rows b [rank, dim] made orthonormal, one after the other; what depends on those before becomes zeros.
void orthonormalize(std::vector<float> & b, int rank, int dim) {
    for (int r = 0; r < rank; ++r) {
        float * row = &b[r * dim];
        const float before = std::sqrt(std::inner_product(row, row + dim, row, 0.0f));
        for (int s = 0; s < r; ++s) {
            const float dot = std::inner_product(row, row + dim, &b[s * dim], 0.0f);
            for (int c = 0; c < dim; ++c) {
                row[c] -= dot * b[s * dim + c];
            }
        }
        const float norm = std::sqrt(std::inner_product(row, row + dim, row, 0.0f));
        for (int c = 0; c < dim; ++c) {
            row[c] = norm > 1e-5f * before && std::isfinite(norm) ? row[c] / norm : 0.0f;
        }
    }
}

// Power iteration for the rank largest singular directions of e [n, dim], from its longest rows. b [rank, dim]
std::vector<float> basis_of(const std::vector<float> & e, int64_t n, int dim, int rank) {
    constexpr int kIterations = 3;
    std::vector<float> length(n), b(size_t(rank) * dim), a(n * rank);
    for (int64_t t = 0; t < n; ++t) {
        const float * row = &e[t * dim];
        length[t] = std::inner_product(row, row + dim, row, 0.0f);
        length[t] = std::isfinite(length[t]) ? length[t] : 0.0f;
    }
    std::vector<int64_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&](int64_t x, int64_t y) { return length[x] != length[y] ? length[x] > length[y] : x < y; });
    for (int64_t r = 0; r < std::min<int64_t>(rank, n); ++r) {
        std::copy_n(&e[order[r] * dim], dim, &b[r * dim]);
    }
    orthonormalize(b, rank, dim);
    for (int i = 0; i < kIterations; ++i) {
        project(e.data(), n, dim, b, rank, a.data());
        std::fill(b.begin(), b.end(), 0.0f);
        for (int64_t t = 0; t < n; ++t) {
            for (int r = 0; r < rank; ++r) {
                for (int c = 0; c < dim; ++c) {
                    b[r * dim + c] += a[t * rank + r] * e[t * dim + c];
                }
            }
        }
        orthonormalize(b, rank, dim);
    }
    return b;
}

// Of n elements that share parameters, the outliers on either end; some are left in any case.
int64_t n_each(float share, int64_t n) {
    return std::min<int64_t>(std::llround(double(share) / 2 * double(n)), (n - 1) / 2);
}

// Rows of one side of a head, and what becomes of them.
struct Side {
    const ggml_zipcache_format & f;
    int64_t n_tokens;
    const uint16_t * rows;  // [n_tokens, head_dim] f16
    const uint8_t * mark;   // [n_tokens, head_dim]
    const float * coded;    // [n_tokens, head_dim]: what the codes give
};

// to: the side, whose starts are written.
void write_side(const Side & s, int rank, uint8_t * to) {
    const int dim = s.f.head_dim;
    const int64_t n = s.n_tokens, n_places = tile_places(n);
    std::vector<float> error(n * dim), a(n * rank);
    ggml_fp16_to_fp32_row(s.rows, error.data(), n * dim);
    for (int64_t i = 0; i < n * dim; ++i) {
        error[i] = s.mark[i] ? 0.0f : error[i] - s.coded[i];
    }
    const auto basis = basis_of(error, n, dim, rank);
    project(error.data(), n, dim, basis, rank, a.data());
    const CorrectionLayout layout(s.f, n, rank);
    auto * factors = reinterpret_cast<ggml_fp16_t *>(to + layout.factors);
    ggml_fp32_to_fp16_row(basis.data(), reinterpret_cast<ggml_fp16_t *>(to), int64_t(rank) * dim);
    for (int64_t t = 0; t < n; ++t) {
        for (int r = 0; r < rank; ++r) {
            factors[r * n_places + t] = ggml_fp32_to_fp16(a[t * rank + r]);
        }
    }
    const CorrectionView approximation = {rank, n_places, reinterpret_cast<const ggml_fp16_t *>(to), factors};
    std::vector<float> given(s.coded, s.coded + n * dim);  // by codes and approximation
    correct_rows(s.f, approximation, 0, n, given.data());
    auto * outlier = reinterpret_cast<Outlier *>(to + layout.outliers);
    for (int64_t i = 0; i < n * dim; ++i) {
        if (s.mark[i]) {
            const auto place = static_cast<int>(i / dim % s.f.group);
            *outlier++ = {static_cast<uint16_t>(place << 10 | int(i % dim)),
                          ggml_fp32_to_fp16(ggml_fp16_to_fp32(s.rows[i]) - given[i])};
        }
    }
}

}  // namespace

CorrectionView zipcache::format::correction_of(const ggml_zipcache_format & f, const uint8_t * correction, int head,
                                               bool is_key) {
    const CorrectionHeader & header = correction_header(correction);
    const auto * table = reinterpret_cast<const uint32_t *>(correction + sizeof header);
    const uint8_t * side = correction + table[2 * head + (is_key ? 0 : 1)];
    const CorrectionLayout layout(f, header.n_tokens, header.rank);
    return {static_cast<int>(header.rank),
            tile_places(header.n_tokens),
            reinterpret_cast<const ggml_fp16_t *>(side),
            reinterpret_cast<const ggml_fp16_t *>(side + layout.factors),
            reinterpret_cast<const uint32_t *>(side + layout.starts),
            reinterpret_cast<const Outlier *>(side + layout.outliers)};
}

void zipcache::format::correct_rows(const ggml_zipcache_format & f, const CorrectionView & view, int64_t first,
                                    int64_t n, float * x) {
    const int dim = f.head_dim;
    std::vector<float> basis(size_t(view.rank) * dim);
    ggml_fp16_to_fp32_row(view.basis, basis.data(), int64_t(basis.size()));
    for (int64_t t = 0; t < n; ++t) {
        for (int r = 0; r < view.rank; ++r) {
            const float factor = ggml_fp16_to_fp32(view.factors[r * view.n_places + first + t]);
            for (int c = 0; c < dim; ++c) {
                x[t * dim + c] += factor * basis[r * dim + c];
            }
        }
    }
    for (int64_t block = first / f.group; view.outliers && block * f.group < first + n; ++block) {
        for (uint32_t i = view.starts[block]; i < view.starts[block + 1]; ++i) {
            const Outlier & outlier = view.outliers[i];
            const int64_t t = block * f.group + outlier.place() - first;
            if (t >= 0 && t < n) {
                x[t * dim + outlier.channel()] += ggml_fp16_to_fp32(outlier.value);
            }
        }
    }
}

void ggml_zipcache_mark_outliers(const ggml_zipcache_format * f, const ggml_zipcache_rows * rows, float share,
                                 uint16_t * k, uint16_t * v, uint8_t * k_mark, uint8_t * v_mark) {
    const int64_t n = rows->n_tokens, dim = f->head_dim, size = f->n_kv_heads * n * dim;
    for (int64_t head = 0; head < f->n_kv_heads; ++head) {
        std::copy_n(rows->k + head * rows->stride * dim, n * dim, k + head * n * dim);
        std::copy_n(rows->v + head * rows->stride * dim, n * dim, v + head * n * dim);
    }
    std::fill_n(k_mark, size, uint8_t(0));
    std::fill_n(v_mark, size, uint8_t(0));
    for (int64_t i = 0; i < f->n_kv_heads * dim; ++i) {
        const int64_t head = i / dim, c = i % dim;
        mark_vector(
            rows->k, n, n_each(share, n),
            [&](int64_t t) { return Place{(head * rows->stride + t) * dim + c, (head * n + t) * dim + c}; }, k, k_mark);
    }
    for (int64_t t = 0; t < n; ++t) {
        mark_vector(
            rows->v, f->n_kv_heads * dim, n_each(share, f->n_kv_heads * dim),
            [&](int64_t i) {
                return Place{(i / dim * rows->stride + t) * dim + i % dim, (i / dim * n + t) * dim + i % dim};
            },
            v, v_mark);
    }
}

size_t ggml_zipcache_correction_bytes(const ggml_zipcache_format * f, int64_t n_tokens, int rank, float share) {
    const int64_t width = int64_t(f->n_kv_heads) * f->head_dim;
    const int64_t n_outliers = 2 * (width * n_each(share, n_tokens) + n_tokens * n_each(share, width));
    return correction_sides(*f) + 2 * f->n_kv_heads * CorrectionLayout(*f, n_tokens, rank).outliers +
           n_outliers * sizeof(Outlier);
}

void ggml_zipcache_correct_kv_begin(const ggml_zipcache_format * f, int64_t n_tokens, int rank, const uint8_t * k_mark,
                                    const uint8_t * v_mark, uint8_t * to) {
    const CorrectionLayout layout(*f, n_tokens, rank);
    const int64_t size = n_tokens * f->head_dim, n_blocks = correction_blocks(*f, n_tokens);
    auto * table = reinterpret_cast<uint32_t *>(to + sizeof(CorrectionHeader));
    int64_t at = correction_sides(*f);
    for (int side = 0; side < 2 * f->n_kv_heads; ++side) {
        const uint8_t * mark = (side % 2 ? v_mark : k_mark) + side / 2 * size;
        table[side] = static_cast<uint32_t>(at);
        std::fill_n(to + at, layout.starts, uint8_t(0));
        auto * starts = reinterpret_cast<uint32_t *>(to + at + layout.starts);
        starts[0] = 0;
        for (int64_t block = 0; block < n_blocks; ++block) {
            const int64_t last = std::min(size, (block + 1) * f->group * f->head_dim);
            starts[block + 1] = starts[block] + static_cast<uint32_t>(std::count(mark + block * f->group * f->head_dim,
                                                                                 mark + last, uint8_t(1)));
        }
        at += layout.bytes(starts[n_blocks]);
    }
    const CorrectionHeader header = {kCorrectionMagic, static_cast<uint32_t>(n_tokens), static_cast<uint32_t>(at),
                                     static_cast<uint32_t>(rank)};
    std::memcpy(to, &header, sizeof header);
}

void ggml_zipcache_correct_kv_head(const ggml_zipcache_format * f, const ggml_zipcache_rows * rows,
                                   const uint8_t * segment, const uint8_t * k_mark, const uint8_t * v_mark, int kv_head,
                                   uint8_t * to) {
    const int64_t n = rows->n_tokens, size = n * f->head_dim, row = kv_head * rows->stride * f->head_dim;
    std::vector<float> k(size), v(size);
    std::vector<uint8_t> kept(n);
    dequantize_head(*f, segment, kv_head, 0, n, nullptr, nullptr, k.data(), v.data(), kept.data());
    const auto * table = reinterpret_cast<const uint32_t *>(to + sizeof(CorrectionHeader));
    const auto rank = static_cast<int>(correction_header(to).rank);
    write_side({*f, n, rows->k + row, k_mark + kv_head * size, k.data()}, rank, to + table[2 * kv_head]);
    write_side({*f, n, rows->v + row, v_mark + kv_head * size, v.data()}, rank, to + table[2 * kv_head + 1]);
}

void ggml_zipcache_correct_rows(const ggml_zipcache_format * f, const uint8_t * correction, int kv_head, int64_t first,
                                int64_t n, uint16_t * k, uint16_t * v) {
    std::vector<float> x(n * f->head_dim);
    for (bool key : {true, false}) {
        uint16_t * rows = key ? k : v;
        ggml_fp16_to_fp32_row(rows, x.data(), int64_t(x.size()));
        correct_rows(*f, correction_of(*f, correction, kv_head, key), first, n, x.data());
        ggml_fp32_to_fp16_row(x.data(), rows, int64_t(x.size()));
    }
}

const char * ggml_zipcache_correction_error(const ggml_zipcache_format * f, int64_t n_tokens,
                                            const uint8_t * correction, size_t n_bytes) {
    if (int64_t(n_bytes) < correction_sides(*f)) {
        return "a correction shorter than its table";
    }
    const CorrectionHeader & header = correction_header(correction);
    if (header.magic != kCorrectionMagic || header.n_tokens != n_tokens || header.n_bytes != n_bytes ||
        header.rank > uint32_t(kMaxRank)) {
        return "a correction's header that does not match";
    }
    const CorrectionLayout layout(*f, n_tokens, header.rank);
    const auto * table = reinterpret_cast<const uint32_t *>(correction + sizeof header);
    int64_t at = correction_sides(*f);
    for (int side = 0; side < 2 * f->n_kv_heads; ++side) {
        if (table[side] != at || at + layout.outliers > int64_t(n_bytes)) {
            return "a correction's table that does not match";
        }
        const CorrectionView view = correction_of(*f, correction, side / 2, side % 2 == 0);
        const int64_t n_blocks = correction_blocks(*f, n_tokens), room = (int64_t(n_bytes) - at - layout.outliers) / 4;
        for (int64_t block = 0; block < n_blocks; ++block) {
            if (view.starts[0] != 0 || view.starts[block] > view.starts[block + 1] || view.starts[block + 1] > room) {
                return "outliers that are not in order";
            }
            const int64_t n = std::min<int64_t>(f->group, n_tokens - block * f->group);
            for (uint32_t i = view.starts[block]; i < view.starts[block + 1]; ++i) {
                if (view.outliers[i].place() >= n || view.outliers[i].channel() >= f->head_dim) {
                    return "an outlier outside its block";
                }
            }
        }
        at += layout.bytes(view.starts[n_blocks]);
    }
    return at == int64_t(n_bytes) ? nullptr : "a correction whose size does not match";
}
