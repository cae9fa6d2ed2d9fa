#include "device/device.h"

#include <algorithm>

namespace zipcache {

// As ggml-zipcache-cuda.h and ggml-zipcache-metal.h state it.
bool Device::attends(int n_queries, int head_dim) const {
    constexpr int kMostQueries = 16;
    const auto known = {64, 80, 96, 128, 256};
    return n_queries <= kMostQueries && std::find(known.begin(), known.end(), head_dim) != known.end();
}

}  // namespace zipcache
