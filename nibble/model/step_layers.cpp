#include "nibble/model/step_layers.h"

#include "nibble/weights/layer_stream.h"
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

std::uint64_t distance(const gpu::Tensor& from, const gpu::Tensor& to) { return to.offset() - from.offset(); }

// Whether what `at` says of layers first to last lies the same distance apart, in one buffer.
template <typename At>
bool lie_evenly(std::uint32_t first, std::uint32_t last, const At& at) {
  const gpu::Tensor one = at(first), next = at(first + 1), end = at(last);
  return one.buffer() == next.buffer() && one.buffer() == end.buffer() && one.offset() < next.offset() &&
         distance(one, end) == (last - first) * distance(one, next);
}

// Whether layers first to last have adapters of the same projections and factors, the same distance apart, given that this is so up to the one
// before the last.
bool adapters_go_on(const LoraWeights& lora, std::uint32_t first, std::uint32_t last) {
  std::optional<std::uint64_t> a, b;
  for (const Projection p : all_projections) {
    const LoraSlot &one = lora.slot(first, p), &end = lora.slot(last, p);
    if (one.used() != end.used()) return false;
    if (!one.used()) continue;
    if (one.scaling != end.scaling || one.a.offset() > end.a.offset() || one.b.offset() > end.b.offset()) return false;
    const std::uint64_t to_a = distance(one.a, end.a), to_b = distance(one.b, end.b);
    if (to_a != a.value_or(to_a) || to_b != b.value_or(to_b)) return false;
    const LoraSlot& next = lora.slot(first + 1, p);
    if (to_a != (last - first) * distance(one.a, next.a) || to_b != (last - first) * distance(one.b, next.b)) return false;
    a = to_a, b = to_b;
  }
  return true;
}

}  // namespace

std::optional<StepLayers> StepLayers::make(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const LoraWeights* lora,
                                           ProductPath path, std::uint32_t workgroups) {
  if (!fits(config, lora && lora->use_dora) || !can_be_bound(device, config, lora) || !DecodeLayers::fits(config, weights) || !have_one_code_book_a_layer(weights)) return {};
  const auto plan = layer_step_plan(device, shape_of(config, lora ? lora->rank : 0), path == ProductPath::f32 ? StepLookups::in_lanes : StepLookups::fastest, workgroups);
  if (!plan) return {};
  return StepLayers(device, config, weights, *plan);
}

std::uint64_t StepLayers::bytes(const gpu::Device& device, const ModelConfig& config, std::uint32_t rank, std::uint32_t workgroups) {
  return layer_step_room_bytes(device.info(), shape_of(config, rank), config.num_layers, workgroups);
}

StepLayers::StepLayers(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const LayerStepPlan& plan)
    : config_(config), weights_(&weights), plan_(plan), room_(make_layer_step_room(device, plan, vectors_of(weights))) {}

bool StepLayers::weights_go_on(std::uint32_t first, std::uint32_t last) const {
  const auto stays = [&](std::uint32_t layer) { return !weights_->stream || !weights_->stream->has(layer); };
  if (weights_->scales || !stays(first) || !stays(last)) return false;
  const auto one = [&](std::uint32_t layer) -> const Nf4Matrix& { return weights_->layers[layer].projections.front(); };
  // All parts of a layer lie alike in every room (place_nf4).
  return one(first).codes == one(last).codes && lie_evenly(first, last, [&](std::uint32_t layer) { return one(layer).packed; });
}

std::uint32_t StepLayers::run_from(std::uint32_t first, const Pass& pass, std::span<const KeyCache> caches) const {
  const auto goes_on_to = [&](std::uint32_t last) {
    return weights_go_on(first, last) && pass.rotations.turns(last) == pass.rotations.turns(first) &&
           lie_evenly(first, last, [&](std::uint32_t layer) { return caches[layer].k; }) &&
           lie_evenly(first, last, [&](std::uint32_t layer) { return caches[layer].v; }) && (!pass.lora || adapters_go_on(*pass.lora, first, last));
  };
  std::uint32_t end = first + 1;
  while (end < config_.num_layers && goes_on_to(end)) ++end;
  return end - first;
}

void StepLayers::set_adapters(LayerStep& step, const LoraWeights& lora) const {
  step.lora = lora.params;
  const auto begin = [&](const gpu::Tensor& matrix) { return static_cast<std::uint32_t>((matrix.offset() - lora.params.offset()) / sizeof(float)); };
  for (const Projection p : all_projections) {
    const LoraSlot& slot = lora.slot(step.layer, p);
    if (!slot.used()) continue;
    step.adapters[static_cast<std::size_t>(p)] = {begin(slot.a), begin(slot.b), slot.scaling};
    if (step.layers == 1) continue;
    const LoraSlot& next = lora.slot(step.layer + 1, p);
    step.strides.a = begin(next.a) - begin(slot.a), step.strides.b = begin(next.b) - begin(slot.b);
  }
}

gpu::Tensor StepLayers::forward(const Pass& pass, std::span<const KeyCache> caches, const std::array<gpu::Tensor, 2>& residual) const {
  clear(pass.recorder, room_);
  std::uint32_t turn = 0;
  for (std::uint32_t first = 0, count; first < config_.num_layers; first += count, turn ^= 1) {
    count = run_from(first, pass, caches);
    const LayerProjections& projections = weights_->projections(pass.recorder, first);
    LayerStep step{.plan = plan_, .room = room_, .layer = first, .layers = count, .input = residual[turn], .output = residual[turn ^ 1],
                   .weights = {joint_weight(projections, Joint::qkv), joint_weight(projections, Joint::o), joint_weight(projections, Joint::gate_up),
                               joint_weight(projections, Joint::down)},
                   .eps = config_.rms_norm_eps, .position = pass.rotations.turns(first) ? pass.position : 0,
                   .table = pass.rotations.of(first, pass.stream).table, .k = caches[first].k, .v = caches[first].v, .new_key = pass.new_key, .keys = pass.keys};
    if (count > 1) {
      step.strides.weights = distance(weights_->layers[first].projections.front().packed, weights_->layers[first + 1].projections.front().packed);
      step.strides.keys = distance(caches[first].k, caches[first + 1].k);
    }
    if (pass.lora) set_adapters(step, *pass.lora);
    record(pass.recorder, step);
  }
  return residual[turn];
}

bool StepLayers::in_trouble(gpu::Device& device) const { return device.read<std::uint32_t>(room_.trouble())[0] != 0; }

}  // namespace nibble
