#include "nibble/model/frozen_weights.h"

#include "nibble/base/half.h"
#include "nibble/kernels/embedding.h"

#include <algorithm>

namespace nibble {

void embed(gpu::Recorder& recorder, const Table& table, const gpu::Tensor& tokens, const gpu::Tensor& x) {
  if (table.form == TableForm::dense) return record(recorder, Embedding{.tokens = tokens, .table = weight_of(table), .x = x});
  record(recorder, EmbeddingCodes{.tokens = tokens, .vocabulary = table.rows, .codes = table.codes, .scales = table.block_scales, .x = x});
}

DecodedRows::DecodedRows(const std::vector<Residency>& residency, std::uint32_t layers) {
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    const bool own = residency_of(residency, layer) == Residency::cached;
    if (!own && shared_ == UINT32_MAX) shared_ = count_++;
    rows_.push_back(own ? count_++ : shared_);
  }
}

namespace {

std::uint32_t largest_projection(const ModelConfig& config) {
  std::uint32_t largest = 0;
  for (const Projection p : single_projections(config)) {
    largest = std::max(largest, projection_dims(config, p).out * projection_dims(config, p).in);
  }
  return largest;
}

}  // namespace

FrozenWeights::FrozenWeights(gpu::Device& device, const DeviceWeights& weights, const ModelConfig& config, ProductPath path,
                             const std::vector<Residency>& residency, bool one_room)
    : weights_(weights), path_(path), rows_(residency, config.num_layers), one_room_(one_room) {
  slots_.resize(rows_.count());
  const DType dtype = operand_dtype(path);
  for (std::uint32_t row = 0; row < rows_.count(); ++row) {
    const bool together = one_room && rows_.shared(row);
    const Tensor room = together ? device.tensor(dtype, {largest_projection(config)}, "decoded projections") : Tensor{};
    for (const Projection p : single_projections(config)) {
      const auto [out, in] = projection_dims(config, p);
      slots_[row][static_cast<std::size_t>(p)].weight.data =
          together ? room.view({out, in}) : device.tensor(dtype, {out, in}, fmt::format("decoded.{}", name_of(p)));
    }
  }
}

Weight FrozenWeights::projection(gpu::Recorder& recorder, std::uint32_t layer, Projection p, Dora* dora) {
  const std::uint32_t row = rows_.row_of(layer);
  Slot& slot = slots_[row][static_cast<std::size_t>(p)];
  const std::uint64_t gains = dora ? dora->version() : 0;
  if (slot.layer != layer || slot.gains != gains) {
    const Nf4Matrix& matrix = layer_projections(recorder, weights_, dora, layer)[static_cast<std::size_t>(p)];
    if (slot.weight.data.dtype() == DType::f16) slot.weight.scale = 1.0f / top_of_f16(matrix.largest);
    record(recorder, DequantizeNf4{.w = {.packed = matrix.packed, .absmax = matrix.absmax, .codes = matrix.codes}, .out = slot.weight});
    if (one_room_ && rows_.shared(row)) {
      for (Slot& other : slots_[row]) other.layer = UINT32_MAX;
    }
    slot.layer = layer;
    slot.gains = gains;
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

Nf4 FrozenWeights::nf4(gpu::Recorder& recorder, std::uint32_t layer, Projection p, Dora* dora) const {
  const Nf4Matrix& matrix = layer_projections(recorder, weights_, dora, layer)[static_cast<std::size_t>(p)];
  return {.packed = matrix.packed, .absmax = matrix.absmax, .codes = matrix.codes};
}

std::uint64_t FrozenWeights::bytes(const ModelConfig& config, ProductPath path, const std::vector<Residency>& residency,
                                   bool one_room) {
  const DecodedRows rows(residency, config.num_layers);
  std::uint64_t bytes = 0;
  for (std::uint32_t row = 0; row < rows.count(); ++row) {
    if (one_room && rows.shared(row)) {
      bytes += gpu::buffer_bytes(operand_dtype(path), {largest_projection(config)});
      continue;
    }
    for (const Projection p : single_projections(config)) {
      const auto [out, in] = projection_dims(config, p);
      bytes += gpu::buffer_bytes(operand_dtype(path), {out, in});
    }
  }
  return bytes;
}

}  // namespace nibble
