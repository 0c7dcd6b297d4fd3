#pragma once

#include "nibble/kernels/operand.h"

namespace nibble {

// loss[r] = log(sum_j exp(logits[r, j])) - logits[r, label], and with `d_logits` the gradient of factor * sum of the losses:
// (softmax - onehot) * factor * weights[r] * (1 - p)^focal_gamma, p being the label's probability, taken as a constant (the
// gradient weighting of the focal loss, Lin et al. 2017). Neither changes the loss. A label beyond V gives NaN. All outputs
// are written (=).
struct CrossEntropy {
  Tensor logits;     // (R, V) f32
  Tensor labels;     // (R) u32
  Tensor loss;       // (R) f32
  Tensor correct;    // (R) u32: 1 where the label has the largest logit, the lowest index among equals
  Operand d_logits;  // (R, V): f16 of its own, or f32, the logits themselves; none: only the loss
  float factor = 1;  // 1 / labels of the whole step
  Tensor weights;    // (R) f32 of any sign; none: 1 each
  float focal_gamma = 0;
};
void record(gpu::Recorder& recorder, const CrossEntropy& op);

}  // namespace nibble
