#include "attend_kv_kernel.cuh"

const char * zipcache::cuda::launch_attend_96(const AttendParams & p, cudaStream_t stream) {
    return launch<96, false>(p, stream);
}
