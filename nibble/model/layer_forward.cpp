#include "nibble/kernels/add_bias.h"
#include "nibble/kernels/attention.h"
#include "nibble/kernels/pack_rows.h"
#include "nibble/kernels/qk_norm_rope.h"
#include "nibble/kernels/rms_norm.h"
#include "nibble/kernels/swiglu.h"
#include "nibble/model/layer.h"

namespace nibble {

void attention_forward(const LayerContext& context, std::uint32_t layer, const Tensor& input, LayerActivations& a,
                       const Scratch& scratch) {
  auto& rec = context.recorder;
  const LayerWeights& weights = context.weights.layers[layer];
  const auto project = [&](Projection p, const Operand& x, const Tensor& y, bool accumulate) {
    record(rec, context.linear,
           LinearForward{.site = {layer, p}, .x = x, .y = y, .accumulate = accumulate,
                         .h = a.lora_h[static_cast<std::size_t>(p)]});
  };
  record(rec, RmsNorm{.x = input, .weight = weights.input_norm, .y = a.attention_in, .inv_rms = a.attention_in_inv_rms,
                      .eps = context.config.rms_norm_eps});
  project(Projection::q, a.attention_in, a.q, false);
  project(Projection::k, a.attention_in, a.k, false);
  project(Projection::v, a.attention_in, scratch.v, false);
  if (weights.qkv_bias) {
    std::uint32_t first = 0;
    for (const Tensor& y : {a.q, a.k, scratch.v}) {
      record(rec, AddBias{.y = {y, {}}, .bias = weights.qkv_bias, .first = first});
      first += y.dim(1);
    }
  }
  record(rec, QkNormRope{.x = {a.q}, .weight = weights.q_norm, .position = context.rotation.position, .table = context.rotation.table,
                         .y = a.q_heads, .inv_rms = a.q_inv_rms, .eps = context.config.rms_norm_eps});
  record(rec, QkNormRope{.x = {a.k}, .weight = weights.k_norm, .position = context.rotation.position, .table = context.rotation.table,
                         .y = a.k_heads, .inv_rms = a.k_inv_rms, .eps = context.config.rms_norm_eps,
                         .row_offset = context.first_key});
  record(rec, ToHeads{.x = {scratch.v}, .y = a.v_heads, .row_offset = context.first_key});
  record(rec, Attention{.q = a.q_heads, .k = a.k_heads, .v = a.v_heads, .key_begin = context.stream.key_begin,
                        .key_end = context.stream.key_end, .o = a.attention, .lse = a.log_sum_exp, .pairs = context.stream.pairs});
  as_operand(rec, a.attention, a.attention_packed);
  rec.copy(input, a.middle);
  project(Projection::o, a.attention_packed, a.middle, true);
}

namespace {

void up_to_hidden(const LayerContext& context, std::uint32_t layer, LayerActivations& a) {
  auto& rec = context.recorder;
  const auto project = [&](Projection p, const Operand& x, const Tensor& y) {
    record(rec, context.linear,
           LinearForward{.site = {layer, p}, .x = x, .y = y, .h = a.lora_h[static_cast<std::size_t>(p)]});
  };
  record(rec, RmsNorm{.x = a.middle, .weight = context.weights.layers[layer].post_attention_norm, .y = a.mlp_in,
                      .inv_rms = a.mlp_in_inv_rms, .eps = context.config.rms_norm_eps});
  project(Projection::gate, a.mlp_in, a.gate);
  project(Projection::up, a.mlp_in, a.up);
  record(rec, SwiGlu{.gate = a.gate, .up = a.up, .h = a.mlp_hidden});
}

const Tensor& h_of_down(const LayerActivations& a) { return a.lora_h[static_cast<std::size_t>(Projection::down)]; }

}  // namespace

void mlp_forward(const LayerContext& context, std::uint32_t layer, LayerActivations& a, const Tensor& output) {
  up_to_hidden(context, layer, a);
  context.recorder.copy(a.middle, output);
  record(context.recorder, context.linear,
         LinearForward{.site = {layer, Projection::down}, .x = a.mlp_hidden, .y = output, .accumulate = true, .h = h_of_down(a)});
}

void recompute_mlp(const LayerContext& context, std::uint32_t layer, LayerActivations& a) {
  up_to_hidden(context, layer, a);
  record(context.recorder, context.linear, LinearNarrow{.site = {layer, Projection::down}, .x = a.mlp_hidden, .h = h_of_down(a)});
}

}  // namespace nibble
