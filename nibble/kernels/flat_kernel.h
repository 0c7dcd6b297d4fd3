#pragma once

#include "nibble/kernels/kernel.h"

namespace nibble {

// What kernels share that treat tensors as flat arrays, each element by itself: a workgroup takes `flat_chunk` elements.
constexpr std::uint32_t flat_lanes = 64, flat_chunk = 1024;

// The entry point of FILE.wgsl with LANES and CHUNK and the snippets lib/grid.wgsl and `libs`.
gpu::Kernel flat_kernel(gpu::Device& device, std::string_view file, std::string_view entry, gpu::Prelude prelude = {},
                        std::initializer_list<std::string_view> libs = {"grid"});

// Workgroups for so many elements.
inline gpu::Grid flat_grid(const gpu::Device& device, std::uint64_t elements) {
  return gpu::linear_grid(device, (elements + flat_chunk - 1) / flat_chunk);
}

// The tensor as (size); throws beyond 2^32 - 1 elements.
Tensor flat(const Tensor& tensor, std::string_view where);

}  // namespace nibble
