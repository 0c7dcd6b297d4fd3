#pragma once

#include "nibble/kernels/operand.h"

#include <cstdint>
#include <optional>
#include <string>

namespace nibble {

namespace detail {

// What a workgroup does at a time: scores of `rows` (queries, or keys in key gradients) by `columns`, and results of
// `rows` by the head dimension, each spread over the subgroups that do one product, some of them side by side.
struct AttentionTile {
  gpu::MatrixConfig matrix;
  std::uint32_t subgroup;  // invocations
  std::uint32_t subgroups;
  std::uint32_t rows, columns;
  std::uint32_t scores_across, results_across;  // subgroups side by side
  bool unroll = true;                           // the loops of a product
  bool own_in_registers = true;                 // else in workgroup memory; needs `unroll`

  std::uint32_t invocations() const { return subgroup * subgroups; }
};

struct AttentionTiles {
  AttentionTile forward, query_gradients, key_gradients;
};

}  // namespace detail

// Attention (attention.h has the formulas) on matrix units, of T tokens that are queries and keys: f16 operands, f32 sums,
// softmax in f32. Where a sum runs over rows of an operand, the rows are brought to one scale, that of the largest.
// The tensors that both passes read; D is 64 or 128.
struct PackedHeads {
  Operand qk;            // (T, (H + Hk) * D), f16, of pack_heads.h
  Operand qkv;           // (T, (H + 2 Hk) * D), f16; the values are its last columns
  Tensor v_most;         // (T), of pack_heads.h
  std::uint32_t heads, key_heads;
  Tensor key_begin, key_end;  // (T), u32: the segment's begin and i + 1; neither falls from one token to the next
  std::uint64_t pairs = 0;    // sum of key_end - key_begin, for the profile; 0: of one segment
  std::uint32_t plan_tokens = 0;  // of the largest stream, so that each takes the same kernels; 0: of this one
  std::optional<detail::AttentionTiles> tiles = {};  // for tests; empty: by the adapter

  std::uint32_t tokens() const { return qk.data.dim(0); }
  std::uint32_t head_dim() const { return qk.data.dim(1) / (heads + key_heads); }
};

// Writes `=`. Rows of o have the scale of the largest value met, so that no head waits for another. With caches, keys and values are
// theirs, the bounds count their rows, and o has the scale 1.
struct PackedAttention {
  PackedHeads of;
  Operand o;   // (T, H * D), f16
  Tensor lse;  // (H, T)
  Tensor k_cache = {}, v_cache = {};  // (Hk, capacity, D), f16
};
void record(gpu::Recorder& recorder, const PackedAttention& op);

// Gradients of the rotated queries and keys and of the values. Writes `=`.
struct PackedAttentionBackward {
  PackedHeads of;
  Tensor query_end;  // (T), u32: the segment's end
  Operand o, d_o;    // (T, H * D), f16
  Tensor lse;        // (H, T)
  Tensor numbers;    // (2, H, T), scratch: o . d_o, and the largest of d_o
  Tensor dq;         // (T, H * D)
  Tensor dkv;        // (packed_attention_parts, T, 2 Hk * D): the gradients of keys, then values; parts are to be added
};
void record(gpu::Recorder& recorder, const PackedAttentionBackward& op);

struct PackedAttentionShape {
  std::uint32_t tokens, heads, key_heads, head_dim;
};

// Whether the adapter has matrices for it, and bindings large enough, of each shorter stream too.
bool packed_attention_fits(const gpu::Device& device, const PackedAttentionShape& shape);

// In how many parts the gradients of keys and values come: short streams have too few blocks of keys for all of a GPU.
std::uint32_t packed_attention_parts(const PackedAttentionShape& shape);
// The most rows that all parts have together, of any number of tokens up to the shape's: just before there is one part less.
std::uint32_t packed_attention_most_rows(const PackedAttentionShape& shape);

namespace detail {

enum class AttentionPass { forward, forward_from_caches, query_gradients, key_gradients };

// The kernel's text.
std::string packed_attention_text(const AttentionTile& tile, AttentionPass pass, std::uint32_t head_dim);

}  // namespace detail

}  // namespace nibble
