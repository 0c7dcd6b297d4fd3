#include "nibble/weights/joint.h"

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

std::span<const Joint> single_joints(const ModelConfig& config) {
  return std::span(all_joints).first(config.has_experts() ? static_cast<std::size_t>(Joint::gate_up) : all_joints.size());
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

}  // namespace nibble
