#include "nibble/model/layers.h"

#include "nibble/model/joint_layers.h"
#include "nibble/model/plain_layers.h"

namespace nibble {

std::unique_ptr<Layers> make_layers(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights,
                                    const LoraWeights* lora, const LayersOptions& options) {
  if (JointLayers::fits(device, config, options)) return std::make_unique<JointLayers>(device, config, weights, lora, options);
  return std::make_unique<PlainLayers>(device, config, weights, options);
}

LayersBytes layers_bytes(const gpu::Device& device, const ModelConfig& config, const LayersOptions& options) {
  if (JointLayers::fits(device, config, options)) return JointLayers::bytes(device, config, options);
  return PlainLayers::bytes(device, config, options);
}

}  // namespace nibble
