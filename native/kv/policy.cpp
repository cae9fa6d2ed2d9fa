#include "kv/policy.h"

#include <cmath>
#include <sstream>

#include "common/error.h"

namespace zipcache {
namespace {

constexpr int kBlock = 32;       // channels, groupwise
constexpr int64_t kNewest = 32;  // tokens that SnapKV keeps besides
constexpr int64_t kPool = 7;     // of SnapKV

template <class T>
[[noreturn]] void refuse(const char * name, const T & value, const std::string & accepted) {
    std::ostringstream text;
    text << "the KV option " << name << " is " << value << "; accepted: " << accepted;
    throw ArgumentError(text.str());
}

template <class T>
T one_of(const char * name, const std::string & value, const std::vector<std::pair<const char *, T>> & known) {
    std::string accepted;
    for (const auto & [text, result] : known) {
        if (value == text) {
            return result;
        }
        accepted += (accepted.empty() ? "" : ", ") + std::string(text);
    }
    refuse(name, "'" + value + "'", accepted);
}

// Not-a-number fails too.
void check_range(const char * name, double value, double least, double most) {
    if (!(value >= least && value <= most)) {
        std::ostringstream accepted;
        accepted << least << " to " << most;
        refuse(name, value, accepted.str());
    }
}

enum class Name { automatic, zipcache, uniform, kivi, mikv, h2o, snapkv, gear, q8_0, q4_0, f16 };

Name name_of(const KvOptions & o) {
    return one_of<Name>("policy", o.policy,
                        {{"auto", Name::automatic},
                         {"zipcache", Name::zipcache},
                         {"uniform", Name::uniform},
                         {"kivi", Name::kivi},
                         {"mikv", Name::mikv},
                         {"h2o", Name::h2o},
                         {"snapkv", Name::snapkv},
                         {"gear", Name::gear},
                         {"q8_0", Name::q8_0},
                         {"q4_0", Name::q4_0},
                         {"f16", Name::f16}});
}

Saliency saliency_named(const KvOptions & o) {
    return one_of<Saliency>("saliency", o.saliency,
                            {{"normalized", Saliency::normalized},
                             {"accumulated", Saliency::accumulated},
                             {"recent", Saliency::recent},
                             {"random", Saliency::random}});
}

void check_bits(const KvOptions & o, Name name) {
    if (o.bits == 0) {
        return;
    }
    if (name == Name::kivi || name == Name::gear) {
        if (o.bits != 2 && o.bits != 4) {
            refuse("bits", o.bits, "2 or 4 for the policy " + o.policy);
        }
        return;
    }
    if (name != Name::automatic && name != Name::uniform) {
        refuse("bits", o.bits, "none for the policy " + o.policy);
    }
    check_range("bits", o.bits, name == Name::automatic ? 1.9 : 1, name == Name::automatic ? 8.5 : 8);
    if (name == Name::uniform && o.bits != std::floor(o.bits)) {
        refuse("bits", o.bits, "whole numbers for the policy uniform");
    }
}

ggml_zipcache_side side_of(ggml_zipcache_scope scope, ggml_zipcache_params params, int block) {
    ggml_zipcache_side side = {};
    side.scope = scope;
    side.params = params;
    side.block = block;
    std::fill(std::begin(side.shrink), std::end(side.shrink), 1.0f);
    return side;
}

ggml_zipcache_side groupwise(const HParams & h, ggml_zipcache_params params, int block = kBlock) {
    if (h.head_dim % block != 0) {
        const auto size = std::to_string(block);
        throw ArgumentError("the KV policy stores blocks of " + size + " channels, and the model's heads have " +
                            std::to_string(h.head_dim) + "; accepted: multiples of " + size);
    }
    return side_of(GGML_ZIPCACHE_SCOPE_TOKEN, params, block);
}

ggml_zipcache_format format_of(const HParams & h, const ggml_zipcache_side & k, const ggml_zipcache_side & v) {
    ggml_zipcache_format f = {};
    f.n_kv_heads = h.n_kv_heads;
    f.head_dim = h.head_dim;
    f.group = GGML_ZIPCACHE_GROUP;
    f.n_tiers = 1;
    f.same_order = true;
    f.k = k;
    f.v = v;
    return f;
}

// The paper's quantizers, by name (its section 3.1, and CST of section 4.1). A token's parameters span all heads, as
// there, unless each head has its own order.
ggml_zipcache_side paper_side(const HParams & h, const std::string & granularity, bool per_head) {
    const int all = per_head ? h.head_dim : h.n_kv_heads * h.head_dim;
    constexpr auto pair = GGML_ZIPCACHE_PARAMS_F16_PAIR;
    if (granularity == "groupwise") {
        return groupwise(h, pair);
    }
    return granularity == "channelwise" ? side_of(GGML_ZIPCACHE_SCOPE_SEGMENT, pair, 0)
                                        : side_of(GGML_ZIPCACHE_SCOPE_TOKEN, pair, all);
}

void paper(const KvOptions & o, const HParams & h, const std::vector<int> & bits, Policy & p) {
    p.v_divisor = o.values == "cst" ? Divisor::normalizer : Divisor::none;
    const bool per_head = o.per_head && p.ranking != Ranking::none;
    p.prompt = format_of(h, paper_side(h, o.keys, per_head), paper_side(h, o.values, per_head));
    p.prompt.same_order = !per_head;
    p.prompt.n_tiers = static_cast<int>(bits.size());
    for (size_t i = 0; i < bits.size(); ++i) {
        p.prompt.k.bits[i] = p.prompt.v.bits[i] = bits[i];
    }
    p.prompt.k.rotate = p.prompt.v.rotate = o.rotate;
    p.window = p.prompt;
}

struct Tier {
    int k, v;
};

void set_tiers(ggml_zipcache_format & f, const std::vector<Tier> & tiers) {
    f.n_tiers = static_cast<int>(tiers.size());
    for (int i = 0; i < f.n_tiers; ++i) {
        f.k.bits[i] = tiers[i].k;
        f.v.bits[i] = tiers[i].v;
        // a fixed clip beats a searched one (METHOD section 8)
        f.k.shrink[i] = tiers[i].k == 2 ? 0.95f : 1.0f;
        f.v.shrink[i] = tiers[i].v == 1 ? 0.5f : tiers[i].v == 2 ? 0.8f : 1.0f;
    }
}

std::vector<Tier> every_pair(const std::vector<int> & k, const std::vector<int> & v) {
    std::vector<Tier> tiers;
    for (int a : k) {
        for (int b : v) {
            tiers.push_back({a, b});
        }
    }
    return tiers;
}

// Keys by channel over groups of tokens, values by token over groups of channels. Its groups are always whole.
void kivi(const KvOptions & o, const HParams & h, Policy & p) {
    const int bits = o.bits != 0 ? static_cast<int>(o.bits) : 2;
    auto k = side_of(GGML_ZIPCACHE_SCOPE_GROUP, GGML_ZIPCACHE_PARAMS_F16_PAIR, 0);
    auto v = groupwise(h, GGML_ZIPCACHE_PARAMS_F16_PAIR, o.group);
    k.bits[0] = v.bits[0] = bits;
    p.prompt = format_of(h, k, v);
    p.prompt.group = o.group;
    p.window = p.prompt;
    p.n_whole = o.group;
}

// Tokenwise in two tiers by the attention that tokens got from all rows; outliers of keys are moved to the query.
void mikv(const KvOptions & o, const HParams & h, Policy & p) {
    KvOptions tokenwise = o;
    tokenwise.keys = tokenwise.values = "tokenwise";
    p.ranking = Ranking::top_ratio;
    p.saliency = Saliency::accumulated;
    p.share = o.ratio;
    paper(tokenwise, h, {o.high_bits, o.low_bits}, p);
    p.k_divisor = Divisor::peaks;
}

// Tokens stay as they are or go.
void evicting(const KvOptions & o, const HParams & h, Policy & p) {
    auto side = side_of(GGML_ZIPCACHE_SCOPE_GROUP, GGML_ZIPCACHE_PARAMS_F16_PAIR, 0);
    side.bits[0] = 16;
    p.prompt = format_of(h, side, side);
    p.prompt.n_tiers = 2;
    p.window = p.prompt;
    p.saliency = Saliency::accumulated;
    p.share = o.heavy;
}

void h2o(const KvOptions & o, const HParams & h, Policy & p) {
    evicting(o, h, p);
    p.ranking = Ranking::evict;
    p.newest = o.newest;
}

void snapkv(const KvOptions & o, const HParams & h, Policy & p) {
    evicting(o, h, p);
    p.ranking = Ranking::top_ratio;
    p.n_always = kNewest;
    p.pool = kPool;
    p.prompts_only = true;
}

// Uniform codes, keys by channel and values by token, and what corrects them.
void gear(const KvOptions & o, const HParams & h, Policy & p) {
    KvOptions plain = o;
    plain.keys = "channelwise";
    plain.values = "tokenwise";
    plain.rotate = false;
    paper(plain, h, {o.bits != 0 ? static_cast<int>(o.bits) : 4}, p);
    p.corrects = true;
}

std::string own_probes(Name name) {
    switch (name) {
        // the score of their papers is a sum over all rows: a sample would add noise that is not theirs
        case Name::mikv:
        case Name::h2o: return "all";
        case Name::snapkv: return "newest32";
        default: return "random+recent";
    }
}

int64_t own_window(const KvOptions & o, Name name) {
    return name == Name::kivi ? 2 * o.group : name == Name::gear ? 64 : 100;
}

int64_t own_recent(Name name) {
    return name == Name::automatic ? 64 : name == Name::kivi ? 128 : 0;
}

// METHOD section 8: balance, then rotate; bits by water-filling.
void automatic(const KvOptions & o, const HParams & h, Policy & p) {
    p.budget = o.bits != 0 ? o.bits : 3.3;
    p.ranking = Ranking::water_fill;
    p.k_divisor = p.v_divisor = Divisor::balance;
    const bool wide = p.budget >= 3.05, narrow = p.budget < 2.6;
    auto k = side_of(GGML_ZIPCACHE_SCOPE_GROUP, GGML_ZIPCACHE_PARAMS_F8_PAIR, 0);
    auto v = side_of(GGML_ZIPCACHE_SCOPE_TOKEN, wide ? GGML_ZIPCACHE_PARAMS_F8_PAIR : GGML_ZIPCACHE_PARAMS_F8_SCALE,
                     h.head_dim);
    k.rotate = v.rotate = true;
    p.prompt = format_of(h, k, v);
    p.prompt.same_order = false;
    p.prompt.group = narrow ? 32 : 64;
    p.window = p.prompt;
    p.window.k.scope = GGML_ZIPCACHE_SCOPE_SEGMENT;
    if (p.budget >= 4) {
        set_tiers(p.prompt, every_pair({8, 6, 4, 3}, {8, 4, 3}));
        set_tiers(p.window, {{8, 8}, {6, 4}, {4, 4}, {4, 3}});
    } else if (wide) {
        set_tiers(p.prompt, every_pair({8, 4, 3}, {8, 4, 2}));
        set_tiers(p.window, {{8, 8}, {4, 4}, {3, 4}, {3, 2}});
    } else if (!narrow) {
        set_tiers(p.prompt, every_pair({8, 3}, {8, 4, 2, 1}));
        set_tiers(p.window, {{8, 8}, {3, 4}, {3, 2}, {3, 1}});
    } else {
        set_tiers(p.prompt, every_pair({8, 3, 2}, {8, 4, 2, 1}));
        set_tiers(p.window, {{8, 8}, {3, 4}, {3, 2}, {2, 1}});
    }
}

}  // namespace

void check_options(const KvOptions & o) {
    const Name name = name_of(o);
    check_bits(o, name);
    check_range("ratio", o.ratio, 0, 1);
    check_range("high_bits", o.high_bits, 1, 8);
    check_range("low_bits", o.low_bits, 0, o.high_bits);
    check_range("random_probes", o.random_probes, 0, 1);
    check_range("recent_probes", o.recent_probes, 0, 1);
    check_range("window", double(o.window), -1, 4096);
    check_range("recent", double(o.recent), -1, 4096);
    if (o.window == 0) {
        refuse("window", o.window, "1 to 4096");
    }
    check_range("heavy", o.heavy, 0, 1);
    check_range("newest", o.newest, 0, 1);
    check_range("rank", o.rank, 0, GGML_ZIPCACHE_MAX_RANK);
    check_range("window_rank", o.window_rank, 0, GGML_ZIPCACHE_MAX_RANK);
    check_range("outliers", o.outliers, 0, 0.2);
    if (o.group != 32 && o.group != 64) {
        refuse("group", o.group, "32, 64");
    }
    if (name == Name::kivi && o.window > 0 && o.window % o.group != 0) {
        refuse("window", o.window, "multiples of the group of " + std::to_string(o.group) + " for the policy kivi");
    }
    saliency_named(o);
    if (!o.probes.empty()) {
        one_of<int>("probes", o.probes,
                    {{"random+recent", 0}, {"random", 0}, {"recent", 0}, {"special", 0}, {"all", 0}, {"newest32", 0}});
    }
    one_of<int>("keys", o.keys, {{"channelwise", 0}, {"groupwise", 0}, {"tokenwise", 0}});
    one_of<int>("values", o.values, {{"cst", 0}, {"groupwise", 0}, {"tokenwise", 0}, {"channelwise", 0}});
    // a later prefill needs rows that all heads have
    if ((name == Name::h2o || name == Name::snapkv) && o.per_head) {
        refuse("per_head", "true", "false for the policy " + o.policy);
    }
    if ((name == Name::zipcache || name == Name::mikv) && o.per_head && o.low_bits == 0) {
        refuse("low_bits", o.low_bits, "1 to " + std::to_string(o.high_bits) + " with per_head");
    }
}

const char * host_only(const Policy & p) {
    if (p.k_divisor == Divisor::peaks) {
        return "balancer of outliers";
    }
    if (p.corrects) {
        return "corrections of codes";
    }
    return p.compresses && p.prompt.k.bits[0] == 16 ? "f16 in compressed tokens" : nullptr;
}

int64_t Policy::n_salient(int64_t n) const {
    return std::llround(share * double(n));
}

int64_t Policy::n_newest(int64_t n) const {
    return std::min(n, n_always + int64_t(std::llround(newest * double(n))));
}

std::shared_ptr<const Policy> make_policy(const KvOptions & o, const HParams & h) {
    check_options(o);
    auto p = std::make_shared<Policy>();
    p->options = o;
    p->saliency = saliency_named(o);
    const Name name = name_of(o);
    p->options.probes = o.probes.empty() ? own_probes(name) : o.probes;
    p->n_window = o.window > 0 ? o.window : own_window(o, name);
    p->n_recent = o.recent >= 0 ? o.recent : own_recent(name);
    switch (name) {
        case Name::automatic: automatic(o, h, *p); break;
        case Name::zipcache:
            p->ranking = Ranking::top_ratio;
            p->share = o.ratio;
            paper(o, h, {o.high_bits, o.low_bits}, *p);
            break;
        case Name::kivi: kivi(o, h, *p); break;
        case Name::mikv: mikv(o, h, *p); break;
        case Name::h2o: h2o(o, h, *p); break;
        case Name::snapkv: snapkv(o, h, *p); break;
        case Name::gear: gear(o, h, *p); break;
        case Name::uniform: paper(o, h, {o.bits != 0 ? static_cast<int>(o.bits) : 4}, *p); break;
        case Name::q8_0:
        case Name::q4_0: {
            auto side = groupwise(h, GGML_ZIPCACHE_PARAMS_F16_SCALE);
            side.bits[0] = name == Name::q8_0 ? 8 : 4;
            side.rotate = o.rotate;
            p->prompt = p->window = format_of(h, side, side);
            break;
        }
        case Name::f16: p->compresses = false; break;
    }
    if (!p->compresses) {
        p->n_recent = 0;
    } else if (const char * error = ggml_zipcache_format_error(&p->prompt)) {
        throw ArgumentError("the KV policy " + o.policy + " does not fit the model: " + error);
    }
    return p;
}

}  // namespace zipcache
