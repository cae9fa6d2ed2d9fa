#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "check.h"
#include "common/error.h"
#include "kv/balance.h"
#include "kv/evict.h"
#include "kv/water_fill.h"

using namespace zipcache;

namespace {

const Parallel kInTurn = [](int n, const std::function<void(int)> & task) {
    for (int i = 0; i < n; ++i) {
        task(i);
    }
};

HParams shape_of(int n_heads, int n_kv_heads, int head_dim) {
    HParams h;
    h.n_heads = n_heads;
    h.n_kv_heads = n_kv_heads;
    h.head_dim = head_dim;
    h.attention_scale = 1 / std::sqrt(float(head_dim));
    return h;
}

// Random rows of one layer and queries of some of its tokens.
struct Layer {
    HParams h;
    int64_t n, stride;
    int sliding_window;
    std::vector<ggml_fp16_t> k, v;
    std::vector<float> probe_q;
    Probes probes;
    std::vector<float> norms;  // [n_heads * head_dim]

    Rows rows() const { return {n, stride, k.data(), v.data(), sliding_window}; }
};

Layer random_layer(std::mt19937 & random) {
    std::normal_distribution<float> normal;
    Layer x;
    const int n_kv_heads = 1 + int(random() % 3), dims[] = {8, 24, 64};
    x.h = shape_of(n_kv_heads * (1 + int(random() % 3)), n_kv_heads, dims[random() % 3]);
    x.n = 1 + int64_t(random() % 90);
    x.stride = x.n + int64_t(random() % 3);
    x.sliding_window = random() % 3 ? 0 : 1 + int(random() % 40);
    for (int64_t i = 0; i < n_kv_heads * x.stride * x.h.head_dim; ++i) {
        x.k.push_back(ggml_fp32_to_fp16(normal(random) + float(i % x.h.head_dim % 5)));
        x.v.push_back(ggml_fp32_to_fp16(normal(random)));
    }
    for (int64_t t = 0; t < x.n; ++t) {
        if (t == x.n - 1 || random() % 3 == 0) {
            x.probes.row.push_back(t);
        }
    }
    for (int64_t i = 0; i < x.probes.size() * x.h.n_heads * x.h.head_dim; ++i) {
        x.probe_q.push_back(2 * normal(random));
    }
    x.probes.q = x.probe_q.data();
    for (int i = 0; i < x.h.n_heads * x.h.head_dim; ++i) {
        x.norms.push_back(0.1f + float(random() % 100));
    }
    return x;
}

bool sees(const Layer & x, int64_t probe, int64_t token) {
    const int64_t row = x.probes.row[probe];
    return token <= row && (x.sliding_window == 0 || token > row - x.sliding_window);
}

// Attention probabilities [n] of one head of one probe, and the log-sum-exp of its logits.
std::vector<double> attention(const Layer & x, int64_t probe, int head, double * log_sum = nullptr) {
    const int dim = x.h.head_dim, kv_head = head / (x.h.n_heads / x.h.n_kv_heads);
    std::vector<double> p(x.n);
    double sum = 0;
    for (int64_t t = 0; t < x.n; ++t) {
        double dot = 0;
        for (int c = 0; c < dim; ++c) {
            dot += double(x.probe_q[(probe * x.h.n_heads + head) * dim + c]) *
                   ggml_fp16_to_fp32(x.k[(kv_head * x.stride + t) * dim + c]);
        }
        sum += p[t] = sees(x, probe, t) ? std::exp(dot * x.h.attention_scale) : 0;
    }
    for (double & value : p) {
        value /= sum;
    }
    if (log_sum) {
        *log_sum = std::log(sum);
    }
    return p;
}

Policy policy_with(Saliency saliency, bool per_head = false) {
    Policy policy;
    policy.options.per_head = per_head;
    policy.saliency = saliency;
    return policy;
}

double worst(const std::vector<float> & got, const std::vector<double> & want) {
    double most = got.size() == want.size() ? 0 : INFINITY;
    for (size_t i = 0; i < want.size(); ++i) {
        most = std::max(most, std::isfinite(got[i]) ? std::fabs(got[i] - want[i]) : INFINITY);
    }
    return most;
}

std::vector<Policy> water_filled() {
    std::vector<Policy> policies;
    for (double bits : {2.2, 2.8, 3.3, 5.0}) {
        KvOptions options;
        options.bits = bits;
        policies.push_back(*make_policy(options, shape_of(4, 2, 64)));
    }
    return policies;
}

}  // namespace

TEST(saliency_is_what_its_definition_says) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(60); ++i) {
        Layer x = random_layer(random);
        const int64_t first = int64_t(random() % x.n), n = 1 + int64_t(random() % (x.n - first));
        const bool known = random() % 2;  // log sums told, as for the probes of decode steps
        std::vector<double> accumulated(n), normalized(n), seen(n), by_head(x.h.n_kv_heads * n);
        for (int64_t probe = 0; probe < x.probes.size(); ++probe) {
            for (int head = 0; head < x.h.n_heads; ++head) {
                double log_sum;
                const auto p = attention(x, probe, head, &log_sum);
                if (known) {
                    x.probes.log_sum.push_back(float(log_sum));
                }
                for (int64_t t = 0; t < n; ++t) {
                    accumulated[t] += p[first + t];
                    by_head[head / (x.h.n_heads / x.h.n_kv_heads) * n + t] += p[first + t];
                }
            }
            for (int64_t t = 0; t < n; ++t) {
                seen[t] += sees(x, probe, first + t);
            }
        }
        for (int64_t t = 0; t < n; ++t) {
            normalized[t] = accumulated[t] / std::max(1.0, seen[t]);
        }
        const Scores scores = score_rows(x.rows(), first, n, x.probes, x.h, kInTurn);
        CHECK(scores.n == n);
        CHECK(worst(scores.seen, seen) == 0);
        CHECK(worst(scores.score, by_head) < 1e-4 * double(x.probes.size()));
        const double tolerance = 1e-4 * double(x.probes.size());
        CHECK(worst(saliency_of(policy_with(Saliency::accumulated), scores, x.h, 1), accumulated) < tolerance);
        CHECK(worst(saliency_of(policy_with(Saliency::normalized), scores, x.h, 1), normalized) < tolerance);
        CHECK(worst(saliency_of(policy_with(Saliency::accumulated, true), scores, x.h, 1), by_head) < tolerance);
    }
}

TEST(recent_and_random_saliency) {
    const HParams h = shape_of(2, 2, 8);
    Scores scores;
    scores.n = 50;
    const auto recent = saliency_of(policy_with(Saliency::recent), scores, h, 1);
    CHECK(recent.size() == 50 && std::is_sorted(recent.begin(), recent.end()));
    const auto one = saliency_of(policy_with(Saliency::random), scores, h, 1);
    CHECK(one == saliency_of(policy_with(Saliency::random), scores, h, 1));
    CHECK(one != saliency_of(policy_with(Saliency::random), scores, h, 2));
    CHECK(saliency_of(policy_with(Saliency::random, true), scores, h, 1).size() == 100);
}

TEST(probes_are_as_many_as_asked) {
    struct Case {
        const char * kind;
        double random, recent;
        int64_t n_tokens, wanted;
    };
    const Case cases[] = {
        {"random+recent", 0.05, 0.05, 1000, 100},
        {"random", 0.05, 0.5, 1000, 51},
        {"recent", 0.5, 0.05, 1000, 50},
        {"all", 0, 0, 77, 77},
        {"random+recent", 0, 0, 30, 1},
        {"random+recent", 1, 1, 30, 30},
        {"random+recent", 0.05, 0.05, 20, 8},  // at least four of each kind
        {"recent", 0, 0.05, 3, 3},
        {"newest32", 0, 0, 1000, 32},
        {"newest32", 0, 0, 20, 20},
        {"special", 0.05, 0.05, 1000, 1},  // for there are none
        {"random+recent", 0.05, 0.05, 1, 1},
    };
    for (const Case & c : cases) {
        KvOptions options;
        options.probes = c.kind;
        options.random_probes = c.random;
        options.recent_probes = c.recent;
        for (uint64_t seed : {0, 1, 12345}) {
            const auto probes = choose_probes(options, c.n_tokens, seed);
            CHECK(int64_t(probes.size()) == c.wanted);
            CHECK(options.probes == "special" || most_probes(options, c.n_tokens) == c.wanted);
            CHECK(probes == choose_probes(options, c.n_tokens, seed));
            CHECK(std::adjacent_find(probes.begin(), probes.end(), std::greater_equal<int64_t>()) == probes.end());
            CHECK(probes.front() >= 0 && probes.back() == c.n_tokens - 1);
        }
    }
    KvOptions options;
    options.probes = "random+recent";
    CHECK(choose_probes(options, 1000, 1) != choose_probes(options, 1000, 2));
    KvOptions other = options;
    other.seed = 9;
    CHECK(choose_probes(options, 1000, 1) != choose_probes(other, 1000, 1));
}

TEST(special_probes_are_drawn_from_special_tokens) {
    KvOptions options;
    options.probes = "special";
    for (int64_t n_special : {0, 3, 100, 101, 700}) {
        std::vector<int64_t> special(n_special);
        std::iota(special.begin(), special.end(), 200);
        for (uint64_t seed : {0, 1, 12345}) {
            const auto probes = choose_probes(options, 1000, seed, special);
            CHECK(int64_t(probes.size()) == 1 + std::min<int64_t>(100, n_special));
            CHECK(int64_t(probes.size()) <= most_probes(options, 1000));
            CHECK(probes == choose_probes(options, 1000, seed, special));
            CHECK(std::adjacent_find(probes.begin(), probes.end(), std::greater_equal<int64_t>()) == probes.end());
            CHECK(probes.back() == 999 && (n_special == 0 || probes.front() >= 200));
            CHECK(probes.size() == 1 || probes[probes.size() - 2] < 200 + n_special);
        }
        CHECK((choose_probes(options, 1000, 1, special) != choose_probes(options, 1000, 2, special)) ==
              (n_special > 100));
    }
    KvOptions known = options;
    known.probes = "random+recent";
    CHECK(choose_steps(options, 100, 7) == choose_probes(known, 100, 7));  // their tokens are not known
    CHECK(choose_steps(known, 100, 7) == choose_probes(known, 100, 7));
}

TEST(water_filling_keeps_its_budget_and_spends_it) {
    std::mt19937 random(test_seed());
    std::lognormal_distribution<float> cost(0, 2);
    for (const Policy & policy : water_filled()) {
        for (int i = 0; i < n_cases(30); ++i) {
            const int64_t n = 100 + int64_t(random() % 1900);
            const ggml_zipcache_format & f = policy.format_for(n);
            Costs costs = {n, {}, {}};
            for (int64_t t = 0; t < f.n_kv_heads * n; ++t) {
                costs.k.push_back(cost(random));
                costs.v.push_back(cost(random));
            }
            const auto tiers = water_fill(f, costs, policy.budget);
            CHECK(tiers.size() == size_t(f.n_kv_heads * n));
            CHECK(*std::max_element(tiers.begin(), tiers.end()) < f.n_tiers);
            auto bits_of = [&](const std::vector<uint8_t> & chosen) {
                return 8.0 * double(ggml_zipcache_segment_bytes(&f, n, chosen.data())) /
                       (2.0 * double(chosen.size()) * f.head_dim);
            };
            auto code_bits = [&](int tier) { return f.k.bits[tier] + f.v.bits[tier]; };
            int cheapest = 0;
            for (int t = 1; t < f.n_tiers; ++t) {
                cheapest = code_bits(t) < code_bits(cheapest) ? t : cheapest;
            }
            const double least = bits_of(std::vector<uint8_t>(tiers.size(), uint8_t(cheapest)));
            const double spent = bits_of(tiers);
            // costs far apart want few tiers more than half filled; a segment of few tokens is mostly headers
            CHECK(spent <= std::max(policy.budget, least) + 1e-9);
            CHECK(spent >= policy.budget - (n < 500 ? 0.6 : 0.1) || spent == least);
        }
    }
}

TEST(water_filling_gives_costlier_tokens_no_fewer_bits) {
    std::mt19937 random(test_seed());
    std::lognormal_distribution<float> cost(0, 2);
    for (const Policy & policy : water_filled()) {
        for (int64_t n : {100, 700}) {
            const ggml_zipcache_format & f = policy.format_for(n);
            Costs costs = {n, {}, {}};
            const bool keys = random() % 2;
            for (int64_t t = 0; t < f.n_kv_heads * n; ++t) {  // equal but for one side
                costs.k.push_back(keys ? cost(random) : 1.0f);
                costs.v.push_back(keys ? 1.0f : cost(random));
            }
            const auto tiers = water_fill(f, costs, policy.budget);
            const auto & side = keys ? costs.k : costs.v;
            const auto & bits = keys ? f.k.bits : f.v.bits;
            std::vector<size_t> order(tiers.size());
            std::iota(order.begin(), order.end(), 0);
            std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return side[a] < side[b]; });
            for (size_t i = 1; i < order.size(); ++i) {
                CHECK(bits[tiers[order[i - 1]]] <= bits[tiers[order[i]]]);
            }
        }
    }
}

TEST(water_filling_of_worthless_tokens_ends) {
    const Policy policy = water_filled()[2];
    const int64_t n = 300;
    for (float value : {0.0f, 1e-30f, 1e30f}) {
        const Costs costs = {n, std::vector<float>(2 * n, value), std::vector<float>(2 * n, value)};
        const auto tiers = water_fill(policy.prompt, costs, policy.budget);
        CHECK(*std::max_element(tiers.begin(), tiers.end()) < policy.prompt.n_tiers);
    }
}

TEST(balance_divides_by_what_its_definition_says) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(40); ++i) {
        Layer x = random_layer(random);
        const int dim = x.h.head_dim, group = x.h.n_heads / x.h.n_kv_heads;
        const int dead = int(random() % dim);  // a channel that is always zero
        for (int64_t row = 0; row < x.h.n_kv_heads * x.stride; ++row) {
            x.k[row * dim + dead] = x.v[row * dim + dead] = 0;
        }
        const int64_t first = int64_t(random() % x.n), n = x.n - first;
        const Scores scores = score_rows(x.rows(), first, n, x.probes, x.h, kInTurn);
        const Balance b = find_balance(x.rows(), first, n, x.probes, scores, x.norms, x.h, kInTurn);
        for (const auto * all : {&b.k_divisor, &b.v_divisor, &b.k_weight, &b.v_weight}) {
            for (float value : *all) {
                CHECK(std::isfinite(value) && value >= 0);
            }
        }
        for (int j = 0; j < x.h.n_kv_heads * dim; ++j) {
            CHECK(b.k_divisor[j] > 0 && b.v_divisor[j] > 0);
        }
        const int head = int(random() % x.h.n_kv_heads), c = int(random() % dim);
        double k_spread = 0, v_sum = 0, v_squares = 0, q_squares = 0, read = 0;
        for (int64_t from = 0; from < n; from += 64) {
            const int64_t end = std::min(n, from + 64);
            double sum = 0, squares = 0;
            for (int64_t t = from; t < end; ++t) {
                const int64_t at = (head * x.stride + first + t) * dim + c;
                const double k = ggml_fp16_to_fp32(x.k[at]), v = ggml_fp16_to_fp32(x.v[at]);
                sum += k;
                squares += k * k;
                v_sum += v;
                v_squares += v * v;
            }
            k_spread += squares - sum * sum / double(end - from);
        }
        for (int64_t probe = 0; probe < x.probes.size(); ++probe) {
            for (int r = head * group; r < (head + 1) * group; ++r) {
                q_squares += std::pow(double(x.probe_q[(probe * x.h.n_heads + r) * dim + c]), 2);
            }
        }
        for (int r = head * group; r < (head + 1) * group; ++r) {
            read += x.norms[r * dim + c];
        }
        const double q_size = std::sqrt(q_squares / double(x.probes.size() * group));
        const double k_size = std::sqrt(std::max(0.0, k_spread / double(n)));
        const double v_size = std::sqrt(std::max(0.0, v_squares / double(n) - std::pow(v_sum / double(n), 2)));
        if (k_size > 0.01 && v_size > 0.01) {
            CHECK(std::fabs(b.k_divisor[head * dim + c] / std::sqrt(k_size / q_size) - 1) < 1e-3);
            CHECK(std::fabs(b.v_divisor[head * dim + c] / std::sqrt(v_size / std::sqrt(read)) - 1) < 1e-3);
        }
    }
}

TEST(balance_without_probes_is_finite) {
    std::mt19937 random(test_seed());
    Layer x = random_layer(random);
    x.probes = {};
    const Scores scores = score_rows(x.rows(), 0, x.n, x.probes, x.h, kInTurn);
    const Balance b = find_balance(x.rows(), 0, x.n, x.probes, scores, x.norms, x.h, kInTurn);
    for (const auto * all : {&b.k_divisor, &b.v_divisor}) {
        CHECK(std::all_of(all->begin(), all->end(), [](float c) { return c > 0 && std::isfinite(c); }));
    }
}

TEST(the_normalizer_is_the_root_of_the_largest) {
    std::mt19937 random(test_seed());
    Layer x = random_layer(random);
    const int dim = x.h.head_dim;
    const int64_t first = x.n / 3, n = x.n - first;
    for (int64_t t = 0; t < x.n; ++t) {
        x.v[t * dim] = 0;
    }
    const auto normalizer = find_normalizer(x.rows(), first, n, x.h);
    CHECK(normalizer.size() == size_t(x.h.n_kv_heads) * dim);
    CHECK(normalizer[0] > 0 && normalizer[0] < 0.01f);
    for (int j = 1; j < x.h.n_kv_heads * dim; ++j) {
        float most = 0;
        for (int64_t t = first; t < x.n; ++t) {
            most = std::max(most, std::fabs(ggml_fp16_to_fp32(x.v[(j / dim * x.stride + t) * dim + j % dim])));
        }
        CHECK(std::fabs(normalizer[j] - std::sqrt(std::max(most, 1e-5f))) < 1e-6f);
    }
}

// Row i stands at position 10 + 2 i; every second token went before.
Contest contest_of(std::mt19937 & random, int64_t n_rows) {
    Contest c = {{}, {}, 10, 10 + 2 * n_rows};
    for (int64_t i = 0; i < n_rows; ++i) {
        c.position.push_back(10 + 2 * i);
        c.score.push_back(float(random() % 50));
    }
    return c;
}

TEST(of_tokens_that_compete_the_newest_and_the_heaviest_stay) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(60); ++i) {
        Policy policy;
        policy.share = double(random() % 6) / 10;
        policy.newest = double(random() % 6) / 10;
        Contest c = contest_of(random, 1 + int64_t(random() % (i % 10 == 0 ? 40000 : 300)));
        c.begin += int64_t(random() % 5);  // what lies before has no part in it; at times that is all there is
        const auto runs = hold(policy, c);
        const int64_t n = std::max<int64_t>(0, c.end - c.begin), n_newest = policy.n_newest(n),
                      n_salient = policy.n_salient(n);
        int64_t position = c.begin, heavy = 0, candidates = 0;
        float least_kept = INFINITY, most_gone = -INFINITY;
        for (const Kept & run : runs) {
            CHECK(run.tier.size() <= UINT16_MAX && run.row.size() == run.tier.size() &&
                  run.score.size() == run.tier.size());
            for (size_t t = 0; t < run.tier.size(); ++t, ++position) {
                const bool is_row = position % 2 == 0 && position >= 10, is_new = position >= c.end - n_newest;
                CHECK(is_row || run.tier[t] == 1);
                CHECK(!is_row || !is_new || run.tier[t] == 0);
                if (run.tier[t] == 0) {
                    CHECK(c.position[run.row[t]] == position && c.score[run.row[t]] == run.score[t]);
                }
                if (is_row && !is_new) {
                    const float score = c.score[(position - 10) / 2];
                    ++candidates;
                    heavy += run.tier[t] == 0;
                    (run.tier[t] == 0 ? least_kept : most_gone) =
                        run.tier[t] == 0 ? std::min(least_kept, score) : std::max(most_gone, score);
                }
            }
        }
        CHECK(position == c.begin + n);
        CHECK(heavy == std::min(n_salient, candidates));
        CHECK(least_kept >= most_gone);
    }
}

TEST(the_balancer_of_outliers_is_what_its_definition_says) {
    std::mt19937 random(test_seed());
    Layer x = random_layer(random);
    const int dim = x.h.head_dim, group = x.h.n_heads / x.h.n_kv_heads;
    const int64_t first = x.n / 3, n = x.n - first;
    const Balance b = find_peaks(x.rows(), first, n, x.probes, x.h);
    CHECK(b.k_divisor.size() == size_t(x.h.n_kv_heads) * dim && b.v_divisor.empty());
    for (int j = 0; j < x.h.n_kv_heads * dim; ++j) {
        float k = 0, q = 0;
        for (int64_t t = first; t < x.n; ++t) {
            k = std::max(k, std::fabs(ggml_fp16_to_fp32(x.k[(j / dim * x.stride + t) * dim + j % dim])));
        }
        for (int64_t i = 0; i < x.probes.size(); ++i) {
            for (int r = j / dim * group; r < (j / dim + 1) * group; ++r) {
                q = std::max(q, std::fabs(x.probe_q[(i * x.h.n_heads + r) * dim + j % dim]));
            }
        }
        CHECK(std::fabs(b.k_divisor[j] / std::sqrt(k / q) - 1) < 1e-5);
    }
    const Balance none = find_peaks(x.rows(), first, n, {}, x.h);  // no queries: nothing to move
    CHECK(std::all_of(none.k_divisor.begin(), none.k_divisor.end(), [](float c) { return c > 0 && std::isfinite(c); }));
}

TEST(pooled_saliency_is_the_largest_around) {
    const HParams h = shape_of(2, 1, 8);
    Policy policy = policy_with(Saliency::accumulated);
    policy.pool = 3;
    Scores scores;
    scores.n = 6;
    scores.score = {1, 0, 0, 5, 2, 0};
    CHECK(saliency_of(policy, scores, h, 0) == std::vector<float>({1, 1, 5, 5, 5, 2}));
}

TEST(policies_that_only_the_host_has_are_named) {
    const HParams h = shape_of(4, 2, 64);
    const std::pair<const char *, const char *> cases[] = {
        {"mikv", "balancer"}, {"h2o", "f16"},        {"snapkv", "f16"}, {"gear", "corrections"}, {"kivi", nullptr},
        {"auto", nullptr},    {"zipcache", nullptr}, {"q8_0", nullptr}, {"f16", nullptr}};
    for (const auto & [name, says] : cases) {
        KvOptions options;
        options.policy = name;
        const char * what = host_only(*make_policy(options, h));
        CHECK(says ? what && std::string(what).find(says) != std::string::npos : !what);
    }
}

TEST(policies_name_what_they_refuse) {
    const HParams h = shape_of(4, 2, 64);
    auto made = [&](auto change, const HParams & shape) {
        KvOptions options;
        change(options);
        return make_policy(options, shape);
    };
    CHECK_THROWS(made([](auto & o) { o.policy = "q3"; }, h), ArgumentError, "policy is 'q3'; accepted: auto, zipcache");
    CHECK_THROWS(made([](auto & o) { o.bits = NAN; }, h), ArgumentError, "bits is nan");
    CHECK_THROWS(made([](auto & o) { o.bits = -3; }, h), ArgumentError, "bits is -3");
    CHECK_THROWS(made(
                     [](auto & o) {
                         o.policy = "zipcache";
                         o.low_bits = 0;
                         o.per_head = true;
                     },
                     h),
                 ArgumentError, "low_bits is 0; accepted: 1 to 4 with per_head");
    CHECK_THROWS(made([](auto & o) { o.policy = "q8_0"; }, shape_of(4, 2, 80)), ArgumentError, "multiples of 32");
    const auto uniform = made(
        [](auto & o) {
            o.policy = "uniform";
            o.per_head = true;
        },
        h);
    CHECK(uniform->prompt.same_order);  // nothing is ranked
    const auto random = made([](auto & o) { o.saliency = "random"; }, h);
    CHECK(random->wants_probes());  // the balance does
}
