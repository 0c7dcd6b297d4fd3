#include "nibble/gpu/together.h"

#include <algorithm>

namespace nibble::gpu {
namespace {

// Tensors of a buffer, at most.
std::uint32_t most_of_buffer(const Limits& limits, std::uint64_t tensor_bytes) {
  return static_cast<std::uint32_t>(std::max<std::uint64_t>(1, std::min(limits.max_binding, limits.max_buffer) / up_to_binding(tensor_bytes)));
}

}  // namespace

std::vector<Tensor> tensors_together(Device& device, std::uint32_t count, DType dtype, std::initializer_list<std::uint32_t> dims, std::string_view label,
                                     const std::optional<Limits>& limits) {
  const std::uint64_t bytes = Tensor({}, 0, dtype, dims).bytes(), apart = up_to_binding(bytes);
  const std::uint32_t most = most_of_buffer(limits.value_or(device.info().limits), bytes);
  std::vector<Tensor> result;
  while (result.size() < count) {
    const std::uint32_t here = std::min(most, count - static_cast<std::uint32_t>(result.size()));
    const Tensor all = device.tensor(DType::u32, {static_cast<std::uint32_t>(here * apart / 4)}, label);
    for (std::uint32_t i = 0; i < here; ++i) result.emplace_back(all.buffer(), i * apart, dtype, dims);
  }
  return result;
}

std::uint64_t together_bytes(const Limits& limits, std::uint32_t count, std::uint64_t tensor_bytes) {
  const std::uint64_t apart = up_to_binding(tensor_bytes);
  const std::uint32_t most = most_of_buffer(limits, tensor_bytes);
  return count / most * buffer_bytes(most * apart) + (count % most > 0 ? buffer_bytes(count % most * apart) : 0);
}

}  // namespace nibble::gpu
