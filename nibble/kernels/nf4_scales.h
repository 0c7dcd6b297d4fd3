#pragma once

#include "nibble/kernels/kernel.h"

#include <array>
#include <span>

namespace nibble {

// Where scales of some matrices of one size lie among those that are decoded together.
struct Nf4ScalePart {
  std::uint32_t first = 0, count = 0;  // scales; `first` is a multiple of 4
  std::uint32_t of_matrix = 0;         // scales of one
  std::uint32_t first_block = 0;       // of those of 256 scales, of which each matrix has its own
};

// Double quantisation undone (nibble/quant/double_quant.h), with the same bits as there:
//   absmax[i] = map[codes[i]] * blocks[b].x + blocks[b].y, b the block of scale i,
// each step rounded to f32. What lies between two parts becomes 0.
struct DecodeNf4Scales {
  static constexpr std::size_t most_parts = 7;

  Tensor codes;   // (scales / 4) u32 of four codes each, the first in the low byte
  Tensor blocks;  // (blocks, 2) f32: largest deviation of a block, and the offset
  Tensor map;     // (256) f32
  std::span<const Nf4ScalePart> parts;  // rising and apart
  Tensor absmax;  // (scales) f32
};
void record(gpu::Recorder&, const DecodeNf4Scales&);

}  // namespace nibble
