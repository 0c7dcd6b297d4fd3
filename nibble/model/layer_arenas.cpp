#include "nibble/model/layer_arenas.h"

#include "nibble/base/error.h"

namespace nibble {
namespace {

std::uint64_t bytes_of(DType dtype, std::initializer_list<std::uint32_t> dims) {
  std::uint64_t bytes = size_of(dtype);
  for (const std::uint32_t dim : dims) bytes *= dim;
  return bytes;
}

bool lie_in_arena(std::uint64_t bytes, std::uint32_t layers) {
  return gpu::buffer_bytes(gpu::up_to_binding(bytes) * layers) < layers * gpu::buffer_bytes(bytes);
}

}  // namespace

void LayerArenas::begin_layer() {
  check(begun_ < layers_, label_, "Tensors of more than {} layers were asked for.", layers_);
  ++begun_;
  next_ = 0;
}

gpu::Tensor LayerArenas::next(DType dtype, std::initializer_list<std::uint32_t> dims) {
  check(begun_ > 0, label_, "A tensor was asked for before its layer.");
  const std::uint64_t bytes = bytes_of(dtype, dims), stride = gpu::up_to_binding(bytes);
  const std::size_t which = next_++;
  if (which == arenas_.size()) arenas_.emplace_back();
  if (!lie_in_arena(bytes, layers_)) return device_->tensor(dtype, dims, label_);
  gpu::Tensor& arena = arenas_[which];
  if (!arena) arena = device_->tensor(DType::u32, {static_cast<std::uint32_t>(stride * layers_ / 4)}, label_);
  check(arena.bytes() == stride * layers_, label_, "A tensor of {} bytes came where one of {} was before.", stride,
        arena.bytes() / layers_);
  return {arena.buffer(), stride * (begun_ - 1), dtype, dims};
}

std::uint64_t LayerArenas::bytes(DType dtype, std::initializer_list<std::uint32_t> dims, std::uint32_t layers) {
  const std::uint64_t bytes = bytes_of(dtype, dims);
  return lie_in_arena(bytes, layers) ? gpu::buffer_bytes(gpu::up_to_binding(bytes) * layers) : layers * gpu::buffer_bytes(bytes);
}

}  // namespace nibble
