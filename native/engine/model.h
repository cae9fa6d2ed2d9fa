#pragma once
#include <memory>
#include <mutex>
#include <string>

#include "graph/executor.h"
#include "graph/network.h"
#include "kv/options.h"
#include "kv/output_norms.h"
#include "text/tokenizer.h"

namespace zipcache {

struct ModelOptions {
    std::string device = "auto";  // auto (a GPU where there is one), cpu, cuda, cuda:0, ..., metal
    int gpu_layers = -1;          // at most: the last ones, which a GPU gets, the host the others; -1: as many as fit
    int threads = 0;              // 0: one for each physical core this process may use, as far as that can be told
    bool repack = true;           // use ggml's repacked weight layouts where they make a type faster
    Progress progress;            // told 0..1 while weights are repacked
};

// A loaded model. Immutable and shared by its sessions, which keep it alive.
class Model {
  public:
    static std::shared_ptr<Model> open(const std::string & path, const ModelOptions & options);

    const GgufFile & file() const { return *file_; }
    const Network & network() const { return *network_; }
    const HParams & hparams() const { return network_->h; }
    Executor & executor() const { return *executor_; }
    int gpu_layers() const;
    std::vector<Stage> stages() const { return executor_->stages(hparams().n_layers); }
    OutputNorms & output_norms() const { return *output_norms_; }
    bool has_tokenizer() const { return tokenizer_ != nullptr; }
    uint64_t fingerprint() const;         // tells it from other models; found when first asked for
    const Tokenizer & tokenizer() const;  // throws ModelError when the file has none
    // Throws ArgumentError naming the first id outside [0, n_vocab).
    void check_tokens(const int32_t * tokens, size_t n_tokens) const;

  private:
    Model() = default;
    std::shared_ptr<const GgufFile> file_;
    std::unique_ptr<Executor> executor_;  // whose devices the weights lie on
    std::unique_ptr<Network> network_;
    std::unique_ptr<OutputNorms> output_norms_;
    std::unique_ptr<Tokenizer> tokenizer_;
    mutable std::once_flag fingerprint_once_;
    mutable uint64_t fingerprint_ = 0;
};

// What running a model takes, without loading it.
struct MemoryPlan {
    int64_t n_ctx = 0;            // tokens planned for
    size_t weights_mapped = 0;    // bytes used in place
    size_t weights_repacked = 0;  // bytes copied into a faster layout
    size_t kv_bytes = 0;          // at n_ctx tokens
    size_t scratch_bytes = 0;     // of a prefill of n_ctx tokens: activations, one layer's uncompressed keys and values
};

MemoryPlan plan_memory(const std::shared_ptr<const GgufFile> & file, int64_t n_ctx, bool repack, const KvOptions & kv);

}  // namespace zipcache
