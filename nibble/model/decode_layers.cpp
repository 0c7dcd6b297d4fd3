#include "nibble/model/decode_layers.h"

#include "nibble/kernels/add_bias.h"
#include "nibble/kernels/nf4_vec.h"
#include "nibble/weights/nf4_room.h"

#include <algorithm>

namespace nibble {
namespace {

using Dims = std::initializer_list<std::uint32_t>;

// A layer's joint weights with their adapters, for one pass.
class JointVec {
 public:
  JointVec(const DecodeLayers::Pass& pass, const ModelConfig& config, const DeviceWeights& weights, std::uint32_t layer, const Tensor& h)
      : pass_(pass), config_(config), weights_(weights), layer_(layer), h_(h) {}

  Nf4 weight(Joint joint) const { return joint_weight(layer_projections(pass_.recorder, weights_, pass_.dora, layer_), joint); }

  // Records the hidden values of the joint's adapters, where there are any.
  VecLora adapters(Joint joint, const VecInput& input) const {
    if (!pass_.lora) return {};
    VecLora lora{.rank = pass_.lora->rank, .b = {}, .ends = joint_ends(config_, joint), .h = {}};
    const auto members = members_of(joint);
    const auto count = static_cast<std::uint32_t>(members.size());
    LoraVec hidden{.input = input, .rank = lora.rank, .projections = count, .a = {}, .h = h_.view({input.x.dim(0), count * lora.rank})};
    bool any = false;
    for (std::uint32_t i = 0; i < count; ++i) {
      const LoraSlot& slot = pass_.lora->slot(layer_, members[i]);
      if (!slot.used()) continue;
      any = true;
      lora.b[i] = slot.b_read;
      lora.scaling[i] = slot.scaling;
      hidden.a[i] = slot.a;
    }
    if (!any) return {};
    record(pass_.recorder, hidden);
    lora.h = hidden.h;
    return lora;
  }

 private:
  const DecodeLayers::Pass& pass_;
  const ModelConfig& config_;
  const DeviceWeights& weights_;
  std::uint32_t layer_;
  Tensor h_;
};

LayersOptions expert_options(std::uint32_t rank, std::uint32_t most_tokens) {
  return {.max_tokens = most_tokens, .rank = rank, .trainable = false, .activations = {Activations::recompute}, .expert_adapters = rank > 0};
}

}  // namespace

Nf4 joint_weight(const LayerProjections& projections, Joint joint) {
  const auto members = members_of(joint);
  const Nf4Matrix whole = joined_nf4(std::span(projections).subspan(static_cast<std::size_t>(members.front()), members.size())).value();
  return {.packed = whole.packed, .absmax = whole.absmax, .codes = whole.codes};
}

template <typename Make>
void DecodeLayers::visit(Room& r, const ModelConfig& config, std::uint32_t tokens, std::uint32_t rank, const Make& make) {
  make(r.qkv, Dims{tokens, joint_dims(config, Joint::qkv).out});
  make(r.attention, Dims{tokens, config.num_heads * config.head_dim});
  make(r.log_sum_exp, Dims{config.num_heads, tokens});
  make(r.middle, Dims{tokens, config.hidden_size});
  if (!config.has_experts()) make(r.hidden, Dims{tokens, config.intermediate_size});
  if (rank > 0) make(r.lora_h, Dims{tokens, 3 * rank});
}

QkvAttentionShape DecodeLayers::attention_shape(const ModelConfig& config, std::uint32_t most_tokens) {
  return {.tokens = most_tokens, .heads = config.num_heads, .key_heads = config.num_kv_heads, .head_dim = config.head_dim,
          .path = ProductPath::f32, .backward = false};
}

bool DecodeLayers::fits(const ModelConfig& config) {
  const auto joints = single_joints(config);
  return std::all_of(joints.begin(), joints.end(), [&](Joint joint) {
    return joint_dims(config, joint).in % 64 == 0 && joins_in_nf4(config, joint);
  });
}

bool DecodeLayers::fits(const ModelConfig& config, const DeviceWeights& weights) {
  return fits(config) && std::all_of(weights.layers.begin(), weights.layers.end(), [](const LayerWeights& layer) {
    return std::all_of(all_joints.begin(), all_joints.end(), [&](Joint joint) {
      const auto members = members_of(joint);
      return have_one_code_book(std::span(layer.projections).subspan(static_cast<std::size_t>(members.front()), members.size()));
    });
  });
}

DecodeLayers::DecodeLayers(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, std::uint32_t rank,
                           std::uint32_t most_tokens)
    : config_(config), weights_(weights), rank_(rank), attention_(make_qkv_attention_room(device, attention_shape(config, most_tokens))) {
  visit(room_, config_, most_tokens, rank_, [&](Tensor& t, Dims dims) { t = device.tensor(DType::f32, dims, "decode"); });
  if (config_.has_experts()) experts_.emplace(device, config_, weights_, expert_options(rank, most_tokens));
}

std::uint64_t DecodeLayers::bytes(const gpu::Device& device, const ModelConfig& config, std::uint32_t rank, std::uint32_t most_tokens) {
  std::uint64_t bytes = qkv_attention_room_bytes(device, attention_shape(config, most_tokens));
  Room unused;
  visit(unused, config, most_tokens, rank, [&](Tensor&, Dims dims) { bytes += gpu::buffer_bytes(DType::f32, dims); });
  if (!config.has_experts()) return bytes;
  const LayersBytes experts = ExpertMlp::bytes(device, config, expert_options(rank, most_tokens));
  return bytes + experts.activations + experts.scratch;
}

void DecodeLayers::forward(const Pass& pass, std::uint32_t layer, const Tensor& input, const Tensor& output, const Tensor& keys,
                           const Tensor& values) const {
  gpu::Recorder& rec = pass.recorder;
  const DeviceStream& stream = pass.stream;
  const LayerWeights& weights = weights_.layers[layer];
  const Rotation rotation = pass.rotations.of(layer, stream);
  Room r = room_;
  visit(r, config_, stream.tokens, rank_, [](Tensor& t, Dims dims) { t = t.view(dims); });
  const JointVec joint(pass, config_, weights_, layer, r.lora_h);
  const float eps = config_.rms_norm_eps;

  const VecInput attention_in{.x = input, .weight = weights.input_norm, .eps = eps};
  const VecLora qkv_lora = joint.adapters(Joint::qkv, attention_in);
  record(rec, Nf4Vec{.input = attention_in, .w = joint.weight(Joint::qkv), .y = r.qkv, .lora = qkv_lora});
  if (weights.qkv_bias) record(rec, AddBias{.y = {r.qkv, {}}, .bias = weights.qkv_bias});
  record(rec, QkvAttention{.qkv = {r.qkv, {}}, .heads = config_.num_heads, .key_heads = config_.num_kv_heads, .q_norm = weights.q_norm,
                           .k_norm = weights.k_norm, .position = rotation.position, .table = rotation.table, .eps = eps,
                           .key_begin = stream.key_begin, .key_end = stream.key_end, .pairs = stream.pairs, .o = {r.attention, {}},
                           .lse = r.log_sum_exp, .room = attention_, .k_cache = keys, .v_cache = values, .first_key = pass.first_key,
                           .most_keys = pass.most_keys, .apart = pass.apart});
  const VecInput attended{.x = r.attention, .weight = {}};
  const VecLora o_lora = joint.adapters(Joint::o, attended);
  record(rec, Nf4Vec{.input = attended, .w = joint.weight(Joint::o), .y = r.middle, .plus = input, .lora = o_lora});

  if (experts_) return experts_->forward({rec, pass.lora, layer}, r.middle, output);
  const VecInput mlp_in{.x = r.middle, .weight = weights.post_attention_norm, .eps = eps};
  const VecLora gate_up_lora = joint.adapters(Joint::gate_up, mlp_in);
  record(rec, Nf4VecSwiGlu{.input = mlp_in, .w = joint.weight(Joint::gate_up), .y = r.hidden, .lora = gate_up_lora});
  const VecInput hidden{.x = r.hidden, .weight = {}};
  const VecLora down_lora = joint.adapters(Joint::down, hidden);
  record(rec, Nf4Vec{.input = hidden, .w = joint.weight(Joint::down), .y = output, .plus = r.middle, .lora = down_lora});
}

}  // namespace nibble
