#pragma once

#include "nibble/kernels/operand.h"
#include "nibble/model/frozen_weights.h"
#include "nibble/weights/device_weights.h"

#include <array>
#include <span>
#include <vector>

namespace nibble {

// Projections that share an input are one weight, their rows one below the other.
enum class Joint : std::uint8_t { qkv, o, gate_up, down };

inline constexpr std::array<Joint, 4> all_joints{Joint::qkv, Joint::o, Joint::gate_up, Joint::down};

std::span<const Projection> members_of(Joint joint);
ProjectionDims joint_dims(const ModelConfig& config, Joint joint);
// The output column where each member ends, and the last one again where there are fewer than three.
std::array<std::uint32_t, 3> joint_ends(const ModelConfig& config, Joint joint);

// Decodes NF4 projections to f16, joint.
class JointWeights {
 public:
  JointWeights(gpu::Device& device, const DeviceWeights& weights, const ModelConfig& config, Residency residency);

  // Valid until the same joint of another layer is asked for.
  Weight weight(gpu::Recorder& recorder, std::uint32_t layer, Joint joint);

  // The power of two that brings the largest magnitude to [1/2, 1): with rows of operands below 2^14, products then stay within
  // f16 as their rows are stored (product.h), unless thousands of terms of the largest magnitude have one sign.
  float scale(std::uint32_t layer, Joint joint) const;

 private:
  struct Slot {
    Tensor data;                       // (out, in) f16
    std::uint32_t layer = UINT32_MAX;  // what it holds
  };

  const DeviceWeights& weights_;
  Residency residency_;
  std::vector<std::array<Slot, 4>> slots_;  // one row for all layers, or a row a layer
};

}  // namespace nibble
