#pragma once

#include "nibble/kernels/nf4.h"
#include "nibble/kernels/operand.h"
#include "nibble/weights/device_weights.h"

#include <array>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble {

// Where the frozen projections are kept in the form that products read.
enum class Residency {
  resident,  // NF4 in VRAM, decoded into one layer's scratch before each use
  cached,    // decoded once and kept
};

// As products and gathering read it.
inline Weight weight_of(const DenseMatrix& matrix) {
  Weight weight;
  weight.data = matrix.data;
  weight.scale = matrix.scale;
  return weight;
}

// Decodes NF4 projections for products.
class FrozenWeights {
 public:
  FrozenWeights(gpu::Device& device, const DeviceWeights& weights, ProductPath path, Residency residency);

  // Valid until the same projection of another layer is asked for.
  Weight projection(gpu::Recorder& recorder, std::uint32_t layer, Projection p);

  // Its transposed copy (in, out), which f32 products read instead; empty where the state has none or the path is another.
  Tensor transposed(std::uint32_t layer, Projection p) const;

  // (out, in)
  std::pair<std::uint32_t, std::uint32_t> dims(std::uint32_t layer, Projection p) const;

  // The projection as it is kept.
  Nf4 nf4(std::uint32_t layer, Projection p) const;

  // Bytes of the decoded copies under a residency.
  static std::uint64_t decoded_bytes(const ModelConfig& config, ProductPath path, Residency residency);

 private:
  struct Slot {
    Weight weight;
    std::uint32_t layer = UINT32_MAX;  // what it holds
  };

  const DeviceWeights& weights_;
  ProductPath path_;
  Residency residency_;
  std::vector<std::array<Slot, 7>> slots_;  // one row for all layers, or a row a layer
};

}  // namespace nibble
