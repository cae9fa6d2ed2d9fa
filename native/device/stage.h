#pragma once
#include "device/device.h"

namespace zipcache {

// Consecutive layers of a model that lie on one device. A model is one stage, or two: its first layers on the host, the
// others on a GPU. The embedding lies with the first layer, the output with the last; between them hidden states cross.
struct Stage {
    Device * device;
    int first, end;  // layers [first, end)

    int n_layers() const { return end - first; }
};

}  // namespace zipcache
