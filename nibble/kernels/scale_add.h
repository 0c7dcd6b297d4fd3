#pragma once

#include "nibble/kernels/kernel.h"

namespace nibble {

// y = a * x + b * y, element by element.
struct ScaleAdd {
  Tensor x, y;  // f32, of one size, any shape
  float a = 1.0f, b = 1.0f;
};
void record(gpu::Recorder& recorder, const ScaleAdd& op);

}  // namespace nibble
