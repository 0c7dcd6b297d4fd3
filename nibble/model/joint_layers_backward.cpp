#include "nibble/model/joint_layers_at.h"

#include "nibble/kernels/dora.h"
#include "nibble/kernels/lora.h"
#include "nibble/kernels/pack_rows.h"
#include "nibble/kernels/product.h"
#include "nibble/kernels/rms_norm.h"
#include "nibble/kernels/swiglu_pair.h"

namespace nibble {

// Adds to the gradients of the adapters, by end() at the latest, and writes dx = dy W + the adapters' share, in f16 where it has a scale; without
// data of dx the adapters alone. What comes `next` may make x, of which the scale alone is read before; where it takes `dx_sums`, dx may be
// left so.
void JointLayers::gradients(const At& at, Joint joint, const Operand& x, const Operand& dy, const Operand& dx,
                            const std::function<void()>& next, SplitSums* dx_sums) {
  std::optional<LoraBackward> lora;
  if (const LoraGroup* group = adapters(at.pass, at.layer, joint)) {
    const auto [da, db] = at.pass.dora ? lora_->gradients(at.layer, joint, at.room.dora_db) : lora_->gradients(at.layer, joint);
    if (at.pass.dora) at.rec.clear(at.room.dora_db);
    lora.emplace(at.rec, LoraBackwardMatrix{.group = *group, .x = x, .dy = dy, .h = at.lora_h(joint), .dh = at.lora_dh(*group), .da = da,
                                            .db = db, .scratch = at.room.lora_scratch,
                                            .dropout = dropout(at, joint), .sums = at.pass.dora ? nullptr : &sums_});
  }
  if (dx.data) input_gradient(at, joint, dy, dx, lora ? lora->take_rows() : std::nullopt, dx_sums);
  next();
  if (lora) lora->finish();
  if (lora && at.pass.dora) dora_gradients(at, joint, x, dy);
}

// What gains change of the gradients. Two of the joint weights' outputs are kept; the others, which went into the residual stream,
// are computed again.
void JointLayers::dora_gradients(const At& at, Joint joint, const Operand& x, const Operand& dy) {
  Operand y{at.room.dora_y, {}};
  if (joint == Joint::qkv) y = at.kept.qkv;
  if (joint == Joint::gate_up) y = at.kept.gate_up;
  if (!y.scale) wide(at, joint, x, y, {});
  const JointLora::Gradients read = lora_->gradients(at.layer, joint, at.room.dora_db);
  std::uint32_t first = 0;
  std::size_t i = 0;
  for (const Projection p : members_of(joint)) {
    const LoraSlot& slot = at.pass.lora->slot(at.layer, p);
    if (slot.used()) {
      record(at.rec, DoraGradientB{.db_read = read.b[i], .gain = slot.gain, .db = slot.b_grad});
      record(at.rec, DoraGradientMagnitude{.dy = dy, .y = y, .first = first, .bias = joint == Joint::qkv ? at.weights.qkv_bias : Tensor{},
                                           .bias_first = first, .magnitude = slot.magnitude, .d_magnitude = slot.magnitude_grad});
    }
    first += projection_dims(config_, p).out;
    ++i;
  }
}

void JointLayers::input_gradient(const At& at, Joint joint, const Operand& dy, const Operand& dx, const std::optional<LoraRowsSum>& rows,
                                 SplitSums* dx_sums) {
  const LoraGroup* group = adapters(at.pass, at.layer, joint);
  if (group && at.pass.dropout.probability > 0) return dropped_input_gradient(at, joint, dy, dx, rows);
  ProductNN product{.path = ProductPath::matrix, .x = dy, .w = frozen_.weight(at.rec, at.layer, joint, MatrixLayout::nn, at.pass.dora, rows),
                    .y = dx.data, .y_scale = dx.scale, .scratch = at.room.product_scratch,
                    .plan_rows = plan_rows(at, joint), .sums = dx_sums};
  if (group) product.lora = {.left = at.lora_dh(*group), .right = group->a};
  record(at.rec, product);
}

// Dropout's mask lies between the adapters' share and the sum.
void JointLayers::dropped_input_gradient(const At& at, Joint joint, const Operand& dy, const Operand& dx, const std::optional<LoraRowsSum>& rows) {
  const LoraGroup& group = *lora_->group(at.layer, joint);
  const Tensor sum = dx.scale ? at.room.d_inputs.view({at.tokens, dx.data.dim(1)}) : dx.data;
  record(at.rec, ProductNN{.path = ProductPath::matrix, .x = dy, .w = frozen_.weight(at.rec, at.layer, joint, MatrixLayout::nn, at.pass.dora, rows),
                           .y = sum, .scratch = at.room.product_scratch, .plan_rows = plan_rows(at, joint)});
  const LoraGroupDropout dropped = dropout(at, joint);
  std::uint32_t i = 0;
  for (const Projection p : members_of(joint)) {
    const LoraSlot& slot = at.pass.lora->slot(at.layer, p);
    if (slot.used()) {
      record(at.rec, LoraUnpack{.group = group, .projection = i, .dh = at.lora_dh(group),
                                .scale = dy.scale, .values = at.room.lora_dh_values});
      record(at.rec, LoraDownBackwardInput{.dh = at.room.lora_dh_values, .a = slot.a, .dx = sum,
                                           .dropout = {.probability = dropped.probability, .seed = dropped.seed,
                                                       .stream = dropped.streams[i], .first_row = dropped.first_row}});
    }
    ++i;
  }
  if (dx.scale) record(at.rec, PackRows{.x = sum, .y = dx});
}

void JointLayers::mlp_backward(const LayerPass& pass, std::uint32_t layer, const Tensor& dx) {
  const At at = this->at(pass, layer);
  pack_again(at);
  mlp_gradients(at, dx);
}

// Leaves dx packed in at.room.dy, as attention's half takes it.
void JointLayers::mlp_gradients(const At& at, const Tensor& dx) {
  if (experts_) {
    experts_->backward(experts_at(at.pass, at.layer), at.kept.middle, dx);
    return record(at.rec, PackRows{.x = dx, .y = at.room.dy});
  }
  if (options_.mlp_chunk == 0) return gradients_of_rows(at, dx);
  for_each_chunk(at, [&](const At& chunk) {
    mlp_again(chunk);
    gradients_of_rows(chunk, dx.rows(chunk.first_row, chunk.first_row + chunk.tokens));
  });
}

// Of the gradient of a norm's output; null where the norm wants that whole.
SplitSums* JointLayers::taken_by_norm(const At& at, SplitSums& sums) const {
  return takes_split_sums(at.rec.device(), at.tokens, config_.hidden_size) ? &sums : nullptr;
}

void JointLayers::gradients_of_rows(const At& at, const Tensor& dx) {
  const Operand d_hidden = narrowed(at.room.d_narrow, config_.intermediate_size);
  const Operand d_gate_up = narrowed(at.room.d_wide, 2 * config_.intermediate_size);
  const Operand hidden{at.room.hidden, at.kept.hidden_scale}, mlp_in{at.room.mlp_in, at.kept.mlp_in_scale};
  if (holds_.dy != at.layer) record(at.rec, PackRows{.x = dx, .y = at.room.dy});
  gradients(at, Joint::down, hidden, at.room.dy, d_hidden, [&] {
    record(at.rec, SwiGluPairBackward{.dh = d_hidden, .gate_up = at.kept.gate_up, .d_gate_up = d_gate_up,
                                      .h = made_again(at, Joint::down, holds_.hidden, hidden)});
  });
  SplitSums sums;
  gradients(at, Joint::gate_up, mlp_in, d_gate_up, {.data = at.room.d_normed, .scale = {}}, [&] {
    record(at.rec, RmsNormBackward{.dy = at.room.d_normed, .x = at.kept.middle, .weight = at.weights.post_attention_norm,
                                   .inv_rms = at.kept.mlp_in_inv_rms, .rows = {}, .dx = dx, .packed = at.room.dy,
                                   .y = made_again(at, Joint::gate_up, holds_.mlp_in, mlp_in), .sums = sums});
  }, taken_by_norm(at, sums));
}

void JointLayers::backward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& dx,
                           bool input_gradient) {
  const At at = this->at(pass, layer);
  pack_again(at);
  mlp_gradients(at, dx);
  holds_.dy.reset();
  const Operand d_attention = narrowed(at.room.d_narrow, at.kept.attention.data.dim(1));
  const Operand d_qkv = narrowed(at.room.d_wide, at.kept.qkv.data.dim(1));
  gradients(at, Joint::o, at.kept.attention, at.room.dy, d_attention);
  sums_.add_up(at.rec);
  record(at.rec, QkvAttentionBackward{.forward = attention(at), .query_end = pass.stream.query_end, .d_o = d_attention,
                                      .d_qkv = d_qkv});
  if (!input_gradient) return gradients(at, Joint::qkv, attention_in(at, input), d_qkv, {});
  const Operand attention_in{at.room.attention_in, at.kept.attention_in_scale};
  SplitSums sums;
  const bool packs = layer > 0 && !experts_;  // as the layer below takes it; experts first add to dx
  gradients(at, Joint::qkv, attention_in, d_qkv, {.data = at.room.d_normed, .scale = {}}, [&] {
    record(at.rec, RmsNormBackward{.dy = at.room.d_normed, .x = input, .weight = at.weights.input_norm,
                                   .inv_rms = at.kept.attention_in_inv_rms, .rows = {}, .dx = dx, .packed = packs ? at.room.dy : Operand{},
                                   .y = made_again(at, Joint::qkv, holds_.attention_in, attention_in), .sums = sums});
  }, taken_by_norm(at, sums));
  if (packs) holds_.dy = layer - 1;
}

// Another pass may bring another gradient.
void JointLayers::end(const LayerPass& pass) {
  holds_.dy.reset();
  sums_.add_up(pass.recorder);
}

}  // namespace nibble
