#include "nibble/model/joint_lora.h"

#include <algorithm>

namespace nibble {
namespace {

std::vector<LoraGroupMasters> masters_of(const ModelConfig& config, const JointWeights& weights, const LoraWeights& lora) {
  std::vector<LoraGroupMasters> masters;
  for (std::uint32_t layer = 0; layer < config.num_layers; ++layer) {
    for (const Joint joint : single_joints(config)) {
      LoraGroupMasters group{.shape = joint_lora_shape(config, joint, lora.rank), .projections = {},
                             .weight_scale = weights.scale(layer, joint)};
      for (const Projection p : members_of(joint)) {
        const LoraSlot& slot = lora.slot(layer, p);
        group.projections.push_back({.a = slot.a, .b = slot.b, .scaling = slot.scaling});
      }
      masters.push_back(std::move(group));
    }
  }
  return masters;
}

}  // namespace

LoraGroupShape joint_lora_shape(const ModelConfig& config, Joint joint, std::uint32_t rank) {
  LoraGroupShape shape{.rank = rank, .inputs = joint_dims(config, joint).in, .outputs = {}};
  for (const Projection p : members_of(joint)) shape.outputs.push_back(projection_dims(config, p).out);
  return shape;
}

std::uint64_t joint_lora_bytes(const ModelConfig& config, std::uint32_t rank) {
  std::vector<LoraGroupShape> shapes;
  for (std::uint32_t layer = 0; layer < config.num_layers; ++layer) {
    for (const Joint joint : single_joints(config)) shapes.push_back(joint_lora_shape(config, joint, rank));
  }
  return lora_pack_bytes(shapes);
}

JointLora::JointLora(gpu::Device& device, const ModelConfig& config, const JointWeights& weights, const LoraWeights& lora)
    : lora_(lora), joints_(single_joints(config).size()), pack_(make_lora_pack(device, masters_of(config, weights, lora))) {}

const LoraGroup* JointLora::group(std::uint32_t layer, Joint joint) const {
  const LoraGroup& group = pack_.groups[layer * joints_ + static_cast<std::size_t>(joint)];
  const bool any = std::any_of(group.adapted.begin(), group.adapted.end(), [](bool adapted) { return adapted; });
  return any ? &group : nullptr;
}

JointLora::Gradients JointLora::gradients(std::uint32_t layer, Joint joint) const {
  Gradients gradients;
  std::size_t i = 0;
  for (const Projection p : members_of(joint)) {
    const LoraSlot& slot = lora_.slot(layer, p);
    gradients.a[i] = slot.a_grad;
    gradients.b[i++] = slot.b_grad;
  }
  return gradients;
}

}  // namespace nibble
