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

// Probes that are chosen because they are the newest.
int64_t n_newest(const KvOptions & o, int64_t n) {
    if (o.probes == "all" || o.probes == "newest32") {
        return o.probes == "all" ? n : std::min(n, kNewest);
    }
    return o.probes == "recent" || o.probes == "random+recent" ? share(o.recent_probes, n) : 0;
}

// Probes that are drawn: of all tokens, or as many of the special ones as random and recent ones would be.
int64_t n_drawn(const KvOptions & o, int64_t n) {
    if (o.probes == "special") {
        return share(o.random_probes + o.recent_probes, n);
    }
    return o.probes == "random" || o.probes == "random+recent" ? share(o.random_probes, n) : 0;
}

}  // namespace

std::vector<int64_t> choose_probes(const KvOptions & o, int64_t n_tokens, uint64_t seed,
                                   const std::vector<int64_t> & special) {
    std::set<int64_t> chosen = {n_tokens - 1};
    for (int64_t i = n_tokens - n_newest(o, n_tokens); i < n_tokens; ++i) {
        chosen.insert(i);
    }
    std::mt19937_64 random(o.seed ^ (seed * 0x9E3779B97F4A7C15ull));
    if (o.probes == "special") {
        std::vector<int64_t> order = special;
        const auto wanted = std::min(n_drawn(o, n_tokens), static_cast<int64_t>(order.size()));
        for (int64_t i = 0; i < wanted; ++i) {
            std::swap(order[i], order[i + static_cast<int64_t>(random() % uint64_t(order.size() - i))]);
            chosen.insert(order[i]);
        }
        return {chosen.begin(), chosen.end()};
    }
    const int64_t wanted = most_probes(o, n_tokens);
    while (static_cast<int64_t>(chosen.size()) < wanted) {
        chosen.insert(static_cast<int64_t>(random() % uint64_t(n_tokens)));
    }
    return {chosen.begin(), chosen.end()};
}

std::vector<int64_t> choose_steps(const KvOptions & o, int64_t n_steps, uint64_t seed) {
    KvOptions known = o;
    known.probes = o.probes == "special" ? "random+recent" : o.probes;
    return choose_probes(known, n_steps, seed);
}

int64_t most_probes(const KvOptions & o, int64_t n_tokens) {
    return std::min(n_tokens, std::max<int64_t>(1, n_newest(o, n_tokens)) + n_drawn(o, n_tokens));
}

}  // namespace zipcache
