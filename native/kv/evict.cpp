#include "kv/evict.h"

#include <algorithm>

namespace zipcache {

std::vector<Kept> hold(const Policy & policy, const Contest & c) {
    constexpr int64_t kRun = 32768;  // places of a segment are told in 16 bits
    auto row_at = [&](int64_t position) {
        return std::lower_bound(c.position.begin(), c.position.end(), position) - c.position.begin();
    };
    const int64_t n = std::max<int64_t>(0, c.end - c.begin), first = row_at(c.begin), last = row_at(c.end);
    const int64_t n_newest = last - row_at(c.end - policy.n_newest(n));
    const auto stays = most_salient(c.score.data() + first, last - first, policy.n_salient(n), n_newest);
    std::vector<Kept> runs;
    int64_t row = first;
    for (int64_t begin = c.begin; begin < c.end; begin += kRun) {
        const int64_t n_run = std::min(kRun, c.end - begin);
        Kept run = {std::vector<uint8_t>(n_run, 1), std::vector<uint32_t>(n_run), std::vector<float>(n_run)};
        for (; row < last && c.position[row] < begin + n_run; ++row) {
            if (stays[row - first]) {
                const int64_t token = c.position[row] - begin;
                run.tier[token] = 0;
                run.row[token] = static_cast<uint32_t>(row);
                run.score[token] = c.score[row];
            }
        }
        runs.push_back(std::move(run));
    }
    return runs;
}

}  // namespace zipcache
