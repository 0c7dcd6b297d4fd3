// Blocks of 256 values with scales in 4 or 6 bits for parts of 16 or 32.

#include "nibble/quant/ggml_bytes.h"

namespace nibble {
namespace {

constexpr int part_values = 32;
constexpr int block_parts = 8;

// Scale and minimum of a part of 32, 6 bits each: the first four parts lie in the low bits of bytes 0-3 and 4-7, the
// others in the halves of bytes 8-11 with their top bits in those of bytes 0-7.
struct ScaleMin {
  std::uint32_t scale, min;
};
ScaleMin scale_min(GgmlBytes scales, std::size_t part) {
  if (part < 4) return {scales[part] & 63u, scales[part + 4] & 63u};
  const std::size_t i = part - 4;
  return {scales.low(8 + i) | (scales[i] >> 6) << 4, scales.high(8 + i) | (scales[4 + i] >> 6) << 4};
}

// The two bits of value i: 32 bytes hold 128 values, one quarter in each pair of bits.
std::uint32_t two_bits(GgmlBytes bytes, int i) {
  return bytes[static_cast<std::size_t>(i / 128 * 32 + i % 32)] >> (i / 32 % 4 * 2) & 3u;
}

// q times the part's scale less its minimum, with q(part, i) from 0 up.
template <typename Codes>
void scaled_parts(GgmlBytes block, float* out, Codes q) {
  const float d = block.f16(0), dmin = block.f16(2);
  for (int part = 0; part < block_parts; ++part) {
    const auto [scale, min] = scale_min(block.from(4), static_cast<std::size_t>(part));
    const float by = d * static_cast<float>(scale), less = dmin * static_cast<float>(min);
    for (int i = 0; i < part_values; ++i) *out++ = by * static_cast<float>(q(part, i)) - less;
  }
}

}  // namespace

void dequantize_q2_k(GgmlBytes block, float* out) {
  const GgmlBytes codes = block.from(16);
  const float d = block.f16(80), dmin = block.f16(82);
  for (int part = 0; part < 16; ++part) {
    const auto at = static_cast<std::size_t>(part);
    const float by = d * static_cast<float>(block.low(at)), less = dmin * static_cast<float>(block.high(at));
    for (int i = 16 * part; i < 16 * part + 16; ++i) out[i] = by * static_cast<float>(two_bits(codes, i)) - less;
  }
}

void dequantize_q3_k(GgmlBytes block, float* out) {
  const GgmlBytes high = block, codes = block.from(32), scales = block.from(96);
  const float d = block.f16(108);
  for (int part = 0; part < 16; ++part) {
    const auto at = static_cast<std::size_t>(part % 8);
    const std::uint32_t low_bits = part < 8 ? scales.low(at) : scales.high(at);
    const std::uint32_t high_bits = scales[static_cast<std::size_t>(8 + part % 4)] >> (part / 4 * 2) & 3u;
    const float by = d * static_cast<float>(static_cast<int>(low_bits | high_bits << 4) - 32);
    for (int i = 16 * part; i < 16 * part + 16; ++i) {
      const bool is_set =
          (high[static_cast<std::size_t>(i % 32)] >> (i / 32) & 1u) != 0;  // a bit that is not set takes 4 off
      out[i] = by * static_cast<float>(static_cast<int>(two_bits(codes, i)) - (is_set ? 0 : 4));
    }
  }
}

void dequantize_q4_k(GgmlBytes block, float* out) {
  const GgmlBytes codes = block.from(16);
  scaled_parts(block, out, [&](int part, int i) {
    const auto at = static_cast<std::size_t>(part / 2 * 32 + i);
    return part % 2 == 0 ? codes.low(at) : codes.high(at);
  });
}

void dequantize_q5_k(GgmlBytes block, float* out) {
  const GgmlBytes high = block.from(16), codes = block.from(48);
  scaled_parts(block, out, [&](int part, int i) {
    const auto at = static_cast<std::size_t>(part / 2 * 32 + i);
    const std::uint32_t low_bits = part % 2 == 0 ? codes.low(at) : codes.high(at);
    return low_bits | (high[static_cast<std::size_t>(i)] >> part & 1u) << 4;
  });
}

void dequantize_q6_k(GgmlBytes block, float* out) {
  const GgmlBytes low = block, high = block.from(128), scales = block.from(192);
  const float d = block.f16(208);
  for (int part = 0; part < 16; ++part) {
    const float by = d * static_cast<float>(scales.i8(static_cast<std::size_t>(part)));
    for (int i = 16 * part; i < 16 * part + 16; ++i) {
      const auto at = static_cast<std::size_t>(i / 128 * 64 + i % 64);
      const std::uint32_t low_bits = i / 64 % 2 == 0 ? low.low(at) : low.high(at);
      out[i] = by * static_cast<float>(static_cast<int>(low_bits | two_bits(high, i) << 4) - 32);
    }
  }
}

void dequantize_iq4_xs(GgmlBytes block, float* out) {
  const GgmlBytes codes = block.from(8);
  const float d = block.f16(0);
  const auto high_bits = block.number<std::uint16_t>(2);
  for (int part = 0; part < block_parts; ++part) {
    const auto low_at = static_cast<std::size_t>(4 + part / 2);
    const std::uint32_t low_bits = part % 2 == 0 ? block.low(low_at) : block.high(low_at);
    const float by = d * static_cast<float>(static_cast<int>(low_bits | (high_bits >> 2 * part & 3u) << 4) - 32);
    for (int i = 0; i < part_values; ++i) {
      const auto at = static_cast<std::size_t>(part * 16 + i % 16);
      *out++ = by * static_cast<float>(iq4_values[i < 16 ? codes.low(at) : codes.high(at)]);
    }
  }
}

}  // namespace nibble
