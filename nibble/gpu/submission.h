#pragma once

#include "nibble/gpu/dawn.h"

#include <cstdint>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

namespace nibble::gpu {

struct DispatchCommand {
  KernelState* kernel;
  wgpu::BindGroup group;
  std::optional<std::uint32_t> params_at;  // byte of the arena
  Grid grid;
  Work work;
};

struct CopyCommand {
  wgpu::Buffer from;
  std::uint64_t from_offset;
  wgpu::Buffer to;
  std::uint64_t to_offset, bytes;
};

struct ClearCommand {
  wgpu::Buffer buffer;
  std::uint64_t offset, bytes;
};

using Command = std::variant<DispatchCommand, CopyCommand, ClearCommand>;

// What one submission holds at most: so that submitting costs nothing, and watchdogs of desktop systems see it end.
constexpr std::size_t most_in_submission = 512;
constexpr double most_flops_in_submission = 2e12;

// Encodes commands and submits them, in order, in as many submissions as that takes. Params are in the arena before. Throws DeviceError,
// and submits nothing, where a kernel's pipeline was refused.
class Submission {
 public:
  explicit Submission(DeviceState& device) : device_(device) {}
  void encode(const std::vector<Command>& commands);
  // The same without submitting: command buffers, in their order, untimed.
  std::vector<wgpu::CommandBuffer> encode_held(const std::vector<Command>& commands);

 private:
  void put(const DispatchCommand&);
  void put(const CopyCommand&);
  void put(const ClearCommand&);
  void open_pass(KernelState& kernel);
  void close_pass();
  void make_queries();
  void collect_times();
  void submit();
  wgpu::CommandBuffer finish();

  DeviceState& device_;
  wgpu::CommandEncoder encoder_;
  wgpu::ComputePassEncoder pass_;
  const KernelState* in_pass_ = nullptr;  // whose pipeline is set
  std::size_t dispatches_ = 0;
  double flops_ = 0;
  // Under DeviceOptions::profile.
  wgpu::QuerySet queries_;
  wgpu::Buffer resolved_, mapped_;
  std::vector<std::pair<KernelState*, Work>> timed_;
};

}  // namespace nibble::gpu
