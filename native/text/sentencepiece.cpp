#include "text/sentencepiece.h"

#include <algorithm>
#include <unordered_map>

#include "common/error.h"
#include "text/utf8.h"

namespace zipcache {

namespace {

constexpr std::string_view space_mark = "\xE2\x96\x81";  // U+2581

// Left out of text unless asked for; what stands between two of them is a stretch of its own.
bool is_hidden(TokenType type) {
    return type == TokenType::control || type == TokenType::unknown;
}

constexpr uint32_t none = UINT32_MAX;

struct Symbol {
    uint32_t begin, size;  // bytes of the run; size 0: merged into its left neighbour
    uint32_t previous, next;
    int32_t token;  // >= 0: a user-defined token, which never merges
};

// A candidate merge of the symbol at `left` with its neighbour into `size` bytes.
struct Candidate {
    float score;
    uint32_t left, size;
};

struct WorstFirst {  // makes the best candidate the top of a heap
    bool operator()(const Candidate & a, const Candidate & b) const {
        return a.score != b.score ? a.score < b.score : a.left > b.left;
    }
};

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
    std::string out;
    out.reserve(text.size() + text.size() / 4);
    for (size_t pos = 0;;) {
        const size_t next = text.find(from, pos);
        out.append(text.substr(pos, next - pos));
        if (next == std::string_view::npos)
            return out;
        out.append(to);
        pos = next + from.size();
    }
}

// Without the spaces at both ends, and one for every run of several. A mark at the end counts as a space there.
std::string_view trim(std::string_view text) {
    text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
    for (;;) {
        if (!text.empty() && text.back() == ' ') {
            text.remove_suffix(1);
        } else if (text.size() >= space_mark.size() && text.substr(text.size() - space_mark.size()) == space_mark) {
            text.remove_suffix(space_mark.size());
        } else {
            return text;
        }
    }
}

std::string collapse_spaces(std::string_view text) {
    std::string out;
    for (const char c : trim(text)) {
        if (c != ' ' || out.empty() || out.back() != ' ')
            out += c;
    }
    return out;
}

}  // namespace

// One stretch of normalized text and the symbols it is made of.
struct SentencePiece::Run {
    std::string_view text;
    std::vector<Symbol> symbols;
    // Bytes on the left side of the merge that formed an unused token: it is taken apart again there.
    std::unordered_map<std::string_view, uint32_t> seams;
};

SentencePiece::SentencePiece(TokenizerSpec spec) : Tokenizer(std::move(spec)), ids_(spec_.tokens) {
    file_tokens(ids_);
    read_byte_tokens();
    store_pieces();
    // Views into user_texts_ stay valid: it is complete before the first one is taken.
    std::vector<std::pair<size_t, int32_t>> user;
    for (int32_t id = 0; id < n_vocab(); id++) {
        const TokenType type = spec_.types[id];
        if (is_hidden(type) || type == TokenType::user_defined)
            specials_.add(spec_.tokens[id], id);
        if (type != TokenType::user_defined)
            continue;
        user.emplace_back(user_texts_.size(), id);
        user_texts_ += replace_all(spec_.tokens[id], " ", space_mark);
    }
    for (size_t i = 0; i < user.size(); i++) {
        const size_t end = i + 1 < user.size() ? user[i + 1].first : user_texts_.size();
        user_defined_.add(std::string_view(user_texts_).substr(user[i].first, end - user[i].first), user[i].second);
    }
    specials_.finish();
    user_defined_.finish();
}

void SentencePiece::read_byte_tokens() {
    constexpr std::string_view hex = "0123456789ABCDEF";
    for (int byte = 0; byte < 256; byte++) {
        const std::string name = {'<', '0', 'x', hex[byte >> 4], hex[byte & 15], '>'};
        const int32_t id = ids_.find(name);
        if (id < 0)
            throw ModelError("tokenizer.ggml.tokens has no byte token '" + name + "'; SentencePiece needs all 256");
        byte_ids_[byte] = id;
        spec_.types[id] = TokenType::byte;
    }
    for (int32_t id = 0; id < n_vocab(); id++) {
        if (spec_.types[id] != TokenType::byte || std::count(byte_ids_.begin(), byte_ids_.end(), id) > 0)
            continue;
        throw ModelError("tokenizer.ggml.tokens[" + std::to_string(id) + "] is '" + std::string(spec_.tokens[id]) +
                         "' and has the type byte; expected '<0x00>' to '<0xFF>'");
    }
}

void SentencePiece::store_pieces() {
    offsets_.assign(spec_.tokens.size() + 1, 0);
    for (size_t id = 0; id < spec_.tokens.size(); id++) {
        const std::string_view token = spec_.tokens[id];
        if (spec_.types[id] == TokenType::byte) {
            const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'A' + 10; };
            bytes_ += static_cast<char>(digit(token[3]) << 4 | digit(token[4]));
        } else if (is_hidden(spec_.types[id]) || token.find(space_mark) == std::string_view::npos) {
            bytes_ += token;
        } else {
            bytes_ += replace_all(token, space_mark, " ");
        }
        offsets_[id + 1] = bytes_.size();
    }
}

std::vector<int32_t> SentencePiece::encode(std::string_view text, bool special) const {
    std::vector<int32_t> out;
    size_t begin = 0;
    for (size_t pos = 0; special && pos < text.size();) {
        const SpecialMatcher::Match match = specials_.find(text, pos);
        if (match.token < 0)
            break;
        pos = match.end;
        if (spec_.types[match.token] == TokenType::user_defined)
            continue;  // stays in the text
        encode_text(text.substr(begin, match.begin - begin), out);
        out.push_back(match.token);
        begin = match.end;
    }
    encode_text(text.substr(begin), out);
    return out;
}

std::string SentencePiece::normalize(std::string_view text) const {
    const std::string collapsed = spec_.remove_extra_whitespaces ? collapse_spaces(text) : std::string();
    if (spec_.remove_extra_whitespaces)
        text = collapsed;
    if (text.empty())
        return {};
    std::string out = replace_all(text, " ", space_mark);
    return spec_.add_space_prefix ? std::string(space_mark) + out : out;
}

void SentencePiece::encode_text(std::string_view text, std::vector<int32_t> & out) const {
    constexpr size_t longest_run = size_t(1) << 30;  // symbols are counted in 32 bits
    const std::string normalized = normalize(text);
    for (size_t pos = 0; pos < normalized.size(); pos += longest_run) {
        encode_run(std::string_view(normalized).substr(pos, longest_run), out);
    }
}

int32_t SentencePiece::mergeable(std::string_view text) const {
    const int32_t id = ids_.find(text);
    if (id < 0)
        return -1;
    const TokenType type = spec_.types[id];
    return type == TokenType::normal || type == TokenType::undefined || type == TokenType::unused ? id : -1;
}

void SentencePiece::split_symbols(Run & run) const {
    for (size_t pos = 0; pos < run.text.size();) {
        const SpecialMatcher::Match match = user_defined_.longest_at(run.text, pos);
        const size_t size = match.token >= 0 ? match.end - pos : decode_utf8(run.text, pos).size;
        const uint32_t n = static_cast<uint32_t>(run.symbols.size());
        run.symbols.push_back(
            {static_cast<uint32_t>(pos), static_cast<uint32_t>(size), n == 0 ? none : n - 1, n + 1, match.token});
        pos += size;
    }
    run.symbols.back().next = none;
}

void SentencePiece::merge_symbols(Run & run) const {
    std::vector<Symbol> & symbols = run.symbols;
    std::vector<Candidate> heap;
    const auto consider = [&](uint32_t left, uint32_t right) {
        if (symbols[left].token >= 0 || symbols[right].token >= 0)
            return false;
        const uint32_t size = symbols[left].size + symbols[right].size;
        const std::string_view joined = run.text.substr(symbols[left].begin, size);
        const int32_t id = mergeable(joined);
        if (id < 0)
            return false;
        heap.push_back({spec_.scores[id], left, size});
        if (spec_.types[id] == TokenType::unused)
            run.seams[joined] = symbols[left].size;
        return true;
    };
    for (uint32_t left = 0; left + 1 < symbols.size(); left++)
        consider(left, left + 1);
    std::make_heap(heap.begin(), heap.end(), WorstFirst());
    const auto push = [&](uint32_t left, uint32_t right) {
        if (consider(left, right))
            std::push_heap(heap.begin(), heap.end(), WorstFirst());
    };
    while (!heap.empty()) {
        const Candidate best = heap.front();
        std::pop_heap(heap.begin(), heap.end(), WorstFirst());
        heap.pop_back();
        Symbol & left = symbols[best.left];
        const uint32_t right = left.next;
        const bool current = left.size > 0 && right != none && left.size + symbols[right].size == best.size;
        if (!current)
            continue;
        left.size = best.size;
        symbols[right].size = 0;
        left.next = symbols[right].next;
        if (left.next != none)
            symbols[left.next].previous = best.left;
        if (left.previous != none)
            push(left.previous, best.left);
        if (left.next != none)
            push(best.left, left.next);
    }
}

void SentencePiece::emit(const Run & run, std::string_view text, std::vector<int32_t> & out) const {
    std::vector<std::string_view> waiting = {text};
    while (!waiting.empty()) {
        const std::string_view part = waiting.back();
        waiting.pop_back();
        const int32_t id = mergeable(part);
        const auto seam = id >= 0 && spec_.types[id] == TokenType::unused ? run.seams.find(part) : run.seams.end();
        if (seam != run.seams.end()) {
            waiting.push_back(part.substr(seam->second));
            waiting.push_back(part.substr(0, seam->second));
        } else if (id >= 0) {
            out.push_back(id);
        } else {
            for (const char c : part)
                out.push_back(byte_ids_[static_cast<uint8_t>(c)]);
        }
    }
}

void SentencePiece::encode_run(std::string_view text, std::vector<int32_t> & out) const {
    Run run = {text, {}, {}};
    split_symbols(run);
    merge_symbols(run);
    for (uint32_t at = 0; at != none; at = run.symbols[at].next) {
        const Symbol & symbol = run.symbols[at];
        if (symbol.token >= 0) {
            out.push_back(symbol.token);
        } else {
            emit(run, text.substr(symbol.begin, symbol.size), out);
        }
    }
}

std::string_view SentencePiece::piece(int32_t token, bool special) const {
    const TokenType type = checked_type(token);
    if (!special && is_hidden(type))
        return {};
    return std::string_view(bytes_).substr(offsets_[token], offsets_[token + 1] - offsets_[token]);
}

std::string SentencePiece::detokenize(const int32_t * tokens, size_t n_tokens, bool special) const {
    std::string out;
    bool prefixed = spec_.add_space_prefix;
    for (size_t i = 0; i < n_tokens; i++) {
        std::string_view text = piece(tokens[i], special);
        const bool control = is_hidden(spec_.types[tokens[i]]);
        if (prefixed && !control && !text.empty() && text[0] == ' ')
            text.remove_prefix(1);
        out += text;
        prefixed = spec_.add_space_prefix && control;
    }
    return out;
}

}  // namespace zipcache
