#pragma once

#include "nibble/kernels/nf4.h"
#include "nibble/kernels/operand.h"
#include "nibble/model/dora.h"
#include "nibble/weights/device_weights.h"
#include "nibble/weights/residency.h"

#include <array>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble {

// As products and gathering read it.
inline Weight weight_of(const DenseMatrix& matrix) {
  Weight weight;
  weight.data = matrix.data;
  weight.scale = matrix.scale;
  return weight;
}

// x[t] (T, C) = the embedding of tokens[t] (T).
void embed(gpu::Recorder& recorder, const Table& table, const gpu::Tensor& tokens, const gpu::Tensor& x);

// Which decoded copies the layers use: the cached ones one each, the others one together.
class DecodedRows {
 public:
  DecodedRows(const std::vector<Residency>& residency, std::uint32_t layers);

  std::uint32_t count() const { return count_; }
  std::uint32_t row_of(std::uint32_t layer) const { return rows_[layer]; }
  bool shared(std::uint32_t row) const { return row == shared_; }

 private:
  std::vector<std::uint32_t> rows_;  // by layer
  std::uint32_t shared_ = UINT32_MAX, count_ = 0;
};

// Decodes NF4 projections for products, but for those of experts.
class FrozenWeights {
 public:
  // With `one_room` the projections of the layers that are not cached are decoded into the same room.
  FrozenWeights(gpu::Device& device, const DeviceWeights& weights, const ModelConfig& config, ProductPath path,
                const std::vector<Residency>& residency, bool one_room);

  // With DoRA's gains where `dora` is given. Valid until the next is asked for.
  Weight projection(gpu::Recorder& recorder, std::uint32_t layer, Projection p, Dora* dora);

  // Its transposed copy (in, out), which f32 products read instead; empty where the state has none or the path is another.
  Tensor transposed(std::uint32_t layer, Projection p) const;

  // (out, in)
  std::pair<std::uint32_t, std::uint32_t> dims(std::uint32_t layer, Projection p) const;

  // The projection in NF4. Valid until one of another layer is asked for.
  Nf4 nf4(gpu::Recorder& recorder, std::uint32_t layer, Projection p, Dora* dora) const;

  // What the decoded copies take of the device's memory.
  static std::uint64_t bytes(const ModelConfig& config, ProductPath path, const std::vector<Residency>& residency, bool one_room);

 private:
  struct Slot {
    Weight weight;
    std::uint32_t layer = UINT32_MAX;  // what it holds
    std::uint64_t gains = 0;           // Dora::version, or 0 of the base's own
  };

  const DeviceWeights& weights_;
  ProductPath path_;
  DecodedRows rows_;
  bool one_room_;
  std::vector<std::array<Slot, 7>> slots_;  // by row
};

}  // namespace nibble
