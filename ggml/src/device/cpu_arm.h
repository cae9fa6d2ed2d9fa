#pragma once

namespace zipcache::device {

// SDOT and UDOT; only the operating system knows. One file a system.
bool arm_has_dotprod();

}  // namespace zipcache::device
