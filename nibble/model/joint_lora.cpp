#include "nibble/model/joint_lora.h"

#include <algorithm>

namespace nibble {
namespace {

std::vector<LoraGroupMasters> masters_of(const ModelConfig& config, const JointWeights& weights, const LoraWeights& lora, std::uint32_t first,
                                         std::uint32_t count) {
  std::vector<LoraGroupMasters> masters;
  for (std::uint32_t layer = first; layer < first + count; ++layer) {
    for (const Joint joint : single_joints(config)) {
      LoraGroupMasters group{.shape = joint_lora_shape(config, joint, lora.rank), .projections = {},
                             .weight_scale = weights.scale(layer, joint)};
      for (const Projection p : members_of(joint)) {
        const LoraSlot& slot = lora.slot(layer, p);
        group.projections.push_back({.a = slot.a, .b = slot.b_read, .scaling = slot.scaling});
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

std::uint64_t joint_lora_bytes(const ModelConfig& config, std::uint32_t rank, bool use_dora) {
  std::vector<LoraGroupShape> shapes;
  for (std::uint32_t layer = 0; layer < (use_dora ? 1 : config.num_layers); ++layer) {
    for (const Joint joint : single_joints(config)) shapes.push_back(joint_lora_shape(config, joint, rank));
  }
  return (use_dora ? config.num_layers : 1) * lora_pack_bytes(shapes);
}

JointLora::JointLora(gpu::Device& device, const ModelConfig& config, const JointWeights& weights, const LoraWeights& lora)
    : lora_(lora), joints_(single_joints(config).size()) {
  const std::uint32_t step = lora.use_dora ? 1 : config.num_layers;
  for (std::uint32_t layer = 0; layer < config.num_layers; layer += step) {
    packs_.push_back(make_lora_pack(device, masters_of(config, weights, lora, layer, step)));
  }
}

const LoraGroup* JointLora::group(std::uint32_t layer, Joint joint) const {
  const auto& groups = packs_[lora_.use_dora ? layer : 0].groups;
  const LoraGroup& group = groups[(lora_.use_dora ? 0 : layer) * joints_ + static_cast<std::size_t>(joint)];
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

namespace {

// Where bindings may begin on every adapter.
std::uint32_t aligned(std::uint32_t elements) { return (elements + 63) / 64 * 64; }

}  // namespace

std::uint32_t JointLora::b_room(const LoraGroupShape& shape) {
  std::uint32_t elements = 0;
  for (const std::uint32_t outputs : shape.outputs) elements += aligned(outputs * shape.rank);
  return elements;
}

JointLora::Gradients JointLora::gradients(std::uint32_t layer, Joint joint, const Tensor& room) const {
  Gradients gradients = this->gradients(layer, joint);
  std::uint32_t at = 0;
  for (Tensor& b : gradients.b) {
    if (!b) continue;
    const std::uint32_t first = at, outputs = b.dim(0), rank = b.dim(1);
    at += aligned(outputs * rank);
    b = room.part(first, {outputs, rank});
  }
  return gradients;
}

}  // namespace nibble
