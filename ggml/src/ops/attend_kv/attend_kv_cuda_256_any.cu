#include "attend_kv_kernel.cuh"

const char * zipcache::cuda::launch_attend_256_any(const AttendParams & p, cudaStream_t stream) {
    return launch<256, true>(p, stream);
}
