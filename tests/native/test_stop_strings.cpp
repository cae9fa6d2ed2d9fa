#include "check.h"
#include "common/error.h"
#include "engine/stop_strings.h"

using zipcache::StopStrings;

TEST(stop_strings_hold_back_only_what_may_become_one) {
    StopStrings stop({"END", "\n\n"});
    CHECK(stop.push("abc") == "abc");
    CHECK(stop.push("E") == "");
    CHECK(stop.push("xE") == "Ex");
    CHECK(stop.push("N") == "");
    CHECK(stop.push("D tail") == "");
    CHECK(stop.stopped());
    CHECK(stop.push("more") == "");
    CHECK(stop.flush() == "");
}

TEST(stop_strings_take_the_first_of_several) {
    StopStrings stop({"yz", "x"});
    CHECK(stop.push("abxyz") == "ab");
    CHECK(stop.stopped());
}

TEST(stop_strings_flush_what_never_became_one) {
    StopStrings stop({"END"});
    CHECK(stop.push("the EN") == "the ");
    CHECK(stop.flush() == "EN");
    CHECK(!stop.stopped());
    CHECK_THROWS(StopStrings({""}), zipcache::ArgumentError, "empty");
}
