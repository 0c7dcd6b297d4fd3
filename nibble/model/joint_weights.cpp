#include "nibble/model/joint_weights.h"

#include <algorithm>
#include <cmath>

namespace nibble {

std::span<const Projection> members_of(Joint joint) {
  const std::span all(all_projections);
  switch (joint) {
    case Joint::qkv: return all.subspan(0, 3);
    case Joint::o: return all.subspan(3, 1);
    case Joint::gate_up: return all.subspan(4, 2);
    case Joint::down: return all.subspan(6, 1);
  }
  return {};
}

ProjectionDims joint_dims(const ModelConfig& config, Joint joint) {
  ProjectionDims joint_dims;
  for (const Projection p : members_of(joint)) {
    const ProjectionDims dims = projection_dims(config, p);
    joint_dims = {.out = joint_dims.out + dims.out, .in = dims.in};
  }
  return joint_dims;
}

std::array<std::uint32_t, 3> joint_ends(const ModelConfig& config, Joint joint) {
  std::array<std::uint32_t, 3> ends{};
  ends.fill(joint_dims(config, joint).out);
  std::uint32_t end = 0;
  std::size_t i = 0;
  for (const Projection p : members_of(joint)) ends[i++] = end += projection_dims(config, p).out;
  return ends;
}

JointWeights::JointWeights(gpu::Device& device, const DeviceWeights& weights, const ModelConfig& config, Residency residency)
    : weights_(weights), residency_(residency) {
  slots_.resize(residency == Residency::cached ? weights.layers.size() : 1);
  for (auto& row : slots_) {
    for (const Joint joint : all_joints) {
      const auto [out, in] = joint_dims(config, joint);
      row[static_cast<std::size_t>(joint)].data = device.tensor(DType::f16, {out, in}, "decoded projections");
    }
  }
}

float JointWeights::scale(std::uint32_t layer, Joint joint) const {
  float largest = 0;
  for (const Projection p : members_of(joint)) largest = std::max(largest, weights_.layers[layer].projection(p).largest);
  int exponent = 0;
  if (std::isfinite(largest)) std::frexp(largest, &exponent);
  return std::ldexp(1.0f, exponent);
}

Weight JointWeights::weight(gpu::Recorder& recorder, std::uint32_t layer, Joint joint) {
  Slot& slot = slots_[residency_ == Residency::cached ? layer : 0][static_cast<std::size_t>(joint)];
  const Weight whole{.data = slot.data, .scale = scale(layer, joint)};
  if (slot.layer == layer) return whole;
  std::uint32_t row = 0;
  for (const Projection p : members_of(joint)) {
    const Nf4Matrix& matrix = weights_.layers[layer].projection(p);
    record(recorder, DequantizeNf4{.w = {.packed = matrix.packed, .absmax = matrix.absmax},
                                   .out = {.data = slot.data.rows(row, row + matrix.out), .scale = whole.scale}});
    row += matrix.out;
  }
  slot.layer = layer;
  return whole;
}

}  // namespace nibble
