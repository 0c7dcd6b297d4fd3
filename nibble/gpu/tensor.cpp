#include "nibble/gpu/tensor.h"

#include "nibble/base/error.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <span>

namespace nibble::gpu {

std::uint64_t buffer_bytes(std::uint64_t tensor_bytes) {
  constexpr std::uint64_t own_allocation = std::uint64_t{4} << 20;
  const std::uint64_t size = up_to_binding(std::max<std::uint64_t>(tensor_bytes, 16));
  return size < own_allocation ? std::bit_ceil(size) : size;
}

std::uint64_t buffer_bytes(DType dtype, std::initializer_list<std::uint32_t> dims) {
  std::uint64_t bytes = size_of(dtype);
  for (const std::uint32_t dim : dims) bytes *= dim;
  return buffer_bytes(bytes);
}

std::string ShapeText::str() const { return fmt::format("({})", fmt::join(std::span(dims.data(), rank), ", ")); }

Tensor::Tensor(Buffer buffer, std::uint64_t offset, DType dtype, std::initializer_list<std::uint32_t> dims)
    : buffer_(std::move(buffer)), offset_(offset), dtype_(dtype), rank_(static_cast<std::uint32_t>(dims.size())) {
  check(rank_ >= 1 && rank_ <= 4, "tensor", "A tensor has 1 to 4 dimensions, not {}.", rank_);
  std::copy(dims.begin(), dims.end(), dims_.begin());
}

std::uint32_t Tensor::dim(std::uint32_t axis) const {
  check(axis < rank_, "tensor", "Axis {} does not exist in shape {}.", axis, shape_text());
  return dims_[axis];
}

std::uint64_t Tensor::size() const {
  std::uint64_t count = rank_ == 0 ? 0 : 1;
  for (std::uint32_t axis = 0; axis < rank_; ++axis) count *= dims_[axis];
  return count;
}

ShapeText Tensor::shape_text() const {
  ShapeText text{.rank = rank_};
  std::copy_n(dims_.begin(), rank_, text.dims.begin());
  return text;
}

Tensor Tensor::rows(std::uint32_t begin, std::uint32_t end) const {
  check(begin <= end && end <= dim(0), "tensor", "Rows {} to {} are outside shape {}.", begin, end, shape_text());
  Tensor slice = *this;
  const std::uint64_t row_size = dims_[0] == 0 ? 0 : size() / dims_[0];
  slice.offset_ += begin * row_size * size_of(dtype_);
  slice.dims_[0] = end - begin;
  return slice;
}

Tensor Tensor::view(std::initializer_list<std::uint32_t> dims) const { return part(0, dims); }

Tensor Tensor::part(std::uint64_t first, std::initializer_list<std::uint32_t> dims) const {
  Tensor result(buffer_, offset_ + first * size_of(dtype_), dtype_, dims);
  check(first + result.size() <= size(), "tensor", "{} elements from element {} on are not within shape {}.",
        result.size(), first, shape_text());
  return result;
}

}  // namespace nibble::gpu
