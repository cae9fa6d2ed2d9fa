// libFuzzer: any bytes encode without an error, and byte-level BPE gives them back.
#include <cstdlib>
#include <string>

#include "text/tokenizer.h"

using namespace zipcache;

namespace {

// Every byte in GPT-2's spelling: printable ones as themselves, the others as U+0100 and on.
std::string spelled(int byte) {
    static int next = 0x100;
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const int code = printable ? byte : next++;
    if (code < 0x80) {
        return {char(code)};
    }
    return {char(0xC0 | (code >> 6)), char(0x80 | (code & 0x3F))};
}

std::unique_ptr<Tokenizer> make() {
    static std::vector<std::string> names;
    for (int byte = 0; byte < 256; ++byte) {
        names.push_back(spelled(byte));
    }
    names.insert(names.end(), {"aa", "aaaa", "th", "the", "<|end|>"});
    TokenizerSpec spec;
    spec.model = "gpt2";
    spec.pre = "llama-bpe";
    spec.tokens.assign(names.begin(), names.end());
    spec.types.assign(names.size(), TokenType::normal);
    spec.types.back() = TokenType::control;
    spec.merges = {"a a", "aa aa", "t h", "th e"};
    return Tokenizer::create(spec);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    static const std::unique_ptr<Tokenizer> tokenizer = make();
    const std::string text(reinterpret_cast<const char *>(data), size);
    for (bool special : {false, true}) {
        const auto ids = tokenizer->encode(text, special);
        if (tokenizer->detokenize(ids.data(), ids.size(), special) != text) {
            std::abort();
        }
    }
    return 0;
}
