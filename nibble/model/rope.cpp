#include "nibble/model/rope.h"

#include "nibble/kernels/qk_norm_rope.h"

#include <algorithm>
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

}  // namespace nibble
