#pragma once

#include "nibble/kernels/operand.h"

#include <optional>

namespace nibble {

// What QkNormRope does for queries and keys and ToHeads for values (qk_norm_rope.h), of a joint projection at once: for
// generation, where each dispatch costs more than what it does. Token t's key and values go to row key_end[t] - 1 of each head
// of k and v: the last that it meets. All f32 but `position`, `key_end`, and qkv, or k and v,
// where these are f16.
struct QkvHeads {
  Operand qkv;             // (T, (H + 2 Hk) * D)
  Tensor q_norm, k_norm;   // (D); both empty: no norm
  Tensor position, table;  // (T) u32 and (positions, D/2, 2)
  float eps = 1e-6f;
  Tensor q;                // (H, T, D); with keys_only left as it is
  Tensor k, v;             // (Hk, capacity, D)
  Tensor key_end;          // (T) u32, from 1 to the capacity, all different
  bool keys_only = false;  // and values: queries are none of its business
  std::optional<gpu::AdapterType> kernel_for = {};  // of another type of adapter than the one in use, for tests
};
void record(gpu::Recorder& recorder, const QkvHeads& op);

// Whether each tensor fits into one binding.
bool qkv_heads_fits(const gpu::Device& device, const QkvHeads& op);

}  // namespace nibble
