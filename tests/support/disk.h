#pragma once

#include "tests/support/files.h"

#include <sys/vfs.h>

#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>

namespace nibble::test {

// A folder that lies in memory (tmpfs), as those of Linux's shared memory; empty where none is mounted.
inline std::filesystem::path folder_in_memory() {
  std::ifstream mounts("/proc/self/mounts");
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream words(line);
    std::string device, folder, kind;
    words >> device >> folder >> kind;
    struct statfs found {};
    constexpr std::uint32_t tmpfs = 0x01021994;
    if (kind == "tmpfs" && ::statfs(folder.c_str(), &found) == 0 && static_cast<std::uint32_t>(found.f_type) == tmpfs) return folder;
  }
  return {};
}

// A folder of its own on a disk: where a system's temporary files lie in memory, those of /var/tmp do not.
struct FolderOnDisk : TemporaryFolder {
  FolderOnDisk() : TemporaryFolder("/var/tmp") {}
};

// This process's file without a name in the folder, as a path that opens it; empty where there is none.
inline std::filesystem::path scratch_of(const std::filesystem::path& folder) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", ignored)) {
    const std::string target = std::filesystem::read_symlink(entry.path(), ignored).string();
    if (target.starts_with(folder.string()) && target.ends_with("(deleted)")) return entry.path();
  }
  return {};
}

}  // namespace nibble::test
