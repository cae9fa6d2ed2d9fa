#pragma once
#include <string>

#include "graph/network.h"

namespace zipcache {

// What of this network the device does not compute, as a person calls it; empty: it computes all.
std::string not_computed(const Network & network, const Device & device);

}  // namespace zipcache
