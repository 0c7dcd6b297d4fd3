#include "nibble/model/joint_layers_at.h"

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/kernels/add_bias.h"
#include "nibble/kernels/lora_few.h"
#include "nibble/kernels/packed_attention.h"
#include "nibble/kernels/product.h"
#include "nibble/kernels/rms_norm.h"
#include "nibble/kernels/swiglu_pair.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace nibble {

bool JointLayers::fits(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options) {
  if (options.path != ProductPath::matrix) return false;
  const auto joints = single_joints(config);
  return std::all_of(joints.begin(), joints.end(), [&](Joint joint) {
    const auto [out, in] = joint_dims(config, joint);
    const auto ends = joint_ends(config, joint);
    const LoraGroupShape lora = joint_lora_shape(config, joint, options.rank);
    return f16_outputs_fit(device, options.path, out, in) && lora_tail_fits(device, out, in, ends) &&
           (options.rank == 0 || (lora.padded_rank() <= most_tail_rank && lora_matrix_fits(device, lora)));
  });
}

LayersBytes JointLayers::bytes(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options) {
  const LayersBytes experts = config.has_experts() ? ExpertMlp::bytes(device, config, options) : LayersBytes{};
  const std::uint64_t lora = options.rank > 0 ? joint_lora_bytes(config, options.rank, options.use_dora, options.one_decoded_room) : 0;
  return {.decoded_weights = JointWeights::bytes(config, options.residency, options.one_decoded_room),
          .activations = joint_activation_bytes(config, options) + experts.activations,
          .scratch = joint_room_bytes(device, config, options) + lora + experts.scratch};
}

namespace {

// Where matrix units suit the heads but not so many tokens.
void warn_of_slow_attention(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options) {
  const auto fits = [&](std::uint32_t tokens) {
    return packed_attention_fits(device, {tokens, config.num_heads, config.num_kv_heads, config.head_dim});
  };
  if (!options.trainable || device.info().type == gpu::AdapterType::software || !fits(1) || fits(options.max_tokens)) return;
  log_warning(fmt::format("Attention of {} tokens at a time is done in f32, which takes some ten times as long, since their projections exceed the {} bytes "
                          "that {} binds; take fewer by --batch-size or --max-length.",
                          options.max_tokens, device.info().limits.max_binding, device.info().name));
}

}  // namespace

JointLayers::JointLayers(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const LoraWeights* lora,
                         const LayersOptions& options)
    : config_(config),
      weights_(weights),
      options_(options),
      decodes_in_products_(!options.trainable && options.decodes_in_products.value_or(device.info().type != gpu::AdapterType::software)),
      frozen_(device, weights, config, options.residency, options.one_decoded_room, options.max_tokens, options.use_dora),
      activations_(make_joint_activations(device, config, options)),
      shared_(options.activations) {
  if (lora) lora_.emplace(device, config_, frozen_, *lora, options.one_decoded_room);
  room_ = make_joint_room(device, config_, options_);
  warn_of_slow_attention(device, config_, options_);
  if (config_.has_experts()) experts_.emplace(device, config_, weights_, options_);
}

void JointLayers::begin(const LayerPass& pass) {
  holds_ = {};
  sums_.forget();
  shared_.forget();
  if (pass.dora) return pass.dora->renew();
  if (pass.lora && !pass.same_lora && !options_.one_decoded_room) lora_->pack(pass.recorder);
}

// Before the forward pass of a layer: gains and, times them, the adapters.
void JointLayers::begin_layer(const At& at) {
  const bool gains = at.pass.dora && at.pass.dora->adapts(at.layer);
  if (gains) at.pass.dora->projections(at.rec, weights_, at.layer);
  if (options_.one_decoded_room) {
    pack_again(at);
  } else if (gains) {
    lora_->pack(at.rec, at.layer);
  }
}

// In the one room where the layers' adapters follow each other.
void JointLayers::pack_again(const At& at) {
  if (!options_.one_decoded_room || !at.pass.lora || std::exchange(holds_.adapters, at.layer) == at.layer) return;
  lora_->pack(at.rec, at.layer);
}

JointLayers::At JointLayers::at(const LayerPass& pass, std::uint32_t layer) const {
  const std::uint32_t tokens = pass.stream.tokens;
  return {.pass = pass,
          .layer = layer,
          .rec = pass.recorder,
          .weights = weights_.layers[layer],
          .kept = first_tokens(activations_[layer], config_, options_, tokens),
          .room = first_tokens(room_, config_, options_, tokens),
          .tokens = tokens};
}

void JointLayers::for_each_chunk(const At& at, const std::function<void(const At&)>& visit) {
  for (std::uint32_t begin = 0; begin < at.tokens; begin += options_.mlp_chunk) {
    const std::uint32_t end = std::min(at.tokens, begin + options_.mlp_chunk);
    holds_.mlp_in.reset(), holds_.hidden.reset();
    visit({.pass = at.pass, .layer = at.layer, .rec = at.rec, .weights = at.weights,
           .kept = chunk_of(at.kept, room_, config_, options_, begin, end), .room = chunk_of(at.room, config_, options_, begin, end),
           .tokens = end - begin, .first_row = begin});
  }
}

Tensor JointLayers::middle(std::uint32_t layer, std::uint32_t tokens) const {
  return activations_[layer].middle.rows(0, tokens);
}

const LoraGroup* JointLayers::adapters(const LayerPass& pass, std::uint32_t layer, Joint joint) const {
  return pass.lora ? lora_->group(layer, joint) : nullptr;
}

// Each adapted projection of each batch has a stream of random numbers of its own.
LoraGroupDropout JointLayers::dropout(const At& at, Joint joint) const {
  LoraGroupDropout dropout{.probability = at.pass.dropout.probability, .seed = at.pass.dropout.seed, .first_row = at.first_row};
  std::size_t i = 0;
  for (const Projection p : members_of(joint)) dropout.streams[i++] = dropout_stream(at.layer, p);
  return dropout;
}

Operand JointLayers::attention_in(const At& at, const Tensor& input) {
  const Operand x{at.room.attention_in, at.kept.attention_in_scale};
  if (std::exchange(holds_.attention_in, at.layer) != at.layer) {
    record(at.rec, RmsNorm{.x = input, .weight = at.weights.input_norm, .rows = {}, .y = x, .inv_rms = at.kept.attention_in_inv_rms,
                           .eps = config_.rms_norm_eps});
  }
  return x;
}

Operand JointLayers::mlp_in(const At& at) {
  const Operand x{at.room.mlp_in, at.kept.mlp_in_scale};
  if (std::exchange(holds_.mlp_in, at.layer) != at.layer) {
    record(at.rec, RmsNorm{.x = at.kept.middle, .weight = at.weights.post_attention_norm, .rows = {}, .y = x,
                           .inv_rms = at.kept.mlp_in_inv_rms, .eps = config_.rms_norm_eps});
  }
  return x;
}

Operand JointLayers::hidden(const At& at) {
  const Operand x{at.room.hidden, at.kept.hidden_scale};
  if (std::exchange(holds_.hidden, at.layer) != at.layer) record(at.rec, SwiGluPair{.gate_up = at.kept.gate_up, .h = x});
  return x;
}

Operand JointLayers::made_again(const At& at, Joint joint, std::optional<std::uint32_t>& holds, const Operand& x) {
  if (!adapters(at.pass, at.layer, joint) || std::exchange(holds, at.layer) == at.layer) return {};
  return x;
}

QkvAttention JointLayers::attention(const At& at) const {
  const DeviceStream& stream = at.pass.stream;
  const Rotation rotation = at.pass.rotations.of(at.layer, stream);
  const KeyCache cache = at.pass.caches.empty() ? KeyCache{} : at.pass.caches[at.layer];
  return {.qkv = at.kept.qkv, .heads = config_.num_heads, .key_heads = config_.num_kv_heads, .q_norm = at.weights.q_norm,
          .k_norm = at.weights.k_norm, .position = rotation.position, .table = rotation.table, .eps = config_.rms_norm_eps,
          .key_begin = stream.key_begin, .key_end = stream.key_end, .pairs = stream.pairs, .o = at.kept.attention,
          .lse = at.kept.log_sum_exp, .room = at.room.attention, .k_cache = cache.k, .v_cache = cache.v,
          .first_key = at.pass.first_key, .own_begin = stream.own_key_begin, .own_end = stream.own_key_end, .most_keys = at.pass.most_keys,
          .apart = at.pass.apart};
}

// Batches of training go by the plan of the longest, prompts, whose lengths differ more, by one of a few.
std::uint32_t JointLayers::plan_rows(const At& at, Joint joint) const { return joint_plan_rows(options_, joint, at.tokens); }

bool JointLayers::few(const At& at, Joint joint) const { return decodes_in_products_ && plan_rows(at, joint) <= most_decoding_rows; }

// The narrow product of a joint weight's adapters, which the backward pass reads too; its second pass, if it has one, is left to the caller.
std::optional<LoraRowsSum> JointLayers::narrow(const At& at, Joint joint, const Operand& x) {
  const LoraGroup* group = adapters(at.pass, at.layer, joint);
  if (!group) return std::nullopt;
  if (few(at, joint)) {
    record(at.rec, LoraDownFew{.group = *group, .x = x.data, .h = at.lora_h(joint)});
    return std::nullopt;
  }
  sums_.add_up(at.rec);
  return record_parts(at.rec, LoraDownMatrix{.group = *group, .x = x.data, .h = at.lora_h(joint), .scratch = at.room.lora_scratch,
                                             .dropout = dropout(at, joint)});
}

// Of few rows in NF4, else decoded.
Weight JointLayers::forward_weight(const At& at, Joint joint, const std::optional<LoraRowsSum>& rows) {
  const auto codes = few(at, joint) ? frozen_.codes(at.rec, at.layer, joint, at.pass.dora) : std::nullopt;
  if (!codes) return frozen_.weight(at.rec, at.layer, joint, MatrixLayout::nt, at.pass.dora, rows);
  return *codes;
}

// y = x W^T + the adapters' share, in f16 where y has a scale, else on top of `plus`.
void JointLayers::project(const At& at, Joint joint, const Operand& x, const Operand& y, const Tensor& plus) {
  const auto rows = narrow(at, joint, x);
  wide(at, joint, x, y, plus, rows);
}

void JointLayers::wide(const At& at, Joint joint, const Operand& x, const Operand& y, const Tensor& plus, const std::optional<LoraRowsSum>& rows) {
  ProductNT product{.path = ProductPath::matrix, .x = x, .w = forward_weight(at, joint, rows), .y = y.data, .y_scale = y.scale, .plus = plus,
                    .scratch = at.room.product_scratch, .plan_rows = plan_rows(at, joint)};
  if (const LoraGroup* group = adapters(at.pass, at.layer, joint)) {
    product.lora = {.left = at.lora_h(joint), .right = group->b, .ends = joint_ends(config_, joint)};
  }
  record(at.rec, product);
}

void JointLayers::forward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& output) {
  holds_ = {};
  const At at = this->at(pass, layer);
  begin_layer(at);
  attention_half(at, input);
  mlp(at, output);
}

void JointLayers::recompute(const LayerPass& pass, std::uint32_t layer, const Tensor& input) {
  const At at = this->at(pass, layer);
  pack_again(at);
  if (shared_.lacks(layer, LayerPart::attention)) attention_half(at, input);
  if (options_.mlp_chunk > 0 || !shared_.lacks(layer, LayerPart::mlp)) return;
  if (experts_) return experts_->recompute(experts_at(pass, layer), at.kept.middle);
  mlp_again(at);
}

// The layer's output is there; of the down product the adapters' narrow one alone is read again.
void JointLayers::mlp_again(const At& at) {
  project(at, Joint::gate_up, mlp_in(at), at.kept.gate_up);
  if (!adapters(at.pass, at.layer, Joint::down)) return;
  if (const auto rows = narrow(at, Joint::down, hidden(at))) record(at.rec, *rows);
}

void JointLayers::attention_half(const At& at, const Tensor& input) {
  holds_.dy.reset();  // dy and sums lie where attention's kernels have their room
  sums_.add_up(at.rec);
  shared_.fill(at.layer, LayerPart::attention);
  project(at, Joint::qkv, attention_in(at, input), at.kept.qkv);
  if (at.weights.qkv_bias) record(at.rec, AddBias{.y = at.kept.qkv, .bias = at.weights.qkv_bias});
  record(at.rec, attention(at));
  project(at, Joint::o, at.kept.attention, {.data = at.kept.middle, .scale = {}}, input);
}

void JointLayers::mlp_forward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& output) {
  holds_ = {};
  const At at = this->at(pass, layer);
  begin_layer(at);
  at.rec.copy(input, at.kept.middle);
  mlp(at, output);
}

void JointLayers::mlp(const At& at, const Tensor& output) {
  shared_.fill(at.layer, LayerPart::mlp);
  if (experts_) return experts_->forward(experts_at(at.pass, at.layer), at.kept.middle, output);
  const auto rows = [&](const At& of) {
    project(of, Joint::gate_up, mlp_in(of), of.kept.gate_up);
    project(of, Joint::down, hidden(of), {.data = output.rows(of.first_row, of.first_row + of.tokens), .scale = {}}, of.kept.middle);
  };
  options_.mlp_chunk > 0 ? for_each_chunk(at, rows) : rows(at);
}

}  // namespace nibble
