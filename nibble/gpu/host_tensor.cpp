#include "nibble/gpu/host_tensor.h"

#include "nibble/base/error.h"
#include "nibble/gpu/dawn.h"
#include "nibble/gpu/host_pages.h"

namespace nibble::gpu {

bool has_host_tensors(const AdapterInfo& info) { return info.limits.host_pointer_alignment > 0; }

std::uint64_t host_tensor_bytes(const AdapterInfo& info, DType dtype, std::initializer_list<std::uint32_t> dims) {
  std::uint64_t bytes = size_of(dtype);
  for (const std::uint32_t dim : dims) bytes *= dim;
  return round_up(std::max<std::uint64_t>(bytes, 1), std::max(256u, info.limits.host_pointer_alignment));
}

Tensor host_tensor(Device& device, DType dtype, std::initializer_list<std::uint32_t> dims, std::string_view label) {
  DeviceState& owner = device.state();
  check<UsageError>(has_host_tensors(owner.info), label, "{} cannot reach memory of this process.", owner.info.name);
  const std::uint64_t size = host_tensor_bytes(owner.info, dtype, dims);
  check<UsageError>(size <= owner.info.limits.max_buffer, label, "A buffer of {} bytes exceeds the {} that {} allows.", size,
                    owner.info.limits.max_buffer, owner.info.name);
  wgpu::BufferHostMappedPointer mapped = shared_with_dawn(make_host_pages(owner.info.limits.host_pointer_alignment, size, label));
  wgpu::BufferDescriptor descriptor;
  descriptor.nextInChain = &mapped;
  descriptor.label = label;
  descriptor.size = size;
  descriptor.usage = wgpu::BufferUsage::CopySrc | wgpu::BufferUsage::CopyDst;
  auto buffer = std::make_shared<BufferState>();
  owner.guarded(label, [&] { buffer->buffer = owner.device.CreateBuffer(&descriptor); });
  buffer->device = owner.shared_from_this();
  buffer->size = size;
  buffer->id = owner.next_buffer_id++;
  buffer->on_host = true;
  buffer->bindable = false;
  owner.memory.host += size;
  return Tensor(buffer, 0, dtype, dims);
}

}  // namespace nibble::gpu
