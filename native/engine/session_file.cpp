#include "engine/session_file.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/byte_stream.h"
#include "common/mapped_file.h"

namespace zipcache {
namespace {

constexpr char kMagic[] = {'Z', 'I', 'P', 'C', 'S', 'E', 'S', 'S'};
constexpr uint32_t kVersion = 2;
constexpr uint32_t kByteOrder = 0x01020304;
constexpr size_t kHead = sizeof kMagic + 2 * sizeof(uint32_t), kTail = sizeof(uint64_t);  // bytes
constexpr int64_t kMostTokens = UINT16_MAX;                         // of a segment: places are told in 16 bits
constexpr int64_t kAnyCount = std::numeric_limits<int64_t>::max();  // what is left of the file bounds it

static_assert(sizeof kMagic == 8 && sizeof(float) == 4 && sizeof(double) == 8 && sizeof(int) == 4);

// The options in the order of the file.
template <class Options, class Visit>
void each_option(Options & o, Visit visit) {
    visit(o.policy);
    visit(o.bits);
    visit(o.ratio);
    visit(o.high_bits);
    visit(o.low_bits);
    visit(o.saliency);
    visit(o.probes);
    visit(o.random_probes);
    visit(o.recent_probes);
    visit(o.keys);
    visit(o.values);
    visit(o.rotate);
    visit(o.per_head);
    visit(o.group);
    visit(o.heavy);
    visit(o.newest);
    visit(o.rank);
    visit(o.window_rank);
    visit(o.outliers);
    visit(o.window);
    visit(o.recent);
    visit(o.seed);
}

struct OptionWriter {
    ByteWriter & out;

    void operator()(const std::string & text) {
        out.value(static_cast<uint8_t>(text.size()));
        out.bytes(text.data(), text.size());
    }
    void operator()(bool flag) { out.value(static_cast<uint8_t>(flag)); }
    template <class T>
    void operator()(T number) {
        out.value(number);
    }
};

struct OptionReader {
    ByteReader & in;

    void operator()(std::string & text) {
        text.resize(in.value<uint8_t>("an option"));
        in.bytes(text.data(), text.size(), "an option");
        // it may end up in a message, which is UTF-8
        if (std::any_of(text.begin(), text.end(), [](char c) { return c < 0x20 || c > 0x7e; })) {
            in.fail("an option is no ASCII text");
        }
    }
    void operator()(bool & flag) {
        const auto byte = in.value<uint8_t>("an option");
        if (byte > 1) {
            in.fail("a flag is " + std::to_string(byte) + "; accepted: 0, 1");
        }
        flag = byte != 0;
    }
    template <class T>
    void operator()(T & number) {
        number = in.value<T>("an option");
    }
};

void hash_side(Xxh64 & hash, const ggml_zipcache_side & side, int n_tiers) {
    for (int i = 0; i < n_tiers; ++i) {
        hash.value(side.bits[i]);
        hash.value(side.shrink[i]);
    }
    hash.value(static_cast<int32_t>(side.scope));
    hash.value(static_cast<int32_t>(side.params));
    hash.value(side.block);
    hash.value(static_cast<int32_t>(side.rotate));
}

// Differs where the same options mean something else to another version of this library.
uint64_t policy_hash(const Policy & p) {
    Xxh64 hash;
    hash.value(static_cast<int32_t>(p.compresses));
    for (const ggml_zipcache_format * f : {&p.prompt, &p.window}) {
        for (int32_t number : {f->n_kv_heads, f->head_dim, f->group, f->n_tiers, int32_t(f->same_order)}) {
            hash.value(number);
        }
        hash_side(hash, f->k, f->n_tiers);
        hash_side(hash, f->v, f->n_tiers);
    }
    for (int number :
         {int(p.ranking), int(p.saliency), int(p.k_divisor), int(p.v_divisor), int(p.prompts_only), int(p.corrects)}) {
        hash.value(number);
    }
    for (double number : {p.budget, p.share, p.newest}) {
        hash.value(number);
    }
    for (int64_t number : {p.n_always, p.pool, p.n_window, p.n_recent, p.n_whole}) {
        hash.value(number);
    }
    return hash.sum();
}

// What stands around the content. Afterwards the checksum is known to be right, and the model to be the same.
ByteReader open_content(const uint8_t * data, size_t size, const std::string & name, const Model & model) {
    if (size < sizeof kMagic || std::memcmp(data, kMagic, sizeof kMagic) != 0) {
        throw FileError(name + " is not a session file: it does not begin with ZIPCSESS");
    }
    ByteReader whole(data, size, name);
    whole.need(kHead + kTail, "its header");
    uint32_t version, byte_order;
    uint64_t checksum;
    std::memcpy(&version, data + sizeof kMagic, sizeof version);
    std::memcpy(&byte_order, data + sizeof kMagic + sizeof version, sizeof byte_order);
    std::memcpy(&checksum, data + size - kTail, sizeof checksum);
    if (byte_order != kByteOrder) {
        throw FileError(name + " was saved on a machine that stores numbers another way; accepted: as this one does");
    }
    if (version != kVersion) {
        throw FileError(name + " is a session file of version " + std::to_string(version) +
                        "; accepted: " + std::to_string(kVersion));
    }
    Xxh64 sum;
    sum.update(data, size - kTail);
    if (sum.sum() != checksum) {
        whole.fail("its checksum does not match: it was cut short or changed");
    }
    ByteReader in(data + kHead, size - kHead - kTail, name);
    if (in.value<uint64_t>("its model") != model.fingerprint()) {
        throw FileError(name + " was saved with another model than " + model.file().path() +
                        "; accepted: the model that it was saved with");
    }
    return in;
}

std::shared_ptr<const Policy> read_policy(ByteReader & in, const HParams & h) {
    KvOptions options;
    each_option(options, OptionReader{in});
    auto policy = make_policy(options, h);
    if (in.value<uint64_t>("its policy") != policy_hash(*policy)) {
        throw FileError(in.name() + " was saved by a version whose KV policy " + options.policy +
                        " is another; accepted: the policy of this version");
    }
    return policy;
}

std::vector<float> read_divisor(ByteReader & in, const HParams & h) {
    auto divisor = in.array<float>(int64_t(h.n_kv_heads) * h.head_dim, "a divisor");
    if (!std::all_of(divisor.begin(), divisor.end(), [](float x) { return x > 0 && std::isfinite(x); })) {
        in.fail("a divisor is not above 0");
    }
    return divisor;
}

std::vector<float> read_weights(ByteReader & in, int64_t n, const char * what) {
    auto weights = in.array<float>(n, what);
    if (!std::all_of(weights.begin(), weights.end(), [](float x) { return x >= 0 && std::isfinite(x); })) {
        in.fail(std::string(what) + " is negative or infinite");
    }
    return weights;
}

std::shared_ptr<Balance> read_balance(ByteReader & in, const Policy & policy, const HParams & h) {
    const auto present = in.value<uint8_t>("a balance");
    if (present > (policy.balances() ? 1 : 0)) {
        in.fail("a balance that the policy has not");
    }
    if (!present) {
        return nullptr;
    }
    Balance balance;
    balance.k_divisor = read_divisor(in, h);
    if (policy.v_divisor == Divisor::balance) {
        balance.v_divisor = read_divisor(in, h);
        balance.k_weight = read_weights(in, h.n_kv_heads, "a head's weight");
        balance.v_weight = read_weights(in, h.n_kv_heads, "a head's weight");
    }
    return std::make_shared<Balance>(std::move(balance));
}

}  // namespace

void SessionFile::save(const Session & session, const std::string & path) {
    const std::lock_guard<std::mutex> lock(session.turn_);
    const KvCache & cache = session.cache_;
    AtomicFile file(path);
    ByteWriter out(file);
    out.bytes(kMagic, sizeof kMagic);
    out.value(kVersion);
    out.value(kByteOrder);
    out.value(session.model_->fingerprint());
    each_option(cache.policy_->options, OptionWriter{out});
    out.value(policy_hash(*cache.policy_));
    out.value(session.n_ctx_);
    out.value(static_cast<int64_t>(session.tokens_.size()));
    out.array(session.tokens_);
    out.value(static_cast<int64_t>(session.logits_.size()));
    out.array(session.logits_);
    if (cache.n_tokens_ > 0) {
        write_cache(out, cache);
    }
    out.value(out.checksum());
    out.flush();
    file.commit();
}

void SessionFile::write_cache(ByteWriter & out, const KvCache & cache) {
    out.value(cache.n_window_);
    out.value(static_cast<int64_t>(cache.slot_positions_.size()));
    out.array(cache.slot_positions_);
    for (int i = 0; i < cache.h_->n_layers; ++i) {
        write_layer(out, cache, i);
    }
}

void SessionFile::write_layer(ByteWriter & out, const KvCache & cache, int index) {
    const HParams & h = *cache.h_;
    const KvCache::Layer & layer = cache.layers_[index];
    Device & device = cache.device_of(index);
    out.value(static_cast<uint8_t>(layer.balance ? 1 : 0));
    if (layer.balance) {
        for (const auto * part : {&layer.balance->k_divisor, &layer.balance->v_divisor, &layer.balance->k_weight,
                                  &layer.balance->v_weight}) {
            out.array(*part);
        }
    }
    out.value(static_cast<int64_t>(layer.segments.size()));
    for (const SegmentUse & use : layer.segments) {
        const Segment & s = *use.segment;
        const StoredSegment stored = cache.codec_of(index).store(s);
        for (int64_t number :
             {use.position, s.n_tokens, use.first_seen, use.last_seen, static_cast<int64_t>(stored.data.size())}) {
            out.value(number);
        }
        out.array(stored.k_divisor);
        out.array(stored.v_divisor);
        out.array(stored.score);
        out.array(stored.data);
        if (cache.policy_->corrects) {
            out.value(static_cast<int64_t>(stored.correction.size()));
            out.array(stored.correction);
        }
    }
    std::vector<uint16_t> rows(cache.n_window_ * h.head_dim);
    for (const uint16_t * window : {layer.view.k, layer.view.v}) {
        for (int head = 0; window && head < h.n_kv_heads; ++head) {  // an empty window has no memory
            device.read(rows.data(), window + head * layer.view.capacity * h.head_dim, rows.size() * sizeof(uint16_t));
            out.array(rows);
        }
    }
    for (const Bytes * part : {&layer.slots.q, &layer.slots.log_sum}) {
        std::vector<uint8_t> bytes(part->size());
        device.read(bytes.data(), part->as(), bytes.size());
        out.array(bytes);
    }
}

std::unique_ptr<Session> SessionFile::load(const std::shared_ptr<Model> & model, const std::string & path) {
    const MappedFile file(path);
    return parse(model, file.data(), file.size(), path);
}

std::unique_ptr<Session> SessionFile::parse(const std::shared_ptr<Model> & model, const uint8_t * data, size_t size,
                                            const std::string & name) {
    ByteReader in = open_content(data, size, name, *model);
    try {
        return read(in, model);
    } catch (const ArgumentError & error) {  // options, or tokens, that no session could have had
        in.fail(error.what());
    }
}

std::unique_ptr<Session> SessionFile::read(ByteReader & in, const std::shared_ptr<Model> & model) {
    const HParams & h = model->hparams();
    auto policy = read_policy(in, h);
    const int64_t n_ctx = in.integer("n_ctx", 1, h.n_ctx_train);
    auto session = std::make_unique<Session>(model, n_ctx, std::move(policy));
    session->tokens_ = in.array<int32_t>(in.integer("the number of tokens", 0, n_ctx), "its tokens");
    model->check_tokens(session->tokens_.data(), session->tokens_.size());
    const int64_t n_logits = in.integer("the number of logits", 0, h.n_vocab);
    if (n_logits != 0 && (n_logits != h.n_vocab || session->tokens_.empty())) {
        in.fail("the number of logits is " + std::to_string(n_logits) + "; accepted: one for each token of the model");
    }
    session->logits_ = in.array<float>(n_logits, "its logits");
    if (!session->tokens_.empty()) {
        read_cache(in, session->cache_, static_cast<int64_t>(session->tokens_.size()));
    }
    if (in.left() != 0) {
        in.fail("it goes on behind its end");
    }
    return session;
}

void SessionFile::read_cache(ByteReader & in, KvCache & cache, int64_t n_tokens) {
    const Policy & policy = *cache.policy_;
    const int64_t least = policy.compresses ? 0 : n_tokens;
    const int64_t most = policy.compresses ? std::min(n_tokens, policy.window_capacity()) : n_tokens;
    const int64_t n_window = in.integer("the number of uncompressed tokens", least, most);
    in.need(f16_cache_bytes(*cache.h_, n_window), "its uncompressed tokens");
    read_slots(in, cache, n_tokens - n_window);
    cache.grow_windows(n_window);
    cache.n_window_ = n_window;
    for (int i = 0; i < cache.h_->n_layers; ++i) {
        read_layer(in, cache, i, n_tokens);
    }
    // last, so that refresh() hid no more than was hidden when it was saved
    cache.n_tokens_ = n_tokens;
    for (KvCache::Layer & layer : cache.layers_) {
        layer.shown->keep_probes(cache.show_slots(layer));
    }
}

// first: the position of the window's first token.
void SessionFile::read_slots(ByteReader & in, KvCache & cache, int64_t first) {
    const bool wanted = cache.policy_->compresses && cache.policy_->wants_decode_probes();
    const int64_t capacity = wanted ? cache.policy_->window_capacity() : 0;
    const int64_t n = in.integer("the number of probes", wanted ? 1 : 0, capacity);
    cache.slot_positions_ = in.array<int64_t>(n, "its probes");
    int64_t next = first;
    for (int64_t position : cache.slot_positions_) {
        if (position < next || position >= first + capacity) {
            in.fail("a probe stands at " + std::to_string(position) + "; accepted: rising positions of the window");
        }
        next = position + 1;
    }
}

void SessionFile::read_layer(ByteReader & in, KvCache & cache, int index, int64_t n_tokens) {
    const HParams & h = *cache.h_;
    KvCache::Layer & layer = cache.layers_[index];
    Device & device = cache.device_of(index);
    if (auto balance = read_balance(in, *cache.policy_, h)) {
        cache.codec_of(index).send(*balance);
        layer.balance = std::move(balance);
    }
    read_segments(in, cache, index, n_tokens);
    cache.refresh(index);
    for (ggml_tensor * window : {layer.window.k, layer.window.v}) {
        for (int head = 0; window && head < h.n_kv_heads; ++head) {  // an empty window has no memory
            const auto rows = in.array<uint16_t>(cache.n_window_ * h.head_dim, "its uncompressed tokens");
            device.write(static_cast<char *>(window->data) + head * window->nb[2], rows.data(),
                         rows.size() * sizeof(uint16_t));
        }
    }
    cache.make_slots(index);
    for (const Bytes * part : {&layer.slots.q, &layer.slots.log_sum}) {
        const auto bytes = in.array<uint8_t>(static_cast<int64_t>(part->size()), "its probes");
        device.write(part->as(), bytes.data(), bytes.size());
    }
}

void SessionFile::read_segments(ByteReader & in, KvCache & cache, int index, int64_t n_tokens) {
    KvCache::Layer & layer = cache.layers_[index];
    const int64_t sliding = cache.h_->window_of(index);
    const int64_t window_begin = n_tokens - cache.n_window_;
    const int64_t n = in.integer("the number of segments", 0, cache.policy_->compresses ? kAnyCount : 0);
    int64_t begin = window_begin, end = window_begin;  // what they show
    for (int64_t i = 0; i < n; ++i) {
        SegmentUse use = read_segment(in, cache, index);
        if (i == 0) {
            begin = use.position + use.first_seen;
        } else if (use.position != end || use.first_seen > 0) {
            in.fail("a segment does not begin where the one before it ends");
        }
        end = use.position + use.last_seen;
        layer.segments.push_back(std::move(use));
    }
    const int64_t seen_from = sliding > 0 ? std::max<int64_t>(0, n_tokens + 1 - sliding) : 0;
    if (begin > seen_from || end != window_begin) {
        in.fail("its segments do not reach from the oldest token that is seen to the uncompressed ones");
    }
}

SegmentUse SessionFile::read_segment(ByteReader & in, const KvCache & cache, int index) {
    const Policy & policy = *cache.policy_;
    const KvCache::Layer & layer = cache.layers_[index];
    auto segment = std::make_shared<Segment>();
    const int64_t position = in.integer("a segment's position", 0, cache.n_ctx_);
    const int64_t n_tokens = in.integer("a segment's number of tokens", 1, std::min(kMostTokens, cache.n_ctx_));
    const int64_t first_seen = in.integer("the first that is seen of a segment", 0, n_tokens - 1);
    const int64_t last_seen = in.integer("the last that is seen of a segment", first_seen + 1, n_tokens);
    const int64_t n_bytes = in.integer("a segment's size", 0, kAnyCount);
    segment->policy = cache.policy_;
    segment->format = &policy.format_for(n_tokens);
    segment->n_tokens = n_tokens;
    if (policy.balances() && !layer.balance) {
        in.fail("a segment without its balance");
    }
    segment->balance = layer.balance;
    StoredSegment stored;
    if (policy.k_divisor == Divisor::normalizer) {
        stored.k_divisor = read_divisor(in, *cache.h_);
    }
    if (policy.v_divisor == Divisor::normalizer) {
        stored.v_divisor = read_divisor(in, *cache.h_);
    }
    if (policy.ranking == Ranking::evict) {
        stored.score = read_weights(in, n_tokens, "a token's score");
    }
    stored.data = in.array<uint8_t, PageVector<uint8_t>>(n_bytes, "a segment");
    if (const char * error =
            ggml_zipcache_segment_error(segment->format, n_tokens, stored.data.data(), stored.data.size())) {
        in.fail(error);
    }
    if (policy.corrects) {
        const int64_t size = in.integer("a correction's size", 0, kAnyCount);
        stored.correction = in.array<uint8_t, PageVector<uint8_t>>(size, "a correction");
        if (const char * error = ggml_zipcache_correction_error(segment->format, n_tokens, stored.correction.data(),
                                                                stored.correction.size())) {
            in.fail(error);
        }
    }
    cache.codec_of(index).restore(*segment, std::move(stored));
    SegmentUse use = {std::move(segment), position, 0, n_tokens, nullptr};
    cache.hide(index, use, first_seen, last_seen);
    return use;
}

}  // namespace zipcache
