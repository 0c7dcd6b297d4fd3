#pragma once

#include "nibble/kernels/kernel.h"

#include <array>

namespace nibble {

// h[t, c] (T, R) f16 = factor * the sum of a segment's parts in their order: the second pass of a narrow product (lora_matrix.h).
struct LoraRowsSum {
  Tensor partial;  // f32: parts of (padded_rows, padded_width), of T and `width` that count
  Tensor h;
  std::array<std::uint32_t, 4> starts{};  // first part of each segment, which has `width` columns of h, and the end of the last
  std::uint32_t width = 0, padded_width = 0, padded_rows = 0;
  float factor = 1.0f;
};
void record(gpu::Recorder&, const LoraRowsSum&);

}  // namespace nibble
