#pragma once
// The vector kernel over packed codes, written once over `Ops`: a register type Ops::Floats, and what the sums over the
// codes are made of (packed_dots_*.h). Include it only from a file that is compiled for its instruction set, inside an
// anonymous namespace: no symbol of it may leave that file.
//
// No element is dequantized: scales are folded into the query (keys by channel) or into the probabilities (values by
// token), which are then rounded to int8; the dot products run on the codes, whose planes are joined in registers. What
// the rounding loses on an average code, (q - q8) * (2^b - 1) / 2, is known beforehand and added back.

constexpr int kMaxPlaces = kGroup;
constexpr int kMaxDim = 512;
constexpr int kChunk = 32;  // channels whose codes are joined together

// x' = scale * code + min for as many entries as a register has lanes.
template <class V>
struct Values {
    V scale, min;
};

template <class V>
inline Values<V> load_values(const Params & p, int64_t i) {
    switch (p.kind) {
        case GGML_ZIPCACHE_PARAMS_F16_PAIR: {
            Values<V> value;
            V::load_f16_pairs(reinterpret_cast<const uint16_t *>(p.data) + 2 * i, value.scale, value.min);
            return value;
        }
        case GGML_ZIPCACHE_PARAMS_F16_SCALE: {
            const V scale = V::load_f16(reinterpret_cast<const uint16_t *>(p.data) + i);
            return {scale, V::mul(scale, V::set(-p.bias))};
        }
        default: {
            const V range = V::mul(V::sub(V::load_f8(p.data + i), V::set(1)), V::set(p.range_unit));
            V min = V::mul(range, V::set(-p.low));
            if (p.kind == GGML_ZIPCACHE_PARAMS_F8_PAIR) {
                const V mid = V::load_i8(reinterpret_cast<const int8_t *>(p.data + p.n + i));
                const V unit = p.mid_unit > 0 ? V::set(p.mid_unit) : V::mul(range, V::set(1.0f / 256));
                min = V::fma(mid, unit, min);
            }
            return {V::mul(range, V::set(p.step)), min};
        }
    }
}

// x [n] -> to [n] int8, n a multiple of 8. x ~ scale * to; `lost` is the sum of what rounding took.
struct Rounded {
    float scale, lost;
};

template <class V>
inline Rounded round_to_int8(const float * x, int n, float largest, int8_t * to) {
    const float scale = largest / 127.0f;
    // a subnormal largest has no finite inverse; its products vanish anyway
    const V inverse = V::set(largest > 1e-30f ? 127.0f / largest : 0.0f), step = V::set(scale);
    V lost = V::zero();
    for (int i = 0; i < n; i += V::lanes) {
        const V value = V::load(x + i);
        const V rounded = V::round(V::mul(value, inverse));
        lost = V::add(lost, V::sub(value, V::mul(rounded, step)));
        rounded.store_i8(to + i);
    }
    return {scale, lost.sum()};
}

template <class V>
inline Rounded round_to_int8(const float * x, int n, int8_t * to) {
    V top = V::zero();
    for (int i = 0; i < n; i += V::lanes) {
        top = V::max(top, V::abs(V::load(x + i)));
    }
    return round_to_int8<V>(x, n, top.max(), to);
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

// The innermost loops, by kind of register: packed_dots_*.h. plane: where the planes begin; tile_bytes: of each plane,
// from 8 places (keys) or 4 (values) to the next.

// sums [Queries, kMaxPlaces] i32 = codes . q8 over channels [first, last), for Tiles times 8 places
template <class Ops, int Queries, int Bits, int Tiles>
inline void key_tiles(const uint8_t * const * plane, const int64_t * tile_bytes, int first, int last, const int8_t * q8,
                      int32_t * sums);

// out [Queries, kMaxDim] += scale * (w8 . codes) over all places, for N sub-vectors of eight channels: the first of 64
// channels, or those from the 32nd on if Odd
template <class Ops, int Queries, int Bits, int N, int Odd>
inline void value_chunk(const uint8_t * const * plane, const int64_t * tile_bytes, int n_places, const int8_t * w8,
                        const float * scale, float * out);

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

// out [Queries, kMaxDim] += scale * (w8 . codes) for channels [first, last)
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
    using V = typename Ops::Floats;

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
    CorrectionView k_correction, v_correction;          // of the segment at hand, if it has one
    float projected[Queries * GGML_ZIPCACHE_MAX_RANK];  // the query on the bases of its keys

    explicit Head(const PackedTask & t) : task(t) {
        for (int i = 0; i < Queries; ++i) {
            std::memset(plain_q8 + i * kMaxDim, 0, dim + kChunk > kMaxDim ? kMaxDim : dim + kChunk);
            std::memset(q8 + i * kMaxDim, 0, dim + kChunk > kMaxDim ? kMaxDim : dim + kChunk);
            std::fill_n(out + i * kMaxDim, std::min(kMaxDim, dim + kChunk), 0.0f);
            plain_scale[i] = round_to_int8<V>(t.q + i * dim, dim, plain_q8 + i * kMaxDim).scale;
            bias[i] = sum[i] = 0;
            maximum[i] = -INFINITY;
        }
    }

    // q8 <- the query times the channels' scales; q_constant <- the query times their mins
    void fold(const Params & params) {
        alignas(32) float product[Queries * kMaxDim];
        V offset[Queries], top[Queries];
        for (int i = 0; i < Queries; ++i) {
            offset[i] = top[i] = V::zero();
        }
        for (int c = 0; c < dim; c += V::lanes) {
            const Values<V> value = load_values<V>(params, c);
            for (int i = 0; i < Queries; ++i) {
                const V query = V::load(task.q + i * dim + c);
                const V x = V::mul(query, value.scale);
                x.store(product + i * kMaxDim + c);
                top[i] = V::max(top[i], V::abs(x));
                offset[i] = V::fma(query, value.min, offset[i]);
            }
        }
        for (int i = 0; i < Queries; ++i) {
            const Rounded r = round_to_int8<V>(product + i * kMaxDim, dim, top[i].max(), q8 + i * kMaxDim);
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
            const V scale = V::set(q_scale[i]), constant = V::set(q_constant[i] + q_lost[i] * levels(bits) / 2);
            for (int p = 0; p < block.n_places; p += V::lanes) {
                V::fma(V::load_i32(sums + i * kMaxPlaces + p), scale, constant).store(logits + i * kMaxPlaces + p);
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
                const V scale = V::set(plain_scale[i]), all = V::set(total);
                const V lost = V::set((total - rounded * plain_scale[i]) * levels(bits) / 2);
                for (int p = 0; p < block.n_places; p += V::lanes) {
                    const V dot = V::fma(V::load_i32(sums + i * kMaxPlaces + p), scale, lost);
                    const Values<V> value = load_values<V>(block.k_params, int64_t(first / width) * block.n_places + p);
                    float * to = logits + i * kMaxPlaces + p;
                    const V before = first == 0 ? V::zero() : V::load(to);
                    V::fma(dot, value.scale, V::fma(all, value.min, before)).store(to);
                }
            }
        }
    }

    // Logits to weights relative to the running maximum, which they may raise.
    void softmax(int i, float * logits, int n_places) {
        V top = V::set(maximum[i]);
        for (int p = 0; p < n_places; p += V::lanes) {
            top = V::max(top, V::load(logits + p));
        }
        const float before = maximum[i];
        maximum[i] = top.max();
        V total = V::zero();
        for (int p = 0; p < n_places; p += V::lanes) {
            // hidden places hold -inf, and exp's floor is not quite 0
            const V x = V::load(logits + p);
            const V weight = V::zero_where_infinite(V::exp(V::sub(x, V::set(maximum[i]))), x);
            weight.store(logits + p);
            total = V::add(total, weight);
        }
        const float shrink = before == maximum[i] ? 1.0f : std::exp(before - maximum[i]);
        sum[i] = sum[i] * shrink + total.sum();
        bias[i] *= shrink;
        for (int c = 0; shrink != 1.0f && c < dim; c += V::lanes) {
            V::mul(V::load(out + i * kMaxDim + c), V::set(shrink)).store(out + i * kMaxDim + c);
        }
    }

    // out += weights . values of a block whose values have parameters by token
    void add_by_token(const Block & block, int bits, const float * weights) {
        const int width = std::min(f.v.block, dim);
        alignas(32) float scaled[Queries * kMaxPlaces];
        alignas(32) int8_t w8[Queries * kMaxPlaces];
        for (int first = 0; first < dim; first += width) {
            float scale[Queries];
            V offset[Queries], top[Queries];
            for (int i = 0; i < Queries; ++i) {
                offset[i] = top[i] = V::zero();
            }
            for (int p = 0; p < block.n_places; p += V::lanes) {
                const Values<V> value = load_values<V>(block.v_params, int64_t(first / width) * block.n_places + p);
                for (int i = 0; i < Queries; ++i) {
                    const V weight = V::load(weights + i * kMaxPlaces + p);
                    const V x = V::mul(weight, value.scale);
                    x.store(scaled + i * kMaxPlaces + p);
                    top[i] = V::max(top[i], V::abs(x));
                    offset[i] = V::fma(weight, value.min, offset[i]);
                }
            }
            for (int i = 0; i < Queries; ++i) {
                const Rounded r =
                    round_to_int8<V>(scaled + i * kMaxPlaces, block.n_places, top[i].max(), w8 + i * kMaxPlaces);
                scale[i] = r.scale;
                const float common = offset[i].sum() + r.lost * levels(bits) / 2;
                if (width == dim) {
                    bias[i] += common;
                }
                for (int c = first; width < dim && c < first + width; c += V::lanes) {
                    float * to = out + i * kMaxDim + c;
                    V::add(V::load(to), V::set(common)).store(to);
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
            const Rounded r = round_to_int8<V>(weights + i * kMaxPlaces, block.n_places, w8 + i * kMaxPlaces);
            scale[i] = r.scale;
            lost[i] = r.lost * levels(bits) / 2;
        }
        with_bits(bits, [&](auto b) {
            value_dots<Ops, Queries, b.value>(block.v, block.n_places, dim, 0, dim, w8, scale, dots);
        });
        for (int i = 0; i < Queries; ++i) {
            V total = V::zero();
            for (int p = 0; p < block.n_places; p += V::lanes) {
                total = V::add(total, V::load(weights + i * kMaxPlaces + p));
            }
            const V all = V::set(total.sum()), back = V::set(lost[i]);
            for (int c = 0; c < dim; c += V::lanes) {
                const Values<V> value = load_values<V>(block.v_params, c);
                float * to = out + i * kMaxDim + c;
                const V dot = V::add(V::load(dots + i * kMaxDim + c), back);
                V::fma(dot, value.scale, V::fma(all, value.min, V::load(to))).store(to);
            }
        }
    }

    // The same of keys that are f16 as they are.
    void uncoded(const Block & block, float * logits) const {
        const auto * key = reinterpret_cast<const uint16_t *>(block.k);
        for (int p = 0; p < block.n; ++p, key += dim) {
            V dot[Queries];
            std::fill_n(dot, Queries, V::zero());
            for (int c = 0; c < dim; c += V::lanes) {
                const V x = V::load_f16(key + c);
                for (int i = 0; i < Queries; ++i) {
                    dot[i] = V::fma(V::load(task.q + i * dim + c), x, dot[i]);
                }
            }
            for (int i = 0; i < Queries; ++i) {
                logits[i * kMaxPlaces + p] = dot[i].sum();
            }
        }
    }

    // out += weights . values that are f16 as they are
    void add_uncoded(const Block & block, const float * weights) {
        const auto * values = reinterpret_cast<const uint16_t *>(block.v);
        for (int c = 0; c < dim; c += V::lanes) {
            V sum[Queries];
            for (int i = 0; i < Queries; ++i) {
                sum[i] = V::load(out + i * kMaxDim + c);
            }
            for (int p = 0; p < block.n; ++p) {
                const V x = V::load_f16(values + p * dim + c);
                for (int i = 0; i < Queries; ++i) {
                    sum[i] = V::fma(V::set(weights[i * kMaxPlaces + p]), x, sum[i]);
                }
            }
            for (int i = 0; i < Queries; ++i) {
                sum[i].store(out + i * kMaxDim + c);
            }
        }
    }

    // The correction of a segment's keys meets the query through its basis.
    void begin_correction(const ggml_zipcache_segment & segment) {
        k_correction = correction_of(f, segment.correction, task.head, true);
        v_correction = correction_of(f, segment.correction, task.head, false);
        for (int r = 0; r < k_correction.rank; ++r) {
            V dot[Queries];
            std::fill_n(dot, Queries, V::zero());
            for (int c = 0; c < dim; c += V::lanes) {
                const V basis = V::load_f16(k_correction.basis + r * dim + c);
                for (int i = 0; i < Queries; ++i) {
                    dot[i] = V::fma(V::load(task.q + i * dim + c), basis, dot[i]);
                }
            }
            for (int i = 0; i < Queries; ++i) {
                projected[i * GGML_ZIPCACHE_MAX_RANK + r] = dot[i].sum();
            }
        }
    }

    // Calls visit(place, channel, value) for the outliers of a block.
    template <class Visit>
    void each_outlier(const CorrectionView & view, const Block & block, Visit && visit) const {
        const uint32_t * starts = view.starts + block.place / f.group;
        for (uint32_t j = starts[0]; j < starts[1]; ++j) {
            const Outlier & outlier = view.outliers[j];
            visit(outlier.place(), outlier.channel(), ggml_fp16_to_fp32(outlier.value));
        }
    }

    void correct_keys(const Block & block, float * logits) const {
        for (int r = 0; r < k_correction.rank; ++r) {
            const uint16_t * factors = k_correction.factors + r * k_correction.n_places + block.place;
            for (int p = 0; p < block.n_places; p += V::lanes) {
                const V factor = V::load_f16(factors + p);
                for (int i = 0; i < Queries; ++i) {
                    float * to = logits + i * kMaxPlaces + p;
                    V::fma(factor, V::set(projected[i * GGML_ZIPCACHE_MAX_RANK + r]), V::load(to)).store(to);
                }
            }
        }
        each_outlier(k_correction, block, [&](int place, int channel, float value) {
            for (int i = 0; i < Queries; ++i) {
                logits[i * kMaxPlaces + place] += task.q[i * dim + channel] * value;
            }
        });
    }

    void correct_values(const Block & block, const float * weights) {
        for (int r = 0; r < v_correction.rank; ++r) {
            const uint16_t * factors = v_correction.factors + r * v_correction.n_places + block.place;
            V total[Queries];
            std::fill_n(total, Queries, V::zero());
            for (int p = 0; p < block.n_places; p += V::lanes) {
                const V factor = V::load_f16(factors + p);
                for (int i = 0; i < Queries; ++i) {
                    total[i] = V::fma(V::load(weights + i * kMaxPlaces + p), factor, total[i]);
                }
            }
            V weight[Queries];
            for (int i = 0; i < Queries; ++i) {
                weight[i] = V::set(total[i].sum());
            }
            for (int c = 0; c < dim; c += V::lanes) {
                const V basis = V::load_f16(v_correction.basis + r * dim + c);
                for (int i = 0; i < Queries; ++i) {
                    float * to = out + i * kMaxDim + c;
                    V::fma(weight[i], basis, V::load(to)).store(to);
                }
            }
        }
        each_outlier(v_correction, block, [&](int place, int channel, float value) {
            for (int i = 0; i < Queries; ++i) {
                out[i * kMaxDim + channel] += weights[i * kMaxPlaces + place] * value;
            }
        });
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
            __builtin_prefetch(from + i);
        }
    }

    void add(const ggml_zipcache_segment & segment, const Block & block) {
        alignas(32) float weights[Queries * kMaxPlaces];
        fetch(block.k + block.size, block.size / 2);
        const int k_bits = f.k.bits[block.tier], v_bits = f.v.bits[block.tier];
        if (k_bits == kUncoded) {
            uncoded(block, weights);
        } else if (f.k.scope == GGML_ZIPCACHE_SCOPE_TOKEN) {
            by_token(block, k_bits, weights);
        } else {
            by_channel(block, k_bits, weights);
        }
        if (segment.correction) {
            correct_keys(block, weights);
        }
        hide(segment, block, weights);
        for (int i = 0; i < Queries; ++i) {
            softmax(i, weights + i * kMaxPlaces, block.n_places);
        }
        fetch(block.k + block.size + block.size / 2, block.size - block.size / 2);
        if (segment.correction) {
            correct_values(block, weights);
        }
        if (v_bits == 0) {
            return;
        }
        if (v_bits == kUncoded) {
            add_uncoded(block, weights);
        } else if (f.v.scope == GGML_ZIPCACHE_SCOPE_TOKEN) {
            add_by_token(block, v_bits, weights);
        } else {
            add_by_channel(block, v_bits, weights);
        }
    }

    void run() {
        for (int64_t j = 0; j < task.n_segments; ++j) {
            const ggml_zipcache_segment & segment = task.segments[j];
            const HeadView view(f, segment.data, task.head);
            if (segment.correction) {
                begin_correction(segment);
            }
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
