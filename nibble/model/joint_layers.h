#pragma once

#include "nibble/kernels/lora_matrix.h"
#include "nibble/kernels/product.h"
#include "nibble/model/expert_mlp.h"
#include "nibble/model/joint_activations.h"
#include "nibble/model/layers.h"

#include <functional>
#include <optional>
#include <vector>

namespace nibble {

// For adapters with matrix units: projections that share an input are one product, their adapters a few more steps of it, and
// what lies between kernels is f16 with row scales. The residual stream and its gradient stay f32.
class JointLayers : public Layers {
 public:
  JointLayers(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const LoraWeights* lora,
              const LayersOptions& options);

  // Whether the kernels have room for such sizes. Else PlainLayers serve.
  static bool fits(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options);
  static LayersBytes bytes(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options);

  void begin(const LayerPass& pass) override;
  void forward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& output) override;
  void recompute(const LayerPass& pass, std::uint32_t layer, const Tensor& input) override;
  void backward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& dx,
                bool input_gradient) override;
  void end(const LayerPass& pass) override;
  void mlp_forward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& output) override;
  void mlp_backward(const LayerPass& pass, std::uint32_t layer, const Tensor& dx) override;
  Tensor middle(std::uint32_t layer, std::uint32_t tokens) const override;

 private:
  // A layer within a pass, with views of what its tokens take.
  struct At;
  // The layers that what is made again was last made for; of a chunk of the MLP, in it.
  struct Holds {
    std::optional<std::uint32_t> attention_in, mlp_in, hidden, adapters;
    std::optional<std::uint32_t> dy;  // at whose output the residual stream's gradient is packed
  };

  At at(const LayerPass& pass, std::uint32_t layer) const;
  const LoraGroup* adapters(const LayerPass& pass, std::uint32_t layer, Joint joint) const;
  LoraGroupDropout dropout(const At& at, Joint joint) const;
  // In their order. Nothing is known of what was made again for another one.
  void for_each_chunk(const At& at, const std::function<void(const At&)>& visit);

  void begin_layer(const At& at);
  void pack_again(const At& at);
  Operand attention_in(const At& at, const Tensor& input);
  Operand mlp_in(const At& at);
  Operand hidden(const At& at);
  // x, where the backward pass has to make it again for the joint weight's adapters.
  Operand made_again(const At& at, Joint joint, std::optional<std::uint32_t>& holds, const Operand& x);
  QkvAttention attention(const At& at) const;
  std::uint32_t plan_rows(const At& at, Joint joint) const;

  // Whether there are few enough rows for products that read NF4 themselves, where the weight has one code book.
  bool few(const At& at, Joint joint) const;
  std::optional<LoraRowsSum> narrow(const At& at, Joint joint, const Operand& x);
  Weight forward_weight(const At& at, Joint joint, const std::optional<LoraRowsSum>& rows);
  void wide(const At& at, Joint joint, const Operand& x, const Operand& y, const Tensor& plus, const std::optional<LoraRowsSum>& rows = {});
  void project(const At& at, Joint joint, const Operand& x, const Operand& y, const Tensor& plus = {});
  void gradients(const At& at, Joint joint, const Operand& x, const Operand& dy, const Operand& dx,
                 const std::function<void()>& next = [] {}, SplitSums* dx_sums = nullptr);
  void dora_gradients(const At& at, Joint joint, const Operand& x, const Operand& dy);
  void input_gradient(const At& at, Joint joint, const Operand& dy, const Operand& dx, const std::optional<LoraRowsSum>& rows, SplitSums* dx_sums);
  void dropped_input_gradient(const At& at, Joint joint, const Operand& dy, const Operand& dx, const std::optional<LoraRowsSum>& rows);
  void attention_half(const At& at, const Tensor& input);
  void mlp(const At& at, const Tensor& output);
  void mlp_again(const At& at);
  void mlp_gradients(const At& at, const Tensor& dx);
  void gradients_of_rows(const At& at, const Tensor& dx);
  SplitSums* taken_by_norm(const At& at, SplitSums& sums) const;

  ModelConfig config_;
  const DeviceWeights& weights_;
  LayersOptions options_;
  bool decodes_in_products_;
  JointWeights frozen_;
  std::optional<JointLora> lora_;
  std::vector<JointActivations> activations_;  // of each layer
  SharedActivations shared_;
  std::optional<ExpertMlp> experts_;  // where the model has them
  JointRoom room_;
  LoraSums sums_;  // wait in the room's scratch until something else takes it: attention, or narrow products of a forward pass, of recompute and of chunks
  Holds holds_;
};

}  // namespace nibble
