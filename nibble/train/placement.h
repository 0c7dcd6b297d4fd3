#pragma once

#include "nibble/model/model.h"
#include "nibble/train/options.h"
#include "nibble/train/run_data.h"

#include <cstdint>
#include <optional>

namespace nibble {

// How a run uses the memory that there is.
struct Placement {
  ModelOptions model;
  std::optional<TrainedHeadOptions> head;  // where the head is trained
};

// What the options leave open is chosen so that the plan takes at most nine tenths of `memory` bytes: first activations are
// computed again, then the state of a trained head goes to the host. 0 bytes: unknown, nothing is given up.
Placement place(const TrainOptions& options, const gpu::Device& device, const ModelConfig& config, ProductPath path,
                BatchRoom room, std::uint64_t memory);

}  // namespace nibble
