#pragma once

#include "nibble/kernels/operand.h"

namespace nibble {

// A weight in 8 bits (nibble/quant/int8.h): value = code * scale of its block of 64, row-major over the flattened matrix.
struct Int8 {
  Tensor codes;   // u32 (out * in / 4), the first of four codes in the low byte
  Tensor scales;  // f32 (out * in / 64)
};

// out.data(N, K) = value / out.scale, exact in f32 (with scale 1) and rounded to nearest in f16, in rows.
struct DequantizeInt8 {
  Int8 w;
  Weight out;
};
void record(gpu::Recorder&, const DequantizeInt8&);

}  // namespace nibble
