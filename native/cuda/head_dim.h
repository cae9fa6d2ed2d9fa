#pragma once
#include <type_traits>

namespace zipcache::cuda {

// Calls body(std::integral_constant<int, head_dim>()). A device attends to heads of no other size.
template <class Body>
void with_head_dim(int head_dim, Body && body) {
    switch (head_dim) {
        case 64: body(std::integral_constant<int, 64>()); break;
        case 80: body(std::integral_constant<int, 80>()); break;
        case 96: body(std::integral_constant<int, 96>()); break;
        case 128: body(std::integral_constant<int, 128>()); break;
        default: body(std::integral_constant<int, 256>()); break;
    }
}

}  // namespace zipcache::cuda
