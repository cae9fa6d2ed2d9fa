#include "text/utf8.h"

#include "text/tokenizer.h"

namespace zipcache {

namespace {

// What a lead byte announces: the length, and the range of the second byte, which excludes overlong forms,
// surrogates and codes above U+10FFFF.
struct Lead {
    uint32_t size;  // 0: not a lead byte
    uint8_t low, high;
};

Lead read_lead(uint8_t byte) {
    if (byte >= 0xC2 && byte <= 0xDF)
        return {2, 0x80, 0xBF};
    if (byte >= 0xE0 && byte <= 0xEF) {
        return {3, static_cast<uint8_t>(byte == 0xE0 ? 0xA0 : 0x80), static_cast<uint8_t>(byte == 0xED ? 0x9F : 0xBF)};
    }
    if (byte >= 0xF0 && byte <= 0xF4) {
        return {4, static_cast<uint8_t>(byte == 0xF0 ? 0x90 : 0x80), static_cast<uint8_t>(byte == 0xF4 ? 0x8F : 0xBF)};
    }
    return {0, 0, 0};
}

}  // namespace

Utf8Char decode_utf8(std::string_view text, size_t pos) {
    const auto byte_at = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
    const uint8_t first = byte_at(pos);
    if (first < 0x80)
        return {first, 1, Utf8Status::valid};
    const Lead lead = read_lead(first);
    if (lead.size == 0)
        return {replacement_character, 1, Utf8Status::invalid};

    char32_t code = first & (0x7Fu >> lead.size);
    for (uint32_t i = 1; i < lead.size; i++) {
        if (pos + i == text.size())
            return {replacement_character, i, Utf8Status::truncated};
        const uint8_t byte = byte_at(pos + i);
        const bool fits = i == 1 ? byte >= lead.low && byte <= lead.high : (byte & 0xC0) == 0x80;
        if (!fits)
            return {replacement_character, i, Utf8Status::invalid};
        code = code << 6 | (byte & 0x3F);
    }
    return {code, lead.size, Utf8Status::valid};
}

std::string Utf8Stream::push(std::string_view bytes) {
    pending_.append(bytes);
    const std::string data = std::move(pending_);
    pending_.clear();
    std::string out;
    out.reserve(data.size());
    for (size_t pos = 0; pos < data.size();) {
        const Utf8Char c = decode_utf8(data, pos);
        switch (c.status) {
            case Utf8Status::valid: out.append(data, pos, c.size); break;
            case Utf8Status::invalid: out.append(replacement_utf8); break;
            case Utf8Status::truncated: pending_.assign(data, pos, c.size); break;
        }
        pos += c.size;
    }
    return out;
}

std::string Utf8Stream::flush() {
    std::string out(pending_.empty() ? std::string_view() : replacement_utf8);
    pending_.clear();
    return out;
}

bool is_utf8(std::string_view text) {
    for (size_t pos = 0; pos < text.size();) {
        if (static_cast<unsigned char>(text[pos]) < 0x80) {
            ++pos;
            continue;
        }
        const Utf8Char step = decode_utf8(text, pos);
        if (step.status != Utf8Status::valid) {
            return false;
        }
        pos += step.size;
    }
    return true;
}

}  // namespace zipcache
