#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "nibble/base/half.h"

// Private to quant: a block of ggml's formats as bytes.
namespace nibble {

// Unaligned little-endian bytes.
class GgmlBytes {
 public:
  explicit GgmlBytes(const std::byte* at) : at_(at) {}

  std::uint32_t operator[](std::size_t i) const { return static_cast<std::uint8_t>(at_[i]); }
  int i8(std::size_t i) const { return static_cast<std::int8_t>(at_[i]); }
  std::uint32_t low(std::size_t i) const { return (*this)[i] & 15u; }
  std::uint32_t high(std::size_t i) const { return (*this)[i] >> 4; }
  float f16(std::size_t i) const { return f16_to_f32(number<std::uint16_t>(i)); }
  GgmlBytes from(std::size_t i) const { return GgmlBytes(at_ + i); }

  template <typename T>
  T number(std::size_t i) const {
    T value;
    std::memcpy(&value, at_ + i, sizeof value);
    return value;
  }

 private:
  const std::byte* at_;
};

// One block of 256 values of the "K" formats and of IQ4_XS.
void dequantize_q2_k(GgmlBytes block, float* out);
void dequantize_q3_k(GgmlBytes block, float* out);
void dequantize_q4_k(GgmlBytes block, float* out);
void dequantize_q5_k(GgmlBytes block, float* out);
void dequantize_q6_k(GgmlBytes block, float* out);
void dequantize_iq4_xs(GgmlBytes block, float* out);

// The sixteen values of IQ4_NL and IQ4_XS.
inline constexpr int iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

}  // namespace nibble
