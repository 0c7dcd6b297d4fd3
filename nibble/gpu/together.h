#pragma once

#include "nibble/gpu/device.h"

#include <optional>
#include <vector>

namespace nibble::gpu {

// So many tensors alike as parts of as few buffers as bindings reach over whole, those of a buffer the same distance apart, so that a
// kernel can bind several at once. Bindings may begin at each. `limits` for tests; empty: the device's. Throws as Device::tensor does.
std::vector<Tensor> tensors_together(Device& device, std::uint32_t count, DType dtype, std::initializer_list<std::uint32_t> dims, std::string_view label,
                                     const std::optional<Limits>& limits = {});

// What `count` tensors of so many bytes take so of the device's memory.
std::uint64_t together_bytes(const Limits& limits, std::uint32_t count, std::uint64_t tensor_bytes);

}  // namespace nibble::gpu
