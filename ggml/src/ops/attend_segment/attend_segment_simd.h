#pragma once
// The vector kernel, written once over the multiply-add `Ops` of unsigned codes and int8. Include it only from a file
// that is compiled for its instruction set, inside an anonymous namespace: no symbol of it may leave that file.
//
// No element is dequantized: scales are folded into the query (keys by channel) or into the probabilities (values by
// token), which are then rounded to int8; the dot products run on the packed codes. What the rounding loses on an
// average code, (q - q8) * (2^b - 1) / 2, is known beforehand and added back.

using simd::Avx2;

constexpr int kMaxPlaces = kGroup + kMaxTiers * kTile;
constexpr int kMaxDim = 512;

struct Pairs8 {
    Avx2 scale, min;
};

inline Pairs8 load_pairs(const Pair * pairs) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(pairs));
    const __m256i halves = _mm256_permute4x64_epi64(
        _mm256_packus_epi32(_mm256_and_si256(x, _mm256_set1_epi32(0xFFFF)), _mm256_srli_epi32(x, 16)), 0xD8);
    return {{_mm256_cvtph_ps(_mm256_castsi256_si128(halves))}, {_mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))}};
}

// x [n] >= or < 0 -> to [n] int8, n a multiple of 8. x ~ scale * to; `lost` is the sum of what rounding took.
struct Rounded {
    float scale, lost;
};

inline Rounded round_to_int8(const float * x, int n, int8_t * to) {
    const Avx2 sign = {_mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF))};
    Avx2 top = Avx2::zero();
    for (int i = 0; i < n; i += 8) {
        top = Avx2::max(top, {_mm256_and_ps(Avx2::load(x + i).r, sign.r)});
    }
    const float largest = top.max();
    const float scale = largest / 127.0f;
    // a subnormal largest has no finite inverse; its products vanish anyway
    const Avx2 inverse = Avx2::set(largest > 1e-30f ? 127.0f / largest : 0.0f), step = Avx2::set(scale);
    Avx2 lost = Avx2::zero();
    for (int i = 0; i < n; i += 8) {
        const Avx2 value = Avx2::load(x + i);
        const Avx2 rounded = Avx2::round(Avx2::mul(value, inverse));
        lost = Avx2::add(lost, Avx2::sub(value, Avx2::mul(rounded, step)));
        const __m256i wide = _mm256_cvtps_epi32(rounded.r);
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i *>(to + i), _mm_packs_epi16(words, words));
    }
    return {scale, lost.sum()};
}

inline __m256i four(const int8_t * bytes) {
    int32_t word;
    std::memcpy(&word, bytes, sizeof word);
    return _mm256_set1_epi32(word);
}

template <int W>
__m256i codes_of(__m256i packed, int sub) {
    return _mm256_and_si256(_mm256_srli_epi16(packed, sub * W), _mm256_set1_epi8((1 << W) - 1));
}

// sums [Queries, kMaxPlaces] i32 += (codes . q8) << shift, for each place of n_places
template <class Ops, int Queries, int W>
void k_plane(const uint8_t * plane, int n_places, int dim, const int8_t * q8, int shift, int32_t * sums) {
    const int n_vectors = (dim + 32 / W - 1) / (32 / W);
    for (int place = 0; place < n_places; place += 8) {
        __m256i sum[Queries];
        for (int i = 0; i < Queries; ++i) {
            sum[i] = _mm256_setzero_si256();
        }
        for (int v = 0; v < n_vectors; ++v, plane += kVector) {
            const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(plane));
            for (int sub = 0; sub < 8 / W; ++sub) {
                const __m256i codes = codes_of<W>(packed, sub);
                for (int i = 0; i < Queries; ++i) {
                    sum[i] = Ops::dot(sum[i], codes, four(q8 + i * kMaxDim + v * (32 / W) + sub * 4));
                }
            }
        }
        for (int i = 0; i < Queries; ++i) {
            auto * to = reinterpret_cast<__m256i *>(sums + i * kMaxPlaces + place);
            _mm256_storeu_si256(
                to, _mm256_add_epi32(_mm256_loadu_si256(to), _mm256_sll_epi32(sum[i], _mm_cvtsi32_si128(shift))));
        }
    }
}

// out [Queries, kMaxDim] += factor * (w8 . codes), over all places
template <class Ops, int Queries, int W>
void v_plane(const uint8_t * plane, int n_places, int dim, const int8_t * w8, const float * factor, float * out) {
    constexpr int subs = 8 / W;
    const int n_vectors = (dim + 64 / W - 1) / (64 / W);
    for (int v = 0; v < n_vectors; ++v) {
        __m256i sum[Queries][subs];
        for (int i = 0; i < Queries; ++i) {
            for (int sub = 0; sub < subs; ++sub) {
                sum[i][sub] = _mm256_setzero_si256();
            }
        }
        for (int place = 0; place < n_places; place += 4) {
            const auto * at = plane + (int64_t(place / 4) * n_vectors + v) * kVector;
            const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(at));
            __m256i weight[Queries];
            for (int i = 0; i < Queries; ++i) {
                weight[i] = four(w8 + i * kMaxPlaces + place);
            }
            for (int sub = 0; sub < subs; ++sub) {
                const __m256i codes = codes_of<W>(packed, sub);
                for (int i = 0; i < Queries; ++i) {
                    sum[i][sub] = Ops::dot(sum[i][sub], codes, weight[i]);
                }
            }
        }
        for (int i = 0; i < Queries; ++i) {
            for (int sub = 0; sub < subs && (v * subs + sub) * 8 < dim; ++sub) {
                float * to = out + i * kMaxDim + (v * subs + sub) * 8;
                Avx2::fma({_mm256_cvtepi32_ps(sum[i][sub])}, Avx2::set(factor[i]), Avx2::load(to)).store(to);
            }
        }
    }
}

inline float mid_code(int bits) {
    return static_cast<float>((1 << bits) - 1) / 2;
}

template <class Ops, int Queries>
struct Head {
    const HeadTask & task;
    const ggml_zipcache_format & f = task.format;
    const int dim = f.head_dim;
    const SegmentLayout layout{f, segment_tokens(task.segment)};
    alignas(32) float q_sum[Queries];                // of the query's channels
    alignas(32) int8_t plain_q8[Queries * kMaxDim];  // the query itself, for parameters by token
    Rounded plain_q[Queries];
    alignas(32) float out[Queries * kMaxDim];
    float bias[Queries];  // what all channels of `out` have in common
    float maximum[Queries], sum[Queries];

    explicit Head(const HeadTask & t) : task(t) {
        std::memset(plain_q8, 0, sizeof plain_q8);
        std::memset(out, 0, sizeof out);
        for (int i = 0; i < Queries; ++i) {
            plain_q[i] = round_to_int8(t.q + i * dim, dim, plain_q8 + i * kMaxDim);
            q_sum[i] = 0;
            for (int c = 0; c < dim; ++c) {
                q_sum[i] += t.q[i * dim + c];
            }
            bias[i] = sum[i] = 0;
            maximum[i] = -INFINITY;
        }
    }

    const Pair * channel_pairs(const ggml_zipcache_side & side, const SideLayout & at, int64_t segment_offset,
                               const uint8_t * block) const {
        return side.scope == GGML_ZIPCACHE_SCOPE_SEGMENT
                   ? reinterpret_cast<const Pair *>(task.segment + segment_offset) +
                         int64_t(task.head) * side.n_tiers * dim
                   : reinterpret_cast<const Pair *>(block + at.pairs);
    }

    void key_sums(const uint8_t * plane, int bits, int n_places, const int8_t * q8, int32_t * sums) const {
        std::memset(sums, 0, Queries * kMaxPlaces * sizeof *sums);
        const Planes planes = planes_of(bits);
        for (int i = 0, shift = 0; i < planes.n; shift += planes.width[i++]) {
            switch (planes.width[i]) {
                case 4: k_plane<Ops, Queries, 4>(plane, n_places, dim, q8, shift, sums); break;
                case 2: k_plane<Ops, Queries, 2>(plane, n_places, dim, q8, shift, sums); break;
                default: k_plane<Ops, Queries, 1>(plane, n_places, dim, q8, shift, sums);
            }
            plane += k_plane_bytes(n_places, dim, planes.width[i]);
        }
    }

    // logits [Queries, kMaxPlaces] of a tier whose keys have parameters by channel
    void by_channel(const Pair * pairs, const uint8_t * codes, int bits, int n_places, float * logits) const {
        alignas(32) int8_t q8[Queries * kMaxDim];
        alignas(32) float folded[kMaxDim];
        alignas(32) int32_t sums[Queries * kMaxPlaces];
        float scale[Queries], constant[Queries];
        for (int i = 0; i < Queries; ++i) {
            Avx2 offset = Avx2::zero();
            for (int c = 0; c < dim; c += 8) {
                const Pairs8 p = load_pairs(pairs + c);
                const Avx2 query = Avx2::load(task.q + i * dim + c);
                Avx2::mul(query, p.scale).store(folded + c);
                offset = Avx2::fma(query, p.min, offset);
            }
            const Rounded r = round_to_int8(folded, dim, q8 + i * kMaxDim);
            std::memset(q8 + i * kMaxDim + dim, 0, (-dim & 31));
            scale[i] = r.scale;
            constant[i] = offset.sum() + r.lost * mid_code(bits);
        }
        key_sums(codes, bits, n_places, q8, sums);
        for (int i = 0; i < Queries; ++i) {
            for (int p = 0; p < n_places; p += 8) {
                const auto * s = reinterpret_cast<const __m256i *>(sums + i * kMaxPlaces + p);
                Avx2::fma({_mm256_cvtepi32_ps(_mm256_loadu_si256(s))}, Avx2::set(scale[i]), Avx2::set(constant[i]))
                    .store(logits + i * kMaxPlaces + p);
            }
        }
    }

    void by_token(const Pair * pairs, const uint8_t * codes, int bits, int n_places, float * logits) const {
        alignas(32) int32_t sums[Queries * kMaxPlaces];
        key_sums(codes, bits, n_places, plain_q8, sums);
        for (int i = 0; i < Queries; ++i) {
            const Avx2 scale = Avx2::set(plain_q[i].scale), lost = Avx2::set(plain_q[i].lost * mid_code(bits));
            for (int p = 0; p < n_places; p += 8) {
                const auto * s = reinterpret_cast<const __m256i *>(sums + i * kMaxPlaces + p);
                const Avx2 dot = Avx2::fma({_mm256_cvtepi32_ps(_mm256_loadu_si256(s))}, scale, lost);
                const Pairs8 pair = load_pairs(pairs + p);
                Avx2::fma(dot, pair.scale, Avx2::mul(Avx2::set(q_sum[i]), pair.min)).store(logits + i * kMaxPlaces + p);
            }
        }
    }

    // Logits to weights relative to the running maximum, which they may raise.
    void softmax(int i, float * logits, int n_places) {
        Avx2 top = Avx2::set(maximum[i]);
        for (int p = 0; p < n_places; p += 8) {
            top = Avx2::max(top, Avx2::load(logits + p));
        }
        const float before = maximum[i];
        maximum[i] = top.max();
        Avx2 total = Avx2::zero();
        for (int p = 0; p < n_places; p += 8) {
            // places behind a tier's last token hold -inf, and exp's floor is not quite 0
            const Avx2 x = Avx2::load(logits + p);
            const Avx2 seen = {_mm256_cmp_ps(x.r, _mm256_set1_ps(-INFINITY), _CMP_GT_OQ)};
            const Avx2 weight = {_mm256_and_ps(Avx2::exp(Avx2::sub(x, Avx2::set(maximum[i]))).r, seen.r)};
            weight.store(logits + p);
            total = Avx2::add(total, weight);
        }
        const float shrink = before == maximum[i] ? 1.0f : std::exp(before - maximum[i]);
        sum[i] = sum[i] * shrink + total.sum();
        bias[i] *= shrink;
        for (int c = 0; shrink != 1.0f && c < dim; c += 8) {
            Avx2::mul(Avx2::load(out + i * kMaxDim + c), Avx2::set(shrink)).store(out + i * kMaxDim + c);
        }
    }

    void value_sums(const uint8_t * plane, int bits, int n_places, const int8_t * w8, const float * scale,
                    float * to) const {
        const Planes planes = planes_of(bits);
        for (int i = 0, shift = 0; i < planes.n; shift += planes.width[i++]) {
            float factor[Queries];
            for (int j = 0; j < Queries; ++j) {
                factor[j] = scale[j] * static_cast<float>(1 << shift);
            }
            switch (planes.width[i]) {
                case 4: v_plane<Ops, Queries, 4>(plane, n_places, dim, w8, factor, to); break;
                case 2: v_plane<Ops, Queries, 2>(plane, n_places, dim, w8, factor, to); break;
                default: v_plane<Ops, Queries, 1>(plane, n_places, dim, w8, factor, to);
            }
            plane += v_plane_bytes(n_places, dim, planes.width[i]);
        }
    }

    // weights [Queries, kMaxPlaces] by K's places -> by V's
    void to_value_places(const uint8_t * join, const SideLayout & v, const uint8_t * counts, float * weights) const {
        alignas(32) float moved[kMaxPlaces] = {};
        for (int i = 0; i < Queries; ++i) {
            float * w = weights + i * kMaxPlaces;
            for (int tier = 0; tier < f.v.n_tiers && f.v.bits[tier] > 0; ++tier) {
                for (int p = v.first_place[tier]; p < v.first_place[tier] + counts[tier]; ++p) {
                    moved[p] = w[join[p]];
                }
            }
            std::memcpy(w, moved, v.n_places * sizeof(float));
        }
    }

    void values(const uint8_t * block, const BlockLayout & at, const BlockHeader & header, float * weights) {
        const bool by_token = f.v.scope == GGML_ZIPCACHE_SCOPE_TOKEN;
        if (by_token) {
            const auto * pairs = reinterpret_cast<const Pair *>(block + at.v.pairs);
            for (int i = 0; i < Queries; ++i) {
                Avx2 offset = Avx2::zero();
                for (int p = 0; p < at.k.n_places; p += 8) {
                    const Pairs8 pair = load_pairs(pairs + p);
                    const Avx2 weight = Avx2::load(weights + i * kMaxPlaces + p);
                    offset = Avx2::fma(weight, pair.min, offset);
                    Avx2::mul(weight, pair.scale).store(weights + i * kMaxPlaces + p);
                }
                bias[i] += offset.sum();
            }
        }
        if (!f.same_order) {
            to_value_places(block + at.join, at.v, header.n_v, weights);
        }
        alignas(32) int8_t w8[Queries * kMaxPlaces];
        const Pair * channels = by_token ? nullptr : channel_pairs(f.v, at.v, layout.v_pairs, block);
        for (int tier = 0; tier < f.v.n_tiers; ++tier) {
            const int bits = f.v.bits[tier], n_places = tile_places(header.n_v[tier]);
            if (bits == 0 || n_places == 0) {
                continue;
            }
            float scale[Queries], lost[Queries];
            for (int i = 0; i < Queries; ++i) {
                const Rounded r =
                    round_to_int8(weights + i * kMaxPlaces + at.v.first_place[tier], n_places, w8 + i * kMaxPlaces);
                scale[i] = r.scale;
                lost[i] = r.lost * mid_code(bits);
                bias[i] += by_token ? lost[i] : 0;
            }
            const uint8_t * codes = block + at.v.tier_codes[tier];
            if (by_token) {
                value_sums(codes, bits, n_places, w8, scale, out);
            } else {
                add_by_channel(codes, bits, n_places, w8, scale, lost, weights + at.v.first_place[tier],
                               channels + int64_t(tier) * dim);
            }
        }
    }

    void add_by_channel(const uint8_t * codes, int bits, int n_places, const int8_t * w8, const float * scale,
                        const float * lost, const float * weights, const Pair * pairs) {
        alignas(32) float dots[Queries * kMaxDim];
        std::memset(dots, 0, sizeof dots);
        value_sums(codes, bits, n_places, w8, scale, dots);
        for (int i = 0; i < Queries; ++i) {
            Avx2 total = Avx2::zero();
            for (int p = 0; p < n_places; p += 8) {
                total = Avx2::add(total, Avx2::load(weights + i * kMaxPlaces + p));
            }
            const Avx2 all = Avx2::set(total.sum()), back = Avx2::set(lost[i]);
            for (int c = 0; c < dim; c += 8) {
                const Pairs8 pair = load_pairs(pairs + c);
                float * to = out + i * kMaxDim + c;
                const Avx2 dot = Avx2::add(Avx2::load(dots + i * kMaxDim + c), back);
                Avx2::fma(dot, pair.scale, Avx2::fma(all, pair.min, Avx2::load(to))).store(to);
            }
        }
    }

    void block(const uint8_t * data) {
        const auto & header = *reinterpret_cast<const BlockHeader *>(data);
        const BlockLayout at(f, header);
        alignas(32) float weights[Queries * kMaxPlaces];
        const Pair * pairs = channel_pairs(f.k, at.k, layout.k_pairs, data);
        for (int tier = 0; tier < f.k.n_tiers; ++tier) {
            const int bits = f.k.bits[tier], n = header.n_k[tier], n_places = tile_places(n);
            if (bits == 0 || n == 0) {
                continue;
            }
            const int first = at.k.first_place[tier];
            const uint8_t * codes = data + at.k.tier_codes[tier];
            if (f.k.scope == GGML_ZIPCACHE_SCOPE_TOKEN) {
                by_token(pairs + first, codes, bits, n_places, weights + first);
            } else {
                by_channel(pairs + int64_t(tier) * dim, codes, bits, n_places, weights + first);
            }
            for (int i = 0; i < Queries; ++i) {
                std::fill(weights + i * kMaxPlaces + first + n, weights + i * kMaxPlaces + first + n_places, -INFINITY);
            }
        }
        if (at.k.n_places == 0) {
            return;
        }
        for (int i = 0; i < Queries; ++i) {
            softmax(i, weights + i * kMaxPlaces, at.k.n_places);
        }
        values(data, at, header, weights);
    }

    void run() {
        const auto * directory = reinterpret_cast<const uint32_t *>(task.segment + layout.directory);
        for (int64_t group = task.first; group < task.last; ++group) {
            block(task.segment + directory[group * f.n_kv_heads + task.head]);
        }
        for (int i = 0; i < Queries; ++i) {
            for (int c = 0; c < dim; ++c) {
                task.out[i * dim + c] = out[i * kMaxDim + c] + bias[i];
            }
            task.maximum[i] = maximum[i];
            task.sum[i] = sum[i];
        }
    }
};

template <class Ops>
void head_simd(const HeadTask & task) {
    switch (task.n_queries) {
        case 4: Head<Ops, 4>(task).run(); break;
        case 3: Head<Ops, 3>(task).run(); break;
        case 2: Head<Ops, 2>(task).run(); break;
        default: Head<Ops, 1>(task).run();
    }
}
