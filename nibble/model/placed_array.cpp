#include "nibble/model/placed_array.h"

#include "nibble/base/error.h"
#include "nibble/gpu/host_tensor.h"

#include <algorithm>
#include <cstring>

namespace nibble {
namespace {

std::uint64_t bytes_of_blocks(const PlacedArrayShape& shape, std::uint64_t blocks) {
  return blocks * shape.block_values * size_of(shape.dtype);
}

std::uint32_t blocks_of_room(MemoryPlace place, const PlacedArrayShape& shape) {
  return place == MemoryPlace::device ? shape.blocks : std::min(shape.blocks, shape.piece_blocks);
}

// An array that no buffer can hold is staged.
bool records_copies(const gpu::AdapterInfo& info, MemoryPlace place, const PlacedArrayShape& shape) {
  return place == MemoryPlace::host && shape.record_copies && gpu::has_host_tensors(info) &&
         bytes_of_blocks(shape, shape.blocks) + info.limits.host_pointer_alignment <= info.limits.max_buffer;
}

std::uint32_t room_count(const gpu::AdapterInfo& info, MemoryPlace place, const PlacedArrayShape& shape) {
  return records_copies(info, place, shape) && shape.blocks > shape.piece_blocks ? 2 : 1;
}

}  // namespace

PlacedArray::PlacedArray(gpu::Device& device, MemoryPlace place, const PlacedArrayShape& shape, std::string_view label)
    : place_(place), shape_(shape) {
  check(shape.piece_blocks > 0 && shape.piece_blocks % 64 == 0, label, "A piece of {} blocks is no multiple of 64.",
        shape.piece_blocks);
  for (std::uint32_t i = 0; i < room_count(device.info(), place, shape); ++i) {
    rooms_.push_back(device.tensor(shape.dtype, {blocks_of_room(place, shape) * shape.block_values}, label));
  }
  if (records_copies(device.info(), place, shape)) {
    host_ = gpu::host_tensor(device, shape.dtype, {shape.blocks * shape.block_values}, label);
    gpu::Recorder recorder(device);
    recorder.clear(host_);
    recorder.submit();
  } else if (place == MemoryPlace::host) {
    staged_.resize(bytes_of_blocks(shape, shape.blocks));
  }
}

std::uint32_t PlacedArray::piece_blocks() const { return place_ == MemoryPlace::device ? shape_.blocks : shape_.piece_blocks; }

gpu::Tensor PlacedArray::at(std::uint32_t first, std::uint32_t last) const {
  const std::uint32_t piece = std::max(1u, piece_blocks()), count = (last - first) * shape_.block_values;
  return rooms_[first / piece % rooms_.size()].part(std::uint64_t{first % piece} * shape_.block_values, {count});
}

gpu::Tensor PlacedArray::on_host(std::uint32_t first, std::uint32_t last) const {
  return host_.part(std::uint64_t{first} * shape_.block_values, {(last - first) * shape_.block_values});
}

void PlacedArray::bring(gpu::Recorder& recorder, std::uint32_t first, std::uint32_t last) const {
  if (place_ == MemoryPlace::device) return;
  if (host_) return recorder.copy(on_host(first, last), at(first, last));
  const gpu::Tensor room = at(first, last);
  recorder.device().write(room, std::span(staged_).subspan(bytes_of_blocks(shape_, first), room.bytes()));
}

void PlacedArray::put_back(gpu::Recorder& recorder, std::uint32_t first, std::uint32_t last) {
  if (place_ == MemoryPlace::device) return;
  if (host_) return recorder.copy(at(first, last), on_host(first, last));
  recorder.submit();
  const gpu::Tensor room = at(first, last);
  recorder.device().read(room, std::span(staged_).subspan(bytes_of_blocks(shape_, first), room.bytes()));
}

void PlacedArray::read(gpu::Device& device, std::uint64_t begin, std::uint64_t count,
                       const std::function<void(std::span<const std::byte>, std::uint64_t)>& sink) const {
  constexpr std::uint64_t piece_bytes = std::uint64_t{16} << 20;
  std::vector<std::byte> bytes;
  for (std::uint64_t done = 0; done < count; done += piece_bytes) {
    const std::uint64_t size = std::min(piece_bytes, count - done), first = begin + done;
    if (!staged_.empty()) {
      sink(std::span(staged_).subspan(first, size), first);
      continue;
    }
    const gpu::Tensor piece = (host_ ? host_ : tensor()).part(first / 4, {static_cast<std::uint32_t>((size + 3) / 4)});
    bytes.resize(piece.bytes());
    device.read(piece, bytes);
    sink(std::span(bytes).first(size), first);
  }
}

void PlacedArray::write(gpu::Device& device, std::uint64_t first, std::span<const std::byte> bytes) {
  if (staged_.empty()) return device.write(host_ ? host_ : tensor(), bytes, first);
  check(first + bytes.size() <= staged_.size(), "write", "{} bytes at byte {} do not fit into an array of {}.", bytes.size(), first,
        staged_.size());
  std::memcpy(staged_.data() + first, bytes.data(), bytes.size());
}

PlacedArray::Bytes PlacedArray::bytes(const gpu::AdapterInfo& info, MemoryPlace place, const PlacedArrayShape& shape) {
  Bytes bytes{.device = room_count(info, place, shape) * gpu::buffer_bytes(bytes_of_blocks(shape, blocks_of_room(place, shape)))};
  if (place == MemoryPlace::device) return bytes;
  bytes.host = bytes_of_blocks(shape, shape.blocks);
  if (records_copies(info, place, shape)) bytes.host = gpu::host_tensor_bytes(info, shape.dtype, {shape.blocks, shape.block_values});
  return bytes;
}

void for_each_piece(gpu::Recorder& recorder, std::span<PlacedArray* const> arrays, std::uint32_t first, std::uint32_t last,
                    const std::function<void(std::uint32_t, std::uint32_t)>& use) {
  std::uint32_t piece = UINT32_MAX;
  bool ahead = true;
  for (const PlacedArray* array : arrays) {
    piece = std::min(piece, array->piece_blocks());
    ahead = ahead && array->has_room_ahead();
  }
  const auto end_of = [&](std::uint32_t begin) { return last - begin <= piece - begin % piece ? last : begin + piece - begin % piece; };
  const auto bring = [&](std::uint32_t begin) {
    if (begin >= last) return;
    for (const PlacedArray* array : arrays) array->bring(recorder, begin, end_of(begin));
  };
  bring(first);
  for (std::uint32_t begin = first; begin < last;) {
    const std::uint32_t end = end_of(begin);
    use(begin, end);
    // Behind the kernels, which a copy to another room does not wait for, and before copies that do.
    if (ahead) bring(end);
    for (PlacedArray* array : arrays) array->put_back(recorder, begin, end);
    if (!ahead) bring(end);
    begin = end;
  }
}

}  // namespace nibble
