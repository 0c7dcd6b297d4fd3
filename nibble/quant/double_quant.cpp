#include "nibble/quant/double_quant.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "nibble/base/error.h"
#include "nibble/quant/nf4_kernels.h"

namespace nibble {

float mean_scale(std::span<const float> absmax) {
  if (absmax.empty()) return 0;
  const auto sum = static_cast<float>(std::accumulate(absmax.begin(), absmax.end(), 0.0));
  return sum * (1.0f / static_cast<float>(absmax.size()));
}

DoubleQuantized double_quantize(std::span<const float> absmax) { return double_quantize(absmax, mean_scale(absmax)); }

DoubleQuantized double_quantize(std::span<const float> absmax, float offset) {
  DoubleQuantized result;
  result.offset = offset;
  result.codes.reserve(absmax.size());
  for (std::size_t begin = 0; begin < absmax.size(); begin += nested_block_size) {
    const auto block = absmax.subspan(begin, std::min(nested_block_size, absmax.size() - begin));
    float largest = 0;
    for (const float value : block) {
      check<DataError>(std::isfinite(value), "double_quantize", "The scale {} is not a finite number.", value);
      largest = std::max(largest, std::abs(value - offset));
    }
    result.nested_absmax.push_back(largest);
    const float scale = 1.0f / std::max(largest, nf4_smallest_absmax);
    for (const float value : block) result.codes.push_back(nearest_code(dynamic_map(), (value - offset) * scale));
  }
  return result;
}

void double_dequantize(const DoubleQuantizedView& view, std::span<float> out) {
  check<DataError>(view.block_size > 0 && view.map.size() == 256 && view.codes.size() == out.size() &&
                       view.nested_absmax.size() == (out.size() + view.block_size - 1) / view.block_size,
                   "double_dequantize",
                   "{} codes, a map of {} and {} nested scales for blocks of {} do not make {} scales.",
                   view.codes.size(), view.map.size(), view.nested_absmax.size(), view.block_size, out.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    const float deviation = view.map[view.codes[i]] * view.nested_absmax[i / view.block_size];
    out[i] = deviation + view.offset;
  }
}

}  // namespace nibble
