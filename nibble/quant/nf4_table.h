#pragma once

#include <array>
#include <cstdint>

#include "nibble/base/nf4_table.h"

namespace nibble {

// The midpoints of neighbouring codes, computed in f32. The code of x is the number of thresholds below it, so a tie
// goes to the lower code. (Four of bitsandbytes' CUDA literals lie halfway between two floats; this is the choice of
// its PyTorch path.)
inline constexpr std::array<float, 15> nf4_thresholds = [] {
  std::array<float, 15> thresholds{};
  for (std::size_t i = 0; i < thresholds.size(); ++i) thresholds[i] = (nf4_codes[i] + nf4_codes[i + 1]) / 2.0f;
  return thresholds;
}();

// The code of a value that was divided by its block's largest magnitude.
constexpr std::uint8_t nf4_code(float scaled) {
  std::uint8_t code = 0;
  for (const float threshold : nf4_thresholds) code = static_cast<std::uint8_t>(code + (scaled > threshold ? 1 : 0));
  return code;
}

}  // namespace nibble
