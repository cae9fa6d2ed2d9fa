#pragma once
#include <string>

#include "graph/network.h"

namespace zipcache {

// What of this network the device does not compute, as a person calls it; empty: it computes all. Asked of the layers
// from `first` on and the output, and for 0 of the embedding.
std::string not_computed(const Network & network, const Device & device, int first);

}  // namespace zipcache
