#pragma once

#include "nibble/kernels/kernel.h"

namespace nibble {

// The router of a mixture of experts, as Qwen3MoeTopKRouter of transformers: of softmax p of a token's E logits the `per_token`
// largest, of equal ones the first, from the largest on; their weights are p, divided by their sum where `normalised`. All f32.
struct ExpertRoute {
  Tensor logits;  // (T, E)
  bool normalised = true;
  Tensor expert;  // (T, k) u32
  Tensor weight;  // (T, k)
};
void record(gpu::Recorder& recorder, const ExpertRoute& op);

// d_logits = the gradient with respect to the logits, given that of the weights; which experts are chosen has none.
struct ExpertRouteBackward {
  Tensor logits;
  bool normalised = true;
  Tensor expert, weight;  // of the forward pass
  Tensor d_weight;        // (T, k)
  Tensor d_logits;        // (T, E)
};
void record(gpu::Recorder& recorder, const ExpertRouteBackward& op);

inline constexpr std::uint32_t most_experts = 1024;

}  // namespace nibble
