#pragma once

#include "nibble/gpu/cargo.h"
#include "nibble/weights/device_weights.h"

#include <cstdint>
#include <optional>
#include <vector>

namespace nibble {

// In which order layers are asked for.
enum class LayerOrder : std::uint8_t {
  up,     // from the first to the last, and there the pass turns
  down,   // from the last to the first
  round,  // from the first to the last, and from there on from the first again
};

// Sends the projections of layers that lie in host memory to the device, into slots that all of them share. Weights never change,
// so what a slot holds stays right from pass to pass; a pass that turns finds the last layers there.
class LayerStream {
 public:
  // With `carried`, products take the layers along that come next; their host memory is one that kernels read.
  LayerStream(gpu::Device& device, const ModelConfig& config, std::uint32_t slots, bool carried, bool double_quant = false);

  // `room` holds the projections in host memory (nf4_room.h).
  void add(std::uint32_t layer, const gpu::Tensor& room, const LayerProjections& projections);
  bool has(std::uint32_t layer) const { return layer < layers_.size() && layers_[layer].room; }

  // The layer's projections in a slot. Where they are not there, the copy is recorded before. Carried, the layer that comes next is
  // cargo from here on. Else, asked for again, the layer has a
  // kernel behind it that read the slot, and the copy of the layer that comes next is recorded: a copy waits for the kernels
  // before it and the first kernel to read a slot for the copies before it, so here neither waits for the other. All that is
  // recorded is submitted in its order, by whatever recorder.
  const LayerProjections& projections(gpu::Recorder& recorder, std::uint32_t layer);
  void go(LayerOrder order) { order_ = order; }

  std::uint64_t copied_bytes() const { return copied_bytes_; }

 private:
  struct Layer {
    gpu::Tensor room;  // empty of a layer that is not streamed
    LayerProjections projections;
  };
  struct Slot {
    gpu::Tensor room;
    LayerProjections projections;
    std::uint32_t layer = UINT32_MAX;  // what it holds
    std::uint64_t used = 0;            // when it was last asked for or filled
  };

  Slot& bring(gpu::Recorder& recorder, std::uint32_t layer);
  // The slot that holds the layer, or will when `cargo_` is finished.
  Slot* slot_of(std::uint32_t layer);
  void prefetch(gpu::Recorder& recorder, std::uint32_t layer);
  Slot& make_room(std::uint32_t layer);
  std::optional<std::uint32_t> after(std::uint32_t layer) const;

  std::vector<Layer> layers_;
  std::vector<Slot> slots_;
  std::shared_ptr<gpu::Cargo> cargo_;         // null unless carried
  std::uint32_t on_its_way_ = UINT32_MAX;     // the layer in it
  LayerOrder order_ = LayerOrder::round;
  std::uint32_t asked_ = UINT32_MAX;  // for last
  std::uint64_t clock_ = 0, copied_bytes_ = 0;
};

}  // namespace nibble
