#pragma once

#include "nibble/kernels/lora_pack.h"

namespace nibble {

// LoRA's narrow product h (T, R) f16 = (x.data a^T) * 2^-12 of few rows, as LoraDownMatrix, in one dispatch: where there are up to some
// 64 rows its second pass takes as long as all of this. Sums in f32, in a fixed order. K and R are multiples of 8 and 4.
struct LoraDownFew {
  const LoraGroup& group;
  Tensor x;  // (T, K) f16
  Tensor h;
};
void record(gpu::Recorder& recorder, const LoraDownFew& op);

}  // namespace nibble
