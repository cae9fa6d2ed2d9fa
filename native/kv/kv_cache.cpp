#include "kv/kv_cache.h"

#include <algorithm>
#include <atomic>

#include "common/error.h"
#include "kv/evict.h"

namespace zipcache {
namespace {

constexpr int64_t kStep = 64;  // tokens; capacities of growing windows are multiples of it

uint16_t * data_of(ggml_tensor * rows) {
    return rows ? static_cast<uint16_t *>(rows->data) : nullptr;
}

// Never the same for two caches, so that a graph built for one is not taken for the other's.
uint64_t next_version() {
    static std::atomic<uint64_t> version{0};
    return ++version;
}

}  // namespace

size_t f16_cache_bytes(const HParams & h, int64_t n_tokens) {
    return size_t(n_tokens) * h.n_layers * 2 * h.n_kv_heads * h.head_dim * sizeof(uint16_t);
}

KvCache::KvCache(std::shared_ptr<const Policy> policy, const HParams & h, std::vector<KvStage> stages, int64_t n_ctx)
    : policy_(std::move(policy)), h_(&h), stages_(std::move(stages)), n_ctx_(n_ctx), layers_(h.n_layers) {
    std::vector<const ggml_zipcache_format *> formats;
    if (policy_->compresses) {
        formats = {&policy_->prompt, &policy_->window};
    }
    for (int i = 0; i < h.n_layers; ++i) {
        layers_[i].view = {h.n_heads, h.n_kv_heads, h.head_dim, h.attention_scale, h.window_of(i), 0,
                           nullptr,   nullptr,      0,          nullptr,           nullptr,        nullptr};
        layers_[i].shown = device_of(i).layer_view(formats);
    }
}

const KvStage & KvCache::stage_of(int layer) const {
    return *std::find_if(stages_.begin(), stages_.end(), [&](const KvStage & s) { return layer < s.layers.end; });
}

// What the window holds.
Rows KvCache::window_rows(int layer) const {
    const ggml_zipcache_layer & view = layers_[layer].view;
    return {n_window_, view.capacity, view.k, view.v, h_->window_of(layer)};
}

KvCache::Target KvCache::target(const Window & window, int64_t first) const {
    const int64_t offset = first * h_->head_dim;
    return {data_of(window.k) + offset, data_of(window.v) + offset, window.capacity()};
}

// All rows, within a device.
void KvCache::copy_rows(Device & device, const Rows & from, const Target & to) const {
    const size_t row = h_->head_dim * sizeof(uint16_t);
    if (from.n > 0) {
        device.copy(to.k, to.stride * row, from.k, from.stride * row, from.n * row, h_->n_kv_heads);
        device.copy(to.v, to.stride * row, from.v, from.stride * row, from.n * row, h_->n_kv_heads);
    }
}

KvCache::Window KvCache::allocate(Device & device, int64_t capacity) const {
    Window window;
    window.device = &device;
    window.context.reset(ggml_init({2 * ggml_tensor_overhead(), nullptr, true}));
    window.k = ggml_new_tensor_3d(window.context.get(), GGML_TYPE_F16, h_->head_dim, capacity, h_->n_kv_heads);
    window.v = ggml_new_tensor_3d(window.context.get(), GGML_TYPE_F16, h_->head_dim, capacity, h_->n_kv_heads);
    window.memory = TensorMemory(device, window.context.get());
    if (!window.memory) {
        throw ContextError("not enough memory for the keys and values of " + std::to_string(capacity) +
                           " uncompressed tokens (" + std::to_string(f16_cache_bytes(*h_, capacity) >> 20) + " MiB)");
    }
    if (!device.is_host()) {  // attention looks at masked rows, too, and 0 times NaN would show
        window.memory.clear();
    }
    return window;
}

void KvCache::set_window(Layer & layer, Window window) const {
    layer.window = std::move(window);
    layer.view.capacity = layer.window.capacity();
    layer.view.k = layer.window.k ? data_of(layer.window.k) : nullptr;
    layer.view.v = layer.window.v ? data_of(layer.window.v) : nullptr;
    layer.shown->show(layer.view);
}

// Room for n_tokens uncompressed ones. Memory grows one layer at a time, so the peak is one layer's copy above it.
void KvCache::grow_windows(int64_t n_tokens) {
    int64_t capacity = policy_->window_capacity();
    const int64_t now = layers_.back().window.capacity();  // the last to grow
    if (!policy_->compresses) {
        // a quarter more than asked while decoding keeps the copies cheap, and the slack small
        const int64_t wanted = n_window_ > 0 ? std::max(n_tokens, now + now / 4) : n_tokens;
        capacity = std::max(n_tokens, std::min((wanted + kStep - 1) / kStep * kStep, n_ctx_));
        for (const KvStage & stage : stages_) {  // one capacity for all: a GPU's blocks are whole ones of the host
            capacity = stage.layers.device->whole_blocks(capacity);
        }
    }
    if (n_tokens <= now) {
        return;
    }
    version_ = next_version();  // even if memory runs out half-way, some layers have moved
    for (int i = 0; i < h_->n_layers; ++i) {
        Layer & layer = layers_[i];
        if (layer.window.capacity() == capacity) {
            continue;
        }
        Window grown = allocate(device_of(i), capacity);
        if (layer.window.k) {
            copy_rows(device_of(i), window_rows(i), target(grown));
        }
        set_window(layer, std::move(grown));
    }
}

// Marks what is seen of a segment; a partly seen one learns where its tokens are.
void KvCache::hide(int layer, SegmentUse & use, int64_t first_seen, int64_t last_seen) const {
    use.first_seen = std::max(use.first_seen, first_seen);
    use.last_seen = std::min(use.last_seen, last_seen);
    if (!use.whole() && !use.places) {
        use.places = codec_of(layer).places(*use.segment);
    }
}

// Brings a layer's view up to its segments, as the token at position n_tokens_ sees them.
void KvCache::refresh(int index) {
    Layer & layer = layers_[index];
    const int64_t sliding = h_->window_of(index);
    if (policy_->compresses && sliding > 0) {
        for (SegmentUse & use : layer.segments) {
            hide(index, use, n_tokens_ + 1 - sliding - use.position, use.last_seen);
        }
    }
    auto & segments = layer.segments;
    segments.erase(std::remove_if(segments.begin(), segments.end(),
                                  [](const SegmentUse & use) { return use.first_seen >= use.last_seen; }),
                   segments.end());
    layer.segment_views.clear();
    for (const SegmentUse & use : segments) {
        ggml_zipcache_segment view = use.segment->view;
        view.position = use.whole() ? nullptr : use.places->as<uint16_t>();
        view.first_seen = use.first_seen;
        view.last_seen = use.last_seen;
        layer.segment_views.push_back(view);
    }
    layer.view.n_segments = static_cast<int64_t>(layer.segment_views.size());
    layer.view.segments = layer.segment_views.data();
    layer.shown->show(layer.view);
}

int64_t PrefillRows::first_seen(int64_t token, int sliding_window) const {
    const int64_t from = token + 1 - sliding_window;
    if (sliding_window == 0 || from >= 0 || past.empty()) {
        return sliding_window == 0 ? 0 : std::max<int64_t>(0, n_past + from);
    }
    return std::lower_bound(past.begin(), past.end(), from) - past.begin();
}

// Rows of a layer's past, dequantized where compressed: those that any new token can see.
PrefillRows KvCache::copy_past(int index, const Window & to, const Parallel & parallel) const {
    const Layer & layer = layers_[index];
    const int64_t capacity = to.capacity(), dim = h_->head_dim;
    int64_t at = 0;
    std::vector<int64_t> past;
    past.reserve(capacity);
    for (const SegmentUse & use : layer.segments) {
        const auto kept =
            codec_of(index).dequantize(*use.segment, use.first_seen, use.last_seen, data_of(to.k) + at * dim,
                                       data_of(to.v) + at * dim, capacity, parallel);
        for (int64_t token : kept) {
            past.push_back(use.position + token - n_tokens_);
        }
        at += static_cast<int64_t>(kept.size());
    }
    copy_rows(*to.device, window_rows(index), target(to, at));
    if (!past.empty() && past.front() == -(at + n_window_)) {
        past.clear();  // nothing was evicted since
    }
    for (int64_t t = 0; !past.empty() && t < n_window_; ++t) {
        past.push_back(t - n_window_);
    }
    return {to.k, to.v, at + n_window_, std::move(past)};
}

// The rows from `first` on stay uncompressed: made.n_window of them.
void KvCache::keep_window(int layer, Made & made, const Rows & rows, int64_t first) const {
    const int64_t n = made.n_window;
    const size_t n_bytes = n * h_->n_kv_heads * h_->head_dim * sizeof(uint16_t);
    Device & device = device_of(layer);
    made.k = Bytes(device, n_bytes);
    made.v = Bytes(device, n_bytes);
    const int64_t offset = first * h_->head_dim;
    copy_rows(device, {n, rows.stride, rows.k + offset, rows.v + offset, 0},
              {made.k.as<uint16_t>(), made.v.as<uint16_t>(), n});
}

PrefillRows KvCache::begin_prefill(int layer, int64_t n_new, const Parallel & parallel) {
    if (!policy_->compresses) {
        grow_windows(n_window_ + n_new);
        return {layers_[layer].window.k, layers_[layer].window.v, n_window_, {}};
    }
    int64_t n_past = n_window_;
    for (const SegmentUse & use : layers_[layer].segments) {
        n_past += use.last_seen - use.first_seen;
    }
    Device & device = device_of(layer);
    if (scratch_.device != &device || scratch_.capacity() < n_past + n_new) {
        scratch_ = Window();
        scratch_ = allocate(device, device.whole_blocks(n_past + n_new));
    }
    past_ = copy_past(layer, scratch_, parallel);
    return past_;
}

void KvCache::end_prefill(int index, int64_t n_new, const std::vector<int64_t> & probes, const float * probe_q,
                          const Parallel & parallel) {
    if (!policy_->compresses) {
        return;
    }
    Layer & layer = layers_[index];
    const int64_t n_rows = past_.n_past + n_new, n_open = n_window_ + n_new;
    const bool is_full = n_open >= policy_->window_capacity();
    Probes p;
    for (int64_t probe : probes) {
        p.row.push_back(past_.n_past + probe);
    }
    p.q = probe_q;
    if (policy_->ranking == Ranking::evict && (is_full || !layer.segments.empty())) {
        layer.made = evict(index, n_new, p, parallel);
        return;
    }
    const int64_t sliding = h_->window_of(index);
    const Rows rows = {n_rows, scratch_.capacity(), data_of(scratch_.k), data_of(scratch_.v),
                       static_cast<int>(sliding)};
    Made made;
    made.balance = layer.balance;
    made.n_window = n_open;
    if (is_full) {
        made.n_window = policy_->n_recent;
        int64_t n = policy_->whole(n_open - made.n_window);
        made.n_window = n_open - n;
        if (sliding > 0) {  // what the next token cannot see any more
            n = std::min(n, std::max<int64_t>(0, sliding - 1 - made.n_window));
        }
        const int64_t first = n_rows - made.n_window - n;
        if (n > 0) {
            auto segment = codec_of(index).compress(index, rows, first, n, p, layer.balance, parallel);
            codec_of(index).fit({segment});
            made.balance = segment->balance;
            made.segments.push_back({std::move(segment), n_tokens_ + n_new - made.n_window - n, 0, n, nullptr});
        }
    }
    keep_window(index, made, rows, n_rows - made.n_window);
    layer.made = std::move(made);
}

void KvCache::commit(int64_t n_new) {
    if (!policy_->compresses) {
        n_tokens_ += n_new;
        n_window_ += n_new;
        return;
    }
    const std::optional<Made> & any = layers_[0].made;  // every layer made as many
    const int64_t n_window = any ? any->n_window : 0;
    grow_windows(n_window);  // first: memory may run out
    n_tokens_ += n_new;
    for (int i = 0; i < h_->n_layers; ++i) {
        Layer & layer = layers_[i];
        if (!layer.made) {
            continue;
        }
        Made & made = *layer.made;
        copy_rows(device_of(i), {n_window, n_window, made.k.as<uint16_t>(), made.v.as<uint16_t>(), 0},
                  target(layer.window));
        if (made.replaces) {
            layer.segments.clear();
        }
        std::move(made.segments.begin(), made.segments.end(), std::back_inserter(layer.segments));
        layer.balance = std::move(made.balance);
        layer.made.reset();
        refresh(i);
    }
    n_window_ = n_window;
    choose_slots();
}

void KvCache::abandon() {
    for (Layer & layer : layers_) {
        layer.made.reset();
    }
}

// Which of the coming decode steps are probes: their queries are kept until the window they see is compressed.
void KvCache::choose_slots() {
    slot_positions_.clear();
    if (!policy_->compresses || !policy_->wants_decode_probes()) {
        return;
    }
    const int64_t n = std::max<int64_t>(1, policy_->window_capacity() - n_window_);
    for (int64_t step : choose_steps(policy_->options, n, uint64_t(n_tokens_) + 1)) {
        slot_positions_.push_back(n_tokens_ + step);
    }
    for (int i = 0; i < h_->n_layers; ++i) {
        make_slots(i);
        layers_[i].shown->keep_probes(show_slots(layers_[i]));
    }
}

// Room for the queries of slot_positions_.
void KvCache::make_slots(int layer) {
    Slots & slots = layers_[layer].slots;
    const size_t n_queries = slot_positions_.size() * h_->n_heads;
    if (slots.log_sum.size() != n_queries * sizeof(float)) {
        Device & device = device_of(layer);
        slots.q = Bytes(device, n_queries * h_->head_dim * sizeof(uint16_t));
        slots.log_sum = Bytes(device, n_queries * sizeof(float));
        slots.q.clear();  // files hold them all, used or not
        slots.log_sum.clear();
    }
}

ProbeSlots KvCache::show_slots(const Layer & layer) const {
    if (slot_positions_.empty()) {
        return {};
    }
    ProbeSlots slots = {std::vector<int32_t>(policy_->window_capacity(), -1), layer.slots.q.as<uint16_t>(),
                        layer.slots.log_sum.as<float>()};
    for (size_t i = 0; i < slot_positions_.size(); ++i) {
        const int64_t row = slot_positions_[i] - (n_tokens_ - n_window_);
        if (row < policy_->window_capacity()) {
            slots.slot[row] = static_cast<int32_t>(i);
        }
    }
    return slots;
}

// queries: room for them as f32, where the host reads them.
Probes KvCache::recorded_probes(int index, std::vector<float> & queries) const {
    const Slots & slots = layers_[index].slots;
    const int64_t width = int64_t(h_->n_heads) * h_->head_dim;
    Probes probes;
    for (size_t i = 0; i < slot_positions_.size(); ++i) {
        const int64_t row = slot_positions_[i] - (n_tokens_ - n_window_);
        if (row < 0 || row >= n_window_) {
            continue;
        }
        probes.row.push_back(row);
        probes.slot.push_back(static_cast<int32_t>(i));
        if (device_of(index).is_shared()) {
            const float * log_sum = slots.log_sum.as<float>() + i * h_->n_heads;
            queries.resize(queries.size() + width);
            ggml_fp16_to_fp32_row(slots.q.as<uint16_t>() + i * width, &queries[queries.size() - width], width);
            probes.log_sum.insert(probes.log_sum.end(), log_sum, log_sum + h_->n_heads);
        }
    }
    probes.q = queries.data();
    probes.slot_q = slots.q.as<uint16_t>();
    probes.slot_log_sum = slots.log_sum.as<float>();
    return probes;
}

// The attention that each row of a layer has got so far: before the last compression, from the decode steps since, and
// from the probes of a prompt. position: of each row in the context.
std::vector<float> KvCache::scores_of(int index, const Rows & rows, const std::vector<int64_t> & position,
                                      const Probes & probes, const Parallel & parallel) const {
    std::vector<float> score(rows.n);
    auto use = layers_[index].segments.begin();
    for (int64_t i = 0; i < past_.n_past - n_window_; ++i) {
        while (position[i] >= use->position + use->last_seen) {
            ++use;
        }
        score[i] = use->segment->score[position[i] - use->position];
    }
    std::vector<float> queries;
    Probes recorded = recorded_probes(index, queries);
    for (int64_t & row : recorded.row) {
        row += past_.n_past - n_window_;
    }
    for (const Probes * some : {static_cast<const Probes *>(&recorded), &probes}) {
        if (some->size() > 0) {
            const Scores got = score_rows(rows, 0, rows.n, *some, *h_, parallel);
            const auto sum = saliency_of(*policy_, got, *h_, 0);
            std::transform(sum.begin(), sum.end(), score.begin(), score.begin(), std::plus<>());
        }
    }
    return score;
}

// The rows are those of begin_prefill() and n_new more. New segments take the place of the old ones, which other caches
// may share.
KvCache::Made KvCache::evict(int index, int64_t n_new, const Probes & probes, const Parallel & parallel) const {
    const Layer & layer = layers_[index];
    const int64_t sliding = h_->window_of(index), n_open = n_window_ + n_new, n_tokens = n_tokens_ + n_new;
    const Rows rows = {past_.n_past + n_new, scratch_.capacity(), data_of(scratch_.k), data_of(scratch_.v),
                       static_cast<int>(sliding)};
    Made made;
    made.replaces = true;
    made.n_window = std::min(policy_->n_recent, n_open);
    Contest contest = {std::vector<int64_t>(rows.n), {}, n_tokens - n_open, n_tokens - made.n_window};
    for (int64_t i = 0; i < rows.n; ++i) {
        const bool told = i < past_.n_past && !past_.past.empty();
        contest.position[i] = n_tokens_ + (told ? past_.past[i] : i - past_.n_past);
    }
    contest.score = scores_of(index, rows, contest.position, probes, parallel);
    if (!layer.segments.empty()) {
        contest.begin = layer.segments.front().position + layer.segments.front().first_seen;
    }
    if (sliding > 0) {  // what the next token cannot see any more
        contest.begin = std::max(contest.begin, n_tokens + 1 - sliding);
    }
    int64_t begin = contest.begin;
    for (Kept & kept : hold(*policy_, contest)) {
        const auto n = static_cast<int64_t>(kept.tier.size());
        made.segments.push_back({codec_of(index).keep(rows, std::move(kept), parallel), begin, 0, n, nullptr});
        begin += n;
    }
    keep_window(index, made, rows, rows.n - made.n_window);
    return made;
}

std::shared_ptr<Segment> KvCache::compress_window(int index, const Parallel & parallel) {
    Layer & layer = layers_[index];
    if (policy_->ranking == Ranking::evict) {
        begin_prefill(index, 0, parallel);
        layer.made = evict(index, 0, {}, parallel);
        return nullptr;
    }
    const int64_t n = policy_->n_window;
    const Rows rows = window_rows(index);
    std::vector<float> queries;
    const Probes probes = recorded_probes(index, queries);
    Made made;
    auto segment = codec_of(index).compress(index, rows, 0, n, probes, layer.balance, parallel);
    made.balance = segment->balance;
    made.segments.push_back({segment, n_tokens_ - n_window_, 0, n, nullptr});
    made.n_window = n_window_ - n;
    keep_window(index, made, rows, n);
    layer.made = std::move(made);
    return segment;
}

void KvCache::compress_windows(const Parallel & parallel) {
    for (const KvStage & stage : stages_) {
        std::vector<std::shared_ptr<Segment>> segments;
        for (int i = stage.layers.first; i < stage.layers.end; ++i) {
            if (auto segment = compress_window(i, parallel)) {
                segments.push_back(std::move(segment));
            }
        }
        stage.codec->fit(segments);
    }
    commit(0);
}

void KvCache::make_room(const Parallel & parallel) {
    if (!policy_->compresses) {
        grow_windows(n_window_ + 1);
        return;
    }
    if (n_window_ >= policy_->window_capacity()) {
        compress_windows(parallel);
    }
    if (n_tokens_ == 0) {
        choose_slots();
    }
    grow_windows(n_window_ + 1);
    for (int i = 0; i < h_->n_layers; ++i) {
        if (h_->window_of(i) > 0) {
            refresh(i);
        }
        layers_[i].shown->begin_token(n_window_);
    }
}

void KvCache::advance() {
    ++n_tokens_;
    ++n_window_;
}

int64_t KvCache::least_kept() const {
    int64_t least = 0;
    for (int i = 0; policy_->compresses && i < h_->n_layers; ++i) {
        const int64_t sliding = h_->window_of(i);
        if (sliding == 0) {
            continue;
        }
        // the oldest token that this layer still holds, whole
        const auto & segments = layers_[i].segments;
        const int64_t oldest =
            segments.empty() ? n_tokens_ - n_window_ : segments.front().position + segments.front().first_seen;
        if (oldest > 0) {
            least = std::max(least, std::min(n_tokens_, oldest + sliding - 1));
        }
    }
    return least;
}

void KvCache::truncate(int64_t n_tokens) {
    if (n_tokens == n_tokens_) {
        return;
    }
    if (n_tokens == 0) {
        clear();
        return;
    }
    if (n_tokens < least_kept()) {
        throw ContextError("truncate to " + std::to_string(n_tokens) + " tokens: the sliding windows have forgotten " +
                           "what these would see; accepted: 0, or " + std::to_string(least_kept()) + " and more");
    }
    const int64_t window_start = n_tokens_ - n_window_;
    n_tokens_ = n_tokens;
    n_window_ = std::max<int64_t>(0, n_tokens - window_start);
    for (int i = 0; i < h_->n_layers; ++i) {
        for (SegmentUse & use : layers_[i].segments) {
            hide(i, use, use.first_seen, n_tokens - use.position);
        }
        refresh(i);
    }
    choose_slots();
}

void KvCache::clear() {
    version_ = next_version();
    n_tokens_ = n_window_ = 0;
    slot_positions_.clear();
    scratch_ = Window();
    for (int i = 0; i < h_->n_layers; ++i) {
        Layer & layer = layers_[i];
        ggml_zipcache_layer view = layer.view;
        view.n_segments = 0;  // they go with the layer
        auto shown = std::move(layer.shown);
        layer = Layer();
        layer.view = view;
        layer.shown = std::move(shown);
        layer.shown->keep_probes({});
        set_window(layer, Window());
        refresh(i);
    }
}

KvCache KvCache::clone() const {
    KvCache copy(policy_, *h_, stages_, n_ctx_);
    if (n_tokens_ == 0) {
        return copy;
    }
    copy.grow_windows(n_window_);
    copy.n_tokens_ = n_tokens_;
    copy.n_window_ = n_window_;
    copy.slot_positions_ = slot_positions_;
    for (int i = 0; i < h_->n_layers; ++i) {
        const Layer & from = layers_[i];
        Layer & to = copy.layers_[i];
        to.segments = from.segments;
        to.balance = from.balance;
        copy.make_slots(i);
        Device & device = device_of(i);
        if (to.slots.q.size() > 0) {
            device.copy(to.slots.q.as(), 0, from.slots.q.as(), 0, to.slots.q.size(), 1);
            device.copy(to.slots.log_sum.as(), 0, from.slots.log_sum.as(), 0, to.slots.log_sum.size(), 1);
            to.shown->keep_probes(copy.show_slots(to));
        }
        copy_rows(device, window_rows(i), target(to.window));
        copy.refresh(i);
    }
    return copy;
}

size_t KvCache::compressed_bytes(const Layer & layer) const {
    size_t bytes = layer.balance && !layer.segments.empty() ? layer.balance->bytes() : 0;
    for (const SegmentUse & use : layer.segments) {
        bytes += use.segment->bytes() + sizeof(SegmentUse) + sizeof(ggml_zipcache_segment);
        bytes += use.places ? use.places->size() : 0;
    }
    return bytes;
}

KvStats KvCache::stats() const {
    KvStats stats;
    const size_t width = 2 * size_t(h_->n_kv_heads) * h_->head_dim;
    for (const Layer & layer : layers_) {
        const size_t compressed = compressed_bytes(layer);
        stats.compressed_bytes += compressed;
        stats.bytes += compressed + layer.window.memory.size() + layer.slots.q.size() + layer.slots.log_sum.size();
        for (const SegmentUse & use : layer.segments) {
            stats.compressed_elements += width * use.segment->n_tokens;
            stats.elements += width * (use.last_seen - use.first_seen);
        }
        stats.elements += width * n_window_;
    }
    stats.bytes += scratch_.memory.size();
    stats.n_tokens = n_tokens_;
    if (stats.elements > 0) {
        stats.bits = 8.0 * double(stats.bytes) / double(stats.elements);
        stats.ratio = 16.0 / stats.bits;
    }
    if (stats.compressed_elements > 0) {
        stats.compressed_bits = 8.0 * double(stats.compressed_bytes) / double(stats.compressed_elements);
    }
    return stats;
}

}  // namespace zipcache
