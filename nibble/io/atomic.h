#pragma once

#include "nibble/io/file.h"

namespace nibble {

// A file that appears whole or not at all: written as ".NAME.tmp-PID" beside its place, synced, then renamed over what
// is there, which must be a regular file. Without commit() the destructor removes what was written.
class AtomicFile {
 public:
  explicit AtomicFile(fs::path target);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  void write(std::span<const std::byte> bytes) { file_.write(bytes); }
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes) { file_.write_at(offset, bytes); }
  void commit();

 private:
  fs::path target_;
  OutputFile file_;
  bool committed_ = false;
};

// A device or a pipe, which has no place to take, is written to.
void write_file_atomically(const fs::path& path, std::string_view text);

// A folder that appears whole or not at all. Fill `path()`, then commit(): every file is synced and the folder takes
// the place of `target`; an older folder there is exchanged for it in one step and then removed. Parents are created;
// what a killed run left beside the target is cleared away. Without commit() the destructor removes what was written.
class AtomicFolder {
 public:
  explicit AtomicFolder(fs::path target);
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;
  ~AtomicFolder();

  // Where to write until commit().
  const fs::path& path() const { return staging_; }
  void commit();

 private:
  fs::path target_;
  fs::path staging_;
  bool committed_ = false;
};

}  // namespace nibble
