#include "nibble/kernels/attention.h"
#include "nibble/kernels/pack_rows.h"
#include "nibble/kernels/qk_norm_rope.h"
#include "nibble/kernels/rms_norm.h"
#include "nibble/kernels/swiglu.h"
#include "nibble/model/layer.h"

namespace nibble {
namespace {

// The lines mirror layer_forward.cpp from its end to its beginning.
class LayerBackward {
 public:
  LayerBackward(const LayerContext& context, std::uint32_t layer, const LayerActivations& a, const Scratch& scratch)
      : context_(context), rec_(context.recorder), layer_(layer), a_(a), s_(scratch) {}

  void mlp(const Tensor& dx) {
    const Operand dy = as_operand(rec_, dx, s_.dy);
    project(Projection::down, a_.mlp_hidden, dy, s_.d_hidden, false, {.y_room = s_.dora_y});
    record(rec_, SwiGluBackward{.dh = s_.d_hidden, .gate = a_.gate, .up = a_.up, .d_gate = s_.d_gate, .d_up = s_.d_up});
    project(Projection::up, a_.mlp_in, s_.d_up, s_.d_normed, false, {.y = a_.up});
    project(Projection::gate, a_.mlp_in, s_.d_gate, s_.d_normed, true, {.y = a_.gate});
    record(rec_, RmsNormBackward{.dy = s_.d_normed, .x = a_.middle,
                                 .weight = context_.weights.layers[layer_].post_attention_norm,
                                 .inv_rms = a_.mlp_in_inv_rms, .dx = dx});
  }

  void attention(const Tensor& input, const Tensor& dx, bool input_gradient) {
    const LayerWeights& weights = context_.weights.layers[layer_];
    const DeviceStream& stream = context_.stream;
    const Rotation& rotation = context_.rotation;
    const Operand dy = as_operand(rec_, dx, s_.dy);
    project(Projection::o, a_.attention_packed, dy, s_.d_attention, false, {.y_room = s_.dora_y});
    record(rec_, AttentionBackward{.q = a_.q_heads, .k = a_.k_heads, .v = a_.v_heads, .key_begin = stream.key_begin,
                                   .key_end = stream.key_end, .query_end = stream.query_end, .o = a_.attention,
                                   .d_o = s_.d_attention, .lse = a_.log_sum_exp, .delta = s_.attention_delta,
                                   .dq = s_.dq_heads, .dk = s_.dk_heads, .dv = s_.dv_heads, .pairs = stream.pairs});
    record(rec_, FromHeads{.dy = s_.dv_heads, .dx = s_.dv});
    record(rec_, QkNormRopeBackward{.dy = s_.dk_heads, .x = {a_.k}, .weight = weights.k_norm, .position = rotation.position,
                                    .table = rotation.table, .inv_rms = a_.k_inv_rms, .dx = s_.dk});
    record(rec_, QkNormRopeBackward{.dy = s_.dq_heads, .x = {a_.q}, .weight = weights.q_norm, .position = rotation.position,
                                    .table = rotation.table, .inv_rms = a_.q_inv_rms, .dx = s_.dq});
    const Tensor d_normed = input_gradient ? s_.d_normed : Tensor{};
    if (context_.linear.dora) record(rec_, FromHeads{.dy = a_.v_heads, .dx = s_.v});
    const std::uint32_t q_width = a_.q.dim(1), kv_width = a_.k.dim(1);
    const Tensor& bias = weights.qkv_bias;
    project(Projection::v, a_.attention_in, as_operand(rec_, s_.dv, s_.dv_packed), d_normed, false,
            {.y = s_.v, .bias = bias, .bias_first = q_width + kv_width});
    project(Projection::k, a_.attention_in, as_operand(rec_, s_.dk, s_.dk_packed), d_normed, true, {.y = a_.k, .bias = bias, .bias_first = q_width});
    project(Projection::q, a_.attention_in, as_operand(rec_, s_.dq, s_.dq_packed), d_normed, true, {.y = a_.q, .bias = bias});
    if (!input_gradient) return;
    record(rec_, RmsNormBackward{.dy = s_.d_normed, .x = input, .weight = weights.input_norm,
                                 .inv_rms = a_.attention_in_inv_rms, .dx = dx});
  }

 private:
  void project(Projection p, const Operand& x, const Operand& dy, const Tensor& dx, bool accumulate, LinearDora dora) {
    dora.db_room = s_.dora_db;
    record(rec_, context_.linear,
           LinearBackward{.site = {layer_, p}, .x = x, .dy = dy, .h = a_.lora_h[static_cast<std::size_t>(p)],
                          .dh = s_.lora_dh, .lora_scratch = s_.lora_scratch, .dx = dx, .accumulate = accumulate,
                          .dora = dora});
  }

  const LayerContext& context_;
  gpu::Recorder& rec_;
  std::uint32_t layer_;
  const LayerActivations& a_;
  const Scratch& s_;
};

}  // namespace

void attention_backward(const LayerContext& context, std::uint32_t layer, const Tensor& input,
                        const LayerActivations& activations, const Scratch& scratch, const Tensor& dx, bool input_gradient) {
  LayerBackward(context, layer, activations, scratch).attention(input, dx, input_gradient);
}

void mlp_backward(const LayerContext& context, std::uint32_t layer, const LayerActivations& activations,
                  const Scratch& scratch, const Tensor& dx) {
  LayerBackward(context, layer, activations, scratch).mlp(dx);
}

}  // namespace nibble
