#include "nibble/gpu/host_memory.h"

#include "nibble/base/error.h"
#include "nibble/gpu/dawn.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace nibble::gpu {
namespace {

constexpr std::array<std::pair<HostMemory, std::string_view>, 3> names{{
    {HostMemory::staged, "staged"}, {HostMemory::mapped, "mapped"}, {HostMemory::direct, "direct"}}};

// Memory of this process. Dawn has a share of it for as long as the device may read it.
using Pages = std::shared_ptr<void>;

Pages make_pages(std::size_t alignment, std::size_t bytes) {
  void* pages = std::aligned_alloc(alignment, bytes);
  check<Error>(pages != nullptr, "host memory", "There is no room for {} bytes.", bytes);
  return {pages, std::free};
}

// Where Dawn refuses the memory it may not call back, and then keeps its share of what the process no longer needs.
void let_go(void* share) { delete static_cast<Pages*>(share); }

}  // namespace

std::string_view name_of(HostMemory memory) {
  for (const auto& [known, name] : names) {
    if (known == memory) return name;
  }
  return "?";
}

std::optional<HostMemory> host_memory_named(std::string_view name) {
  for (const auto& [memory, known] : names) {
    if (known == name) return memory;
  }
  return {};
}

bool supports(const AdapterInfo& info, HostMemory memory) {
  return memory == HostMemory::staged || info.limits.host_pointer_alignment > 0;
}

HostMemory usual_host_memory(const AdapterInfo& info) {
  return info.maps_card_memory && supports(info, HostMemory::mapped) ? HostMemory::mapped : HostMemory::staged;
}

std::uint64_t host_buffer_bytes(const AdapterInfo& info, HostMemory memory, std::uint64_t bytes) {
  return round_up(std::max<std::uint64_t>(bytes, 1), memory == HostMemory::staged ? 256 : std::max(256u, info.limits.host_pointer_alignment));
}

struct HostBufferState {
  Tensor tensor;
  Pages pages;                 // empty of the driver's
  std::byte* data = nullptr;   // null once it is sealed
};

HostBuffer::HostBuffer(Device& device, HostMemory memory, std::uint64_t bytes, std::string_view label) : state_(new HostBufferState) {
  DeviceState& owner = device.state();
  check<UsageError>(supports(owner.info, memory), label, "{} cannot read memory of this process; use staged memory.", owner.info.name);
  const std::uint64_t size = host_buffer_bytes(owner.info, memory, bytes);
  check<UsageError>(size <= owner.info.limits.max_buffer, label, "A buffer of {} bytes exceeds the {} that {} allows.", size,
                    owner.info.limits.max_buffer, owner.info.name);
  auto buffer = std::make_shared<BufferState>();
  wgpu::BufferDescriptor descriptor;
  descriptor.label = label;
  descriptor.size = size;
  descriptor.usage = wgpu::BufferUsage::CopySrc;
  wgpu::BufferHostMappedPointer mapped;
  if (memory == HostMemory::staged) {
    descriptor.usage |= wgpu::BufferUsage::MapWrite;
    descriptor.mappedAtCreation = true;
  } else {
    state_->pages = make_pages(owner.info.limits.host_pointer_alignment, size);
    if (memory == HostMemory::direct) descriptor.usage |= wgpu::BufferUsage::Storage;
    mapped.pointer = state_->pages.get();
    mapped.disposeCallback = let_go;
    mapped.userdata = new Pages(state_->pages);
    descriptor.nextInChain = &mapped;
  }
  owner.guarded(label, [&] { buffer->buffer = owner.device.CreateBuffer(&descriptor); });
  buffer->device = owner.shared_from_this();
  buffer->size = size;
  buffer->id = owner.next_buffer_id++;
  buffer->on_host = true;
  buffer->bindable = memory == HostMemory::direct;
  owner.memory.host += size;
  state_->data = static_cast<std::byte*>(state_->pages ? state_->pages.get() : buffer->buffer.GetMappedRange());
  state_->tensor = Tensor(buffer, 0, DType::u32, {static_cast<std::uint32_t>(bytes / 4)});
  check<DeviceError>(state_->data != nullptr, label, "Host memory of {} bytes could not be mapped.", size);
}

HostBuffer::~HostBuffer() = default;
HostBuffer::HostBuffer(HostBuffer&&) noexcept = default;
HostBuffer& HostBuffer::operator=(HostBuffer&&) noexcept = default;

const Tensor& HostBuffer::tensor() const { return state_->tensor; }

void HostBuffer::write(std::span<const std::byte> bytes, std::uint64_t first_byte) {
  check(state_->data != nullptr, "host memory", "Memory that is sealed was written to.");
  check(first_byte <= state_->tensor.bytes() && bytes.size() <= state_->tensor.bytes() - first_byte, "host memory",
        "{} bytes at byte {} do not fit into {}.", bytes.size(), first_byte, state_->tensor.bytes());
  std::memcpy(state_->data + first_byte, bytes.data(), bytes.size());
}

void HostBuffer::seal() {
  if (!std::exchange(state_->data, nullptr) || state_->pages) return;
  state_->tensor.buffer()->buffer.Unmap();
}

}  // namespace nibble::gpu
