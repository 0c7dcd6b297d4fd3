#pragma once

#include <array>
#include <cstdint>
#include <string>

// The NormalFloat4 code of Dettmers et al., "QLoRA" (arXiv 2305.14314), with the constants that bitsandbytes uses. This
// is its only definition: the host computes with it and the shaders get their text from it.
namespace nibble {

// What each code stands for, as a share of its block's largest magnitude.
inline constexpr std::array<float, 16> nf4_values{
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

// The midpoints of neighbouring values, computed in f32. The code of x is the number of thresholds below it, so a tie
// goes to the lower code. (Four of bitsandbytes' CUDA literals lie halfway between two floats; this is the choice of
// its PyTorch path.)
inline constexpr std::array<float, 15> nf4_thresholds = [] {
  std::array<float, 15> thresholds{};
  for (std::size_t i = 0; i < thresholds.size(); ++i) {
    thresholds[i] = (nf4_values[i] + nf4_values[i + 1]) / 2.0f;
  }
  return thresholds;
}();

// The code of a value that was divided by its block's largest magnitude.
constexpr std::uint8_t nf4_code(float scaled) {
  std::uint8_t code = 0;
  for (const float threshold : nf4_thresholds) code = static_cast<std::uint8_t>(code + (scaled > threshold ? 1 : 0));
  return code;
}

// "const nf4_values = array<f32, 16>(...);" with digits that read back bit for bit.
std::string nf4_wgsl_table();

}  // namespace nibble
