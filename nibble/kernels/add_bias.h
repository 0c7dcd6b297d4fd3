#pragma once

#include "nibble/kernels/operand.h"

namespace nibble {

// y[t, n] += bias[first + n], in place; an f16 operand gets the scales that suit its new rows. N is a multiple of 4, and so
// is `first`.
struct AddBias {
  Operand y;    // (T, N)
  Tensor bias;  // (at least first + N) f32
  std::uint32_t first = 0;
};
void record(gpu::Recorder& recorder, const AddBias& op);

}  // namespace nibble
