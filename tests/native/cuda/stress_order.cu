// Thousands of steps of a graph in which ggml's nodes and ours follow each other, with random delays on both sides, as
// they are, started while the one before runs, and recorded, beside the same nodes one at a time with a wait after
// each: the results are the same to the bit, or one side did not wait for the other.
#include <array>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/cuda_device.h"
#include "device/memory.h"
#include "device/own_node.h"

using namespace zipcache;

namespace {

constexpr int kWidth = 1024, kStages = 12, kSteps = 3000, kMostDelay = 60000;  // clock ticks

// inputs: two delays for each stage, then what the step adds
__global__ void add_and_linger(float * to, const float * from, const int * inputs, int stage) {
    const long long until = clock64() + inputs[2 * stage];
    while (clock64() < until) {
    }
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    to[i] = from[i] + 0.25f * from[(i + 1) % kWidth] + 0.125f * inputs[2 * kStages];
    const long long end = clock64() + inputs[2 * stage + 1];
    while (clock64() < end) {
    }
}

class Linger : public OwnNode {
  public:
    explicit Linger(int stage) : stage_(stage) {}
    void enqueue(const ggml_tensor * node, void * stream) const override {
        add_and_linger<<<kWidth / 256, 256, 0, static_cast<cudaStream_t>(stream)>>>(
            static_cast<float *>(node->data), static_cast<const float *>(node->src[0]->data),
            static_cast<const int *>(node->src[1]->data), stage_);
    }

  private:
    int stage_;
};

// A step that reads one of two inputs.
struct Turn {
    Inputs inputs;
    GgmlContext context;
    std::unique_ptr<ggml_gallocr, void (*)(ggml_gallocr_t)> memory;
    ggml_cgraph * graph;

    explicit Turn(cuda::CudaDevice & d)
        : inputs(d, {{2 * kStages + 1}}),
          context(
              ggml_init({400 * ggml_tensor_overhead() + 4 * ggml_graph_overhead_custom(400, false), nullptr, true})),
          memory(ggml_gallocr_new(d.memory()), ggml_gallocr_free),
          graph(ggml_new_graph_custom(context.get(), 400, false)) {}

    void draw_delays(int step, std::mt19937 & random) {
        for (int i = 0; i < 2 * kStages; ++i) {
            inputs.host(0)[i] = random() % 3 == 0 ? int(random() % kMostDelay) : 0;
        }
        inputs.host(0)[2 * kStages] = step % 5;
    }
    void no_delays(int step) {
        std::memset(inputs.host(0), 0, 2 * kStages * sizeof(int32_t));
        inputs.host(0)[2 * kStages] = step % 5;
    }
};

struct Chain {
    cuda::CudaDevice & device;
    OwnTensor weight, large, state;
    std::vector<Linger> nodes;
    std::array<Turn, 2> turns;

    explicit Chain(cuda::CudaDevice & d)
        : device(d),
          weight(d, GGML_TYPE_F32, kWidth, kWidth),
          large(d, GGML_TYPE_F32, kWidth, 512),
          state(d, GGML_TYPE_F32, kWidth),
          turns{Turn(d), Turn(d)} {
        std::mt19937 random(1);
        std::normal_distribution<float> normal(0, 1.0f / 32);
        std::vector<float> w(kWidth * kWidth), l(kWidth * 512, 0.5f);
        for (float & x : w) {
            x = normal(random);
        }
        d.write(weight.tensor->data, w.data(), w.size() * sizeof(float));
        d.write(large.tensor->data, l.data(), l.size() * sizeof(float));
        for (int i = 0; i < kStages; ++i) {
            nodes.emplace_back(i);
        }
        for (Turn & turn : turns) {
            ggml_context * ctx = turn.context.get();
            ggml_tensor * x = state.tensor;
            for (int i = 0; i < kStages; ++i) {
                x = own_node(ctx, nodes[i], {kWidth, 1}, {x, turn.inputs.tensor(0)});
                x = ggml_rms_norm(ctx, ggml_mul_mat(ctx, weight.tensor, x), 1e-5f);
                ggml_build_forward_expand(turn.graph, x);
                for (unsigned n = random() % 3; n > 0; --n) {  // ggml's delay: products that nobody reads
                    ggml_build_forward_expand(turn.graph, ggml_mul_mat(ctx, weight.tensor, large.tensor));
                }
            }
            ggml_build_forward_expand(turn.graph, ggml_cpy(ctx, x, state.tensor));
            ggml_gallocr_alloc_graph(turn.memory.get(), turn.graph);
        }
    }

    void begin() {
        std::vector<float> x(kWidth);
        for (int i = 0; i < kWidth; ++i) {
            x[i] = float(i % 17) - 8;
        }
        device.write(state.tensor->data, x.data(), x.size() * sizeof(float));
    }

    std::vector<float> end() {
        std::vector<float> x(kWidth);
        device.read(x.data(), state.tensor->data, x.size() * sizeof(float));
        return x;
    }
};

const std::atomic<bool> kGoOn{false};

std::vector<float> one_at_a_time(Chain & chain, int n_steps) {
    chain.begin();
    Turn & turn = chain.turns[0];
    std::vector<ggml_cgraph *> single;
    GgmlContext context(ggml_init({400 * ggml_graph_overhead_custom(1, false), nullptr, true}));
    for (int i = 0; i < ggml_graph_n_nodes(turn.graph); ++i) {
        ggml_cgraph * graph = ggml_new_graph_custom(context.get(), 1, false);
        ggml_graph_add_node(graph, ggml_graph_node(turn.graph, i));
        single.push_back(graph);
    }
    for (int step = 0; step < n_steps; ++step) {
        turn.no_delays(step);
        turn.inputs.send();
        for (ggml_cgraph * graph : single) {
            chain.device.compute(graph, kGoOn);
        }
    }
    return chain.end();
}

using Run = void (cuda::CudaDevice::*)(ggml_cgraph *, const std::atomic<bool> &);

std::vector<float> one_after_the_other(Chain & chain, Run run, unsigned seed, int n_steps) {
    chain.begin();
    std::mt19937 random(seed);
    for (int step = 0; step < n_steps; ++step) {
        Turn & turn = chain.turns[step % 2];
        turn.draw_delays(step, random);
        turn.inputs.send();
        (chain.device.*run)(turn.graph, kGoOn);
    }
    return chain.end();
}

std::vector<float> recorded(Chain & chain, int n_steps) {
    chain.begin();
    std::mt19937 random(3);
    Staging last(chain.device, kWidth * sizeof(float));
    Turn & turn = chain.turns[0];
    auto recording = chain.device.record(turn.graph, turn.inputs.transfer(), last.from(chain.state.tensor));
    for (int step = 0; step < n_steps; ++step) {
        turn.draw_delays(step, random);
        recording->run(kGoOn);
    }
    return chain.end();
}

bool same(const char * name, const std::vector<float> & a, const std::vector<float> & b) {
    int differ = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        differ += std::memcmp(&a[i], &b[i], sizeof a[i]) != 0;
    }
    std::printf("%-9s %d of %zu values differ from one node at a time\n", name, differ, a.size());
    return differ == 0;
}

}  // namespace

int main() {
    cuda::CudaDevice device(0);
    Chain chain(device);
    const auto expected = one_at_a_time(chain, kSteps);
    const bool moved = expected[0] == expected[0] && expected[0] != -8.0f;
    const bool good = same("eager", one_after_the_other(chain, &cuda::CudaDevice::compute, 2, kSteps), expected) &
                      same("started", one_after_the_other(chain, &cuda::CudaDevice::start, 4, kSteps), expected) &
                      same("recorded", recorded(chain, kSteps), expected);
    std::printf("%d steps of %d stages on %s\n", kSteps, kStages, device.description().c_str());
    return moved && good ? 0 : 1;
}
