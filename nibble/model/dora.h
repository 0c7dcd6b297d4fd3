#pragma once

#include "nibble/weights/device_weights.h"
#include "nibble/weights/lora_weights.h"

#include <cstdint>
#include <vector>

namespace nibble {

// The frozen weights as DoRA adapters change them (nibble/kernels/dora.h): each row times its gain, which stands in scales of NF4 of
// their own beside those of the base. Whatever reads NF4 reads these in their place. They are made when a layer is first asked for
// after renew().
class Dora {
 public:
  // Weights are decoded to f16 in units in which gains up to this one cannot leave its range.
  static constexpr float headroom = 8.0f;

  // `lora` must stay. UsageError where the rows of a projection are no whole blocks of NF4.
  Dora(gpu::Device& device, const ModelConfig& config, const LoraWeights& lora);
  static std::uint64_t bytes(const ModelConfig& config, const LoraModules& modules);

  // The adapters may have changed.
  void renew();
  // Changes with each renew(); never 0.
  std::uint64_t version() const { return version_; }
  bool adapts(std::uint32_t layer) const { return static_cast<bool>(layers_[layer].room); }

  // As DeviceWeights::projections, with gains; they are recorded before where they are not there. Valid until the next call.
  const LayerProjections& projections(gpu::Recorder& recorder, const DeviceWeights& weights, std::uint32_t layer);

  // The start of DoRA: each magnitude is the norm of its row of W + scaling * B A, so that adapters change nothing beyond B A.
  void begin(gpu::Recorder& recorder, const DeviceWeights& weights) const;

 private:
  struct Layer {
    gpu::Tensor room;                   // empty where the layer has no adapter
    std::array<gpu::Tensor, 7> absmax;  // by Projection
    std::uint64_t version = 0;          // of what they hold
  };
  void make(gpu::Recorder& recorder, const LayerProjections& base, std::uint32_t layer) const;

  const LoraWeights& lora_;
  std::vector<Layer> layers_;
  LayerProjections current_;
  std::uint64_t version_ = 1;
};

// With gains where `dora` is given.
const LayerProjections& layer_projections(gpu::Recorder& recorder, const DeviceWeights& weights, Dora* dora, std::uint32_t layer);

}  // namespace nibble
