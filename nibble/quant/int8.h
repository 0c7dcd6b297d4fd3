#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace nibble {

inline constexpr std::size_t int8_block = 64;  // elements that share one scale

// Codes and scales of blocks over the flattened values: scale = largest magnitude / 127, code = value / scale rounded to nearest,
// ties to even; value = code * scale. A block of zeros has scale 0. The last block may be short. The result is the same for any
// number of threads (0: as many as the processor has).
void int8_quantize(std::span<const float> values, std::span<std::int8_t> codes, std::span<float> scales, unsigned threads = 0);

// value = code * scale.
void int8_dequantize(std::span<const std::int8_t> codes, std::span<const float> scales, std::span<float> out);

}  // namespace nibble
