#pragma once

#include "nibble/kernels/nf4_scales.h"
#include "nibble/quant/double_quant.h"
#include "nibble/weights/bnb.h"
#include "nibble/weights/device_weights.h"

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace nibble {

// Scales of NF4 that are kept double-quantised, in f32 for kernels: room for those of one layer, which all layers share.
class ScaleRoom {
 public:
  ScaleRoom(gpu::Device& device, const ModelConfig& config);
  // What that takes of the device's memory.
  static std::uint64_t bytes(const ModelConfig& config);

  // The layer's projections as they are kept, with the room's scales, which are decoded before where another layer's are there. What
  // is recorded is submitted in its order, by whatever recorder. Valid until the next call.
  const LayerProjections& projections(gpu::Recorder& recorder, std::uint32_t layer, const LayerProjections& kept);

 private:
  gpu::Tensor absmax_, map_;
  std::array<Nf4ScalePart, 7> parts_;    // by Projection
  std::uint32_t blocks_ = 0;             // of a layer
  std::uint32_t layer_ = UINT32_MAX;     // whose scales are there
  LayerProjections current_;
};

// A matrix's scales double-quantised: as the file has them, where that has them in this form, else quantised here.
DoubleQuantized double_quantized(std::span<const float> absmax, const std::optional<BnbMatrix>& bnb);

// What they decode to.
std::vector<float> decoded(const DoubleQuantized& scales);

// In f32, in whichever form the matrix keeps them.
std::vector<float> read_absmax(gpu::Device& device, const Nf4Matrix& matrix);

}  // namespace nibble
