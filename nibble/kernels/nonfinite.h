#pragma once

#include "nibble/kernels/kernel.h"

namespace nibble {

// index = the smallest flat index of an element of x that is infinite or NaN, or 0xffffffff where all are finite.
struct NonFinite {
  Tensor x;      // f32, any shape
  Tensor index;  // (1) u32
};
void record(gpu::Recorder& recorder, const NonFinite& op);

}  // namespace nibble
