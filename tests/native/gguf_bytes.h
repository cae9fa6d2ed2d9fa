#pragma once
#include <cstdint>
#include <string>
#include <vector>

// Writes GGUF bytes by hand, right or wrong.
struct GgufBytes {
    std::string bytes;

    template <class T>
    GgufBytes & raw(T value) {
        bytes.append(reinterpret_cast<const char *>(&value), sizeof(T));
        return *this;
    }
    GgufBytes & u32(uint32_t value) { return raw(value); }
    GgufBytes & u64(uint64_t value) { return raw(value); }
    GgufBytes & text(const std::string & value) {
        u64(value.size());
        bytes += value;
        return *this;
    }
    GgufBytes & header(uint64_t n_tensors, uint64_t n_entries, uint32_t version = 3) {
        bytes += "GGUF";
        return u32(version).u64(n_tensors).u64(n_entries);
    }
    GgufBytes & entry_u32(const std::string & key, uint32_t value) { return text(key).u32(4).u32(value); }
    GgufBytes & tensor(const std::string & name, const std::vector<uint64_t> & ne, uint32_t type, uint64_t offset) {
        text(name).u32(uint32_t(ne.size()));
        for (uint64_t n : ne) {
            u64(n);
        }
        return u32(type).u64(offset);
    }
    GgufBytes & data(size_t n_bytes) {
        bytes.resize((bytes.size() + 31) / 32 * 32 + n_bytes);
        return *this;
    }
};
