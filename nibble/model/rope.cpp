#include "nibble/model/rope.h"

#include "nibble/kernels/qk_norm_rope.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

namespace nibble {
namespace {

// Waves longer than the texts of pre-training are stretched whole, short ones not at all, those between in part.
float llama3_frequency(float frequency, const RopeConfig& rope) {
  const float wavelength = 2 * std::numbers::pi_v<float> / frequency;
  if (wavelength < rope.original_positions / rope.high_freq_factor) return frequency;
  const float stretched = frequency / static_cast<float>(rope.factor);
  if (wavelength > rope.original_positions / rope.low_freq_factor) return stretched;
  const float smooth = (static_cast<float>(rope.original_positions) / wavelength - static_cast<float>(rope.low_freq_factor)) /
                       static_cast<float>(rope.high_freq_factor - rope.low_freq_factor);
  return (1 - smooth) * stretched + smooth * frequency;
}

// The dimension that turns so often within the texts of pre-training.
double yarn_dimension(double turns, double head_dim, const RopeConfig& rope) {
  return head_dim * std::log(rope.original_positions / (turns * 2 * std::numbers::pi)) / (2 * std::log(double{rope.theta}));
}

// Fast dimensions stay, slow ones are stretched, with a ramp between.
void yarn_frequencies(std::span<float> frequencies, std::uint32_t head_dim, const RopeConfig& rope) {
  double low = yarn_dimension(rope.beta_fast, head_dim, rope), high = yarn_dimension(rope.beta_slow, head_dim, rope);
  if (rope.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0), high = std::min(high, head_dim - 1.0);
  if (low == high) high += 0.001;
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const float ramp = std::clamp((static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f, 1.0f);
    const float kept = 1 - ramp;
    frequencies[i] = frequencies[i] / static_cast<float>(rope.factor) * (1 - kept) + frequencies[i] * kept;
  }
}

}  // namespace

std::vector<float> rope_frequencies(const RopeConfig& rope, std::uint32_t head_dim) {
  std::vector<float> frequencies = rope_frequencies(head_dim, rope.theta);
  switch (rope.kind) {
    case RopeConfig::Kind::standard: break;
    case RopeConfig::Kind::linear:
      for (float& frequency : frequencies) frequency /= static_cast<float>(rope.factor);
      break;
    case RopeConfig::Kind::llama3:
      for (float& frequency : frequencies) frequency = llama3_frequency(frequency, rope);
      break;
    case RopeConfig::Kind::yarn: yarn_frequencies(frequencies, head_dim, rope); break;
  }
  return frequencies;
}

std::vector<float> rope_table(std::uint32_t positions, const ModelConfig& config) {
  std::vector<float> table = rope_table(positions, rope_frequencies(config.rope, config.head_dim));
  if (config.rope.attention_factor == 1) return table;
  for (float& value : table) value *= static_cast<float>(config.rope.attention_factor);
  return table;
}

Rotations::Rotations(gpu::Device& device, const ModelConfig& config, std::uint32_t positions, std::uint32_t max_tokens)
    : nope_(config.nope),
      table_(device.tensor<float>(DType::f32, {positions, config.head_dim / 2, 2}, rope_table(positions, config), "rope")) {
  if (nope_.empty()) return;
  std::vector<float> still;  // cosine 1, sine 0
  for (std::uint32_t i = 0; i < config.head_dim / 2; ++i) still.insert(still.end(), {1.0f, 0.0f});
  still_table_ = device.tensor<float>(DType::f32, {1, config.head_dim / 2, 2}, still, "no rope");
  zeros_ = device.tensor<std::uint32_t>(DType::u32, {max_tokens}, std::vector<std::uint32_t>(max_tokens), "no positions");
}

Rotation Rotations::of(std::uint32_t layer, const DeviceStream& stream) const {
  if (nope_.empty() || !nope_[layer]) return {.position = stream.position, .table = table_};
  return {.position = zeros_.view({stream.tokens}), .table = still_table_};
}

std::uint64_t Rotations::bytes(const ModelConfig& config, std::uint32_t positions, std::uint32_t max_tokens) {
  const std::uint64_t table = gpu::buffer_bytes(DType::f32, {positions, config.head_dim});
  if (config.nope.empty()) return table;
  return table + gpu::buffer_bytes(DType::f32, {1, config.head_dim}) + gpu::buffer_bytes(DType::u32, {max_tokens});
}

}  // namespace nibble
