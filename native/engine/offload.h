#pragma once
#include "engine/model.h"

namespace zipcache {

// What of a model a GPU gets: its last layers and the output, and where these are all layers, the embedding.
struct Offload {
    std::unique_ptr<Device> device;  // null: nothing, the host runs the model
    int n_host_layers = 0;           // the first ones, which stay on the host
};

// The layers that the options name; else all of them, if the weights fit; else as many as leave room for a session, and
// if that is none, "auto" falls back to the host. Throws ArgumentError for a device that is not there and a number
// of layers that is none, ModelError for what the device cannot run or hold.
Offload choose_offload(const ModelOptions & options, const std::shared_ptr<const GgufFile> & file);

}  // namespace zipcache
