#include "nibble/model/joint_weights.h"

#include "nibble/kernels/nf4.h"
#include "nibble/weights/nf4_room.h"

#include <algorithm>
#include <cmath>

namespace nibble {

std::uint32_t joint_weight_tile(const gpu::Device& device, const ModelConfig& config, Residency residency, std::uint32_t tokens) {
  const auto direct = direct_matrix_tile(device.info());
  if (!direct || !prefers_tiles(device, tokens) || residency == Residency::cached) return 0;
  const std::uint32_t tile = direct->matrix.m;
  const bool fits = std::all_of(all_joints.begin(), all_joints.end(), [&](Joint joint) {
    const auto [out, in] = joint_dims(config, joint);
    return out % tile == 0 && in % tile == 0 && in % tiled_columns == 0 && joins_in_nf4(config, joint);
  });
  return fits ? tile : 0;
}

JointWeights::JointWeights(gpu::Device& device, const DeviceWeights& weights, const ModelConfig& config, Residency residency,
                           std::uint32_t tokens)
    : weights_(weights), residency_(residency), tile_(joint_weight_tile(device, config, residency, tokens)) {
  slots_.resize(residency == Residency::cached ? weights.layers.size() : 1);
  for (auto& row : slots_) {
    for (const Joint joint : all_joints) {
      const auto [out, in] = joint_dims(config, joint);
      row[static_cast<std::size_t>(joint)].data = device.tensor(DType::f16, {out, in}, "decoded projections");
    }
  }
}

std::span<const Nf4Matrix> JointWeights::matrices(std::uint32_t layer, Joint joint) const {
  const auto members = members_of(joint);
  return std::span(weights_.layers[layer].projections).subspan(static_cast<std::size_t>(members.front()), members.size());
}

float JointWeights::scale(std::uint32_t layer, Joint joint) const {
  float largest = 0;
  for (const Nf4Matrix& matrix : matrices(layer, joint)) largest = std::max(largest, matrix.largest);
  int exponent = 0;
  if (std::isfinite(largest)) std::frexp(largest, &exponent);
  return std::ldexp(1.0f, exponent);
}

Weight JointWeights::weight(gpu::Recorder& recorder, std::uint32_t layer, Joint joint, MatrixLayout layout) {
  Slot& slot = slots_[residency_ == Residency::cached ? layer : 0][static_cast<std::size_t>(joint)];
  const Weight whole{.data = slot.data, .scale = scale(layer, joint), .tile = tile_,
                     .turned = tile_ > 0 && layout == MatrixLayout::nn};
  if (slot.layer == layer && slot.turned == whole.turned) return whole;
  const auto decode = [&](const Nf4Matrix& matrix, const Weight& out) {
    record(recorder, DequantizeNf4{.w = {.packed = matrix.packed, .absmax = matrix.absmax}, .out = out});
  };
  if (const auto joined = joined_nf4(matrices(layer, joint))) {
    decode(*joined, whole);
  } else {
    std::uint32_t row = 0;
    for (const Nf4Matrix& matrix : matrices(layer, joint)) {
      decode(matrix, {.data = slot.data.rows(row, row + matrix.out), .scale = whole.scale});
      row += matrix.out;
    }
  }
  slot.layer = layer;
  slot.turned = whole.turned;
  return whole;
}

}  // namespace nibble
