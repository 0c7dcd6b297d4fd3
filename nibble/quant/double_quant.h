#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "nibble/base/dynamic_map.h"

// Double quantisation (QLoRA, section 3): the scales of NF4 themselves in 8 bits, as bitsandbytes stores them.
namespace nibble {

constexpr std::size_t nested_block_size = 256;

struct DoubleQuantized {
  std::vector<std::uint8_t> codes;   // one a scale
  std::vector<float> nested_absmax;  // one for each 256 scales
  float offset = 0;                  // the mean of the scales
};

// The mean as PyTorch takes it on a GPU, the sum times 1 / count in f32; the sum here is in f64, and where it has more than 24 bits
// PyTorch's, in f32 and in the order of its blocks, may differ in the last one.
float mean_scale(std::span<const float> absmax);

// Quantises the scales: offset = mean_scale, then each block of 256 of what is left by the nearest entry of dynamic_map(), a tie
// going to the lower one.
DoubleQuantized double_quantize(std::span<const float> absmax);
// The same about a given offset.
DoubleQuantized double_quantize(std::span<const float> absmax, float offset);

struct DoubleQuantizedView {
  std::span<const std::uint8_t> codes;
  std::span<const float> map;            // 256 entries
  std::span<const float> nested_absmax;  // one for each `block_size` codes
  float offset = 0;
  std::size_t block_size = nested_block_size;
};

// out[i] = map[codes[i]] * nested_absmax[i / block_size] + offset, each step rounded to f32 as bitsandbytes does.
// DataError where the lengths do not fit each other.
void double_dequantize(const DoubleQuantizedView& view, std::span<float> out);

}  // namespace nibble
