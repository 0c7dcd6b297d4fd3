#pragma once

#include "nibble/kernels/lora_matrix_plan.h"
#include "nibble/kernels/lora_rows_sum.h"

#include <span>

// What the sources of lora_matrix.h share.
namespace nibble::detail {

constexpr std::uint32_t lora_lane = 8;  // elements of the 16 bytes that operands are read in
constexpr float lora_hidden_unit = 0x1p-12f;

float keep_scale(const LoraGroupDropout& dropout);
gpu::Kernel lora_kernel(gpu::Device& device, const LoraPlan& plan);
gpu::Work lora_work(const LoraPlan& plan, const LoraProblem& problem);
// Rows of operands of so many columns at most that a dispatch takes.
std::vector<gpu::RowRange> lora_row_slices(const gpu::Device& device, const LoraGroupShape& shape, std::uint32_t rows, std::uint32_t columns);
Tensor scratch_part(const Tensor& scratch, std::uint64_t first, std::uint64_t elements);
void check_lora_rows(const LoraGroup& group, const Tensor& x, std::uint32_t columns, const Tensor& h);

// h = x w * factor.
struct LoraRows {
  LoraProblem problem;
  const Tensor &x, &w, &h, &scratch;
  LoraGroupDropout dropout;
};
// Records all but the last rows' second pass, which it returns.
LoraRowsSum record_rows(gpu::Recorder& recorder, const LoraGroupShape& shape, const LoraRows& op);

// The second pass of h = x w: `partial` holds parts of so many rows.
LoraRowsSum rows_sum_of(const LoraPlan& plan, const Tensor& partial, std::uint32_t padded_rows, std::uint32_t parts, const Tensor& h, float factor);

}  // namespace nibble::detail
