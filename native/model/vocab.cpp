#include "model/vocab.h"

#include "common/error.h"

namespace zipcache {
namespace {

int32_t token_id(const GgufFile & file, const char * name, size_t n_vocab) {
    const std::string key = std::string("tokenizer.ggml.") + name;
    const int64_t id = file.maybe_integer(key).value_or(-1);
    if (id < -1 || id >= int64_t(n_vocab)) {
        // some converters write 2^32 - 1 for "none"
        if (id == UINT32_MAX) {
            return -1;
        }
        throw ModelError("key '" + key + "' is " + std::to_string(id) + "; accepted: a token id below " +
                         std::to_string(n_vocab));
    }
    return static_cast<int32_t>(id);
}

std::vector<TokenType> token_types(const GgufFile & file) {
    std::vector<TokenType> types;
    for (int64_t type : file.integers("tokenizer.ggml.token_type")) {
        if (type < 0 || type > int64_t(TokenType::byte)) {
            throw ModelError("key 'tokenizer.ggml.token_type' holds " + std::to_string(type) + "; accepted: 0 to 6");
        }
        types.push_back(static_cast<TokenType>(type));
    }
    return types;
}

// What holds where the flags are absent: the behaviour of the tokenizers these files were made from.
bool adds_bos_by_default(const TokenizerSpec & spec) {
    return spec.model == "llama" || spec.pre == "llama-bpe" || spec.pre == "llama3" || spec.pre == "llama-v3";
}

}  // namespace

TokenizerSpec tokenizer_spec(const GgufFile & file) {
    if (!file.find("tokenizer.ggml.model")) {
        throw ModelError(file.path() + " has no tokenizer: the key 'tokenizer.ggml.model' is missing");
    }
    TokenizerSpec spec;
    spec.model = file.string("tokenizer.ggml.model");
    spec.pre = file.maybe_string("tokenizer.ggml.pre").value_or("default");
    spec.tokens = file.strings("tokenizer.ggml.tokens");
    spec.scores = file.numbers("tokenizer.ggml.scores");
    spec.types = token_types(file);
    spec.merges = file.strings("tokenizer.ggml.merges");
    const size_t n = spec.tokens.size();
    spec.bos = token_id(file, "bos_token_id", n);
    spec.eos = token_id(file, "eos_token_id", n);
    spec.eot = token_id(file, "eot_token_id", n);
    spec.eom = token_id(file, "eom_token_id", n);
    spec.unknown = token_id(file, "unknown_token_id", n);
    spec.padding = token_id(file, "padding_token_id", n);
    spec.add_bos =
        file.maybe_boolean("tokenizer.ggml.add_bos_token").value_or(spec.bos >= 0 && adds_bos_by_default(spec));
    spec.add_eos = file.maybe_boolean("tokenizer.ggml.add_eos_token").value_or(false);
    spec.add_space_prefix = file.maybe_boolean("tokenizer.ggml.add_space_prefix").value_or(spec.model == "llama");
    spec.remove_extra_whitespaces = file.maybe_boolean("tokenizer.ggml.remove_extra_whitespaces").value_or(false);
    return spec;
}

}  // namespace zipcache
