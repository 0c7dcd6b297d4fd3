#include "nibble/model/alternating_room.h"

namespace nibble {
namespace {

gpu::Tensor in_buffer(const gpu::Buffer& buffer, const gpu::Tensor& shape) {
  const auto dim = [&](std::uint32_t axis) { return shape.dim(axis); };
  if (shape.rank() == 1) return {buffer, 0, shape.dtype(), {dim(0)}};
  if (shape.rank() == 2) return {buffer, 0, shape.dtype(), {dim(0), dim(1)}};
  if (shape.rank() == 3) return {buffer, 0, shape.dtype(), {dim(0), dim(1), dim(2)}};
  return {buffer, 0, shape.dtype(), {dim(0), dim(1), dim(2), dim(3)}};
}

}  // namespace

void AlternatingRoom::add(Group group, gpu::Tensor& tensor, DType dtype, std::initializer_list<std::uint32_t> dims) {
  const gpu::Tensor shape({}, 0, dtype, dims);
  std::vector<Place>& places = groups_[group];
  const auto smaller = std::find_if(places.begin(), places.end(), [&](const Place& place) { return place.shape.bytes() < shape.bytes(); });
  places.insert(smaller, {&tensor, shape});
}

void AlternatingRoom::make(gpu::Device& device, std::string_view label) const {
  constexpr std::uint32_t words = 64;  // of a row
  for (std::size_t i = 0; i < buffers(); ++i) {
    const auto rows = static_cast<std::uint32_t>((bytes_of(i) + 4 * words - 1) / (4 * words));
    const gpu::Tensor room = device.tensor(DType::u32, {rows, words}, label);
    for (const auto& places : groups_) {
      if (i < places.size()) *places[i].tensor = in_buffer(room.buffer(), places[i].shape);
    }
  }
}

std::uint64_t AlternatingRoom::bytes() const {
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < buffers(); ++i) bytes += gpu::buffer_bytes(bytes_of(i));
  return bytes;
}

std::uint64_t AlternatingRoom::bytes_of(std::size_t buffer) const {
  std::uint64_t most = 0;
  for (const auto& places : groups_) {
    if (buffer < places.size()) most = std::max(most, places[buffer].shape.bytes());
  }
  return most;
}

}  // namespace nibble
