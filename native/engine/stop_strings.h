#pragma once
#include <string>
#include <vector>

namespace zipcache {

// Watches a stream of text for stop strings. Text that may turn out to be the beginning of one is held back.
class StopStrings {
  public:
    // Throws ArgumentError for an empty string.
    explicit StopStrings(std::vector<std::string> strings);

    // Text that may be shown now; stopped() when a stop string began right after it.
    std::string push(const std::string & text);
    std::string flush();  // what is still held back, at the end of the stream
    bool stopped() const { return stopped_; }

  private:
    std::vector<std::string> strings_;
    std::string held_;
    bool stopped_ = false;
};

}  // namespace zipcache
