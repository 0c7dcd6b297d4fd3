#include "nibble/quant/double_quant.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "nibble/base/error.h"
#include "nibble/quant/nf4_kernels.h"

namespace nibble {
namespace {

// torch.linspace(0.1, 1, steps, float32): from each end up to the middle, with a fused multiply-add.
std::vector<float> linspace(std::size_t steps) {
  constexpr float start = 0.1f;
  constexpr float end = 1.0f;
  const float step = (end - start) / static_cast<float>(steps - 1);
  std::vector<float> points(steps);
  for (std::size_t i = 0; i < steps; ++i) {
    points[i] = i < steps / 2 ? std::fma(step, static_cast<float>(i), start)
                              : std::fma(-step, static_cast<float>(steps - 1 - i), end);
  }
  return points;
}

// Seven decades, each with twice the points of the one below.
std::array<float, 256> make_dynamic_map() {
  constexpr std::array<float, 7> decades{1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  std::vector<float> entries{0.0f, 1.0f};
  for (std::size_t decade = 0; decade < decades.size(); ++decade) {
    const auto bounds = linspace((std::size_t{1} << decade) + 1);
    for (std::size_t i = 0; i + 1 < bounds.size(); ++i) {
      const float mean = (bounds[i] + bounds[i + 1]) / 2.0f;
      entries.push_back(decades[decade] * mean);
      entries.push_back(-decades[decade] * mean);
    }
  }
  std::sort(entries.begin(), entries.end());
  std::array<float, 256> map{};
  std::copy(entries.begin(), entries.end(), map.begin());
  return map;
}

std::uint8_t nearest(float value) {
  const auto& map = dynamic_map();
  const auto above = static_cast<std::size_t>(std::lower_bound(map.begin(), map.end(), value) - map.begin());
  if (above == 0) return 0;
  if (above == map.size()) return 255;
  // The distances are compared in f32, as the reference compares them.
  return static_cast<std::uint8_t>(map[above] - value < value - map[above - 1] ? above : above - 1);
}

}  // namespace

const std::array<float, 256>& dynamic_map() {
  static const std::array<float, 256> map = make_dynamic_map();
  return map;
}

DoubleQuantized double_quantize(std::span<const float> absmax) {
  if (absmax.empty()) return {};
  const double sum = std::accumulate(absmax.begin(), absmax.end(), 0.0);
  return double_quantize(absmax, static_cast<float>(sum / static_cast<double>(absmax.size())));
}

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
    for (const float value : block) result.codes.push_back(nearest((value - offset) * scale));
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
