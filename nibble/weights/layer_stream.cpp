#include "nibble/weights/layer_stream.h"

#include "nibble/base/error.h"
#include "nibble/weights/nf4_room.h"

#include <algorithm>
#include <utility>

namespace nibble {

LayerStream::LayerStream(gpu::Device& device, const ModelConfig& config, std::uint32_t slots) : layers_(config.num_layers) {
  const auto words = static_cast<std::uint32_t>(nf4_layer_bytes(config) / 4);
  for (std::uint32_t i = 0; i < slots; ++i) {
    const gpu::Tensor room = device.tensor(DType::u32, {words}, "NF4 of streamed layers");
    slots_.push_back({.room = room, .projections = place_nf4(room, config)});
  }
}

void LayerStream::add(std::uint32_t layer, const gpu::Tensor& room, const LayerProjections& projections) {
  check(layer < layers_.size() && room.bytes() == slots_.front().room.bytes(), "layer stream",
        "Layer {} of {} bytes came; there are {} layers, and slots of {} bytes.", layer, room.bytes(), layers_.size(),
        slots_.front().room.bytes());
  layers_[layer] = {room, projections};
}

const LayerProjections& LayerStream::projections(gpu::Recorder& recorder, std::uint32_t layer) {
  check(has(layer), "layer stream", "Layer {} is not streamed.", layer);
  Slot& slot = bring(recorder, layer);
  slot.used = ++clock_;
  if (std::exchange(asked_, layer) == layer) {
    if (const auto next = after(layer)) bring(recorder, *next);
  }
  return slot.projections;
}

// The slot that was left alone longest makes room.
LayerStream::Slot& LayerStream::bring(gpu::Recorder& recorder, std::uint32_t layer) {
  const auto held = std::find_if(slots_.begin(), slots_.end(), [&](const Slot& slot) { return slot.layer == layer; });
  if (held != slots_.end()) return *held;
  Slot& slot = *std::min_element(slots_.begin(), slots_.end(), [](const Slot& a, const Slot& b) { return a.used < b.used; });
  const Layer& from = layers_[layer];
  recorder.copy(from.room, slot.room);
  copied_bytes_ += from.room.bytes();
  for (std::size_t p = 0; p < slot.projections.size(); ++p) {
    slot.projections[p].largest = from.projections[p].largest;
    slot.projections[p].codes = from.projections[p].codes;
  }
  slot.layer = layer;
  slot.used = ++clock_;
  return slot;
}

// The streamed layer that comes next, if the order names one.
std::optional<std::uint32_t> LayerStream::after(std::uint32_t layer) const {
  if (order_ == LayerOrder::down) {
    while (layer-- > 0) {
      if (has(layer)) return layer;
    }
    return {};
  }
  const auto count = static_cast<std::uint32_t>(layers_.size());
  for (std::uint32_t next = layer + 1; next < count; ++next) {
    if (has(next)) return next;
  }
  for (std::uint32_t next = 0; order_ == LayerOrder::round && next < layer; ++next) {
    if (has(next)) return next;
  }
  return {};
}

const LayerProjections& DeviceWeights::projections(gpu::Recorder& recorder, std::uint32_t layer) const {
  return stream && stream->has(layer) ? stream->projections(recorder, layer) : layers[layer].projections;
}

void DeviceWeights::go(LayerOrder order) const {
  if (stream) stream->go(order);
}

}  // namespace nibble
