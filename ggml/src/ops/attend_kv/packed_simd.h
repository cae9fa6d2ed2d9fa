#pragma once
// The vector kernel over packed codes, written once over the multiply-add `Ops` of unsigned codes and int8. Include it
// only from a file that is compiled for its instruction set, inside an anonymous namespace: no symbol of it may leave
// that file.
//
// No element is dequantized: scales are folded into the query (keys by channel) or into the probabilities (values by
// token), which are then rounded to int8; the dot products run on the codes, whose planes are joined in registers. What
// the rounding loses on an average code, (q - q8) * (2^b - 1) / 2, is known beforehand and added back.

using simd::Avx2;

constexpr int kMaxPlaces = kGroup;
constexpr int kMaxDim = 512;
constexpr int kChunk = 32;  // channels whose codes are joined together

// x' = scale * code + min for eight entries.
struct Values8 {
    Avx2 scale, min;
};

inline __m128i eight(const uint8_t * bytes) {
    return _mm_loadl_epi64(reinterpret_cast<const __m128i *>(bytes));
}

inline Values8 load_values(const Params & p, int64_t i) {
    switch (p.kind) {
        case GGML_ZIPCACHE_PARAMS_F16_PAIR: {
            const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p.data + 4 * i));
            const __m256i halves = _mm256_permute4x64_epi64(
                _mm256_packus_epi32(_mm256_and_si256(x, _mm256_set1_epi32(0xFFFF)), _mm256_srli_epi32(x, 16)), 0xD8);
            return {{_mm256_cvtph_ps(_mm256_castsi256_si128(halves))},
                    {_mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))}};
        }
        case GGML_ZIPCACHE_PARAMS_F16_SCALE: {
            const Avx2 scale = Avx2::load_f16(reinterpret_cast<const uint16_t *>(p.data) + i);
            return {scale, Avx2::mul(scale, Avx2::set(-p.bias))};
        }
        default: {
            const __m256i u = _mm256_slli_epi32(_mm256_cvtepu8_epi32(eight(p.data + i)), 19);
            const Avx2 power = {_mm256_castsi256_ps(_mm256_add_epi32(u, _mm256_set1_epi32(127 << 23)))};
            const Avx2 range = Avx2::mul(Avx2::sub(power, Avx2::set(1)), Avx2::set(p.range_unit));
            Avx2 min = Avx2::mul(range, Avx2::set(-p.low));
            if (p.kind == GGML_ZIPCACHE_PARAMS_F8_PAIR) {
                const Avx2 mid = {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight(p.data + p.n + i)))};
                const Avx2 unit = p.mid_unit > 0 ? Avx2::set(p.mid_unit) : Avx2::mul(range, Avx2::set(1.0f / 256));
                min = Avx2::fma(mid, unit, min);
            }
            return {Avx2::mul(range, Avx2::set(p.step)), min};
        }
    }
}

// x [n] -> to [n] int8, n a multiple of 8. x ~ scale * to; `lost` is the sum of what rounding took.
struct Rounded {
    float scale, lost;
};

inline Avx2 magnitude(Avx2 x) {
    return {_mm256_and_ps(x.r, _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF)))};
}

inline Rounded round_to_int8(const float * x, int n, float largest, int8_t * to) {
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

inline Rounded round_to_int8(const float * x, int n, int8_t * to) {
    Avx2 top = Avx2::zero();
    for (int i = 0; i < n; i += 8) {
        top = Avx2::max(top, magnitude(Avx2::load(x + i)));
    }
    return round_to_int8(x, n, top.max(), to);
}

inline __m256i four(const int8_t * bytes) {
    int32_t word;
    std::memcpy(&word, bytes, sizeof word);
    return _mm256_set1_epi32(word);
}

// Calls f with 0, 1, ... N - 1 as constants.
template <int... I, class F>
inline void each_of(std::integer_sequence<int, I...>, F && f) {
    (f(std::integral_constant<int, I>()), ...);
}

template <int N, class F>
inline void each(F && f) {
    each_of(std::make_integer_sequence<int, N>(), f);
}

template <int Bits>
constexpr int plane_low(int plane) {
    int low = 0;
    for (int i = 0; i < plane; ++i) {
        low += planes_of(Bits).width[i];
    }
    return low;
}

// Bits [Shift, Shift + W) of each byte of `from`, moved to bit Low.
template <int W, int Shift, int Low>
inline __m256i plane_bits(__m256i from) {
    const __m256i moved = Shift >= Low ? _mm256_srli_epi16(from, Shift >= Low ? Shift - Low : 0)
                                       : _mm256_slli_epi16(from, Shift >= Low ? 0 : Low - Shift);
    return _mm256_and_si256(moved, _mm256_set1_epi8(static_cast<char>(((1 << W) - 1) << Low)));
}

// Codes of sub-vector Sub, counted from the vectors that `plane` points at; the planes joined.
template <int Bits, int Sub, int Plane = 0>
inline __m256i joined(const uint8_t * const * plane) {
    constexpr int width = planes_of(Bits).width[Plane], subs = 8 / width;
    const auto * at = reinterpret_cast<const __m256i *>(plane[Plane] + Sub / subs * kVector);
    const __m256i bits = plane_bits<width, Sub % subs * width, plane_low<Bits>(Plane)>(_mm256_loadu_si256(at));
    if constexpr (Plane + 1 < planes_of(Bits).n) {
        return _mm256_or_si256(bits, joined<Bits, Sub, Plane + 1>(plane));
    } else {
        return bits;
    }
}

// sum [Tiles][Queries] += codes . q8 for N sub-vectors of four channels. plane: of the first tile at the first channel;
// tile_bytes: from a tile to the next, for each plane.
template <class Ops, int Queries, int Bits, int Tiles, int N>
inline void key_chunk(const uint8_t * const * plane, const int64_t * tile_bytes, const int8_t * q8,
                      __m256i (*sum)[Queries]) {
    const uint8_t * at[Tiles][3];
    for (int t = 0; t < Tiles; ++t) {
        for (int p = 0; p < planes_of(Bits).n; ++p) {
            at[t][p] = plane[p] + t * tile_bytes[p];
        }
    }
    each<N>([&](auto s) {
        __m256i code[Tiles];
        for (int t = 0; t < Tiles; ++t) {
            code[t] = joined<Bits, s.value>(at[t]);
        }
        for (int i = 0; i < Queries; ++i) {
            const __m256i query = four(q8 + i * kMaxDim + s.value * 4);
            for (int t = 0; t < Tiles; ++t) {
                sum[t][i] = Ops::template dot<Bits>(sum[t][i], code[t], query);
            }
        }
    });
}

template <class Ops, int Queries, int Bits, int Tiles>
inline void key_tiles(const uint8_t * const * plane, const int64_t * tile_bytes, int first, int last, const int8_t * q8,
                      int32_t * sums) {
    __m256i sum[Tiles][Queries];
    for (int t = 0; t < Tiles; ++t) {
        for (int i = 0; i < Queries; ++i) {
            sum[t][i] = _mm256_setzero_si256();
        }
    }
    const uint8_t * at[3];
    for (int channel = first; channel < last; channel += kChunk) {
        for (int p = 0; p < planes_of(Bits).n; ++p) {
            at[p] = plane[p] + channel / kChunk * planes_of(Bits).width[p] * kVector;
        }
        const int8_t * q = q8 + channel;
        if (last - channel >= kChunk) {
            key_chunk<Ops, Queries, Bits, Tiles, 8>(at, tile_bytes, q, sum);
        } else if (last - channel >= 24) {
            key_chunk<Ops, Queries, Bits, Tiles, 6>(at, tile_bytes, q, sum);
        } else if (last - channel >= 16) {
            key_chunk<Ops, Queries, Bits, Tiles, 4>(at, tile_bytes, q, sum);
        } else {
            key_chunk<Ops, Queries, Bits, Tiles, 2>(at, tile_bytes, q, sum);
        }
    }
    for (int t = 0; t < Tiles; ++t) {
        for (int i = 0; i < Queries; ++i) {
            _mm256_store_si256(reinterpret_cast<__m256i *>(sums + i * kMaxPlaces + t * 8), sum[t][i]);
        }
    }
}

// sums [Queries, kMaxPlaces] i32 = codes . q8 over channels [first, last), for each place of n_places
template <class Ops, int Queries, int Bits>
void key_dots(const uint8_t * codes, int n_places, int dim, int first, int last, const int8_t * q8, int32_t * sums) {
    constexpr Planes planes = planes_of(Bits);
    const uint8_t * plane[3];
    int64_t tile_bytes[3];
    for (int p = 0; p < planes.n; ++p) {
        plane[p] = codes;
        tile_bytes[p] = k_plane_bytes(8, dim, planes.width[p]);
        codes += k_plane_bytes(n_places, dim, planes.width[p]);
    }
    auto advance = [&](int tiles) {
        for (int p = 0; p < planes.n; ++p) {
            plane[p] += tiles * tile_bytes[p];
        }
    };
    int place = 0;
    for (; place + 16 <= n_places; place += 16) {  // two tiles share the loads of the query
        key_tiles<Ops, Queries, Bits, 2>(plane, tile_bytes, first, last, q8, sums + place);
        advance(2);
    }
    if (place < n_places) {
        key_tiles<Ops, Queries, Bits, 1>(plane, tile_bytes, first, last, q8, sums + place);
    }
}

// out [Queries, kMaxDim] += scale * (w8 . codes) over all places, for N sub-vectors of eight channels from `Odd` on.
// plane: at the first place; tile_bytes: from four places to the next, for each plane.
template <class Ops, int Queries, int Bits, int N, int Odd>
inline void value_chunk(const uint8_t * const * plane, const int64_t * tile_bytes, int n_places, const int8_t * w8,
                        const float * scale, float * out) {
    constexpr Planes planes = planes_of(Bits);
    const uint8_t * at[3];
    for (int p = 0; p < planes.n; ++p) {
        at[p] = plane[p];
    }
    __m256i sum[Queries][N];
    for (int i = 0; i < Queries; ++i) {
        for (int s = 0; s < N; ++s) {
            sum[i][s] = _mm256_setzero_si256();
        }
    }
    for (int place = 0; place < n_places; place += 4) {
        __m256i weight[Queries];
        for (int i = 0; i < Queries; ++i) {
            weight[i] = four(w8 + i * kMaxPlaces + place);
        }
        each<N>([&](auto s) {
            const __m256i code = joined<Bits, Odd * 4 + s.value>(at);
            for (int i = 0; i < Queries; ++i) {
                sum[i][s.value] = Ops::template dot<Bits>(sum[i][s.value], code, weight[i]);
            }
        });
        for (int p = 0; p < planes.n; ++p) {
            at[p] += tile_bytes[p];
        }
    }
    for (int i = 0; i < Queries; ++i) {
        for (int s = 0; s < N; ++s) {
            float * to = out + i * kMaxDim + s * 8;
            Avx2::fma({_mm256_cvtepi32_ps(sum[i][s])}, Avx2::set(scale[i]), Avx2::load(to)).store(to);
        }
    }
}

// The same for channels [first, last).
template <class Ops, int Queries, int Bits>
void value_dots(const uint8_t * codes, int n_places, int dim, int first, int last, const int8_t * w8,
                const float * scale, float * out) {
    constexpr Planes planes = planes_of(Bits);
    const uint8_t * plane[3];
    int64_t tile_bytes[3];
    for (int p = 0; p < planes.n; ++p) {
        plane[p] = codes;
        tile_bytes[p] = v_plane_bytes(4, dim, planes.width[p]);
        codes += v_plane_bytes(n_places, dim, planes.width[p]);
    }
    // 64 channels are whole vectors of every plane
    for (int channel = first / 64 * 64; channel < last; channel += 64) {
        const uint8_t * at[3];
        for (int p = 0; p < planes.n; ++p) {
            at[p] = plane[p] + channel / 64 * planes.width[p] * kVector;
        }
        auto half = [&](auto odd) {
            const int start = channel + odd.value * kChunk;
            float * to = out + start;
            const int n = (std::min(last, start + kChunk) - start + 7) / 8;
            if (start < first) {
                return;
            }
            switch (n) {
                case 4: value_chunk<Ops, Queries, Bits, 4, odd.value>(at, tile_bytes, n_places, w8, scale, to); break;
                case 3: value_chunk<Ops, Queries, Bits, 3, odd.value>(at, tile_bytes, n_places, w8, scale, to); break;
                case 2: value_chunk<Ops, Queries, Bits, 2, odd.value>(at, tile_bytes, n_places, w8, scale, to); break;
                case 1: value_chunk<Ops, Queries, Bits, 1, odd.value>(at, tile_bytes, n_places, w8, scale, to); break;
                default: break;
            }
        };
        each<2>(half);
    }
}

// Calls visit with the number of bits as a constant.
template <class Visit>
void with_bits(int bits, Visit && visit) {
    switch (bits) {
        case 1: visit(std::integral_constant<int, 1>()); break;
        case 2: visit(std::integral_constant<int, 2>()); break;
        case 3: visit(std::integral_constant<int, 3>()); break;
        case 4: visit(std::integral_constant<int, 4>()); break;
        case 5: visit(std::integral_constant<int, 5>()); break;
        case 6: visit(std::integral_constant<int, 6>()); break;
        case 7: visit(std::integral_constant<int, 7>()); break;
        case 8: visit(std::integral_constant<int, 8>()); break;
        default: break;
    }
}

template <class Ops, int Queries>
struct Head {
    const PackedTask & task;
    const ggml_zipcache_format & f = *task.segments->format;
    const int dim = f.head_dim;
    alignas(32) int8_t q8[Queries * kMaxDim];        // the query, scales folded in
    alignas(32) int8_t plain_q8[Queries * kMaxDim];  // the query itself, for parameters by token
    const uint8_t * folded = nullptr;                // the parameters that q8 holds, while they stay
    float q_scale[Queries], q_lost[Queries], q_constant[Queries];
    float plain_scale[Queries];
    alignas(32) float out[Queries * kMaxDim];
    float bias[Queries];  // what all channels of `out` have in common
    float maximum[Queries], sum[Queries];

    explicit Head(const PackedTask & t) : task(t) {
        for (int i = 0; i < Queries; ++i) {
            std::memset(plain_q8 + i * kMaxDim, 0, dim + kChunk > kMaxDim ? kMaxDim : dim + kChunk);
            std::memset(q8 + i * kMaxDim, 0, dim + kChunk > kMaxDim ? kMaxDim : dim + kChunk);
            std::fill_n(out + i * kMaxDim, std::min(kMaxDim, dim + kChunk), 0.0f);
            plain_scale[i] = round_to_int8(t.q + i * dim, dim, plain_q8 + i * kMaxDim).scale;
            bias[i] = sum[i] = 0;
            maximum[i] = -INFINITY;
        }
    }

    // q8 <- the query times the channels' scales; q_constant <- the query times their mins
    void fold(const Params & params) {
        alignas(32) float product[Queries * kMaxDim];
        Avx2 offset[Queries], top[Queries];
        for (int i = 0; i < Queries; ++i) {
            offset[i] = top[i] = Avx2::zero();
        }
        for (int c = 0; c < dim; c += 8) {
            const Values8 value = load_values(params, c);
            for (int i = 0; i < Queries; ++i) {
                const Avx2 query = Avx2::load(task.q + i * dim + c);
                const Avx2 x = Avx2::mul(query, value.scale);
                x.store(product + i * kMaxDim + c);
                top[i] = Avx2::max(top[i], magnitude(x));
                offset[i] = Avx2::fma(query, value.min, offset[i]);
            }
        }
        for (int i = 0; i < Queries; ++i) {
            const Rounded r = round_to_int8(product + i * kMaxDim, dim, top[i].max(), q8 + i * kMaxDim);
            q_scale[i] = r.scale;
            q_lost[i] = r.lost;
            q_constant[i] = offset[i].sum();
        }
    }

    // logits [Queries, kMaxPlaces] of a block whose keys have parameters by channel
    void by_channel(const Block & block, int bits, float * logits) {
        const Params & params = block.k_params;
        const bool same = f.k.scope == GGML_ZIPCACHE_SCOPE_SEGMENT && params.kind == GGML_ZIPCACHE_PARAMS_F16_PAIR &&
                          params.data == folded;
        if (!same) {
            fold(params);
            folded = params.data;
        }
        alignas(32) int32_t sums[Queries * kMaxPlaces];
        with_bits(bits,
                  [&](auto b) { key_dots<Ops, Queries, b.value>(block.k, block.n_places, dim, 0, dim, q8, sums); });
        for (int i = 0; i < Queries; ++i) {
            const Avx2 scale = Avx2::set(q_scale[i]),
                       constant = Avx2::set(q_constant[i] + q_lost[i] * levels(bits) / 2);
            for (int p = 0; p < block.n_places; p += 8) {
                const auto * s = reinterpret_cast<const __m256i *>(sums + i * kMaxPlaces + p);
                Avx2::fma({_mm256_cvtepi32_ps(_mm256_load_si256(s))}, scale, constant)
                    .store(logits + i * kMaxPlaces + p);
            }
        }
    }

    // The same for parameters by token, of `block` channels at a time.
    void by_token(const Block & block, int bits, float * logits) const {
        const int width = std::min(f.k.block, dim);
        alignas(32) int32_t sums[Queries * kMaxPlaces];
        for (int first = 0; first < dim; first += width) {
            with_bits(bits, [&](auto b) {
                key_dots<Ops, Queries, b.value>(block.k, block.n_places, dim, first, first + width, plain_q8, sums);
            });
            for (int i = 0; i < Queries; ++i) {
                float total = 0, rounded = 0;
                for (int c = first; c < first + width; ++c) {
                    total += task.q[i * dim + c];
                    rounded += static_cast<float>(plain_q8[i * kMaxDim + c]);
                }
                const Avx2 scale = Avx2::set(plain_scale[i]), all = Avx2::set(total);
                const Avx2 lost = Avx2::set((total - rounded * plain_scale[i]) * levels(bits) / 2);
                for (int p = 0; p < block.n_places; p += 8) {
                    const auto * s = reinterpret_cast<const __m256i *>(sums + i * kMaxPlaces + p);
                    const Avx2 dot = Avx2::fma({_mm256_cvtepi32_ps(_mm256_load_si256(s))}, scale, lost);
                    const Values8 value = load_values(block.k_params, int64_t(first / width) * block.n_places + p);
                    float * to = logits + i * kMaxPlaces + p;
                    const Avx2 before = first == 0 ? Avx2::zero() : Avx2::load(to);
                    Avx2::fma(dot, value.scale, Avx2::fma(all, value.min, before)).store(to);
                }
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
            // hidden places hold -inf, and exp's floor is not quite 0
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

    // out += weights . values of a block whose values have parameters by token
    void add_by_token(const Block & block, int bits, const float * weights) {
        const int width = std::min(f.v.block, dim);
        alignas(32) float scaled[Queries * kMaxPlaces];
        alignas(32) int8_t w8[Queries * kMaxPlaces];
        for (int first = 0; first < dim; first += width) {
            float scale[Queries];
            Avx2 offset[Queries], top[Queries];
            for (int i = 0; i < Queries; ++i) {
                offset[i] = top[i] = Avx2::zero();
            }
            for (int p = 0; p < block.n_places; p += 8) {
                const Values8 value = load_values(block.v_params, int64_t(first / width) * block.n_places + p);
                for (int i = 0; i < Queries; ++i) {
                    const Avx2 weight = Avx2::load(weights + i * kMaxPlaces + p);
                    const Avx2 x = Avx2::mul(weight, value.scale);
                    x.store(scaled + i * kMaxPlaces + p);
                    top[i] = Avx2::max(top[i], magnitude(x));
                    offset[i] = Avx2::fma(weight, value.min, offset[i]);
                }
            }
            for (int i = 0; i < Queries; ++i) {
                const Rounded r =
                    round_to_int8(scaled + i * kMaxPlaces, block.n_places, top[i].max(), w8 + i * kMaxPlaces);
                scale[i] = r.scale;
                const float common = offset[i].sum() + r.lost * levels(bits) / 2;
                if (width == dim) {
                    bias[i] += common;
                }
                for (int c = first; width < dim && c < first + width; c += 8) {
                    float * to = out + i * kMaxDim + c;
                    Avx2::add(Avx2::load(to), Avx2::set(common)).store(to);
                }
            }
            with_bits(bits, [&](auto b) {
                value_dots<Ops, Queries, b.value>(block.v, block.n_places, dim, first, first + width, w8, scale, out);
            });
        }
    }

    void add_by_channel(const Block & block, int bits, const float * weights) {
        alignas(32) float dots[Queries * kMaxDim];
        alignas(32) int8_t w8[Queries * kMaxPlaces];
        float scale[Queries], lost[Queries];
        for (int i = 0; i < Queries; ++i) {
            std::fill_n(dots + i * kMaxDim, std::min(kMaxDim, dim + kChunk), 0.0f);
            const Rounded r = round_to_int8(weights + i * kMaxPlaces, block.n_places, w8 + i * kMaxPlaces);
            scale[i] = r.scale;
            lost[i] = r.lost * levels(bits) / 2;
        }
        with_bits(bits, [&](auto b) {
            value_dots<Ops, Queries, b.value>(block.v, block.n_places, dim, 0, dim, w8, scale, dots);
        });
        for (int i = 0; i < Queries; ++i) {
            Avx2 total = Avx2::zero();
            for (int p = 0; p < block.n_places; p += 8) {
                total = Avx2::add(total, Avx2::load(weights + i * kMaxPlaces + p));
            }
            const Avx2 all = Avx2::set(total.sum()), back = Avx2::set(lost[i]);
            for (int c = 0; c < dim; c += 8) {
                const Values8 value = load_values(block.v_params, c);
                float * to = out + i * kMaxDim + c;
                const Avx2 dot = Avx2::add(Avx2::load(dots + i * kMaxDim + c), back);
                Avx2::fma(dot, value.scale, Avx2::fma(all, value.min, Avx2::load(to))).store(to);
            }
        }
    }

    // Places that hold no token, or one that is not seen, get -inf.
    void hide(const ggml_zipcache_segment & segment, const Block & block, float * logits) const {
        for (int i = 0; i < Queries; ++i) {
            std::fill(logits + i * kMaxPlaces + block.n, logits + i * kMaxPlaces + block.n_places, -INFINITY);
        }
        if (segment.position) {
            const uint16_t * position = segment.position + task.head * segment.n_places + block.place;
            for (int p = 0; p < block.n; ++p) {
                for (int i = 0; (position[p] < segment.first_seen || position[p] >= segment.last_seen) && i < Queries;
                     ++i) {
                    logits[i * kMaxPlaces + p] = -INFINITY;
                }
            }
        }
    }

    // The next block, most likely: no page or prefetcher stands between it and this one.
    static void fetch(const uint8_t * from, int64_t n) {
        for (int64_t i = 0; i < n; i += 64) {
            _mm_prefetch(reinterpret_cast<const char *>(from + i), _MM_HINT_T0);
        }
    }

    void add(const ggml_zipcache_segment & segment, const Block & block) {
        alignas(32) float weights[Queries * kMaxPlaces];
        fetch(block.k + block.size, block.size / 2);
        const int k_bits = f.k.bits[block.tier], v_bits = f.v.bits[block.tier];
        if (f.k.scope == GGML_ZIPCACHE_SCOPE_TOKEN) {
            by_token(block, k_bits, weights);
        } else {
            by_channel(block, k_bits, weights);
        }
        hide(segment, block, weights);
        for (int i = 0; i < Queries; ++i) {
            softmax(i, weights + i * kMaxPlaces, block.n_places);
        }
        fetch(block.k + block.size + block.size / 2, block.size - block.size / 2);
        if (v_bits == 0) {
            return;
        }
        if (f.v.scope == GGML_ZIPCACHE_SCOPE_TOKEN) {
            add_by_token(block, v_bits, weights);
        } else {
            add_by_channel(block, v_bits, weights);
        }
    }

    void run() {
        for (int64_t j = 0; j < task.n_segments; ++j) {
            const ggml_zipcache_segment & segment = task.segments[j];
            const HeadView view(f, segment.data, task.head);
            for_blocks(view, task.split, task.n_splits, static_cast<int>(task.turn + j),
                       [&](const Block & block) { add(segment, block); });
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
void packed_simd(const PackedTask & task) {
    switch (task.n_queries) {
        case 4: Head<Ops, 4>(task).run(); break;
        case 3: Head<Ops, 3>(task).run(); break;
        case 2: Head<Ops, 2>(task).run(); break;
        default: Head<Ops, 1>(task).run();
    }
}
