#pragma once

#include "nibble/kernels/kernel.h"

namespace nibble {

// Made-up values for measuring without files: x[i] depends on the seed and i alone. f32 and f16 are filled with normal numbers
// of mean 0, u32 with words of random bits. Writes (=) x.
struct RandomFill {
  Tensor x;  // f32, f16 or u32, any shape
  std::uint32_t seed = 0;
  float deviation = 1.0f;
};
void record(gpu::Recorder& recorder, const RandomFill& op);

}  // namespace nibble
