#pragma once

#include "nibble/kernels/layer_step.h"
#include "nibble/model/decode_layers.h"
#include "nibble/model/layers.h"

namespace nibble {

// The layers for one new token of one text (kernels/layer_step.h), in one dispatch as far as they are alike and lie together. Those that
// are streamed, or whose scales are double-quantised, take one each.
class StepLayers {
 public:
  // Whether sizes and kind of adapters allow it; the GPU and the weights have their say in make().
  static bool fits(const ModelConfig& config, bool use_dora) { return DecodeLayers::fits(config) && !config.has_experts() && !use_dora; }
  // Of the device's memory, with adapters of such a rank; 0: none. `workgroups` as for make(), 0: at most.
  static std::uint64_t bytes(const gpu::Device& device, const ModelConfig& config, std::uint32_t rank, std::uint32_t workgroups);
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

  // All layers, from the first of `residual` (1, hidden) on, which are used in turns; returns the one that holds the result. The caches, by
  // layer, hold the keys of earlier tokens.
  gpu::Tensor forward(const Pass& pass, std::span<const KeyCache> caches, const std::array<gpu::Tensor, 2>& residual) const;
  // Layers from `first` on that one dispatch does.
  std::uint32_t run_from(std::uint32_t first, const Pass& pass, std::span<const KeyCache> caches) const;
  // Whether workgroups ever waited in vain for each other, so that results are worthless.
  bool in_trouble(gpu::Device& device) const;

 private:
  StepLayers(gpu::Device& device, const ModelConfig& config, const DeviceWeights& weights, const LayerStepPlan& plan);

  bool weights_go_on(std::uint32_t first, std::uint32_t last) const;
  void set_adapters(LayerStep& step, const LoraWeights& lora) const;

  ModelConfig config_;
  const DeviceWeights* weights_;
  LayerStepPlan plan_;
  LayerStepRoom room_;
};

}  // namespace nibble
