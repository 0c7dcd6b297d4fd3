#pragma once

#include "nibble/kernels/layer_step.h"
#include "nibble/model/decode_layers.h"

namespace nibble {

// The layers for one new token of one text, a dispatch each (kernels/layer_step.h).
class StepLayers {
 public:
  // Whether sizes and kind of adapters allow it; the GPU and the weights have their say in make().
  static bool fits(const ModelConfig& config, bool use_dora) { return DecodeLayers::fits(config) && !config.has_experts() && !use_dora; }
  // Of the device's memory, with adapters of such a rank; 0: none. `workgroups` as for make(), 0: at most.
  static std::uint64_t bytes(const ModelConfig& config, std::uint32_t rank, std::uint32_t workgroups);
  // Empty where it is not possible. `lora` is null, or any adapters that passes may have. `workgroups` for tests; 0: as many as run at one time.
  static std::optional<StepLayers> make(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const LoraWeights* lora,
                                        ProductPath path, std::uint32_t workgroups);

  struct Pass {
    gpu::Recorder& recorder;
    const DeviceStream& stream;
    const Rotations& rotations;
    const LoraWeights* lora;  // null: the base alone
    std::uint32_t new_key, keys, position;  // the row of the new token's, how many rows up to it are met, and where the token is in its text
  };

  // Before the first layer.
  void begin(gpu::Recorder& recorder) const { clear(recorder, room_); }
  // One layer, with the keys and values (Hk, capacity, D) of earlier tokens.
  void forward(const Pass& pass, std::uint32_t layer, const gpu::Tensor& input, const gpu::Tensor& output,
               const gpu::Tensor& keys, const gpu::Tensor& values) const;
  // Whether workgroups ever waited in vain for each other, so that results are worthless.
  bool in_trouble(gpu::Device& device) const;

 private:
  StepLayers(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const LayerStepPlan& plan);

  ModelConfig config_;
  const DeviceWeights* weights_;
  LayerStepPlan plan_;
  LayerStepRoom room_;
};

}  // namespace nibble
