#pragma once

#include "nibble/gpu/cargo.h"
#include "nibble/weights/device_weights.h"
#include "nibble/weights/disk_layers.h"

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

// Sends the projections of layers that lie in host memory, or on a disk, to the device, into slots that all of them share. Weights never change,
// so what a slot holds stays right from pass to pass; a pass that turns finds the last layers there.
class LayerStream {
 public:
  // With `carried`, kernels that multiply or decode take the layers along that come next; their host memory is one that kernels read.
  LayerStream(gpu::Device& device, const ModelConfig& config, std::uint32_t slots, bool carried, bool double_quant = false);

  // `room` holds the projections in host memory (nf4_room.h).
  void add(std::uint32_t layer, const gpu::Tensor& room, const LayerProjections& projections);
  // All layers that will be added lie there.
  void keep_on(std::unique_ptr<DiskLayers> disk);
  DiskLayers* disk() const { return disk_.get(); }
  // The layer that is written there next; of the projections all but the tensors.
  void add_on_disk(std::uint32_t layer, const LayerProjections& projections);
  bool has(std::uint32_t layer) const { return layer < layers_.size() && layers_[layer].there; }
  // As a layer's projections lie in a slot.
  const gpu::Tensor& slot_room() const { return slots_.front().room; }

  // The layer's projections in a slot. Where they are not there, the copy is recorded before. Carried, the layer that comes next is
  // cargo from here on. Else, asked for again, the layer has a
  // kernel behind it that read the slot, and the copy of the layer that comes next is recorded: a copy waits for the kernels
  // before it and the first kernel to read a slot for the copies before it, so here neither waits for the other. All that is
  // recorded is submitted in its order, by whatever recorder. From a disk a layer is waited for here, and what was recorded is submitted
  // behind its copy: recording does not run ahead of the device by more layers than there are rooms.
  const LayerProjections& projections(gpu::Recorder& recorder, std::uint32_t layer);
  void go(LayerOrder order) { order_ = order; }

  std::uint64_t copied_bytes() const { return copied_bytes_; }

 private:
  static constexpr std::uint32_t none = UINT32_MAX;

  struct Layer {
    bool there = false;  // whether it is streamed
    gpu::Tensor room;    // empty of a layer on disk
    LayerProjections projections;
    std::uint32_t on_disk = 0;  // its number there
  };
  struct Slot {
    gpu::Tensor room;
    LayerProjections projections;
    std::uint32_t layer = none;  // what it holds
    std::uint64_t used = 0;      // when it was last asked for or filled
  };

  Slot& bring(gpu::Recorder& recorder, std::uint32_t layer);
  // The slot that holds the layer, or will when `cargo_` is finished.
  Slot* slot_of(std::uint32_t layer);
  void prefetch(gpu::Recorder& recorder, std::uint32_t layer);
  Slot& make_room(std::uint32_t layer);
  // Where the layer lies in host memory, and what to say once all that reads it there is recorded.
  const gpu::Tensor& source(std::uint32_t layer);
  void sent(gpu::Recorder& recorder, std::uint32_t layer);
  // What is on its way is there for what is recorded from here on.
  void finish_cargo(gpu::Recorder& recorder);
  std::optional<std::uint32_t> after(std::uint32_t layer, LayerOrder order) const;
  // Has the layers read that come after this one and have no slot then.
  void read_ahead(std::uint32_t layer);

  std::vector<Layer> layers_;
  std::vector<Slot> slots_;
  std::unique_ptr<DiskLayers> disk_;     // null where layers lie in host memory
  // Of read_ahead(): all slots, what they will hold, and layers by their numbers on the disk.
  std::vector<const Slot*> held_;
  std::vector<std::uint32_t> in_slots_, expected_;
  std::shared_ptr<gpu::Cargo> cargo_;    // null unless carried
  std::uint32_t on_its_way_ = none;      // the layer in it
  LayerOrder order_ = LayerOrder::round;
  std::uint32_t asked_ = none;  // for last
  std::uint64_t clock_ = 0, copied_bytes_ = 0;
};

}  // namespace nibble
