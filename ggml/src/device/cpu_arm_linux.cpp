#include <asm/hwcap.h>
#include <sys/auxv.h>

#include "device/cpu_arm.h"

bool zipcache::device::arm_has_dotprod() {
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
}
