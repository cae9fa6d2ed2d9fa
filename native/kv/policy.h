#pragma once
#include <memory>
#include <vector>

#include "ggml-zipcache.h"
#include "kv/options.h"
#include "model/hparams.h"

namespace zipcache {

enum class Saliency { normalized, accumulated, recent, random };
// How a token gets its tier. evict: with every compression all tokens of the layer compete anew for staying (H2O).
enum class Ranking { none, top_ratio, water_fill, evict };
// CST's c; the balance of METHOD section 8; MiKV's balancer: the root of max |k| / max |q|.
enum class Divisor { none, normalizer, balance, peaks };

// What KvOptions mean for a model: how its segments are laid out and how tokens get their bits. Immutable.
struct Policy {
    KvOptions options;
    bool compresses = true;
    ggml_zipcache_format prompt;  // of long stretches
    ggml_zipcache_format window;  // of a decode window: short, so parameters must be few
    Ranking ranking = Ranking::none;
    Saliency saliency = Saliency::normalized;
    Divisor k_divisor = Divisor::none;
    Divisor v_divisor = Divisor::none;
    double budget = 0;          // water_fill: all-in bits of an element
    double share = 0;           // top_ratio, evict: of the tokens that are in tier 0 for their saliency
    double newest = 0;          // evict: of those that are there because they are the newest
    int64_t n_always = 0;       // top_ratio: newest tokens that are in tier 0, besides
    int64_t pool = 1;           // a token is as salient as the most salient of so many around it
    bool prompts_only = false;  // tokens of a decode window are not ranked: all are in tier 0
    int64_t n_window = 100;     // tokens compressed together while decoding
    int64_t n_recent = 0;       // newest tokens that stay uncompressed
    int64_t n_whole = 1;        // tokens are compressed in multiples of so many
    bool corrects = false;      // what codes lack is kept beside them (GEAR)

    // Stretches shorter than this take the window's format.
    static constexpr int64_t kLong = 256;
    const ggml_zipcache_format & format_for(int64_t n_tokens) const { return n_tokens < kLong ? window : prompt; }
    // The balance needs them whatever the saliency.
    bool wants_probes() const {
        return ranking == Ranking::water_fill || (ranking != Ranking::none && saliency <= Saliency::accumulated);
    }
    // Layers keep what their first compression learns.
    bool balances() const { return k_divisor == Divisor::balance || k_divisor == Divisor::peaks; }
    bool wants_decode_probes() const { return wants_probes() && !prompts_only; }
    int64_t window_capacity() const { return n_window + n_recent; }
    // How many of n tokens are in tier 0 for their saliency, and how many because they are the newest.
    int64_t n_salient(int64_t n) const;
    int64_t n_newest(int64_t n) const;
    // corrects: of n tokens. More than a window's are a prompt's.
    int rank(int64_t n) const { return n > n_window ? options.rank : options.window_rank; }
    int64_t whole(int64_t n_tokens) const { return n_tokens / n_whole * n_whole; }
};

// What can be said of options before the model is known. Throws ArgumentError that names the option, its value and what
// is accepted.
void check_options(const KvOptions & options);

// Null, or what the policy is made of that only the host's cache has.
const char * host_only(const Policy & policy);

// Throws as check_options does, and for a policy that does not fit the model.
std::shared_ptr<const Policy> make_policy(const KvOptions & options, const HParams & h);

}  // namespace zipcache
