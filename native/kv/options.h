#pragma once
#include <cstdint>
#include <string>

namespace zipcache {

// How a session keeps its keys and values; python/zipcache_rt/options.py tells what each means.
struct KvOptions {
    std::string policy = "auto";          // auto, zipcache, uniform, kivi, mikv, h2o, snapkv, gear, q8_0, q4_0, f16
    double bits = 0;                      // auto: all-in budget; else bits of a code; 0: the policy's own
    double ratio = 0.6;                   // share of salient tokens
    int high_bits = 4;                    // of salient tokens
    int low_bits = 2;                     // of regular tokens
    std::string saliency = "normalized";  // normalized, accumulated, recent, random
    std::string probes;                // random+recent, random, recent, special, all, newest32; empty: the policy's own
    double random_probes = 0.05;       // share of tokens
    double recent_probes = 0.05;       // share of tokens
    std::string keys = "channelwise";  // channelwise, groupwise, tokenwise
    std::string values = "cst";        // cst, groupwise, tokenwise, channelwise
    bool rotate = false;
    bool per_head = false;   // rank the tokens of each KV head apart
    int group = 32;          // kivi: tokens of a channel, and channels of a token, that share parameters
    double heavy = 0.2;      // h2o, snapkv: share of tokens that stay for the attention they got
    double newest = 0.2;     // h2o: share of tokens that stay because they are the newest
    int rank = 4;            // gear: of what corrects a prompt's errors
    int window_rank = 2;     // gear: of what corrects a window's
    double outliers = 0.02;  // gear: share of elements that are kept as they are
    int64_t window = -1;     // uncompressed tokens that are compressed together; -1: the policy's own
    int64_t recent = -1;     // newest tokens that are never compressed; -1: the policy's own
    uint64_t seed = 0;
};

}  // namespace zipcache
