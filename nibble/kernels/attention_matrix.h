#pragma once

#include "nibble/kernels/attention.h"

#include <string>

namespace nibble::detail {

// Attention on matrix units: f16 operands, f32 sums, softmax in f32. attention_pack.wgsl first writes the operands; where
// a sum runs over rows of an operand, their scales are part of the f16 weights that multiply them.

// What a workgroup does at a time: scores of `rows` (queries, or keys in key gradients) by `columns`, and results of
// `rows` by the head dimension, each spread over the subgroups, some of them side by side.
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

struct AttentionShape {
  std::uint32_t heads, key_heads, tokens, head_dim;
  double pairs;  // of queries and keys that meet
};

// Whether `matrix` serves, in that room. Throws where the variant was asked for and cannot.
bool attention_matrix_serves(const gpu::Device& device, const AttentionRoom& room, const AttentionShape& shape,
                             std::uint32_t capacity, std::optional<AttentionVariant> asked);

void record_matrix(gpu::Recorder& recorder, const Attention& op, const AttentionShape& shape);
void record_matrix(gpu::Recorder& recorder, const AttentionBackward& op, const AttentionShape& shape);

enum class AttentionPass { forward, query_gradients, key_gradients };

// The kernel's text.
std::string attention_matrix_text(const AttentionTile& tile, AttentionPass pass, std::uint32_t head_dim);

}  // namespace nibble::detail
