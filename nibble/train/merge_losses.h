#pragma once

#include "nibble/train/run_data.h"
#include "nibble/weights/merge.h"

#include <functional>
#include <optional>

namespace nibble {

// Of merged models, over the trained tokens of a set.
struct MergeLosses {
  std::optional<double> original;  // onto the original weights; empty where these are in 4 bits already
  double nf4 = 0;                  // onto what NF4 makes of them
};

// Computed with f32 products on weights that are all decoded: 4 bytes of device memory for each, as OutOfDeviceMemory says where there
// are less. The types of `options` do not count. `progress` hears the part that is done.
MergeLosses merge_losses(const MergeOptions& options, gpu::Device& device, const ExampleSet& set, std::uint32_t batch_size,
                         const std::function<void(double)>& progress = {});

}  // namespace nibble
