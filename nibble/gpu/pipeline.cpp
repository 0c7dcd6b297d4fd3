#include "nibble/base/error.h"
#include "nibble/gpu/dawn.h"

#include <algorithm>
#include <thread>

namespace nibble::gpu {
namespace {

wgpu::BindGroupLayout make_layout(DeviceState& state, std::span<const Access> accesses, std::size_t params_size) {
  std::vector<wgpu::BindGroupLayoutEntry> entries;
  if (params_size) {
    wgpu::BindGroupLayoutEntry entry;
    entry.binding = 0;
    entry.visibility = wgpu::ShaderStage::Compute;
    entry.buffer.type = wgpu::BufferBindingType::Uniform;
    entry.buffer.hasDynamicOffset = true;
    // Dawn refuses the pipeline when the WGSL struct is larger than what the launcher passes.
    entry.buffer.minBindingSize = round_up(params_size, 16);
    entries.push_back(entry);
  }
  for (std::size_t i = 0; i < accesses.size(); ++i) {
    wgpu::BindGroupLayoutEntry entry;
    entry.binding = static_cast<std::uint32_t>(i + 1);
    entry.visibility = wgpu::ShaderStage::Compute;
    entry.buffer.type = accesses[i] == Access::read ? wgpu::BufferBindingType::ReadOnlyStorage
                                                    : wgpu::BufferBindingType::Storage;
    entries.push_back(entry);
  }
  wgpu::BindGroupLayoutDescriptor descriptor;
  descriptor.entryCount = entries.size();
  descriptor.entries = entries.data();
  return state.device.CreateBindGroupLayout(&descriptor);
}

void begin_compiling(DeviceState& state, KernelState& kernel, std::size_t params_size) {
  wgpu::PipelineLayoutDescriptor layout;
  wgpu::ComputePipelineDescriptor descriptor;
  state.guarded(kernel.label, [&] {
    kernel.layout = make_layout(state, kernel.accesses, params_size);
    layout.bindGroupLayoutCount = 1;
    layout.bindGroupLayouts = &kernel.layout;

    wgpu::ShaderSourceWGSL source;
    source.code = std::string_view(kernel.text);
    wgpu::ShaderModuleDescriptor module;
    module.nextInChain = &source;
    module.label = std::string_view(kernel.label);

    descriptor.label = std::string_view(kernel.label);
    descriptor.layout = state.device.CreatePipelineLayout(&layout);
    descriptor.compute.module = state.device.CreateShaderModule(&module);
    descriptor.compute.entryPoint = std::string_view(kernel.entry);
  });
  const auto future = state.device.CreateComputePipelineAsync(
      &descriptor, wgpu::CallbackMode::WaitAnyOnly,
      [kernel = &kernel, errors = &state.errors](wgpu::CreatePipelineAsyncStatus status, wgpu::ComputePipeline pipeline,
                                                 wgpu::StringView message) {
        if (status == wgpu::CreatePipelineAsyncStatus::Success) kernel->pipeline = std::move(pipeline);
        if (status == wgpu::CreatePipelineAsyncStatus::ValidationError) errors->put(wgpu::ErrorType::Validation, text_of(message));
        if (status == wgpu::CreatePipelineAsyncStatus::InternalError) errors->put(wgpu::ErrorType::Internal, text_of(message));
      });
  state.compiling.emplace_back(&kernel, future);
}

void wait_for_oldest(DeviceState& state) {
  const auto [kernel, future] = state.compiling.front();
  state.compiling.erase(state.compiling.begin());
  state.instance.WaitAny(future, UINT64_MAX);
  state.errors.throw_if_any(kernel->label);
  check<DeviceError>(kernel->pipeline != nullptr, kernel->label, "The kernel was not compiled.");
}

// Dawn takes a thread for each.
std::size_t most_at_once() { return std::max(1u, std::thread::hardware_concurrency()); }

}  // namespace

void begin_pipeline(DeviceState& state, KernelState& kernel, std::span<const Binding> bindings, std::size_t params_size) {
  if (!kernel.layout) {
    kernel.accesses.clear();
    for (const Binding& binding : bindings) kernel.accesses.push_back(binding.access);
    kernel.has_params = params_size > 0;
    while (state.compiling.size() >= most_at_once()) wait_for_oldest(state);
    begin_compiling(state, kernel, params_size);
    ++state.pipelines_made;
    return;
  }
  const bool same = std::equal(bindings.begin(), bindings.end(), kernel.accesses.begin(), kernel.accesses.end(),
                               [](const Binding& binding, Access access) { return binding.access == access; });
  check(same, kernel.label, "The kernel was bound with other tensors or accesses before.");
}

bool pipelines_ready(DeviceState& state) {
  std::erase_if(state.compiling, [&](const auto& entry) {
    return entry.first->pipeline || (state.instance.WaitAny(entry.second, 0), entry.first->pipeline != nullptr);
  });
  return state.compiling.empty();
}

void wait_for_pipelines(DeviceState& state) {
  while (!state.compiling.empty()) wait_for_oldest(state);
}

Kernel Device::kernel(std::string_view key, std::string_view label, std::string_view entry,
                      const std::function<std::string()>& make_text) {
  const auto known = state_->kernels_by_key.find(key);
  if (known != state_->kernels_by_key.end()) return Kernel(known->second);
  std::string text = make_text();
  auto& kernel = state_->kernels_by_text[fmt::format("{}\n{}", entry, text)];
  if (!kernel) {
    kernel = std::make_unique<KernelState>();
    kernel->label = label;
    kernel->entry = entry;
    kernel->text = std::move(text);
  }
  state_->kernels_by_key.emplace(key, kernel.get());
  return Kernel(kernel.get());
}

}  // namespace nibble::gpu
