#include "nibble/model/joint_weights.h"

#include "nibble/kernels/nf4.h"
#include "nibble/weights/nf4_room.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace nibble {

std::uint32_t joint_weight_tile(const gpu::Device& device, const ModelConfig& config, std::uint32_t tokens) {
  const auto direct = direct_matrix_tile(device.info());
  if (!direct || !prefers_tiles(device, tokens)) return 0;
  const std::uint32_t tile = direct->matrix.m;
  const auto joints = single_joints(config);
  const bool fits = std::all_of(joints.begin(), joints.end(), [&](Joint joint) {
    const auto [out, in] = joint_dims(config, joint);
    return out % tile == 0 && in % tile == 0 && in % tiled_columns == 0 && joins_in_nf4(config, joint);
  });
  return fits ? tile : 0;
}

namespace {

std::uint32_t largest_joint(const ModelConfig& config) {
  std::uint32_t largest = 0;
  for (const Joint joint : single_joints(config)) largest = std::max(largest, joint_dims(config, joint).out * joint_dims(config, joint).in);
  return largest;
}

}  // namespace

JointWeights::JointWeights(gpu::Device& device, const DeviceWeights& weights, const ModelConfig& config,
                           const std::vector<Residency>& residency, bool one_room, std::uint32_t tokens, bool use_dora)
    : weights_(weights),
      rows_(residency, config.num_layers),
      one_room_(one_room),
      tile_(joint_weight_tile(device, config, tokens)),
      use_dora_(use_dora) {
  slots_.resize(rows_.count());
  for (std::uint32_t row = 0; row < rows_.count(); ++row) {
    const bool together = one_room && rows_.shared(row);
    const Tensor room = together ? device.tensor(DType::f16, {largest_joint(config)}, "decoded projections") : Tensor{};
    for (const Joint joint : single_joints(config)) {
      const auto [out, in] = joint_dims(config, joint);
      slots_[row][static_cast<std::size_t>(joint)].data =
          together ? room.view({out, in}) : device.tensor(DType::f16, {out, in}, "decoded projections");
    }
  }
}

std::uint64_t JointWeights::bytes(const ModelConfig& config, const std::vector<Residency>& residency, bool one_room) {
  const DecodedRows rows(residency, config.num_layers);
  std::uint64_t bytes = 0;
  for (std::uint32_t row = 0; row < rows.count(); ++row) {
    if (one_room && rows.shared(row)) {
      bytes += gpu::buffer_bytes(DType::f16, {largest_joint(config)});
      continue;
    }
    for (const Joint joint : single_joints(config)) {
      const auto [out, in] = joint_dims(config, joint);
      bytes += gpu::buffer_bytes(DType::f16, {out, in});
    }
  }
  return bytes;
}

namespace {

std::span<const Nf4Matrix> members_in(const LayerProjections& projections, Joint joint) {
  const auto members = members_of(joint);
  return std::span(projections).subspan(static_cast<std::size_t>(members.front()), members.size());
}

}  // namespace

float JointWeights::scale(std::uint32_t layer, Joint joint) const {
  float largest = 0;
  for (const Nf4Matrix& matrix : members_in(weights_.layers[layer].projections, joint)) largest = std::max(largest, matrix.largest);
  if (use_dora_) largest *= Dora::headroom;
  int exponent = 0;
  if (std::isfinite(largest)) std::frexp(largest, &exponent);
  return std::ldexp(1.0f, exponent);
}

std::optional<Weight> JointWeights::codes(gpu::Recorder& recorder, std::uint32_t layer, Joint joint, Dora* dora) const {
  const auto joined = joined_nf4(members_in(layer_projections(recorder, weights_, dora, layer), joint));
  if (!joined || joined->in % nf4_block != 0) return {};
  return Weight{.data = joined->packed.view({joined->out, joined->in / 8}), .scale = scale(layer, joint),
                .absmax = joined->absmax.view({joined->out, joined->in / nf4_block}), .codes = joined->codes};
}

Weight JointWeights::weight(gpu::Recorder& recorder, std::uint32_t layer, Joint joint, MatrixLayout layout, Dora* dora,
                            const std::optional<LoraRowsSum>& rows) {
  const std::uint32_t row = rows_.row_of(layer), tile = rows_.shared(row) ? tile_ : 0;
  Slot& slot = slots_[row][static_cast<std::size_t>(joint)];
  Weight whole{.data = slot.data, .scale = scale(layer, joint), .tile = tile, .turned = tile > 0 && layout == MatrixLayout::nn};
  if (!have_one_code_book(members_in(weights_.layers[layer].projections, joint))) whole.tile = 0, whole.turned = false;
  const std::uint64_t gains = dora ? dora->version() : 0;
  if (slot.layer == layer && slot.turned == whole.turned && slot.gains == gains) {
    if (rows) record(recorder, *rows);
    return whole;
  }
  const LoraRowsSum* beside = rows ? &*rows : nullptr;
  const auto decode = [&](const Nf4Matrix& matrix, const Weight& out) {
    record(recorder, DequantizeNf4{.w = {.packed = matrix.packed, .absmax = matrix.absmax, .codes = matrix.codes}, .out = out,
                                   .rows_sum = std::exchange(beside, nullptr)});
  };
  const auto members = members_in(layer_projections(recorder, weights_, dora, layer), joint);
  if (const auto joined = joined_nf4(members)) {
    decode(*joined, whole);
  } else {
    std::uint32_t first = 0;
    for (const Nf4Matrix& matrix : members) {
      decode(matrix, {.data = slot.data.rows(first, first + matrix.out), .scale = whole.scale});
      first += matrix.out;
    }
  }
  if (one_room_ && rows_.shared(row)) {
    for (Slot& other : slots_[row]) other.layer = UINT32_MAX;
  }
  slot.layer = layer;
  slot.turned = whole.turned;
  slot.gains = gains;
  return whole;
}

}  // namespace nibble
