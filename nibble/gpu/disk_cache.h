#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <span>
#include <vector>

namespace nibble::gpu {

// Compiled pipelines kept between runs: a file an entry, holding the whole key, the value and a checksum. A damaged or
// foreign file is a miss. Entries appear by rename, so processes may share a folder. Failures to write are ignored: the
// cache only saves time. Thread-safe.
class DiskCache {
 public:
  // An empty folder name turns the cache off. Oldest entries go once the folder exceeds `cap_bytes`.
  explicit DiskCache(std::filesystem::path folder, std::uint64_t cap_bytes = std::uint64_t{256} << 20);

  // Empty where there is no entry.
  std::vector<std::byte> load(std::span<const std::byte> key);
  void store(std::span<const std::byte> key, std::span<const std::byte> value);

 private:
  std::filesystem::path entry_path(std::span<const std::byte> key) const;
  void trim();

  std::filesystem::path folder_;
  std::uint64_t cap_bytes_;
  std::mutex mutex_;
};

// $XDG_CACHE_HOME/nibble or ~/.cache/nibble (on Windows %LOCALAPPDATA%\nibble); empty where none of these is set.
std::filesystem::path default_cache_dir();

}  // namespace nibble::gpu
