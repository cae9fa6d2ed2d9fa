#pragma once
// A session in a file: all that it goes on from, so that it goes on the same to the bit. What it is not: what was
// measured of it, and memory that a step fills anew.
//
// Version 1. Numbers are as the machine that wrote them stores them, without padding; `byte_order` tells which kind
// that was. Counts are i64. [..] is an array, outermost dimension first.
//
//   magic       8 bytes "ZIPCSESS"
//   version     u32: 1
//   byte_order  u32: 0x01020304
//   model       u64: fingerprint_of() the model (model/fingerprint.h)
//   options     KvOptions in the order of kv/options.h: texts as u8 length and ASCII, numbers as f64, i32, i64 or u64,
//               as they are declared, flags as u8
//   policy      u64: XXH64 of what the options meant to the writer (policy_hash() in session_file.cpp): its formats,
//               its window
//   n_ctx       i64: 1 to the model's
//   tokens      count, up to n_ctx; [n_tokens] i32
//   logits      count, 0 or n_vocab; [n] f32
//   cache       nothing for 0 tokens, else
//     n_window  count: the newest tokens, uncompressed
//     slots     count; [n_slots] i64, rising: positions of the coming compression's probes
//     layers    [n_layers] of
//       balance   u8 0 or 1; if 1 k_divisor, v_divisor [n_kv_heads, head_dim] f32, k_weight, v_weight [n_kv_heads] f32.
//                 The layer's segments share it
//       segments  count; for each
//                   position, n_tokens, first_seen, last_seen, n_bytes i64
//                   [n_kv_heads, head_dim] f32 divisors of its own where the policy has them, of keys, then of values
//                   [n_bytes] u8 (ggml/src/format.h), of the format that the policy has for n_tokens
//       window    K, then V: [n_kv_heads, n_window, head_dim] f16
//       slots     [n_slots, n_heads, head_dim] f16 queries, [n_slots, n_heads] f32 log-sum-exp of their logits
//   checksum    u64: XXH64 of all before it
//
// What the segments of a layer show is without gaps and ends where the window begins. It begins at the oldest token
// that the next one sees, or before; a segment shows all of its tokens but for the oldest of a sliding-window layer's
// first, and the newest of those that a truncate() cut.
#include "engine/session.h"

namespace zipcache {

class ByteReader;
class ByteWriter;

class SessionFile {
  public:
    // In place of what is at `path`, or FileError and that stays.
    static void save(const Session & session, const std::string & path);
    // Throws FileError for what cannot be read, is damaged, or was saved with another model.
    static std::unique_ptr<Session> load(const std::shared_ptr<Model> & model, const std::string & path);
    // The same of bytes in memory (tests, fuzzing). They may be anything.
    static std::unique_ptr<Session> parse(const std::shared_ptr<Model> & model, const uint8_t * data, size_t size,
                                          const std::string & name);

  private:
    static void write_cache(ByteWriter & out, const KvCache & cache);
    static void write_layer(ByteWriter & out, const KvCache & cache, int index);
    static std::unique_ptr<Session> read(ByteReader & in, const std::shared_ptr<Model> & model);
    static void read_cache(ByteReader & in, KvCache & cache, int64_t n_tokens);
    static void read_slots(ByteReader & in, KvCache & cache, int64_t first);
    static void read_layer(ByteReader & in, KvCache & cache, int index, int64_t n_tokens);
    static void read_segments(ByteReader & in, KvCache & cache, int index, int64_t n_tokens);
    static SegmentUse read_segment(ByteReader & in, const KvCache & cache, int index);
};

}  // namespace zipcache
