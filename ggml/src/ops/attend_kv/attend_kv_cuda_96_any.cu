#include "attend_kv_kernel.cuh"

const char * zipcache::cuda::launch_attend_96_any(const AttendParams & p, cudaStream_t stream) {
    return launch<96, true>(p, stream);
}
