#include "attend_kv_kernel.cuh"

const char * zipcache::cuda::launch_attend_80_any(const AttendParams & p, cudaStream_t stream) {
    return launch<80, true>(p, stream);
}
