#pragma once

#include "nibble/kernels/kernel.h"

namespace nibble {

// y[i] = x[i] * factor, rounded to y's type: stored weights as a product reads them (a Weight has scale 1 / factor).
struct Convert {
  Tensor x;  // f32, f16 or bf16, any shape
  Tensor y;  // f32 or f16, as many elements; written (=)
  float factor = 1.0f;
};
void record(gpu::Recorder& recorder, const Convert& op);

}  // namespace nibble
