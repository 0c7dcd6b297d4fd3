#include "nibble/weights/layer_stream.h"

#include "nibble/base/error.h"
#include "nibble/weights/nf4_room.h"
#include "nibble/weights/scale_room.h"

#include <algorithm>
#include <utility>

namespace nibble {

LayerStream::LayerStream(gpu::Device& device, const ModelConfig& config, std::uint32_t slots, bool carried, bool double_quant)
    : layers_(config.num_layers), cargo_(carried ? gpu::Cargo::make(device) : nullptr) {
  const auto words = static_cast<std::uint32_t>(nf4_layer_bytes(config, double_quant) / 4);
  for (std::uint32_t i = 0; i < slots; ++i) {
    const gpu::Tensor room = device.tensor(DType::u32, {words}, "NF4 of streamed layers");
    slots_.push_back({.room = room, .projections = place_nf4(room, config, double_quant)});
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
  const bool again = std::exchange(asked_, layer) == layer;
  if (again || cargo_) {
    if (const auto next = after(layer); next && !slot_of(*next)) prefetch(recorder, *next);
  }
  return slot.projections;
}

LayerStream::Slot* LayerStream::slot_of(std::uint32_t layer) {
  const auto held = std::find_if(slots_.begin(), slots_.end(), [&](const Slot& slot) { return slot.layer == layer; });
  return held == slots_.end() ? nullptr : &*held;
}

// The slot that was left alone longest.
LayerStream::Slot& LayerStream::make_room(std::uint32_t layer) {
  Slot& slot = *std::min_element(slots_.begin(), slots_.end(), [](const Slot& a, const Slot& b) { return a.used < b.used; });
  const Layer& from = layers_[layer];
  copied_bytes_ += from.room.bytes();
  for (std::size_t p = 0; p < slot.projections.size(); ++p) {
    slot.projections[p].largest = from.projections[p].largest;
    slot.projections[p].codes = from.projections[p].codes;
  }
  slot.layer = layer;
  slot.used = ++clock_;
  return slot;
}

LayerStream::Slot& LayerStream::bring(gpu::Recorder& recorder, std::uint32_t layer) {
  if (Slot* held = slot_of(layer)) {
    if (on_its_way_ == layer) {
      cargo_->finish(recorder);
      on_its_way_ = UINT32_MAX;
    }
    return *held;
  }
  Slot& slot = make_room(layer);
  if (on_its_way_ != UINT32_MAX && !slot_of(on_its_way_)) {
    cargo_->finish(recorder);
    on_its_way_ = UINT32_MAX;
  }
  recorder.copy(layers_[layer].room, slot.room);
  return slot;
}

void LayerStream::prefetch(gpu::Recorder& recorder, std::uint32_t layer) {
  if (!cargo_) {
    bring(recorder, layer);
    return;
  }
  Slot& slot = make_room(layer);
  cargo_->load(recorder, layers_[layer].room, slot.room, 3 * layer + static_cast<std::uint32_t>(order_));
  on_its_way_ = layer;
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
  const LayerProjections& kept = stream && stream->has(layer) ? stream->projections(recorder, layer) : layers[layer].projections;
  return scales ? scales->projections(recorder, layer, kept) : kept;
}

void DeviceWeights::go(LayerOrder order) const {
  if (stream) stream->go(order);
}

}  // namespace nibble
