#pragma once

#include "nibble/base/error.h"
#include "nibble/gpu/dawn.h"

#include <cstdlib>
#include <memory>
#include <string_view>

namespace nibble::gpu {

// Memory of this process. Dawn has a share of it for as long as the device may reach it.
using HostPages = std::shared_ptr<void>;

inline HostPages make_host_pages(std::size_t alignment, std::size_t bytes, std::string_view label) {
  HostPages pages(std::aligned_alloc(alignment, bytes), std::free);
  check<Error>(pages != nullptr, label, "There is no room for {} bytes in host memory.", bytes);
  return pages;
}

// What a buffer's descriptor is chained to. Where Dawn refuses the memory it may not call back, and then keeps its share.
inline wgpu::BufferHostMappedPointer shared_with_dawn(const HostPages& pages) {
  wgpu::BufferHostMappedPointer mapped;
  mapped.pointer = pages.get();
  mapped.disposeCallback = [](void* share) { delete static_cast<HostPages*>(share); };
  mapped.userdata = new HostPages(pages);
  return mapped;
}

}  // namespace nibble::gpu
