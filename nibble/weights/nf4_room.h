#pragma once

#include "nibble/weights/device_weights.h"
#include "nibble/weights/joint.h"

#include <optional>
#include <span>

namespace nibble {

// Room for a layer's projections in NF4. Those of a joint lie one after the other in one buffer of codes and one of scales,
// where they can be bound by themselves too, so that they also are one matrix.
void make_nf4_room(gpu::Device& device, const ModelConfig& config, LayerWeights& layer);

// Whether that holds for a joint, by its sizes.
bool joins_in_nf4(const ModelConfig& config, Joint joint);

// The matrix that they are together; empty where they do not lie so.
std::optional<Nf4Matrix> joined_nf4(std::span<const Nf4Matrix> members);

}  // namespace nibble
