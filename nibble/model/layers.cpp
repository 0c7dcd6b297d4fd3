#include "nibble/model/layers.h"

#include "nibble/model/joint_layers.h"
#include "nibble/model/plain_layers.h"

#include "nibble/base/error.h"

#include <algorithm>

namespace nibble {

void check_mlp_chunk(const ModelConfig& config, const ActivationChoices& choices, std::uint32_t chunk) {
  if (chunk == 0) return;
  check<UsageError>(!config.has_experts(), "--mlp-chunk", "The MLPs of this model are mixtures of experts, which have no chunks of rows; leave it out.");
  check<UsageError>(chunk % mlp_chunk_multiple == 0, "--mlp-chunk", "A chunk of {} rows was asked for; give a multiple of {}.", chunk,
                    mlp_chunk_multiple);
  const bool kept = choices.empty() || std::find(choices.begin(), choices.end(), Activations::keep) != choices.end();
  check<UsageError>(!kept, "--mlp-chunk", "Chunks of the MLP are computed again by the backward pass, which gradient checkpointing has to allow.");
}


std::unique_ptr<Layers> make_layers(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights,
                                    const LoraWeights* lora, const LayersOptions& options) {
  check_mlp_chunk(config, options.activations, options.mlp_chunk);
  if (JointLayers::fits(device, config, options)) return std::make_unique<JointLayers>(device, config, weights, lora, options);
  return std::make_unique<PlainLayers>(device, config, weights, options);
}

std::uint32_t texts_apart(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options) {
  return JointLayers::fits(device, config, options) ? attention_part_rows : 0;
}

LayersBytes layers_bytes(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options) {
  if (JointLayers::fits(device, config, options)) return JointLayers::bytes(device, config, options);
  return PlainLayers::bytes(device, config, options);
}

}  // namespace nibble
