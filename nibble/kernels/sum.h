#pragma once

#include "nibble/kernels/kernel.h"

namespace nibble {

// total[slot] = sum of x, or += with `accumulate`, in a fixed order. x is f32 or u32, and so is then the slot, whatever the
// type of `total`: one tensor may gather losses and counts for one readback. For vectors as long as a batch.
struct Sum {
  Tensor x;      // any shape, within one binding
  Tensor total;  // (slots), f32 or u32
  std::uint32_t slot = 0;
  bool accumulate = false;
};
void record(gpu::Recorder& recorder, const Sum& op);

}  // namespace nibble
