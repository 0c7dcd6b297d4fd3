#include "nibble/model/step_layers.h"

#include "nibble/weights/nf4_room.h"

#include <algorithm>

namespace nibble {
namespace {

LayerStepShape shape_of(const ModelConfig& config, std::uint32_t rank) {
  const Family& family = config.family;
  return {.hidden = config.hidden_size, .intermediate = config.intermediate_size, .heads = config.num_heads, .key_heads = config.num_kv_heads,
          .head_dim = config.head_dim, .head_norm = family.qk_norm, .bias = family.qkv_bias, .rank = rank};
}

std::vector<LayerStepVectors> vectors_of(const DeviceWeights& weights) {
  std::vector<LayerStepVectors> result;
  for (const LayerWeights& layer : weights.layers) {
    result.push_back({layer.input_norm, layer.post_attention_norm, layer.q_norm, layer.k_norm, layer.qkv_bias});
  }
  return result;
}

// Everything is bound whole.
bool can_be_bound(const gpu::Device& device, const ModelConfig& config, const LoraWeights* lora) {
  std::uint64_t largest = lora ? lora->params.bytes() : 0;
  for (const Joint joint : all_joints) {
    const ProjectionDims dims = joint_dims(config, joint);
    largest = std::max(largest, std::uint64_t{dims.out} * dims.in / 2);
  }
  return largest <= device.info().limits.max_binding;
}

bool have_one_code_book_a_layer(const DeviceWeights& weights) {
  return std::all_of(weights.layers.begin(), weights.layers.end(), [](const LayerWeights& layer) { return have_one_code_book(layer.projections); });
}

}  // namespace

std::optional<StepLayers> StepLayers::make(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const LoraWeights* lora,
                                           ProductPath path, std::uint32_t workgroups) {
  if (!fits(config, lora && lora->use_dora) || !can_be_bound(device, config, lora) || !DecodeLayers::fits(config, weights) || !have_one_code_book_a_layer(weights)) return {};
  const auto plan = layer_step_plan(device, shape_of(config, lora ? lora->rank : 0), path == ProductPath::f32 ? StepLookups::in_lanes : StepLookups::fastest, workgroups);
  if (!plan) return {};
  return StepLayers(device, config, weights, *plan);
}

std::uint64_t StepLayers::bytes(const ModelConfig& config, std::uint32_t rank, std::uint32_t workgroups) {
  return layer_step_room_bytes(shape_of(config, rank), config.num_layers, workgroups);
}

StepLayers::StepLayers(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const LayerStepPlan& plan)
    : config_(config), weights_(&weights), plan_(plan), room_(make_layer_step_room(device, plan, vectors_of(weights))) {}

void StepLayers::forward(const Pass& pass, std::uint32_t layer, const gpu::Tensor& input, const gpu::Tensor& output,
                         const gpu::Tensor& keys, const gpu::Tensor& values) const {
  const Rotation rotation = pass.rotations.of(layer, pass.stream);
  const LayerProjections& projections = weights_->projections(pass.recorder, layer);
  LayerStep step{.plan = plan_, .room = room_, .layer = layer, .input = input, .output = output,
                 .weights = {joint_weight(projections, Joint::qkv), joint_weight(projections, Joint::o), joint_weight(projections, Joint::gate_up),
                             joint_weight(projections, Joint::down)},
                 .eps = config_.rms_norm_eps, .position = pass.rotations.turns(layer) ? pass.position : 0, .table = rotation.table, .k = keys, .v = values,
                 .new_key = pass.new_key, .keys = pass.keys};
  if (pass.lora) {
    step.lora = pass.lora->params;
    for (const Projection p : all_projections) {
      const LoraSlot& slot = pass.lora->slot(layer, p);
      const auto begin = [&](const gpu::Tensor& matrix) { return static_cast<std::uint32_t>((matrix.offset() - step.lora.offset()) / sizeof(float)); };
      if (slot.used()) step.adapters[static_cast<std::size_t>(p)] = {begin(slot.a), begin(slot.b), slot.scaling};
    }
  }
  record(pass.recorder, step);
}

bool StepLayers::in_trouble(gpu::Device& device) const { return device.read<std::uint32_t>(room_.trouble())[0] != 0; }

}  // namespace nibble
