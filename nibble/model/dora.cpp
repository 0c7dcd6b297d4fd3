#include "nibble/model/dora.h"

#include "nibble/base/error.h"
#include "nibble/base/nf4_table.h"
#include "nibble/kernels/dora.h"

#include <algorithm>

namespace nibble {
namespace {

// Elements of the scales of a layer, each projection's from where a binding may begin, so that those of a joint weight follow each
// other where its codes do (joins_in_nf4).
constexpr std::uint32_t alignment = 64;

std::uint32_t scales_of(const ModelConfig& config, Projection p) {
  const auto [out, in] = projection_dims(config, p);
  return static_cast<std::uint32_t>(std::uint64_t{out} * in / nf4_block);
}

// Calls visit(projection, first element), and returns the elements of all.
template <typename Visit>
std::uint32_t place_scales(const ModelConfig& config, Visit&& visit) {
  std::uint32_t at = 0;
  for (const Projection p : all_projections) {
    if (matrices_of(config, p) > 1) continue;  // experts' have no adapters of DoRA
    visit(p, at);
    at += (scales_of(config, p) + alignment - 1) / alignment * alignment;
  }
  return at;
}

Nf4 nf4_of(const Nf4Matrix& matrix) { return {.packed = matrix.packed, .absmax = matrix.absmax, .codes = matrix.codes}; }

}  // namespace

Dora::Dora(gpu::Device& device, const ModelConfig& config, const LoraWeights& lora) : lora_(lora), layers_(config.num_layers) {
  const std::uint32_t elements = place_scales(config, [](auto&&...) {});
  for (std::uint32_t i = 0; i < config.num_layers; ++i) {
    for (const Projection p : all_projections) {
      if (!lora.slot(i, p).used()) continue;
      check<UsageError>(projection_dims(config, p).in % nf4_block == 0, projection_module_name(i, p),
                        "DoRA needs rows of whole NF4 blocks of {}; this projection's have {}.", nf4_block, projection_dims(config, p).in);
      if (!layers_[i].room) layers_[i].room = device.tensor(DType::f32, {elements}, "DoRA scales");
    }
    if (!layers_[i].room) continue;
    place_scales(config, [&](Projection p, std::uint32_t first) {
      layers_[i].absmax[static_cast<std::size_t>(p)] = layers_[i].room.part(first, {scales_of(config, p)});
    });
  }
}

std::uint64_t Dora::bytes(const ModelConfig& config, const LoraModules& modules) {
  const auto adapted = std::count_if(modules.begin(), modules.end(), [](const auto& layer) {
    return std::any_of(layer.begin(), layer.end(), [](const LoraModule& module) { return module.used(); });
  });
  return static_cast<std::uint64_t>(adapted) * gpu::buffer_bytes(DType::f32, {place_scales(config, [](auto&&...) {})});
}

void Dora::renew() { ++version_; }

const LayerProjections& Dora::projections(gpu::Recorder& recorder, const DeviceWeights& weights, std::uint32_t layer) {
  const LayerProjections& base = weights.projections(recorder, layer);
  Layer& own = layers_[layer];
  if (!own.room) return base;
  if (own.version != version_) make(recorder, base, layer);
  own.version = version_;
  for (std::size_t p = 0; p < base.size(); ++p) {
    current_[p] = base[p];
    if (!own.absmax[p]) continue;
    current_[p].absmax = own.absmax[p];
    current_[p].largest = base[p].largest * headroom;
  }
  return current_;
}

void Dora::make(gpu::Recorder& recorder, const LayerProjections& base, std::uint32_t layer) const {
  for (const Projection p : all_projections) {
    const LoraSlot& slot = lora_.slot(layer, p);
    const Nf4Matrix& matrix = base[static_cast<std::size_t>(p)];
    const gpu::Tensor& absmax = layers_[layer].absmax[static_cast<std::size_t>(p)];
    if (!absmax) continue;
    if (!slot.used()) {
      recorder.copy(matrix.absmax, absmax);
      continue;
    }
    record(recorder, DoraGain{.w = nf4_of(matrix), .a = slot.a, .b = slot.b, .magnitude = slot.magnitude, .scaling = slot.scaling,
                              .absmax = absmax, .b_read = slot.b_read, .gain = slot.gain});
  }
}

void Dora::begin(gpu::Recorder& recorder, const DeviceWeights& weights) const {
  for (std::uint32_t layer = 0; layer < layers_.size(); ++layer) {
    if (!adapts(layer)) continue;
    const LayerProjections& base = weights.projections(recorder, layer);
    for (const Projection p : all_projections) {
      const LoraSlot& slot = lora_.slot(layer, p);
      if (!slot.used()) continue;
      // Of the adapters' own buffer kernels cannot read one part and write another.
      record(recorder, DoraNorm{.w = nf4_of(base[static_cast<std::size_t>(p)]), .a = slot.a, .b = slot.b, .scaling = slot.scaling, .norm = slot.gain});
      recorder.copy(slot.gain, slot.magnitude);
    }
  }
}

const LayerProjections& layer_projections(gpu::Recorder& recorder, const DeviceWeights& weights, Dora* dora, std::uint32_t layer) {
  return dora ? dora->projections(recorder, weights, layer) : weights.projections(recorder, layer);
}

}  // namespace nibble
