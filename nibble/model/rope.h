#pragma once

#include "nibble/weights/config.h"

#include <vector>

namespace nibble {

// Angles a position (head_dim / 2), stretched as the config says; rounded to f32 where transformers rounds.
std::vector<float> rope_frequencies(const RopeConfig& rope, std::uint32_t head_dim);

// (cos, sin) of each position below `positions`, as rope_table of qk_norm_rope.h: (positions, head_dim / 2, 2).
std::vector<float> rope_table(std::uint32_t positions, const ModelConfig& config);

}  // namespace nibble
