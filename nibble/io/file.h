#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

namespace nibble {

namespace fs = std::filesystem;

// A descriptor that closes itself.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept;
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  ~FileDescriptor();

  int get() const { return fd_; }
  // Closes now and returns what close(2) returned: some file systems report a full disk only here.
  int close();

 private:
  int fd_ = -1;
};

// A regular file open for reading at any offset, from any number of threads. A failure is a DataError with the path.
class File {
 public:
  explicit File(fs::path path);

  const fs::path& path() const { return path_; }
  // In bytes, as it was when the file was opened.
  std::uint64_t size() const { return size_; }
  // Fills `out` from `offset` on, or fails: a file that has become shorter is an error.
  void read(std::uint64_t offset, std::span<std::byte> out) const;

 private:
  fs::path path_;
  FileDescriptor fd_;
  std::uint64_t size_ = 0;
};

constexpr std::uint64_t default_file_cap = std::uint64_t{1} << 30;

// Never throws: what cannot be looked at counts as there, so that opening it says why.
bool path_exists(const fs::path& path);

// The whole file; one of more than `cap` bytes is refused before anything is allocated.
std::string read_file(const fs::path& path, std::uint64_t cap = default_file_cap);

// A file open for writing, made anew. What is written survives a crash only after sync().
class OutputFile {
 public:
  explicit OutputFile(fs::path path);

  const fs::path& path() const { return path_; }
  void write(std::span<const std::byte> bytes);
  // The same at a place of the file, whatever write() has written; what lies between is zeros until it is written too.
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes);
  // Puts the bytes on the disk and closes.
  void sync_and_close();

 private:
  fs::path path_;
  FileDescriptor fd_;
};

// A new file without a name in the folder, for reading and writing: it is gone with its descriptor, however the program ends. Negative,
// with errno, where that fails. Where the file system knows no such files, one with a name that is removed at once.
int open_unnamed(const fs::path& folder);

// pwrite(2) until all is written. False with errno.
bool write_all(int fd, std::uint64_t offset, std::span<const std::byte> bytes);

// pread(2) until `out` is full or the file ends: the bytes that it had. Empty with errno.
std::optional<std::size_t> read_all(int fd, std::uint64_t offset, std::span<std::byte> out);

// "PATH: No space left on device" and the like, from errno.
[[noreturn]] void fail_with_errno(const fs::path& path, std::string_view what);

}  // namespace nibble
