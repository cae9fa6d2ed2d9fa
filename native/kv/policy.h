#pragma once
#include <memory>
#include <vector>

#include "ggml-zipcache.h"
#include "kv/options.h"
#include "model/hparams.h"

namespace zipcache {

enum class Saliency { normalized, accumulated, recent, random };
enum class Ranking { none, top_ratio, water_fill };  // how a token gets its tier
enum class Divisor { none, normalizer, balance };    // CST's c; or the balance of METHOD section 8

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
    double budget = 0;       // water_fill: all-in bits of an element
    int64_t n_window = 100;  // tokens compressed together while decoding
    int64_t n_recent = 0;    // newest tokens that stay uncompressed

    // Stretches shorter than this take the window's format.
    static constexpr int64_t kLong = 256;
    const ggml_zipcache_format & format_for(int64_t n_tokens) const { return n_tokens < kLong ? window : prompt; }
    // The balance needs them whatever the saliency.
    bool wants_probes() const {
        return ranking == Ranking::water_fill || (ranking == Ranking::top_ratio && saliency <= Saliency::accumulated);
    }
    int64_t window_capacity() const { return n_window + n_recent; }
};

// What can be said of options before the model is known. Throws ArgumentError that names the option, its value and what
// is accepted.
void check_options(const KvOptions & options);

// Throws as check_options does, and for a policy that does not fit the model.
std::shared_ptr<const Policy> make_policy(const KvOptions & options, const HParams & h);

}  // namespace zipcache
