#pragma once

#include "nibble/kernels/operand.h"

namespace nibble {

// NEFTune (Jain et al. 2023): x[t] += u * alpha / sqrt(L * C) with u uniform in [-1, 1) for each element and L the length of
// the token's segment. The noise is a hash of (seed, token, column), so that the same seed gives the same noise.
struct Neftune {
  Tensor x;                           // (T, C) f32, read and written
  Tensor segment_begin, segment_end;  // (T) u32
  float alpha = 0.0f;
  std::uint32_t seed = 0;             // of the batch
};
void record(gpu::Recorder& recorder, const Neftune& op);

}  // namespace nibble
