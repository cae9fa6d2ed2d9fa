#include "attend_kv_kernel.cuh"

const char * zipcache::cuda::launch_attend_64(const AttendParams & p, cudaStream_t stream) {
    return launch<64, false>(p, stream);
}
