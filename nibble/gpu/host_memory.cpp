#include "nibble/gpu/host_memory.h"

#include "nibble/base/error.h"
#include "nibble/gpu/dawn.h"
#include "nibble/gpu/host_pages.h"

#include <array>
#include <cstring>
#include <utility>

namespace nibble::gpu {
namespace {

constexpr std::array<std::pair<HostMemory, std::string_view>, 4> names{{
    {HostMemory::staged, "staged"}, {HostMemory::mapped, "mapped"}, {HostMemory::direct, "direct"},
    {HostMemory::carried, "carried"}}};

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
  return info.maps_card_memory && supports(info, HostMemory::carried) ? HostMemory::carried : HostMemory::staged;
}

std::uint64_t host_buffer_bytes(const AdapterInfo& info, HostMemory memory, std::uint64_t bytes) {
  return round_up(std::max<std::uint64_t>(bytes, 1), memory == HostMemory::staged ? 256 : std::max(256u, info.limits.host_pointer_alignment));
}

struct HostBufferState {
  Tensor tensor;
  HostPages pages;                 // empty of the driver's
  std::byte* data = nullptr;   // null while it is sealed
  std::optional<wgpu::Future> opening;

  void open() {
    opening.reset();
    data = static_cast<std::byte*>(pages ? pages.get() : tensor.buffer()->buffer.GetMappedRange());
    check<DeviceError>(data != nullptr, "host memory", "Host memory of {} bytes could not be mapped again.", tensor.bytes());
  }
};

HostBuffer::HostBuffer(Device& device, HostMemory memory, std::uint64_t bytes, std::string_view label) : state_(new HostBufferState) {
  DeviceState& owner = device.state();
  check<UsageError>(supports(owner.info, memory), label, "{} cannot read memory of this process; use staged memory.", owner.info.name);
  const std::uint64_t size = host_buffer_bytes(owner.info, memory, bytes);
  check<UsageError>(size <= owner.info.limits.max_buffer, label, "A buffer of {} bytes exceeds the {} that {} allows.", size,
                    owner.info.limits.max_buffer, owner.info.name);
  const bool read_by_kernels = memory == HostMemory::direct || memory == HostMemory::carried;
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
    state_->pages = make_host_pages(owner.info.limits.host_pointer_alignment, size, label);
    if (read_by_kernels) descriptor.usage |= wgpu::BufferUsage::Storage;
    mapped = shared_with_dawn(state_->pages);
    descriptor.nextInChain = &mapped;
  }
  owner.guarded(label, [&] { buffer->buffer = owner.device.CreateBuffer(&descriptor); });
  buffer->device = owner.shared_from_this();
  buffer->size = size;
  buffer->id = owner.next_buffer_id++;
  buffer->on_host = true;
  buffer->bindable = read_by_kernels;
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

std::span<std::byte> HostBuffer::bytes() {
  check(state_->data != nullptr, "host memory", "Memory that is sealed was to be filled.");
  return {state_->data, state_->tensor.bytes()};
}

void HostBuffer::seal() {
  if (!std::exchange(state_->data, nullptr) || state_->pages) return;
  state_->tensor.buffer()->buffer.Unmap();
}

// The driver's memory is mapped again only once nothing that was submitted uses it.
void HostBuffer::reopen() {
  check(state_->data == nullptr && !state_->opening, "host memory", "Memory that is open, or about to be, was to be opened.");
  const BufferState& buffer = *state_->tensor.buffer();
  if (state_->pages) {
    state_->opening = buffer.device->queue.OnSubmittedWorkDone(wgpu::CallbackMode::WaitAnyOnly, [](wgpu::QueueWorkDoneStatus, wgpu::StringView) {});
  } else {
    state_->opening = buffer.buffer.MapAsync(wgpu::MapMode::Write, 0, buffer.size, wgpu::CallbackMode::WaitAnyOnly,
                                             [](wgpu::MapAsyncStatus, wgpu::StringView) {});
  }
}

bool HostBuffer::is_open() {
  if (state_->opening && state_->tensor.buffer()->device->instance.WaitAny(*state_->opening, 0) == wgpu::WaitStatus::Success) state_->open();
  return state_->data != nullptr;
}

void HostBuffer::wait_until_open(std::string_view what) {
  if (state_->data) return;
  check(state_->opening.has_value(), what, "Memory was waited for that nobody opens.");
  state_->tensor.buffer()->device->wait(*state_->opening, what);
  state_->open();
}

}  // namespace nibble::gpu
