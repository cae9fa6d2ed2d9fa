#include "check.h"
#include "common/error.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

using namespace zipcache;

namespace {

// Byte-level BPE over single printable ASCII bytes, plus "ab" and a control token.
TokenizerSpec tiny_bpe() {
    static std::vector<std::string> names;
    if (names.empty()) {
        for (char c = '!'; c <= '~'; ++c) {
            names.emplace_back(1, c);
        }
        names.insert(names.end(), {"ab", "\xC4\xA0", "<|im_end|>"});
    }
    TokenizerSpec spec;
    spec.model = "gpt2";
    spec.pre = "gpt-2";
    spec.tokens.assign(names.begin(), names.end());
    spec.types.assign(names.size(), TokenType::normal);
    spec.types.back() = TokenType::control;
    spec.merges = {"a b"};
    return spec;
}

}  // namespace

TEST(utf8_stream_never_shows_half_a_character) {
    Utf8Stream stream;
    CHECK(stream.push("a\xF0\x9F") == "a");
    CHECK(stream.push("\x98") == "");
    CHECK(stream.push("\x80z") == "\xF0\x9F\x98\x80z");
    CHECK(stream.push("\xFF") == "\xEF\xBF\xBD");
    CHECK(stream.push("\xE2\x82") == "");
    CHECK(stream.flush() == "\xEF\xBF\xBD");
    CHECK(stream.flush() == "");
}

TEST(is_utf8_knows_right_from_wrong) {
    for (const char * right : {"", "abc", "\xC3\xA9", "\xF4\x8F\xBF\xBF"}) {
        CHECK(is_utf8(right));
    }
    for (const char * wrong : {"\x80", "\xC3", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "a\xFF"}) {
        CHECK(!is_utf8(wrong));
    }
}

TEST(byte_bpe_merges_and_finds_control_tokens) {
    const auto tokenizer = Tokenizer::create(tiny_bpe());
    const int32_t ab = '~' - '!' + 1, end = ab + 2;
    CHECK((tokenizer->encode("abc", true) == std::vector<int32_t>{ab, 'c' - '!'}));
    CHECK(tokenizer->encode("a<|im_end|>", true).back() == end);
    CHECK(tokenizer->encode("a<|im_end|>", false).size() > 2);
    CHECK(tokenizer->is_end(end) && !tokenizer->is_end(ab));
    CHECK(tokenizer->piece(end, false) == "" && tokenizer->piece(end, true) == "<|im_end|>");
    CHECK_THROWS(tokenizer->piece(-1, false), ArgumentError, "-1");
    CHECK_THROWS(tokenizer->piece(end + 1, false), ArgumentError, std::to_string(end + 1));
}

TEST(control_tokens_and_punctuation_are_special) {
    TokenizerSpec spec = tiny_bpe();
    // in the letters of byte-level BPE: " (", ".\n", a dash, "...", "a.", half a dash, "'s"
    const std::vector<std::string> more = {"\xC4\xA0(", ".\xC4\x8A", "\xC3\xA2\xC4\xA2\xC4\xB6", "...", "a.",
                                           "\xC3\xA2",  "'s"};
    const auto first = static_cast<int32_t>(spec.tokens.size());
    spec.tokens.insert(spec.tokens.end(), more.begin(), more.end());
    spec.types.resize(spec.tokens.size(), TokenType::normal);
    const auto tokenizer = Tokenizer::create(std::move(spec));
    for (int32_t special : {'.' - '!', '?' - '!', first - 1, first, first + 1, first + 2, first + 3}) {
        CHECK(tokenizer->is_special(special));
    }
    const int32_t space = first - 2, ab = first - 3, beyond = tokenizer->n_vocab();
    for (int32_t other : {'a' - '!', '0' - '!', '+' - '!', space, ab, first + 4, first + 5, first + 6, beyond, -1}) {
        CHECK(!tokenizer->is_special(other));
    }
}

TEST(tokenizers_refuse_tables_that_contradict_themselves) {
    struct {
        const char * says;
        void (*spoil)(TokenizerSpec &);
    } cases[] = {
        {"wordpiece", [](TokenizerSpec & s) { s.model = "wordpiece"; }},
        {"no-such", [](TokenizerSpec & s) { s.pre = "no-such"; }},
        {"", [](TokenizerSpec & s) { s.tokens[1] = s.tokens[0]; }},
        {"", [](TokenizerSpec & s) { s.merges = {"ab"}; }},
        {"", [](TokenizerSpec & s) { s.types.pop_back(); }},
    };
    for (const auto & c : cases) {
        TokenizerSpec spec = tiny_bpe();
        c.spoil(spec);
        CHECK_THROWS(Tokenizer::create(spec), ModelError, c.says);
    }
}
