#pragma once

#include "nibble/kernels/operand.h"

namespace nibble {

// loss[r] = log(sum_j exp(logits[r, j])) - logits[r, label], and with `d_logits` the gradient of factor * sum of the losses:
// (softmax - onehot) * factor. A label beyond V gives NaN. All outputs are written (=).
struct CrossEntropy {
  Tensor logits;     // (R, V) f32
  Tensor labels;     // (R) u32
  Tensor loss;       // (R) f32
  Tensor correct;    // (R) u32: 1 where the label has the largest logit, the lowest index among equals
  Operand d_logits;  // (R, V): f16 of its own, or f32, the logits themselves; none: only the loss
  float factor = 1;  // 1 / labels of the whole step
};
void record(gpu::Recorder& recorder, const CrossEntropy& op);

}  // namespace nibble
