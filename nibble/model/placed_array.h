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
  bool record_copies = true;          // false: copies wait, also where they need not
};

// An array in blocks that lies on the device, or on the host with room for pieces on the device: blocks from a multiple of
// piece_blocks to the next. Zeroed. Where the device reaches memory of this process (gpu::has_host_tensors) copies are recorded like
// kernels, between two rooms in turn; else they go through staging, and wait for the device.
class PlacedArray {
 public:
  PlacedArray() = default;
  PlacedArray(gpu::Device& device, MemoryPlace place, const PlacedArrayShape& shape, std::string_view label);

  // Blocks [first, last) as a flat tensor for kernels: of the array itself, or of the room of the piece in which they lie. That
  // holds them after `bring`, and what is changed there lasts after `put_back`; neither does anything on the device.
  gpu::Tensor at(std::uint32_t first, std::uint32_t last) const;
  void bring(gpu::Recorder& recorder, std::uint32_t first, std::uint32_t last) const;
  // Submits what is recorded where it has to wait for it.
  void put_back(gpu::Recorder& recorder, std::uint32_t first, std::uint32_t last);

  // All of it on the device; only where it lies there.
  const gpu::Tensor& tensor() const { return rooms_.front(); }
  // Of which one piece is brought at a time; all blocks where the array lies on the device.
  std::uint32_t piece_blocks() const;
  // Whether a piece may be brought while the one before it is worked on.
  bool has_room_ahead() const { return place_ == MemoryPlace::device || rooms_.size() > 1; }

  // `count` bytes from byte `first` on, a multiple of 4, in order and in pieces.
  void read(gpu::Device& device, std::uint64_t first, std::uint64_t count,
            const std::function<void(std::span<const std::byte> bytes, std::uint64_t first)>& sink) const;
  // `first` is a multiple of 4, and so is the size but for the last piece.
  void write(gpu::Device& device, std::uint64_t first, std::span<const std::byte> bytes);

  struct Bytes {
    std::uint64_t device = 0, host = 0;
  };
  // What the constructor takes in each memory.
  static Bytes bytes(const gpu::AdapterInfo& info, MemoryPlace place, const PlacedArrayShape& shape);

 private:
  gpu::Tensor on_host(std::uint32_t first, std::uint32_t last) const;

  MemoryPlace place_ = MemoryPlace::device;
  PlacedArrayShape shape_;
  std::vector<gpu::Tensor> rooms_;  // the array, or rooms of pieces in turn
  gpu::Tensor host_;                // where copies are recorded
  std::vector<std::byte> staged_;   // where they are not
};

// Calls use(first, last) for the blocks [first, last) piece by piece, with those of all arrays at hand and put back afterwards. The
// next piece is on its way meanwhile, where all arrays have room for it.
void for_each_piece(gpu::Recorder& recorder, std::span<PlacedArray* const> arrays, std::uint32_t first, std::uint32_t last,
                    const std::function<void(std::uint32_t first, std::uint32_t last)>& use);

}  // namespace nibble
