#include "nibble/quant/int8.h"

#include "nibble/base/error.h"
#include "nibble/quant/parallel.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

constexpr std::size_t least_int8_blocks_a_thread = 1024;

void check_sizes(std::size_t values, std::size_t codes, std::size_t scales) {
  check(codes == values && scales == (values + int8_block - 1) / int8_block, "int8", "{} values, {} codes and {} scales do not belong together.",
        values, codes, scales);
}

float quantize_block(std::span<const float> values, std::span<std::int8_t> codes) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::fabs(value));
  const float scale = largest / 127.0f;
  // Blocks so small that their scale is subnormal are zeros.
  const float inverse = std::isnormal(scale) ? 1.0f / scale : 0.0f;
  for (std::size_t i = 0; i < values.size(); ++i) codes[i] = static_cast<std::int8_t>(std::clamp(std::nearbyint(values[i] * inverse), -127.0f, 127.0f));
  return inverse > 0 ? scale : 0.0f;
}

}  // namespace

void int8_quantize(std::span<const float> values, std::span<std::int8_t> codes, std::span<float> scales, unsigned threads) {
  check_sizes(values.size(), codes.size(), scales.size());
  parallel_ranges(scales.size(), least_int8_blocks_a_thread, threads, [&](std::size_t begin, std::size_t end) {
    for (std::size_t b = begin; b < end; ++b) {
      const std::size_t first = b * int8_block, size = std::min(int8_block, values.size() - first);
      scales[b] = quantize_block(values.subspan(first, size), codes.subspan(first, size));
    }
  });
}

void int8_dequantize(std::span<const std::int8_t> codes, std::span<const float> scales, std::span<float> out) {
  check_sizes(out.size(), codes.size(), scales.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(codes[i]) * scales[i / int8_block];
}

}  // namespace nibble
