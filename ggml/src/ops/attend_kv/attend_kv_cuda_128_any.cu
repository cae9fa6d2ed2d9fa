#include "attend_kv_kernel.cuh"

const char * zipcache::cuda::launch_attend_128_any(const AttendParams & p, cudaStream_t stream) {
    return launch<128, true>(p, stream);
}
