#include "nibble/io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <string>
#include <system_error>
#include <utility>

#include "nibble/base/error.h"

namespace nibble {
namespace {

// Linux moves at most 2 GiB less a page in one call; smaller pieces keep signals prompt.
constexpr std::size_t piece_bytes = std::size_t{1} << 28;

}  // namespace

void fail_with_errno(const fs::path& path, std::string_view what) {
  const int code = errno;
  fail<DataError>(path.string(), "Could not {}: {}.", what, std::generic_category().message(code));
}

FileDescriptor::FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

FileDescriptor::~FileDescriptor() { close(); }

int FileDescriptor::close() {
  if (fd_ < 0) return 0;
  return ::close(std::exchange(fd_, -1));
}

int open_unnamed(const fs::path& folder) {
  const int fd = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) return fd;
  std::string path = (folder / "nibble-XXXXXX").string();
  const int named = ::mkostemp(path.data(), O_CLOEXEC);
  if (named >= 0) ::unlink(path.c_str());
  return named;
}

File::File(fs::path path) : path_(std::move(path)), fd_(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (fd_.get() < 0) fail_with_errno(path_, "open this file");
  struct stat status {};
  if (::fstat(fd_.get(), &status) != 0) fail_with_errno(path_, "look at this file");
  check<DataError>(S_ISREG(status.st_mode), path_.string(), "This is not a regular file, which it must be.");
  size_ = static_cast<std::uint64_t>(status.st_size);
}

void File::read(std::uint64_t offset, std::span<std::byte> out) const {
  check<DataError>(offset <= size_ && out.size() <= size_ - offset, path_.string(),
                   "Bytes {} to {} were asked for, but the file has {}.", offset, offset + out.size(), size_);
  const auto got = read_all(fd_.get(), offset, out);
  if (!got) fail_with_errno(path_, "read this file");
  check<DataError>(*got == out.size(), path_.string(), "The file ends at byte {}, but it had {} bytes when it was opened.", offset + *got, size_);
}

bool write_all(int fd, std::uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto put = ::pwrite(fd, bytes.data(), std::min(bytes.size(), piece_bytes), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(put));
    offset += static_cast<std::uint64_t>(put);
  }
  return true;
}

std::optional<std::size_t> read_all(int fd, std::uint64_t offset, std::span<std::byte> out) {
  std::size_t done = 0;
  while (done < out.size()) {
    const auto got = ::pread(fd, out.data() + done, std::min(out.size() - done, piece_bytes), static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return {};
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

bool path_exists(const fs::path& path) {
  std::error_code ignored;
  return fs::status(path, ignored).type() != fs::file_type::not_found;
}

std::string read_file(const fs::path& path, std::uint64_t cap) {
  const File file(path);
  check<DataError>(file.size() <= cap, path.string(), "The file has {} bytes; at most {} are read.", file.size(), cap);
  std::string text(file.size(), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

OutputFile::OutputFile(fs::path path)
    : path_(std::move(path)), fd_(::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) {
  if (fd_.get() < 0) fail_with_errno(path_, "create this file");
}

void OutputFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto put = ::write(fd_.get(), bytes.data(), std::min(bytes.size(), piece_bytes));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail_with_errno(path_, "write this file");
    bytes = bytes.subspan(static_cast<std::size_t>(put));
  }
}

void OutputFile::write_at(std::uint64_t offset, std::span<const std::byte> bytes) {
  if (!write_all(fd_.get(), offset, bytes)) fail_with_errno(path_, "write this file");
}

void OutputFile::sync_and_close() {
  if (::fsync(fd_.get()) != 0) fail_with_errno(path_, "put this file on the disk");
  if (fd_.close() != 0) fail_with_errno(path_, "close this file");
}

}  // namespace nibble
