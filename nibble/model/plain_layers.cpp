#include "nibble/model/plain_layers.h"

namespace nibble {
namespace {

ActivationShape shape_of(const ModelConfig& config, const LayersOptions& options) {
  return {.tokens = options.max_tokens, .config = &config, .path = options.path, .rank = options.rank};
}

std::uint32_t sets_of(const ModelConfig& config, const LayersOptions& options) {
  return options.keeps_all ? config.num_layers : 1;
}

}  // namespace

PlainLayers::PlainLayers(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights,
                         const LayersOptions& options)
    : config_(config), weights_(weights), path_(options.path), frozen_(device, weights, options.path, options.residency) {
  for (std::uint32_t i = 0; i < sets_of(config_, options); ++i) {
    activations_.push_back(make_layer_activations(device, shape_of(config_, options)));
  }
  scratch_ = make_scratch(device, shape_of(config_, options), options.trainable);
}

LayersBytes PlainLayers::bytes(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options) {
  const ActivationShape shape = shape_of(config, options);
  return {.decoded_weights = FrozenWeights::decoded_bytes(config, options.path, options.residency),
          .activations = sets_of(config, options) * layer_activation_bytes(shape),
          .scratch = scratch_bytes(device, shape, options.trainable)};
}

LinearContext PlainLayers::linear(const LayerPass& pass) {
  return {.path = path_, .frozen = &frozen_, .lora = pass.lora, .dropout = pass.dropout};
}

LayerActivations PlainLayers::activations_of(std::uint32_t layer, std::uint32_t tokens) const {
  return first_tokens(activations_[layer % activations_.size()], config_, tokens);
}

Tensor PlainLayers::middle(std::uint32_t layer, std::uint32_t tokens) const { return activations_of(layer, tokens).middle; }

void PlainLayers::forward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& output) {
  const LinearContext linears = linear(pass);
  LayerActivations activations = activations_of(layer, pass.stream.tokens);
  if (!pass.caches.empty()) activations.k_heads = pass.caches[layer].k, activations.v_heads = pass.caches[layer].v;
  layer_forward({pass.recorder, config_, weights_, linears, pass.stream, pass.rope, pass.first_key}, layer, input, activations,
                first_tokens(scratch_, config_, pass.stream.tokens), output);
}

void PlainLayers::backward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& dx,
                           bool input_gradient) {
  const LinearContext linears = linear(pass);
  layer_backward({pass.recorder, config_, weights_, linears, pass.stream, pass.rope}, layer, input,
                 activations_of(layer, pass.stream.tokens), first_tokens(scratch_, config_, pass.stream.tokens), dx,
                 input_gradient);
}

void PlainLayers::mlp_forward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& output) {
  const LinearContext linears = linear(pass);
  LayerActivations activations = activations_of(layer, pass.stream.tokens);
  pass.recorder.copy(input, activations.middle);
  nibble::mlp_forward({pass.recorder, config_, weights_, linears, pass.stream, pass.rope}, layer, activations, output);
}

void PlainLayers::mlp_backward(const LayerPass& pass, std::uint32_t layer, const Tensor& dx) {
  const LinearContext linears = linear(pass);
  nibble::mlp_backward({pass.recorder, config_, weights_, linears, pass.stream, pass.rope}, layer,
                       activations_of(layer, pass.stream.tokens), first_tokens(scratch_, config_, pass.stream.tokens), dx);
}

}  // namespace nibble
