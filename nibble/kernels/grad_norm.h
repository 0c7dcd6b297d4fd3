#pragma once

#include "nibble/kernels/kernel.h"

#include <vector>

namespace nibble {

// norm = the 2-norm of all gradients together, factor = min(1, max_norm / (norm + 1e-6)), as clip_grad_norm_ of torch; 1 for a
// max_norm of 0 or infinity. The gradients stay as they are. Sums run in a fixed order. Nothing is read back.
struct GradNorm {
  std::vector<Tensor> gradients;  // f32, any shapes
  Tensor partials;                // (grad_norm_partials) f32, scratch
  Tensor norm_and_factor;         // (2) f32, written (=)
  double max_norm = 0;
  bool keep_nonfinite = false;  // a norm that was not finite before stays, so that updates after a failed one do nothing
};
void record(gpu::Recorder& recorder, const GradNorm& op);

std::uint32_t grad_norm_partials(const gpu::Device& device, const std::vector<Tensor>& gradients);

}  // namespace nibble
