#include "nibble/model/frozen_weights.h"

#include "nibble/base/half.h"

namespace nibble {

DecodedRows::DecodedRows(const std::vector<Residency>& residency, std::uint32_t layers) {
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    const bool own = residency_of(residency, layer) == Residency::cached;
    if (!own && shared_ == UINT32_MAX) shared_ = count_++;
    rows_.push_back(own ? count_++ : shared_);
  }
}

FrozenWeights::FrozenWeights(gpu::Device& device, const DeviceWeights& weights, ProductPath path,
                             const std::vector<Residency>& residency)
    : weights_(weights), path_(path), rows_(residency, static_cast<std::uint32_t>(weights.layers.size())) {
  slots_.resize(rows_.count());
  for (auto& row : slots_) {
    for (const Projection p : all_projections) {
      const Nf4Matrix& matrix = weights.layers[0].projection(p);
      row[static_cast<std::size_t>(p)].weight.data =
          device.tensor(operand_dtype(path), {matrix.out, matrix.in}, fmt::format("decoded.{}", name_of(p)));
    }
  }
}

Weight FrozenWeights::projection(gpu::Recorder& recorder, std::uint32_t layer, Projection p) {
  Slot& slot = slots_[rows_.row_of(layer)][static_cast<std::size_t>(p)];
  if (slot.layer != layer) {
    const Nf4Matrix& matrix = weights_.projections(recorder, layer)[static_cast<std::size_t>(p)];
    if (slot.weight.data.dtype() == DType::f16) slot.weight.scale = 1.0f / top_of_f16(matrix.largest);
    record(recorder, DequantizeNf4{.w = {.packed = matrix.packed, .absmax = matrix.absmax}, .out = slot.weight});
    slot.layer = layer;
  }
  return slot.weight;
}

Tensor FrozenWeights::transposed(std::uint32_t layer, Projection p) const {
  return path_ == ProductPath::f32 ? weights_.layers[layer].cached(p) : Tensor{};
}

std::pair<std::uint32_t, std::uint32_t> FrozenWeights::dims(std::uint32_t layer, Projection p) const {
  const Nf4Matrix& matrix = weights_.layers[layer].projection(p);
  return {matrix.out, matrix.in};
}

Nf4 FrozenWeights::nf4(gpu::Recorder& recorder, std::uint32_t layer, Projection p) const {
  const Nf4Matrix& matrix = weights_.projections(recorder, layer)[static_cast<std::size_t>(p)];
  return {.packed = matrix.packed, .absmax = matrix.absmax};
}

std::uint64_t FrozenWeights::decoded_bytes(const ModelConfig& config, ProductPath path, const std::vector<Residency>& residency) {
  std::uint64_t elements = 0;
  for (const Projection p : all_projections) {
    const auto [out, in] = projection_dims(config, p);
    elements += std::uint64_t{out} * in;
  }
  return elements * size_of(operand_dtype(path)) * DecodedRows(residency, config.num_layers).count();
}

}  // namespace nibble
