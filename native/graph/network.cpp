#include "graph/network.h"

namespace zipcache {
namespace {

// Llama 3.1 files carry one factor for each pair of channels, LongRoPE files two sets of them.
void request_rope_factors(Weights & weights, const HParams & h, LayerWeights & w) {
    const std::vector<int64_t> shape = {h.rope.n_dims / 2};
    w.rope_factors = weights.plain("rope_freqs.weight", shape, false);
    if (!w.rope_factors) {
        w.rope_factors = weights.plain("rope_factors_long.weight", shape, false);
        w.rope_factors_short = weights.plain("rope_factors_short.weight", shape, false);
    }
}

// Layer by layer; a device's layers share its RoPE factors.
void request_layers(Network & network, const WeightsPlace & place) {
    const HParams & h = network.h;
    Weights & weights = *network.storage;
    network.layers.resize(h.n_layers);
    for (int i = 0; i < h.n_layers; ++i) {
        LayerWeights & w = network.layers[i];
        weights.begin_layer(i);
        if (i > 0 && place.of(i) == place.of(i - 1)) {
            w.rope_factors = network.layers[i - 1].rope_factors;
            w.rope_factors_short = network.layers[i - 1].rope_factors_short;
        } else {
            request_rope_factors(weights, h, w);
        }
        network.architecture->weights(weights, h, "blk." + std::to_string(i) + ".", w);
    }
}

}  // namespace

std::unique_ptr<Network> plan_network(const std::shared_ptr<const GgufFile> & file, const WeightsPlace & place) {
    auto network = std::make_unique<Network>();
    network->architecture = &find_architecture(std::string(file->string("general.architecture")));
    network->h = read_hparams(*file);
    HParams & h = network->h;
    network->architecture->shape(*file, h);
    const GgufTensor * embedding = file->find_tensor("token_embd.weight");
    h.n_vocab = embedding && embedding->ne[1] <= INT32_MAX ? static_cast<int>(embedding->ne[1]) : 0;
    network->storage = std::make_unique<Weights>(file, place);
    Weights & weights = *network->storage;
    weights.begin_layer(0);
    network->token_embedding = weights.plain("token_embd.weight", {h.n_embd, h.n_vocab});
    weights.begin_layer(h.n_layers - 1);
    network->output_norm = weights.plain("output_norm.weight", {h.n_embd});
    const bool tied = !file->find_tensor("output.weight");
    network->output = weights.matrix(tied ? "token_embd.weight" : "output.weight", {h.n_embd, h.n_vocab});
    request_layers(*network, place);
    return network;
}

std::unique_ptr<Network> load_network(const std::shared_ptr<const GgufFile> & file, const WeightsPlace & place,
                                      const Progress & progress) {
    auto network = plan_network(file, place);
    network->storage->load(progress);
    return network;
}

}  // namespace zipcache
