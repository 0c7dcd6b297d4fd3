#pragma once

#include "nibble/kernels/operand.h"

namespace nibble {

// x[t] = table[tokens[t]]. Writes (=) x; a token beyond the table gives a row of NaN.
struct Embedding {
  Tensor tokens;  // (T) u32
  Weight table;   // (V, C)
  Tensor x;       // (T, C) f32
};
void record(gpu::Recorder& recorder, const Embedding& op);

}  // namespace nibble
