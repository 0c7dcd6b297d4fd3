#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble::gpu {

enum class AdapterType { discrete, integrated, software, unknown };

std::string_view name_of(AdapterType type);

// A product that the adapter's matrix units do on f16 operands with f32 results: (m, k) by (k, n).
struct MatrixConfig {
  std::uint32_t m, n, k;
  bool operator==(const MatrixConfig&) const = default;
};

// In bytes unless said otherwise.
struct Limits {
  std::uint64_t max_buffer = 0;
  std::uint64_t max_binding = 0;            // one storage binding
  std::uint32_t storage_offset_alignment = 256;
  std::uint32_t uniform_offset_alignment = 256;
  std::uint32_t workgroup_storage = 0;
  std::uint32_t workgroup_invocations = 0;  // threads
  std::uint32_t workgroups_per_dimension = 0;
  std::uint32_t storage_bindings = 0;       // of one kernel
  std::uint32_t host_pointer_alignment = 0; // of memory of the process that the device may read; 0: it may not
};

struct AdapterInfo {
  std::size_t index = 0;  // what `--adapter` takes
  std::string name;
  std::string vendor;
  std::string driver;
  std::string backend;
  AdapterType type = AdapterType::unknown;
  bool f16 = false;
  bool subgroups = false;
  bool timestamps = false;
  std::uint32_t subgroup_min_size = 0;
  std::uint32_t subgroup_max_size = 0;
  std::vector<MatrixConfig> matrix_configs;
  std::uint64_t memory_bytes = 0;  // of the largest device-local heap; 0 where the driver does not say
  // Whether what is mapped for writing lies in a card's own memory: Dawn takes the largest heap that the CPU can write to.
  bool maps_card_memory = false;
  Limits limits;
};

// Every adapter found, best first: discrete, integrated, software. Throws DeviceError where Dawn itself does not start.
std::vector<AdapterInfo> list_adapters();

}  // namespace nibble::gpu
