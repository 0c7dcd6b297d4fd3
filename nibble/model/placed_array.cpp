#include "nibble/model/placed_array.h"

#include "nibble/base/error.h"

#include <algorithm>
#include <cstring>

namespace nibble {
namespace {

std::uint64_t bytes_of_blocks(const PlacedArrayShape& shape, std::uint64_t blocks) {
  return blocks * shape.block_values * size_of(shape.dtype);
}

std::uint32_t device_blocks(MemoryPlace place, const PlacedArrayShape& shape) {
  return place == MemoryPlace::device ? shape.blocks : std::min(shape.blocks, shape.piece_blocks);
}

}  // namespace

PlacedArray::PlacedArray(gpu::Device& device, MemoryPlace place, const PlacedArrayShape& shape, std::string_view label)
    : place_(place), shape_(shape) {
  check(shape.piece_blocks > 0 && shape.piece_blocks % 64 == 0, label, "A piece of {} blocks is no multiple of 64.",
        shape.piece_blocks);
  device_ = device.tensor(shape.dtype, {device_blocks(place, shape) * shape.block_values}, label);
  if (place == MemoryPlace::host) host_.resize(bytes_of_blocks(shape, shape.blocks));
}

gpu::Tensor PlacedArray::get(gpu::Device& device, std::uint32_t first, std::uint32_t last) const {
  const std::uint32_t count = (last - first) * shape_.block_values;
  if (place_ == MemoryPlace::device) return device_.part(std::uint64_t{first} * shape_.block_values, {count});
  const gpu::Tensor piece = device_.part(0, {count});
  device.write(piece, std::span(host_).subspan(bytes_of_blocks(shape_, first), piece.bytes()));
  return piece;
}

void PlacedArray::put_back(gpu::Device& device, std::uint32_t first, std::uint32_t last) {
  if (place_ == MemoryPlace::device) return;
  const gpu::Tensor piece = device_.part(0, {(last - first) * shape_.block_values});
  device.read(piece, std::span(host_).subspan(bytes_of_blocks(shape_, first), piece.bytes()));
}

void PlacedArray::read(gpu::Device& device, std::uint64_t count,
                       const std::function<void(std::span<const std::byte>, std::uint64_t)>& sink) const {
  const std::uint64_t piece_bytes = bytes_of_blocks(shape_, shape_.piece_blocks);
  std::vector<std::byte> bytes;
  for (std::uint64_t first = 0; first < count; first += piece_bytes) {
    const std::uint64_t size = std::min(piece_bytes, count - first);
    if (place_ == MemoryPlace::host) {
      sink(std::span(host_).subspan(first, size), first);
      continue;
    }
    const gpu::Tensor piece = device_.part(first / 4, {static_cast<std::uint32_t>((size + 3) / 4)});
    bytes.resize(piece.bytes());
    device.read(piece, bytes);
    sink(std::span(bytes).first(size), first);
  }
}

void PlacedArray::write(gpu::Device& device, std::uint64_t first, std::span<const std::byte> bytes) {
  if (place_ == MemoryPlace::device) return device.write(device_, bytes, first);
  check(first + bytes.size() <= host_.size(), "write", "{} bytes at byte {} do not fit into an array of {}.", bytes.size(), first,
        host_.size());
  std::memcpy(host_.data() + first, bytes.data(), bytes.size());
}

std::uint64_t PlacedArray::device_bytes(MemoryPlace place, const PlacedArrayShape& shape) {
  return gpu::buffer_bytes(bytes_of_blocks(shape, device_blocks(place, shape)));
}

std::uint64_t PlacedArray::host_bytes(MemoryPlace place, const PlacedArrayShape& shape) {
  return place == MemoryPlace::host ? bytes_of_blocks(shape, shape.blocks) : 0;
}

}  // namespace nibble
