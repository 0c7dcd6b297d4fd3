#include "nibble/model/plain_layers.h"

#include <algorithm>

namespace nibble {
namespace {

ActivationShape shape_of(const ModelConfig& config, const LayersOptions& options) {
  return {.tokens = options.max_tokens, .config = &config, .path = options.path, .rank = options.rank, .use_dora = options.use_dora,
          .mlp_chunk = options.mlp_chunk};
}

}  // namespace

PlainLayers::PlainLayers(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights,
                         const LayersOptions& options)
    : config_(config),
      weights_(weights),
      path_(options.path),
      mlp_chunk_(options.mlp_chunk),
      frozen_(device, weights, config, options.path, options.residency, options.one_decoded_room),
      activations_(make_layer_activations(device, shape_of(config_, options), options.activations)),
      shared_(options.activations),
      scratch_(make_scratch(device, shape_of(config_, options), options.trainable)) {
  if (mlp_chunk_ > 0) chunk_ = make_mlp_chunk(device, shape_of(config_, options));
  if (config_.has_experts()) experts_.emplace(device, config_, weights_, options);
}

LayersBytes PlainLayers::bytes(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options) {
  const ActivationShape shape = shape_of(config, options);
  std::uint64_t activations = 0;
  for (const LayerPart part : {LayerPart::attention, LayerPart::mlp}) {
    const bool chunk = part == LayerPart::mlp && options.mlp_chunk > 0;
    activations += layer_activation_bytes(shape, part, chunk ? 1 : activation_sets(options.activations, config.num_layers, part));
  }
  const LayersBytes experts = config.has_experts() ? ExpertMlp::bytes(device, config, options) : LayersBytes{};
  return {.decoded_weights = FrozenWeights::bytes(config, options.path, options.residency, options.one_decoded_room),
          .activations = activations + experts.activations,
          .scratch = scratch_bytes(device, shape, options.trainable) + experts.scratch};
}

void PlainLayers::begin(const LayerPass& pass) {
  shared_.forget();
  if (pass.dora) pass.dora->renew();
}

LinearContext PlainLayers::linear(const LayerPass& pass) {
  return {.path = path_, .frozen = &frozen_, .lora = pass.lora, .dora = pass.dora, .dropout = pass.dropout};
}

LayerContext PlainLayers::at(const LayerPass& pass, const LinearContext& linears, std::uint32_t layer) const {
  return {.recorder = pass.recorder, .config = config_, .weights = weights_, .linear = linears, .stream = pass.stream,
          .rotation = pass.rotations.of(layer, pass.stream), .first_key = pass.first_key};
}

LayerActivations PlainLayers::activations_of(std::uint32_t layer, std::uint32_t tokens) const {
  return first_tokens(activations_[layer], config_, tokens);
}

Tensor PlainLayers::middle(std::uint32_t layer, std::uint32_t tokens) const { return activations_of(layer, tokens).middle; }

void PlainLayers::forward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& output) {
  const LinearContext linears = linear(pass);
  LayerActivations activations = activations_of(layer, pass.stream.tokens);
  for (const LayerPart part : {LayerPart::attention, LayerPart::mlp}) shared_.fill(layer, part);
  if (!pass.caches.empty()) activations.k_heads = pass.caches[layer].k, activations.v_heads = pass.caches[layer].v;
  attention_forward(at(pass, linears, layer), layer, input, activations, first_tokens(scratch_, config_, pass.stream.tokens));
  mlp(pass, layer, activations, output);
}

void PlainLayers::recompute(const LayerPass& pass, std::uint32_t layer, const Tensor& input) {
  const LinearContext linears = linear(pass);
  const LayerContext context = at(pass, linears, layer);
  LayerActivations activations = activations_of(layer, pass.stream.tokens);
  if (shared_.lacks(layer, LayerPart::attention)) {
    attention_forward(context, layer, input, activations, first_tokens(scratch_, config_, pass.stream.tokens));
  }
  if (mlp_chunk_ > 0 || !shared_.lacks(layer, LayerPart::mlp)) return;
  if (experts_) {
    experts_->recompute(experts_at(pass, layer), activations.middle);
  } else {
    recompute_mlp(context, layer, activations);
  }
}

void PlainLayers::backward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& dx,
                           bool input_gradient) {
  mlp_backward(pass, layer, dx);
  const LinearContext linears = linear(pass);
  attention_backward(at(pass, linears, layer), layer, input, activations_of(layer, pass.stream.tokens),
                     first_tokens(scratch_, config_, pass.stream.tokens), dx, input_gradient);
}

void PlainLayers::mlp(const LayerPass& pass, std::uint32_t layer, LayerActivations& activations, const Tensor& output) {
  if (experts_) return experts_->forward(experts_at(pass, layer), activations.middle, output);
  if (mlp_chunk_ > 0) {
    return for_each_chunk(pass, layer, activations, [&](const LayerContext& context, LayerActivations& chunk, std::uint32_t begin, std::uint32_t end) {
      nibble::mlp_forward(context, layer, chunk, output.rows(begin, end));
    });
  }
  const LinearContext linears = linear(pass);
  nibble::mlp_forward(at(pass, linears, layer), layer, activations, output);
}

void PlainLayers::for_each_chunk(const LayerPass& pass, std::uint32_t layer, const LayerActivations& activations, const VisitChunk& visit) {
  for (std::uint32_t begin = 0; begin < pass.stream.tokens; begin += mlp_chunk_) {
    const std::uint32_t end = std::min(pass.stream.tokens, begin + mlp_chunk_);
    LinearContext linears = linear(pass);
    linears.dropout.first_row = begin;
    LayerActivations chunk = chunk_of(activations, chunk_, config_, begin, end);
    visit(at(pass, linears, layer), chunk, begin, end);
  }
}

void PlainLayers::mlp_forward(const LayerPass& pass, std::uint32_t layer, const Tensor& input, const Tensor& output) {
  LayerActivations activations = activations_of(layer, pass.stream.tokens);
  pass.recorder.copy(input, activations.middle);
  mlp(pass, layer, activations, output);
}

void PlainLayers::mlp_backward(const LayerPass& pass, std::uint32_t layer, const Tensor& dx) {
  const LayerActivations activations = activations_of(layer, pass.stream.tokens);
  if (experts_) return experts_->backward(experts_at(pass, layer), activations.middle, dx);
  if (mlp_chunk_ > 0) {
    return for_each_chunk(pass, layer, activations, [&](const LayerContext& context, LayerActivations& chunk, std::uint32_t begin, std::uint32_t end) {
      recompute_mlp(context, layer, chunk);
      nibble::mlp_backward(context, layer, chunk, first_tokens(scratch_, config_, end - begin), dx.rows(begin, end));
    });
  }
  const LinearContext linears = linear(pass);
  nibble::mlp_backward(at(pass, linears, layer), layer, activations, first_tokens(scratch_, config_, pass.stream.tokens), dx);
}

}  // namespace nibble
