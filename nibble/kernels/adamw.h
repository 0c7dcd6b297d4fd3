#pragma once

#include "nibble/kernels/kernel.h"

namespace nibble {

// The numbers of one update of AdamW.
struct AdamWRule {
  std::uint64_t step = 1;  // from 1 on
  double learning_rate = 0, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0;
};

// One update of AdamW (Loshchilov and Hutter 2019) in the arithmetic of torch.optim.AdamW: decoupled decay first, moments of
// gradient * factor, bias corrections from `step`. Updates `weights` and both moments in place; changes nothing where the
// norm is not finite.
struct AdamW {
  Tensor weights, gradients, first_moment, second_moment;  // f32, of one size, any shape
  Tensor norm_and_factor;                                  // (2) f32, as GradNorm leaves it
  AdamWRule rule;
};
void record(gpu::Recorder& recorder, const AdamW& op);

// The uniform of lib/adamw.wgsl, for kernels that update by the same rule; `count` and `skipped` are left to them.
struct AdamWParams {
  std::uint32_t count = 0;
  float decay, rest1, beta2, rest2, step_size, root_correction2, epsilon;
  std::uint32_t skipped = 0;
};
AdamWParams adamw_params(const AdamWRule& rule);

}  // namespace nibble
