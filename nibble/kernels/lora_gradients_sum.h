#pragma once

#include "nibble/kernels/lora_matrix_plan.h"

#include <span>

namespace nibble::detail {

// Partial sums of one kind of gradient that wait to be added to it.
struct LoraSum {
  LoraPlan plan;
  std::uint32_t rank, padded_rank;
  std::uint32_t first;  // where they begin in the scratch, in elements
  std::array<Tensor, 3> targets;
  std::uint32_t n_stride, c_stride;  // element (n, c) of a projection lies at n * n_stride + c * c_stride
  std::array<float, 3> factors;  // of each projection
};

constexpr std::size_t most_lora_sums = 8;  // two of each of a layer's four joint weights

// Adds up to so many of one rank, in one dispatch where all targets are parts of one buffer that a binding holds.
void record_sums(gpu::Recorder&, const Tensor& scratch, std::span<const LoraSum> sums);

}  // namespace nibble::detail
