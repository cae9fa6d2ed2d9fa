#include "attend_kv_kernel.cuh"

const char * zipcache::cuda::launch_attend_80(const AttendParams & p, cudaStream_t stream) {
    return launch<80, false>(p, stream);
}
