#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace nibble {

// IEEE binary16, rounded to nearest even as hardware does; overflow gives infinity.
inline std::uint16_t f32_to_f16(float value) {
  return std::bit_cast<std::uint16_t>(static_cast<_Float16>(value));
}

inline float f16_to_f32(std::uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }

inline float bf16_to_f32(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// Rounded to nearest even; a NaN stays a NaN.
inline std::uint16_t f32_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// The power of two that brings `largest` to [2^13, 2^14), as f16 rows and weights are stored: as far above f16's subnormals
// as rounding and its top allow. 1 for zero.
inline float top_of_f16(float largest) {
  if (largest == 0.0f || !std::isfinite(largest)) return 1.0f;
  int exponent = 0;
  std::frexp(largest, &exponent);
  return std::ldexp(1.0f, 14 - exponent);
}

}  // namespace nibble
