#pragma once

#include "nibble/base/dtype.h"

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>

#include <fmt/format.h>

namespace nibble::gpu {

struct BufferState;

// A shared handle to device memory; the memory is freed, and the device let go, when the last handle is gone.
using Buffer = std::shared_ptr<BufferState>;

// Bindings may begin at multiples of so many bytes on every adapter.
constexpr std::uint64_t binding_alignment = 256;
constexpr std::uint64_t up_to_binding(std::uint64_t bytes) { return (bytes + binding_alignment - 1) / binding_alignment * binding_alignment; }

// What a tensor takes of the device's memory, as Device::memory() counts it. Dawn puts buffers below 4 MiB into blocks of a
// power of two; larger ones are as long as they are.
std::uint64_t buffer_bytes(std::uint64_t tensor_bytes);
std::uint64_t buffer_bytes(DType dtype, std::initializer_list<std::uint32_t> dims);

// The dimensions of a tensor, which format as "(3, 128)". Cheap to make, since every launcher hands it to checks that hold.
struct ShapeText {
  std::array<std::uint32_t, 4> dims{};  // zeros beyond the rank
  std::uint32_t rank = 0;

  bool operator==(const ShapeText&) const = default;
  std::string str() const;
};

// A row-major view of a buffer: up to four dimensions, beginning at a byte offset.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Buffer buffer, std::uint64_t offset, DType dtype, std::initializer_list<std::uint32_t> dims);

  explicit operator bool() const { return buffer_ != nullptr; }
  const Buffer& buffer() const { return buffer_; }
  std::uint64_t offset() const { return offset_; }  // bytes
  DType dtype() const { return dtype_; }
  std::uint32_t rank() const { return rank_; }
  std::uint32_t dim(std::uint32_t axis) const;
  std::uint64_t size() const;  // elements
  std::uint64_t bytes() const { return size() * size_of(dtype_); }
  ShapeText shape_text() const;

  // Rows [begin, end) of the first dimension.
  Tensor rows(std::uint32_t begin, std::uint32_t end) const;
  // The same elements, or the first of them, under other dimensions.
  Tensor view(std::initializer_list<std::uint32_t> dims) const;
  // `dims` elements beginning `first` elements in.
  Tensor part(std::uint64_t first, std::initializer_list<std::uint32_t> dims) const;

 private:
  Buffer buffer_;
  std::uint64_t offset_ = 0;
  DType dtype_ = DType::f32;
  std::uint32_t rank_ = 0;
  std::array<std::uint32_t, 4> dims_{};
};

}  // namespace nibble::gpu

template <>
struct fmt::formatter<nibble::gpu::ShapeText> : fmt::formatter<std::string_view> {
  template <typename Context>
  auto format(const nibble::gpu::ShapeText& shape, Context& context) const {
    return fmt::formatter<std::string_view>::format(shape.str(), context);
  }
};
