#pragma once

#include "nibble/kernels/lora_matrix.h"
#include "nibble/kernels/lora_matrix_text.h"

namespace nibble::detail {

// As in the texts: first vector of 8 columns of x, end, first part or block, dropout's stream.
using LoraSegment = std::array<std::uint32_t, 4>;

struct LoraParams {
  std::array<LoraSegment, 3> segments;
  std::uint32_t rows, x_stride, w_stride, width, narrow_blocks, blocks, parts, length, part_size, powers;
  std::uint32_t rows_at, padded_rows, seed, first_row, threshold;
  std::uint32_t padding;
};

// What a pass does: `width` columns of the narrow operand for each of `ranges`, which are vectors of 8 columns of x.
struct LoraProblem {
  LoraPass pass;
  std::uint32_t width;
  std::vector<std::array<std::uint32_t, 2>> ranges;
};

LoraProblem lora_down_problem(const LoraGroupShape& shape, bool dropout);
// The columns of projections that `adapted` names; those of others are left out.
LoraProblem lora_up_problem(const LoraGroupShape& shape, const std::array<bool, 3>& adapted);
// Another pass over the same columns.
LoraProblem lora_with(LoraProblem problem, LoraPass pass);

// How a pass over so many rows is cut into workgroups.
struct LoraPlan {
  LoraTile tile;
  LoraText text;
  LoraParams params{};
  std::uint64_t scratch = 0;   // elements of partial sums
  std::uint64_t most_scratch = 0;  // for any number of rows up to these: fewer may be cut into more parts
  std::uint64_t row_sums = 0;  // and of those of `up` in `backward`

  std::uint64_t workgroups() const { return std::uint64_t{params.narrow_blocks} * params.blocks * params.parts; }
};

LoraPlan lora_plan(const gpu::Device& device, const LoraProblem& problem, std::uint32_t rows);
// Whether `backward` serves.
bool lora_reads_once(const gpu::Device& device, const LoraGroupShape& shape);
void set_dropout(LoraPlan& plan, const LoraGroupDropout& dropout, std::uint32_t first_row);

}  // namespace nibble::detail
