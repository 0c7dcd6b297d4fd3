#pragma once

// Private to gpu/: the only place that sees Dawn's header.

#include "nibble/gpu/device.h"
#include "nibble/gpu/disk_cache.h"
#include "nibble/gpu/recorder.h"

#include <dawn/webgpu_cpp.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace nibble::gpu {

inline std::string text_of(wgpu::StringView view) {
  return std::string(static_cast<std::string_view>(view));
}

struct FoundAdapter {
  AdapterInfo info;
  wgpu::Adapter adapter;
};

wgpu::Instance make_instance();
std::vector<FoundAdapter> find_adapters(const wgpu::Instance& instance);

// What Dawn's callbacks report; the next Device::check throws it.
class ErrorBox {
 public:
  void put(wgpu::ErrorType type, std::string message);
  void put_lost(std::string message);
  void throw_if_any(std::string_view where);

 private:
  std::mutex mutex_;
  bool lost_ = false;
  wgpu::ErrorType type_ = wgpu::ErrorType::NoError;
  std::string message_;
};

// Outlives the device, since buffers may.
struct MemoryCount {
  std::uint64_t current = 0, peak = 0, limit = 0, host = 0;  // limit 0: none
};

struct BufferState {
  std::shared_ptr<DeviceState> device;  // buffers keep their device: Vulkan drivers crash when it goes first
  wgpu::Buffer buffer;
  std::uint64_t size = 0;   // bytes
  std::uint64_t taken = 0;  // of the device's memory
  std::uint64_t id = 0;
  std::uint64_t last_submission = 0;  // of the recorders, that has hold of it
  bool on_host = false;               // its memory is the host's
  bool bindable = true;               // kernels may read it
  ~BufferState();
};

struct KernelState {
  std::string label, text, entry;
  std::vector<Access> accesses;  // of the first dispatch; fixed from then on
  bool has_params = false;
  wgpu::BindGroupLayout layout;
  wgpu::ComputePipeline pipeline;  // once it is compiled
  ProfileRow profile;
};

struct TextHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};

// Bind groups by their layout and where in which buffers each binding lies. A look-up makes nothing.
using BindKey = std::span<const std::uint64_t>;
struct BindKeyHash {
  using is_transparent = void;
  std::size_t operator()(BindKey key) const {
    return std::hash<std::string_view>()({reinterpret_cast<const char*>(key.data()), key.size_bytes()});
  }
};
struct BindKeyEqual {
  using is_transparent = void;
  bool operator()(BindKey a, BindKey b) const { return std::ranges::equal(a, b); }
};
using BindGroups = std::unordered_map<std::vector<std::uint64_t>, wgpu::BindGroup, BindKeyHash, BindKeyEqual>;

struct DeviceState : std::enable_shared_from_this<DeviceState> {
  // What is still being compiled refers to the kernels.
  ~DeviceState() {
    for (const auto& entry : compiling) instance.WaitAny(entry.second, UINT64_MAX);
  }

  // Released in the reverse order: the instance last.
  wgpu::Instance instance;
  wgpu::Adapter adapter;
  std::unique_ptr<DiskCache> disk_cache;
  ErrorBox errors;
  wgpu::Device device;
  wgpu::Queue queue;
  AdapterInfo info;
  DeviceOptions options;
  std::vector<std::string> toggles;
  MemoryCount memory;
  std::uint64_t next_buffer_id = 1;
  wgpu::Buffer params_arena;
  std::unordered_map<std::string, KernelState*, TextHash, std::equal_to<>> kernels_by_key;
  std::unordered_map<std::string, std::unique_ptr<KernelState>> kernels_by_text;
  std::uint64_t pipelines_made = 0;
  std::vector<std::pair<KernelState*, wgpu::Future>> compiling;  // on threads of Dawn's, oldest first
  std::uint64_t next_submission = 1;
  BindGroups bind_groups;
  std::unordered_map<std::type_index, std::shared_ptr<void>> attachments;

  // Runs `create` inside error scopes and throws what they catch.
  void guarded(std::string_view where, const std::function<void()>& create);
  // For `busy` it looks again and again, before the thread sleeps.
  void wait(wgpu::Future future, std::string_view what, std::chrono::microseconds busy = {});
};

// Begins to compile the pipeline of a kernel for the given accesses, or checks that they are those it was compiled for. Errors
// of the text are thrown here, those of the compiler when the pipeline is waited for.
void begin_pipeline(DeviceState& state, KernelState& kernel, std::span<const Binding> bindings, std::size_t params_size);

// Whether all pipelines that were begun are there. Does not wait.
bool pipelines_ready(DeviceState& state);
void wait_for_pipelines(DeviceState& state);

inline std::uint64_t round_up(std::uint64_t value, std::uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace nibble::gpu
