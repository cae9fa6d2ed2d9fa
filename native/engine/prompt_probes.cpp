#include "engine/prompt_probes.h"

#include "common/error.h"

namespace zipcache {

void check_probes(const Model & model, const KvOptions & options) {
    if (options.probes == "special" && !model.has_tokenizer()) {
        throw ArgumentError("the KV option probes is 'special', and " + model.file().path() +
                            " has no tokenizer that says which tokens are; accepted: any other");
    }
}

std::vector<int64_t> prompt_probes(const Model & model, const KvOptions & options, const int32_t * tokens, int64_t n,
                                   uint64_t seed) {
    check_probes(model, options);
    std::vector<int64_t> special;
    if (options.probes == "special") {
        const Tokenizer & tokenizer = model.tokenizer();
        for (int64_t t = 0; t < n; ++t) {
            if (tokenizer.is_special(tokens[t])) {
                special.push_back(t);
            }
        }
    }
    return choose_probes(options, n, seed, special);
}

}  // namespace zipcache
