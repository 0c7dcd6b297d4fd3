#pragma once

#include "nibble/gpu/recorder.h"

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

namespace nibble {

enum class MemoryPlace {
  device,
  host,  // pieces are brought to the device to be worked on
};

struct PlacedArrayShape {
  DType dtype = DType::f32;           // of 4 bytes
  std::uint32_t blocks = 0;
  std::uint32_t block_values = 0;
  std::uint32_t piece_blocks = 0;     // that are on the device at a time where the array is on the host; a multiple of 64
};

// An array in blocks that lies on the device, or on the host with room for one piece on the device. Zeroed.
class PlacedArray {
 public:
  PlacedArray() = default;
  PlacedArray(gpu::Device& device, MemoryPlace place, const PlacedArrayShape& shape, std::string_view label);

  // Blocks [first, last) as a flat tensor for kernels: of the array itself, or a copy of at most one piece. What is changed
  // there lasts after `put_back`, which for the host waits for the device.
  gpu::Tensor get(gpu::Device& device, std::uint32_t first, std::uint32_t last) const;
  void put_back(gpu::Device& device, std::uint32_t first, std::uint32_t last);

  // All of it on the device; only where it lies there.
  const gpu::Tensor& tensor() const { return device_; }

  // The first `count` bytes, in order and in pieces.
  void read(gpu::Device& device, std::uint64_t count,
            const std::function<void(std::span<const std::byte> bytes, std::uint64_t first)>& sink) const;
  // `first` is a multiple of 4, and so is the size but for the last piece.
  void write(gpu::Device& device, std::uint64_t first, std::span<const std::byte> bytes);

  // Bytes that the constructor takes in each memory.
  static std::uint64_t device_bytes(MemoryPlace place, const PlacedArrayShape& shape);
  static std::uint64_t host_bytes(MemoryPlace place, const PlacedArrayShape& shape);

 private:
  MemoryPlace place_ = MemoryPlace::device;
  PlacedArrayShape shape_;
  gpu::Tensor device_;  // the array, or room for one piece
  std::vector<std::byte> host_;
};

}  // namespace nibble
