#pragma once

#include "nibble/gpu/host_memory.h"
#include "nibble/quant/double_quant.h"
#include "nibble/weights/device_weights.h"
#include "nibble/weights/disk_layers.h"
#include "nibble/weights/joint.h"

#include <array>
#include <optional>
#include <span>
#include <vector>

namespace nibble {

// Bytes of a layer's projections in NF4, in one buffer: every part begins where a binding may begin, and those of a joint lie one
// after the other, codes and scales each, as far as their sizes allow it, so that they also are one matrix.
// With `double_quant` codes and blocks of the scales stand behind all codes of the weights, in the scales' place.
std::uint64_t nf4_layer_bytes(const ModelConfig& config, bool double_quant = false);

// The projections as parts of such a buffer of u32s.
LayerProjections place_nf4(const gpu::Tensor& room, const ModelConfig& config, bool double_quant = false);

// Where a layer's scales lie in a room of their own, and, double-quantised, their codes likewise: every projection's from where a
// binding of f32s may begin, so that joints are one matrix there too. Their blocks follow one another.
struct ScalePlaces {
  std::array<std::uint64_t, 7> first{}, count{}, of_matrix{}, first_block{};  // by Projection, in scales and in blocks
  std::uint64_t scales = 0, blocks = 0;                                       // of the layer

  explicit ScalePlaces(const ModelConfig& config);
};

// Whether the projections of a joint also are one matrix, by its sizes.
bool joins_in_nf4(const ModelConfig& config, Joint joint);

// Whether the bits of all of them stand for the same values: bitsandbytes' FP4 may lie beside what was quantised here.
bool have_one_code_book(std::span<const Nf4Matrix> members);

// The matrix that they are together; empty where they do not lie so, or have two code books.
std::optional<Nf4Matrix> joined_nf4(std::span<const Nf4Matrix> members);

// Room for a layer's projections, on the device, in host memory or on a disk, while they are written.
class Nf4Room {
 public:
  Nf4Room(gpu::Device& device, const ModelConfig& config, gpu::HostMemory host, bool double_quant = false);
  // On the device, in u32s of as many bytes.
  Nf4Room(gpu::Device& device, const ModelConfig& config, const gpu::Tensor& room, bool double_quant);
  // The layer that comes next on the disk, whose bytes lie as in `slot`; nothing is written into that.
  Nf4Room(gpu::Device& device, const ModelConfig& config, DiskLayers& disk, const gpu::Tensor& slot, bool double_quant);

  const LayerProjections& projections() const { return projections_; }
  // Bytes of codes or scales of one of the projections.
  void write(const gpu::Tensor& part, std::span<const std::byte> bytes, std::uint64_t first_byte = 0);
  // Double-quantised scales of one of the projection's matrices, which come in their order.
  void write_scales(Projection p, std::uint32_t index, const DoubleQuantized& scales);
  // All of it; nothing may be written any more.
  gpu::Tensor finish();

 private:
  gpu::Device& device_;
  std::optional<gpu::HostBuffer> host_;
  DiskLayers* disk_ = nullptr;
  gpu::Tensor room_;
  LayerProjections projections_;
  std::vector<std::uint8_t> scale_codes_;  // of a projection, until its last matrix has come
};

}  // namespace nibble
