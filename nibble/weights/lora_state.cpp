#include "nibble/weights/lora_state.h"

#include "nibble/base/error.h"
#include "nibble/weights/lora_weights.h"

#include <algorithm>
#include <array>

namespace nibble {
namespace {

using Numbers = std::vector<float> LoraProjection::*;

// What a flat array in the places of the parameters holds of each adapted projection.
struct Group {
  Numbers a, b, magnitude;
  std::string_view prefix;  // of the names below

  // Calls visit(numbers of the host, matrix of the device, name) for each of a projection.
  template <typename Visit>
  void for_each(const LoraSlot& slot, Visit&& visit) const {
    visit(a, slot.a, "a");
    visit(b, slot.b, "b");
    if (slot.magnitude) visit(magnitude, slot.magnitude, "magnitude");
  }
};

constexpr Group lora_values{&LoraProjection::a, &LoraProjection::b, &LoraProjection::magnitude, ""},
    first_moments{&LoraProjection::m_a, &LoraProjection::m_b, &LoraProjection::m_magnitude, "m_"},
    second_moments{&LoraProjection::v_a, &LoraProjection::v_b, &LoraProjection::v_magnitude, "v_"};

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

void take_flat(const LoraWeights& weights, const Group& group, const std::vector<float>& flat, std::vector<LoraLayer>& layers) {
  if (flat.empty()) return;
  for_each_slot(weights, [&](std::uint32_t layer, Projection p, const LoraSlot& slot) {
    group.for_each(slot, [&](Numbers numbers, const gpu::Tensor& matrix, std::string_view) {
      const auto first = flat.begin() + first_of(matrix);
      layers[layer].at(p).*numbers = std::vector<float>(first, first + static_cast<std::ptrdiff_t>(matrix.size()));
    });
  });
}

std::vector<float> flat_of(const LoraWeights& weights, const Group& group, const std::vector<LoraLayer>& layers) {
  std::vector<float> flat(weights.params.size());
  for_each_slot(weights, [&](std::uint32_t layer, Projection p, const LoraSlot& slot) {
    const LoraProjection& host = layers[layer].at(p);
    group.for_each(slot, [&](Numbers numbers, const gpu::Tensor& matrix, std::string_view name) {
      check_size(host.*numbers, matrix, layer, p, fmt::format("{}{}", group.prefix, name));
      std::copy((host.*numbers).begin(), (host.*numbers).end(), flat.begin() + first_of(matrix));
    });
  });
  return flat;
}

}  // namespace

std::vector<LoraLayer> download_lora_state(gpu::Device& device, const LoraWeights& weights, const FlatMoments& moments) {
  std::vector<LoraLayer> layers(weights.layers.size());
  for_each_slot(weights, [&](std::uint32_t layer, Projection p, const LoraSlot& slot) {
    layers[layer].at(p) = {.rank = weights.rank, .in_dim = slot.a.dim(1), .out_dim = slot.b.dim(0)};
  });
  take_flat(weights, lora_values, device.read<float>(weights.params), layers);
  take_flat(weights, first_moments, moments.first, layers);
  take_flat(weights, second_moments, moments.second, layers);
  return layers;
}

FlatMoments upload_lora_state(gpu::Device& device, const LoraWeights& weights, const std::vector<LoraLayer>& layers) {
  check<UsageError>(layers.size() == weights.layers.size(), "lora", "An adapter of {} layers came; the model has {}.",
                    layers.size(), weights.layers.size());
  const std::vector<float> params = flat_of(weights, lora_values, layers);
  FlatMoments moments;
  if (weights.grads) moments = {flat_of(weights, first_moments, layers), flat_of(weights, second_moments, layers)};
  device.write(weights.params, std::as_bytes(std::span(params)));
  return moments;
}

}  // namespace nibble
