// Speed of the CUDA ops at the shape of an 8B llama: 32 query heads on 8 KV heads of 128 channels.
// attend_kv over zipcache's and auto's segments and over the same tokens in f16, beside what a copy on this card
// reaches. Layers lie in buffers of their own, together larger than the L2 cache; a CUDA graph runs through them;
// medians.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ggml-zipcache-cuda.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace {

constexpr int kHeads = 32, kKvHeads = 8, kDim = 128, kWindow = 100, kRepeats = 30;
constexpr int64_t kSegment = 32768;  // tokens that a prefill compresses together

void check(cudaError_t error) {
    if (error != cudaSuccess) {
        throw std::runtime_error(cudaGetErrorString(error));
    }
}

void check(const char * error) {
    if (error) {
        throw std::runtime_error(error);
    }
}

// Device memory that goes with its owner.
template <class T>
class Buffer {
  public:
    explicit Buffer(size_t n, int fill = 0) : n_(n) {
        check(cudaMalloc(&data_, n * sizeof(T)));
        check(cudaMemset(data_, fill, n * sizeof(T)));
    }
    explicit Buffer(const std::vector<T> & values) : Buffer(values.size()) {
        check(cudaMemcpy(data_, values.data(), n_ * sizeof(T), cudaMemcpyHostToDevice));
    }
    Buffer(Buffer && other) noexcept : data_(std::exchange(other.data_, nullptr)), n_(other.n_) {}
    Buffer(const Buffer &) = delete;
    Buffer & operator=(const Buffer &) = delete;
    Buffer & operator=(Buffer &&) = delete;
    ~Buffer() { cudaFree(data_); }
    operator T *() const { return data_; }
    size_t bytes() const { return n_ * sizeof(T); }

  private:
    T * data_ = nullptr;
    size_t n_;
};

// Sums of four uniform numbers, near enough to normal ones.
__global__ void fill_normal(__half * x, size_t n, uint32_t seed) {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) {
        uint64_t h = (i + 1) * 0x9E3779B97F4A7C15ull ^ uint64_t(seed) << 32;
        h = (h ^ h >> 29) * 0xBF58476D1CE4E5B9ull;
        h ^= h >> 32;
        const float sum = float(h & 0xFFFF) + float(h >> 16 & 0xFFFF) + float(h >> 32 & 0xFFFF) + float(h >> 48);
        x[i] = __float2half_rn((sum / 65536 - 2) * 1.73f);
    }
}

// Median time of a call in us, by events.
template <class Body>
double time_us(cudaStream_t stream, Body && body) {
    cudaEvent_t begin, end;
    check(cudaEventCreate(&begin));
    check(cudaEventCreate(&end));
    std::vector<float> times;
    for (int i = 0; i < kRepeats + 3; ++i) {
        check(cudaEventRecord(begin, stream));
        body();
        check(cudaEventRecord(end, stream));
        check(cudaEventSynchronize(end));
        float ms = 0;
        check(cudaEventElapsedTime(&ms, begin, end));
        times.push_back(ms * 1000);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    std::sort(times.begin() + 3, times.end());  // the first ones warm up
    return times[3 + kRepeats / 2];
}

struct Mix {
    const char * name;
    ggml_zipcache_format format;
    std::vector<double> share;  // of the tokens, for each tier
};

ggml_zipcache_side side_of(ggml_zipcache_scope scope, ggml_zipcache_params params, int block, bool rotate) {
    ggml_zipcache_side side = {};
    side.scope = scope;
    side.params = params;
    side.block = block;
    side.rotate = rotate;
    std::fill(std::begin(side.shrink), std::end(side.shrink), 1.0f);
    return side;
}

// The policy zipcache: r = 0.6 of the tokens in 4 bits, the others in 2.
Mix zipcache_mix() {
    Mix mix = {"zipcache 4/2", {}, {0.6, 0.4}};
    auto & f = mix.format;
    f = {kKvHeads, kDim, 64, 2, true, {}, {}};
    f.k = side_of(GGML_ZIPCACHE_SCOPE_SEGMENT, GGML_ZIPCACHE_PARAMS_F16_PAIR, 0, false);
    f.v = side_of(GGML_ZIPCACHE_SCOPE_TOKEN, GGML_ZIPCACHE_PARAMS_F16_PAIR, kKvHeads * kDim, false);
    f.k.bits[0] = f.v.bits[0] = 4;
    f.k.bits[1] = f.v.bits[1] = 2;
    return mix;
}

// The policy auto at its budget of 3.3 bits, with shares that come to it.
Mix auto_mix() {
    Mix mix = {"auto 3.3", {}, {}};
    auto & f = mix.format;
    f = {kKvHeads, kDim, 64, 9, false, {}, {}};
    f.k = side_of(GGML_ZIPCACHE_SCOPE_GROUP, GGML_ZIPCACHE_PARAMS_F8_PAIR, 0, true);
    f.v = side_of(GGML_ZIPCACHE_SCOPE_TOKEN, GGML_ZIPCACHE_PARAMS_F8_PAIR, kDim, true);
    const int k_bits[] = {8, 4, 3}, v_bits[] = {8, 4, 2};
    const double k_share[] = {0.03, 0.12, 0.85}, v_share[] = {0.03, 0.42, 0.55};
    for (int t = 0; t < 9; ++t) {
        f.k.bits[t] = k_bits[t / 3];
        f.v.bits[t] = v_bits[t % 3];
        f.v.shrink[t] = v_bits[t % 3] == 2 ? 0.8f : 1.0f;
        mix.share.push_back(k_share[t / 3] * v_share[t % 3]);
    }
    return mix;
}

struct Rows {
    Buffer<__half> k, v;  // [n_kv_heads, n_tokens, head_dim]

    explicit Rows(int64_t n) : k(size_t(kKvHeads) * n * kDim), v(size_t(kKvHeads) * n * kDim) {
        fill_normal<<<512, 256>>>(k, size_t(kKvHeads) * n * kDim, 1);
        fill_normal<<<512, 256>>>(v, size_t(kKvHeads) * n * kDim, 2);
        check(cudaDeviceSynchronize());
    }
};

const uint16_t * bits_of(const Buffer<__half> & x) {
    return reinterpret_cast<const uint16_t *>(static_cast<const __half *>(x));
}

// One segment of n random tokens; tells how long quantizing it took.
Buffer<uint8_t> make_segment(const Mix & mix, int64_t n, double * us) {
    const auto & f = mix.format;
    const Rows rows(n);
    std::mt19937 random(3);
    std::discrete_distribution<int> draw(mix.share.begin(), mix.share.end());
    std::vector<uint8_t> tier((f.same_order ? 1 : kKvHeads) * n);
    for (auto & t : tier) {
        t = uint8_t(draw(random));
    }
    const Buffer<uint8_t> tiers(tier);
    const Buffer<float> divisor(std::vector<float>(kKvHeads * kDim, 1.5f));
    const ggml_zipcache_rows args = {n, n, bits_of(rows.k), bits_of(rows.v), divisor, divisor, tiers, nullptr};
    const size_t capacity = ggml_zipcache_cuda_segment_bound(&f, n, 0);
    const size_t work = ggml_zipcache_cuda_quantize_kv_workspace(&f, n);
    const Buffer<uint8_t> to(capacity), workspace(work);
    const double time = time_us(
        nullptr, [&] { check(ggml_zipcache_cuda_quantize_kv(&f, &args, to, capacity, workspace, work, nullptr)); });
    if (us) {
        *us = time;
    }
    uint32_t header[4];
    check(cudaMemcpy(header, to, sizeof header, cudaMemcpyDeviceToHost));
    if (header[0] == 0) {
        throw std::runtime_error("a segment that does not fit its bound");
    }
    Buffer<uint8_t> segment(header[2]);
    check(cudaMemcpy(segment, to, header[2], cudaMemcpyDeviceToDevice));
    return segment;
}

double copy_floor() {  // GB/s, bytes read and written
    const size_t n = size_t(2) << 30;
    const Buffer<uint8_t> from(n, 1), to(n);
    return 2e-3 * double(n) / time_us(nullptr, [&] { check(cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToDevice)); });
}

// Layers of a batch, and what attend_kv takes for one.
class Attention {
  public:
    Attention(int batch, int n_layers, int64_t capacity, int32_t n_tokens) : batch_(batch), window_(capacity) {
        n_tokens_ = std::make_unique<Buffer<int32_t>>(std::vector<int32_t>{n_tokens});
        sequences_.resize(size_t(batch) * n_layers);
        for (auto & s : sequences_) {
            rows_.emplace_back(capacity);
            s = {};
            s.k = bits_of(rows_.back().k);
            s.v = bits_of(rows_.back().v);
            s.capacity = capacity;
            s.n_tokens = *n_tokens_;
            bytes_ += size_t(2) * kKvHeads * n_tokens * kDim * sizeof(uint16_t);
        }
    }

    // Every layer of every sequence gets a copy of its own of each of the segments.
    void add(const ggml_zipcache_format & format, const std::vector<Buffer<uint8_t>> & segments,
             const std::vector<int64_t> & n_tokens) {
        formats_.emplace_back(std::vector<ggml_zipcache_format>{format});
        const Buffer<int32_t> n(std::vector<int32_t>{int32_t(segments.size())});
        divisors_.emplace_back(std::vector<float>(kKvHeads * kDim, 1.5f));
        int64_t max_blocks = 0;
        for (int64_t tokens : n_tokens) {
            max_blocks += ggml_zipcache_cuda_max_blocks(&format, tokens);
        }
        for (auto & s : sequences_) {
            std::vector<ggml_zipcache_cuda_segment> table;
            for (const auto & segment : segments) {
                data_.emplace_back(segment.bytes());
                check(cudaMemcpy(data_.back(), segment, segment.bytes(), cudaMemcpyDeviceToDevice));
                ggml_zipcache_cuda_segment entry = {};
                entry.format = formats_.back();
                entry.data = data_.back();
                entry.k_divisor = format.k.rotate ? static_cast<float *>(divisors_.back()) : nullptr;
                entry.v_divisor = divisors_.back();
                table.push_back(entry);
                bytes_ += segment.bytes();
            }
            const Buffer<ggml_zipcache_cuda_segment> there(table);
            const ggml_zipcache_cuda_index_args args = {kKvHeads, kDim, int32_t(table.size()), max_blocks, window_,
                                                        there,    n};
            data_.emplace_back(ggml_zipcache_cuda_index_bytes(kKvHeads, args.max_segments, max_blocks));
            check(ggml_zipcache_cuda_index_kv(&args, data_.back(), nullptr));
            check(cudaDeviceSynchronize());
            s.index = data_.back();
        }
    }

    // us for one layer of the whole batch
    double time() {
        const Buffer<ggml_zipcache_cuda_sequence> sequences(sequences_);
        std::vector<float> query(size_t(batch_) * kHeads * kDim);
        std::mt19937 random(5);
        std::normal_distribution<float> normal;
        for (auto & x : query) {
            x = normal(random);
        }
        const Buffer<float> q(query), out(query.size());
        ggml_zipcache_cuda_attend_args args = {batch_, kHeads, kKvHeads,  kDim, 1 / std::sqrt(float(kDim)),
                                               0,      false,  sequences, q,    out};
        const size_t work = ggml_zipcache_cuda_attend_kv_workspace(&args);
        const Buffer<uint8_t> workspace(work);
        cudaStream_t stream;
        check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        check(cudaDeviceSynchronize());  // copies from pageable memory may still be under way
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        const int n_layers = int(sequences_.size()) / batch_;
        check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
        for (int layer = 0; layer < n_layers; ++layer) {
            args.sequences = static_cast<ggml_zipcache_cuda_sequence *>(sequences) + layer * batch_;
            check(ggml_zipcache_cuda_attend_kv(&args, workspace, work, stream));
        }
        check(cudaStreamEndCapture(stream, &graph));
        check(cudaGraphInstantiate(&exec, graph, 0));
        const double us = time_us(stream, [&] { check(cudaGraphLaunch(exec, stream)); }) / n_layers;
        check(cudaGraphExecDestroy(exec));
        check(cudaGraphDestroy(graph));
        check(cudaStreamDestroy(stream));
        return us;
    }
    double layer_bytes() const { return double(bytes_) * batch_ / double(sequences_.size()); }

  private:
    int batch_;
    int64_t window_;
    size_t bytes_ = 0;
    std::vector<Rows> rows_;
    std::vector<ggml_zipcache_cuda_sequence> sequences_;
    std::unique_ptr<Buffer<int32_t>> n_tokens_;
    std::vector<Buffer<ggml_zipcache_format>> formats_;
    std::vector<Buffer<float>> divisors_;
    std::vector<Buffer<uint8_t>> data_;
};

int layers_for(double bytes, double most) {
    return int(std::clamp(std::ceil(1.2e9 / bytes), 3.0, std::max(3.0, std::min(32.0, most / bytes))));
}

void row(const char * name, int64_t tokens, int batch, int n_layers, double bytes, double us, double floor) {
    const double rate = bytes / us * 1e-3;
    std::printf("%-14s %7lld %5d %6d %10.2f %9.1f %9.0f %6.1f %%\n", name, static_cast<long long>(tokens), batch,
                n_layers, bytes * 1e-6, us, rate, 100 * rate / floor);
    std::fflush(stdout);
}

void bench_attend(const Mix * mix, int64_t tokens, int batch, double floor) {
    if (!mix) {
        const double bytes = 4.0 * kKvHeads * kDim * double(tokens) * batch;
        const int n_layers = layers_for(bytes, 2.5e10);
        Attention attention(batch, n_layers, tokens, int32_t(tokens));
        row("f16", tokens, batch, n_layers, attention.layer_bytes(), attention.time(), floor);
        return;
    }
    std::vector<Buffer<uint8_t>> segments;
    std::vector<int64_t> lengths;
    double bytes = 0;
    for (int64_t done = 0; done < tokens; done += lengths.back()) {
        lengths.push_back(std::min(kSegment, tokens - done));
        segments.push_back(make_segment(*mix, lengths.back(), nullptr));
        bytes += double(segments.back().bytes()) * batch;
    }
    const int n_layers = layers_for(bytes, 2.5e10);
    Attention attention(batch, n_layers, kWindow + 64, kWindow);
    attention.add(mix->format, segments, lengths);
    row(mix->name, tokens, batch, n_layers, attention.layer_bytes(), attention.time(), floor);
    if (batch == 1) {
        std::printf("    all-in bits of the segments: %.3f\n", 8 * bytes / (2.0 * kKvHeads * kDim * double(tokens)));
    }
}

// The ops of a compression, for one layer.
void bench_compression(const Mix & mix) {
    const int64_t n = kSegment;
    double quantize = 0;
    const Buffer<uint8_t> segment = make_segment(mix, n, &quantize);
    const Rows rows(n);
    const size_t work = ggml_zipcache_cuda_dequantize_kv_workspace(&mix.format, n);
    const Buffer<uint8_t> workspace(work);
    const ggml_zipcache_cuda_rows_out out = {n,
                                             n,
                                             nullptr,
                                             nullptr,
                                             reinterpret_cast<uint16_t *>(static_cast<__half *>(rows.k)),
                                             reinterpret_cast<uint16_t *>(static_cast<__half *>(rows.v)),
                                             nullptr};
    const double dequantize = time_us(nullptr, [&] {
        check(ggml_zipcache_cuda_dequantize_kv(&mix.format, segment, &out, workspace, work, nullptr));
    });
    std::printf("%-14s %lld tokens: quantize_kv %.0f us, dequantize_kv %.0f us\n", mix.name, static_cast<long long>(n),
                quantize, dequantize);
}

void bench_scores() {
    const int64_t n = kSegment, n_probes = n / 10;
    const Rows rows(n);
    std::vector<int64_t> position;
    for (int64_t i = 0; i < n_probes; ++i) {
        position.push_back(i < n_probes / 2 ? i * 18 : n - (n_probes - i));
    }
    const Buffer<int64_t> positions(position);
    const Buffer<float> q(std::vector<float>(size_t(n_probes) * kHeads * kDim, 0.1f)), score(size_t(kKvHeads) * n),
        square(size_t(kKvHeads) * n);
    const ggml_zipcache_probes probes = {kHeads,          kKvHeads,  kDim, 1 / std::sqrt(float(kDim)), 0, n, n,
                                         bits_of(rows.k), positions, q};
    const ggml_zipcache_cuda_scores scores = {n_probes, score, square};
    const size_t work = ggml_zipcache_cuda_score_probes_workspace(&probes, n_probes);
    const Buffer<uint8_t> workspace(work);
    const double us =
        time_us(nullptr, [&] { check(ggml_zipcache_cuda_score_probes(&probes, &scores, workspace, work, nullptr)); });
    double seen = 0;
    for (int64_t p : position) {
        seen += double(p + 1);
    }
    std::printf("score_probes, %lld tokens, %lld probes: %.0f us, %.0f TFLOP/s\n", static_cast<long long>(n),
                static_cast<long long>(n_probes), us, 4.0 * seen * kHeads * kDim / us * 1e-6);
}

}  // namespace

// Arguments: tokens and batch, to time attend_kv for these alone.
int main(int argc, char ** argv) {
    try {
        cudaDeviceProp device;
        check(cudaGetDeviceProperties(&device, 0));
        const double floor = copy_floor();
        std::printf("%s, %d SMs; a copy reads and writes %.0f GB/s\n", device.name, device.multiProcessorCount, floor);
        std::printf("%-14s %7s %5s %6s %10s %9s %9s %8s\n", "attend_kv", "tokens", "batch", "layers", "MB/layer",
                    "us/layer", "GB/s", "of copy");
        const Mix zipcache = zipcache_mix(), automatic = auto_mix();
        std::vector<int64_t> lengths = {4096, 32768, 126976};
        std::vector<int> batches = {1, 8};
        if (argc > 2) {
            lengths = {std::strtol(argv[1], nullptr, 10)};
            batches = {int(std::strtol(argv[2], nullptr, 10))};
        }
        for (int64_t tokens : lengths) {
            for (int batch : batches) {
                for (const Mix * mix : {&zipcache, &automatic, static_cast<const Mix *>(nullptr)}) {
                    bench_attend(mix, tokens, batch, floor);
                }
            }
        }
        if (argc <= 2) {
            bench_compression(zipcache);
            bench_compression(automatic);
            bench_scores();
        }
    } catch (const std::exception & error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
