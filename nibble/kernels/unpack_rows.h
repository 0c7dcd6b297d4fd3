#pragma once

#include "nibble/kernels/operand.h"

namespace nibble {

// y = x as f32, of one shape. Writes (=) y.
struct UnpackRows {
  Operand x;  // (R, C), f16
  Tensor y;   // (R, C)
};
void record(gpu::Recorder& recorder, const UnpackRows& op);

}  // namespace nibble
