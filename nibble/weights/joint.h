#pragma once

#include "nibble/weights/config.h"

#include <array>
#include <span>

namespace nibble {

// Projections that share an input, as one weight: their rows one below the other.
enum class Joint : std::uint8_t { qkv, o, gate_up, down };

inline constexpr std::array<Joint, 4> all_joints{Joint::qkv, Joint::o, Joint::gate_up, Joint::down};

// In the order of Projection, and neighbours there.
std::span<const Projection> members_of(Joint joint);
// Those whose members are one matrix each: without those of experts.
std::span<const Joint> single_joints(const ModelConfig& config);
ProjectionDims joint_dims(const ModelConfig& config, Joint joint);
// The output column where each member ends, and the last one again where there are fewer than three.
std::array<std::uint32_t, 3> joint_ends(const ModelConfig& config, Joint joint);

}  // namespace nibble
