#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace zipcache {

// How the next token is chosen. Applied in this order: logit bias, penalties, top-k, top-p, min-p, temperature, draw.
struct SamplerOptions {
    float temperature = 0.8f;         // 0: greedy (the most probable token, lowest id on ties)
    int32_t top_k = 40;               // keep the k most probable tokens; 0: all
    float top_p = 0.95f;              // keep the smallest set whose probability is at least p; 1: all
    float min_p = 0.05f;              // drop tokens less probable than min_p times the best one; 0: none
    float repetition_penalty = 1.0f;  // > 1 divides positive and multiplies negative logits of tokens seen lately
    float presence_penalty = 0.0f;    // subtracted once for each token seen lately
    float frequency_penalty = 0.0f;   // subtracted for every time it was seen lately
    int32_t penalty_last_n = 64;      // how many of the newest tokens count as lately; -1: all, 0: none
    std::vector<std::pair<int32_t, float>> logit_bias;  // (token, added to its logit; -inf forbids it)
    uint64_t seed = 0;                                  // same seed, same logits, same tokens
};

struct Sample {
    int32_t token;
    float logprob;  // natural log of the softmax of the model's own logits (before any option) at `token`
};

// One stream of choices. Holds the random state and the tokens seen so far.
class Sampler {
  public:
    // Throws ArgumentError naming the option that is out of range, with what is accepted.
    Sampler(SamplerOptions options, int32_t n_vocab);

    void accept(int32_t token);           // counts for the penalties: prompt and generated tokens alike
    Sample sample(const float * logits);  // logits: [n_vocab] f32; not changed. Does not accept() the choice.
                                          // Throws ModelError when every logit is NaN or forbidden.

  private:
    struct Candidate {
        float logit;
        int32_t token;
    };
    void collect(const float * logits);  // candidates from logits and bias
    void penalize();
    void keep_best(size_t n);        // sorted
    void truncate_by_probability();  // top-p, min-p
    int32_t draw();

    SamplerOptions options_;
    int32_t n_vocab_;
    std::vector<int32_t> recent_;        // the newest tokens, oldest first
    std::vector<Candidate> candidates_;  // scratch, reused
    uint64_t random_state_[4];           // xoshiro256++
};

}  // namespace zipcache
