#include "nibble/gpu/readback.h"

#include "nibble/base/error.h"
#include "nibble/gpu/dawn.h"

#include <cstring>

namespace nibble::gpu {

struct ReadbackState {
  std::shared_ptr<DeviceState> device;
  wgpu::Buffer staging;
  std::uint64_t room = 0, bytes = 0;
  wgpu::Future future;

  ~ReadbackState() {
    if (staging) staging.Destroy();
  }
};

Readback::Readback(Device& device, std::uint64_t bytes) : state_(new ReadbackState{.device = device.state().shared_from_this()}) {
  state_->room = round_up(std::max<std::uint64_t>(bytes, 4), 4);
  wgpu::BufferDescriptor descriptor;
  descriptor.label = "readback";
  descriptor.size = state_->room;
  descriptor.usage = wgpu::BufferUsage::MapRead | wgpu::BufferUsage::CopyDst;
  state_->device->guarded("read", [&] { state_->staging = state_->device->device.CreateBuffer(&descriptor); });
}

Readback::~Readback() = default;
Readback::Readback(Readback&&) noexcept = default;
Readback& Readback::operator=(Readback&&) noexcept = default;

void Readback::begin(const Tensor& from) {
  auto& state = *state_;
  check(state.bytes == 0, "read", "The last reading was not finished.");
  const std::uint64_t whole = round_up(from.bytes(), 4);
  check(from.bytes() > 0 && whole <= state.room, "read", "A tensor of {} bytes is to be read; there is room for 1 to {}.",
        from.bytes(), state.room);
  const wgpu::CommandEncoder encoder = state.device->device.CreateCommandEncoder();
  encoder.CopyBufferToBuffer(from.buffer()->buffer, from.offset(), state.staging, 0, whole);
  const wgpu::CommandBuffer commands = encoder.Finish();
  state.device->queue.Submit(1, &commands);
  state.future = state.staging.MapAsync(wgpu::MapMode::Read, 0, whole, wgpu::CallbackMode::WaitAnyOnly,
                                        [](wgpu::MapAsyncStatus, wgpu::StringView) {});
  state.bytes = from.bytes();
}

void Readback::finish(std::span<std::byte> into, std::chrono::microseconds busy) {
  auto& state = *state_;
  check(state.bytes > 0 && into.size() == state.bytes, "read", "A reading of {} bytes was finished into {}.", state.bytes,
        into.size());
  state.device->wait(state.future, "read", busy);
  const void* mapped = state.staging.GetConstMappedRange(0, round_up(state.bytes, 4));
  state.device->errors.throw_if_any("read");
  check<DeviceError>(mapped != nullptr, "read", "The GPU's memory could not be mapped.");
  std::memcpy(into.data(), mapped, state.bytes);
  state.staging.Unmap();
  state.bytes = 0;
}

}  // namespace nibble::gpu
