#pragma once

#include <cstddef>
#include <cstdint>

#include "nibble/base/dtype.h"
#include "nibble/quant/nf4.h"

// Private to quant: the encoders, one for each instruction set, with equal results.
namespace nibble {

// `blocks` whole blocks of `block_size` values, a multiple of 64.
struct Nf4Blocks {
  const std::byte* source;
  std::size_t blocks;
  std::size_t block_size;
  std::uint8_t* packed;
  float* absmax;
  NibbleOrder order;
};

// What 1e-38 is for: the reciprocal of it is finite.
inline constexpr float nf4_smallest_absmax = 1e-38f;

// Each returns false when a value was not finite; the output is then undefined.
bool nf4_encode_scalar(DType dtype, const Nf4Blocks& task);
bool nf4_encode_avx2(DType dtype, const Nf4Blocks& task);
bool nf4_encode_avx512(DType dtype, const Nf4Blocks& task);

// By the given one, which this processor has.
bool nf4_encode(DType dtype, const Nf4Blocks& task, Simd simd);

// The first of `count` values times `factor` as f16, in whole groups of eight; returns how many.
std::size_t halves_avx2(const float* values, std::size_t count, float factor, std::uint16_t* out);

// A block of any number of values, for the end of a tensor.
bool nf4_encode_short_block(DType dtype, const std::byte* source, std::size_t count, std::uint8_t* packed,
                            float* absmax, NibbleOrder order);

// The thresholds as a binary search tree in an array: the children of i are 2i (not above) and 2i + 1. Four steps from
// i = 1 on end at 16 + code. Entry 0 is unused.
alignas(64) extern const float nf4_tree[16];

// The value at an index of a tensor that may be unaligned.
float nf4_load(DType dtype, const std::byte* source, std::size_t index);

}  // namespace nibble
