#pragma once

#include "nibble/kernels/attention.h"

namespace nibble {

// What QkvHeads and Attention do in turn for one new token each of some texts, in one dispatch, and one more where there are parts: token
// t's row of the joint projection gives the queries, and the key and values that go to row key_end[t] - 1 of the caches. The queries meet
// the keys of [key_begin[t], key_end[t]), of which no two texts have the same. All f32 but the bounds, position, and qkv, or k and v, where
// these are f16; D is a multiple of 16 from 16 to 256. Writes `=`.
struct AttentionStep {
  Operand qkv;             // (T, (H + 2 Hk) * D), T at most attention_part_rows
  Tensor q_norm, k_norm;   // (D); both empty: no norm
  Tensor position, table;  // (T) u32 and (positions, D/2, 2)
  float eps = 1e-6f;
  Tensor k, v;             // (Hk, capacity, D)
  std::uint32_t heads = 0;
  Tensor key_begin, key_end;  // (T) u32, the ends at most the capacity
  Tensor o;                // (T, H * D)
  Tensor lse;              // (H, T)
  AttentionParts parts = {};
  std::uint32_t most_keys = 0;        // that a token meets; 0: all rows
  std::uint32_t least_part_keys = 0;  // of a part, a multiple of 32; for tests; 0: by the adapter
  std::optional<bool> by_lanes = {};  // whether subgroups take keys by themselves where they can; for tests; empty: they do
};
void record(gpu::Recorder& recorder, const AttentionStep& op);

// Whether the caches fit into one binding each.
bool attention_step_fits(const gpu::Device& device, const AttentionStep& op);

}  // namespace nibble
