#include "engine/stop_strings.h"

#include <algorithm>

#include "common/error.h"

namespace zipcache {
namespace {

// Length of the longest end of `text` that begins `string` without being all of it.
size_t undecided(const std::string & text, const std::string & string) {
    for (size_t n = std::min(text.size(), string.size() - 1); n > 0; --n) {
        if (text.compare(text.size() - n, n, string, 0, n) == 0) {
            return n;
        }
    }
    return 0;
}

}  // namespace

StopStrings::StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {
    for (const std::string & string : strings_) {
        if (string.empty()) {
            throw ArgumentError("a stop string is empty; accepted: one character or more");
        }
    }
}

std::string StopStrings::push(const std::string & text) {
    if (stopped_) {
        return {};
    }
    held_ += text;
    size_t hold = 0;
    size_t found = std::string::npos;
    for (const std::string & string : strings_) {
        found = std::min(found, held_.find(string));
        hold = std::max(hold, undecided(held_, string));
    }
    stopped_ = found != std::string::npos;
    const size_t shown = stopped_ ? found : held_.size() - hold;
    std::string out = held_.substr(0, shown);
    held_.erase(0, shown);
    return out;
}

std::string StopStrings::flush() {
    std::string out;
    if (!stopped_) {
        out.swap(held_);
    }
    return out;
}

}  // namespace zipcache
