#pragma once

#include "nibble/model/expert_mlp.h"
#include "nibble/model/layer.h"
#include "nibble/model/layers.h"

#include <functional>
#include <optional>
#include <vector>

namespace nibble {

// Every projection a product by itself, values between kernels f32: for all adapters and paths.
class PlainLayers : public Layers {
 public:
  PlainLayers(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const LayersOptions& options);

  void begin(const LayerPass& pass) override;
  void forward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& output) override;
  void recompute(const LayerPass& pass, std::uint32_t layer, const Tensor& input) override;
  void backward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& dx,
                bool input_gradient) override;
  void mlp_forward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& output) override;
  void mlp_backward(const LayerPass& pass, std::uint32_t layer, const Tensor& dx) override;
  Tensor middle(std::uint32_t layer, std::uint32_t tokens) const override;

  static LayersBytes bytes(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options);

 private:
  LinearContext linear(const LayerPass& pass);
  LayerContext at(const LayerPass& pass, const LinearContext& linears, std::uint32_t layer) const;
  void mlp(const LayerPass& pass, std::uint32_t layer, LayerActivations& activations, const Tensor& output);
  using VisitChunk = std::function<void(const LayerContext&, LayerActivations& chunk, std::uint32_t begin, std::uint32_t end)>;
  // In their order, of a pass's tokens.
  void for_each_chunk(const LayerPass& pass, std::uint32_t layer, const LayerActivations& activations, const VisitChunk& visit);
  LayerActivations activations_of(std::uint32_t layer, std::uint32_t tokens) const;

  ModelConfig config_;
  const DeviceWeights& weights_;
  ProductPath path_;
  std::uint32_t mlp_chunk_;
  FrozenWeights frozen_;
  std::vector<LayerActivations> activations_;  // of each layer
  SharedActivations shared_;
  LayerActivations chunk_;  // of the MLP, where it goes in chunks
  Scratch scratch_;
  std::optional<ExpertMlp> experts_;  // where the model has them
};

}  // namespace nibble
