#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace zipcache {

// How byte-level BPE cuts text into words; merges never cross the cut.
struct PreTokenizer {
    // End of the word that begins at `pos` < text.size(). Words cover the text without gaps, and where a word ends
    // does not depend on the words before it. Invalid UTF-8 is read as U+FFFD.
    size_t (*word_end)(std::string_view text, size_t pos);
    // A word that is itself a token is taken whole, without merging.
    bool ignore_merges;
};

// The pre-tokenizer of tokenizer.ggml.pre; nullptr for an unknown name.
const PreTokenizer * find_pre_tokenizer(std::string_view name);

std::string pre_tokenizer_names();  // "default, gpt-2, ..."

}  // namespace zipcache
