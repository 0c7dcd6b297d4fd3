#pragma once

#include "nibble/kernels/attention.h"
#include "nibble/kernels/packed_attention.h"

#include <functional>
#include <initializer_list>
#include <optional>

namespace nibble {

struct QkvAttentionShape {
  std::uint32_t tokens, heads, key_heads, head_dim;  // at most `tokens`
  ProductPath path = ProductPath::f32;               // of the projections around it
  bool backward = true;
  std::optional<bool> packed = {};                   // for tests; empty: by the adapter
  std::optional<detail::AttentionTiles> tiles = {};  // for tests, of the packed form; empty: by the adapter
};

// Memory between the dispatches of one pass; layers that follow one another share it. What an adapter and path do without
// is empty.
struct QkvAttentionRoom {
  QkvAttentionShape shape = {};
  bool packed = false;             // on matrix units (packed_attention.h), where they suit
  Operand qk;                      // packed: rotated queries and keys, and what belongs to them
  Tensor v_most, numbers, dkv;
  Tensor dq;                       // gradients of rotated queries: packed by tokens, else by heads
  Tensor q, k, v, dk, dv;          // else by heads, as attention.h has them
  Tensor q_inv_rms, k_inv_rms, delta;
  Tensor o, d_o, d_qkv;            // else, on an f16 path: in f32
  AttentionParts parts;            // of few queries against a cache
};
QkvAttentionRoom make_qkv_attention_room(gpu::Device& device, const QkvAttentionShape& shape);
// The same with memory from elsewhere: `make` is called with each tensor's type and shape, and may fill it later.
using MakeTensor = std::function<void(Tensor&, DType, std::initializer_list<std::uint32_t>)>;
void lay_out(QkvAttentionRoom& room, const gpu::Device& device, const QkvAttentionShape& shape, const MakeTensor& make);
std::uint64_t qkv_attention_room_bytes(const gpu::Device& device, const QkvAttentionShape& shape);

// All that lies between the joint projection of queries, keys and values and the one of attention's output: per-head RMSNorm,
// rotary embedding (qk_norm_rope.h), causal attention with grouped heads (attention.h), its output as an operand. Operands
// are f16 with scales on the f16 paths, else f32. Writes `=`.
//
// With `k_cache` and `v_cache`, for generation, rotated keys and values go there, from row `first_key` of each head on,
// and bounds count rows of the cache; key_end[i] is first_key + i + 1. With `apart` tokens are of several texts, whose rows
// in the caches never fall: each goes to row key_end[i] - 1. These are texts from their first token on where `own_end` is given,
// else one token each. Matrix units serve a pass that meets no earlier row
// of the caches, or caches in f16 with more than eight tokens of one text; others read the caches, which are f32 or f16.
struct QkvAttention {
  Operand qkv;                     // (T, (H + 2 Hk) * D): of each token its queries, keys and values
  std::uint32_t heads, key_heads;
  Tensor q_norm, k_norm;           // (D); both empty: no norm
  Tensor position, table;          // (T), u32, and (positions, D/2, 2)
  float eps = 1e-6f;
  Tensor key_begin, key_end;       // (T), u32: query i meets the keys of [key_begin[i], key_end[i])
  std::uint64_t pairs = 0;         // sum of key_end - key_begin, for the profile
  Operand o;                       // (T, H * D)
  Tensor lse;                      // (H, T)
  QkvAttentionRoom room;
  Tensor k_cache = {}, v_cache = {};    // (Hk, capacity, D); f16 where they fit into a binding each
  std::uint32_t first_key = 0;
  Tensor own_begin = {}, own_end = {};  // (T), u32: the bounds within the stream, where no earlier row is met
  std::uint32_t most_keys = 0;          // that a query meets; 0: all rows of the caches so far
  bool apart = false;                   // of several texts; caches fit into a binding each
};
void record(gpu::Recorder& recorder, const QkvAttention& op);

// The gradient of qkv. Of the forward pass qkv, o and lse must be kept; all else is made again.
struct QkvAttentionBackward {
  QkvAttention forward;  // without caches; key_end is i + 1
  Tensor query_end;      // (T), u32: the segment's end
  Operand d_o;           // (T, H * D)
  Operand d_qkv;         // (T, (H + 2 Hk) * D)
};
void record(gpu::Recorder& recorder, const QkvAttentionBackward& op);

}  // namespace nibble
