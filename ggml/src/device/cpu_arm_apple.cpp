#include <sys/sysctl.h>

#include "device/cpu_arm.h"

bool zipcache::device::arm_has_dotprod() {
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
}
