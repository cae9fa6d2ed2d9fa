#include "kv/water_fill.h"

#include <algorithm>
#include <cmath>

namespace zipcache {
namespace {

// Mean squared error of a code of `bits` bits that spans `shrink` of a range of 1 (METHOD section 8): a uniform error
// inside, and what is clipped outside.
double distortion(int bits, double shrink) {
    const double step = shrink / ((1 << bits) - 1);
    const double outside = (bits == 1 ? 0.5 : 0.25) * (1 - shrink);
    return step * step / 12 + 0.05 * outside * outside;
}

void choose(const TierErrors & tiers, const Costs & costs, float lambda, std::vector<uint8_t> & chosen) {
    for (size_t i = 0; i < chosen.size(); ++i) {
        float best = INFINITY;
        for (size_t t = 0; t < tiers.bits.size(); ++t) {
            const float cost = costs.k[i] * tiers.k[t] + costs.v[i] * tiers.v[t] + lambda * tiers.bits[t];
            if (cost < best) {
                best = cost;
                chosen[i] = static_cast<uint8_t>(t);
            }
        }
    }
}

}  // namespace

TierErrors tier_errors(const ggml_zipcache_format & f) {
    TierErrors tiers;
    for (int t = 0; t < f.n_tiers; ++t) {
        tiers.k.push_back(float(distortion(f.k.bits[t], f.k.shrink[t])));
        tiers.v.push_back(float(distortion(f.v.bits[t], f.v.shrink[t])));
        tiers.bits.push_back(float(f.k.bits[t] + f.v.bits[t]));
    }
    return tiers;
}

std::vector<uint8_t> water_fill(const ggml_zipcache_format & f, const Costs & costs, double budget) {
    const TierErrors tiers = tier_errors(f);
    std::vector<uint8_t> chosen(costs.k.size());
    const double elements = 2.0 * double(costs.k.size()) * f.head_dim;
    auto fits = [&](float lambda) {
        choose(tiers, costs, lambda, chosen);
        return 8.0 * double(ggml_zipcache_segment_bytes(&f, costs.n_tokens, chosen.data())) <= budget * elements;
    };
    double high = 0;
    for (size_t i = 0; i < costs.k.size(); ++i) {
        high = std::max({high, double(costs.k[i]), double(costs.v[i])});
    }
    high = high * 4 + 1e-30;  // beyond it every token takes the fewest bits
    double low = high * 1e-18;
    for (int i = 0; i < kHalvings; ++i) {
        const double middle = std::sqrt(low * high);
        (fits(float(middle)) ? high : low) = middle;
    }
    choose(tiers, costs, float(high), chosen);
    return chosen;
}

}  // namespace zipcache
