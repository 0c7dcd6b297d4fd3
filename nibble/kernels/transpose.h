#pragma once

#include "nibble/kernels/operand.h"

namespace nibble {

// y(C, R) = x(R, C)^T, in f32. Writes (=) y.
struct Transpose {
  Tensor x, y;
};
void record(gpu::Recorder& recorder, const Transpose& op);

}  // namespace nibble
