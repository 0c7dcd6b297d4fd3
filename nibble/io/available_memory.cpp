#include "nibble/io/available_memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <string>
#include <string_view>

namespace nibble {
namespace {

using Bytes = std::optional<std::uint64_t>;

Bytes number_of(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failed != std::errc() || end == text.data()) return {};
  return value;
}

// The number behind a key at the beginning of a line.
Bytes value_of(const fs::path& file, std::string_view key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(key)) continue;
    const std::size_t at = line.find_first_not_of(" \t", key.size());
    return at == line.npos ? Bytes() : number_of(std::string_view(line).substr(at));
  }
  return {};
}

Bytes less(Bytes a, Bytes b) {
  if (!a || !b) return a ? a : b;
  return std::min(a, b);
}

struct GroupFiles {
  const char *limit, *current;
  const char *cached, *shared;  // keys of memory.stat; what is shared (tmpfs, shm) is a part of what is cached, and cannot be given up
};
constexpr GroupFiles version_2{"memory.max", "memory.current", "file ", "shmem "};
constexpr GroupFiles version_1{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache ", "total_shmem "};

// What one group leaves; without a limit its file says "max", or in version 1 more than any machine has.
Bytes left_of(const fs::path& group, const GroupFiles& files) {
  const Bytes limit = value_of(group / files.limit, ""), current = value_of(group / files.current, "");
  if (!limit || !current) return {};
  const auto stat = [&](const char* key) { return value_of(group / "memory.stat", key).value_or(0); };
  const std::uint64_t cached = std::min(*current, stat(files.cached));
  return *limit - std::min(*limit, *current - cached + std::min(cached, stat(files.shared)));
}

// Of a group and all above it. In a container the path is the host's and may not be there; what is mounted then is the own group.
Bytes left_from(const fs::path& mount, std::string path, const GroupFiles& files) {
  Bytes left = left_of(mount, files);
  while (path.size() > 1) {
    left = less(left, left_of(mount / path.substr(1), files));
    path.resize(path.rfind('/'));
  }
  return left;
}

// Lines "0::/path" of version 2 and "5:memory:/path" of version 1.
Bytes left_of_groups(const fs::path& root) {
  Bytes left;
  std::ifstream in(root / "proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == line.npos || second == line.npos) continue;
    const std::string controllers = fmt::format(",{},", line.substr(first + 1, second - first - 1));
    std::string path = line.substr(second + 1);
    if (!path.starts_with('/') || path.find("..") != path.npos) path.assign(1, '/');  // outside of what is mounted
    if (controllers == ",,") left = less(left, left_from(root / "sys/fs/cgroup", path, version_2));
    if (controllers.find(",memory,") != controllers.npos) left = less(left, left_from(root / "sys/fs/cgroup/memory", path, version_1));
  }
  return left;
}

}  // namespace

std::optional<std::uint64_t> available_memory(const fs::path& root) {
  Bytes available = value_of(root / "proc/meminfo", "MemAvailable:");
  if (available) available = *available * 1024;
  return less(available, left_of_groups(root));
}

}  // namespace nibble
