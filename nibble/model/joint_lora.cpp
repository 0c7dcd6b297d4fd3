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

std::uint64_t joint_lora_bytes(const ModelConfig& config, std::uint32_t rank, bool use_dora, bool one_room) {
  const bool by_layer = use_dora || one_room;
  std::vector<LoraGroupShape> shapes;
  for (std::uint32_t layer = 0; layer < (by_layer ? 1 : config.num_layers); ++layer) {
    for (const Joint joint : single_joints(config)) shapes.push_back(joint_lora_shape(config, joint, rank));
  }
  const auto [room, table] = lora_pack_bytes(shapes);
  const std::uint64_t packs = by_layer ? config.num_layers : 1;
  return (one_room ? 1 : packs) * room + packs * table;
}

JointLora::JointLora(gpu::Device& device, const ModelConfig& config, const JointWeights& weights, const LoraWeights& lora, bool one_room)
    : lora_(lora), joints_(single_joints(config).size()), by_layer_(lora.use_dora || one_room), one_room_(one_room) {
  const std::uint32_t step = by_layer_ ? 1 : config.num_layers;
  for (std::uint32_t layer = 0; layer < config.num_layers; layer += step) {
    const Tensor room = one_room && layer > 0 ? packs_.front().room : Tensor{};
    packs_.push_back(make_lora_pack(device, masters_of(config, weights, lora, layer, step), room));
  }
}

// Where a layer has fewer adapters than another, zeros have to stand in the place of the other's.
void JointLora::pack(gpu::Recorder& recorder, std::uint32_t layer) const {
  const LoraPack& pack = packs_[layer];
  const auto whole = [](const LoraGroup& group) { return std::count(group.adapted.begin(), group.adapted.end(), true) == std::ssize(group.shape.outputs); };
  if (one_room_ && !pack.runs.empty() && !std::all_of(pack.groups.begin(), pack.groups.end(), whole)) recorder.clear(pack.room);
  record(recorder, pack);
}

const LoraGroup* JointLora::group(std::uint32_t layer, Joint joint) const {
  const auto& groups = packs_[by_layer_ ? layer : 0].groups;
  const LoraGroup& group = groups[(by_layer_ ? 0 : layer) * joints_ + static_cast<std::size_t>(joint)];
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
