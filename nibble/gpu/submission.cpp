#include "nibble/gpu/submission.h"

#include "nibble/base/error.h"

#include <utility>

namespace nibble::gpu {
namespace {

// What is timed is cut at the length of the query set.
constexpr std::size_t most_timed = 128;
constexpr std::uint32_t timestamps = 2 * most_timed;

// Dispatches of held command buffers: the GPU begins with the first one while the next is handed over.
constexpr std::size_t first_held = 32, later_held = 128;

void check_compiled(const std::vector<Command>& commands) {
  for (const Command& command : commands) {
    if (const auto* dispatch = std::get_if<DispatchCommand>(&command)) {
      check<DeviceError>(dispatch->kernel->pipeline != nullptr, dispatch->kernel->label, "The kernel was not compiled.");
    }
  }
}

}  // namespace

void Submission::encode(const std::vector<Command>& commands) {
  check_compiled(commands);
  const std::size_t most = device_.options.profile ? most_timed : most_in_submission;
  for (const Command& command : commands) {
    if (!encoder_) encoder_ = device_.device.CreateCommandEncoder();
    std::visit([this](const auto& one) { put(one); }, command);
    if (dispatches_ >= most || flops_ > most_flops_in_submission) submit();
  }
  submit();
}

std::vector<wgpu::CommandBuffer> Submission::encode_held(const std::vector<Command>& commands) {
  check_compiled(commands);
  std::vector<wgpu::CommandBuffer> held;
  for (const Command& command : commands) {
    if (!encoder_) encoder_ = device_.device.CreateCommandEncoder();
    std::visit([this](const auto& one) { put(one); }, command);
    if (dispatches_ >= (held.empty() ? first_held : later_held)) held.push_back(finish());
  }
  if (encoder_) held.push_back(finish());
  return held;
}

wgpu::CommandBuffer Submission::finish() {
  close_pass();
  wgpu::CommandBuffer commands = encoder_.Finish();
  encoder_ = nullptr;
  dispatches_ = 0;
  flops_ = 0;
  return commands;
}

void Submission::put(const DispatchCommand& command) {
  open_pass(*command.kernel);
  if (std::exchange(in_pass_, command.kernel) != command.kernel) pass_.SetPipeline(command.kernel->pipeline);
  if (command.params_at) {
    pass_.SetBindGroup(0, command.group, 1, &*command.params_at);
  } else {
    pass_.SetBindGroup(0, command.group);
  }
  pass_.DispatchWorkgroups(command.grid.x, command.grid.y, command.grid.z);
  if (device_.options.profile) timed_.emplace_back(command.kernel, command.work);
  flops_ += command.work.flops;
  ++dispatches_;
}

void Submission::put(const CopyCommand& command) {
  close_pass();
  encoder_.CopyBufferToBuffer(command.from, command.from_offset, command.to, command.to_offset, command.bytes);
}

void Submission::put(const ClearCommand& command) {
  close_pass();
  encoder_.ClearBuffer(command.buffer, command.offset, command.bytes);
}

void Submission::open_pass(KernelState& kernel) {
  if (!device_.options.profile) {
    if (!pass_) pass_ = encoder_.BeginComputePass();
    return;
  }
  close_pass();
  if (!queries_) make_queries();
  wgpu::PassTimestampWrites writes;
  writes.querySet = queries_;
  writes.beginningOfPassWriteIndex = static_cast<std::uint32_t>(2 * timed_.size());
  writes.endOfPassWriteIndex = writes.beginningOfPassWriteIndex + 1;
  wgpu::ComputePassDescriptor descriptor;
  descriptor.label = std::string_view(kernel.label);
  descriptor.timestampWrites = &writes;
  pass_ = encoder_.BeginComputePass(&descriptor);
}

void Submission::close_pass() {
  if (!pass_) return;
  pass_.End();
  pass_ = nullptr;
  in_pass_ = nullptr;
}

void Submission::make_queries() {
  wgpu::QuerySetDescriptor descriptor;
  descriptor.type = wgpu::QueryType::Timestamp;
  descriptor.count = timestamps;
  queries_ = device_.device.CreateQuerySet(&descriptor);
  wgpu::BufferDescriptor buffer;
  buffer.size = timestamps * sizeof(std::uint64_t);
  buffer.usage = wgpu::BufferUsage::QueryResolve | wgpu::BufferUsage::CopySrc;
  resolved_ = device_.device.CreateBuffer(&buffer);
  buffer.usage = wgpu::BufferUsage::MapRead | wgpu::BufferUsage::CopyDst;
  mapped_ = device_.device.CreateBuffer(&buffer);
}

void Submission::collect_times() {
  const std::uint64_t bytes = 2 * timed_.size() * sizeof(std::uint64_t);
  const auto future = mapped_.MapAsync(wgpu::MapMode::Read, 0, bytes, wgpu::CallbackMode::WaitAnyOnly,
                                       [](wgpu::MapAsyncStatus, wgpu::StringView) {});
  device_.wait(future, "profile");
  const auto* times = static_cast<const std::uint64_t*>(mapped_.GetConstMappedRange(0, bytes));
  check<DeviceError>(times != nullptr, "profile", "The timestamps could not be read.");
  for (std::size_t i = 0; i < timed_.size(); ++i) {
    auto& row = timed_[i].first->profile;
    row.count += 1;
    row.seconds += static_cast<double>(times[2 * i + 1] - times[2 * i]) * 1e-9;
    row.bytes += timed_[i].second.bytes;
    row.flops += timed_[i].second.flops;
  }
  mapped_.Unmap();
  timed_.clear();
}

void Submission::submit() {
  if (!encoder_) return;
  close_pass();
  if (!timed_.empty()) {
    const auto count = static_cast<std::uint32_t>(2 * timed_.size());
    encoder_.ResolveQuerySet(queries_, 0, count, resolved_, 0);
    encoder_.CopyBufferToBuffer(resolved_, 0, mapped_, 0, count * sizeof(std::uint64_t));
  }
  const wgpu::CommandBuffer commands = finish();
  device_.queue.Submit(1, &commands);
  if (!timed_.empty()) collect_times();
}

}  // namespace nibble::gpu
