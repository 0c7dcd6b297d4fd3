#pragma once

#include <array>
#include <span>
#include <vector>

#include "nibble/kernels/kernel.h"

namespace nibble {

// Adapters of up to three projections that share an input x (T, K), whose outputs lie side by side in y (T, N).
struct LoraGroupShape {
  std::uint32_t rank = 0;
  std::uint32_t inputs = 0;            // K
  std::vector<std::uint32_t> outputs;  // of each projection

  std::uint32_t padded_rank() const { return (rank + 15) / 16 * 16; }                                 // r16
  std::uint32_t width() const { return static_cast<std::uint32_t>(outputs.size()) * padded_rank(); }  // R
  std::uint32_t all_outputs() const;                                                                  // N
};

// Such adapters as matrix units read them: projection i has rows i * r16 on of `a` and its own rows of `b`. What pads
// the rank is zero, and so are projections without an adapter.
struct LoraGroup {
  LoraGroupShape shape;
  std::array<bool, 3> adapted{};
  std::array<float, 3> scaling{1.0f, 1.0f, 1.0f};  // of each projection's adapter
  float weight_scale = 1.0f;  // of the frozen weight, in whose units the adapters' share is added to its products
  Tensor a;  // (R, K) f16 = A * 2^6
  Tensor b;  // (N, r16) f16 = B * scaling * 2^6 / weight_scale
};

// What optimisers change: A (r, K) and B (outputs, r), f32, parts of one buffer; empty where there is no adapter.
struct LoraMasters {
  Tensor a, b;
  float scaling = 1.0f;
};

struct LoraGroupMasters {
  LoraGroupShape shape;
  std::vector<LoraMasters> projections;
  float weight_scale = 1.0f;
};

// Writes all groups of a model from their masters, in as few dispatches as bindings allow: two, but for huge adapters.
struct LoraPack {
  struct Run {
    std::uint32_t first = 0, count = 0;  // matrices in `table`
    std::uint32_t blocks = 0;            // of the largest
    Tensor from, to;
  };
  std::vector<LoraGroup> groups;
  Tensor room;  // of all groups
  Tensor table;
  std::vector<Run> runs;
};

// What it takes of the device's memory for groups of these shapes, where each of their projections has an adapter.
struct LoraPackBytes {
  std::uint64_t room = 0, table = 0;
};
LoraPackBytes lora_pack_bytes(std::span<const LoraGroupShape> shapes);
// With `room` that of another pack of the same shapes, whose groups then hold what was recorded last.
LoraPack make_lora_pack(gpu::Device& device, std::span<const LoraGroupMasters> masters, const Tensor& room = {});
void record(gpu::Recorder&, const LoraPack&);

// values (T, r) = the gradients of one projection's hidden values in f32, from dh (T, R) of lora_matrix.h: what
// LoraDownBackwardInput takes where there is dropout.
struct LoraUnpack {
  const LoraGroup& group;
  std::uint32_t projection = 0;
  Tensor dh;
  Tensor scale;  // (T) of dy
  Tensor values;
};
void record(gpu::Recorder&, const LoraUnpack&);

}  // namespace nibble
