#include "nibble/weights/lora_state.h"

#include "nibble/base/error.h"
#include "nibble/weights/lora_weights.h"

#include <algorithm>
#include <array>

namespace nibble {
namespace {

using Numbers = std::vector<float> LoraProjection::*;

// A flat tensor of the device and what it holds of each adapted projection.
struct Group {
  gpu::Tensor flat;
  Numbers a, b, magnitude;
  std::string_view suffix;  // of the names below

  // Calls visit(numbers of the host, matrix of the device, name) for each of a projection.
  template <typename Visit>
  void for_each(const LoraSlot& slot, Visit&& visit) const {
    visit(a, slot.a, "a");
    visit(b, slot.b, "b");
    if (slot.magnitude) visit(magnitude, slot.magnitude, "magnitude");
  }
};

std::array<Group, 3> groups_of(const LoraWeights& weights) {
  return {{{weights.params, &LoraProjection::a, &LoraProjection::b, &LoraProjection::magnitude, ""},
           {weights.first_moment, &LoraProjection::m_a, &LoraProjection::m_b, &LoraProjection::m_magnitude, "m_"},
           {weights.second_moment, &LoraProjection::v_a, &LoraProjection::v_b, &LoraProjection::v_magnitude, "v_"}}};
}

// Calls visit(layer, projection, slot) for every adapted projection.
template <typename Visit>
void for_each_slot(const LoraWeights& weights, Visit&& visit) {
  for (std::uint32_t layer = 0; layer < weights.layers.size(); ++layer) {
    for (const Projection p : all_projections) {
      if (weights.slot(layer, p).used()) visit(layer, p, weights.slot(layer, p));
    }
  }
}

std::ptrdiff_t first_of(const gpu::Tensor& matrix) { return static_cast<std::ptrdiff_t>(matrix.offset() / sizeof(float)); }

void check_size(const std::vector<float>& numbers, const gpu::Tensor& matrix, std::uint32_t layer, Projection p,
                std::string_view name) {
  check<UsageError>(numbers.size() == matrix.size(), "lora", "{} of {} has {} numbers; {} make it {}.", name,
                    projection_module_name(layer, p), numbers.size(), matrix.shape_text(), matrix.size());
}

}  // namespace

std::vector<LoraLayer> download_lora_state(gpu::Device& device, const LoraWeights& weights) {
  std::vector<LoraLayer> layers(weights.layers.size());
  for_each_slot(weights, [&](std::uint32_t layer, Projection p, const LoraSlot& slot) {
    layers[layer].at(p) = {.rank = weights.rank, .in_dim = slot.a.dim(1), .out_dim = slot.b.dim(0)};
  });
  for (const Group& group : groups_of(weights)) {
    if (!group.flat) continue;
    const auto values = device.read<float>(group.flat);
    const auto take = [&](const gpu::Tensor& matrix) {
      const auto first = values.begin() + first_of(matrix);
      return std::vector<float>(first, first + static_cast<std::ptrdiff_t>(matrix.size()));
    };
    for_each_slot(weights, [&](std::uint32_t layer, Projection p, const LoraSlot& slot) {
      group.for_each(slot, [&](Numbers numbers, const gpu::Tensor& matrix, std::string_view) { layers[layer].at(p).*numbers = take(matrix); });
    });
  }
  return layers;
}

void upload_lora_state(gpu::Device& device, const LoraWeights& weights, const std::vector<LoraLayer>& layers) {
  check<UsageError>(layers.size() == weights.layers.size(), "lora", "An adapter of {} layers came; the model has {}.",
                    layers.size(), weights.layers.size());
  for (const Group& group : groups_of(weights)) {
    if (!group.flat) continue;
    std::vector<float> values(group.flat.size());
    const auto put = [&](const std::vector<float>& numbers, const gpu::Tensor& matrix) {
      std::copy(numbers.begin(), numbers.end(), values.begin() + first_of(matrix));
    };
    for_each_slot(weights, [&](std::uint32_t layer, Projection p, const LoraSlot& slot) {
      const LoraProjection& host = layers[layer].at(p);
      group.for_each(slot, [&](Numbers numbers, const gpu::Tensor& matrix, std::string_view name) {
        check_size(host.*numbers, matrix, layer, p, fmt::format("{}{}", group.suffix, name));
        put(host.*numbers, matrix);
      });
    });
    device.write(group.flat, std::as_bytes(std::span(values)));
  }
}

}  // namespace nibble
