#pragma once

#include "nibble/kernels/kernel.h"

#include <array>
#include <vector>

namespace nibble {

// h[t, c] (T, R) f16 = factor * the sum of a segment's parts in their order: the second pass of a narrow product (lora_matrix.h). By
// itself, or beside the weight of the wide one, as that is decoded (nf4.h).
struct LoraRowsSum {
  Tensor partial;  // f32: parts of (padded_rows, padded_width), of which T and `width` count
  Tensor h;
  std::array<std::uint32_t, 4> starts{};  // first part of each segment, which has `width` columns of h, and the end of the last
  std::uint32_t width = 0, padded_width = 0, padded_rows = 0;
  float factor = 1.0f;
};
void record(gpu::Recorder&, const LoraRowsSum&);

namespace detail {

// As in lib/lora_rows_sum_params.wgsl.
struct LoraRowsSumParams {
  std::array<std::uint32_t, 4> starts{};
  std::uint32_t count = 0, row_vectors = 0, width = 0, padded_width = 0, padded_rows = 0;
  float factor = 0;
  std::uint32_t groups = 0;  // workgroups that a kernel takes for it; 0: it adds up nothing
  std::uint32_t padding = 0;
};

// For a kernel with workgroups of so many invocations (a multiple of 32) that adds up rows beside what else it does: appends the
// tensors to its bindings, and what lib/lora_rows_sum.wgsl needs to its prelude.
LoraRowsSumParams add_rows_sum(const LoraRowsSum& op, std::uint32_t invocations, std::vector<gpu::Binding>& bindings, gpu::Prelude& prelude);

// Bytes that it moves.
double rows_sum_bytes(const LoraRowsSum& op);

}  // namespace detail
}  // namespace nibble
