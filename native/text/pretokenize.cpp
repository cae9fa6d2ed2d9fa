#include "text/pretokenize.h"

#include <algorithm>
#include <array>

#include "text/unicode.h"
#include "text/utf8.h"

namespace zipcache {

namespace {

struct Char {
    char32_t code;
    size_t end;  // where the next character begins
    CharClass kind;
};

Char char_at(std::string_view text, size_t pos) {
    const Utf8Char c = decode_utf8(text, pos);
    return {c.code, pos + c.size, char_class(c.code)};
}

// End of the longest run of characters from `pos` on for which `belongs` holds.
template <typename Belongs>
size_t run_end(std::string_view text, size_t pos, Belongs belongs) {
    while (pos < text.size()) {
        const Char c = char_at(text, pos);
        if (!belongs(c))
            break;
        pos = c.end;
    }
    return pos;
}

bool is_newline(const Char & c) {
    return c.code == '\r' || c.code == '\n';
}
bool is_space(const Char & c) {
    return c.kind == CharClass::space;
}
bool is_letter(const Char & c) {
    return c.kind == CharClass::letter;
}
bool is_number(const Char & c) {
    return c.kind == CharClass::number;
}
bool is_symbol(const Char & c) {
    return c.kind == CharClass::other || c.kind == CharClass::punctuation;
}
bool is_ascii_digit(const Char & c) {
    return c.code >= '0' && c.code <= '9';
}

// 's|'t|'re|'ve|'m|'ll|'d at `pos`: its end, or `pos` when there is none. Ignoring case, U+017F is an s.
size_t contraction_end(std::string_view text, size_t pos, bool ignore_case) {
    if (text[pos] != '\'' || pos + 1 == text.size())
        return pos;
    const auto letter = [&](size_t at) -> char {
        const char c = text[at];
        return ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    };
    const char first = letter(pos + 1);
    if (first == 's' || first == 't' || first == 'm' || first == 'd')
        return pos + 2;
    if (ignore_case && text.compare(pos + 1, 2, "\u017F") == 0)
        return pos + 3;
    if (pos + 2 == text.size())
        return pos;
    const char second = letter(pos + 2);
    const bool two =
        (first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l');
    return two ? pos + 3 : pos;
}

// \s+(?!\S)|\s+ for whitespace at `pos`: a run gives its last character to what follows, unless it is all it has.
// `ends_text`: a character before which this text counts as finished.
template <typename EndsText>
size_t whitespace_end(std::string_view text, size_t pos, EndsText ends_text) {
    const size_t start = pos;
    size_t last = pos;
    while (pos < text.size()) {
        const Char c = char_at(text, pos);
        if (!is_space(c))
            return last == start || ends_text(c) ? pos : last;
        last = pos;
        pos = c.end;
    }
    return pos;
}

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// where the text ends before any character for which `ends_text` holds; there is none at `pos`.
template <typename EndsText>
size_t gpt2_word_end(std::string_view text, size_t pos, EndsText ends_text) {
    const size_t contraction = contraction_end(text, pos, false);
    if (contraction != pos)
        return contraction;
    Char c = char_at(text, pos);
    if (c.code == ' ' && c.end < text.size()) {
        const Char next = char_at(text, c.end);
        if (!is_space(next) && !ends_text(next))
            c = next;
    }
    if (is_space(c))
        return whitespace_end(text, pos, ends_text);
    const auto same = [&](const Char & other) {
        if (ends_text(other))
            return false;
        return is_symbol(c) ? is_symbol(other) : other.kind == c.kind;
    };
    return run_end(text, c.end, same);
}

size_t gpt2(std::string_view text, size_t pos) {
    return gpt2_word_end(text, pos, [](const Char &) { return false; });
}

// \p{N}, then the words of gpt2 in the text between: every digit stands alone, and is the end for what precedes it.
size_t single_digits(std::string_view text, size_t pos) {
    const Char c = char_at(text, pos);
    return is_number(c) ? c.end : gpt2_word_end(text, pos, is_number);
}

bool is_default_punctuation(const Char & c) {
    if (c.kind == CharClass::punctuation)
        return true;
    return c.code < 0x80 && std::string_view("$+<=>^~|").find(static_cast<char>(c.code)) != std::string_view::npos;
}

// Where a run of numbers is cut by \p{N}+ and then [0-9][0-9][0-9]: after three ASCII digits, or before the next three.
size_t digit_triple_end(std::string_view text, size_t pos) {
    const auto triple_at = [&](size_t at) {
        if (text.size() - at < 3)
            return false;
        const auto digit = [](char c) { return c >= '0' && c <= '9'; };
        return digit(text[at]) && digit(text[at + 1]) && digit(text[at + 2]);
    };
    if (triple_at(pos))
        return pos + 3;
    while (pos < text.size()) {
        const Char c = char_at(text, pos);
        if (!is_number(c) || (is_ascii_digit(c) && triple_at(pos)))
            break;
        pos = c.end;
    }
    return pos;
}

// One after the other, each within the pieces of the one before: [\p{P}\$\+<=>\^~\|]+, the words of gpt2, \p{N}+,
// [0-9][0-9][0-9]
size_t default_words(std::string_view text, size_t pos) {
    const Char c = char_at(text, pos);
    if (is_default_punctuation(c))
        return run_end(text, pos, is_default_punctuation);
    if (is_number(c))
        return digit_triple_end(text, pos);
    const bool before_number = c.code == ' ' && c.end < text.size() && is_number(char_at(text, c.end));
    return before_number ? c.end : gpt2_word_end(text, pos, is_default_punctuation);
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,max_digits}|
// ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
template <int max_digits>
size_t llama3_word_end(std::string_view text, size_t pos) {
    const size_t contraction = contraction_end(text, pos, true);
    if (contraction != pos)
        return contraction;
    const Char c = char_at(text, pos);
    if (is_letter(c))
        return run_end(text, c.end, is_letter);
    if (is_number(c)) {
        int digits = 1;
        return run_end(text, c.end, [&](const Char & other) { return is_number(other) && digits++ < max_digits; });
    }
    const bool has_next = c.end < text.size();
    if (has_next && !is_newline(c) && is_letter(char_at(text, c.end)))
        return run_end(text, c.end, is_letter);
    if (is_symbol(c) || (c.code == ' ' && has_next && is_symbol(char_at(text, c.end)))) {
        return run_end(text, run_end(text, c.end, is_symbol), is_newline);
    }
    const size_t end = run_end(text, pos, is_space);
    const size_t newline = text.substr(pos, end - pos).find_last_of("\r\n");
    if (newline != std::string_view::npos)
        return pos + newline + 1;
    return whitespace_end(text, pos, [](const Char &) { return false; });
}

constexpr PreTokenizer plain = {gpt2, false};
constexpr PreTokenizer digits = {single_digits, false};
constexpr PreTokenizer mixed = {default_words, false};
constexpr PreTokenizer llama3 = {llama3_word_end<3>, true};
constexpr PreTokenizer triples = {llama3_word_end<3>, false};
constexpr PreTokenizer qwen2 = {llama3_word_end<1>, false};

struct Name {
    std::string_view name;
    const PreTokenizer * rules;
};

constexpr std::array names = {
    Name{"default", &mixed},
    Name{"gpt-2", &plain},
    Name{"phi-2", &plain},
    Name{"gigachat", &plain},
    Name{"a.x-4.0", &plain},
    Name{"mellum", &plain},
    Name{"mpt", &plain},
    Name{"olmo", &plain},
    Name{"jais", &plain},
    Name{"trillion", &plain},
    Name{"granite-docling", &plain},
    Name{"exaone4", &plain},
    Name{"smollm", &digits},
    Name{"starcoder", &digits},
    Name{"refact", &digits},
    Name{"command-r", &digits},
    Name{"codeshell", &digits},
    Name{"exaone", &digits},
    Name{"minerva-7b", &digits},
    Name{"mellum2", &digits},
    Name{"llama-bpe", &llama3},
    Name{"llama3", &llama3},
    Name{"llama-v3", &llama3},
    Name{"falcon3", &llama3},
    Name{"falcon-h1", &llama3},
    Name{"pixtral", &llama3},
    Name{"midm-2.0", &llama3},
    Name{"lfm2", &llama3},
    Name{"dbrx", &triples},
    Name{"smaug-bpe", &triples},
    Name{"glm4", &triples},
    Name{"chatglm-bpe", &triples},
    Name{"qwen2", &qwen2},
    Name{"deepseek-r1-qwen", &qwen2},
    Name{"kormo", &qwen2},
    Name{"megrez", &qwen2},
    Name{"stablelm2", &qwen2},
    Name{"hunyuan", &qwen2},
    Name{"solar-open", &qwen2},
    Name{"grok-2", &qwen2},
};

}  // namespace

const PreTokenizer * find_pre_tokenizer(std::string_view name) {
    // Files from before the key existed have none, and were all meant to be read as "default".
    if (name.empty())
        name = "default";
    const auto found = std::find_if(names.begin(), names.end(), [&](const Name & known) { return known.name == name; });
    return found == names.end() ? nullptr : found->rules;
}

std::string pre_tokenizer_names() {
    std::string out;
    for (const Name & known : names) {
        if (!out.empty())
            out += ", ";
        out += known.name;
    }
    return out;
}

}  // namespace zipcache
