#include "nibble/gpu/recorder.h"

#include "nibble/base/error.h"
#include "nibble/gpu/dawn.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace nibble::gpu {
namespace {

// A recorder's first submission is short, so that the GPU starts at once; later ones are long enough that submitting costs
// nothing and short enough for the watchdogs of desktop systems. What is timed is cut at the length of the query set.
constexpr std::size_t first_submission = 32, longest_submission = 512, longest_timed_submission = 128;
constexpr double flops_per_submit = 2e12;
constexpr std::size_t bind_group_cap = 16384;
constexpr std::uint32_t timestamp_cap = 2 * longest_timed_submission;

std::uint64_t exact_size(const Tensor& tensor) {
  const std::uint64_t rounded = round_up(std::max<std::uint64_t>(tensor.bytes(), 16), 16);
  return std::min(rounded, tensor.buffer()->size - tensor.offset());
}

}  // namespace

struct RecorderState {
  DeviceState& device;
  wgpu::CommandEncoder encoder;
  wgpu::ComputePassEncoder pass;
  std::vector<std::byte> params;
  std::vector<Buffer> in_use;  // kept until they are submitted, though their last tensor may go before
  std::uint64_t submission = device.next_submission++;  // that is being recorded
  std::size_t dispatches = 0, most_dispatches = device.options.profile ? longest_timed_submission : first_submission;
  double flops = 0;
  const KernelState* in_pass = nullptr;  // whose pipeline is set
  std::vector<std::uint64_t> key;        // of the bind group that is looked for
  wgpu::QuerySet queries;
  wgpu::Buffer resolved, mapped;
  std::vector<std::pair<KernelState*, Work>> timed;

  void open_encoder();
  void open_pass(KernelState& kernel);
  void close_pass();
  void keep(const Buffer& buffer);
  std::uint32_t put_params(std::span<const std::byte> bytes);
  std::uint64_t bound_size(std::span<const Binding> bindings, std::size_t index) const;
  const wgpu::BindGroup& bind_group(KernelState& kernel, std::span<const Binding> bindings, std::size_t params_size);
  wgpu::BindGroup make_bind_group(KernelState& kernel, std::span<const Binding> bindings, std::size_t params_size);
  void make_queries();
  void collect_times();
};

void RecorderState::open_encoder() {
  if (!encoder) encoder = device.device.CreateCommandEncoder();
}

void RecorderState::open_pass(KernelState& kernel) {
  open_encoder();
  if (!device.options.profile) {
    if (!pass) pass = encoder.BeginComputePass();
    return;
  }
  close_pass();
  if (!queries) make_queries();
  wgpu::PassTimestampWrites writes;
  writes.querySet = queries;
  writes.beginningOfPassWriteIndex = static_cast<std::uint32_t>(2 * timed.size());
  writes.endOfPassWriteIndex = writes.beginningOfPassWriteIndex + 1;
  wgpu::ComputePassDescriptor descriptor;
  descriptor.label = std::string_view(kernel.label);
  descriptor.timestampWrites = &writes;
  pass = encoder.BeginComputePass(&descriptor);
}

void RecorderState::close_pass() {
  if (!pass) return;
  pass.End();
  pass = nullptr;
  in_pass = nullptr;
}

void RecorderState::keep(const Buffer& buffer) {
  if (std::exchange(buffer->last_submission, submission) != submission) in_use.push_back(buffer);
}

std::uint32_t RecorderState::put_params(std::span<const std::byte> bytes) {
  const std::uint64_t offset = round_up(params.size(), device.info.limits.uniform_offset_alignment);
  params.resize(offset + round_up(bytes.size(), 16));
  std::copy(bytes.begin(), bytes.end(), params.begin() + static_cast<std::ptrdiff_t>(offset));
  return static_cast<std::uint32_t>(offset);
}

// A tensor is bound to the end of its buffer, so that batches of different lengths share bind groups; kernels know sizes from
// their params alone. Where a dispatch has two tensors of one buffer, their ranges must not meet, so these are exact.
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

void RecorderState::make_queries() {
  wgpu::QuerySetDescriptor descriptor;
  descriptor.type = wgpu::QueryType::Timestamp;
  descriptor.count = timestamp_cap;
  queries = device.device.CreateQuerySet(&descriptor);
  wgpu::BufferDescriptor buffer;
  buffer.size = timestamp_cap * sizeof(std::uint64_t);
  buffer.usage = wgpu::BufferUsage::QueryResolve | wgpu::BufferUsage::CopySrc;
  resolved = device.device.CreateBuffer(&buffer);
  buffer.usage = wgpu::BufferUsage::MapRead | wgpu::BufferUsage::CopyDst;
  mapped = device.device.CreateBuffer(&buffer);
}

void RecorderState::collect_times() {
  const std::uint64_t bytes = 2 * timed.size() * sizeof(std::uint64_t);
  const auto future = mapped.MapAsync(wgpu::MapMode::Read, 0, bytes, wgpu::CallbackMode::WaitAnyOnly,
                                      [](wgpu::MapAsyncStatus, wgpu::StringView) {});
  device.wait(future, "profile");
  const auto* times = static_cast<const std::uint64_t*>(mapped.GetConstMappedRange(0, bytes));
  check<DeviceError>(times != nullptr, "profile", "The timestamps could not be read.");
  for (std::size_t i = 0; i < timed.size(); ++i) {
    auto& row = timed[i].first->profile;
    row.count += 1;
    row.seconds += static_cast<double>(times[2 * i + 1] - times[2 * i]) * 1e-9;
    row.bytes += timed[i].second.bytes;
    row.flops += timed[i].second.flops;
  }
  mapped.Unmap();
  timed.clear();
}

Recorder::Recorder(Device& device) : device_(device), state_(new RecorderState{.device = device.state()}) {}

Recorder::~Recorder() {
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
    check(exact_size(binding.tensor) <= limits.max_binding, state.label,
          "A tensor of {} bytes was bound; the adapter binds at most {}.", binding.tensor.bytes(), limits.max_binding);
  }
  ready_pipeline(device_.state(), state, bindings, params.size());
  if (round_up(state_->params.size(), 256) + 512 > params_arena_bytes) submit();

  state_->open_pass(state);
  if (std::exchange(state_->in_pass, &state) != &state) state_->pass.SetPipeline(state.pipeline);
  const auto& group = state_->bind_group(state, bindings, params.size());
  if (params.empty()) {
    state_->pass.SetBindGroup(0, group);
  } else {
    const std::uint32_t offset = state_->put_params(params);
    state_->pass.SetBindGroup(0, group, 1, &offset);
  }
  state_->pass.DispatchWorkgroups(grid.x, grid.y, grid.z);
  if (device_.state().options.profile) state_->timed.emplace_back(&state, work);
  state_->flops += work.flops;
  if (++state_->dispatches >= state_->most_dispatches || state_->flops > flops_per_submit) submit();
}

void Recorder::copy(const Tensor& from, const Tensor& to) {
  check(from.bytes() == to.bytes() && from.bytes() % 4 == 0, "copy", "{} bytes were to be copied onto {}.", from.bytes(),
        to.bytes());
  state_->close_pass();
  state_->open_encoder();
  state_->keep(from.buffer());
  state_->keep(to.buffer());
  state_->encoder.CopyBufferToBuffer(from.buffer()->buffer, from.offset(), to.buffer()->buffer, to.offset(), from.bytes());
}

void Recorder::clear(const Tensor& tensor) {
  state_->close_pass();
  state_->open_encoder();
  state_->keep(tensor.buffer());
  state_->encoder.ClearBuffer(tensor.buffer()->buffer, tensor.offset(), round_up(tensor.bytes(), 4));
}

void Recorder::submit() {
  auto& state = *state_;
  if (!state.encoder) return;
  state.close_pass();
  if (!state.timed.empty()) {
    const auto count = static_cast<std::uint32_t>(2 * state.timed.size());
    state.encoder.ResolveQuerySet(state.queries, 0, count, state.resolved, 0);
    state.encoder.CopyBufferToBuffer(state.resolved, 0, state.mapped, 0, count * sizeof(std::uint64_t));
  }
  const wgpu::CommandBuffer commands = state.encoder.Finish();
  state.encoder = nullptr;
  if (!state.params.empty()) {
    state.device.queue.WriteBuffer(state.device.params_arena, 0, state.params.data(), state.params.size());
  }
  state.device.queue.Submit(1, &commands);
  state.params.clear();
  state.in_use.clear();
  state.submission = state.device.next_submission++;
  state.dispatches = 0;
  if (!state.device.options.profile) state.most_dispatches = std::min(2 * state.most_dispatches, longest_submission);
  state.flops = 0;
  if (!state.timed.empty()) state.collect_times();
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
