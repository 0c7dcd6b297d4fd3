#include "nibble/gpu/device.h"

#include "nibble/base/error.h"
#include "nibble/gpu/dawn.h"

#if __has_include(<dawn/native/DawnNative.h>)
#include <dawn/native/DawnNative.h>
#endif

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstring>

namespace nibble::gpu {
namespace {

// Robustness costs the matrix products two thirds of their speed; every kernel checks its own bounds and the tests put
// guard words around outputs. The others save start-up or upload time.
constexpr const char* enabled_toggles[] = {"disable_robustness", "disable_polyfills_on_integer_div_and_mod",
                                           "disable_lazy_clear_for_mapped_at_creation_buffer"};
constexpr const char* disabled_toggles[] = {"timestamp_quantization", "enable_spirv_validation"};

// Writing has this much, sixteen times, on its way; reading has as much.
constexpr std::uint64_t transfer_bytes = std::uint64_t{4} << 20;
static_assert(2 * 16 * transfer_bytes == most_staging_bytes);

std::string lower(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return result;
}

FoundAdapter choose_adapter(const wgpu::Instance& instance, const std::string& wanted) {
  auto found = find_adapters(instance);
  check<DeviceError>(!found.empty(), "gpu",
                     "No GPU adapter was found, not even a software one; install a Vulkan driver (Debian: "
                     "mesa-vulkan-drivers) and see `nibble doctor`.");
  if (wanted.empty()) return std::move(found.front());
  std::size_t index = 0;
  const auto parsed = std::from_chars(wanted.data(), wanted.data() + wanted.size(), index);
  const bool is_index = parsed.ec == std::errc() && parsed.ptr == wanted.data() + wanted.size();
  std::string names;
  for (auto& candidate : found) {
    const bool fits = is_index ? candidate.info.index == index
                               : lower(candidate.info.name).find(lower(wanted)) != std::string::npos;
    if (fits) return std::move(candidate);
    names += fmt::format("{}{}: {}", names.empty() ? "" : ", ", candidate.info.index, candidate.info.name);
  }
  fail<UsageError>("gpu", "No adapter fits \"{}\"; those found are {}.", wanted, names);
}

std::vector<wgpu::FeatureName> wanted_features(const wgpu::Adapter& adapter) {
  std::vector<wgpu::FeatureName> features;
  for (const auto feature : {wgpu::FeatureName::ShaderF16, wgpu::FeatureName::Subgroups, wgpu::FeatureName::TimestampQuery,
                             wgpu::FeatureName::ChromiumExperimentalSubgroupMatrix, wgpu::FeatureName::HostMappedPointer}) {
    if (adapter.HasFeature(feature)) features.push_back(feature);
  }
  return features;
}

std::size_t load_cached(std::size_t key_size, const std::uint8_t* key, std::size_t value_size, std::uint8_t* value,
                        void* cache, void*) {
  const auto found = static_cast<DiskCache*>(cache)->load(std::as_bytes(std::span(key, key_size)));
  if (value && value_size >= found.size() && !found.empty()) std::memcpy(value, found.data(), found.size());
  return found.size();
}

void store_cached(std::size_t key_size, const std::uint8_t* key, std::size_t value_size, const std::uint8_t* value,
                  void* cache, void*) {
  static_cast<DiskCache*>(cache)->store(std::as_bytes(std::span(key, key_size)),
                                        std::as_bytes(std::span(value, value_size)));
}

// Ours and those of the options, "no " before what is off; of two about one toggle the later counts.
std::vector<std::string> toggles_of(const DeviceOptions& options) {
  std::vector<std::string> all;
  for (const char* toggle : enabled_toggles) all.emplace_back(toggle);
  for (const char* toggle : disabled_toggles) all.push_back(fmt::format("no {}", toggle));
  const auto name_of = [](std::string_view toggle) { return toggle.starts_with("no ") ? toggle.substr(3) : toggle; };
  for (const std::string& toggle : options.toggles) {
    std::erase_if(all, [&](const std::string& other) { return name_of(other) == name_of(toggle); });
    all.push_back(toggle);
  }
  return all;
}

void open_device(DeviceState& state) {
  const auto features = wanted_features(state.adapter);
  wgpu::Limits limits;
  state.adapter.GetLimits(&limits);

  // The C form: the C++ one cannot convert these callbacks.
  WGPUDawnCacheDeviceDescriptor cache = WGPU_DAWN_CACHE_DEVICE_DESCRIPTOR_INIT;
  cache.dawnLoadCacheDataCallbackInfo.callback = load_cached;
  cache.dawnLoadCacheDataCallbackInfo.userdata1 = state.disk_cache.get();
  cache.dawnStoreCacheDataCallbackInfo.callback = store_cached;
  cache.dawnStoreCacheDataCallbackInfo.userdata1 = state.disk_cache.get();
  wgpu::DawnTogglesDescriptor toggles;
  toggles.nextInChain = reinterpret_cast<wgpu::ChainedStruct*>(&cache.chain);
  std::vector<const char*> on, off;
  for (const std::string& toggle : state.toggles) {
    if (toggle.starts_with("no ")) {
      off.push_back(toggle.c_str() + 3);
    } else {
      on.push_back(toggle.c_str());
    }
  }
  toggles.enabledToggleCount = on.size();
  toggles.enabledToggles = on.data();
  toggles.disabledToggleCount = off.size();
  toggles.disabledToggles = off.data();

  wgpu::DeviceDescriptor descriptor;
  descriptor.nextInChain = &toggles;
  descriptor.requiredFeatureCount = features.size();
  descriptor.requiredFeatures = features.data();
  descriptor.requiredLimits = &limits;
  ErrorBox* errors = &state.errors;
  descriptor.SetUncapturedErrorCallback(
      [](const wgpu::Device&, wgpu::ErrorType type, wgpu::StringView message, ErrorBox* box) {
        box->put(type, text_of(message));
      },
      errors);
  descriptor.SetDeviceLostCallback(
      wgpu::CallbackMode::AllowSpontaneous,
      [](const wgpu::Device&, wgpu::DeviceLostReason reason, wgpu::StringView message, ErrorBox* box) {
        if (reason != wgpu::DeviceLostReason::Destroyed && reason != wgpu::DeviceLostReason::CallbackCancelled) {
          box->put_lost(text_of(message));
        }
      },
      errors);

  std::string reason;
  const auto future = state.adapter.RequestDevice(
      &descriptor, wgpu::CallbackMode::WaitAnyOnly,
      [&](wgpu::RequestDeviceStatus, wgpu::Device device, wgpu::StringView message) {
        state.device = std::move(device);
        reason = text_of(message);
      });
  state.instance.WaitAny(future, UINT64_MAX);
  check<DeviceError>(state.device != nullptr, "gpu", "{} did not open: {}", state.info.name, reason);
  state.queue = state.device.GetQueue();
}

}  // namespace

void ErrorBox::put(wgpu::ErrorType type, std::string message) {
  const std::lock_guard lock(mutex_);
  if (type_ != wgpu::ErrorType::NoError) return;
  type_ = type;
  message_ = std::move(message);
}

void ErrorBox::put_lost(std::string message) {
  const std::lock_guard lock(mutex_);
  lost_ = true;
  message_ = std::move(message);
}

void ErrorBox::throw_if_any(std::string_view where) {
  const std::lock_guard lock(mutex_);
  // A lost device stays lost, so this is said at every call.
  if (lost_) fail<DeviceLost>(where, "The GPU was lost: {}", message_);
  const auto type = std::exchange(type_, wgpu::ErrorType::NoError);
  const auto message = std::exchange(message_, {});
  if (type == wgpu::ErrorType::OutOfMemory) fail<OutOfDeviceMemory>(where, "The GPU is out of memory: {}", message);
  if (type != wgpu::ErrorType::NoError) fail<DeviceError>(where, "{}", message);
}

BufferState::~BufferState() {
  if (!buffer) return;
  buffer.Destroy();
  if (on_host) {
    device->memory.host -= size;
  } else {
    device->memory.current -= taken;
  }
}

void DeviceState::guarded(std::string_view where, const std::function<void()>& create) {
  constexpr wgpu::ErrorFilter filters[] = {wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory,
                                           wgpu::ErrorFilter::Validation};
  for (const auto filter : filters) device.PushErrorScope(filter);
  create();
  ErrorBox caught;
  for (std::size_t i = 0; i < std::size(filters); ++i) {
    const auto future = device.PopErrorScope(
        wgpu::CallbackMode::WaitAnyOnly,
        [&](wgpu::PopErrorScopeStatus, wgpu::ErrorType type, wgpu::StringView message) {
          if (type != wgpu::ErrorType::NoError) caught.put(type, text_of(message));
        });
    instance.WaitAny(future, UINT64_MAX);
  }
  errors.throw_if_any(where);
  caught.throw_if_any(where);
}

void DeviceState::wait(wgpu::Future future, std::string_view what, std::chrono::microseconds busy) {
  const auto usual = info.type == AdapterType::software ? std::chrono::seconds(86400) : std::chrono::seconds(600);
  const auto seconds = options.wait_limit.value_or(usual);
  const auto limit = std::chrono::duration_cast<std::chrono::nanoseconds>(seconds).count();
  const auto begin = std::chrono::steady_clock::now();
  auto status = wgpu::WaitStatus::TimedOut;
  while (status == wgpu::WaitStatus::TimedOut && std::chrono::steady_clock::now() - begin < busy) status = instance.WaitAny(future, 0);
  if (status == wgpu::WaitStatus::TimedOut) status = instance.WaitAny(future, static_cast<std::uint64_t>(limit));
  errors.throw_if_any(what);
  nibble::check<DeviceError>(status == wgpu::WaitStatus::Success, what, "The GPU did not finish within {} s.",
                             seconds.count());
}

Device::Device(const DeviceOptions& options) : state_(std::make_shared<DeviceState>()) {
  auto& state = *state_;
  state.options = options;
  state.instance = make_instance();
  auto chosen = choose_adapter(state.instance, options.adapter);
  state.info = std::move(chosen.info);
  state.adapter = std::move(chosen.adapter);
  if (options.profile) {
    nibble::check<UsageError>(state.info.timestamps, "gpu", "{} has no timestamps, which profiling needs.", state.info.name);
  }
  state.disk_cache = std::make_unique<DiskCache>(
      options.cache_dir ? *options.cache_dir
                        : (default_cache_dir().empty() ? std::filesystem::path() : default_cache_dir() / "pipelines"));
  state.toggles = toggles_of(options);
  open_device(state);

  wgpu::BufferDescriptor descriptor;
  descriptor.label = "params";
  descriptor.size = params_arena_bytes;
  descriptor.usage = wgpu::BufferUsage::Uniform | wgpu::BufferUsage::CopyDst;
  state.guarded("gpu", [&] { state.params_arena = state.device.CreateBuffer(&descriptor); });
  state.memory.current = state.memory.peak = buffer_bytes(params_arena_bytes);
}

const AdapterInfo& Device::info() const { return state_->info; }
const std::vector<std::string>& Device::toggles() const { return state_->toggles; }

Tensor Device::tensor(DType dtype, std::initializer_list<std::uint32_t> dims, std::string_view label) {
  auto buffer = std::make_shared<BufferState>();
  Tensor result(buffer, 0, dtype, dims);
  // Kernels read in vectors of 16 bytes, so the end is rounded up.
  const std::uint64_t size = round_up(std::max<std::uint64_t>(result.bytes(), 16), 256);
  nibble::check<UsageError>(size <= state_->info.limits.max_buffer, label,
                            "A buffer of {} bytes exceeds the {} that {} allows; use smaller batches or chunks.", size,
                            state_->info.limits.max_buffer, state_->info.name);
  MemoryCount& memory = state_->memory;
  const std::uint64_t taken = buffer_bytes(size);
  nibble::check<OutOfDeviceMemory>(memory.limit == 0 || memory.current + taken <= memory.limit, label,
                                   "{} bytes beside the {} in use would pass the limit of {} bytes of GPU memory.", taken,
                                   memory.current, memory.limit);
  wgpu::BufferDescriptor descriptor;
  descriptor.label = label;
  descriptor.size = size;
  descriptor.usage = wgpu::BufferUsage::Storage | wgpu::BufferUsage::CopyDst | wgpu::BufferUsage::CopySrc;
  wgpu::Buffer created;
  state_->guarded(label, [&] { created = state_->device.CreateBuffer(&descriptor); });
  buffer->device = state_;
  buffer->buffer = std::move(created);
  buffer->size = size;
  buffer->taken = taken;
  buffer->id = state_->next_buffer_id++;
  memory.current += taken;
  memory.peak = std::max(memory.peak, memory.current);
  return result;
}

void Device::write(const Tensor& to, std::span<const std::byte> bytes, std::uint64_t first_byte) {
  nibble::check(first_byte + bytes.size() <= to.bytes(), "write", "{} bytes at byte {} do not fit into a tensor of {}.",
                bytes.size(), first_byte, to.bytes());
  const auto& buffer = to.buffer()->buffer;
  for (std::uint64_t done = 0; done < bytes.size();) {
    const std::uint64_t count = std::min<std::uint64_t>(transfer_bytes, bytes.size() - done);
    const std::uint64_t whole = count / 4 * 4;
    if (whole) state_->queue.WriteBuffer(buffer, to.offset() + first_byte + done, bytes.data() + done, whole);
    if (whole < count) {
      std::uint32_t last = 0;
      std::memcpy(&last, bytes.data() + done + whole, count - whole);
      state_->queue.WriteBuffer(buffer, to.offset() + first_byte + done + whole, &last, 4);
    }
    done += count;
    // Dawn stages each piece in host memory of its own until the GPU has taken it.
    if (done % (16 * transfer_bytes) == 0) wait("write");
  }
  check();
}

void Device::read(const Tensor& from, std::span<std::byte> into) {
  nibble::check(into.size() == from.bytes(), "read", "A tensor of {} bytes was read into {}.", from.bytes(), into.size());
  const std::uint64_t piece = 16 * transfer_bytes;
  wgpu::BufferDescriptor descriptor;
  descriptor.label = "readback";
  descriptor.size = round_up(std::min<std::uint64_t>(piece, std::max<std::uint64_t>(into.size(), 4)), 4);
  descriptor.usage = wgpu::BufferUsage::MapRead | wgpu::BufferUsage::CopyDst;
  wgpu::Buffer staging;
  state_->guarded("read", [&] { staging = state_->device.CreateBuffer(&descriptor); });
  for (std::uint64_t done = 0; done < into.size(); done += piece) {
    const std::uint64_t count = std::min<std::uint64_t>(piece, into.size() - done);
    const std::uint64_t whole = round_up(count, 4);
    const wgpu::CommandEncoder encoder = state_->device.CreateCommandEncoder();
    encoder.CopyBufferToBuffer(from.buffer()->buffer, from.offset() + done, staging, 0, whole);
    const wgpu::CommandBuffer commands = encoder.Finish();
    state_->queue.Submit(1, &commands);
    const auto future = staging.MapAsync(wgpu::MapMode::Read, 0, whole, wgpu::CallbackMode::WaitAnyOnly,
                                         [](wgpu::MapAsyncStatus, wgpu::StringView) {});
    state_->wait(future, "read");
    const void* mapped = staging.GetConstMappedRange(0, whole);
    check();
    nibble::check<DeviceError>(mapped != nullptr, "read", "The GPU's memory could not be mapped.");
    std::memcpy(into.data() + done, mapped, count);
    staging.Unmap();
  }
  staging.Destroy();
}

void Device::wait(std::string_view what) {
  const auto future = state_->queue.OnSubmittedWorkDone(wgpu::CallbackMode::WaitAnyOnly,
                                                        [](wgpu::QueueWorkDoneStatus, wgpu::StringView) {});
  state_->wait(future, what);
}

void Device::check() {
  state_->instance.ProcessEvents();
  state_->errors.throw_if_any("gpu");
}

MemoryUse Device::memory() const { return {state_->memory.current, state_->memory.peak, state_->memory.host}; }

std::shared_ptr<void>& Device::attachment(std::type_index type) const { return state_->attachments[type]; }

std::uint64_t Device::pipelines_made() const { return state_->pipelines_made; }

void Device::reset_peak_memory() { state_->memory.peak = state_->memory.current; }

void Device::limit_memory(std::uint64_t bytes) { state_->memory.limit = bytes; }

std::optional<std::uint64_t> Device::driver_memory() const {
#if __has_include(<dawn/native/DawnNative.h>)
  return dawn::native::GetAllocatorMemoryInfo(state_->device.Get()).totalAllocatedMemory;
#else
  return {};
#endif
}

void Device::simulate_out_of_memory() {
  state_->errors.put(wgpu::ErrorType::OutOfMemory, "a test asked for this.");
}

std::vector<ProfileRow> Device::profile() {
  // Kernels that differ in their constants alone share a label and a row.
  std::map<std::string, ProfileRow> rows_by_label;
  for (const auto& [text, kernel] : state_->kernels_by_text) {
    auto& row = rows_by_label[kernel->label];
    row.label = kernel->label;
    row.count += kernel->profile.count;
    row.seconds += kernel->profile.seconds;
    row.bytes += kernel->profile.bytes;
    row.flops += kernel->profile.flops;
  }
  std::vector<ProfileRow> rows;
  for (auto& [label, row] : rows_by_label) {
    if (row.count) rows.push_back(std::move(row));
  }
  std::sort(rows.begin(), rows.end(), [](const ProfileRow& a, const ProfileRow& b) { return a.seconds > b.seconds; });
  return rows;
}

}  // namespace nibble::gpu
