#include "nibble/gpu/adapter.h"

#include "nibble/base/error.h"
#include "nibble/gpu/dawn.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <span>

namespace nibble::gpu {
namespace {

namespace fs = std::filesystem;

constexpr const char* instance_toggles[] = {"allow_unsafe_apis"};
constexpr const char* adapter_toggles[] = {"allow_unsafe_apis", "vulkan_enable_f16_on_nvidia"};

#ifdef NIBBLE_DAWN_TREE
// Dawn's unpacked tree has a software driver that the Vulkan loader does not know: names it beside the system's own.
void offer_software_driver() {
  const fs::path driver = fs::path(NIBBLE_DAWN_TREE) / "lvp_icd.json";
  std::error_code error;
  if (std::getenv("VK_DRIVER_FILES") || std::getenv("VK_ICD_FILENAMES") || !fs::exists(driver, error)) return;
  std::string files = driver.string();
  for (const char* folder : {"/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d"}) {
    for (auto it = fs::directory_iterator(folder, error); !error && it != fs::directory_iterator(); it.increment(error)) {
      if (it->path().extension() == ".json") files += fmt::format(":{}", it->path().string());
    }
    error.clear();
  }
  setenv("VK_DRIVER_FILES", files.c_str(), 0);
}
#else
void offer_software_driver() {}
#endif

AdapterType type_of(wgpu::AdapterType type) {
  switch (type) {
    case wgpu::AdapterType::DiscreteGPU: return AdapterType::discrete;
    case wgpu::AdapterType::IntegratedGPU: return AdapterType::integrated;
    case wgpu::AdapterType::CPU: return AdapterType::software;
    default: return AdapterType::unknown;
  }
}

std::string_view name_of(wgpu::BackendType backend) {
  switch (backend) {
    case wgpu::BackendType::Vulkan: return "Vulkan";
    case wgpu::BackendType::Metal: return "Metal";
    case wgpu::BackendType::D3D12: return "D3D12";
    case wgpu::BackendType::D3D11: return "D3D11";
    case wgpu::BackendType::OpenGL: return "OpenGL";
    case wgpu::BackendType::OpenGLES: return "OpenGL ES";
    case wgpu::BackendType::Null: return "Null";
    default: return "unknown";
  }
}

Limits limits_of(const wgpu::Adapter& adapter) {
  wgpu::Limits limits;
  wgpu::DawnHostMappedPointerLimits host_pointers;
  const bool reads_host = adapter.HasFeature(wgpu::FeatureName::HostMappedPointer);
  if (reads_host) limits.nextInChain = &host_pointers;
  adapter.GetLimits(&limits);
  return {.max_buffer = limits.maxBufferSize,
          .max_binding = limits.maxStorageBufferBindingSize,
          .storage_offset_alignment = limits.minStorageBufferOffsetAlignment,
          .uniform_offset_alignment = limits.minUniformBufferOffsetAlignment,
          .workgroup_storage = limits.maxComputeWorkgroupStorageSize,
          .workgroup_invocations = std::min(limits.maxComputeInvocationsPerWorkgroup, limits.maxComputeWorkgroupSizeX),
          .workgroups_per_dimension = limits.maxComputeWorkgroupsPerDimension,
          .storage_bindings = limits.maxStorageBuffersPerShaderStage,
          .host_pointer_alignment = reads_host ? host_pointers.hostMappedPointerAlignment : 0};
}

// Of the heaps that the CPU can write to.
bool largest_mapped_is_local(std::span<const wgpu::MemoryHeapInfo> heaps) {
  std::uint64_t largest = 0;
  bool local = false;
  for (const auto& heap : heaps) {
    if (!(heap.properties & wgpu::HeapProperty::HostVisible) || heap.size <= largest) continue;
    largest = heap.size;
    local = (heap.properties & wgpu::HeapProperty::DeviceLocal) ? true : false;
  }
  return local;
}

AdapterInfo info_of(const wgpu::Adapter& adapter) {
  wgpu::AdapterInfo info;
  wgpu::AdapterPropertiesSubgroupMatrixConfigs matrices;
  wgpu::AdapterPropertiesMemoryHeaps heaps;
  const bool has_matrices = adapter.HasFeature(wgpu::FeatureName::ChromiumExperimentalSubgroupMatrix);
  if (has_matrices) info.nextInChain = &matrices;
  if (adapter.HasFeature(wgpu::FeatureName::AdapterPropertiesMemoryHeaps)) {
    heaps.nextInChain = info.nextInChain;
    info.nextInChain = &heaps;
  }
  adapter.GetInfo(&info);

  AdapterInfo result;
  result.name = text_of(info.device);
  result.vendor = text_of(info.vendor);
  result.driver = text_of(info.description);
  result.backend = name_of(info.backendType);
  result.type = type_of(info.adapterType);
  result.f16 = adapter.HasFeature(wgpu::FeatureName::ShaderF16);
  result.subgroups = adapter.HasFeature(wgpu::FeatureName::Subgroups);
  result.timestamps = adapter.HasFeature(wgpu::FeatureName::TimestampQuery);
  result.subgroup_min_size = info.subgroupMinSize;
  result.subgroup_max_size = info.subgroupMaxSize;
  for (std::size_t i = 0; has_matrices && i < matrices.configCount; ++i) {
    const auto& config = matrices.configs[i];
    if (config.componentType != wgpu::SubgroupMatrixComponentType::F16 ||
        config.resultComponentType != wgpu::SubgroupMatrixComponentType::F32) {
      continue;
    }
    const MatrixConfig found{config.M, config.N, config.K};
    if (std::find(result.matrix_configs.begin(), result.matrix_configs.end(), found) == result.matrix_configs.end()) {
      result.matrix_configs.push_back(found);
    }
  }
  for (std::size_t i = 0; i < heaps.heapCount; ++i) {
    if (heaps.heapInfo[i].properties & wgpu::HeapProperty::DeviceLocal) {
      result.memory_bytes = std::max(result.memory_bytes, heaps.heapInfo[i].size);
    }
  }
  result.maps_card_memory = result.type == AdapterType::discrete && largest_mapped_is_local({heaps.heapInfo, heaps.heapCount});
  result.limits = limits_of(adapter);
  return result;
}

wgpu::Adapter request_adapter(const wgpu::Instance& instance, wgpu::PowerPreference power, bool software) {
  wgpu::DawnTogglesDescriptor toggles;
  toggles.enabledToggleCount = std::size(adapter_toggles);
  toggles.enabledToggles = adapter_toggles;
  wgpu::RequestAdapterOptions options;
  options.nextInChain = &toggles;
  options.powerPreference = power;
  options.forceFallbackAdapter = software;
#ifdef __linux__
  options.backendType = wgpu::BackendType::Vulkan;
#endif
  wgpu::Adapter found;
  const auto future = instance.RequestAdapter(
      &options, wgpu::CallbackMode::WaitAnyOnly,
      [&](wgpu::RequestAdapterStatus, wgpu::Adapter adapter, wgpu::StringView) { found = std::move(adapter); });
  instance.WaitAny(future, UINT64_MAX);
  return found;
}

int rank(AdapterType type) {
  switch (type) {
    case AdapterType::discrete: return 0;
    case AdapterType::integrated: return 1;
    case AdapterType::unknown: return 2;
    case AdapterType::software: return 3;
  }
  return 4;
}

}  // namespace

std::string_view name_of(AdapterType type) {
  switch (type) {
    case AdapterType::discrete: return "discrete GPU";
    case AdapterType::integrated: return "integrated GPU";
    case AdapterType::software: return "software";
    case AdapterType::unknown: return "unknown kind";
  }
  return "?";
}

wgpu::Instance make_instance() {
  offer_software_driver();
  const wgpu::InstanceFeatureName features[] = {wgpu::InstanceFeatureName::TimedWaitAny};
  wgpu::DawnTogglesDescriptor toggles;
  toggles.enabledToggleCount = std::size(instance_toggles);
  toggles.enabledToggles = instance_toggles;
  wgpu::InstanceDescriptor descriptor;
  descriptor.nextInChain = &toggles;
  descriptor.requiredFeatureCount = std::size(features);
  descriptor.requiredFeatures = features;
  wgpu::Instance instance = wgpu::CreateInstance(&descriptor);
  check<DeviceError>(instance != nullptr, "gpu", "Dawn did not start.");
  return instance;
}

// Dawn exports no list of adapters, so each preference is asked for and what comes twice is dropped.
std::vector<FoundAdapter> find_adapters(const wgpu::Instance& instance) {
  std::vector<FoundAdapter> found;
  const auto add = [&](const wgpu::Adapter& adapter) {
    if (!adapter) return;
    AdapterInfo info = info_of(adapter);
    // The Null backend accepts all work and does none.
    if (info.backend == "Null") return;
    for (const auto& other : found) {
      if (other.info.name == info.name && other.info.backend == info.backend && other.info.driver == info.driver) return;
    }
    found.push_back({std::move(info), adapter});
  };
  add(request_adapter(instance, wgpu::PowerPreference::HighPerformance, false));
  add(request_adapter(instance, wgpu::PowerPreference::LowPower, false));
  add(request_adapter(instance, wgpu::PowerPreference::Undefined, true));
  std::stable_sort(found.begin(), found.end(), [](const FoundAdapter& a, const FoundAdapter& b) {
    return rank(a.info.type) < rank(b.info.type);
  });
  for (std::size_t i = 0; i < found.size(); ++i) found[i].info.index = i;
  return found;
}

std::vector<AdapterInfo> list_adapters() {
  const wgpu::Instance instance = make_instance();
  std::vector<AdapterInfo> infos;
  for (const auto& adapter : find_adapters(instance)) infos.push_back(adapter.info);
  return infos;
}

}  // namespace nibble::gpu
