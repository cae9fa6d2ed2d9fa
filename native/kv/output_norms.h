#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "model/gguf_file.h"

namespace zipcache {

// How strongly each channel of the attention's output is read: the squared norms of the columns of a layer's output
// projection. Computed from the file when first asked for; shared by all sessions of a model.
class OutputNorms {
  public:
    OutputNorms(std::shared_ptr<const GgufFile> file, int n_layers);
    // norms [n_layers]: of() as they are, none of them empty
    explicit OutputNorms(std::vector<std::vector<float>> norms) : norms_(std::move(norms)) {}

    // [n_heads * head_dim]; each > 0
    const std::vector<float> & of(int layer);

  private:
    std::shared_ptr<const GgufFile> file_;
    std::mutex mutex_;
    std::vector<std::vector<float>> norms_;
};

}  // namespace zipcache
