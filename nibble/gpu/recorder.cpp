#include "nibble/gpu/recorder.h"

#include "nibble/base/error.h"
#include "nibble/gpu/submission.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace nibble::gpu {
namespace {

// Commands of a recorder's first submission, and of any at an even pace.
constexpr std::size_t first_submission = 32;
constexpr std::size_t bind_group_cap = 16384;

std::uint64_t exact_size(const Tensor& tensor) {
  const std::uint64_t rounded = round_up(std::max<std::uint64_t>(tensor.bytes(), 16), 16);
  return std::min(rounded, tensor.buffer()->size - tensor.offset());
}

}  // namespace

struct RecorderState {
  DeviceState& device;
  Pace pace;
  Submission submission{device};
  std::vector<Command> commands;
  std::vector<std::byte> params;
  std::vector<Buffer> in_use;  // kept until they are submitted, though their last tensor may go before
  std::uint64_t number = device.next_submission++;  // of what is being recorded
  std::size_t most_commands = first_submission;
  double flops = 0;
  std::vector<std::uint64_t> key;  // of the bind group that is looked for
  std::vector<wgpu::CommandBuffer> encoded;  // of Pace::held

  void keep(const Buffer& buffer);
  std::uint32_t put_params(std::span<const std::byte> bytes);
  std::uint64_t bound_size(std::span<const Binding> bindings, std::size_t index) const;
  const wgpu::BindGroup& bind_group(KernelState& kernel, std::span<const Binding> bindings, std::size_t params_size);
  wgpu::BindGroup make_bind_group(KernelState& kernel, std::span<const Binding> bindings, std::size_t params_size);
};

void RecorderState::keep(const Buffer& buffer) {
  if (std::exchange(buffer->last_submission, number) != number) in_use.push_back(buffer);
}

std::uint32_t RecorderState::put_params(std::span<const std::byte> bytes) {
  const std::uint64_t offset = round_up(params.size(), device.info.limits.uniform_offset_alignment);
  params.resize(offset + round_up(bytes.size(), 16));
  std::copy(bytes.begin(), bytes.end(), params.begin() + static_cast<std::ptrdiff_t>(offset));
  return static_cast<std::uint32_t>(offset);
}

// A tensor is bound to the end of its buffer, so that batches of different lengths share bind groups; kernels know sizes from
// their params alone. Where a dispatch has two tensors of one buffer, their ranges must not meet if one is written, so these are exact.
std::uint64_t RecorderState::bound_size(std::span<const Binding> bindings, std::size_t index) const {
  const Tensor& tensor = bindings[index].tensor;
  for (std::size_t i = 0; i < bindings.size(); ++i) {
    if (i != index && bindings[i].tensor.buffer() == tensor.buffer()) return exact_size(tensor);
  }
  return std::min(tensor.buffer()->size - tensor.offset(), device.info.limits.max_binding / 4 * 4);
}

const wgpu::BindGroup& RecorderState::bind_group(KernelState& kernel, std::span<const Binding> bindings, std::size_t params_size) {
  key.clear();
  key.push_back(reinterpret_cast<std::uint64_t>(kernel.layout.Get()));
  for (std::size_t i = 0; i < bindings.size(); ++i) {
    const Tensor& tensor = bindings[i].tensor;
    key.insert(key.end(), {tensor.buffer()->id, tensor.offset(), bound_size(bindings, i)});
    keep(tensor.buffer());
  }
  const auto known = device.bind_groups.find(BindKey(key));
  if (known != device.bind_groups.end()) return known->second;
  if (device.bind_groups.size() >= bind_group_cap) device.bind_groups.clear();
  return device.bind_groups.emplace(key, make_bind_group(kernel, bindings, params_size)).first->second;
}

wgpu::BindGroup RecorderState::make_bind_group(KernelState& kernel, std::span<const Binding> bindings, std::size_t params_size) {
  std::vector<wgpu::BindGroupEntry> entries;
  if (params_size) {
    wgpu::BindGroupEntry entry;
    entry.binding = 0;
    entry.buffer = device.params_arena;
    entry.size = round_up(params_size, 16);
    entries.push_back(entry);
  }
  for (std::size_t i = 0; i < bindings.size(); ++i) {
    wgpu::BindGroupEntry entry;
    entry.binding = static_cast<std::uint32_t>(i + 1);
    entry.buffer = bindings[i].tensor.buffer()->buffer;
    entry.offset = bindings[i].tensor.offset();
    entry.size = bound_size(bindings, i);
    entries.push_back(entry);
  }
  wgpu::BindGroupDescriptor descriptor;
  descriptor.layout = kernel.layout;
  descriptor.entryCount = entries.size();
  descriptor.entries = entries.data();
  return device.device.CreateBindGroup(&descriptor);
}

Recorder::Recorder(Device& device, Pace pace) : device_(device), state_(new RecorderState{.device = device.state(), .pace = pace}) {}

Recorder::~Recorder() {
  if (state_->pace == Pace::held) return;
  try {
    submit();
  } catch (const Error&) {
  }
}

void Recorder::dispatch_bytes(const Kernel& kernel, std::span<const Binding> bindings, std::span<const std::byte> params,
                              Grid grid, Work work) {
  auto& state = kernel.state();
  const Limits& limits = device_.info().limits;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  check(std::max({grid.x, grid.y, grid.z}) <= limits.workgroups_per_dimension, state.label,
        "A grid of {} x {} x {} workgroups exceeds {} in one dimension.", grid.x, grid.y, grid.z,
        limits.workgroups_per_dimension);
  for (const Binding& binding : bindings) {
    check(static_cast<bool>(binding.tensor), state.label, "A tensor that was never made was bound.");
    check(binding.tensor.offset() % limits.storage_offset_alignment == 0, state.label,
          "A tensor at byte {} was bound; the adapter needs a multiple of {}.", binding.tensor.offset(),
          limits.storage_offset_alignment);
    check(binding.tensor.buffer()->bindable, state.label, "A tensor in host memory was bound, which kernels cannot read.");
    check(exact_size(binding.tensor) <= limits.max_binding, state.label,
          "A tensor of {} bytes was bound; the adapter binds at most {}.", binding.tensor.bytes(), limits.max_binding);
  }
  begin_pipeline(device_.state(), state, bindings, params.size());
  if (round_up(state_->params.size(), limits.uniform_offset_alignment) + round_up(params.size(), 16) > params_arena_bytes) {
    check(state_->pace != Pace::held, "recorder", "More was recorded than can be held.");
    submit();
  }
  DispatchCommand command{.kernel = &state, .group = state_->bind_group(state, bindings, params.size()), .params_at = {}, .grid = grid, .work = work};
  if (!params.empty()) command.params_at = state_->put_params(params);
  state_->commands.emplace_back(std::move(command));
  state_->flops += work.flops;
  if (state_->pace == Pace::held) return;
  // While kernels are being compiled, what comes next is recorded, so that its kernels are compiled beside them.
  const bool enough = state_->commands.size() >= state_->most_commands || state_->flops > most_flops_in_submission;
  if (enough && pipelines_ready(device_.state())) submit();
}

void Recorder::prepare(const Kernel& kernel, std::span<const Binding> bindings, std::size_t params_bytes) {
  begin_pipeline(device_.state(), kernel.state(), bindings, params_bytes);
}

void Recorder::copy(const Tensor& from, const Tensor& to) {
  check(from.bytes() == to.bytes() && from.bytes() % 4 == 0, "copy", "{} bytes were to be copied onto {}.", from.bytes(),
        to.bytes());
  state_->keep(from.buffer());
  state_->keep(to.buffer());
  state_->commands.emplace_back(CopyCommand{from.buffer()->buffer, from.offset(), to.buffer()->buffer, to.offset(), from.bytes()});
}

void Recorder::clear(const Tensor& tensor) {
  state_->keep(tensor.buffer());
  state_->commands.emplace_back(ClearCommand{tensor.buffer()->buffer, tensor.offset(), round_up(tensor.bytes(), 4)});
}

void Recorder::encode() {
  auto& state = *state_;
  check(state.pace == Pace::held && state.encoded.empty(), "recorder", "What is not held, or encoded already, was to be encoded.");
  if (state.device.options.profile) return;  // dispatches are timed as they are submitted
  const auto commands = std::exchange(state.commands, {});
  wait_for_pipelines(state.device);
  state.encoded = state.submission.encode_held(commands);
}

void Recorder::submit() {
  auto& state = *state_;
  if (!state.encoded.empty()) return submit_encoded();
  if (state.commands.empty()) return;
  // What is in hand is gone whatever comes: after an error it must not be submitted again.
  const auto commands = std::exchange(state.commands, {});
  const auto params = std::exchange(state.params, {});
  const auto in_use = std::exchange(state.in_use, {});
  state.number = state.device.next_submission++;
  state.flops = 0;
  wait_for_pipelines(state.device);
  if (!params.empty()) state.device.queue.WriteBuffer(state.device.params_arena, 0, params.data(), params.size());
  state.submission.encode(commands);
  if (state.pace == Pace::growing) state.most_commands = std::min(2 * state.most_commands, most_in_submission);
  device_.check();
}

void Recorder::submit_encoded() {
  auto& state = *state_;
  check(state.commands.empty(), "recorder", "Something was recorded after encoding.");
  const auto encoded = std::exchange(state.encoded, {});
  const auto params = std::exchange(state.params, {});
  const auto in_use = std::exchange(state.in_use, {});
  state.number = state.device.next_submission++;
  if (!params.empty()) state.device.queue.WriteBuffer(state.device.params_arena, 0, params.data(), params.size());
  for (const wgpu::CommandBuffer& commands : encoded) state.device.queue.Submit(1, &commands);
  device_.check();
}

Grid linear_grid(const Device& device, std::uint64_t count) {
  const std::uint64_t limit = device.info().limits.workgroups_per_dimension;
  if (count <= limit) return {static_cast<std::uint32_t>(count), 1, 1};
  const std::uint64_t rows = (count + limit - 1) / limit;
  return {static_cast<std::uint32_t>((count + rows - 1) / rows), static_cast<std::uint32_t>(rows), 1};
}

std::vector<RowRange> binding_slices(const Device& device, std::uint32_t rows,
                                     std::initializer_list<std::uint64_t> row_bytes, std::uint32_t multiple) {
  const Limits& limits = device.info().limits;
  std::uint64_t step = multiple, most = rows;
  for (const std::uint64_t bytes : row_bytes) {
    if (bytes == 0) continue;
    const std::uint64_t aligned = limits.storage_offset_alignment / std::gcd<std::uint64_t>(bytes, limits.storage_offset_alignment);
    step = std::lcm(step, aligned);
    most = std::min(most, (limits.max_binding - 16) / bytes);
  }
  if (most < rows) most = most / step * step;
  check(rows == 0 || most > 0, "gpu", "Rows of so many bytes do not fit into a binding of {}.", limits.max_binding);
  std::vector<RowRange> slices;
  for (std::uint64_t begin = 0; begin < rows; begin += most) {
    slices.push_back({static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(std::min<std::uint64_t>(rows, begin + most))});
  }
  return slices;
}

}  // namespace nibble::gpu
