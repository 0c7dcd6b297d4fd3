#pragma once

#include "nibble/gpu/adapter.h"
#include "nibble/gpu/kernel.h"
#include "nibble/gpu/tensor.h"

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <typeindex>
#include <vector>

namespace nibble::gpu {

struct DeviceOptions {
  std::string adapter;  // an index of list_adapters() or a part of a name; empty takes the best
  bool profile = false;                                      // time every dispatch
  std::optional<std::filesystem::path> cache_dir;            // compiled pipelines; empty path: none kept
  // Toggles of Dawn over nibble's own, to measure with: a name turns one on, "no " before it off. Dawn ignores unknown ones.
  std::vector<std::string> toggles = {};
  // Longest wait for what was submitted; empty: ten minutes, or a day on a processor, where a step may take hours.
  std::optional<std::chrono::seconds> wait_limit;
};

// Sums of one kernel's dispatches under DeviceOptions::profile.
struct ProfileRow {
  std::string label;
  std::uint64_t count = 0;
  double seconds = 0;
  double bytes = 0;  // as the launchers state them: each input read once, each output written once
  double flops = 0;
};

// Uniforms of what one recorder collects: enough for a few layers, so that their kernels are compiled side by side.
constexpr std::uint64_t params_arena_bytes = 1 << 20;

// Host memory that writing to the device and reading from it take at most.
constexpr std::uint64_t most_staging_bytes = std::uint64_t{128} << 20;

struct MemoryUse {
  std::uint64_t current = 0, peak = 0;  // bytes of all buffers on the device, as buffer_bytes() counts them
  std::uint64_t host = 0;               // of all buffers in host memory (host_memory.h)
};

struct DeviceState;

// One GPU and what belongs to it. Used from one thread.
class Device {
 public:
  // Throws UsageError where no adapter fits, DeviceError where it does not start.
  explicit Device(const DeviceOptions& options = {});

  const AdapterInfo& info() const;
  const std::vector<std::string>& toggles() const;  // of Dawn, in force

  // Zeroed memory. Throws OutOfDeviceMemory where there is none or the limit would be passed, or UsageError beyond the adapter's largest buffer.
  Tensor tensor(DType dtype, std::initializer_list<std::uint32_t> dims, std::string_view label);
  // A new tensor that holds `values`.
  template <typename T>
  Tensor tensor(DType dtype, std::initializer_list<std::uint32_t> dims, std::span<const T> values, std::string_view label) {
    Tensor result = tensor(dtype, dims, label);
    write(result, std::as_bytes(values));
    return result;
  }

  // Takes effect after the work submitted so far; the bytes are copied before it returns. `first_byte` and the size are
  // multiples of 4, but for the end of a tensor.
  void write(const Tensor& to, std::span<const std::byte> bytes, std::uint64_t first_byte = 0);
  // Waits for the work submitted so far. `into` is as long as the tensor.
  void read(const Tensor& from, std::span<std::byte> into);
  template <typename T>
  std::vector<T> read(const Tensor& from) {
    std::vector<T> values(from.bytes() / sizeof(T));
    read(from, std::as_writable_bytes(std::span(values)));
    return values;
  }

  // The kernel of a WGSL text, compiled once per text and entry point. `key` stands for the text in a first, cheaper
  // look-up and must determine it; `make_text` runs where the key is new.
  Kernel kernel(std::string_view key, std::string_view label, std::string_view entry,
                const std::function<std::string()>& make_text);

  // Returns when all submitted work is done; throws DeviceError that names `what` after DeviceOptions::wait_limit.
  void wait(std::string_view what);
  // Throws what Dawn reported since the last call: DeviceLost, OutOfDeviceMemory or DeviceError.
  void check();

  // Compiled, or taken from the disk, so far.
  std::uint64_t pipelines_made() const;

  MemoryUse memory() const;
  void reset_peak_memory();
  // Lets memory() never exceed so many bytes; 0: no limit.
  void limit_memory(std::uint64_t bytes);
  // What Dawn has taken from the driver; empty where it does not say.
  std::optional<std::uint64_t> driver_memory() const;
  // For tests: the next check() finds what Dawn reports when the driver has no memory left.
  void simulate_out_of_memory();
  // Sorted by time, longest first; empty without DeviceOptions::profile.
  std::vector<ProfileRow> profile();

  DeviceState& state() { return *state_; }

  // What a library above keeps for the device: one object a type, made when it is first asked for.
  template <typename T>
  T& attached() const {
    std::shared_ptr<void>& object = attachment(typeid(T));
    if (!object) object = std::make_shared<T>();
    return *static_cast<T*>(object.get());
  }

 private:
  std::shared_ptr<void>& attachment(std::type_index type) const;

  std::shared_ptr<DeviceState> state_;
};

}  // namespace nibble::gpu
