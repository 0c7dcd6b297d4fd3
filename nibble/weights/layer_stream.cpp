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
  layers_[layer] = {.there = true, .room = room, .projections = projections};
}

void LayerStream::keep_on(std::unique_ptr<DiskLayers> disk) {
  disk_ = std::move(disk);
  in_slots_.resize(slots_.size());
  for (const Slot& slot : slots_) held_.push_back(&slot);
}

void LayerStream::add_on_disk(std::uint32_t layer, const LayerProjections& projections) {
  check(layer < layers_.size() && disk_, "layer stream", "Layer {} came from a disk; there are {} layers, on {}.", layer, layers_.size(),
        disk_ ? "one" : "none");
  layers_[layer] = {.there = true, .room = {}, .projections = projections, .on_disk = disk_->finish()};
}

const LayerProjections& LayerStream::projections(gpu::Recorder& recorder, std::uint32_t layer) {
  check(has(layer), "layer stream", "Layer {} is not streamed.", layer);
  Slot& slot = bring(recorder, layer);
  slot.used = ++clock_;
  const bool again = std::exchange(asked_, layer) == layer;
  if (disk_ && !again) read_ahead(layer);
  if (again || cargo_) {
    if (const auto next = after(layer, order_); next && !slot_of(*next)) prefetch(recorder, *next);
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
  copied_bytes_ += slot.room.bytes();
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
    if (on_its_way_ == layer) finish_cargo(recorder);
    return *held;
  }
  const gpu::Tensor& from = source(layer);
  Slot& slot = make_room(layer);
  if (on_its_way_ != none && !slot_of(on_its_way_)) finish_cargo(recorder);
  recorder.copy(from, slot.room);
  sent(recorder, layer);
  return slot;
}

const gpu::Tensor& LayerStream::source(std::uint32_t layer) {
  const Layer& from = layers_[layer];
  return disk_ ? disk_->take(from.on_disk) : from.room;
}

void LayerStream::sent(gpu::Recorder& recorder, std::uint32_t layer) {
  if (!disk_) return;
  const std::uint32_t number = layers_[layer].on_disk;
  try {
    recorder.submit();
  } catch (...) {
    disk_->leave(number);
    throw;
  }
  disk_->leave(number);
}

void LayerStream::prefetch(gpu::Recorder& recorder, std::uint32_t layer) {
  if (!cargo_) {
    bring(recorder, layer);
    return;
  }
  finish_cargo(recorder);
  const gpu::Tensor& from = source(layer);
  Slot& slot = make_room(layer);
  cargo_->load(recorder, from, slot.room, 3 * layer + static_cast<std::uint32_t>(order_));
  on_its_way_ = layer;
}

void LayerStream::finish_cargo(gpu::Recorder& recorder) {
  const std::uint32_t layer = std::exchange(on_its_way_, none);
  if (layer == none) return;
  cargo_->finish(recorder);
  sent(recorder, layer);
}

// The streamed layer that comes next, if the order names one.
std::optional<std::uint32_t> LayerStream::after(std::uint32_t layer, LayerOrder order) const {
  if (order == LayerOrder::down) {
    while (layer-- > 0) {
      if (has(layer)) return layer;
    }
    return {};
  }
  const auto count = static_cast<std::uint32_t>(layers_.size());
  for (std::uint32_t next = layer + 1; next < count; ++next) {
    if (has(next)) return next;
  }
  for (std::uint32_t next = 0; order == LayerOrder::round && next < layer; ++next) {
    if (has(next)) return next;
  }
  return {};
}

// Goes on in the order, passes turning at both ends, with what the slots will hold by then.
void LayerStream::read_ahead(std::uint32_t layer) {
  std::sort(held_.begin(), held_.end(), [](const Slot* a, const Slot* b) { return a->used < b->used; });
  std::transform(held_.begin(), held_.end(), in_slots_.begin(), [](const Slot* slot) { return slot->layer; });
  expected_.clear();
  LayerOrder order = order_;
  for (std::size_t asked = 0; asked < 2 * layers_.size() && expected_.size() < DiskLayers::most_rooms; ++asked) {
    const auto next = after(layer, order);
    if (!next) {
      if (order == LayerOrder::round) break;
      order = order == LayerOrder::up ? LayerOrder::down : LayerOrder::up;
      continue;
    }
    layer = *next;
    auto place = std::find(in_slots_.begin(), in_slots_.end(), layer);
    if (place == in_slots_.end()) {
      place = in_slots_.begin();  // which was left alone longest
      *place = layer;
      const std::uint32_t number = layers_[layer].on_disk;
      if (std::find(expected_.begin(), expected_.end(), number) == expected_.end()) expected_.push_back(number);
    }
    std::rotate(place, place + 1, in_slots_.end());
  }
  disk_->expect(expected_);
}

const LayerProjections& DeviceWeights::projections(gpu::Recorder& recorder, std::uint32_t layer) const {
  const LayerProjections& kept = stream && stream->has(layer) ? stream->projections(recorder, layer) : layers[layer].projections;
  return scales ? scales->projections(recorder, layer, kept) : kept;
}

const LayerProjections& DeviceWeights::stored(gpu::Device& device, std::uint32_t layer) const {
  if (!stream || !stream->disk() || !stream->has(layer)) return layers[layer].projections;
  gpu::Recorder recorder(device);
  const LayerProjections& brought = stream->projections(recorder, layer);
  recorder.submit();
  return brought;
}

void DeviceWeights::go(LayerOrder order) const {
  if (stream) stream->go(order);
}

}  // namespace nibble
