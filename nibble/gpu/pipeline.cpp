#include "nibble/base/error.h"
#include "nibble/gpu/dawn.h"

#include <algorithm>

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

void compile(DeviceState& state, KernelState& kernel, std::size_t params_size) {
  state.guarded(kernel.label, [&] {
    kernel.layout = make_layout(state, kernel.accesses, params_size);
    wgpu::PipelineLayoutDescriptor layout;
    layout.bindGroupLayoutCount = 1;
    layout.bindGroupLayouts = &kernel.layout;

    wgpu::ShaderSourceWGSL source;
    source.code = std::string_view(kernel.text);
    wgpu::ShaderModuleDescriptor module;
    module.nextInChain = &source;
    module.label = std::string_view(kernel.label);

    wgpu::ComputePipelineDescriptor descriptor;
    descriptor.label = std::string_view(kernel.label);
    descriptor.layout = state.device.CreatePipelineLayout(&layout);
    descriptor.compute.module = state.device.CreateShaderModule(&module);
    descriptor.compute.entryPoint = std::string_view(kernel.entry);
    kernel.pipeline = state.device.CreateComputePipeline(&descriptor);
  });
}

}  // namespace

void ready_pipeline(DeviceState& state, KernelState& kernel, std::span<const Binding> bindings, std::size_t params_size) {
  if (!kernel.pipeline) {
    kernel.accesses.clear();
    for (const Binding& binding : bindings) kernel.accesses.push_back(binding.access);
    kernel.has_params = params_size > 0;
    compile(state, kernel, params_size);
    ++state.pipelines_made;
    return;
  }
  const bool same = std::equal(bindings.begin(), bindings.end(), kernel.accesses.begin(), kernel.accesses.end(),
                               [](const Binding& binding, Access access) { return binding.access == access; });
  check(same, kernel.label, "The kernel was bound with other tensors or accesses before.");
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
