#pragma once

#include "nibble/kernels/attention.h"

namespace nibble {

// What QkvHeads and Attention do in turn for one new token, in one dispatch, and one more where there are parts: its row of the
// joint projection gives the queries, and the key and values that go to row `first_key` of the caches. The queries meet the keys of
// [key_begin[0], first_key]. All f32 but key_begin and position; D is a multiple of 16 from 16 to 256. Writes `=`.
struct AttentionStep {
  Tensor qkv;              // (1, (H + 2 Hk) * D)
  Tensor q_norm, k_norm;   // (D); both empty: no norm
  Tensor position, table;  // (1) u32 and (positions, D/2, 2)
  float eps = 1e-6f;
  Tensor k, v;             // (Hk, capacity, D)
  std::uint32_t heads = 0, first_key = 0;
  Tensor key_begin;        // (1) u32
  Tensor o;                // (1, H * D)
  Tensor lse;              // (H, 1)
  AttentionParts parts = {};
  std::uint32_t most_keys = 0;        // at least first_key + 1 - key_begin[0]; 0: from the first row on
  std::uint32_t least_part_keys = 0;  // of a part, a multiple of 32; for tests; 0: by the adapter
};
void record(gpu::Recorder& recorder, const AttentionStep& op);

// Whether the caches fit into one binding each.
bool attention_step_fits(const gpu::Device& device, const AttentionStep& op);

}  // namespace nibble
