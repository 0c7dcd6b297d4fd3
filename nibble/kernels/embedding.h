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

// The same of a table in codes, NF4 or int8 by their number; C is a multiple of 64, and codes fit into a binding.
struct EmbeddingCodes {
  Tensor tokens;            // (T) u32
  std::uint32_t vocabulary = 0;
  Tensor codes;             // u32 (V * C / 8) of NF4 or (V * C / 4) of int8
  Tensor scales;            // f32 (V * C / 64)
  Tensor x;                 // (T, C) f32
};
void record(gpu::Recorder& recorder, const EmbeddingCodes& op);

}  // namespace nibble
