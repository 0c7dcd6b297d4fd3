#pragma once

#include "nibble/gpu/device.h"

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>

namespace nibble::gpu {

struct ReadbackState;

// Reads a tensor while the GPU goes on: what is submitted after begin() neither changes what is read nor delays it.
class Readback {
 public:
  explicit Readback(Device& device, std::uint64_t bytes);
  ~Readback();
  Readback(Readback&&) noexcept;
  Readback& operator=(Readback&&) noexcept;

  // Takes the tensor, of at most the bytes there is room for, as the work submitted so far leaves it. The last reading must
  // have been finished.
  void begin(const Tensor& from);
  // Waits for it; `into` is as long as the tensor. For `busy` the thread does not sleep, which saves what its waking takes.
  // Throws DeviceError as Device::wait.
  void finish(std::span<std::byte> into, std::chrono::microseconds busy = {});

 private:
  std::unique_ptr<ReadbackState> state_;
};

}  // namespace nibble::gpu
