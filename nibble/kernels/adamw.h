#pragma once

#include "nibble/kernels/kernel.h"

namespace nibble {

// One update of AdamW (Loshchilov and Hutter 2019) in the arithmetic of torch.optim.AdamW: decoupled decay first, moments of
// gradient * factor, bias corrections from `step`. Updates `weights` and both moments in place; changes nothing where the
// norm is not finite.
struct AdamW {
  Tensor weights, gradients, first_moment, second_moment;  // f32, of one size, any shape
  Tensor norm_and_factor;                                  // (2) f32, as GradNorm leaves it
  std::uint64_t step = 1;                                  // from 1 on
  double learning_rate = 0, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0;
};
void record(gpu::Recorder& recorder, const AdamW& op);

}  // namespace nibble
