#pragma once

#include "nibble/model/stream.h"
#include "nibble/weights/config.h"

#include <vector>

namespace nibble {

// Angles a position (head_dim / 2), stretched as the config says; rounded to f32 where transformers rounds.
std::vector<float> rope_frequencies(const RopeConfig& rope, std::uint32_t head_dim);

// (cos, sin) of each position below `positions`, as rope_table of qk_norm_rope.h: (positions, head_dim / 2, 2).
std::vector<float> rope_table(std::uint32_t positions, const ModelConfig& config);

// What kernels rotate a layer's queries and keys by.
struct Rotation {
  gpu::Tensor position;  // (T)
  gpu::Tensor table;     // (positions, D/2, 2)
};

// The rotations of all layers: by positions, and by none in NoPE layers, where every token stands at 0.
class Rotations {
 public:
  Rotations() = default;
  // For positions below `positions` and streams of at most `max_tokens`.
  Rotations(gpu::Device& device, const ModelConfig& config, std::uint32_t positions, std::uint32_t max_tokens);

  Rotation of(std::uint32_t layer, const DeviceStream& stream) const;
  // Whether a layer's tokens stand at their positions; else all at 0.
  bool turns(std::uint32_t layer) const { return nope_.empty() || !nope_[layer]; }

  static std::uint64_t bytes(const ModelConfig& config, std::uint32_t positions, std::uint32_t max_tokens);

 private:
  std::vector<bool> nope_;  // by layer; empty: none is
  gpu::Tensor table_, still_table_, zeros_;
};

}  // namespace nibble
