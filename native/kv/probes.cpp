#include "kv/probes.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

namespace zipcache {
namespace {

constexpr int64_t kLeast = 4;    // probes of each kind, so that short stretches have some
constexpr int64_t kNewest = 32;  // the observation window of SnapKV

int64_t share(double fraction, int64_t n) {
    return fraction > 0 ? std::min(n, std::max<int64_t>(kLeast, std::llround(fraction * double(n)))) : 0;
}

}  // namespace

std::vector<int64_t> choose_probes(const KvOptions & o, int64_t n_tokens, uint64_t seed) {
    std::set<int64_t> chosen = {n_tokens - 1};
    if (o.probes == "all") {
        for (int64_t i = 0; i < n_tokens; ++i) {
            chosen.insert(i);
        }
    }
    if (o.probes == "newest32") {
        for (int64_t i = std::max<int64_t>(0, n_tokens - kNewest); i < n_tokens; ++i) {
            chosen.insert(i);
        }
    }
    if (o.probes == "recent" || o.probes == "random+recent") {
        for (int64_t i = n_tokens - share(o.recent_probes, n_tokens); i < n_tokens; ++i) {
            chosen.insert(i);
        }
    }
    if (o.probes == "random" || o.probes == "random+recent") {
        std::mt19937_64 random(o.seed ^ (seed * 0x9E3779B97F4A7C15ull));
        const auto wanted = std::min(n_tokens, static_cast<int64_t>(chosen.size()) + share(o.random_probes, n_tokens));
        while (static_cast<int64_t>(chosen.size()) < wanted) {
            chosen.insert(static_cast<int64_t>(random() % uint64_t(n_tokens)));
        }
    }
    return {chosen.begin(), chosen.end()};
}

}  // namespace zipcache
