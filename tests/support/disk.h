#pragma once

#include "tests/support/files.h"

#include <sys/stat.h>
#include <sys/vfs.h>

namespace nibble::test {

inline bool is_in_memory(const std::filesystem::path& folder) {
  struct statfs kind {};
  constexpr std::uint32_t tmpfs = 0x01021994;
  return ::statfs(folder.c_str(), &kind) == 0 && static_cast<std::uint32_t>(kind.f_type) == tmpfs;
}

// A folder of its own for a test on a disk, removed at the end: where a system's temporary files lie in memory, those of /var/tmp do not.
class FolderOnDisk {
 public:
  FolderOnDisk() {
    std::string pattern = "/var/tmp/nibble-test-XXXXXX";
    path_ = ::mkdtemp(pattern.data());
  }
  FolderOnDisk(const FolderOnDisk&) = delete;
  FolderOnDisk& operator=(const FolderOnDisk&) = delete;
  ~FolderOnDisk() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
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
