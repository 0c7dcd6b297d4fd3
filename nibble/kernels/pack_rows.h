#pragma once

#include "nibble/kernels/operand.h"

namespace nibble {

// x (R, C) f32 as an f16 operand with row scales. Writes (=) y.
struct PackRows {
  Tensor x;
  Operand y;  // f16
};
void record(gpu::Recorder& recorder, const PackRows& op);

// x (R, C) f32 as an operand of whichever path `storage` was made for: packed into its first R rows where it is f16, else x
// itself, so that the storage of the f32 path may be left empty.
Operand as_operand(gpu::Recorder& recorder, const Tensor& x, const Operand& storage);

}  // namespace nibble
