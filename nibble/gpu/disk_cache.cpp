#include "nibble/gpu/disk_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <system_error>

namespace nibble::gpu {
namespace {

namespace fs = std::filesystem;

constexpr std::array<char, 8> magic = {'n', 'b', 'l', 'c', 'a', 'c', 'h', '1'};

struct EntryHeader {
  std::array<char, 8> magic;
  std::uint64_t key_size, value_size, checksum;
};

// FNV-1a, 64 bits.
std::uint64_t hash(std::span<const std::byte> bytes, std::uint64_t state = 0xcbf29ce484222325u) {
  for (const std::byte byte : bytes) state = (state ^ static_cast<std::uint64_t>(byte)) * 0x100000001b3u;
  return state;
}

}  // namespace

fs::path default_cache_dir() {
  const auto from = [](const char* variable) {
    const char* value = std::getenv(variable);
    return value ? fs::path(value) : fs::path();
  };
  if (const auto folder = from("XDG_CACHE_HOME"); !folder.empty()) return folder / "nibble";
  if (const auto folder = from("LOCALAPPDATA"); !folder.empty()) return folder / "nibble";
  if (const auto folder = from("HOME"); !folder.empty()) return folder / ".cache" / "nibble";
  return {};
}

DiskCache::DiskCache(fs::path folder, std::uint64_t cap_bytes) : folder_(std::move(folder)), cap_bytes_(cap_bytes) {
  if (folder_.empty()) return;
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error) {
    folder_.clear();
    return;
  }
  trim();
}

fs::path DiskCache::entry_path(std::span<const std::byte> key) const {
  return folder_ / fmt::format("{:016x}{:016x}.bin", hash(key), hash(key, 0x9e3779b97f4a7c15u));
}

std::vector<std::byte> DiskCache::load(std::span<const std::byte> key) {
  if (folder_.empty()) return {};
  const std::lock_guard lock(mutex_);
  std::ifstream file(entry_path(key), std::ios::binary);
  EntryHeader header{};
  if (!file.read(reinterpret_cast<char*>(&header), sizeof header)) return {};
  if (header.magic != magic || header.key_size != key.size() || header.value_size > cap_bytes_) return {};
  std::vector<std::byte> stored_key(key.size()), value(header.value_size);
  if (!file.read(reinterpret_cast<char*>(stored_key.data()), static_cast<std::streamsize>(stored_key.size()))) return {};
  if (!std::equal(key.begin(), key.end(), stored_key.begin())) return {};
  if (!file.read(reinterpret_cast<char*>(value.data()), static_cast<std::streamsize>(value.size()))) return {};
  if (hash(value) != header.checksum) return {};
  return value;
}

void DiskCache::store(std::span<const std::byte> key, std::span<const std::byte> value) {
  if (folder_.empty()) return;
  const std::lock_guard lock(mutex_);
  const fs::path path = entry_path(key);
  const fs::path aside = path.string() + fmt::format(".{:08x}", std::random_device{}());
  const EntryHeader header{magic, key.size(), value.size(), hash(value)};
  std::error_code error;
  {
    std::ofstream file(aside, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&header), sizeof header);
    file.write(reinterpret_cast<const char*>(key.data()), static_cast<std::streamsize>(key.size()));
    file.write(reinterpret_cast<const char*>(value.data()), static_cast<std::streamsize>(value.size()));
    file.close();
    if (!file) {
      fs::remove(aside, error);
      return;
    }
  }
  fs::rename(aside, path, error);
  if (error) fs::remove(aside, error);
}

void DiskCache::trim() {
  struct Entry {
    fs::path path;
    std::uint64_t size;
    fs::file_time_type time;
  };
  std::vector<Entry> entries;
  std::uint64_t total = 0;
  std::error_code error;
  for (auto it = fs::directory_iterator(folder_, error); !error && it != fs::directory_iterator(); it.increment(error)) {
    std::error_code entry_error;
    const auto size = it->file_size(entry_error);
    const auto time = it->last_write_time(entry_error);
    if (entry_error) continue;
    entries.push_back({it->path(), size, time});
    total += size;
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.time < b.time; });
  for (const Entry& entry : entries) {
    if (total <= cap_bytes_) break;
    if (fs::remove(entry.path, error)) total -= entry.size;
  }
}

}  // namespace nibble::gpu
