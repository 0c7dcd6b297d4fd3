#include "nibble/base/dynamic_map.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

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

std::array<float, 256> make_dynamic_map(bool has_signs) {
  constexpr std::array<float, 7> decades{1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  std::vector<float> entries{0.0f, 1.0f};
  for (std::size_t decade = 0; decade < decades.size(); ++decade) {
    const auto bounds = linspace((std::size_t{has_signs ? 1u : 2u} << decade) + 1);
    for (std::size_t i = 0; i + 1 < bounds.size(); ++i) {
      const float mean = (bounds[i] + bounds[i + 1]) / 2.0f;
      entries.push_back(decades[decade] * mean);
      if (has_signs) entries.push_back(-decades[decade] * mean);
    }
  }
  std::sort(entries.begin(), entries.end());
  std::array<float, 256> map{};
  std::copy(entries.begin(), entries.end(), map.begin());
  return map;
}

}  // namespace

const std::array<float, 256>& dynamic_map() {
  static const std::array<float, 256> map = make_dynamic_map(true);
  return map;
}

const std::array<float, 256>& unsigned_dynamic_map() {
  static const std::array<float, 256> map = make_dynamic_map(false);
  return map;
}

std::uint8_t nearest_code(const std::array<float, 256>& map, float value) {
  const auto above = static_cast<std::size_t>(std::lower_bound(map.begin(), map.end(), value) - map.begin());
  if (above == 0) return 0;
  if (above == map.size()) return 255;
  // The distances are compared in f32, as bitsandbytes compares them.
  return static_cast<std::uint8_t>(map[above] - value < value - map[above - 1] ? above : above - 1);
}

}  // namespace nibble
