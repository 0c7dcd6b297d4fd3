#pragma once

#include "nibble/gpu/device.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <vector>

namespace nibble {

// Memory of two groups of tensors that never hold anything at the same time: the largest of one group lies in the buffer of the
// largest of the other, the second largest in that of the second largest, and so on. Those of one group have a buffer each, since
// a kernel cannot read one part of a buffer and write another.
class AlternatingRoom {
 public:
  enum Group { first, second };

  // `tensor` must stay until make().
  void add(Group group, gpu::Tensor& tensor, DType dtype, std::initializer_list<std::uint32_t> dims);
  // Gives each tensor its place.
  void make(gpu::Device& device, std::string_view label) const;
  // What that takes of the device's memory.
  std::uint64_t bytes() const;

 private:
  struct Place {
    gpu::Tensor* tensor;
    gpu::Tensor shape;  // without a buffer
  };
  std::size_t buffers() const { return std::max(groups_[first].size(), groups_[second].size()); }
  std::uint64_t bytes_of(std::size_t buffer) const;

  std::array<std::vector<Place>, 2> groups_;  // the largest first
};

}  // namespace nibble
