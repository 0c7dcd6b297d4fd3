#pragma once

#include "nibble/gpu/device.h"

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

namespace nibble::gpu {

// How the device reaches memory of the host.
enum class HostMemory {
  staged,  // the driver's own, which copies read
  mapped,  // this process's, shown to the device (HostMappedPointer), which copies read
  direct,  // the same, which kernels read too
  carried,  // the same, of which kernels that compute for long take pieces along to the device (cargo.h)
};

std::string_view name_of(HostMemory memory);
std::optional<HostMemory> host_memory_named(std::string_view name);
bool supports(const AdapterInfo& info, HostMemory memory);
// Staged, or carried where staged memory would be the card's own.
HostMemory usual_host_memory(const AdapterInfo& info);

// Bytes that a buffer of so many takes.
std::uint64_t host_buffer_bytes(const AdapterInfo& info, HostMemory memory, std::uint64_t bytes);

struct HostBufferState;

// Host memory that the device reads: the CPU fills it and seals it, and from then on nobody writes until it is opened again.
class HostBuffer {
 public:
  // UsageError where the adapter cannot do it, OutOfDeviceMemory where there is not so much.
  HostBuffer(Device& device, HostMemory memory, std::uint64_t bytes, std::string_view label);
  ~HostBuffer();
  HostBuffer(HostBuffer&&) noexcept;
  HostBuffer& operator=(HostBuffer&&) noexcept;

  // Its u32s. May be copied from, and bound for reading where kernels read it; only once it is sealed.
  const Tensor& tensor() const;
  // `first_byte` counts from the beginning.
  void write(std::span<const std::byte> bytes, std::uint64_t first_byte);
  // All of it, to be filled by any thread; holds until seal().
  std::span<std::byte> bytes();
  void seal();
  // Sealed memory opens once the device is done with what was submitted so far; what it holds stays.
  void reopen();
  // Whether it is open by now. Does not wait.
  bool is_open();
  // Throws DeviceError that names `what` as Device::wait does.
  void wait_until_open(std::string_view what);

 private:
  std::unique_ptr<HostBufferState> state_;
};

}  // namespace nibble::gpu
