#include "nibble/kernels/flat_kernel.h"

#include "nibble/base/error.h"

namespace nibble {

gpu::Kernel flat_kernel(gpu::Device& device, std::string_view file, std::string_view entry, gpu::Prelude prelude,
                        std::initializer_list<std::string_view> libs) {
  prelude.constant("LANES", flat_lanes).constant("CHUNK", flat_chunk);
  return kernel(device, file, prelude, libs, entry);
}

Tensor flat(const Tensor& tensor, std::string_view where) {
  check(static_cast<bool>(tensor), where, "A tensor is missing.");
  check(tensor.size() <= UINT32_MAX, where, "A tensor has {} elements; at most {} are allowed.", tensor.size(), UINT32_MAX);
  return tensor.view({static_cast<std::uint32_t>(tensor.size())});
}

}  // namespace nibble
