#pragma once

#include <optional>
#include <string>

#include "nibble/gpu/adapter.h"

namespace nibble::detail {

// Products of a wide operand x (rows, many columns) in f16 with a narrow one, on matrix units.
//
// down, up:  sums(part, M, n) = x(M, columns of the part) * w, where w is (n, columns) or (columns, n)
// gradients: sums(part, c, N) = w(rows of the part, c)^T * x(rows of the part, N)
// backward:  both of the last two, the sums of `up` by blocks of columns
//
// Each reads x once through workgroup memory, if n or c do not exceed `most_narrow`; `backward` takes no more.
enum class LoraPass { down, up, gradients, backward };

// What a workgroup does: `block` rows (columns) of x with up to `most_narrow` of the narrow operand, in steps of `step`
// of the inner dimension. Subgroups lie one after the other along the block.
struct LoraTile {
  gpu::MatrixConfig matrix;
  std::uint32_t subgroup;  // invocations
  std::uint32_t subgroups;
  std::uint32_t block, step, most_narrow;

  std::uint32_t invocations() const { return subgroup * subgroups; }
};

// Empty where the adapter has no matrices that suit, or too little workgroup memory.
std::optional<LoraTile> lora_tile(const gpu::AdapterInfo& info, LoraPass pass);

struct LoraText {
  LoraPass pass;
  std::uint32_t narrow;      // columns of the narrow operand in a workgroup, a multiple of 16
  bool whole_steps = false;  // the columns of every segment divide into steps; of `down` and `up`
  bool dropout = false;      // of x, in `down` and `gradients`
};

// Bytes of workgroup memory.
std::uint32_t lora_memory(const LoraTile& tile, const LoraText& text);

// The kernel's text; `random` is that of lib/random.wgsl.
std::string lora_matrix_text(const LoraTile& tile, const LoraText& text, std::string_view random);

}  // namespace nibble::detail
