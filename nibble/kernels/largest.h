#pragma once

#include "nibble/kernels/kernel.h"

namespace nibble {

// largest = the largest magnitude in x; with accumulate in what `largest` holds too. A NaN counts as above all numbers.
struct Largest {
  Tensor x;        // f32, any shape
  Tensor largest;  // (1) f32
  bool accumulate = false;
};
void record(gpu::Recorder& recorder, const Largest& op);

}  // namespace nibble
