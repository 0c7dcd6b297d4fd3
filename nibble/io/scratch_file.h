#pragma once

#include "nibble/io/file.h"

#include <cstdint>
#include <span>
#include <string_view>

namespace nibble {

// Throws unless a scratch file of so many bytes could be made in the folder, which need not be there yet. `option` names what chooses the
// folder, for errors: a folder of memory (tmpfs, ramfs) would save none, and a disk that is too full is known before anything is written.
void check_scratch_folder(const fs::path& folder, std::uint64_t bytes, std::string_view option);

// A file without a name on a disk, of a size that is taken from the disk at once: it is gone with the program, however that ends.
// Failures are DataErrors, which say where and why.
class ScratchFile {
 public:
  // Makes the folder where it is not there.
  ScratchFile(fs::path folder, std::uint64_t bytes, std::string_view option);

  const fs::path& folder() const { return folder_; }
  std::uint64_t size() const { return size_; }
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes);
  // Puts what was written on the disk, so that a fault of the disk is found here and not when the bytes are wanted.
  void sync();
  // From any thread.
  void read(std::uint64_t offset, std::span<std::byte> out) const;

 private:
  void check_range(std::uint64_t offset, std::uint64_t count) const;

  fs::path folder_;
  FileDescriptor fd_;
  std::uint64_t size_ = 0;
};

}  // namespace nibble
