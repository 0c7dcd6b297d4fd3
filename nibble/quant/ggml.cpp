#include "nibble/quant/ggml.h"

#include <algorithm>
#include <cmath>

#include "nibble/base/error.h"
#include "nibble/quant/ggml_bytes.h"

namespace nibble {
namespace {

constexpr std::size_t half_block =
    16;  // of the formats with blocks of 32: low halves of bytes come before the high ones

// out = value(code) with codes of 4 bits in 16 bytes.
template <typename Value>
void each_nibble(GgmlBytes codes, float* out, Value value) {
  for (std::size_t i = 0; i < half_block; ++i) {
    out[i] = value(codes.low(i), i);
    out[half_block + i] = value(codes.high(i), half_block + i);
  }
}

std::uint32_t bit_of(std::uint32_t bits, std::size_t i) { return bits >> i & 1u; }

void dequantize_q4_0(GgmlBytes block, float* out) {
  const float d = block.f16(0);
  each_nibble(block.from(2), out,
              [&](std::uint32_t q, std::size_t) { return d * static_cast<float>(static_cast<int>(q) - 8); });
}

void dequantize_q4_1(GgmlBytes block, float* out) {
  const float d = block.f16(0), m = block.f16(2);
  each_nibble(block.from(4), out, [&](std::uint32_t q, std::size_t) { return d * static_cast<float>(q) + m; });
}

void dequantize_q5_0(GgmlBytes block, float* out) {
  const float d = block.f16(0);
  const auto high = block.number<std::uint32_t>(2);
  each_nibble(block.from(6), out, [&](std::uint32_t q, std::size_t i) {
    return d * static_cast<float>(static_cast<int>(q | bit_of(high, i) << 4) - 16);
  });
}

void dequantize_q5_1(GgmlBytes block, float* out) {
  const float d = block.f16(0), m = block.f16(2);
  const auto high = block.number<std::uint32_t>(4);
  each_nibble(block.from(8), out,
              [&](std::uint32_t q, std::size_t i) { return d * static_cast<float>(q | bit_of(high, i) << 4) + m; });
}

void dequantize_q8_0(GgmlBytes block, float* out) {
  const float d = block.f16(0);
  for (std::size_t i = 0; i < 2 * half_block; ++i) out[i] = static_cast<float>(block.i8(2 + i)) * d;
}

void dequantize_iq4_nl(GgmlBytes block, float* out) {
  const float d = block.f16(0);
  each_nibble(block.from(2), out, [&](std::uint32_t q, std::size_t) { return d * static_cast<float>(iq4_values[q]); });
}

void dequantize_f32(GgmlBytes block, float* out) { *out = block.number<float>(0); }
void dequantize_f16(GgmlBytes block, float* out) { *out = block.f16(0); }
void dequantize_bf16(GgmlBytes block, float* out) { *out = bf16_to_f32(block.number<std::uint16_t>(0)); }

using Dequantize = void (*)(GgmlBytes block, float* out);

Dequantize decoder_of(GgmlType type) {
  switch (type) {
    case GgmlType::f32: return dequantize_f32;
    case GgmlType::f16: return dequantize_f16;
    case GgmlType::bf16: return dequantize_bf16;
    case GgmlType::q4_0: return dequantize_q4_0;
    case GgmlType::q4_1: return dequantize_q4_1;
    case GgmlType::q5_0: return dequantize_q5_0;
    case GgmlType::q5_1: return dequantize_q5_1;
    case GgmlType::q8_0: return dequantize_q8_0;
    case GgmlType::q2_k: return dequantize_q2_k;
    case GgmlType::q3_k: return dequantize_q3_k;
    case GgmlType::q4_k: return dequantize_q4_k;
    case GgmlType::q5_k: return dequantize_q5_k;
    case GgmlType::q6_k: return dequantize_q6_k;
    case GgmlType::iq4_nl: return dequantize_iq4_nl;
    case GgmlType::iq4_xs: return dequantize_iq4_xs;
  }
  fail("ggml_dequantize", "Blocks of {} are not decoded.", info_of(type).name);
}

// 0 where d is too small for its inverse to be a number: d itself is 0 in f16 then.
float inverse_of(float d) { return std::isfinite(1.0f / d) ? 1.0f / d : 0.0f; }

template <typename T>
void put(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof value);
}

void quantize_q8_0(const float* values, std::byte* block) {
  float largest = 0;
  for (std::size_t i = 0; i < 32; ++i) largest = std::max(largest, std::abs(values[i]));
  const float d = largest / 127.0f, inverse = inverse_of(d);
  put(block, f32_to_f16(d));
  for (std::size_t i = 0; i < 32; ++i) put(block + 2 + i, static_cast<std::int8_t>(std::round(values[i] * inverse)));
}

void quantize_q4_0(const float* values, std::byte* block) {
  float largest = 0;  // with its sign; the first of equal magnitude
  for (std::size_t i = 0; i < 32; ++i) {
    if (std::abs(values[i]) > std::abs(largest)) largest = values[i];
  }
  const float d = largest / -8.0f, inverse = inverse_of(d);
  put(block, f32_to_f16(d));
  const auto code = [&](float value) {
    return static_cast<std::uint32_t>(std::min(15, static_cast<int>(value * inverse + 8.5f)));
  };
  for (std::size_t i = 0; i < half_block; ++i) {
    put(block + 2 + i, static_cast<std::uint8_t>(code(values[i]) | code(values[half_block + i]) << 4));
  }
}

void quantize_f32(const float* value, std::byte* block) { put(block, *value); }
void quantize_f16(const float* value, std::byte* block) { put(block, f32_to_f16(*value)); }
void quantize_bf16(const float* value, std::byte* block) { put(block, f32_to_bf16(*value)); }

using Quantize = void (*)(const float* values, std::byte* block);

Quantize encoder_of(GgmlType type) {
  switch (type) {
    case GgmlType::f32: return quantize_f32;
    case GgmlType::f16: return quantize_f16;
    case GgmlType::bf16: return quantize_bf16;
    case GgmlType::q8_0: return quantize_q8_0;
    case GgmlType::q4_0: return quantize_q4_0;
    default: fail("ggml_quantize", "Blocks of {} are not made here.", info_of(type).name);
  }
}

std::size_t blocks_of(GgmlType type, std::size_t values, std::size_t bytes) {
  const GgmlTypeInfo& info = info_of(type);
  check(values % info.values == 0 && values / info.values * info.bytes == bytes, "ggml",
        "{} values and {} bytes are no whole blocks of {}.", values, bytes, info.name);
  return values / info.values;
}

}  // namespace

void ggml_dequantize(GgmlType type, std::span<const std::byte> blocks, std::span<float> values) {
  const GgmlTypeInfo& info = info_of(type);
  const std::size_t count = blocks_of(type, values.size(), blocks.size());
  const Dequantize decode = decoder_of(type);
  for (std::size_t i = 0; i < count; ++i)
    decode(GgmlBytes(blocks.data() + i * info.bytes), values.data() + i * info.values);
}

void ggml_quantize(GgmlType type, std::span<const float> values, std::span<std::byte> blocks) {
  const GgmlTypeInfo& info = info_of(type);
  const std::size_t count = blocks_of(type, values.size(), blocks.size());
  const Quantize encode = encoder_of(type);
  for (std::size_t i = 0; i < count; ++i) encode(values.data() + i * info.values, blocks.data() + i * info.bytes);
}

}  // namespace nibble
