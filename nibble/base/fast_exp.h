#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace nibble {

// e^x for x <= 0, to 2e-7 of itself; below -87 as at -87, which is the least that is no subnormal. Plain operations alone, so that
// compilers make vectors of loops over it: x = n ln 2 + r with |r| <= ln 2 / 2, and Taylor's series of e^r to the seventh power,
// whose rest is below 6e-9.
inline float fast_exp(float x) {
  constexpr float log2_e = 0x1.715476p+0f, ln2_high = 0x1.63p-1f, ln2_low = -0x1.bd0106p-13f;  // high times n is exact
  constexpr float to_integer = 0x1.8p+23f;  // what is added to it is rounded to an integer, which its lowest bits then are
  x = std::bit_cast<float>(std::min(std::bit_cast<std::uint32_t>(x), std::bit_cast<std::uint32_t>(-87.0f)));  // the lower the number, the larger its bits
  const float shifted = x * log2_e + to_integer;
  const float n = shifted - to_integer;
  const float r = (x - n * ln2_high) - n * ln2_low;
  float series = 1.0f / 5040;
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(series) + (std::bit_cast<std::uint32_t>(shifted) << 23));
}

}  // namespace nibble
