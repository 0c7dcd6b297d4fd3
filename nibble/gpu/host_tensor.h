#pragma once

#include "nibble/gpu/device.h"

namespace nibble::gpu {

// Whether the device copies to and from memory of this process.
bool has_host_tensors(const AdapterInfo& info);

// What host_tensor takes of host memory.
std::uint64_t host_tensor_bytes(const AdapterInfo& info, DType dtype, std::initializer_list<std::uint32_t> dims);

// A tensor in memory of this process, that copies write and read; no kernel may bind it. It counts as MemoryUse::host. UsageError
// where the adapter has none.
Tensor host_tensor(Device& device, DType dtype, std::initializer_list<std::uint32_t> dims, std::string_view label);

}  // namespace nibble::gpu
