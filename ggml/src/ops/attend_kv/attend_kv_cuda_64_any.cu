#include "attend_kv_kernel.cuh"

const char * zipcache::cuda::launch_attend_64_any(const AttendParams & p, cudaStream_t stream) {
    return launch<64, true>(p, stream);
}
