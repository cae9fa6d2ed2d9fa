#include "model/gguf_file.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <unordered_map>

#include "common/error.h"
#include "common/mapped_file.h"
#include "text/utf8.h"

namespace zipcache {
namespace {

constexpr uint32_t kOldest = 2, kNewest = 3;  // version 1 had 32-bit counts and is long gone
constexpr size_t kDefaultAlignment = 32;
constexpr size_t kMaxAlignment = size_t(1) << 20;
constexpr uint64_t kMaxKeyLength = 65535;
constexpr uint64_t kMaxNameLength = GGML_MAX_NAME - 1;
// the shortest encodings: an empty-key u8 entry; a one-dimensional tensor with an empty name
constexpr size_t kMinEntrySize = 8 + 4 + 1;
constexpr size_t kMinTensorSize = 8 + 4 + 8 + 4 + 8;

size_t scalar_size(GgufType type) {
    switch (type) {
        case GgufType::u8:
        case GgufType::i8:
        case GgufType::boolean: return 1;
        case GgufType::u16:
        case GgufType::i16: return 2;
        case GgufType::u32:
        case GgufType::i32:
        case GgufType::f32: return 4;
        case GgufType::u64:
        case GgufType::i64:
        case GgufType::f64: return 8;
        default: return 0;
    }
}

template <class T>
T load(const uint8_t * data) {
    T value;
    std::memcpy(&value, data, sizeof(T));
    return value;
}

// Reads from a file's bytes and never past their end.
class Cursor {
  public:
    Cursor(const uint8_t * data, size_t size, const std::string & name) : data_(data), size_(size), name_(name) {}

    [[noreturn]] void fail(const std::string & what) const { throw FileError(name_ + ": " + what); }

    size_t position() const { return position_; }
    size_t remaining() const { return size_ - position_; }

    const uint8_t * take(uint64_t n, const std::string & what) {
        if (n > remaining()) {
            fail("truncated: " + what + " needs " + std::to_string(n) + " bytes at offset " +
                 std::to_string(position_) + ", but " + std::to_string(remaining()) + " are left");
        }
        const uint8_t * at = data_ + position_;
        position_ += static_cast<size_t>(n);
        return at;
    }

    template <class T>
    T number(const std::string & what) {
        return load<T>(take(sizeof(T), what));
    }

    std::string_view string(const std::string & what, uint64_t most = std::numeric_limits<uint64_t>::max()) {
        const auto length = number<uint64_t>("the length of " + what);
        if (length > most) {
            fail(what + " is " + std::to_string(length) + " bytes long; accepted: at most " + std::to_string(most));
        }
        const uint8_t * bytes = take(length, what);
        const std::string_view text(reinterpret_cast<const char *>(bytes), static_cast<size_t>(length));
        if (!is_utf8(text)) {
            fail(what + " is not valid UTF-8");
        }
        return text;
    }

    // A count of things that take at least `least` bytes each.
    uint64_t count(const std::string & what, size_t least) {
        const auto n = number<uint64_t>("the number of " + what);
        if (n > remaining() / least) {
            fail("the number of " + what + " is " + std::to_string(n) + ", more than the rest of the file can hold");
        }
        return n;
    }

  private:
    const uint8_t * data_;
    size_t size_;
    size_t position_ = 0;
    const std::string & name_;
};

GgufType read_type(Cursor & in, const std::string & what) {
    const auto number = in.number<uint32_t>("the type of " + what);
    if (number > static_cast<uint32_t>(GgufType::f64)) {
        in.fail(what + " has the unknown type " + std::to_string(number) + "; accepted: 0 to 12");
    }
    return static_cast<GgufType>(number);
}

void check_booleans(const Cursor & in, const GgufEntry & entry, const std::string & what) {
    for (uint64_t i = 0; i < entry.count; ++i) {
        if (entry.data[i] > 1) {
            in.fail(what + " holds the boolean " + std::to_string(entry.data[i]) + "; accepted: 0 or 1");
        }
    }
}

void read_strings(Cursor & in, GgufEntry & entry, const std::string & what) {
    entry.strings.reserve(static_cast<size_t>(entry.count));
    for (uint64_t i = 0; i < entry.count; ++i) {
        entry.strings.push_back(in.string(what));
    }
}

GgufEntry read_entry(Cursor & in) {
    GgufEntry entry{};
    entry.key = in.string("a key", kMaxKeyLength);
    const std::string what = "key '" + std::string(entry.key) + "'";
    if (entry.key.empty()) {
        in.fail("a key is empty");
    }
    entry.type = entry.element_type = read_type(in, what);
    entry.count = 1;
    if (entry.type == GgufType::array) {
        entry.element_type = read_type(in, "the elements of " + what);
        if (entry.element_type == GgufType::array) {
            in.fail(what + " is an array of arrays; accepted: arrays of scalars or strings");
        }
        const size_t least = entry.element_type == GgufType::string ? 8 : scalar_size(entry.element_type);
        entry.count = in.count("elements of " + what, least);
    }
    if (entry.element_type == GgufType::string) {
        read_strings(in, entry, what);
    } else {
        entry.data = in.take(entry.count * scalar_size(entry.element_type), what);
    }
    if (entry.element_type == GgufType::boolean) {
        check_booleans(in, entry, what);
    }
    return entry;
}

ggml_type read_tensor_type(Cursor & in, const std::string & what) {
    const auto number = in.number<uint32_t>("the type of " + what);
    // removed types leave holes in ggml's numbering, with a block size of 0
    if (number >= GGML_TYPE_COUNT || ggml_blck_size(static_cast<ggml_type>(number)) == 0) {
        in.fail(what + " has the unknown type " + std::to_string(number));
    }
    return static_cast<ggml_type>(number);
}

// A tensor's description. `data` is still null: it follows from the offset, which is returned.
uint64_t read_tensor(Cursor & in, GgufTensor & tensor) {
    tensor.name = in.string("a tensor's name", kMaxNameLength);
    const std::string what = "tensor '" + tensor.name + "'";
    if (tensor.name.empty()) {
        in.fail("a tensor has no name");
    }
    const auto n_dims = in.number<uint32_t>("the number of dimensions of " + what);
    if (n_dims < 1 || n_dims > tensor.ne.size()) {
        in.fail(what + " has " + std::to_string(n_dims) + " dimensions; accepted: 1 to 4");
    }
    tensor.ne.fill(1);
    int64_t n_elements = 1;
    for (uint32_t i = 0; i < n_dims; ++i) {
        const auto n = in.number<uint64_t>("the dimensions of " + what);
        if (n == 0 || n > uint64_t(std::numeric_limits<int64_t>::max() / n_elements)) {
            in.fail(what + " has the dimension " + std::to_string(n) +
                    "; accepted: 1 or more, with a product below 2^63");
        }
        tensor.ne[i] = static_cast<int64_t>(n);
        n_elements *= tensor.ne[i];
    }
    tensor.type = read_tensor_type(in, what);
    const int64_t block = ggml_blck_size(tensor.type);
    if (tensor.ne[0] % block != 0) {
        in.fail(what + " has rows of " + std::to_string(tensor.ne[0]) + " elements; accepted for " +
                ggml_type_name(tensor.type) + ": multiples of " + std::to_string(block));
    }
    const auto blocks = static_cast<uint64_t>(n_elements / block);
    const uint64_t block_size = ggml_type_size(tensor.type);
    if (blocks > std::numeric_limits<uint64_t>::max() / block_size) {
        in.fail(what + " has more bytes than can be addressed");
    }
    tensor.nbytes = static_cast<size_t>(blocks * block_size);
    return in.number<uint64_t>("the offset of " + what);
}

}  // namespace

const char * gguf_type_name(GgufType type) {
    static const char * const names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                         "bool", "string", "array", "u64", "i64", "f64"};
    return names[static_cast<uint32_t>(type)];
}

struct GgufFile::Impl {
    std::string path;
    std::unique_ptr<MappedFile> mapping;
    const uint8_t * data = nullptr;
    size_t size = 0;
    uint32_t version = 0;
    size_t alignment = kDefaultAlignment;
    std::vector<GgufEntry> entries;
    std::vector<GgufTensor> tensors;
    std::unordered_map<std::string_view, size_t> entry_index, tensor_index;

    void read();
    void read_header(Cursor & in, uint64_t & n_tensors, uint64_t & n_entries);
    void read_entries(Cursor & in, uint64_t n);
    void read_alignment(const Cursor & in);
    void read_tensors(Cursor & in, uint64_t n);
    void place_tensors(const Cursor & in, const std::vector<uint64_t> & offsets);
    void check_overlaps(const Cursor & in) const;
};

void GgufFile::Impl::read() {
    Cursor in(data, size, path);
    uint64_t n_tensors = 0, n_entries = 0;
    read_header(in, n_tensors, n_entries);
    read_entries(in, n_entries);
    read_tensors(in, n_tensors);
}

void GgufFile::Impl::read_header(Cursor & in, uint64_t & n_tensors, uint64_t & n_entries) {
    const uint8_t * magic = in.take(4, "the magic number");
    if (std::memcmp(magic, "GGUF", 4) != 0) {
        in.fail("not a GGUF file: it does not begin with 'GGUF'");
    }
    version = in.number<uint32_t>("the version");
    if (version != 0 && (version & 0xFFFF) == 0) {
        in.fail("a big-endian GGUF file; accepted: little-endian");
    }
    if (version < kOldest || version > kNewest) {
        in.fail("GGUF version " + std::to_string(version) + "; accepted: 2 and 3");
    }
    n_tensors = in.count("tensors", kMinTensorSize);
    n_entries = in.count("metadata entries", kMinEntrySize);
}

void GgufFile::Impl::read_entries(Cursor & in, uint64_t n) {
    entries.reserve(static_cast<size_t>(n));
    for (uint64_t i = 0; i < n; ++i) {
        entries.push_back(read_entry(in));
        if (!entry_index.emplace(entries.back().key, entries.size() - 1).second) {
            in.fail("the key '" + std::string(entries.back().key) + "' occurs twice");
        }
    }
    read_alignment(in);
}

void GgufFile::Impl::read_alignment(const Cursor & in) {
    const auto found = entry_index.find("general.alignment");
    if (found == entry_index.end()) {
        return;
    }
    const GgufEntry & entry = entries[found->second];
    const uint64_t value = entry.type == GgufType::u32 ? load<uint32_t>(entry.data) : 0;
    if (value == 0 || value > kMaxAlignment || (value & (value - 1)) != 0) {
        in.fail("general.alignment is " + std::to_string(value) + " (" + gguf_type_name(entry.type) +
                "); accepted: a u32 power of two up to " + std::to_string(kMaxAlignment));
    }
    alignment = static_cast<size_t>(value);
}

void GgufFile::Impl::read_tensors(Cursor & in, uint64_t n) {
    std::vector<uint64_t> offsets;
    offsets.reserve(static_cast<size_t>(n));
    tensors.reserve(static_cast<size_t>(n));  // never moves: the index holds views of the names
    for (uint64_t i = 0; i < n; ++i) {
        tensors.emplace_back();
        offsets.push_back(read_tensor(in, tensors.back()));
        if (!tensor_index.emplace(tensors.back().name, tensors.size() - 1).second) {
            in.fail("the tensor '" + tensors.back().name + "' occurs twice");
        }
    }
    place_tensors(in, offsets);
    check_overlaps(in);
}

void GgufFile::Impl::place_tensors(const Cursor & in, const std::vector<uint64_t> & offsets) {
    const uint64_t start = (uint64_t(in.position()) + alignment - 1) / alignment * alignment;
    const uint64_t room = start <= size ? size - start : 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
        GgufTensor & tensor = tensors[i];
        if (offsets[i] % alignment != 0) {
            in.fail("tensor '" + tensor.name + "' is at offset " + std::to_string(offsets[i]) +
                    "; accepted: multiples of the alignment " + std::to_string(alignment));
        }
        if (offsets[i] > room || tensor.nbytes > room - offsets[i]) {
            in.fail("truncated: tensor '" + tensor.name + "' needs " + std::to_string(tensor.nbytes) +
                    " bytes at data offset " + std::to_string(offsets[i]) + ", but the data are " +
                    std::to_string(room) + " bytes");
        }
        tensor.data = data + start + offsets[i];
    }
}

void GgufFile::Impl::check_overlaps(const Cursor & in) const {
    std::vector<const GgufTensor *> sorted;
    sorted.reserve(tensors.size());
    for (const GgufTensor & tensor : tensors) {
        sorted.push_back(&tensor);
    }
    std::sort(sorted.begin(), sorted.end(), [](auto * a, auto * b) { return a->data < b->data; });
    for (size_t i = 1; i < sorted.size(); ++i) {
        if (sorted[i - 1]->data + sorted[i - 1]->nbytes > sorted[i]->data) {
            in.fail("the tensors '" + sorted[i - 1]->name + "' and '" + sorted[i]->name + "' overlap");
        }
    }
}

std::shared_ptr<GgufFile> GgufFile::open(const std::string & path) {
    auto mapping = std::make_unique<MappedFile>(path);
    auto file = parse(mapping->data(), mapping->size(), path);
    file->impl_->mapping = std::move(mapping);
    return file;
}

std::shared_ptr<GgufFile> GgufFile::parse(const uint8_t * data, size_t size, const std::string & name) {
    std::shared_ptr<GgufFile> file(new GgufFile());
    file->impl_ = std::make_unique<Impl>();
    file->impl_->path = name;
    file->impl_->data = data;
    file->impl_->size = size;
    file->impl_->read();
    return file;
}

GgufFile::~GgufFile() = default;

const std::string & GgufFile::path() const {
    return impl_->path;
}
size_t GgufFile::size() const {
    return impl_->size;
}
const uint8_t * GgufFile::data() const {
    return impl_->data;
}
uint32_t GgufFile::version() const {
    return impl_->version;
}
size_t GgufFile::alignment() const {
    return impl_->alignment;
}
const std::vector<GgufEntry> & GgufFile::entries() const {
    return impl_->entries;
}
const std::vector<GgufTensor> & GgufFile::tensors() const {
    return impl_->tensors;
}

const GgufEntry * GgufFile::find(std::string_view key) const {
    const auto found = impl_->entry_index.find(key);
    return found == impl_->entry_index.end() ? nullptr : &impl_->entries[found->second];
}

const GgufTensor * GgufFile::find_tensor(std::string_view name) const {
    const auto found = impl_->tensor_index.find(name);
    return found == impl_->tensor_index.end() ? nullptr : &impl_->tensors[found->second];
}

namespace {

[[noreturn]] void wrong_type(const GgufEntry & entry, const char * accepted) {
    std::string found = gguf_type_name(entry.type);
    if (entry.type == GgufType::array) {
        found += std::string(" of ") + gguf_type_name(entry.element_type);
    }
    throw ModelError("key '" + std::string(entry.key) + "' is " + found + "; accepted: " + accepted);
}

int64_t integer_at(const GgufEntry & entry, uint64_t i, const char * accepted) {
    const uint8_t * at = entry.data + i * scalar_size(entry.element_type);
    switch (entry.element_type) {
        case GgufType::u8:
        case GgufType::boolean: return *at;
        case GgufType::i8: return load<int8_t>(at);
        case GgufType::u16: return load<uint16_t>(at);
        case GgufType::i16: return load<int16_t>(at);
        case GgufType::u32: return load<uint32_t>(at);
        case GgufType::i32: return load<int32_t>(at);
        case GgufType::i64: return load<int64_t>(at);
        case GgufType::u64:
            if (load<uint64_t>(at) <= uint64_t(std::numeric_limits<int64_t>::max())) {
                return static_cast<int64_t>(load<uint64_t>(at));
            }
            wrong_type(entry, "an integer below 2^63");
        default: wrong_type(entry, accepted);
    }
}

double number_at(const GgufEntry & entry, uint64_t i, const char * accepted) {
    const uint8_t * at = entry.data + i * scalar_size(entry.element_type);
    switch (entry.element_type) {
        case GgufType::f32: return load<float>(at);
        case GgufType::f64: return load<double>(at);
        default: return double(integer_at(entry, i, accepted));
    }
}

template <class T>
T required(std::optional<T> value, std::string_view key) {
    if (!value) {
        throw ModelError("the model file has no key '" + std::string(key) + "'");
    }
    return *value;
}

}  // namespace

std::optional<std::string_view> GgufFile::maybe_string(std::string_view key) const {
    const GgufEntry * entry = find(key);
    if (!entry) {
        return std::nullopt;
    }
    if (entry->type != GgufType::string) {
        wrong_type(*entry, "a string");
    }
    return entry->strings[0];
}

std::optional<int64_t> GgufFile::maybe_integer(std::string_view key) const {
    const GgufEntry * entry = find(key);
    if (!entry) {
        return std::nullopt;
    }
    if (entry->type == GgufType::array || entry->type == GgufType::boolean) {
        wrong_type(*entry, "an integer");
    }
    return integer_at(*entry, 0, "an integer");
}

std::optional<double> GgufFile::maybe_number(std::string_view key) const {
    const GgufEntry * entry = find(key);
    if (!entry) {
        return std::nullopt;
    }
    if (entry->type == GgufType::array || entry->type == GgufType::boolean) {
        wrong_type(*entry, "a number");
    }
    return number_at(*entry, 0, "a number");
}

std::optional<bool> GgufFile::maybe_boolean(std::string_view key) const {
    const GgufEntry * entry = find(key);
    if (!entry) {
        return std::nullopt;
    }
    if (entry->type != GgufType::boolean) {
        wrong_type(*entry, "a boolean");
    }
    return *entry->data != 0;
}

std::string_view GgufFile::string(std::string_view key) const {
    return required(maybe_string(key), key);
}
int64_t GgufFile::integer(std::string_view key) const {
    return required(maybe_integer(key), key);
}
double GgufFile::number(std::string_view key) const {
    return required(maybe_number(key), key);
}

const std::vector<std::string_view> & GgufFile::strings(std::string_view key) const {
    static const std::vector<std::string_view> none;
    const GgufEntry * entry = find(key);
    if (entry && (entry->type != GgufType::array || entry->element_type != GgufType::string)) {
        wrong_type(*entry, "an array of strings");
    }
    return entry ? entry->strings : none;
}

std::vector<int64_t> GgufFile::integers(std::string_view key) const {
    const GgufEntry * entry = find(key);
    std::vector<int64_t> values;
    for (uint64_t i = 0; entry && i < entry->count; ++i) {
        values.push_back(integer_at(*entry, i, "integers"));
    }
    return values;
}

std::vector<float> GgufFile::numbers(std::string_view key) const {
    const GgufEntry * entry = find(key);
    std::vector<float> values;
    for (uint64_t i = 0; entry && i < entry->count; ++i) {
        values.push_back(static_cast<float>(number_at(*entry, i, "numbers")));
    }
    return values;
}

}  // namespace zipcache
