#pragma once

#include "nibble/weights/device_weights.h"

namespace nibble {

// How many of the values that were looked at are not what they have to be.
struct LoadCheck {
  std::uint64_t blocks = 0, wrong_blocks = 0;  // of NF4: codes and scale against the scalar quantiser, bit for bit
  std::uint64_t values = 0, wrong_values = 0;  // of embedding and head: against the file's value, rounded to their type

  bool passed() const { return blocks > 0 && values > 0 && wrong_blocks + wrong_values == 0; }
};

// Compares parts of every matrix on the device, its beginning and end among them, with the checkpoint it was loaded from.
LoadCheck check_loaded(gpu::Device& device, const Checkpoint& checkpoint, const DeviceWeights& weights);

}  // namespace nibble
