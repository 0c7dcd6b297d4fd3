#pragma once

#include "nibble/kernels/operand.h"

namespace nibble {

// Between the joint projection of queries, keys and values and attention on matrix units (packed_attention.h), with per-head
// RMSNorm and rotary embedding on the way (qk_norm_rope.h has the formulas):
//   qk[t, h, :] = rope(qkv[t, h, :] * inv_rms[t, h] * weight, position[t])  for the H query heads, then the Hk key heads
// Values stay where they are. D is 64 or 128. Writes `=`.
struct PackHeads {
  Operand qkv;             // (T, (H + 2 Hk) * D), f16
  std::uint32_t heads, key_heads;
  Tensor q_norm, k_norm;   // (D); both empty: no norm
  Tensor position;         // (T), u32
  Tensor table;            // (positions, D/2, 2), of rope_table
  float eps = 1e-6f;
  Operand qk;              // (T, (H + Hk) * D), f16
  Tensor v_most;           // (T): the largest magnitude of the token's values
};
void record(gpu::Recorder& recorder, const PackHeads& op);

// The gradient with respect to qkv, given those of the rotated queries and keys and of the values. Fields as above.
struct PackHeadsBackward {
  Tensor dq;               // (T, H * D)
  Tensor dkv;              // (parts, T, 2 Hk * D): summed over parts in their order
  Operand qkv;
  std::uint32_t heads, key_heads;
  Tensor q_norm, k_norm, position, table;
  float eps = 1e-6f;
  Operand d_qkv;           // (T, (H + 2 Hk) * D), f16
};
void record(gpu::Recorder& recorder, const PackHeadsBackward& op);

}  // namespace nibble
