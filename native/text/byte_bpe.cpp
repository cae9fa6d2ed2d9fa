#include "text/byte_bpe.h"

#include <algorithm>

#include "common/error.h"
#include "text/utf8.h"

namespace zipcache {

namespace {

// GPT-2's alphabet: printable Latin-1 bytes are themselves, the other 68 take U+0100 and up in order.
bool is_itself(int byte) {
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

struct Alphabet {
    std::array<std::string, 256> text;   // [byte], UTF-8
    std::array<int16_t, 0x180> byte_of;  // [code point], -1: not in the alphabet

    Alphabet() {
        byte_of.fill(-1);
        int next = 0x100;
        for (int byte = 0; byte < 256; byte++) {
            const int code = is_itself(byte) ? byte : next++;
            byte_of[code] = static_cast<int16_t>(byte);
            if (code < 0x80) {
                text[byte] = static_cast<char>(code);
            } else {
                text[byte] = {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
            }
        }
    }
};

const Alphabet & alphabet() {
    static const Alphabet instance;
    return instance;
}

// Appends the bytes that `token` spells, or the token itself if it is not written in the alphabet.
void append_spelled(std::string_view token, std::string & out) {
    const size_t before = out.size();
    for (size_t pos = 0; pos < token.size();) {
        const Utf8Char c = decode_utf8(token, pos);
        const int byte = c.code < alphabet().byte_of.size() ? alphabet().byte_of[c.code] : -1;
        if (byte < 0) {
            out.resize(before);
            out.append(token);
            return;
        }
        out += static_cast<char>(byte);
        pos += c.size;
    }
}

bool is_verbatim(TokenType type) {
    return type == TokenType::control || type == TokenType::user_defined || type == TokenType::unknown;
}

// A candidate merge of the symbol at `left` with its neighbour, as they were when it was found.
struct Candidate {
    int32_t rank;
    uint32_t left;
    int32_t left_id, right_id, result;
};

struct WorstFirst {  // makes the best candidate the top of a heap
    bool operator()(const Candidate & a, const Candidate & b) const {
        return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
    }
};

constexpr uint32_t none = UINT32_MAX;

struct Symbol {
    int32_t id;  // -1: merged into its left neighbour
    uint32_t previous, next;
};

}  // namespace

struct ByteBpe::Scratch {
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
};

ByteBpe::ByteBpe(TokenizerSpec spec)
    : Tokenizer(std::move(spec)),
      ids_(spec_.tokens),
      merges_(spec_.merges.size()),
      rules_(find_pre_tokenizer(spec_.pre)) {
    if (rules_ == nullptr) {
        throw ModelError("unknown pre-tokenizer '" + spec_.pre +
                         "' (tokenizer.ggml.pre); known: " + pre_tokenizer_names());
    }
    file_tokens(ids_);
    for (size_t byte = 0; byte < 256; byte++)
        byte_ids_[byte] = ids_.find(alphabet().text[byte]);
    if (std::all_of(byte_ids_.begin(), byte_ids_.end(), [](int32_t id) { return id < 0; })) {
        throw ModelError("tokenizer.ggml.tokens has no token for any single byte, as byte-level BPE needs");
    }
    read_merges();
    for (int32_t id = 0; id < n_vocab(); id++) {
        const TokenType type = spec_.types[id];
        if (!is_verbatim(type))
            continue;
        all_special_.add(spec_.tokens[id], id);
        if (type == TokenType::user_defined)
            user_defined_.add(spec_.tokens[id], id);
    }
    all_special_.finish();
    user_defined_.finish();
    decode_pieces();
}

void ByteBpe::read_merges() {
    std::string joined;
    for (size_t rank = 0; rank < spec_.merges.size(); rank++) {
        const std::string_view merge = spec_.merges[rank];
        const auto fail = [&](const std::string & what) {
            throw ModelError("tokenizer.ggml.merges[" + std::to_string(rank) + "] is '" + std::string(merge) +
                             "': " + what);
        };
        const size_t space = merge.find(' ');
        if (space == std::string_view::npos)
            fail("expected two tokens with a space between them");
        const std::string_view left = merge.substr(0, space), right = merge.substr(space + 1);
        joined.assign(left).append(right);
        const int32_t left_id = ids_.find(left), right_id = ids_.find(right), result = ids_.find(joined);
        if (left_id < 0 || right_id < 0)
            fail("both sides must be in tokenizer.ggml.tokens");
        if (result < 0)
            fail("'" + joined + "' is not in tokenizer.ggml.tokens");
        merges_.insert(left_id, right_id, {static_cast<int32_t>(rank), result});
    }
}

void ByteBpe::decode_pieces() {
    offsets_.reserve(spec_.tokens.size() + 1);
    offsets_.push_back(0);
    for (size_t id = 0; id < spec_.tokens.size(); id++) {
        if (is_verbatim(spec_.types[id])) {
            bytes_.append(spec_.tokens[id]);
        } else {
            append_spelled(spec_.tokens[id], bytes_);
        }
        offsets_.push_back(bytes_.size());
    }
}

std::vector<int32_t> ByteBpe::encode(std::string_view text, bool special) const {
    const SpecialMatcher & matcher = special ? all_special_ : user_defined_;
    std::vector<int32_t> out;
    Scratch scratch;
    for (size_t pos = 0; pos < text.size();) {
        const SpecialMatcher::Match match = matcher.find(text, pos);
        if (match.token < 0) {
            encode_text(text.substr(pos), scratch, out);
            break;
        }
        encode_text(text.substr(pos, match.begin - pos), scratch, out);
        out.push_back(match.token);
        pos = match.end;
    }
    return out;
}

void ByteBpe::encode_text(std::string_view text, Scratch & scratch, std::vector<int32_t> & out) const {
    constexpr size_t longest_word = size_t(1) << 30;  // symbols are counted in 32 bits
    for (size_t pos = 0; pos < text.size();) {
        const size_t end = std::min(rules_->word_end(text, pos), pos + longest_word);
        encode_word(text.substr(pos, end - pos), scratch, out);
        pos = end;
    }
}

int32_t ByteBpe::whole_word(std::string_view word) const {
    if (word.size() > ids_.longest())
        return -1;
    std::string spelled;
    for (const char c : word)
        spelled += alphabet().text[static_cast<uint8_t>(c)];
    const int32_t id = ids_.find(spelled);
    return id >= 0 && !is_verbatim(spec_.types[id]) ? id : -1;
}

void ByteBpe::encode_word(std::string_view word, Scratch & scratch, std::vector<int32_t> & out) const {
    if (rules_->ignore_merges) {
        const int32_t id = whole_word(word);
        if (id >= 0)
            return out.push_back(id);
    }
    // named references: C++17 lambdas cannot capture structured bindings
    auto & symbols = scratch.symbols;
    auto & heap = scratch.heap;
    symbols.clear();
    heap.clear();
    for (const char c : word) {
        const int32_t id = byte_ids_[static_cast<uint8_t>(c)];
        const uint32_t n = static_cast<uint32_t>(symbols.size());
        if (id >= 0)
            symbols.push_back({id, n == 0 ? none : n - 1, n + 1});
    }
    if (symbols.empty())
        return;
    symbols.back().next = none;

    const auto consider = [&](uint32_t left, uint32_t right) {
        const int32_t left_id = symbols[left].id, right_id = symbols[right].id;
        const Merge merge = merges_.find(left_id, right_id);
        if (merge.rank >= 0)
            heap.push_back({merge.rank, left, left_id, right_id, merge.result});
        return merge.rank >= 0;
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
        const bool current = left.id == best.left_id && right != none && symbols[right].id == best.right_id;
        if (!current)
            continue;
        left.id = best.result;
        symbols[right].id = -1;
        left.next = symbols[right].next;
        if (left.next != none)
            symbols[left.next].previous = best.left;
        if (left.previous != none)
            push(left.previous, best.left);
        if (left.next != none)
            push(best.left, left.next);
    }
    for (uint32_t at = 0; at != none; at = symbols[at].next)
        out.push_back(symbols[at].id);
}

std::string_view ByteBpe::piece(int32_t token, bool special) const {
    const TokenType type = checked_type(token);
    if (!special && (type == TokenType::control || type == TokenType::unknown))
        return {};
    return std::string_view(bytes_).substr(offsets_[token], offsets_[token + 1] - offsets_[token]);
}

std::string ByteBpe::detokenize(const int32_t * tokens, size_t n_tokens, bool special) const {
    std::string out;
    for (size_t i = 0; i < n_tokens; i++)
        out += piece(tokens[i], special);
    return out;
}

}  // namespace zipcache
